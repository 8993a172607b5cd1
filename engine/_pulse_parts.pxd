"""The parts of the pulse: slots, two rings of slot numbers, a heap, the sending of one event.

A ring has one writer and one reader, each on a thread of its own. It has as many places as there
are slots, so it is never full: what is scarce are slots, and the turn, which gives them out, sees
how many are left.
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from engine._libzmq cimport ZMQ_DONTWAIT, ZMQ_SNDMORE, Message, libzmq
from engine._record cimport big_endian

cdef extern from * nogil:
    """
    #define load_acquire(at) __atomic_load_n((at), __ATOMIC_ACQUIRE)
    #define load_fenced(at) __atomic_load_n((at), __ATOMIC_SEQ_CST)
    #define store_release(at, value) __atomic_store_n((at), (value), __ATOMIC_RELEASE)
    #define store_fenced(at, value) __atomic_store_n((at), (value), __ATOMIC_SEQ_CST)
    #define fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #if defined(__x86_64__) || defined(__i386__)
    #define relax() __builtin_ia32_pause()
    #else
    #define relax() ((void)0)
    #endif
    """
    uint32_t load_acquire(const uint32_t *at)
    void store_release(uint32_t *at, uint32_t value)
    int64_t load_wake "load_fenced"(const int64_t *at)
    void store_wake "store_fenced"(int64_t *at, int64_t value)
    void fence()
    void relax()

cdef enum:
    SLOTS = 131_072  # a power of two
    STAMP_BYTES = 32

cdef enum Errand:  # what a slot is on its way for
    EVENT          # leaves at once
    BEAT           # the same, but has no numbers
    TALLY          # `seq` events that nobody wants: they are only counted
    EXPIRY         # leaves at its instant, and comes back with it
    DROPPED        # an expiry that did not leave
    MOVE           # a command: wall-clock expiries are due `due_ns` later (BOOTTIME)
    CLEAR          # a command: drop the expiries

cdef struct Slot:         # 176 bytes
    Message topic
    Message body
    int64_t due_ns        # BOOTTIME
    int64_t due_utc_ns    # what an expiry's stamp counts from
    int64_t fired_ns      # UTC, written as it leaves
    int64_t late_ns       # likewise
    uint64_t seq
    uint32_t counter      # of its tenant and type; the tenant's own is the first of its row
    uint8_t errand
    uint8_t has_body      # topic and body are there: somebody wanted it
    uint8_t wall          # due by the wall clock
    uint8_t misfire

cdef struct Ring:
    uint32_t tail         # the writer's
    uint32_t[15] apart    # writer and reader on cache lines of their own
    uint32_t head         # the reader's
    uint32_t[15] further
    uint32_t[SLOTS] places


@cython.overflowcheck(False)  # the ends of a ring wrap around on purpose
cdef inline void ring_put(Ring *ring, uint32_t slot) noexcept nogil:
    ring.places[ring.tail & (SLOTS - 1)] = slot
    store_release(&ring.tail, ring.tail + 1)


@cython.overflowcheck(False)  # the ends of a ring wrap around on purpose
cdef inline bint ring_take(Ring *ring, uint32_t *slot) noexcept nogil:
    if load_acquire(&ring.tail) == ring.head:
        return False
    slot[0] = ring.places[ring.head & (SLOTS - 1)]
    store_release(&ring.head, ring.head + 1)
    return True


@cython.overflowcheck(False)  # the ends of a ring wrap around on purpose
cdef inline uint32_t ring_count(Ring *ring) noexcept nogil:
    return load_acquire(&ring.tail) - load_acquire(&ring.head)


cdef struct Waiting:      # 24 bytes: an expiry in the heap
    int64_t due_ns
    uint64_t order        # first come, first out
    uint32_t slot

cdef struct Heap:
    uint32_t count
    Waiting[SLOTS] items


cdef inline bint is_before(const Waiting *one, const Waiting *other) noexcept nogil:
    if one.due_ns != other.due_ns:
        return one.due_ns < other.due_ns
    return one.order < other.order


cdef inline void sink(Heap *heap, uint32_t at, Waiting item) noexcept nogil:
    """Put `item` at the free place `at`, or below it where it belongs."""
    cdef uint32_t child
    while True:
        child = 2 * at + 1
        if child >= heap.count:
            break
        if child + 1 < heap.count and is_before(&heap.items[child + 1], &heap.items[child]):
            child += 1
        if not is_before(&heap.items[child], &item):
            break
        heap.items[at] = heap.items[child]
        at = child
    heap.items[at] = item


cdef inline void heap_put(Heap *heap, Waiting item) noexcept nogil:
    cdef uint32_t at = heap.count
    heap.count += 1
    while at and is_before(&item, &heap.items[(at - 1) >> 1]):
        heap.items[at] = heap.items[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap.items[at] = item


cdef inline uint32_t heap_take(Heap *heap) noexcept nogil:
    """The slot that is due first; the heap is not empty."""
    cdef uint32_t slot = heap.items[0].slot
    heap.count -= 1
    if heap.count:
        sink(heap, 0, heap.items[heap.count])
    return slot


cdef inline void heap_order(Heap *heap) noexcept nogil:
    """Make it a heap again, after dues have changed."""
    cdef uint32_t at = heap.count >> 1
    while at:
        at -= 1
        sink(heap, at, heap.items[at])


cdef inline int send_parts(
    Slot *slot, void *socket, int64_t fired_ns, uint64_t total, uint64_t number
) noexcept nogil:
    """One try: 0, or the error number, and then nothing was sent."""
    cdef Message stamp
    cdef uint64_t *words
    if libzmq.msg_send(&slot.topic, socket, ZMQ_DONTWAIT | ZMQ_SNDMORE) < 0:
        return libzmq.last_error()
    libzmq.msg_init_size(&stamp, STAMP_BYTES)  # inside the message itself: no memory is asked
    words = <uint64_t *>libzmq.msg_data(&stamp)
    words[0] = big_endian(slot.seq if slot.errand != BEAT else 0)
    words[1] = big_endian(<uint64_t>fired_ns)
    words[2] = big_endian(total)
    words[3] = big_endian(number)
    if libzmq.msg_send(&stamp, socket, ZMQ_DONTWAIT | ZMQ_SNDMORE) < 0:
        return libzmq.last_error()
    if libzmq.msg_send(&slot.body, socket, ZMQ_DONTWAIT) < 0:
        return libzmq.last_error()
    return 0
