"""The header of the wheel: its heaps, its state, every `cdef` signature.

A C thread that owns a wheel calls the `c_` methods: they need no GIL, cannot fail, and are what
the Python methods of the same name call. One wheel has one owner at a time; nothing here locks.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from engine._wheel_pool cimport Pool, Region, commit
from engine._wheel_slots cimport LEVELS, Arena, Level

cdef struct Item:  # 24 bytes
    uint64_t due_tick
    uint64_t order  # first armed, first out
    uint64_t handle

cdef struct Heap:  # live timers only: a disarm takes its item out at once
    Item* items
    uint32_t count
    Region region


# --- heaps ----------------------------------------------------------------------------------------

cdef inline bint is_before(const Item* one, const Item* other) noexcept nogil:
    if one.due_tick != other.due_tick:
        return one.due_tick < other.due_tick
    return one.order < other.order


cdef inline void put(Heap* heap, uint32_t* lows, uint32_t at, Item item) noexcept nogil:
    heap.items[at] = item
    lows[<uint32_t>item.handle] = at


cdef inline void sift(Heap* heap, uint32_t* lows, uint32_t at, Item item) noexcept nogil:
    """Put `item` at the free place `at`, or above or below it where it belongs."""
    cdef uint32_t child
    while at and is_before(&item, &heap.items[(at - 1) >> 1]):
        put(heap, lows, at, heap.items[(at - 1) >> 1])
        at = (at - 1) >> 1
    while True:
        child = 2 * at + 1
        if child >= heap.count:
            break
        if child + 1 < heap.count and is_before(&heap.items[child + 1], &heap.items[child]):
            child += 1
        if not is_before(&heap.items[child], &item):
            break
        put(heap, lows, at, heap.items[child])
        at = child
    put(heap, lows, at, item)


cdef inline bint push(Heap* heap, uint32_t* lows, Item item) noexcept nogil:
    """False when there is no memory."""
    if heap.count >= heap.region.committed // sizeof(Item) and not commit(&heap.region):
        return False
    heap.count += 1
    sift(heap, lows, heap.count - 1, item)
    return True


cdef inline void remove(Heap* heap, uint32_t* lows, uint32_t at) noexcept nogil:
    heap.count -= 1
    if at != heap.count:
        sift(heap, lows, at, heap.items[heap.count])


cdef inline bint holds(const Heap* heap, uint32_t at, uint64_t handle) noexcept nogil:
    return at < heap.count and heap.items[at].handle == handle


cdef class Wheel:
    cdef Level levels[LEVELS]
    cdef Pool pool
    cdef Arena arena
    cdef Heap overdue  # due before the cursor when they were armed
    cdef Heap far  # due beyond the windows of the top level
    cdef size_t slot_bytes

    cdef uint64_t now  # what the owner said last
    cdef uint64_t cursor  # <= now; every entry due before it has been handed out
    cdef uint64_t quiet  # an advance to a tick before this one has nothing to do
    cdef uint64_t order
    cdef uint64_t dead  # entries in slots whose timer is gone
    cdef int sweep_level
    cdef uint32_t sweep_at  # the slot of that level the sweep has come to
    cdef int64_t sweep_credit
    cdef uint64_t moved, moved_forced, swept, passes

    # What an owner without the GIL calls.
    cdef uint64_t c_arm(self, uint64_t due_tick) noexcept nogil  # 0 when full
    cdef bint c_disarm(self, uint64_t handle) noexcept nogil
    cdef size_t c_arm_many(
        self, const uint64_t* due_ticks, uint64_t* handles, size_t count
    ) noexcept nogil  # all or none
    cdef size_t c_disarm_many(self, const uint64_t* handles, size_t count) noexcept nogil
    cdef size_t c_advance(self, uint64_t now_tick, uint64_t* out, size_t room) noexcept nogil
    cdef bint c_next_tick(self, uint64_t* tick) noexcept nogil  # False when no timer is armed
    cdef bint c_due_tick(self, uint64_t handle, uint64_t* tick) noexcept nogil
    cdef bint c_is_armed(self, uint64_t handle) noexcept nogil

    # Memory.
    cdef int open_levels(self) except -1
    cdef void reset(self) noexcept nogil

    # Slots.
    cdef bint place(self, uint64_t due_tick, uint64_t entry, int level) noexcept nogil
    cdef bint place_aside(self, uint64_t due_tick, uint64_t handle) noexcept nogil
    cdef size_t pop(self, uint32_t at, uint64_t* out, size_t room) noexcept nogil
    cdef bint cascade(self, int level, uint64_t number, uint64_t most) noexcept nogil

    # Advancing.
    cdef size_t pop_overdue(self, uint64_t* out, size_t room) noexcept nogil
    cdef size_t collect(self, uint64_t* out, size_t room) noexcept nogil
    cdef size_t resolve(self, uint64_t* out, size_t count) noexcept nogil
    cdef bint cross(self) noexcept nogil
    cdef uint64_t next_window(self) noexcept nogil
    cdef bint settle(self) noexcept nogil
    cdef bint bring_near(self, uint64_t window, uint64_t most) noexcept nogil
    cdef void look_ahead(self, uint64_t step) noexcept nogil
    cdef uint64_t next_work(self) noexcept nogil
    cdef bint first_due(self, uint64_t* tick, int64_t* budget) noexcept nogil
    cdef bint first_in(self, int level, uint64_t* tick, int64_t* budget) noexcept nogil

    # The sweep.
    cdef uint64_t sweep(self, uint64_t budget) noexcept nogil

    # Refusals, and the slow check.
    cdef int refuse(self, size_t count) except -1
    cdef int check_level(self, int level, unsigned char[::1] seen, uint64_t* totals) except -1
    cdef int check_entry(
        self, Level* level, uint64_t number, uint64_t entry, unsigned char[::1] seen
    ) except -1
    cdef int check_heap(self, Heap* heap, unsigned char[::1] seen) except -1
    cdef int check_free(self, unsigned char[::1] seen) except -1
