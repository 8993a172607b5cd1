"""One commit of the log: filled from a batch with the GIL, written to LMDB without it."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, qsort, realloc
from libc.string cimport memcpy, memset

from engine._crc cimport crc32
from engine._lmdb cimport (
    APPEND,
    FIRST,
    KEYEXIST,
    LAST,
    NOTFOUND,
    PREV,
    SET_RANGE,
    Dbi,
    Environment,
    Val,
    lm,
)
from engine._pages cimport goes_on
from engine._record cimport (
    RECEIPT_SEED,
    RECORD_VERSION,
    SEAL_SEED,
    Cell,
    EventHead,
    Receipt,
    SealHead,
    big_endian,
)

cdef enum:
    TRIM_SPARE = 256      # a commit may delete twice what it appends, and this many more


cdef int check_seal(uint64_t number, const Val* data) noexcept nogil:
    """0 if `data` is the whole seal of commit `number`, DAMAGED otherwise."""
    cdef const SealHead* seal = <const SealHead*>data.at
    if data.size < sizeof(SealHead):
        return DAMAGED
    if data.size != (
        sizeof(SealHead) + sizeof(Receipt) * <size_t>seal.receipts_count + seal.notes_bytes
    ):
        return DAMAGED
    if seal.crc != crc32(crc32(SEAL_SEED, &number, 8), <char*>data.at + 4, data.size - 4):
        return DAMAGED
    return 0


cdef int check_event(uint64_t seq, const Val* data) noexcept nogil:
    """0 if `data` is the whole record of `seq`, DAMAGED otherwise."""
    cdef const EventHead* head = <const EventHead*>data.at
    if data.size < sizeof(EventHead):
        return DAMAGED
    if head.crc != crc32(<uint32_t>seq, <char*>data.at + 4, data.size - 4):
        return DAMAGED
    return 0


cdef int check_receipt(const Val* key, const Val* data) noexcept nogil:
    """0 if `data` is the receipt that was stored under `key`, DAMAGED otherwise."""
    cdef const Cell* cell = <const Cell*>data.at
    if key.size != 8 or data.size != sizeof(Cell):
        return DAMAGED
    if cell.crc != crc32(crc32(RECEIPT_SEED, key.at, 8), &cell.value, 8):
        return DAMAGED
    return 0


cdef int seek_receipt(
    void* cursor, uint64_t seq, size_t page_bytes, Val* key, Val* data
) noexcept nogil:
    """Go to the first receipt from `seq` on; LMDB's error number or DAMAGED.

    Not every event has one, so a missing one tells nothing. But a damaged key stays where it was:
    the one before is checked too. And where a key of the pages above is damaged the search ends in
    the wrong page: what is found there is below `seq`, or what is before it is not. Nor may the
    pages of the two hide one.
    """
    cdef uint64_t wanted = big_endian(seq)
    key.size, key.at = 8, &wanted
    cdef int rc = lm.cursor_get(cursor, key, data, SET_RANGE)
    cdef int before = lm.cursor_get(cursor, key, data, PREV if rc == 0 else LAST)
    if before == 0 and (check_receipt(key, data) or key_of(key) >= seq):
        return DAMAGED
    if before == 0 and not goes_on(NULL, key, page_bytes):
        return DAMAGED
    if rc or before not in (0, NOTFOUND):
        return rc or before
    key.size, key.at = 8, &wanted
    rc = lm.cursor_get(cursor, key, data, SET_RANGE)
    if rc == 0 and (key_of(key) < seq or not goes_on(NULL, key, page_bytes)):
        return DAMAGED
    return rc


cdef int by_seq(const void* a, const void* b) noexcept nogil:
    cdef uint64_t left = (<const Receipt*>a).seq
    cdef uint64_t right = (<const Receipt*>b).seq
    return (left > right) - (left < right)


cdef uint64_t key_of(const Val* key) noexcept nogil:
    """The number in a key of eight bytes; 0, which no record has, for any other key."""
    cdef uint64_t number = 0
    if key.size == 8:
        memcpy(&number, key.at, 8)
    return big_endian(number)


cdef void* grown(void* at, size_t* room, size_t wanted) except NULL:
    """`at` or its successor, with room for `wanted` bytes; never NULL, so never 0 bytes."""
    if wanted <= room[0] and at is not NULL:
        return at
    at = realloc(at, wanted + wanted // 2 + 64)
    if at is NULL:
        raise MemoryError
    room[0] = wanted + wanted // 2 + 64
    return at


cdef int fill_job(Job* job, batch, tuple events, tuple notes) except -1:
    """Note where the records lie, which the caller keeps alive; copy and pack the rest."""
    cdef size_t i, count = len(events)
    job.first_seq, job.trim_below = batch.first_seq, batch.trim_below
    job.events = <Val*>grown(job.events, &job.events_room, count * sizeof(Val))
    for i in range(count):
        event = events[i]
        if type(event) is not bytes:
            raise TypeError(f"an event is bytes, not {type(event).__name__}")
        job.events[i].at = PyBytes_AS_STRING(event)
        job.events[i].size = PyBytes_GET_SIZE(event)
    job.count = count
    take_receipts(job, batch.receipts)
    take_seal(job, batch, notes)
    return 0


cdef void free_job(Job* job) noexcept nogil:
    free(job.events)
    free(job.receipts)
    free(job.seal)


cdef int take_receipts(Job* job, bytes receipts) except -1:
    assert len(receipts) % sizeof(Receipt) == 0, "receipts are pairs of 16 bytes"
    job.receipts_count = len(receipts) // sizeof(Receipt)
    job.receipts = <Receipt*>grown(job.receipts, &job.receipts_room, len(receipts))
    memcpy(job.receipts, <char*>receipts, len(receipts))
    return 0


cdef int take_seal(Job* job, batch, tuple notes) except -1:
    cdef bytes receipts = batch.receipts, chain = batch.chain, note
    cdef size_t receipts_bytes = len(receipts), notes_bytes = 0
    assert len(chain) == 32, f"a chain is 32 bytes, not {len(chain)}"
    for note in notes:
        notes_bytes += 4 + len(note)
    job.seal_bytes = sizeof(SealHead) + receipts_bytes + notes_bytes
    job.seal = <SealHead*>grown(job.seal, &job.seal_room, job.seal_bytes)
    cdef SealHead* seal = job.seal
    memset(seal, 0, sizeof(SealHead))
    seal.version = RECORD_VERSION
    seal.first_seq, seal.at_ns, seal.floor = batch.first_seq, batch.at_ns, batch.floor
    seal.count, seal.receipts_count = job.count, job.receipts_count
    seal.notes_count, seal.notes_bytes = len(notes), notes_bytes
    memcpy(seal.chain, <char*>chain, 32)
    cdef char* at = <char*>seal + sizeof(SealHead)
    memcpy(at, <char*>receipts, receipts_bytes)
    at += receipts_bytes
    cdef uint32_t size
    for note in notes:
        size = len(note)
        memcpy(at, &size, 4)
        memcpy(at + 4, <char*>note, size)
        at += 4 + size
    seal.crc = crc32(crc32(SEAL_SEED, &job.number, 8), <char*>seal + 4, job.seal_bytes - 4)
    return 0


cdef int write_job(
    Environment env, const LogDbs* dbs, Job* job, uint64_t first_seq, Step* step
) noexcept nogil:
    """One transaction; 0, or LMDB's or the system's error number, and at which step.

    first_seq: the oldest event that is kept.
    """
    cdef void* txn
    cdef Val key, data
    cdef uint64_t number = big_endian(job.number)
    step[0] = AT_BEGIN
    cdef int rc = lm.txn_begin(env.env, NULL, 0, &txn)
    if rc:
        return rc
    step[0] = AT_APPEND
    rc = append(txn, dbs.events, job)
    if rc == 0 and job.receipts_count:
        step[0] = AT_RECEIPTS
        rc = put_receipts(txn, dbs.receipts, job)
    if rc == 0:
        step[0] = AT_SEAL
        key.size, key.at = 8, &number
        data.size, data.at = job.seal_bytes, job.seal
        rc = lm.put(txn, dbs.commits, &key, &data, APPEND)
    job.trimmed_to = first_seq
    if rc == 0 and job.trim_below > first_seq:
        step[0] = AT_TRIM
        rc = trim(txn, dbs, job)
    if rc:
        lm.txn_abort(txn)
        return rc
    step[0] = AT_COMMIT
    job.bytes_used = env.used_bytes(txn, LOG_DATABASES)
    return lm.txn_commit(txn)


cdef int append(void* txn, Dbi dbi, Job* job) noexcept nogil:
    cdef void* cursor
    cdef Val key
    cdef uint64_t seq
    cdef uint32_t i
    cdef int rc = lm.cursor_open(txn, dbi, &cursor)
    if rc:
        return rc
    key.size, key.at = 8, &seq
    for i in range(job.count):
        seq = big_endian(job.first_seq + i)
        rc = lm.cursor_put(cursor, &key, &job.events[i], APPEND)
        if rc:
            break
    lm.cursor_close(cursor)
    return rc


cdef int put_receipts(void* txn, Dbi dbi, Job* job) noexcept nogil:
    """In the order of their events, so that they fill pages one after the other."""
    cdef void* cursor
    cdef Val key, data
    cdef uint64_t seq
    cdef Cell cell
    cdef uint32_t i
    qsort(job.receipts, job.receipts_count, sizeof(Receipt), by_seq)
    cdef int rc = lm.cursor_open(txn, dbi, &cursor)
    if rc:
        return rc
    key.size, key.at = 8, &seq
    data.size, data.at = sizeof(Cell), &cell
    for i in range(job.receipts_count):
        seq = big_endian(job.receipts[i].seq)
        cell.value = <uint64_t>job.receipts[i].fired_ns
        cell.crc = crc32(crc32(RECEIPT_SEED, &seq, 8), &cell.value, 8)
        rc = lm.cursor_put(cursor, &key, &data, APPEND)
        if rc == KEYEXIST:  # an earlier event's: not the last of the table
            rc = lm.cursor_put(cursor, &key, &data, 0)
        if rc:
            break
    lm.cursor_close(cursor)
    return rc


cdef int trim(void* txn, const LogDbs* dbs, Job* job) noexcept nogil:
    """Delete from the head, a bounded number, so that no commit waits for a long tail. An event
    that is kept keeps its receipt and its seal."""
    cdef uint32_t budget = 2 * job.count + TRIM_SPARE
    cdef int rc = trim_keys(txn, dbs.events, job.trim_below, budget, &job.trimmed_to)
    cdef uint64_t unused
    if rc == 0:
        rc = trim_keys(txn, dbs.receipts, job.trimmed_to, budget, &unused)
    if rc == 0:
        rc = trim_seals(txn, dbs.commits, job.trimmed_to, budget)
    return rc


cdef int trim_keys(
    void* txn, Dbi dbi, uint64_t below, uint32_t budget, uint64_t* first
) noexcept nogil:
    """Delete at most `budget` keys below `below`; `first` becomes the first that is kept."""
    cdef void* cursor
    cdef Val key, data
    cdef int rc = lm.cursor_open(txn, dbi, &cursor)
    if rc:
        return rc
    while rc == 0:
        rc = lm.cursor_get(cursor, &key, &data, FIRST)
        if rc:
            break
        first[0] = key_of(&key)
        if budget == 0 or first[0] >= below:
            break
        budget -= 1
        rc = lm.cursor_del(cursor, 0)
    lm.cursor_close(cursor)
    return 0 if rc == NOTFOUND else rc


cdef int trim_seals(void* txn, Dbi dbi, uint64_t below, uint32_t budget) noexcept nogil:
    """Delete at most `budget` seals of commits all of whose events are below `below`."""
    cdef void* cursor
    cdef Val key, data
    cdef SealHead* seal
    cdef int rc = lm.cursor_open(txn, dbi, &cursor)
    if rc:
        return rc
    while rc == 0 and budget:
        rc = lm.cursor_get(cursor, &key, &data, FIRST) or check_seal(key_of(&key), &data)
        if rc:
            break
        seal = <SealHead*>data.at
        # An empty commit lies below what comes after it, so that its notes were applied.
        if seal.first_seq + max(seal.count, <uint32_t>1) > below:
            break
        budget -= 1
        rc = lm.cursor_del(cursor, 0)
    lm.cursor_close(cursor)
    return 0 if rc == NOTFOUND else rc


cdef bint lies_inside(void* txn, Dbi dbi, uint64_t seq) noexcept nogil:
    """Whether `seq` is not below the first key nor above the last, so that it should be there."""
    cdef Val key, data
    cdef void* cursor
    cdef bint inside = True
    if lm.cursor_open(txn, dbi, &cursor):
        return True
    cdef int rc = lm.cursor_get(cursor, &key, &data, FIRST)
    if rc == NOTFOUND or (rc == 0 and key_of(&key) > seq):
        inside = False
    elif rc == 0 and lm.cursor_get(cursor, &key, &data, LAST) == 0:
        inside = seq <= key_of(&key)
    lm.cursor_close(cursor)
    return inside
