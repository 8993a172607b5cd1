"""The header of the pulse: what both its threads see, and every `cdef` signature."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from engine._pulse_clock cimport Reach
from engine._pulse_parts cimport SLOTS, Heap, Ring, Slot
from engine._pulse_subscriptions cimport Subscriptions

cdef enum:
    COUNTERS = 4_096
    COUNTERS_ROW = 256        # counters of one tenant; the first is its total

cdef struct Shared:           # one map of memory
    Ring inward               # slots on their way to the pulse
    Ring outward              # ... and back
    Heap heap                 # the pulse's
    uint32_t[SLOTS] free      # the turn's: slots that are nobody's
    uint64_t[COUNTERS] counts # written by the pulse
    Slot[SLOTS] slots

cdef class Pulse:
    cdef Shared *shared
    cdef object socket
    cdef object thread
    # The turn's side.
    cdef list left            # expiries that came back, not taken yet
    cdef uint32_t free_count
    cdef readonly uint32_t held_count  # expiries that are with the pulse
    cdef int64_t began_ns
    cdef uint32_t unrung      # slots handed over for which the pulse has not been woken
    cdef int64_t unrung_ns    # the first due among them
    # Seen by both.
    cdef void *handle
    cdef int bell             # eventfd: the turn wakes the pulse
    cdef int knock            # eventfd: the pulse wakes the turn
    cdef uint32_t knocked, stop, started
    cdef int64_t wake_at      # BOOTTIME until which the pulse sleeps; AWAKE while it does not
    cdef Subscriptions came
    # The pulse's side.
    cdef int socket_fd
    cdef uint64_t order
    cdef Reach reach          # how long before an instant it wakes up to spin
    cdef int64_t patience_ns, patience_at_ns
    cdef int want_fifo, fifo_error, lock_error, slack_error
    cdef uint64_t wakes, releases, handed_late, dropped_full, send_errors

    # The turn's side.
    cdef Slot *take_slot(self, uint32_t *at, uint32_t spare) except? NULL
    cdef bint let_go(
        self, int errand, uint64_t seq, uint32_t counter, bytes topic, bytes body
    ) except -1
    cdef int put_frames(self, Slot *slot, bytes topic, bytes body) except -1
    cdef void hand_over(self, uint32_t slot, int64_t due_ns) noexcept nogil
    cdef void ring_bell(self) noexcept nogil
    cdef int collect(self, uint32_t most, uint32_t *seen) except -1
    cdef int command(self, int errand, int64_t by_ns) except -1
    # The pulse's side.
    cdef void prepare(self) noexcept nogil
    cdef void run(self) noexcept nogil
    cdef void take_in(self) noexcept nogil
    cdef void do_command(self, Slot *slot) noexcept nogil
    cdef void drop_held(self) noexcept nogil
    cdef void let_out(self) noexcept nogil
    cdef void leave(self, Slot *slot, int64_t fired_ns) noexcept nogil
    cdef bint wait_for_room(self) noexcept nogil
    cdef void give_back(self, uint32_t slot) noexcept nogil
    cdef bint take_subscriptions(self) noexcept nogil
    cdef void wake_turn(self) noexcept nogil
    cdef void spin(self, int64_t due_ns) noexcept nogil
    cdef void sleep(self, int64_t due_ns, int64_t reach_ns) noexcept nogil
