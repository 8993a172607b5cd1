"""The pulse: a thread without the GIL that lets events out on their instant.

It owns the release queue and the events socket. The turn hands it what is durable: events that
leave at once, and expiries that leave when BOOTTIME has reached their due. Each travels in a slot,
whose frames the turn has made ready; the pulse puts the stamp between them and sends. Both sides
talk by two rings of slot numbers, and nothing here waits for anything but time: no lock is shared
but that of the rare subscription, no memory is asked for on the way of an event.

On the instant. The kernel wakes a thread some 30 to 100 us late, so the pulse asks to be woken
that much earlier and spins the rest. How much is learned: `reach` follows the 0.9-quantile of its
own lateness (`reach += step * q if late > reach else -= step * (1 - q)`), clamped to spin_max; the
0.99-quantile runs away and burns a quarter of a core. What spinning may cost is bounded too: credit
grows by spin_percent of the time that passes, and without credit it sleeps to the instant itself.
SCHED_FIFO, a timer slack of 1 ns and locked memory where the kernel permits; what it refused is in
`stats`.

Never early: an event leaves after a look at the clock that said so, and is stamped with that look.
Time is counted from the due instant, so a stamp is `due + lateness` on the scale of the event.

A slow subscriber. XPUB refuses a send while some subscriber's queue is full (XPUB_NODROP). The
pulse waits for room as long as its patience lasts (20 ms, refilled by 1 % of the time), and then
sends to all but that one, which libzmq leaves out until it has caught up; ordinals show it what it
missed.

The wheel is not its own: docs/decisions/0005-pulse.md says why.
"""

import errno as errors
import os
import threading

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap
from posix.time cimport timespec

from engine._libzmq cimport (
    ZMQ_DONTWAIT, ZMQ_EVENTS, ZMQ_POLLIN, ZMQ_XPUB_NODROP, Message, libzmq,
)
from engine._pulse_clock cimport (
    NS, POLLIN, boot_ns, nap, pollfd, ppoll, reach_begin, reach_learn, reach_now, reach_spent,
)
from engine._pulse_parts cimport (
    BEAT, CLEAR, DROPPED, EVENT, EXPIRY, MOVE, SLOTS, TALLY, Heap, Slot, Waiting, fence, heap_order,
    heap_put, heap_take, load_acquire, load_wake, relax, ring_count, ring_put, ring_take,
    send_parts, store_release, store_wake,
)
from engine._realtime cimport PULSE_PRIORITY, be_fifo, lock_pages, set_slack
from engine._pulse_subscriptions cimport (
    Subscription, subscription_free, subscription_put, subscriptions_begin, subscriptions_end,
    subscriptions_take,
)
from engine._threads cimport EFD_CLOEXEC, EFD_NONBLOCK, eventfd, eventfd_read, eventfd_write
from engine._threads cimport close as close_fd

from engine.errors import RealtimeRefused
from engine.threads import block_signals

cdef enum:
    SPARE = 1              # a slot that is kept for commands
    UNRUNG_MAX = 64        # slots handed over before the pulse is woken for them
    BURST = 256            # expiries let out before the ring is looked at again
    SLICE_NS = 1_000_000_000  # ppoll counts on MONOTONIC, which stands still in a suspend
    PATIENCE_NS_MAX = 20_000_000
    PATIENCE_NS_MIN = 100_000
    ROOM_WAIT_NS = 50_000
    BACK_WAIT_NS = 20_000

cdef int64_t NEVER = INT64_MAX
cdef int64_t AWAKE = INT64_MIN

assert sizeof(Slot) == 176


@cython.final
cdef class Pulse:
    """See the module. `engine.pulse.Releases` and `engine.pulse.Outlet` say what it offers."""

    def __cinit__(self, socket not None, *, int64_t spin_max_ns, int spin_percent, str realtime):
        """socket: an XPUB zmq.Socket, configured; from here on nobody else's until `close`.

        realtime: auto, on, off. Raises RealtimeRefused for `on` where the kernel refuses it.
        """
        cdef uint32_t i
        self.bell, self.knock, self.wake_at = -1, -1, AWAKE
        subscriptions_begin(&self.came)
        self.shared = <Shared *>mmap(
            NULL, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0
        )
        if <void *>self.shared == MAP_FAILED:
            self.shared = NULL
            raise MemoryError(f"no {sizeof(Shared)} bytes for the pulse")
        for i in range(SLOTS):
            self.shared.free[i] = SLOTS - 1 - i  # few slots in use are few pages in use
        self.free_count = SLOTS
        self.left = []
        self.socket, self.socket_fd = socket, socket.fd
        self.handle = <void *><uintptr_t>socket.underlying
        self.bell, self.knock = (eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) for _ in range(2))
        if self.bell < 0 or self.knock < 0:
            raise OSError("eventfd was refused")
        reach_begin(&self.reach, spin_max_ns, spin_percent, boot_ns())
        self.patience_ns, self.unrung_ns = PATIENCE_NS_MAX, NEVER
        self.want_fifo = realtime != "off"
        self.began_ns = self.patience_at_ns = boot_ns()
        self.thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self.thread.start()
        with nogil:
            while not load_acquire(&self.started):
                nap(BACK_WAIT_NS)
        if realtime == "on" and self.fifo_error:
            self.close()
            raise RealtimeRefused(
                f"SCHED_FIFO was refused: {os.strerror(self.fifo_error)}; grant CAP_SYS_NICE or "
                "RLIMIT_RTPRIO, or set engine.realtime to 'auto'"
            )

    def __dealloc__(self):
        close_fd(self.bell)
        close_fd(self.knock)
        if self.shared != NULL:
            munmap(self.shared, sizeof(Shared))
        subscriptions_end(&self.came)

    # ------------------------------------------------------------------------ the turn's side

    def send(self, uint64_t seq, uint32_t counter, bytes topic, bytes body not None) -> bool:
        """See `engine.pulse.Outlet`. 0.2 us."""
        return self.let_go(EVENT, seq, counter, topic, body)

    def beat(self, bytes topic not None, bytes body not None) -> bool:
        """See `engine.pulse.Outlet`."""
        return self.let_go(BEAT, 0, 0, topic, body)

    def tally(self, uint32_t counter, uint32_t count) -> bool:
        """See `engine.pulse.Outlet`. 0.1 us."""
        return self.let_go(TALLY, count, counter, None, None)

    cdef bint let_go(
        self, int errand, uint64_t seq, uint32_t counter, bytes topic, bytes body
    ) except -1:
        cdef uint32_t at
        cdef Slot *slot = self.take_slot(&at, SPARE)
        if slot == NULL:
            return False
        slot.errand, slot.seq, slot.counter = errand, seq, counter
        self.put_frames(slot, topic, body)
        self.hand_over(at, 0 if slot.has_body else NEVER)  # counting can wait until it is awake
        return True

    def hold(self, release, uint32_t counter) -> bool:
        """See `engine.pulse.Releases`. 0.3 us."""
        cdef uint32_t at
        cdef Slot *slot = self.take_slot(&at, SPARE)
        if slot == NULL:
            return False
        due_ns, seq, due_utc_ns, wall, misfire, topic, body = release
        slot.errand, slot.seq, slot.counter = EXPIRY, seq, counter
        slot.due_ns, slot.due_utc_ns = due_ns, due_utc_ns
        slot.wall, slot.misfire = wall, misfire
        self.put_frames(slot, topic, body)
        self.held_count += 1
        self.hand_over(at, slot.due_ns)
        return True

    def flush(self) -> None:
        """See `engine.pulse.Outlet`."""
        if self.unrung:
            self.ring_bell()

    def take(self) -> list:
        """See `engine.pulse.Releases`. 0.2 us each."""
        cdef uint64_t count
        if load_acquire(&self.knocked):
            store_release(&self.knocked, 0)
            eventfd_read(self.knock, &count)
        self.collect(SLOTS, NULL)
        left, self.left = self.left, []
        self.held_count -= <uint32_t>len(left)
        return left

    def clear(self) -> None:
        """See `engine.pulse.Releases`, as for the next two."""
        self.command(CLEAR, 0)

    def move(self, int64_t by_ns) -> None:
        self.command(MOVE, by_ns)

    def fileno(self) -> int:
        return self.knock

    def counts(self, uint32_t row) -> list:
        """See `engine.pulse.Outlet`."""
        return [self.shared.counts[row + i] for i in range(COUNTERS_ROW)]

    def subscriptions(self) -> list:
        """See `engine.pulse.Outlet`."""
        cdef list came = []
        cdef Subscription *each = subscriptions_take(&self.came)
        while each != NULL:
            came.append(PyBytes_FromStringAndSize(<const char *>(each + 1), each.size))
            each = subscription_free(each)
        return came

    def stats(self) -> dict:
        """What it was allowed, and what it did; durations in us."""
        cdef int64_t passed_ns = max(boot_ns() - self.began_ns, <int64_t>1)
        refused = errors.errorcode.get(self.fifo_error, "") if self.want_fifo else ""
        found = {"policy": "other" if self.fifo_error else "fifo", "policy_refused": refused}
        found |= {"locked": self.lock_error == 0, "slack_ns": 50_000 if self.slack_error else 1}
        found |= {"reach_us": self.reach.ns // 1_000, "wakes": self.wakes}
        found |= {"releases": self.releases, "held": self.held_count, "handed_late": self.handed_late}
        cdef object spin_ns = self.reach.spin_ns
        found |= {"spin_us": spin_ns // 1_000, "spin_share": round(spin_ns / passed_ns, 5)}
        return found | {"dropped_full": self.dropped_full, "send_errors": self.send_errors}

    def close(self) -> None:
        """Send what was to leave at once, end the thread, and let go of what is held."""
        if self.thread is None:
            return
        store_release(&self.stop, 1)
        eventfd_write(self.bell, 1)
        self.thread.join()
        self.thread = None
        self.drop_held()  # the thread is gone: its side is ours

    cdef Slot *take_slot(self, uint32_t *at, uint32_t spare) except? NULL:
        """A slot of the turn's; NULL if all but `spare` are under way."""
        if self.thread is None:
            raise ValueError("the pulse is closed")
        if self.free_count <= spare:
            self.collect(SLOTS, NULL)
            if self.free_count <= spare:
                return NULL
        self.free_count -= 1
        at[0] = self.shared.free[self.free_count]
        cdef Slot *slot = &self.shared.slots[at[0]]
        slot.due_ns = slot.due_utc_ns = slot.fired_ns = slot.late_ns = 0
        slot.wall = slot.misfire = slot.has_body = 0
        slot.counter = 0
        return slot

    cdef int put_frames(self, Slot *slot, bytes topic, bytes body) except -1:
        if body is None:
            return 0
        cdef size_t topic_bytes = PyBytes_GET_SIZE(topic), body_bytes = PyBytes_GET_SIZE(body)
        if libzmq.msg_init_size(&slot.topic, topic_bytes):
            raise MemoryError(f"no {topic_bytes} bytes for a topic")
        if libzmq.msg_init_size(&slot.body, body_bytes):
            libzmq.msg_close(&slot.topic)
            raise MemoryError(f"no {body_bytes} bytes for an event")
        memcpy(libzmq.msg_data(&slot.topic), PyBytes_AS_STRING(topic), topic_bytes)
        memcpy(libzmq.msg_data(&slot.body), PyBytes_AS_STRING(body), body_bytes)
        slot.has_body = 1
        return 0

    cdef void hand_over(self, uint32_t at, int64_t due_ns) noexcept nogil:
        """Put a slot on its way; the pulse is woken for it by `flush`, or for a few of them here."""
        ring_put(&self.shared.inward, at)
        self.unrung += 1
        self.unrung_ns = min(self.unrung_ns, due_ns)
        if self.unrung == UNRUNG_MAX:
            self.ring_bell()

    cdef void ring_bell(self) noexcept nogil:
        """Wake the pulse if it sleeps past what was handed over."""
        fence()
        if self.unrung_ns < load_wake(&self.wake_at) or (
            ring_count(&self.shared.inward) >= SLOTS // 16
        ):
            eventfd_write(self.bell, 1)
        self.unrung, self.unrung_ns = 0, NEVER

    cdef int collect(self, uint32_t most, uint32_t *seen) except -1:
        """Take slots back; `seen` is told of the last command among them."""
        cdef uint32_t at
        cdef Slot *slot
        while most and ring_take(&self.shared.outward, &at):
            most -= 1
            slot = &self.shared.slots[at]
            if slot.errand == EXPIRY:
                self.left.append((slot.seq, slot.fired_ns, slot.late_ns, slot.misfire != 0))
            elif slot.errand == DROPPED:
                self.held_count -= 1
            elif (slot.errand == MOVE or slot.errand == CLEAR) and seen != NULL:
                seen[0] += 1
            self.shared.free[self.free_count] = at
            self.free_count += 1
        return 0

    cdef int command(self, int errand, int64_t by_ns) except -1:
        """Have the pulse do something, and wait until it has: some 100 us."""
        cdef uint32_t at, seen = 0
        cdef Slot *slot = self.take_slot(&at, 0)
        assert slot != NULL, "a command before this one has not come back"
        slot.errand, slot.due_ns = errand, by_ns
        self.hand_over(at, 0)
        self.ring_bell()
        while not seen:
            with nogil:
                nap(BACK_WAIT_NS)
            self.collect(SLOTS, &seen)
        return 0

    def _run(self) -> None:
        # Signals are for the thread that can act on them.
        block_signals()
        with nogil:
            self.prepare()
            self.run()

    # ------------------------------------------------------------------------ the pulse's side

    cdef void prepare(self) noexcept nogil:
        self.slack_error, self.lock_error = set_slack(1), lock_pages(self.shared, sizeof(Shared))
        self.fifo_error = be_fifo(PULSE_PRIORITY) if self.want_fifo else -1
        store_release(&self.started, 1)

    cdef void run(self) noexcept nogil:
        cdef int64_t first_ns, now_ns, reach_ns
        while not load_acquire(&self.stop):
            self.take_in()
            first_ns = self.shared.heap.items[0].due_ns if self.shared.heap.count else NEVER
            now_ns = boot_ns()
            if first_ns <= now_ns:
                self.let_out()
                continue
            if self.take_subscriptions():
                continue
            reach_ns = reach_now(&self.reach, now_ns)
            if first_ns - now_ns <= reach_ns:
                self.spin(first_ns)
            else:
                self.sleep(first_ns, reach_ns)
        self.take_in()

    cdef void take_in(self) noexcept nogil:
        cdef uint32_t at
        cdef Slot *slot
        cdef Waiting item
        while ring_take(&self.shared.inward, &at):
            slot = &self.shared.slots[at]
            if slot.errand == EXPIRY:
                self.handed_late += slot.due_ns < boot_ns()
                item.due_ns, item.order, item.slot = slot.due_ns, self.order, at
                self.order += 1
                heap_put(&self.shared.heap, item)
                continue
            if slot.errand <= TALLY:
                self.leave(slot, 0)
            else:
                self.do_command(slot)
            self.give_back(at)

    cdef void do_command(self, Slot *command) noexcept nogil:
        cdef Heap *heap = &self.shared.heap
        cdef Slot *slot
        cdef uint32_t i
        if command.errand == CLEAR:
            self.drop_held()
            return
        for i in range(heap.count):
            slot = &self.shared.slots[heap.items[i].slot]
            if slot.wall:
                slot.due_ns += command.due_ns
                heap.items[i].due_ns = slot.due_ns
        heap_order(heap)

    cdef void drop_held(self) noexcept nogil:
        cdef Slot *slot
        cdef uint32_t i
        for i in range(self.shared.heap.count):
            slot = &self.shared.slots[self.shared.heap.items[i].slot]
            slot.errand = DROPPED
            if slot.has_body:
                libzmq.msg_close(&slot.topic)
                libzmq.msg_close(&slot.body)
            self.give_back(self.shared.heap.items[i].slot)
        self.shared.heap.count = 0

    cdef void let_out(self) noexcept nogil:
        """Let out what is due, earliest first, a burst at most."""
        cdef uint32_t at, count
        cdef int64_t late_ns
        cdef Slot *slot
        for count in range(BURST):
            if self.shared.heap.count == 0:
                break
            late_ns = boot_ns() - self.shared.heap.items[0].due_ns
            if late_ns < 0:
                break
            at = heap_take(&self.shared.heap)
            slot = &self.shared.slots[at]
            slot.late_ns, slot.fired_ns = late_ns, slot.due_utc_ns + late_ns
            self.leave(slot, slot.fired_ns)
            self.releases += 1
            self.give_back(at)

    cdef void leave(self, Slot *slot, int64_t fired_ns) noexcept nogil:
        """Number an event and send it."""
        cdef uint64_t total = 0, number = 0
        cdef uint32_t row
        cdef int code, lossy = 0, strict = 1
        if slot.errand != BEAT:
            row = slot.counter & ~<uint32_t>(COUNTERS_ROW - 1)
            number = slot.seq if slot.errand == TALLY else 1
            self.shared.counts[row] += number
            self.shared.counts[slot.counter] += number
            total, number = self.shared.counts[row], self.shared.counts[slot.counter]
        if not slot.has_body:
            return
        code = send_parts(slot, self.handle, fired_ns, total, number)
        while code == EAGAIN and self.wait_for_room():
            code = send_parts(slot, self.handle, fired_ns, total, number)
        if code == EAGAIN:
            # To all but those whose queue is full; libzmq leaves them out until they catch up.
            self.dropped_full += 1
            libzmq.setsockopt(self.handle, ZMQ_XPUB_NODROP, &lossy, sizeof(lossy))
            code = send_parts(slot, self.handle, fired_ns, total, number)
            libzmq.setsockopt(self.handle, ZMQ_XPUB_NODROP, &strict, sizeof(strict))
        if code:
            self.send_errors += 1
        libzmq.msg_close(&slot.topic)  # sent messages are empty
        libzmq.msg_close(&slot.body)

    cdef bint wait_for_room(self) noexcept nogil:
        """Give a full subscriber a moment, while patience lasts."""
        cdef int64_t now_ns = boot_ns()
        self.patience_ns += (now_ns - self.patience_at_ns) // 100
        self.patience_ns = min(self.patience_ns, <int64_t>PATIENCE_NS_MAX)
        self.patience_at_ns = now_ns
        if self.patience_ns < PATIENCE_NS_MIN:
            return False
        nap(ROOM_WAIT_NS)
        self.take_subscriptions()  # has libzmq take note of what was read
        self.patience_ns -= boot_ns() - now_ns
        return True

    cdef void give_back(self, uint32_t at) noexcept nogil:
        ring_put(&self.shared.outward, at)
        if ring_count(&self.shared.outward) == SLOTS // 4:
            self.wake_turn()

    cdef void wake_turn(self) noexcept nogil:
        # In this order: else the turn might read first, and the write would keep it from sleeping.
        eventfd_write(self.knock, 1)
        store_release(&self.knocked, 1)

    cdef bint take_subscriptions(self) noexcept nogil:
        """Whether some came. The descriptor tells only changes, so this comes before each sleep."""
        cdef int events = 0
        cdef size_t size = sizeof(events)
        cdef Message message
        cdef bint came = False, first = True
        if libzmq.getsockopt(self.handle, ZMQ_EVENTS, &events, &size) < 0:
            return libzmq.last_error() == EINTR
        if not events & ZMQ_POLLIN:
            return False
        libzmq.msg_init(&message)
        while libzmq.msg_recv(&message, self.handle, ZMQ_DONTWAIT) >= 0:
            if first:
                subscription_put(&self.came, libzmq.msg_data(&message), libzmq.msg_size(&message))
                came = True
            first = not libzmq.msg_more(&message)
        libzmq.msg_close(&message)
        if came:
            self.wake_turn()
        return came

    cdef void spin(self, int64_t due_ns) noexcept nogil:
        cdef int64_t began_ns = boot_ns(), now_ns = began_ns
        while now_ns < due_ns and ring_count(&self.shared.inward) == 0:
            relax()
            now_ns = boot_ns()
        reach_spent(&self.reach, now_ns - began_ns)

    cdef void sleep(self, int64_t due_ns, int64_t reach_ns) noexcept nogil:
        """Until `reach_ns` before the instant, or until something comes in."""
        cdef pollfd[2] fds
        cdef timespec timeout
        cdef uint64_t count
        cdef int64_t left_ns, wake_ns = due_ns - reach_ns if due_ns != NEVER else NEVER
        cdef int ready
        fds[0].fd, fds[0].events = self.bell, POLLIN
        fds[1].fd, fds[1].events = self.socket_fd, POLLIN
        store_wake(&self.wake_at, wake_ns)
        fence()
        left_ns = min(max(wake_ns - boot_ns(), <int64_t>0), <int64_t>SLICE_NS)
        if ring_count(&self.shared.inward) == 0 and not load_acquire(&self.stop):
            timeout.tv_sec, timeout.tv_nsec = left_ns // NS, left_ns % NS
            ready = ppoll(fds, 2, &timeout, NULL)
            self.wakes += 1
            if ready > 0 and fds[0].revents:
                eventfd_read(self.bell, &count)
            if ready == 0 and wake_ns != NEVER:
                reach_learn(&self.reach, boot_ns() - wake_ns)
        store_wake(&self.wake_at, AWAKE)
