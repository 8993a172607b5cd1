"""A slice: the events of some commits, read from the log and sorted by timer."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from engine._commit cimport LogDbs
from engine._lmdb cimport Val
from engine._record cimport EventHead, Image

cdef struct Entry:                  # one event that has an image; 32 bytes
    uint64_t id_high, id_low        # the id as two numbers, which compare as its bytes do
    uint64_t seq
    uint64_t at                     # where it lies in the arena: its size, 8 bytes, and itself

cdef struct NoteEntry:              # one note; 32 bytes
    uint64_t key_high, key_low
    uint64_t order                  # of two notes with one key, the later counts
    uint64_t at

cdef enum Wrong:                    # what was wrong: an index into WRONGS
    RIGHT
    LOG_UNREADABLE
    SEAL_DAMAGED
    SEAL_MISSING
    EVENT_DAMAGED
    EVENT_MISSING
    EVENT_TOO_NEW
    NOTE_DAMAGED
    TABLES_UNWRITABLE
    ROW_DAMAGED
    ROW_MISSING
    DUE_MISSING
    NAME_MISSING
    DONE_DAMAGED
    NO_MEMORY
    LOG_PAGE_DAMAGED
    TABLES_PAGE_DAMAGED

cdef struct Fault:
    Wrong wrong
    int rc                          # LMDB's or the system's error number, if it was that
    uint64_t number                 # of the event, commit or page
    uint8_t[16] id                  # of the timer

cdef struct Slice:
    char* arena                     # arena_used of arena_room bytes
    size_t arena_used, arena_room
    Entry* entries                  # entries_count of entries_room
    size_t entries_count, entries_room
    NoteEntry* notes
    size_t notes_count, notes_room
    uint64_t seq, commit            # where it ends
    uint64_t begin_seq              # ... and began
    size_t scattered_count          # entries of timers older than the slice: each may dirty a page
    uint64_t skip_below             # events below were trimmed before a rebuild: not missed

cdef int slice_gather(
    Slice* piece, void* txn, const LogDbs* dbs, uint64_t to_commit, size_t entries_max,
    Fault* fault
) noexcept nogil
cdef int slice_gather_finished(
    Slice* piece, void* txn, const LogDbs* dbs, uint64_t from_seq, uint64_t to_seq,
    uint64_t* reached, Fault* fault
) noexcept nogil
cdef void slice_sort(Slice* piece) noexcept nogil
cdef void slice_clear(Slice* piece) noexcept nogil
cdef void slice_free(Slice* piece) noexcept nogil
cdef EventHead* slice_event(const Slice* piece, uint64_t at, size_t* size) noexcept nogil
cdef object exception_of(const Fault* fault, int fd)
cdef int wrong(Fault* fault, Wrong what, int rc, uint64_t number) noexcept nogil
cdef void* grow(void* at, size_t* room, size_t count, size_t size) noexcept nogil
