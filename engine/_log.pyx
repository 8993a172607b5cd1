"""The log: an append-only LMDB environment that one C thread writes, a commit for each batch.

`submit` notes where the batch's bytes lie and returns; the thread appends, seals, trims and syncs
without the GIL, then publishes the number and writes an eventfd. At most two batches are under way:
one being written, one that is ready the moment the disk is.

    events    seq, 8 bytes big-endian     -> the record
    receipts  seq                         -> Cell: when it fired
    commits   commit number               -> SealHead, packed receipts, notes
    meta      b"format"                   -> checksum, format version, epoch

It must never go on after an error. LMDB's next commit may well succeed after a failed sync though
the pages of the failed one never reached the disk, so the thread stops for good, `durable` raises,
and whoever wants to go on closes the log and opens it anew: what is on disk then is the truth.

# If you change a layout here, raise FORMAT_VERSION, keep the old reader, add a fixture.
"""

import struct
import threading

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from engine._ahead cimport write_ahead
from engine._commit cimport (
    AT_AHEAD,
    DAMAGED,
    LOG_DATABASES,
    Job,
    Step,
    check_event,
    check_receipt,
    check_seal,
    fill_job,
    free_job,
    key_of,
    lies_inside,
    seek_receipt,
    write_job,
)
from engine._lmdb cimport (
    FIRST,
    LAST,
    NEXT,
    NOTFOUND,
    SET_KEY,
    SET_RANGE,
    Dbi,
    Environment,
    Val,
    check,
    error_of,
    lm,
)
from engine._pages cimport goes_on
from engine._record cimport Cell, EventHead, Receipt, SealHead, big_endian
from engine._threads cimport (
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    eventfd,
    eventfd_read,
    eventfd_write,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_cond_signal,
    pthread_cond_wait,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from engine._threads cimport close as close_fd

from engine.errors import StoreCorrupt
from engine.store import Commit, LogState
from engine.threads import block_signals

FORMAT_VERSION = 1

cdef enum:
    UNDER_WAY_MAX = 2

STEPS = ("begin", "append", "receipts", "seal", "trim", "commit", "ahead")


@cython.final
cdef class LmdbLog:
    """`Log` and `LogReader` over LMDB in the directory `path`, which must exist.

    map_bytes: address space for the file, 0 for 1 TiB; a full map is StoreFull.
    Raises StoreFull, StoreFailed, StoreCorrupt, StoreTooNew.
    """

    def __cinit__(self, path: str, size_t map_bytes = 0):
        self.event_fd = -1
        pthread_mutex_init(&self.lock, NULL)
        pthread_cond_init(&self.wake, NULL)
        self.held = [None, None]
        self.env = Environment(path, map_bytes)
        self.dbs.meta, self.dbs.events, self.dbs.receipts, self.dbs.commits = self.env.open_dbs(
            (b"meta", b"events", b"receipts", b"commits"), FORMAT_VERSION
        )
        self.epoch = self.env.stamp(self.dbs.meta, FORMAT_VERSION)
        self.open_state()
        self.submitted_seq = self.last_seq
        self.submitted = self.released = self.finished
        self.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.event_fd < 0:
            raise OSError("eventfd was refused")
        self.thread = threading.Thread(target=self._run, name="log", daemon=True)
        self.thread.start()

    def __dealloc__(self):
        # The thread holds a reference to this object, so it has ended by now or never began.
        cdef int i
        for i in range(UNDER_WAY_MAX):
            free_job(&self.jobs[i])
        if self.event_fd >= 0:
            close_fd(self.event_fd)
        pthread_cond_destroy(&self.wake)
        pthread_mutex_destroy(&self.lock)

    def submit(self, batch) -> int:
        """See `store.Log`. 4 us and 13 ns an event."""
        self.raise_failed()
        self.let_go()
        assert self.submitted - self.released < UNDER_WAY_MAX, (
            "two batches are under way; ask ready first"
        )
        assert batch.first_seq == self.submitted_seq + 1, (
            f"the batch begins at seq {batch.first_seq}; the log goes on at "
            f"{self.submitted_seq + 1}"
        )
        cdef uint64_t number = self.submitted + 1
        cdef Job* job = &self.jobs[number % 2]
        cdef tuple events = tuple(batch.events)
        job.number = number
        fill_job(job, batch, events, tuple(batch.notes))
        # The commit before this one stays whole: its seal is where the chain goes on.
        job.trim_below = min(job.trim_below, self.submitted_seq)
        self.held[number % 2] = (batch.first_seq, events)
        self.submitted_seq += len(events)
        pthread_mutex_lock(&self.lock)
        self.submitted = number
        pthread_cond_signal(&self.wake)
        pthread_mutex_unlock(&self.lock)
        return number

    def ready(self) -> bool:
        """See `store.Log`."""
        self.let_go()
        return self.submitted - self.released < UNDER_WAY_MAX

    def durable(self) -> int:
        """See `store.Log`."""
        cdef uint64_t count
        pthread_mutex_lock(&self.lock)
        if self.signalled:
            self.signalled = False
            eventfd_read(self.event_fd, &count)
        pthread_mutex_unlock(&self.lock)
        self.raise_failed()
        self.let_go()
        return self.released

    def state(self):
        """See `store.Log`. `bytes_used` counts the pages in use, not the file's size."""
        pthread_mutex_lock(&self.lock)
        state = LogState(
            self.epoch,
            self.first_seq,
            self.last_seq,
            self.finished,
            PyBytes_FromStringAndSize(<char*>self.chain, 32),
            self.floor,
            self.at_ns,
            self.bytes_used,
        )
        pthread_mutex_unlock(&self.lock)
        return state

    def fileno(self) -> int:
        """See `store.Log`."""
        return self.event_fd

    def close(self) -> None:
        """See `store.Log`. The files stay open while tables that read them are."""
        if self.thread is None:
            return
        pthread_mutex_lock(&self.lock)
        self.stop = True
        pthread_cond_signal(&self.wake)
        pthread_mutex_unlock(&self.lock)
        self.thread.join()
        self.thread = None
        self.env.release()

    def _run(self) -> None:
        # Signals are for the thread that can act on them.
        block_signals()
        with nogil:
            self.write_on()

    cdef int let_go(self) except -1:
        """Drop the bytes of the batches that are written."""
        pthread_mutex_lock(&self.lock)
        cdef uint64_t finished = self.finished
        pthread_mutex_unlock(&self.lock)
        while self.released < finished:
            self.released += 1
            self.held[self.released % 2] = None
        return 0

    cdef int raise_failed(self) except -1:
        pthread_mutex_lock(&self.lock)
        cdef int rc = self.failed
        cdef Step step = self.failed_at
        cdef uint64_t number = self.finished + 1
        pthread_mutex_unlock(&self.lock)
        if rc == DAMAGED:
            raise StoreCorrupt(f"commit {number} found a damaged seal at the log's head")
        if rc:
            raise error_of(self.env.fd, rc, f"commit {number} failed at {STEPS[<int>step]}")
        return 0

    # The thread.

    cdef void write_on(self) noexcept nogil:
        cdef Job* job
        cdef Step step
        cdef int rc = 0
        while rc == 0:
            pthread_mutex_lock(&self.lock)
            while self.finished == self.submitted and not self.stop:
                pthread_cond_wait(&self.wake, &self.lock)
            if self.finished == self.submitted:
                pthread_mutex_unlock(&self.lock)
                return
            job = &self.jobs[(self.finished + 1) % 2]
            pthread_mutex_unlock(&self.lock)
            rc = write_job(self.env, &self.dbs, job, self.first_seq, &step)
            self.publish(job, rc, step)
            if rc == 0:
                rc = write_ahead(self.env, &self.ahead)
                if rc:
                    self.publish(job, rc, AT_AHEAD)

    cdef void publish(self, Job* job, int rc, Step step) noexcept nogil:
        pthread_mutex_lock(&self.lock)
        if rc:
            self.failed, self.failed_at = rc, step
        else:
            self.finished = job.number
            self.last_seq = job.first_seq + job.count - 1
            self.at_ns, self.floor = job.seal.at_ns, job.seal.floor
            memcpy(self.chain, job.seal.chain, 32)
            self.first_seq, self.bytes_used = job.trimmed_to, job.bytes_used
        # Under the lock: a write after `durable` has cleared it would keep a poller spinning.
        if not self.signalled:
            self.signalled = True
            eventfd_write(self.event_fd, 1)
        pthread_mutex_unlock(&self.lock)

    # Opening.

    def raise_epoch(self) -> int:
        """Mark the log as restored, so that its readers see the new epoch and start afresh."""
        assert self.submitted == self.finished, "no batch may be under way"
        self.env.write_stamp(self.dbs.meta, FORMAT_VERSION, self.epoch + 1)
        self.epoch += 1
        return self.epoch

    cdef int open_state(self) except -1:
        """Find the end of the log, and check that the last seal and the events end together."""
        cdef Val key, data
        cdef SealHead* seal
        cdef uint64_t first = 1, last = 0
        cdef void *cursor, *txn = self.env.begin_read()
        cdef bint whole = True
        cdef size_t size = self.env.page_bytes
        cdef int rc
        try:
            self.bytes_used = self.env.used_bytes(txn, LOG_DATABASES)
            check(lm.cursor_open(txn, self.dbs.events, &cursor), "cannot read the events")
            rc = lm.cursor_get(cursor, &key, &data, FIRST)
            if rc == 0:
                first = key_of(&key)
                whole = goes_on(NULL, &key, size)  # or those before it seem to be trimmed
                if lm.cursor_get(cursor, &key, &data, NEXT) == 0:
                    whole = whole and key_of(&key) == first + 1
                rc = lm.cursor_get(cursor, &key, &data, LAST)
                last = key_of(&key)
            lm.cursor_close(cursor)
            if rc != NOTFOUND:
                check(rc, "cannot find the log's end")
            check(lm.cursor_open(txn, self.dbs.commits, &cursor), "cannot read the commits")
            rc = lm.cursor_get(cursor, &key, &data, LAST)
            if rc == 0:
                self.finished = key_of(&key)
                # Its page may hide a later one, which need not have had events.
                rc = check_seal(self.finished, &data) if goes_on(NULL, &key, size) else DAMAGED
            if rc == 0:
                seal = <SealHead*>data.at
                self.last_seq = seal.first_seq + seal.count - 1
                self.at_ns, self.floor = seal.at_ns, seal.floor
                memcpy(self.chain, seal.chain, 32)
            lm.cursor_close(cursor)
            if rc == DAMAGED:
                raise StoreCorrupt(f"the seal of commit {self.finished} is damaged")
            if rc != NOTFOUND:
                check(rc, "cannot find the last commit")
        finally:
            self.env.end_read()
        if not whole:
            raise StoreCorrupt(f"event {first} is not the oldest of the log; restore from a backup")
        if self.last_seq != last:
            raise StoreCorrupt(f"the log ends at event {last}; its last seal says {self.last_seq}")
        self.first_seq = first
        return 0

    # Reading.

    def event(self, seq: int) -> bytes | None:
        """See `store.LogReader`."""
        cdef Val key, data
        cdef uint64_t number = seq, number_key = big_endian(number)
        if not self.failed:
            for held in self.held:
                if held is not None and held[0] <= seq < held[0] + len(held[1]):
                    return held[1][seq - held[0]]
        key.size, key.at = 8, &number_key
        cdef void* txn = self.env.begin_read()
        cdef int rc = lm.get(txn, self.dbs.events, &key, &data)
        try:
            if rc == 0:
                return PyBytes_FromStringAndSize(<char*>data.at, data.size)
            if rc != NOTFOUND or lies_inside(txn, self.dbs.events, number):
                raise StoreCorrupt(f"event {seq} is missing from the log")
            return None
        finally:
            self.env.end_read()

    def events(self, from_seq: int, limit: int, bytes_max: int) -> list[bytes]:
        """See `store.LogReader`; empty if `from_seq` was trimmed."""
        cdef Val key, data
        cdef list found = []
        cdef uint64_t seq = from_seq, seq_key = big_endian(seq)
        cdef uint64_t last = min(<uint64_t>self.state().last_seq, seq + <uint64_t>limit - 1)
        cdef int64_t room = bytes_max
        cdef int rc
        cdef void* cursor = self.env.begin_cursor(self.dbs.events)
        try:
            key.size, key.at = 8, &seq_key
            rc = lm.cursor_get(cursor, &key, &data, SET_KEY)
            if rc == NOTFOUND and not lies_inside(self.env.reader, self.dbs.events, seq):
                return found
            while rc == 0 and seq <= last and room >= 0:
                if key_of(&key) != seq:
                    break
                found.append(PyBytes_FromStringAndSize(<char*>data.at, data.size))
                room -= <int64_t>data.size
                seq += 1
                rc = lm.cursor_get(cursor, &key, &data, NEXT)
            if seq <= last and room >= 0:
                raise StoreCorrupt(f"event {seq} is missing from the log")
            return found
        finally:
            self.env.end_cursor(cursor)

    def receipts(self, from_seq: int, to_seq: int) -> dict[int, int]:
        """See `store.LogReader`."""
        cdef Val key, data
        cdef dict found = {}
        state = self.state()
        cdef uint64_t seq = max(from_seq, <object>state.first_seq)
        cdef uint64_t last = min(to_seq, <object>state.last_seq)
        cdef const void* before = NULL
        cdef int rc
        cdef void* cursor = self.env.begin_cursor(self.dbs.receipts)
        try:
            rc = seek_receipt(cursor, seq, self.env.page_bytes, &key, &data)
            while rc == 0:
                # Checked before its number is looked at: a damaged key must not end the walk.
                rc = check_receipt(&key, &data)
                if rc == 0 and not goes_on(before, &key, self.env.page_bytes):
                    rc = DAMAGED  # or the page above it: it does not belong here
                before = key.at
                if rc or key_of(&key) > last:
                    break
                seq = key_of(&key) + 1
                found[seq - 1] = <int64_t>(<Cell*>data.at).value
                rc = lm.cursor_get(cursor, &key, &data, NEXT)
            if rc == DAMAGED:
                raise StoreCorrupt(f"a receipt of the events {from_seq} to {last} is damaged")
            if rc != NOTFOUND:
                check(rc, f"cannot read the receipts of the events {from_seq} to {last}")
            return found
        finally:
            self.env.end_cursor(cursor)

    def seq_at(self, at_ns: int) -> int:
        """See `store.LogReader`. Instants that ran back leave it at one of the crossings."""
        cdef Val key, data
        cdef uint64_t middle, middle_key, low = self.state().first_seq
        cdef uint64_t high = self.state().last_seq + 1
        cdef void* txn = self.env.begin_read()
        try:
            while low < high:
                middle = low + (high - low) // 2
                middle_key = big_endian(middle)
                key.size, key.at = 8, &middle_key
                if lm.get(txn, self.dbs.events, &key, &data):
                    # The thread has just trimmed it, or it is lost; what is below is older still.
                    if lies_inside(txn, self.dbs.events, middle):
                        raise StoreCorrupt(f"event {middle} is missing from the log")
                    low = middle + 1
                elif check_event(middle, &data):
                    raise StoreCorrupt(f"event {middle} does not agree with its checksum")
                elif (<EventHead*>data.at).at_ns < <int64_t>at_ns:
                    low = middle + 1
                else:
                    high = middle
            return low
        finally:
            self.env.end_read()

    def commits(self, from_commit: int, limit: int) -> list:
        """See `store.LogReader`; from the oldest that is kept if `from_commit` was trimmed."""
        cdef list found = []
        cdef uint64_t number
        for number, data in self.seals(from_commit, limit):
            found.append(unpack_seal(number, data))
        return found

    def sealed_receipts(self, number: int) -> bytes:
        """The packed receipts of one commit, as they were submitted: the chain covers them."""
        for found, data in self.seals(number, 1):
            if found == number:
                count = (<SealHead*><char*>(<bytes>data)).receipts_count
                return data[sizeof(SealHead) : sizeof(SealHead) + count * sizeof(Receipt)]
        raise StoreCorrupt(f"the seal of commit {number} is missing from the log")

    cdef list seals(self, uint64_t from_commit, uint64_t limit):
        """Numbers and bytes of the durable seals from `from_commit` on, checked."""
        cdef Val key, data
        cdef list found = []
        cdef uint64_t number = max(from_commit, <uint64_t>1), number_key = big_endian(number)
        cdef uint64_t newest = self.state().commit
        cdef int rc
        cdef void* cursor = self.env.begin_cursor(self.dbs.commits)
        try:
            key.size, key.at = 8, &number_key
            rc = lm.cursor_get(cursor, &key, &data, SET_RANGE)
            if rc == 0 and key_of(&key) != number:
                # Trimmed, so this is the oldest; or else a key of the pages above it is damaged.
                rc = lm.cursor_get(cursor, &key, &data, FIRST)
                if rc == 0 and key_of(&key) < number:
                    raise StoreCorrupt(f"the seal of commit {number} is missing from the log")
            while rc == 0 and <uint64_t>len(found) < limit and key_of(&key) <= newest:
                if found and key_of(&key) != number + 1:
                    raise StoreCorrupt(f"the seal of commit {number + 1} is missing from the log")
                number = key_of(&key)
                if check_seal(number, &data):
                    raise StoreCorrupt(f"the seal of commit {number} is damaged")
                found.append((number, PyBytes_FromStringAndSize(<char*>data.at, data.size)))
                rc = lm.cursor_get(cursor, &key, &data, NEXT)
            if not found:
                number -= 1
            if <uint64_t>len(found) < limit and number < newest:
                raise StoreCorrupt(f"the seal of commit {number + 1} is missing from the log")
            return found
        finally:
            self.env.end_cursor(cursor)


cdef object unpack_seal(uint64_t number, bytes data):
    cdef const SealHead* seal = <const SealHead*><char*>data
    cdef size_t at = sizeof(SealHead) + sizeof(Receipt) * <size_t>seal.receipts_count
    cdef list notes = []
    cdef uint32_t i
    for i in range(seal.notes_count):
        size = int.from_bytes(data[at : at + 4], "little")
        notes.append(data[at + 4 : at + 4 + size])
        at += 4 + <size_t>size
    if at != <size_t>len(data):
        raise StoreCorrupt(f"the notes of commit {number} do not add up")
    return Commit(
        number,
        seal.first_seq,
        seal.count,
        seal.at_ns,
        PyBytes_FromStringAndSize(<char*>seal.chain, 32),
        seal.floor,
        seal.receipts_count,
        notes,
    )
