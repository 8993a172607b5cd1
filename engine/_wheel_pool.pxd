"""The memory of the wheel: committed step by step, and the indices of timers with their generations.

Structs and small functions only, no module of its own: whoever cimports them compiles them in.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from posix.mman cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    madvise,
    mmap,
    mprotect,
    munmap,
)

cdef extern from * nogil:
    int lowest_bit "__builtin_ctzll"(unsigned long long bits) noexcept
    void prefetch "__builtin_prefetch"(const void* address, int write) noexcept

cdef enum:
    LOW_BITS = 22  # low bits of the due tick in an entry
    INDEX_BITS = 26
    TAG_BITS = 16
    LIVE_MASK = 0x1FFFF  # of a generation: the tag, and the bit that says armed
    CAPACITY_MAX = 67108864  # 1 << INDEX_BITS
    AHEAD = 64  # how far ahead of a walk over indices their generations are fetched
    NIL = 0xFFFFFFFF
    PAGE = 4096
    STEP_MIN = 16384  # bytes committed at a time: a sixteenth of what is there, between these two
    STEP_MAX = 524288
    HUGE = 2097152  # from here on by huge pages, where the system has them
    MADV_HUGEPAGE = 14
    MADV_POPULATE_WRITE = 23  # Linux 5.14; without it the pages come one fault at a time

# An entry is one word: tag << 48 | index << 22 | low bits of the due tick. The slot knows the rest
# of the due tick. The tag, low bits of the count of arms, tells a live entry from a dead one whose
# index has been given to another timer since.

cdef struct Region:  # address space, reserved at once and committed step by step
    char* base
    size_t reserved  # bytes
    size_t committed  # bytes
    bint is_eager  # touch at once what is committed, rather than one page fault at a time

# What is known of an index lies in two arrays: fire, disarm, sweep look at its generation only.

cdef struct Pool:
    uint32_t* generations  # odd while armed: + 1 on arm, + 1 on disarm or fire
    uint32_t* lows  # in a slot: low half of the due tick; in a heap: place there
    uint32_t* stack  # free indices
    uint32_t capacity
    uint32_t live  # indices armed now
    uint32_t top  # indices from here on have not been used since the last reset
    uint32_t limit  # indices below it are committed
    uint32_t free_count
    uint32_t free_most  # the stack has been as high
    uint32_t young, old  # chains, through lows, of indices in quarantine
    uint32_t quarantined
    Region generation_region, low_region, stack_region

# --- regions --------------------------------------------------------------------------------------

cdef inline int reserve(Region* region, size_t needed, bint is_eager) except -1:
    cdef size_t reserved = (needed + PAGE - 1) // PAGE * PAGE
    # Not accessible until committed: mlockall and strict overcommit count what is used, no more.
    cdef void* base = mmap(
        NULL, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
    )
    if base == MAP_FAILED:
        raise MemoryError(f"cannot reserve {reserved} bytes of address space for the wheel")
    region.base = <char*>base
    region.reserved = reserved
    region.is_eager = is_eager
    if is_eager and reserved > 2 * HUGE:
        madvise(region.base + HUGE, reserved - HUGE, MADV_HUGEPAGE)
    return 0


cdef inline bint commit(Region* region) noexcept nogil:
    """Make one more step of the region usable; False at its end or when there is no memory."""
    cdef size_t step = region.committed // 16 // PAGE * PAGE
    cdef char* start = region.base + region.committed
    step = min(max(step, <size_t>STEP_MIN), <size_t>STEP_MAX)
    if region.committed >= HUGE:
        step = HUGE - (<size_t>start & (HUGE - 1))
    step = min(step, region.reserved - region.committed)
    if step == 0 or mprotect(start, step, PROT_READ | PROT_WRITE) != 0:
        return False
    if region.is_eager:
        madvise(start, step, MADV_POPULATE_WRITE)
    region.committed += step
    return True


cdef inline void give_back(Region* region) noexcept nogil:
    if region.base != NULL:
        munmap(region.base, region.reserved)
        region.base = NULL


# --- entries --------------------------------------------------------------------------------------

cdef inline uint32_t index_of(uint64_t entry) noexcept nogil:
    return <uint32_t>(entry >> LOW_BITS) & (CAPACITY_MAX - 1)


cdef inline uint64_t entry_of(uint64_t handle, uint64_t due_tick) noexcept nogil:
    cdef uint64_t tag = (handle >> 33) & ((1 << TAG_BITS) - 1)
    cdef uint64_t index = handle & (CAPACITY_MAX - 1)
    cdef uint64_t low = due_tick & ((1 << LOW_BITS) - 1)
    return tag << (LOW_BITS + INDEX_BITS) | index << LOW_BITS | low


cdef inline bint is_live(const uint32_t* generations, uint64_t entry) noexcept nogil:
    cdef uint32_t generation = generations[index_of(entry)]
    return (generation & LIVE_MASK) == (entry >> (LOW_BITS + INDEX_BITS) << 1 | 1)


# --- indices --------------------------------------------------------------------------------------

cdef inline int open_pool(Pool* pool, uint32_t capacity) except -1:
    cdef size_t needed = capacity * sizeof(uint32_t)
    reserve(&pool.generation_region, needed, True)
    reserve(&pool.low_region, needed, True)
    reserve(&pool.stack_region, needed, False)
    pool.generations = <uint32_t*>pool.generation_region.base
    pool.lows = <uint32_t*>pool.low_region.base
    pool.stack = <uint32_t*>pool.stack_region.base
    pool.capacity = capacity
    pool.young = pool.old = <uint32_t>NIL
    return 0


cdef inline void close_pool(Pool* pool) noexcept nogil:
    give_back(&pool.generation_region)
    give_back(&pool.low_region)
    give_back(&pool.stack_region)


cdef inline void empty_pool(Pool* pool) noexcept nogil:
    """Hand out indices from 0 again. Generations stay, so that old handles stay stale."""
    pool.top = pool.live = pool.quarantined = pool.free_count = 0
    pool.young = pool.old = <uint32_t>NIL


cdef inline bint reach(Region* region, size_t index) noexcept nogil:
    return region.committed > index * sizeof(uint32_t) or commit(region)


cdef inline bint widen_pool(Pool* pool) noexcept nogil:
    """Commit more indices; the three regions grow in equal steps."""
    cdef size_t limit
    if pool.limit == pool.capacity:
        return False
    if not (
        reach(&pool.generation_region, pool.limit)
        and reach(&pool.low_region, pool.limit)
        and reach(&pool.stack_region, pool.limit)
    ):
        return False
    limit = min(pool.generation_region.committed, pool.low_region.committed)
    limit = min(limit, pool.stack_region.committed) // sizeof(uint32_t)
    pool.limit = <uint32_t>min(limit, <size_t>pool.capacity)
    return True


cdef inline uint32_t take_index(Pool* pool) noexcept nogil:
    """A free index; NIL when there is none outside the quarantine, or no memory."""
    if pool.free_count:
        pool.free_count -= 1
        if pool.free_count >= 8:
            prefetch(&pool.lows[pool.stack[pool.free_count - 8]], 1)
            prefetch(&pool.generations[pool.stack[pool.free_count - 8]], 1)
        return pool.stack[pool.free_count]
    if pool.top == pool.limit and not widen_pool(pool):
        return <uint32_t>NIL
    pool.top += 1
    return pool.top - 1


cdef inline void put_index(Pool* pool, uint32_t index) noexcept nogil:
    pool.stack[pool.free_count] = index
    pool.free_count += 1
    pool.free_most = max(pool.free_most, pool.free_count)


@cython.overflowcheck(False)  # a generation may wrap
cdef inline void release(Pool* pool, uint32_t index) noexcept nogil:
    pool.generations[index] += 1
    pool.live -= 1
    if pool.generations[index] & LIVE_MASK:
        put_index(pool, index)
    else:
        pool.lows[index] = pool.young
        pool.young = index
        pool.quarantined += 1


@cython.overflowcheck(False)
cdef inline size_t release_many(Pool* pool, const uint64_t* handles, size_t count) noexcept nogil:
    """Release whichever of `handles` are armed; return how many. As tight as it can be."""
    cdef uint32_t* generations = pool.generations
    cdef uint32_t free = pool.free_count
    cdef uint32_t top = pool.top
    cdef uint32_t held = 0
    cdef uint32_t index, generation
    cdef size_t i
    for i in range(count):
        if i + AHEAD < count:
            prefetch(&generations[<uint32_t>handles[i + AHEAD]], 1)
        index = <uint32_t>handles[i]
        if index >= top:
            continue
        generation = generations[index]
        if generation != handles[i] >> 32 or generation & 1 == 0:
            continue
        generation += 1
        generations[index] = generation
        if generation & LIVE_MASK:
            pool.stack[free] = index
            free += 1
        else:
            pool.lows[index] = pool.young
            pool.young = index
            held += 1
    i = free - pool.free_count + held
    pool.free_count = free
    pool.free_most = max(pool.free_most, free)
    pool.quarantined += held
    pool.live -= <uint32_t>i
    return i


cdef inline void age_quarantine(Pool* pool) noexcept nogil:
    """A sweep has been through every slot: whoever was here when it began may go."""
    cdef uint32_t index
    while pool.old != <uint32_t>NIL:
        index = pool.old
        pool.old = pool.lows[index]
        put_index(pool, index)
        pool.quarantined -= 1
    pool.old = pool.young
    pool.young = <uint32_t>NIL
