"""Writing the files of a store from items (`_item.pxd`): the way back from a backup.

Into new files, or behind the end of a log, piece by piece, each piece a transaction. Nothing is judged here: what is fed
was replayed by `_audit.pyx` before. Until `StoreLoader.finish` has said how far the tables are, the
files are no store that a node would start from.
"""

from pathlib import Path

cimport cython

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from engine._commit cimport Job, LogDbs, key_of, trim
from engine._crc cimport crc32
from engine._fold cimport TableDbs
from engine._item cimport DONE, EVENT, NOTE, SEAL, TIMER, Table, next_item
from engine._lmdb cimport APPEND, Dbi, Environment, Val, error_of, lm
from engine._record cimport RECEIPT_SEED, Cell, Receipt, SealHead, big_endian

from engine._follow import FORMAT_VERSION as TABLES_FORMAT
from engine._log import FORMAT_VERSION as LOG_FORMAT
from engine.errors import StoreCorrupt
from engine.record import pack_standing

cdef enum:
    NO_ITEM = -2


def last_seal(const unsigned char[::1] items) -> int:
    """Where the last seal among whole items begins: what is before it are whole commits. 0 if
    there is none behind the first item."""
    cdef Val key, data
    cdef const char* begin
    cdef const char* at
    cdef const char* item
    cdef size_t found = 0
    if items.shape[0] == 0:
        return 0
    at = begin = <const char*>&items[0]
    while True:
        item = at
        table = next_item(&at, begin + items.shape[0], &key, &data)
        if not table:
            return found
        if table == SEAL:
            found = item - begin


def behind_commit(const unsigned char[::1] items, uint64_t number) -> int:
    """Where the first seal of a commit above `number` begins; the end of the items if none is."""
    cdef Val key, data
    cdef const char* begin
    cdef const char* at
    cdef const char* item
    if items.shape[0] == 0:
        return 0
    at = begin = <const char*>&items[0]
    while True:
        item = at
        table = next_item(&at, begin + items.shape[0], &key, &data)
        if not table or (table == SEAL and key_of(&key) > number):
            return item - begin


@cython.final
cdef class StoreLoader:
    """The files in `data_dir`/log and `data_dir`/tables, which must exist and be empty, or with
    `longer` be a store whose log becomes longer.

    epoch: of a new log. from_seq: its oldest event; receipts of older ones are left out.
    Raises StoreFull, StoreFailed.
    """

    cdef Environment log_env, tables_env
    cdef LogDbs log_dbs
    cdef TableDbs dbs
    cdef uint64_t from_seq, last_receipt

    def __cinit__(self, data_dir: Path, int epoch, uint64_t from_seq, *, bint longer=False):
        self.from_seq = from_seq
        self.last_receipt = ~<uint64_t>0 if longer else 0  # the newest, and so not known
        self.log_env = Environment(str(data_dir / "log"))
        logs = self.log_env.open_dbs((b"meta", b"events", b"receipts", b"commits"), LOG_FORMAT)
        self.log_dbs.meta, self.log_dbs.events, self.log_dbs.receipts, self.log_dbs.commits = logs
        if longer:
            self.log_env.stamp(self.log_dbs.meta, LOG_FORMAT)
        else:
            self.log_env.write_stamp(self.log_dbs.meta, LOG_FORMAT, epoch)
        self.tables_env = Environment(str(data_dir / "tables"))
        names = (b"meta", b"timers", b"due", b"names", b"done", b"notes")
        found = self.tables_env.open_dbs(names, TABLES_FORMAT)
        self.dbs.meta, self.dbs.timers, self.dbs.due = found[:3]
        self.dbs.names, self.dbs.done, self.dbs.notes = found[3:]

    def load(self, const unsigned char[::1] items) -> None:
        """Write items, all of the log or all of the tables, in the order of their keys."""
        if items.shape[0] == 0:
            return
        cdef const char* at = <const char*>&items[0]
        cdef const char* end = at + items.shape[0]
        cdef bint of_log = at[0] in (<int>EVENT, <int>SEAL)
        cdef Environment env = self.log_env if of_log else self.tables_env
        cdef void* txn
        cdef int rc
        with nogil:
            rc = lm.txn_begin(env.env, NULL, 0, &txn)
            if rc == 0:
                while rc == 0 and at < end:
                    rc = self.put(txn, &at, end)
                if rc:
                    lm.txn_abort(txn)
                else:
                    rc = lm.txn_commit(txn)
        if rc == NO_ITEM:
            raise StoreCorrupt("what is to be restored is no run of items")
        if rc:
            raise error_of(env.fd, rc, f"cannot write {env.path}")

    def trim(self, uint64_t below) -> None:
        """Delete the events below a seq, their receipts and seals."""
        cdef Job job
        cdef void* txn
        cdef uint64_t before = 0
        cdef int rc = 0
        memset(&job, 0, sizeof(Job))
        job.trim_below, job.trimmed_to = below, 1
        while rc == 0 and before != job.trimmed_to < below:
            before = job.trimmed_to
            with nogil:
                rc = lm.txn_begin(self.log_env.env, NULL, 0, &txn)
                if rc == 0:
                    rc = trim(txn, &self.log_dbs, &job)
                    if rc:
                        lm.txn_abort(txn)
                    else:
                        rc = lm.txn_commit(txn)
        if rc:
            raise error_of(self.log_env.fd, rc, f"cannot trim {self.log_env.path}")

    def finish(self, standing) -> None:
        """Say how far the tables are, which makes the files a store; then close them."""
        self.tables_env.write(self.dbs.meta, b"standing", pack_standing(standing))
        self.close()

    def close(self) -> None:
        """Let go of both files."""
        if self.log_env is not None:
            self.log_env.release()
        if self.tables_env is not None:
            self.tables_env.release()
        self.log_env = self.tables_env = None

    cdef int put(self, void* txn, const char** at, const char* end) noexcept nogil:
        cdef Val key, data
        cdef Dbi dbi
        cdef int rc
        cdef Table table = next_item(at, end, &key, &data)
        if table == EVENT:
            dbi = self.log_dbs.events
        elif table == SEAL:
            dbi = self.log_dbs.commits
        elif table == TIMER:
            dbi = self.dbs.timers
        elif table == DONE:
            dbi = self.dbs.done
        elif table == NOTE:
            dbi = self.dbs.notes
        else:
            return NO_ITEM
        rc = lm.put(txn, dbi, &key, &data, APPEND)
        if rc == 0 and table == SEAL:
            rc = self.put_receipts(txn, <SealHead*>data.at)
        return rc

    cdef int put_receipts(self, void* txn, const SealHead* seal) noexcept nogil:
        """The receipts of events that are kept; of two of one event the later one counts."""
        cdef const Receipt* receipts = <const Receipt*>(<char*>seal + sizeof(SealHead))
        cdef Val key, data
        cdef uint64_t seq
        cdef Cell cell
        cdef uint32_t i
        cdef int rc = 0
        key.size, key.at = 8, &seq
        data.size, data.at = sizeof(Cell), &cell
        for i in range(seal.receipts_count):
            if receipts[i].seq < self.from_seq:
                continue
            seq = big_endian(receipts[i].seq)
            cell.value = <uint64_t>receipts[i].fired_ns
            cell.crc = crc32(crc32(RECEIPT_SEED, &seq, 8), &cell.value, 8)
            rc = lm.put(
                txn, self.log_dbs.receipts, &key, &data,
                APPEND if receipts[i].seq > self.last_receipt else 0,
            )
            if rc:
                break
            self.last_receipt = max(self.last_receipt, receipts[i].seq)
        return rc
