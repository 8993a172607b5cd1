"""The usual shapes of a timer queue, written as well as they deserve, to measure the wheel against.

ListWheel: hashed hierarchical wheel of doubly linked nodes, eager cancel, eager cascade, bitmaps.
Heap: array heap of arity 2 or 4 with the place of each timer, so cancel is eager too.
Their memory is touched beforehand, as if callers brought their nodes; they keep no generations and
promise less: a handle is an index, the heap has no order among equals. All have Wheel's bulk calls.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from engine._wheel cimport Wheel

cdef extern from * nogil:
    int lowest_bit "__builtin_ctzll"(unsigned long long bits) noexcept
    int leading_zeros "__builtin_clzll"(unsigned long long bits) noexcept

cdef enum:
    SLOTS_MAX = 256

cdef struct Node:  # 24 bytes
    Node* after
    Node* before
    uint64_t due_tick


@cython.final
cdef class Ids:
    """A stack of free ids."""

    cdef uint32_t* stack
    cdef size_t count

    def __cinit__(self, size_t capacity) -> None:
        cdef size_t i
        self.stack = <uint32_t*>calloc(capacity, sizeof(uint32_t))
        self.count = capacity
        for i in range(capacity):
            self.stack[i] = <uint32_t>(capacity - 1 - i)

    def __dealloc__(self) -> None:
        free(self.stack)


cdef inline void unlink(Node* node) noexcept nogil:
    node.before.after = node.after
    node.after.before = node.before


@cython.final
cdef class ListWheel:
    """Levels of 1 << bits slots; a slot is a ring of nodes with a sentinel."""

    cdef Node* nodes
    cdef Node* slots
    cdef uint64_t* occupied  # four words a level; cleared when a slot is found empty
    cdef Ids ids
    cdef uint64_t now
    cdef int bits, levels
    cdef size_t capacity

    def __cinit__(self, size_t capacity, int bits=8) -> None:
        cdef size_t i
        self.bits, self.levels, self.capacity = bits, 64 // bits, capacity
        self.ids = Ids(capacity)
        self.nodes = <Node*>calloc(capacity, sizeof(Node))
        memset(self.nodes, 1, capacity * sizeof(Node))
        self.slots = <Node*>calloc(self.levels * SLOTS_MAX, sizeof(Node))
        self.occupied = <uint64_t*>calloc(self.levels * 4, sizeof(uint64_t))
        for i in range(<size_t>self.levels * SLOTS_MAX):
            self.slots[i].after = self.slots[i].before = &self.slots[i]

    def __dealloc__(self) -> None:
        free(self.nodes)
        free(self.slots)
        free(self.occupied)

    cdef void insert(self, Node* node) noexcept nogil:
        cdef uint64_t differs = (node.due_tick ^ self.now) | 1
        cdef int level = 63 - <int>leading_zeros(differs)
        level = level >> 3 if self.bits == 8 else level // 6
        cdef uint64_t at = (node.due_tick >> (level * self.bits)) & ((1 << self.bits) - 1)
        cdef Node* slot = &self.slots[level * SLOTS_MAX + at]
        node.after = slot
        node.before = slot.before
        slot.before.after = node
        slot.before = node
        self.occupied[level * 4 + (at >> 6)] |= <uint64_t>1 << (at & 63)

    cdef int next_slot(self, int level, uint64_t start) noexcept nogil:
        cdef uint64_t word = start >> 6
        cdef uint64_t left
        if start >= <uint64_t>1 << self.bits:
            return -1
        left = self.occupied[level * 4 + word] >> (start & 63) << (start & 63)
        while left == 0:
            word += 1
            if word == 4:
                return -1
            left = self.occupied[level * 4 + word]
        return <int>((word << 6) + <uint64_t>lowest_bit(left))

    cdef void empty(self, int level, int at) noexcept nogil:
        self.occupied[level * 4 + (at >> 6)] &= ~(<uint64_t>1 << (at & 63))

    cdef bint jump(self, uint64_t target) noexcept nogil:
        """To the next slot with anything in it, cascading on the way; False at the target."""
        cdef int level, at
        cdef uint64_t start
        cdef Node* slot
        cdef Node* node
        cdef Node* after
        for level in range(self.levels):
            start = (self.now >> (level * self.bits)) & ((1 << self.bits) - 1)
            at = self.next_slot(level, start + (level > 0))
            if at < 0:
                continue
            start = self.now >> (level * self.bits) >> self.bits << self.bits
            start = (start + <uint64_t>at) << (level * self.bits)
            if start > target:
                break
            self.now = max(self.now, start)
            if level == 0:
                return True
            slot = &self.slots[level * SLOTS_MAX + at]
            self.empty(level, at)
            node = slot.after
            slot.before = slot.after = slot
            while node != slot:
                after = node.after
                self.insert(node)
                node = after
            return True
        self.now = target
        return False

    cdef size_t c_advance(self, uint64_t target, uint64_t* out, size_t room) noexcept nogil:
        cdef size_t n = 0
        cdef Node* slot
        cdef Node* node
        while True:
            slot = &self.slots[self.now & ((1 << self.bits) - 1)]
            while slot.after != slot:
                if n == room:
                    return n
                node = slot.after
                unlink(node)
                out[n] = <uint64_t>(node - self.nodes)
                self.ids.stack[self.ids.count] = <uint32_t>out[n]
                self.ids.count += 1
                n += 1
            self.empty(0, <int>(self.now & ((1 << self.bits) - 1)))
            if not self.jump(target):
                return n

    def arm_many(self, const uint64_t[::1] due_ticks, uint64_t[::1] handles) -> int:
        cdef Py_ssize_t i
        cdef uint32_t index
        with nogil:
            for i in range(due_ticks.shape[0]):
                self.ids.count -= 1
                index = self.ids.stack[self.ids.count]
                self.nodes[index].due_tick = due_ticks[i]
                self.insert(&self.nodes[index])
                handles[i] = index
        return due_ticks.shape[0]

    def disarm_many(self, const uint64_t[::1] handles) -> int:
        cdef Py_ssize_t i
        with nogil:
            for i in range(handles.shape[0]):
                unlink(&self.nodes[handles[i]])
                self.ids.stack[self.ids.count] = <uint32_t>handles[i]
                self.ids.count += 1
        return handles.shape[0]

    def advance(self, uint64_t now_tick, uint64_t[::1] out) -> int:
        cdef size_t n
        with nogil:
            n = self.c_advance(now_tick, &out[0], out.shape[0])
        return n

    def bytes_used(self) -> int:
        return self.capacity * sizeof(Node) + self.levels * SLOTS_MAX * sizeof(Node)


cdef struct Key:  # 16 bytes
    uint64_t due_tick
    uint64_t index


@cython.final
cdef class Heap:
    """An array heap of arity 2 or 4: the children of i are at arity * i + 1 and after it."""

    cdef Key* keys
    cdef uint32_t* places
    cdef Ids ids
    cdef size_t count, capacity, arity
    cdef int shift

    def __cinit__(self, size_t capacity, size_t arity=2) -> None:
        self.capacity, self.arity = capacity, arity
        self.shift = 2 if arity == 4 else 1
        self.ids = Ids(capacity)
        self.keys = <Key*>calloc(capacity + 1, sizeof(Key))
        self.places = <uint32_t*>calloc(capacity, sizeof(uint32_t))
        memset(self.keys, 1, (capacity + 1) * sizeof(Key))
        memset(self.places, 1, capacity * sizeof(uint32_t))

    def __dealloc__(self) -> None:
        free(self.keys)
        free(self.places)

    cdef void put(self, size_t at, Key key) noexcept nogil:
        self.keys[at] = key
        self.places[key.index] = <uint32_t>at

    cdef void up(self, size_t at, Key key) noexcept nogil:
        cdef size_t parent
        while at:
            parent = (at - 1) >> self.shift
            if self.keys[parent].due_tick <= key.due_tick:
                break
            self.put(at, self.keys[parent])
            at = parent
        self.put(at, key)

    cdef void down(self, size_t at, Key key) noexcept nogil:
        cdef size_t child, best, end
        while True:
            best = child = self.arity * at + 1
            end = min(child + self.arity, self.count)
            if child >= self.count:
                break
            for child in range(child + 1, end):
                if self.keys[child].due_tick < self.keys[best].due_tick:
                    best = child
            if key.due_tick <= self.keys[best].due_tick:
                break
            self.put(at, self.keys[best])
            at = best
        self.put(at, key)

    cdef void remove(self, size_t at) noexcept nogil:
        cdef Key last
        self.ids.stack[self.ids.count] = <uint32_t>self.keys[at].index
        self.ids.count += 1
        self.count -= 1
        last = self.keys[self.count]
        if at == self.count:
            return
        if at and last.due_tick < self.keys[(at - 1) >> self.shift].due_tick:
            self.up(at, last)
        else:
            self.down(at, last)

    cdef size_t c_advance(self, uint64_t target, uint64_t* out, size_t room) noexcept nogil:
        cdef size_t n = 0
        while n < room and self.count and self.keys[0].due_tick <= target:
            out[n] = self.keys[0].index
            self.remove(0)
            n += 1
        return n

    def arm_many(self, const uint64_t[::1] due_ticks, uint64_t[::1] handles) -> int:
        cdef Py_ssize_t i
        cdef Key key
        with nogil:
            for i in range(due_ticks.shape[0]):
                self.ids.count -= 1
                key.index = self.ids.stack[self.ids.count]
                key.due_tick = due_ticks[i]
                self.count += 1
                self.up(self.count - 1, key)
                handles[i] = key.index
        return due_ticks.shape[0]

    def disarm_many(self, const uint64_t[::1] handles) -> int:
        cdef Py_ssize_t i
        with nogil:
            for i in range(handles.shape[0]):
                self.remove(self.places[handles[i]])
        return handles.shape[0]

    def advance(self, uint64_t now_tick, uint64_t[::1] out) -> int:
        cdef size_t n
        with nogil:
            n = self.c_advance(now_tick, &out[0], out.shape[0])
        return n

    def bytes_used(self) -> int:
        return self.capacity * (sizeof(Key) + sizeof(uint32_t))


cdef inline uint64_t nanoseconds() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


def run_steps(queue, uint64_t first, uint64_t count, uint64_t[::1] out) -> int:
    """Advance `count` steps of one tick without looking at the clock; return how many fired."""
    cdef uint64_t now
    cdef uint64_t fired = 0
    cdef Wheel wheel
    cdef ListWheel lists
    cdef Heap heap
    if isinstance(queue, Wheel):
        wheel = queue
        with nogil:
            for now in range(first, first + count):
                fired += wheel.c_advance(now, &out[0], out.shape[0])
    elif isinstance(queue, ListWheel):
        lists = queue
        with nogil:
            for now in range(first, first + count):
                fired += lists.c_advance(now, &out[0], out.shape[0])
    else:
        heap = queue
        with nogil:
            for now in range(first, first + count):
                fired += heap.c_advance(now, &out[0], out.shape[0])
    return fired


def time_steps(
    queue, uint64_t first, uint64_t count, uint64_t[::1] out, uint64_t[:, ::1] slow, uint64_t floor
) -> int:
    """Advance by single ticks; note (tick, nanoseconds) of each step above `floor` in `slow`."""
    cdef uint64_t now, start, end
    cdef Py_ssize_t n = 0
    cdef int kind = 0 if isinstance(queue, Wheel) else 1 if isinstance(queue, ListWheel) else 2
    cdef Wheel wheel = queue if kind == 0 else None
    cdef ListWheel lists = queue if kind == 1 else None
    cdef Heap heap = queue if kind == 2 else None
    with nogil:
        for now in range(first, first + count):
            start = nanoseconds()
            if kind == 0:
                wheel.c_advance(now, &out[0], out.shape[0])
            elif kind == 1:
                lists.c_advance(now, &out[0], out.shape[0])
            else:
                heap.c_advance(now, &out[0], out.shape[0])
            end = nanoseconds() - start
            if end > floor and n < slow.shape[0]:
                slow[n, 0] = now
                slow[n, 1] = end
                n += 1
    return n
