"""The slots of the wheel: bitmaps of which are occupied, and chains of chunks that hold entries.

Structs and small functions only, no module of its own: whoever cimports them compiles them in.
They know nothing of time, and nothing here can fail but for memory.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memmove, memset

from engine._wheel_pool cimport Region, commit, index_of, is_live, lowest_bit, prefetch, NIL

cdef enum:
    SLOT_BITS = 11  # a window of a level is 2,048 slots
    TOP_BITS = 9  # but 512 on the top level: two windows of it span 2^32 ticks
    LEVELS = 3
    RING_SLOTS = 4096  # 2 << SLOT_BITS: two windows
    RING_WORDS = 64
    TOP_SHIFT = 31  # 2 * SLOT_BITS + TOP_BITS: a window of the top level is 2^31 ticks
    CHUNK_BITS = 5
    CHUNK_WORDS = 32  # a chunk: a header and 31 entries
    PIECE = 4096  # entries of one slot that are compacted at a time

cdef struct Slot:  # 12 bytes
    uint32_t head  # word of the first entry; 0 when empty
    uint32_t tail  # word after the last entry; a multiple of CHUNK_WORDS: empty, or chunk full
    uint32_t count  # entries, live and dead

cdef struct Level:
    Slot* slots  # mask + 1 of them; slot number n lies at n & mask
    uint32_t mask
    uint32_t shift  # a slot is 1 << shift ticks wide
    uint64_t bits[RING_WORDS]  # which slots are not empty
    uint64_t summary  # which words of bits are not zero

# A chunk is CHUNK_WORDS words. Its header: the place of its first entry << 32 | the chunk that
# follows, 0 at the end. All chunks of a chain but the last are full up to their end; only the front
# of a chunk may have a gap.

cdef struct Arena:
    uint64_t* words  # chunk 0 is never used
    uint32_t top  # chunks from here on have never been used
    uint32_t limit  # chunks below it are committed
    uint32_t free  # chain of free chunks
    uint32_t free_count
    uint32_t mark  # a chunk somebody stands at: 0 as soon as it is freed
    Region region


# --- bitmaps --------------------------------------------------------------------------------------

cdef inline void set_bit(Level* level, uint32_t at) noexcept nogil:
    level.bits[at >> 6] |= <uint64_t>1 << (at & 63)
    level.summary |= <uint64_t>1 << (at >> 6)


cdef inline void clear_bit(Level* level, uint32_t at) noexcept nogil:
    level.bits[at >> 6] &= ~(<uint64_t>1 << (at & 63))
    if level.bits[at >> 6] == 0:
        level.summary &= ~(<uint64_t>1 << (at >> 6))


cdef inline uint32_t next_bit(Level* level, uint32_t start) noexcept nogil:
    """The first occupied slot at or after `start` in the ring as it lies; NIL if there is none."""
    cdef uint32_t word = start >> 6
    cdef uint64_t bits
    if word >= RING_WORDS:
        return <uint32_t>NIL
    bits = level.bits[word] >> (start & 63)
    if bits:
        return start + <uint32_t>lowest_bit(bits)
    if word == RING_WORDS - 1 or level.summary >> (word + 1) == 0:
        return <uint32_t>NIL
    word += 1 + <uint32_t>lowest_bit(level.summary >> (word + 1))
    return (word << 6) + <uint32_t>lowest_bit(level.bits[word])


cdef inline bint first_from(Level* level, uint64_t number, uint64_t* found) noexcept nogil:
    """The first occupied slot in order of time, from slot `number` on."""
    cdef uint32_t start = <uint32_t>(number & level.mask)
    cdef uint32_t at
    if level.summary == 0:
        return False
    at = next_bit(level, start)
    if at == <uint32_t>NIL:
        at = next_bit(level, 0)
    found[0] = number + ((at + level.mask + 1 - start) & level.mask)
    return True


# --- chunks ---------------------------------------------------------------------------------------

cdef inline uint32_t following(const Arena* arena, uint32_t chunk) noexcept nogil:
    return <uint32_t>arena.words[<size_t>chunk << CHUNK_BITS]


cdef inline uint32_t first_word(const Arena* arena, uint32_t chunk) noexcept nogil:
    return (chunk << CHUNK_BITS) + <uint32_t>(arena.words[<size_t>chunk << CHUNK_BITS] >> 32)


cdef inline void set_header(
    Arena* arena, uint32_t chunk, uint32_t first, uint32_t next_chunk
) noexcept nogil:
    cdef uint64_t place = first & (CHUNK_WORDS - 1)
    arena.words[<size_t>chunk << CHUNK_BITS] = place << 32 | next_chunk


cdef inline void link(Arena* arena, uint32_t chunk, uint32_t next_chunk) noexcept nogil:
    set_header(arena, chunk, first_word(arena, chunk), next_chunk)


cdef inline uint32_t take_chunk(Arena* arena) noexcept nogil:
    """A chunk with an empty header; 0 when there is no memory."""
    cdef uint32_t chunk = arena.free
    if chunk:
        arena.free = following(arena, chunk)
        arena.free_count -= 1
    else:
        if arena.top >= arena.limit:
            if not commit(&arena.region):
                return 0
            arena.limit = <uint32_t>(arena.region.committed // (CHUNK_WORDS * sizeof(uint64_t)))
        chunk = arena.top
        arena.top += 1
    set_header(arena, chunk, 1, 0)
    return chunk


cdef inline void free_chunk(Arena* arena, uint32_t chunk) noexcept nogil:
    if chunk == arena.mark:
        arena.mark = 0
    arena.words[<size_t>chunk << CHUNK_BITS] = arena.free
    arena.free = chunk
    arena.free_count += 1


cdef inline void free_chain(Arena* arena, uint32_t chunk, uint32_t until) noexcept nogil:
    cdef uint32_t next_chunk
    while chunk != until:
        next_chunk = following(arena, chunk)
        free_chunk(arena, chunk)
        chunk = next_chunk


# --- slots ----------------------------------------------------------------------------------------

cdef inline uint32_t extend(Arena* arena, Level* level, uint32_t at) noexcept nogil:
    """Add a chunk to a slot; return its first word, 0 when there is no memory."""
    cdef Slot* slot = &level.slots[at]
    cdef uint32_t chunk = take_chunk(arena)
    if chunk == 0:
        return 0
    if slot.tail == 0:
        slot.head = (chunk << CHUNK_BITS) + 1
        set_bit(level, at)
    else:
        link(arena, (slot.tail - 1) >> CHUNK_BITS, chunk)
    return (chunk << CHUNK_BITS) + 1


cdef inline uint32_t follow(Arena* arena, uint32_t head) noexcept nogil:
    """From the end of a chunk to the first entry of the next; the chunk left is freed."""
    cdef uint32_t chunk = (head - 1) >> CHUNK_BITS
    cdef uint32_t next_chunk = following(arena, chunk)
    free_chunk(arena, chunk)
    return first_word(arena, next_chunk)


cdef inline void consumed(
    Arena* arena, Level* level, uint32_t at, uint32_t head, uint32_t n
) noexcept nogil:
    """Note that the first `n` entries of a slot have been read, up to the word `head`."""
    cdef Slot* slot = &level.slots[at]
    slot.count -= n
    if slot.count:
        slot.head = follow(arena, head) if head & (CHUNK_WORDS - 1) == 0 else head
        return
    free_chunk(arena, (head - 1) >> CHUNK_BITS)
    slot.head = slot.tail = 0
    clear_bit(level, at)


cdef inline void drop_slot(Arena* arena, Level* level, uint32_t at) noexcept nogil:
    free_chain(arena, level.slots[at].head >> CHUNK_BITS, 0)
    memset(&level.slots[at], 0, sizeof(Slot))
    clear_bit(level, at)


cdef inline uint64_t first_live(
    Arena* arena, const uint32_t* generations, Level* level, uint64_t number
) noexcept nogil:
    """The smallest due tick of a live entry in a slot; all bits set when every one is dead."""
    cdef uint64_t best = ~<uint64_t>0
    cdef uint64_t start = number << level.shift
    cdef uint64_t mask = (<uint64_t>1 << level.shift) - 1
    cdef Slot* slot = &level.slots[number & level.mask]
    cdef uint32_t head = slot.head
    cdef uint32_t i
    for i in range(slot.count):
        if head & (CHUNK_WORDS - 1) == 0:
            head = first_word(arena, following(arena, (head - 1) >> CHUNK_BITS))
        if is_live(generations, arena.words[head]):
            best = min(best, start | (arena.words[head] & mask))
        head += 1
    return best


# --- compaction -----------------------------------------------------------------------------------

cdef struct Compaction:
    uint32_t start  # word of the first entry that was looked at
    uint32_t end  # word after the last one
    uint32_t write  # word after the last one kept
    uint32_t seen  # entries looked at
    uint32_t kept
    bint is_done  # the slot has been read to its end


cdef inline void close_gaps(
    Arena* arena, const uint32_t* generations, Slot* slot, Compaction* work
) noexcept nogil:
    """Write the live ones of PIECE entries, or of the rest of the slot, one behind the other."""
    cdef uint32_t read = work.start
    cdef uint32_t write = work.start
    cdef uint32_t end, i, chunk
    while True:
        end = (read | (CHUNK_WORDS - 1)) + 1
        if (slot.tail - 1) >> CHUNK_BITS == read >> CHUNK_BITS:
            end = slot.tail
        for i in range(read, end):
            prefetch(&generations[index_of(arena.words[i])], 0)
        for i in range(read, end):
            if not is_live(generations, arena.words[i]):
                continue
            if write & (CHUNK_WORDS - 1) == 0:
                chunk = following(arena, (write - 1) >> CHUNK_BITS)
                set_header(arena, chunk, 1, following(arena, chunk))
                write = (chunk << CHUNK_BITS) + 1
            arena.words[write] = arena.words[i]
            write += 1
            work.kept += 1
        work.seen += end - read
        if end == slot.tail or work.seen >= PIECE:
            break
        read = first_word(arena, following(arena, (end - 1) >> CHUNK_BITS))
    work.end = end
    work.write = write


cdef inline void cut_tail(Arena* arena, Level* level, uint32_t at, Compaction* work) noexcept nogil:
    """The slot has been read to its end: it ends now where the last entry was written."""
    cdef Slot* slot = &level.slots[at]
    cdef uint32_t last = (work.write - 1) >> CHUNK_BITS
    if slot.count == 0:
        drop_slot(arena, level, at)
        return
    if work.kept == 0:
        # What is left ends with the chunk before, which is full.
        last = arena.mark
        work.write = (last + 1) << CHUNK_BITS
    free_chain(arena, following(arena, last), 0)
    link(arena, last, 0)
    slot.tail = work.write


cdef inline void cut_middle(Arena* arena, Slot* slot, Compaction* work) noexcept nogil:
    """The rest of the slot is still to be read: shift the gap to the front of the last chunk."""
    cdef uint32_t rest = following(arena, (work.end - 1) >> CHUNK_BITS)
    cdef uint32_t last = (work.write - 1) >> CHUNK_BITS
    cdef uint32_t first = (last << CHUNK_BITS) + 1
    cdef uint32_t count
    if work.kept == 0:
        free_chain(arena, work.start >> CHUNK_BITS, rest)
        if arena.mark:
            link(arena, arena.mark, rest)
        else:
            slot.head = first_word(arena, rest)
        return
    if work.start >> CHUNK_BITS == last:
        first = work.start
    count = work.write - first
    work.write = ((last + 1) << CHUNK_BITS) - count
    memmove(&arena.words[work.write], &arena.words[first], count * sizeof(uint64_t))
    if slot.head >> CHUNK_BITS == last:
        slot.head = work.write
    free_chain(arena, following(arena, last), rest)
    set_header(arena, last, work.write, rest)
    arena.mark = last


cdef inline Compaction compact(
    Arena* arena, const uint32_t* generations, Level* level, uint32_t at
) noexcept nogil:
    """Drop the dead among the next PIECE entries of a slot; arena.mark says where to go on."""
    cdef Slot* slot = &level.slots[at]
    cdef Compaction work
    memset(&work, 0, sizeof(Compaction))
    work.start = slot.head
    if arena.mark:
        work.start = first_word(arena, following(arena, arena.mark))
    close_gaps(arena, generations, slot, &work)
    slot.count -= work.seen - work.kept
    work.is_done = work.end == slot.tail
    if work.is_done:
        cut_tail(arena, level, at, &work)
        arena.mark = 0
    else:
        cut_middle(arena, slot, &work)
    return work
