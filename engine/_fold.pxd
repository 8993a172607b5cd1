"""Writing a slice to the tables; the layouts and checks of their rows."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from engine._lmdb cimport Dbi, Val
from engine._record cimport Image
from engine._slice cimport Fault, Slice, Wrong

cdef struct TableDbs:
    Dbi meta
    Dbi timers                      # id -> RowHead, Image, blob
    Dbi due                         # DueKey -> Cell: due_ns
    Dbi names                       # NameKey -> its checksum, 4 bytes
    Dbi done                        # id -> Cell: the last seq
    Dbi notes                       # key, 16 bytes -> the note

cdef enum:
    TABLES_DATABASES = 8            # LMDB's two and our six

cdef packed struct DueKey:          # 21 bytes
    uint8_t scale
    uint32_t hour                   # big-endian
    uint8_t id[16]

cdef packed struct NameKey:         # 24 bytes
    uint64_t hash                   # big-endian
    uint8_t id[16]

cdef packed struct Standing:        # meta: b"standing"; 80 bytes
    uint32_t crc
    uint32_t version
    uint64_t seq                    # how far the log is folded in
    uint64_t commit
    uint64_t live_count
    uint64_t notes_count
    uint64_t done_below             # of terminal events below, the done rows are forgotten
    uint64_t rebuilt_from           # events below were gone when the tables were rebuilt
    uint64_t rebuild_to             # ... up to which commit that goes on
    uint8_t swept[16]               # notes were swept up to this key

cdef struct Op:                     # one change of an index; 32 bytes
    uint8_t[24] key                 # a DueKey, then zeros, or a NameKey
    int64_t due_ns                  # 0 deletes it; a name's is 1

cdef struct Ops:
    Op* at
    size_t count, room

cdef struct Fold:                   # one transaction on its way
    void* txn
    void* timers                    # cursors
    void* done
    TableDbs dbs
    Ops due
    Ops names
    char* old                       # the row as it was, old_bytes of old_room
    size_t old_bytes, old_room
    uint64_t last_high, last_low    # the greatest id in `timers`: what is above is appended
    uint64_t lost                   # timers that a rebuild found no definition of
    bint lenient                    # a rebuild: the row of an older timer may be missing

cdef int fold_slice(Fold* fold, Slice* piece, Fault* fault) noexcept nogil
cdef int fold_reindex(Fold* fold, Fault* fault) noexcept nogil
cdef int put_standing(Fold* fold, Standing* standing) noexcept nogil
cdef int check_standing(const Val* data) noexcept nogil
cdef void fold_free(Fold* fold) noexcept nogil
cdef int check_row(const void* id, const Val* data) noexcept nogil
cdef int check_cell(uint32_t seed, const Val* key, const Val* data) noexcept nogil
cdef uint32_t hour_of(int64_t due_ns) noexcept nogil
cdef int check_note(const Val* key, const Val* data) noexcept nogil
cdef int check_name(const Val* key, const Val* data) noexcept nogil
cdef int of_timer(Fault* fault, Wrong what, const void* id) noexcept nogil
cdef int unwritable(Fault* fault, int rc) noexcept nogil
