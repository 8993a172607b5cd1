"""The timing wheel: arm, disarm and fire millions of timers at a few nanoseconds each.

Pure: ticks only. It never reads a clock, sleeps, starts a thread, locks or logs; what a tick is and
what time it is, its owner says. One owner at a time.

The problem. A hierarchical wheel (Varghese & Lauck 1987, scheme 7) files a timer into a slot by its
due tick; a slot of an upper level is spread over the level below when its time comes (the cascade).
With the usual doubly linked nodes every step is a walk over cold memory: disarm writes to two
neighbours, a cascade chases pointers, and the one tick in which a large slot cascades takes
milliseconds. Heaps have no such tick, but pay a logarithm of cache misses for each operation.

The ideas here:

1. A slot is a chain of small chunks filled in order. An entry is one word: index, low bits of the
   due tick, and a tag. A cascade and a drain stream through memory.
2. Disarm is lazy: it makes the generation of the index even and frees it; the entry stays, dead,
   until its slot is visited. The tag (low bits of the generation) tells it from a later timer with
   the same index. An index whose tag would repeat is kept in quarantine until a sweep has been
   through every slot, so the answer is exact, not likely. Arms pay for the sweep: above one dead
   entry to two live ones each arm has a few entries looked at, so memory follows the live ones.
3. Levels are wide (2,048 slots, a bitmap and its summary), so a timer moves twice at most. Each is
   a ring of two windows. While time is in window W, the next upper slot is moved, a bounded number
   of entries an advance, into the bank of window W + 1. What arrives for W + 1 queues behind the
   entries still to be moved, so that equal due ticks stay first in, first out.
4. Ticks without work cost nothing: `quiet` is a tick before which an advance returns at once, and
   a jump goes from one occupied slot to the next.
5. Memory is reserved as address space and committed in small steps as it is used: nothing is ever
   copied to grow, and an empty wheel is a few pages.

What no slot can hold waits in one of two small heaps, from which a disarm removes it at once: timers
that were overdue when they were armed, and those beyond the top level, 2^31 ticks or more away.
"""

cimport cython
from libc.string cimport memset
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap

from engine._wheel_pool cimport *
from engine._wheel_slots cimport *

from engine.errors import WheelFull

cdef enum:
    BATCH = 256  # entries gathered before their generations are looked at
    MOVES_MIN = 128  # entries an advance moves ahead of time, at least
    SCAN_MAX = 256  # entries next_tick looks at before it settles for a lower bound
    SWEEP_STEP = 256
    SWEEP_PER_ARM = 4
    DEAD_FREE = 1024  # as many dead entries are nobody's concern

cdef uint64_t NEVER = 0xFFFFFFFFFFFFFFFF
cdef uint64_t LOW_HALF = 0xFFFFFFFF

if (
    RING_SLOTS != 2 << SLOT_BITS
    or RING_WORDS * 64 != RING_SLOTS
    or TOP_SHIFT != 2 * SLOT_BITS + TOP_BITS
    or LOW_BITS != 2 * SLOT_BITS
    or LOW_BITS + INDEX_BITS + TAG_BITS != 64
    or CAPACITY_MAX != 1 << INDEX_BITS
    or CHUNK_WORDS != 1 << CHUNK_BITS
    or LIVE_MASK != (2 << TAG_BITS) - 1
    or sizeof(Slot) != 12
):
    raise AssertionError("the constants of the wheel do not agree with each other")


cdef int demand(bint holds, str what, uint64_t where) except -1:
    if not holds:
        raise AssertionError(f"{what} ({where})")
    return 0


@cython.final
cdef class Wheel:
    """A timing wheel of up to `capacity` live timers, standing at `now_tick`.

    capacity: 1 to 67,108,864; address space is reserved for it, memory only as it is used.
    A handle is generation << 32 | index. Indices are dense, below capacity, and used again; a
    handle is refused once its timer has fired or been disarmed, until its index has been used
    another 2^31 times.
    """

    def __cinit__(self, capacity: int = CAPACITY_MAX, now_tick: int = 0) -> None:
        if not 1 <= capacity <= CAPACITY_MAX:
            raise ValueError(f"capacity is {capacity}; the limits are 1 and {CAPACITY_MAX}")
        cdef size_t count = capacity
        # The sweep keeps the dead below the live; the rest is for chunks that are not full.
        cdef size_t chunks = 3 * count // (CHUNK_WORDS - 1) + LEVELS * 2 * RING_SLOTS + 16
        open_pool(&self.pool, capacity)
        reserve(&self.arena.region, chunks * CHUNK_WORDS * sizeof(uint64_t), True)
        reserve(&self.overdue.region, count * sizeof(Item), False)
        reserve(&self.far.region, count * sizeof(Item), False)
        self.arena.words = <uint64_t*>self.arena.region.base
        self.overdue.items = <Item*>self.overdue.region.base
        self.far.items = <Item*>self.far.region.base
        self.open_levels()
        self.now = self.cursor = now_tick
        self.arena.top = 1
        self.sweep_level = LEVELS - 1

    cdef int open_levels(self) except -1:
        cdef int number
        cdef size_t before = 0
        self.slot_bytes = (2 * RING_SLOTS + (2 << TOP_BITS)) * sizeof(Slot)
        cdef void* base = mmap(
            NULL, self.slot_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0
        )
        if base == MAP_FAILED:
            raise MemoryError(f"cannot map {self.slot_bytes} bytes for the slots of the wheel")
        for number in range(LEVELS):
            self.levels[number].slots = <Slot*>base + before
            self.levels[number].mask = (RING_SLOTS if number < LEVELS - 1 else 2 << TOP_BITS) - 1
            self.levels[number].shift = number * SLOT_BITS
            before += self.levels[number].mask + 1
        return 0

    def __dealloc__(self) -> None:
        if self.levels[0].slots != NULL:
            munmap(self.levels[0].slots, self.slot_bytes)
        close_pool(&self.pool)
        give_back(&self.arena.region)
        give_back(&self.overdue.region)
        give_back(&self.far.region)

    cdef void reset(self) noexcept nogil:
        """Nothing is live: forget every dead entry, and hand out indices from 0 again."""
        cdef int number
        cdef uint32_t at
        for number in range(LEVELS):
            while self.levels[number].summary:
                at = next_bit(&self.levels[number], 0)
                memset(&self.levels[number].slots[at], 0, sizeof(Slot))
                clear_bit(&self.levels[number], at)
        self.arena.top = 1
        self.arena.free = self.arena.free_count = self.arena.mark = 0
        empty_pool(&self.pool)
        self.dead = 0
        self.sweep_level = LEVELS - 1
        self.sweep_at = 0
        self.sweep_credit = 0

    # --- slots ------------------------------------------------------------------------------------

    cdef bint place(self, uint64_t due_tick, uint64_t entry, int level) noexcept nogil:
        """File an entry at `level` or below; False when there is no memory.

        It goes down a level while its slot there is in the ring and no older entry for the same
        slot still waits above.
        """
        cdef uint64_t number
        cdef Slot* slot
        cdef Level* ring
        if level == 2:
            number = due_tick >> (2 * SLOT_BITS)
            if number <= (self.cursor >> (2 * SLOT_BITS)) + 1:
                if self.levels[2].slots[number & self.levels[2].mask].tail == 0:
                    level = 1
        if level == 1:
            number = due_tick >> SLOT_BITS
            if number <= (self.cursor >> SLOT_BITS) + 1:
                if self.levels[1].slots[number & (RING_SLOTS - 1)].tail == 0:
                    level = 0
        ring = &self.levels[level]
        number = due_tick >> ring.shift
        slot = &ring.slots[number & ring.mask]
        cdef uint32_t tail = slot.tail
        if tail & (CHUNK_WORDS - 1) == 0:
            tail = extend(&self.arena, ring, <uint32_t>(number & ring.mask))
            if tail == 0:
                return False
        self.arena.words[tail] = entry
        prefetch(&self.arena.words[tail + 4], 1)
        slot.tail = tail + 1
        slot.count += 1
        # Work begins when the slot is due or, above level 0, when it is the next one.
        number = number << ring.shift if level == 0 else (number - 1) << ring.shift
        if number < self.quiet:
            self.quiet = number
        return True

    cdef bint place_aside(self, uint64_t due_tick, uint64_t handle) noexcept nogil:
        """File a timer that is overdue, or due in a window of the top level still to come."""
        cdef Item item
        cdef uint64_t window = (self.cursor >> TOP_SHIFT) + 1
        self.order += 1
        item.due_tick, item.order, item.handle = due_tick, self.order, handle
        if due_tick < self.cursor:
            return push(&self.overdue, self.pool.lows, item)
        if due_tick >> TOP_SHIFT == window:
            # Behind those that still wait, if any, so that equal due ticks stay in order.
            if self.far.count == 0 or self.far.items[0].due_tick >> TOP_SHIFT > window:
                return self.place(due_tick, entry_of(handle, due_tick), 2)
        self.quiet = min(self.quiet, ((due_tick >> TOP_SHIFT) - 1) << TOP_SHIFT)
        return push(&self.far, self.pool.lows, item)

    cdef size_t pop(self, uint32_t at, uint64_t* out, size_t room) noexcept nogil:
        """Take up to `room` entries off the front of a slot of level 0."""
        cdef Slot* slot = &self.levels[0].slots[at]
        cdef uint32_t head = slot.head
        cdef size_t n = min(room, <size_t>slot.count)
        cdef size_t i
        for i in range(n):
            if head & (CHUNK_WORDS - 1) == 0:
                head = follow(&self.arena, head)
            out[i] = self.arena.words[head]
            prefetch(&self.pool.generations[index_of(out[i])], 1)
            head += 1
        consumed(&self.arena, &self.levels[0], at, head, <uint32_t>n)
        return n

    cdef bint cascade(self, int level, uint64_t number, uint64_t most) noexcept nogil:
        """Move up to `most` entries of a slot down; False when there is no memory.

        The dead go along unseen: to look at their generations would cost more than to move them.
        """
        cdef Level* ring = &self.levels[level]
        cdef uint32_t at = <uint32_t>(number & ring.mask)
        cdef uint32_t head = ring.slots[at].head
        cdef uint32_t n = <uint32_t>min(most, <uint64_t>ring.slots[at].count)
        cdef uint32_t i = 0
        cdef uint64_t start = number << ring.shift
        cdef uint64_t mask = (<uint64_t>1 << ring.shift) - 1
        if n == 0:
            return True
        while i < n:
            if head & (CHUNK_WORDS - 1) == 0:
                head = follow(&self.arena, head)
            if not self.place(start | (self.arena.words[head] & mask), self.arena.words[head], level - 1):
                break
            head += 1
            i += 1
        if i:
            consumed(&self.arena, ring, at, head, i)
        self.moved += i
        return i == n

    # --- arming and disarming ---------------------------------------------------------------------

    @cython.overflowcheck(False)  # a generation may wrap
    cdef uint64_t c_arm(self, uint64_t due_tick) noexcept nogil:
        cdef uint32_t index = <uint32_t>NIL
        cdef uint64_t handle
        cdef bint placed
        if self.pool.live < self.pool.capacity:
            index = take_index(&self.pool)
        while index == <uint32_t>NIL and self.pool.quarantined:
            # There is room, but only in quarantine: two whole passes set everything free.
            self.sweep(SWEEP_STEP)
            index = take_index(&self.pool)
        if index == <uint32_t>NIL:
            return 0
        handle = <uint64_t>(self.pool.generations[index] + 1) << 32 | index
        self.pool.lows[index] = <uint32_t>due_tick
        if due_tick < self.cursor or due_tick >> TOP_SHIFT > self.cursor >> TOP_SHIFT:
            placed = self.place_aside(due_tick, handle)
        else:
            placed = self.place(due_tick, entry_of(handle, due_tick), 2)
        if not placed:
            put_index(&self.pool, index)
            return 0
        self.pool.generations[index] += 1
        self.pool.live += 1
        if self.dead > (self.pool.live >> 1) + <uint64_t>DEAD_FREE:
            self.sweep_credit += SWEEP_PER_ARM
            if self.sweep_credit >= SWEEP_STEP:
                self.sweep_credit -= <int64_t>self.sweep(SWEEP_STEP)
        return handle

    cdef bint c_disarm(self, uint64_t handle) noexcept nogil:
        cdef uint32_t index = <uint32_t>handle
        if not self.c_is_armed(handle):
            return False
        # Mostly both are empty; then lows, another cold line of memory, need not be looked at.
        if self.far.count and holds(&self.far, self.pool.lows[index], handle):
            remove(&self.far, self.pool.lows, self.pool.lows[index])
        elif self.overdue.count and holds(&self.overdue, self.pool.lows[index], handle):
            remove(&self.overdue, self.pool.lows, self.pool.lows[index])
        else:
            self.dead += 1
        release(&self.pool, index)
        if self.pool.live == 0:
            self.reset()
        return True

    cdef bint c_is_armed(self, uint64_t handle) noexcept nogil:
        cdef uint32_t index = <uint32_t>handle
        return (
            index < self.pool.top
            and self.pool.generations[index] == handle >> 32
            and handle >> 32 & 1
        )

    cdef bint c_due_tick(self, uint64_t handle, uint64_t* tick) noexcept nogil:
        cdef uint64_t low
        if not self.c_is_armed(handle):
            return False
        low = self.pool.lows[<uint32_t>handle]
        if holds(&self.far, <uint32_t>low, handle):
            tick[0] = self.far.items[low].due_tick
        elif holds(&self.overdue, <uint32_t>low, handle):
            tick[0] = self.overdue.items[low].due_tick
        else:
            # What is in a slot is due less than 2^32 ticks after the cursor.
            low += LOW_HALF + 1 - (self.cursor & LOW_HALF)
            tick[0] = self.cursor + (low & LOW_HALF)
        return True

    cdef size_t c_arm_many(
        self, const uint64_t* due_ticks, uint64_t* handles, size_t count
    ) noexcept nogil:
        cdef size_t i
        if count > self.pool.capacity - self.pool.live:
            return 0
        for i in range(count):
            handles[i] = self.c_arm(due_ticks[i])
            if handles[i] == 0:
                self.c_disarm_many(handles, i)
                return 0
        return count

    cdef size_t c_disarm_many(self, const uint64_t* handles, size_t count) noexcept nogil:
        cdef size_t n = 0
        cdef size_t i
        if self.far.count == 0 and self.overdue.count == 0:
            n = release_many(&self.pool, handles, count)
            self.dead += n
            if n and self.pool.live == 0:
                self.reset()
        else:
            for i in range(count):
                n += self.c_disarm(handles[i])
        return n

    # --- advancing --------------------------------------------------------------------------------

    cdef size_t c_advance(self, uint64_t now_tick, uint64_t* out, size_t room) noexcept nogil:
        cdef uint64_t before = self.cursor
        cdef size_t n = 0
        cdef size_t found
        cdef bint settled
        self.now = now_tick
        if now_tick < self.quiet and self.overdue.count == 0:
            if self.dead <= self.pool.live + <uint64_t>DEAD_FREE:
                return 0
        n = self.pop_overdue(out, room)
        settled = self.settle()
        while settled and n < room:
            found = self.collect(out + n, min(room - n, <size_t>BATCH))
            if found:
                n += self.resolve(out + n, found)
            elif self.cursor >> SLOT_BITS == self.now >> SLOT_BITS:
                self.cursor = self.now
                break
            else:
                settled = self.cross()
        if self.pool.live == 0:
            self.reset()
            self.cursor = self.now
        if n < room and settled:
            self.look_ahead(self.cursor - before)
        if self.dead > self.pool.live + <uint64_t>DEAD_FREE:
            self.sweep(SWEEP_STEP)
        self.quiet = self.next_work() if n < room and settled else 0
        return n

    cdef size_t pop_overdue(self, uint64_t* out, size_t room) noexcept nogil:
        cdef size_t n = 0
        while n < room and self.overdue.count:
            out[n] = self.overdue.items[0].handle
            remove(&self.overdue, self.pool.lows, 0)
            release(&self.pool, <uint32_t>out[n])
            n += 1
        return n

    cdef size_t collect(self, uint64_t* out, size_t room) noexcept nogil:
        """Take entries that are due off level 0, dead or alive, up to now or the window's end."""
        cdef size_t n = 0
        cdef uint64_t tick = 0
        while n < room and first_from(&self.levels[0], self.cursor, &tick):
            if tick > self.now or tick >> SLOT_BITS != self.cursor >> SLOT_BITS:
                break
            self.cursor = tick
            n += self.pop(<uint32_t>(tick & (RING_SLOTS - 1)), out + n, room - n)
        return n

    cdef size_t resolve(self, uint64_t* out, size_t count) noexcept nogil:
        """Turn entries into handles, and free them; the dead drop out."""
        cdef size_t n = 0
        cdef size_t i
        cdef uint32_t index
        for i in range(count):
            if is_live(self.pool.generations, out[i]):
                index = index_of(out[i])
                out[n] = <uint64_t>self.pool.generations[index] << 32 | index
                n += 1
                release(&self.pool, index)
            else:
                self.dead -= 1
        return n

    cdef bint cross(self) noexcept nogil:
        """Enter the next window of level 0 with anything in it, or now's; False: no memory."""
        cdef uint64_t window = min(self.next_window(), self.now >> SLOT_BITS)
        self.cursor = window << SLOT_BITS
        return self.settle()

    cdef uint64_t next_window(self) noexcept nogil:
        cdef uint64_t best = NEVER
        cdef uint64_t number = 0
        if self.levels[0].summary:
            return (self.cursor >> SLOT_BITS) + 1
        if first_from(&self.levels[1], self.cursor >> SLOT_BITS, &number):
            best = number
        if first_from(&self.levels[2], self.cursor >> (2 * SLOT_BITS), &number):
            best = min(best, number << SLOT_BITS)
        if self.far.count:
            number = self.far.items[0].due_tick >> TOP_SHIFT
            best = min(best, number << (TOP_SHIFT - SLOT_BITS))
        return best

    cdef bint settle(self) noexcept nogil:
        """Move down whatever the look-ahead has left above the window the cursor is in."""
        cdef uint64_t before = self.moved
        cdef int level
        cdef uint64_t number
        if not self.bring_near(self.cursor >> TOP_SHIFT, NEVER):
            return False
        for level in range(LEVELS - 1, 0, -1):
            number = self.cursor >> self.levels[level].shift
            if self.levels[level].slots[number & self.levels[level].mask].count:
                if not self.cascade(level, number, NEVER):
                    return False
        self.moved_forced += self.moved - before
        return True

    cdef bint bring_near(self, uint64_t window, uint64_t most) noexcept nogil:
        """Move up to `most` far timers due in windows of the top level up to `window`."""
        cdef Item item
        while most and self.far.count and self.far.items[0].due_tick >> TOP_SHIFT <= window:
            item = self.far.items[0]
            if not self.place(item.due_tick, entry_of(item.handle, item.due_tick), 2):
                return False
            remove(&self.far, self.pool.lows, 0)
            self.pool.lows[<uint32_t>item.handle] = <uint32_t>item.due_tick
            self.moved += 1
            most -= 1
        return True

    cdef void look_ahead(self, uint64_t step) noexcept nogil:
        """Move a part of the next upper slots: the more, the longer the steps and the slot."""
        cdef int level
        cdef uint64_t number, left, count
        self.bring_near((self.cursor >> TOP_SHIFT) + 1, MOVES_MIN)
        for level in range(LEVELS - 1, 0, -1):
            number = (self.cursor >> self.levels[level].shift) + 1
            count = self.levels[level].slots[number & self.levels[level].mask].count
            if count == 0:
                continue
            left = ((<uint64_t>1 << self.levels[level].shift) - 1) & ~self.cursor
            # The top level's slot must be gone before the last window of level 0 in it begins.
            left = (left >> (level - 1)) + 1
            if step < left:
                count = min(count, max(<uint64_t>MOVES_MIN, (count // left + 1) * step))
            self.cascade(level, number, count)

    cdef uint64_t next_work(self) noexcept nogil:
        """The tick from which on an advance has something to do; the window's end at the latest."""
        cdef uint64_t best = NEVER
        cdef uint64_t number = 0
        cdef int level
        if self.cursor >> SLOT_BITS != NEVER >> SLOT_BITS:
            best = ((self.cursor >> SLOT_BITS) + 1) << SLOT_BITS
        if first_from(&self.levels[0], self.cursor, &number):
            best = min(best, number)
        for level in range(1, LEVELS):
            if first_from(&self.levels[level], self.cursor >> self.levels[level].shift, &number):
                best = min(best, (number - 1) << self.levels[level].shift)
        if self.far.count:
            best = min(best, ((self.far.items[0].due_tick >> TOP_SHIFT) - 1) << TOP_SHIFT)
        return best

    # --- the next tick ----------------------------------------------------------------------------

    cdef bint c_next_tick(self, uint64_t* tick) noexcept nogil:
        cdef int64_t budget = SCAN_MAX
        cdef uint64_t best = NEVER
        cdef uint64_t found = 0
        cdef int level
        if self.pool.live == 0:
            return False
        if self.overdue.count:
            tick[0] = self.now
            return True
        if self.first_due(&found, &budget):
            best = found
        for level in range(1, LEVELS):
            if best >> SLOT_BITS != self.cursor >> SLOT_BITS:
                if self.first_in(level, &found, &budget):
                    best = min(best, found)
        if self.far.count:
            best = min(best, self.far.items[0].due_tick)
        tick[0] = max(best, self.now)
        return True

    cdef bint first_due(self, uint64_t* tick, int64_t* budget) noexcept nogil:
        """The first slot of level 0 with a live entry; dead ones on the way are dropped."""
        cdef uint64_t entry
        cdef uint32_t at
        while first_from(&self.levels[0], self.cursor, tick):
            at = <uint32_t>(tick[0] & (RING_SLOTS - 1))
            if budget[0] <= 0 or is_live(self.pool.generations, self.arena.words[self.levels[0].slots[at].head]):
                return True
            self.pop(at, &entry, 1)
            self.dead -= 1
            budget[0] -= 1
        return False

    cdef bint first_in(self, int level, uint64_t* tick, int64_t* budget) noexcept nogil:
        """The first due tick in an upper level, or a tick before it when its slot is long."""
        cdef Level* ring = &self.levels[level]
        cdef uint64_t number = 0
        cdef uint64_t start
        cdef uint32_t at
        while first_from(ring, self.cursor >> ring.shift, &number):
            at = <uint32_t>(number & ring.mask)
            budget[0] -= ring.slots[at].count
            if budget[0] < 0:
                # Early enough to move the slot one part at a time.
                start = number << ring.shift
                tick[0] = start - min(<uint64_t>ring.slots[at].count // MOVES_MIN, start)
                return True
            tick[0] = first_live(&self.arena, self.pool.generations, ring, number)
            if tick[0] != NEVER:
                return True
            self.dead -= ring.slots[at].count
            drop_slot(&self.arena, ring, at)
        return False

    # --- the sweep --------------------------------------------------------------------------------

    cdef uint64_t sweep(self, uint64_t budget) noexcept nogil:
        """Look at `budget` entries or a piece more, and drop the dead; return how many it was.

        From the top level down, as entries move: one that was there when a pass began cannot
        slip past it, which is what the quarantine relies on.
        """
        cdef uint64_t seen = 0
        cdef Level* level
        cdef Compaction work
        cdef uint32_t at
        while seen < budget:
            level = &self.levels[self.sweep_level]
            at = next_bit(level, self.sweep_at)
            if at == <uint32_t>NIL:
                self.sweep_at = self.arena.mark = 0
                self.sweep_level -= 1
                if self.sweep_level < 0:
                    self.sweep_level = LEVELS - 1
                    age_quarantine(&self.pool)
                    return budget
                continue
            if at != self.sweep_at:
                self.sweep_at = at
                self.arena.mark = 0
            work = compact(&self.arena, self.pool.generations, level, at)
            if work.is_done:
                self.sweep_at += 1
            self.dead -= work.seen - work.kept
            seen += work.seen
        self.swept += seen
        return seen

    # --- what Python calls ------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.pool.live

    @property
    def now_tick(self) -> int:
        """The tick of the last advance; before the first, the one the wheel was made with."""
        return self.now

    def arm(self, uint64_t due_tick) -> int:
        """Arm one timer to be due at `due_tick`; return its handle.

        due_tick: absolute; one at or before now_tick is due at the next advance.
        Raises WheelFull at `capacity`. O(1); O(log n) among timers overdue or far away.
        """
        cdef uint64_t handle = self.c_arm(due_tick)
        if handle == 0:
            self.refuse(1)
        return handle

    cdef int refuse(self, size_t count) except -1:
        if self.pool.live + count > self.pool.capacity:
            raise WheelFull(
                f"wheel holds {self.pool.live} timers and cannot take {count} more; "
                f"the limit is {self.pool.capacity} (capacity); disarm some or make it larger"
            )
        raise MemoryError(f"no memory for {count} more timers beside {self.pool.live} in the wheel")

    def disarm(self, uint64_t handle) -> bool:
        """Disarm one timer; False when it has fired or been disarmed before. O(1)."""
        return self.c_disarm(handle)

    def arm_many(self, const uint64_t[::1] due_ticks, uint64_t[::1] handles) -> int:
        """Arm a timer for each of `due_ticks`, in order; put their handles into `handles`.

        Raises WheelFull, with none armed, when there is no room for all. Releases the GIL.
        """
        cdef size_t count = due_ticks.shape[0]
        cdef size_t armed
        if <size_t>handles.shape[0] < count:
            raise ValueError(f"handles has room for {handles.shape[0]}; due_ticks holds {count}")
        if count == 0:
            return 0
        with nogil:
            armed = self.c_arm_many(&due_ticks[0], &handles[0], count)
        if armed == 0:
            self.refuse(count)
        return armed

    def disarm_many(self, const uint64_t[::1] handles) -> int:
        """Disarm each; return how many of them were armed. Releases the GIL."""
        cdef size_t disarmed
        if handles.shape[0] == 0:
            return 0
        with nogil:
            disarmed = self.c_disarm_many(&handles[0], handles.shape[0])
        return disarmed

    def advance(self, uint64_t now_tick, uint64_t[::1] out) -> int:
        """Move to `now_tick`; put handles due by then into `out`; return how many.

        They come in order of due_tick, first armed first out among equals, and are free from
        then on. If `out` is full there may be more: call again with the same now_tick. Time never
        goes back: a smaller now_tick raises ValueError, as does an `out` without room.
        Work is bounded by `out`, by a small share of the timers due in the next windows, and, after
        a jump over a whole window, by the timers of the slot it lands in. Releases the GIL.
        """
        cdef size_t fired
        if now_tick < self.now:
            raise ValueError(f"now_tick is {now_tick}; the wheel is at {self.now} already")
        if out.shape[0] == 0:
            raise ValueError("out has no room; give it room for one handle at least")
        with nogil:
            fired = self.c_advance(now_tick, &out[0], out.shape[0])
        return fired

    def next_tick(self) -> int | None:
        """The tick to sleep until; None when no timer is armed.

        It is exactly the earliest at which advance() yields a timer, whenever that timer is due
        within 2,048 ticks or shares its slot above with fewer than 256 others. Otherwise it may be
        earlier, but not later: advance then, to move that slot down a part at a time, and ask
        again. Never before now_tick; now_tick itself means that timers wait already.
        """
        cdef uint64_t tick = 0
        return tick if self.c_next_tick(&tick) else None

    def due_tick(self, uint64_t handle) -> int:
        """The due tick of an armed timer; LookupError when the handle is stale. O(1)."""
        cdef uint64_t tick = 0
        if not self.c_due_tick(handle, &tick):
            raise LookupError(f"handle {handle:#x} is not armed; it has fired or been disarmed")
        return tick

    def is_armed(self, uint64_t handle) -> bool:
        """Whether the timer has neither fired nor been disarmed. O(1)."""
        return self.c_is_armed(handle)

    def stats(self) -> dict:
        """Counts and bytes, by name."""
        cdef size_t committed = self.arena.region.committed + self.slot_bytes
        committed += self.pool.generation_region.committed + self.pool.low_region.committed
        committed += self.pool.free_most * sizeof(uint32_t)
        committed += self.overdue.region.committed + self.far.region.committed
        return {
            "capacity": self.pool.capacity,
            "live": self.pool.live,
            "dead": self.dead,
            "overdue": self.overdue.count,
            "far": self.far.count,
            "indices": self.pool.top,
            "quarantined": self.pool.quarantined,
            "chunks": self.arena.top - 1 - self.arena.free_count,
            "chunks_free": self.arena.free_count,
            "bytes_committed": committed,
            "moved": self.moved,
            "moved_forced": self.moved_forced,
            "swept": self.swept,
        }

    # --- the slow check ---------------------------------------------------------------------------

    def _check(self) -> None:
        """Walk everything the slow way; AssertionError on the first broken invariant. O(n)."""
        cdef uint64_t totals[3]
        cdef unsigned char[::1] seen = bytearray(max(self.pool.top, 1))
        cdef int level
        memset(totals, 0, sizeof(totals))
        demand(self.cursor <= self.now, "cursor is ahead of now", self.cursor)
        for level in range(LEVELS):
            self.check_level(level, seen, totals)
        totals[0] += self.check_heap(&self.overdue, seen)
        totals[0] += self.check_heap(&self.far, seen)
        demand(totals[0] == self.pool.live, "live timers found do not agree with live", totals[0])
        demand(totals[1] == self.dead, "dead entries found do not agree with dead", totals[1])
        totals[2] += self.arena.free_count + 1
        demand(totals[2] == self.arena.top, "chunks in slots and free ones do not add up", totals[2])
        self.check_free(seen)

    cdef int check_level(self, int number, unsigned char[::1] seen, uint64_t* totals) except -1:
        """Walk one level; add to totals: live entries, dead entries, chunks."""
        cdef Level* level = &self.levels[number]
        cdef Slot* slot
        cdef uint64_t now_slot = self.cursor >> level.shift
        cdef uint64_t slot_number
        cdef uint32_t at, i, head
        for at in range(level.mask + 1):
            slot = &level.slots[at]
            demand(
                (level.bits[at >> 6] >> (at & 63) & 1) == (slot.count > 0),
                f"bit and count of a slot of level {number} do not agree", at,
            )
            demand((slot.tail == 0) == (slot.count == 0), "tail and count do not agree", at)
            if slot.count == 0:
                continue
            demand(level.summary >> (at >> 6) & 1, "summary has no bit for a slot", at)
            slot_number = now_slot + ((at + level.mask + 1 - (now_slot & level.mask)) & level.mask)
            demand(number == 0 or at != now_slot & level.mask, "slot has not been moved down", at)
            head = slot.head
            totals[2] += 1
            for i in range(slot.count):
                if head & (CHUNK_WORDS - 1) == 0:
                    head = following(&self.arena, (head - 1) >> CHUNK_BITS)
                    demand(head > 0, "chain of chunks is shorter than the count of its slot", at)
                    head = first_word(&self.arena, head)
                    totals[2] += 1
                if is_live(self.pool.generations, self.arena.words[head]):
                    totals[0] += 1
                    self.check_entry(level, slot_number, self.arena.words[head], seen)
                else:
                    totals[1] += 1
                head += 1
            demand(head == slot.tail, "chain of chunks does not end at the tail of its slot", at)
        return 0

    cdef int check_entry(
        self, Level* level, uint64_t number, uint64_t entry, unsigned char[::1] seen
    ) except -1:
        cdef uint32_t index = index_of(entry)
        cdef uint64_t mask = (<uint64_t>1 << level.shift) - 1
        cdef uint64_t due_tick = number << level.shift | (entry & mask)
        demand(index < self.pool.top and not seen[index], "index is live twice, or never given", index)
        seen[index] = 1
        demand(self.pool.lows[index] == <uint32_t>due_tick, "due tick is not its slot's", index)
        demand(due_tick & ((1 << LOW_BITS) - 1) == entry & ((1 << LOW_BITS) - 1),
               "entry is in a wrong slot", index)
        return 0

    cdef int check_heap(self, Heap* heap, unsigned char[::1] seen) except -1:
        cdef uint32_t at, index
        for at in range(heap.count):
            index = <uint32_t>heap.items[at].handle
            demand(self.c_is_armed(heap.items[at].handle), "heap holds a stale handle", index)
            demand(not seen[index], "index is live twice", index)
            seen[index] = 1
            demand(self.pool.lows[index] == at, "record does not know its place in a heap", index)
            demand(
                at == 0 or not is_before(&heap.items[at], &heap.items[(at - 1) >> 1]),
                "heap is out of order", at,
            )
        return heap.count

    cdef int check_free(self, unsigned char[::1] seen) except -1:
        cdef uint32_t i, index, chunk
        cdef uint32_t count = 0
        for i in range(self.pool.free_count):
            index = self.pool.stack[i]
            demand(index < self.pool.top and not seen[index], "index is free twice, or live", index)
            seen[index] = 1
        for index in (self.pool.young, self.pool.old):
            while index != <uint32_t>NIL:
                demand(not seen[index], "index in quarantine is free, or live", index)
                seen[index] = 1
                count += 1
                index = self.pool.lows[index]
        demand(count == self.pool.quarantined, "quarantine does not agree with its count", count)
        count += self.pool.free_count + self.pool.live
        demand(count == self.pool.top, "live and free indices do not add up", count)
        count = 0
        chunk = self.arena.free
        while chunk:
            count += 1
            demand(count <= self.arena.free_count, "list of free chunks is too long", chunk)
            chunk = following(&self.arena, chunk)
        demand(count == self.arena.free_count, "list of free chunks is too short", count)
        return 0
