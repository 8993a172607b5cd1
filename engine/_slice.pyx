"""Reading a slice from the log: whole commits, copied into one arena, sorted by timer.

It is copied, not pointed at, so that the log's read transaction ends in milliseconds: a reader that
stays open while the log is trimmed makes the file grow. The arena is a map of its own, whose pages
go back to the system after each slice; malloc would keep them.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, qsort, realloc
from libc.string cimport memcpy

from engine._commit cimport LogDbs, check_event, check_seal, key_of
from engine._lmdb cimport FIRST, NEXT, NOTFOUND, SET_KEY, Val, error_of, lm
from engine._record cimport (
    FLAG_IMAGE,
    RECORD_VERSION,
    STATE_PAUSED,
    EventHead,
    Image,
    NoteHead,
    Receipt,
    SealHead,
    big_endian,
)
from engine._threads cimport (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
    madvise,
    mmap,
    mremap,
    munmap,
)

from engine.errors import StoreCorrupt, StoreFailed, StoreTooNew

cdef enum:
    ARENA_STEP = 0x100_0000     # bytes by which it grows: 16 MiB
    ARENA_FULL = 0x400_0000     # no further commit is begun once this much was copied
    FINISHED_MAX = 65_536       # events that one call looks at

# By Wrong: what is raised, and what it says of the event, commit or page {0}, or of the timer {1}.
WRONGS = (
    (None, ""),
    (StoreFailed, "the tables cannot read the log"),
    (StoreCorrupt, "the seal of commit {0} is damaged; restore from a backup"),
    (StoreCorrupt, "the seal of commit {0} is missing from the log; restore from a backup"),
    (StoreCorrupt, "event {0} does not agree with its checksum; restore from a backup"),
    (StoreCorrupt, "event {0} is missing from the log; restore from a backup"),
    (StoreTooNew, "event {0} has a newer record version; upgrade minoots"),
    (StoreCorrupt, "an idempotency note does not agree with its checksum"),
    (StoreFailed, "the tables cannot be written"),
    (StoreCorrupt, "the row of timer {1} does not agree with its checksum"),
    (StoreCorrupt, "the row of timer {1} is missing"),
    (StoreCorrupt, "the due row of timer {1} is missing; rebuild the due index"),
    (StoreCorrupt, "the name row of timer {1} is missing; rebuild the due index"),
    (StoreCorrupt, "the row of the finished timer {1} does not agree with its checksum"),
    (StoreFailed, "there is no memory for a slice of the tables"),
    (StoreCorrupt, "page {0} of the log does not go with the others; restore from a backup"),
    (StoreCorrupt, "page {0} of the tables does not go with the others; run `minoots reindex "
                   "--tables`, or restore from a backup"),
)


cdef object exception_of(const Fault* fault, int fd):
    """What to raise for it. fd: of the tables' file."""
    kind, text = WRONGS[<int>fault.wrong]
    if fault.rc and kind is StoreFailed:
        return error_of(fd, fault.rc, text)
    id = bytes([fault.id[i] for i in range(16)])
    return kind(text.format(fault.number, id.hex()))


cdef int wrong(Fault* fault, Wrong what, int rc, uint64_t number) noexcept nogil:
    """Note what was wrong; always -1, for the caller to return."""
    fault.wrong, fault.rc, fault.number = what, rc, number
    return -1


cdef void* grow(void* at, size_t* room, size_t count, size_t size) noexcept nogil:
    """`at` with room for one more than `count` of `size` bytes; NULL if there is no memory."""
    if count < room[0]:
        return at
    cdef size_t wanted = 2 * room[0] + 1024
    at = realloc(at, wanted * size)
    if at is not NULL:
        room[0] = wanted
    return at


cdef char* keep(Slice* piece, const void* data, size_t size) noexcept nogil:
    """Copy into the arena, behind its size, on a border of 8 bytes; NULL if there is no memory."""
    cdef size_t wanted = piece.arena_used + 16 + size
    cdef void* at
    if wanted > piece.arena_room:
        wanted = (wanted // <size_t>ARENA_STEP + 1) * <size_t>ARENA_STEP
        if piece.arena is NULL:
            at = mmap(NULL, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        else:
            at = mremap(piece.arena, piece.arena_room, wanted, MREMAP_MAYMOVE)
        if at == MAP_FAILED:
            return NULL
        piece.arena, piece.arena_room = <char*>at, wanted
    cdef char* to = piece.arena + piece.arena_used
    (<uint64_t*>to)[0] = size
    memcpy(to + 8, data, size)
    piece.arena_used += (8 + size + 7) & ~<size_t>7
    return to


cdef EventHead* slice_event(const Slice* piece, uint64_t at, size_t* size) noexcept nogil:
    """The record at `at` of the arena, and its size; a note likewise."""
    size[0] = (<uint64_t*>(piece.arena + at))[0]
    return <EventHead*>(piece.arena + at + 8)


cdef int add_event(Slice* piece, uint64_t seq, const Val* data, Fault* fault) noexcept nogil:
    cdef const EventHead* head = <const EventHead*>data.at
    if check_event(seq, data):
        return wrong(fault, EVENT_DAMAGED, 0, seq)
    if head.version > RECORD_VERSION:
        return wrong(fault, EVENT_TOO_NEW, 0, seq)
    if not head.flags & FLAG_IMAGE:
        return 0
    cdef const Image* image = <const Image*>(<char*>data.at + sizeof(EventHead))
    if data.size < sizeof(EventHead) + sizeof(Image) or image.seq != seq:
        return wrong(fault, EVENT_DAMAGED, 0, seq)
    cdef void* room = grow(
        piece.entries, &piece.entries_room, piece.entries_count, sizeof(Entry)
    )
    if room is NULL:
        return wrong(fault, NO_MEMORY, 0, seq)
    piece.entries = <Entry*>room
    cdef char* copy = keep(piece, data.at, data.size)
    if copy is NULL:
        return wrong(fault, NO_MEMORY, 0, seq)
    cdef Entry* entry = &piece.entries[piece.entries_count]
    memcpy(&entry.id_high, &image.id, 16)
    entry.id_high, entry.id_low = big_endian(entry.id_high), big_endian(entry.id_low)
    entry.seq, entry.at = seq, <size_t>copy - <size_t>piece.arena
    piece.entries_count += 1
    piece.scattered_count += 0 < head.prev_seq <= piece.begin_seq
    return 0


cdef int add_notes(Slice* piece, uint64_t number, const Val* data, Fault* fault) noexcept nogil:
    cdef const SealHead* seal = <const SealHead*>data.at
    cdef const char* at = (
        <char*>data.at + sizeof(SealHead) + sizeof(Receipt) * <size_t>seal.receipts_count
    )
    cdef const char* end = <char*>data.at + data.size
    cdef NoteEntry* note
    cdef void* room
    cdef char* copy
    cdef unsigned int size, i
    for i in range(seal.notes_count):
        if <size_t>end - <size_t>at < 4:
            return wrong(fault, NOTE_DAMAGED, 0, number)
        memcpy(&size, at, 4)
        if size < sizeof(NoteHead) or <size_t>end - <size_t>at < 4 + <size_t>size:
            return wrong(fault, NOTE_DAMAGED, 0, number)
        room = grow(piece.notes, &piece.notes_room, piece.notes_count, sizeof(NoteEntry))
        if room is NULL:
            return wrong(fault, NO_MEMORY, 0, number)
        piece.notes = <NoteEntry*>room
        copy = keep(piece, at + 4, size)
        if copy is NULL:
            return wrong(fault, NO_MEMORY, 0, number)
        note = &piece.notes[piece.notes_count]
        memcpy(&note.key_high, (<NoteHead*>(at + 4)).key, 16)
        note.key_high, note.key_low = big_endian(note.key_high), big_endian(note.key_low)
        note.order, note.at = piece.notes_count, <size_t>copy - <size_t>piece.arena
        piece.notes_count += 1
        at += 4 + <size_t>size
    return 0


cdef int slice_gather(
    Slice* piece, void* txn, const LogDbs* dbs, uint64_t to_commit, size_t entries_max,
    Fault* fault
) noexcept nogil:
    """Read on from where the slice ends: whole commits up to `to_commit`, until there are
    `entries_max` events or the arena is full. 0, or -1 and the fault.

    Older timers stand anywhere in the tables, a page for each at worst, and LMDB keeps the pages that
    a transaction has dirtied: of their events there are a quarter."""
    cdef void* seals
    cdef void* events
    cdef int rc = lm.cursor_open(txn, dbs.commits, &seals)
    if rc:
        return wrong(fault, LOG_UNREADABLE, rc, 0)
    rc = lm.cursor_open(txn, dbs.events, &events)
    if rc:
        lm.cursor_close(seals)
        return wrong(fault, LOG_UNREADABLE, rc, 0)
    piece.begin_seq, piece.scattered_count = piece.seq, 0
    while (
        rc == 0
        and piece.commit < to_commit
        and piece.seq - piece.begin_seq < entries_max
        and piece.scattered_count < max(entries_max // 4, 1)
        and piece.arena_used < <size_t>ARENA_FULL
    ):
        rc = gather_commit(piece, seals, events, fault)
    lm.cursor_close(events)
    lm.cursor_close(seals)
    return rc


cdef int gather_commit(Slice* piece, void* seals, void* events, Fault* fault) noexcept nogil:
    cdef Val key, data
    cdef uint64_t number = piece.commit + 1, number_key = big_endian(number)
    key.size, key.at = 8, &number_key
    cdef int rc = lm.cursor_get(seals, &key, &data, SET_KEY)
    if rc:
        return wrong(fault, SEAL_MISSING, rc, number)
    cdef const SealHead* seal = <const SealHead*>data.at
    if check_seal(number, &data) or seal.first_seq != piece.seq + 1:
        return wrong(fault, SEAL_DAMAGED, 0, number)
    if add_notes(piece, number, &data, fault):
        return -1
    cdef uint64_t end = seal.first_seq + seal.count
    cdef uint64_t seq = max(seal.first_seq, piece.skip_below)
    if seq < end and gather_events(piece, events, seq, end, fault):
        return -1
    piece.commit, piece.seq = number, end - 1
    return 0


cdef int gather_events(
    Slice* piece, void* events, uint64_t seq, uint64_t end, Fault* fault
) noexcept nogil:
    cdef Val key, data
    cdef uint64_t seq_key = big_endian(seq)
    key.size, key.at = 8, &seq_key
    cdef int rc = lm.cursor_get(events, &key, &data, SET_KEY)
    while True:
        if rc or key_of(&key) != seq:
            return wrong(fault, EVENT_MISSING, rc, seq)
        if add_event(piece, seq, &data, fault):
            return -1
        seq += 1
        if seq >= end:
            return 0
        rc = lm.cursor_get(events, &key, &data, NEXT)


cdef int slice_gather_finished(
    Slice* piece, void* txn, const LogDbs* dbs, uint64_t from_seq, uint64_t to_seq,
    uint64_t* reached, Fault* fault
) noexcept nogil:
    """Read the events in [from_seq, to_seq) that finished a timer, a bounded number at once;
    `reached` becomes the seq to go on from."""
    cdef Val key, data
    cdef void* cursor
    cdef int rc = lm.cursor_open(txn, dbs.events, &cursor)
    if rc:
        return wrong(fault, LOG_UNREADABLE, rc, 0)
    # What was trimmed has nothing to forget any more.
    if lm.cursor_get(cursor, &key, &data, FIRST) == 0:
        from_seq = max(from_seq, key_of(&key))
    reached[0] = from_seq
    while rc == 0 and reached[0] < min(to_seq, from_seq + <uint64_t>FINISHED_MAX):
        rc = gather_events(piece, cursor, reached[0], reached[0] + 1, fault)
        if rc == 0:
            drop_unfinished(piece)
            reached[0] += 1
    lm.cursor_close(cursor)
    return rc


cdef void drop_unfinished(Slice* piece) noexcept nogil:
    """Keep the newest entry only if it finished its timer; its record is needed no more."""
    cdef size_t size
    if piece.arena_used == 0:
        return
    cdef EventHead* head = slice_event(piece, 0, &size)
    if (<Image*>(<char*>head + sizeof(EventHead))).state <= STATE_PAUSED:
        piece.entries_count -= 1
    piece.arena_used = 0


cdef int by_id_and_seq(const void* a, const void* b) noexcept nogil:
    cdef const Entry* left = <const Entry*>a
    cdef const Entry* right = <const Entry*>b
    if left.id_high != right.id_high:
        return 1 if left.id_high > right.id_high else -1
    if left.id_low != right.id_low:
        return 1 if left.id_low > right.id_low else -1
    return (left.seq > right.seq) - (left.seq < right.seq)


cdef void slice_sort(Slice* piece) noexcept nogil:
    """By (timer, seq), and the notes by (key, order): so each page of a table is met once."""
    if piece.entries_count:  # without any there is no memory either, and qsort wants some
        qsort(piece.entries, piece.entries_count, sizeof(Entry), by_id_and_seq)
    if piece.notes_count:
        qsort(piece.notes, piece.notes_count, sizeof(NoteEntry), by_id_and_seq)


cdef void slice_clear(Slice* piece) noexcept nogil:
    """Empty it, and give the arena's pages back to the system."""
    if piece.arena is not NULL:
        madvise(piece.arena, piece.arena_room, MADV_DONTNEED)
    piece.arena_used = piece.entries_count = piece.notes_count = 0


cdef void slice_free(Slice* piece) noexcept nogil:
    if piece.arena is not NULL:
        munmap(piece.arena, piece.arena_room)
    free(piece.entries)
    free(piece.notes)
    piece.arena, piece.entries, piece.notes = NULL, NULL, NULL


# One comparison serves both.
assert sizeof(Entry) == sizeof(NoteEntry) == 32
