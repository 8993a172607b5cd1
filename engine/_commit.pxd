"""What one commit of the log is, on its way to the disk, and how it is written and checked."""

from libc.stdint cimport uint32_t, uint64_t

from engine._lmdb cimport Dbi, Environment, Val
from engine._record cimport Receipt, SealHead

cdef struct Job:
    uint64_t number
    uint64_t first_seq
    uint64_t trim_below
    uint64_t trimmed_to             # the oldest event that is kept once it is written
    uint64_t bytes_used             # ... and the pages in use
    uint32_t count
    uint32_t receipts_count
    Val* events                     # count of them; they point into the batch's bytes
    Receipt* receipts               # a copy, which the writing sorts
    SealHead* seal                  # seal_bytes of it
    size_t seal_bytes
    size_t events_room, receipts_room, seal_room  # bytes allocated

cdef struct LogDbs:
    Dbi meta
    Dbi events
    Dbi receipts
    Dbi commits

cdef enum Step:                     # where a commit failed: an index into STEPS
    AT_BEGIN
    AT_APPEND
    AT_RECEIPTS
    AT_SEAL
    AT_TRIM
    AT_COMMIT
    AT_AHEAD                        # behind a commit that is durable

cdef enum:
    DAMAGED = -1                    # beside LMDB's own numbers
    LOG_DATABASES = 6               # LMDB's two and our four

cdef int fill_job(Job* job, batch, tuple events, tuple notes) except -1
cdef void free_job(Job* job) noexcept nogil
cdef int write_job(
    Environment env, const LogDbs* dbs, Job* job, uint64_t first_seq, Step* step
) noexcept nogil
cdef int check_seal(uint64_t number, const Val* data) noexcept nogil
cdef int check_event(uint64_t seq, const Val* data) noexcept nogil
cdef int check_receipt(const Val* key, const Val* data) noexcept nogil
cdef int seek_receipt(
    void* cursor, uint64_t seq, size_t page_bytes, Val* key, Val* data
) noexcept nogil
cdef uint64_t key_of(const Val* key) noexcept nogil
cdef bint lies_inside(void* txn, Dbi dbi, uint64_t seq) noexcept nogil
cdef int trim(void* txn, const LogDbs* dbs, Job* job) noexcept nogil
