"""Reading the files of a store out of a process of its own, beside the node that writes them.

Backups and `verify` read by this. A read transaction lasts for one piece, some milliseconds: while
one stands, no page that was in use at its time is used again, and under load a file grows by a
hundred megabytes in the time that a whole copy takes, for good. So the tables are read while they
move; `edgenode/backup.py` says why that does no harm. Each piece is a run of items (`_item.pxd`),
of which every one was tested.

It never writes. LMDB keeps a place for this reader in `lock.mdb`; the node frees those of readers
that died (`_follow.pyx`).
"""

import struct
from pathlib import Path

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memset

from engine._commit cimport LogDbs, check_event, check_receipt, check_seal, key_of
from engine._fold cimport (
    DueKey,
    NameKey,
    TableDbs,
    check_cell,
    check_name,
    check_note,
    check_row,
    hour_of,
)
from engine._item cimport DONE, EVENT, NOTE, SEAL, TIMER, ItemHead, Table
from engine._lmdb cimport (
    FIRST,
    LAST,
    NEXT,
    NOTFOUND,
    SET_KEY,
    SET_RANGE,
    Dbi,
    Environment,
    Stat,
    Val,
    check,
    lm,
)
from engine._pages cimport goes_on
from engine._record cimport (
    DONE_SEED,
    DUE_SEED,
    STATE_SCHEDULED,
    Cell,
    Image,
    RowHead,
    SealHead,
    big_endian,
    big_endian_32,
)

from engine._follow import FORMAT_VERSION as TABLES_FORMAT
from engine._log import FORMAT_VERSION as LOG_FORMAT
from engine.errors import StoreCorrupt, StoreFailed
from engine.record import NO_STANDING, unpack_standing
from engine.store import LogEnds

cdef extern from "<fcntl.h>" nogil:
    int SYNC_FILE_RANGE_WAIT_BEFORE, SYNC_FILE_RANGE_WRITE, SYNC_FILE_RANGE_WAIT_AFTER
    int sync_file_range(int fd, int64_t offset, int64_t count, unsigned int flags)

cdef enum:
    NO_MEMORY = -2
    OVERTAKEN = -3          # what was to be read next has been trimmed meanwhile
    BAD = -4                # an item is damaged or missing; `bad` says which

TABLES = {"timers": TIMER, "done": DONE, "notes": NOTE}


class Overtaken(StoreFailed):
    """The log was trimmed past the place where a copy of it stood."""


def write_out(int fd, int64_t offset, int64_t count) -> None:
    """Have these bytes of a file be on their way to the disk, and wait for it.

    Not for durability, but so that no fsync of another file stands behind hundreds of megabytes.
    """
    cdef int rc
    with nogil:
        rc = sync_file_range(
            fd,
            offset,
            count,
            SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER,
        )
    if rc:
        raise OSError("sync_file_range was refused")


@cython.final
cdef class StoreFiles:
    """The store in `data_dir`, read only. Raises StoreFailed, StoreCorrupt, StoreTooNew."""

    cdef Environment log_env, tables_env
    cdef LogDbs log_dbs
    cdef TableDbs dbs
    cdef char* piece
    cdef size_t used, room
    cdef size_t count               # rows in the piece
    cdef uint8_t[16] last           # key of the newest row in the piece
    cdef Table bad_table
    cdef uint64_t bad_number
    cdef readonly int epoch

    def __cinit__(self, data_dir: Path):
        for name in ("log", "tables"):
            if not (data_dir / name / "data.mdb").is_file():
                raise StoreFailed(f"there is no store in {data_dir}; give --data")
        self.log_env = Environment(str(data_dir / "log"), 0, True)
        logs = self.log_env.open_dbs((b"meta", b"events", b"receipts", b"commits"), LOG_FORMAT)
        self.log_dbs.meta, self.log_dbs.events, self.log_dbs.receipts, self.log_dbs.commits = logs
        self.epoch = self.log_env.stamp(self.log_dbs.meta, LOG_FORMAT)
        self.tables_env = Environment(str(data_dir / "tables"), 0, True)
        names = (b"meta", b"timers", b"due", b"names", b"done", b"notes")
        found = self.tables_env.open_dbs(names, TABLES_FORMAT)
        self.dbs.meta, self.dbs.timers, self.dbs.due = found[:3]
        self.dbs.names, self.dbs.done, self.dbs.notes = found[3:]
        self.tables_env.stamp(self.dbs.meta, TABLES_FORMAT)

    def __dealloc__(self):
        free(self.piece)

    def close(self) -> None:
        """Let go of both files."""
        if self.log_env is not None:
            self.log_env.release()
        if self.tables_env is not None:
            self.tables_env.release()
        self.log_env = self.tables_env = None

    def check_pages(self) -> None:
        """Raise StoreCorrupt if pages of the files do not hold together; reads all of both."""
        self.log_env.check_pages(True)
        self.tables_env.check_pages(True)

    def standing(self):
        """How far the tables are: `record.Standing`. Raises StoreCorrupt."""
        found = self.tables_env.read(self.dbs.meta, b"standing")
        return NO_STANDING if found is None else unpack_standing(found)

    def ends(self):
        """What the log holds now."""
        cdef Val key, data
        cdef uint64_t[4] at
        cdef void* txn = self.log_env.begin_read()
        cdef int rc
        try:
            rc = self.ends_of(txn, self.log_dbs.events, &at[0])
            rc = rc or self.ends_of(txn, self.log_dbs.commits, &at[2])
            check(rc, "cannot read the log")
        finally:
            self.log_env.end_read()
        return LogEnds(at[0], at[1], at[2], at[3])

    cdef int ends_of(self, void* txn, Dbi dbi, uint64_t* at) except? -1:
        """The first and the last number in a table; 0 and 0 if it is empty."""
        cdef Val key, data
        cdef void* cursor
        cdef int rc = lm.cursor_open(txn, dbi, &cursor)
        at[0] = at[1] = 0
        if rc:
            return rc
        rc = lm.cursor_get(cursor, &key, &data, FIRST)
        if rc == 0:
            at[0] = key_of(&key)
            rc = lm.cursor_get(cursor, &key, &data, LAST)
            at[1] = key_of(&key)
        lm.cursor_close(cursor)
        return 0 if rc == NOTFOUND else rc

    def chain_of(self, uint64_t number) -> bytes:
        """The hash chain after a commit; b"" if its seal is not kept. Raises StoreCorrupt."""
        cdef Val key, data
        cdef uint64_t wanted = big_endian(number)
        cdef void* txn = self.log_env.begin_read()
        cdef int rc
        key.size, key.at = 8, &wanted
        try:
            rc = lm.get(txn, self.log_dbs.commits, &key, &data)
            if rc == NOTFOUND:
                return b""
            if rc == 0 and check_seal(number, &data):
                rc = self.found_bad(SEAL, number)
            self.raise_bad(rc)
            return PyBytes_FromStringAndSize(<char*>(<SealHead*>data.at).chain, 32)
        finally:
            self.log_env.end_read()

    def log_items(
        self, uint64_t number, uint64_t seq, uint64_t to_commit, uint64_t from_seq, size_t most
    ):
        """Some `most` bytes of items: each commit's seal, then its events.

        number, seq: the commit to go on with, and its event; 0 for its seal. from_seq: the oldest
        event of the copy. Returns the items, and (number, seq) to go on from.
        Raises Overtaken, StoreCorrupt.
        """
        cdef void* seals
        cdef void* events
        cdef int rc
        self.used = 0
        cdef void* txn = self.log_env.begin_read()
        try:
            with nogil:
                rc = lm.cursor_open(txn, self.log_dbs.commits, &seals)
                if rc == 0:
                    rc = lm.cursor_open(txn, self.log_dbs.events, &events)
                    if rc == 0:
                        while rc == 0 and number <= to_commit and self.used < most:
                            rc = self.gather_commit(seals, events, &number, &seq, from_seq, most)
                        lm.cursor_close(events)
                    lm.cursor_close(seals)
        finally:
            self.log_env.end_read()
        self.raise_bad(rc)
        return PyBytes_FromStringAndSize(self.piece, self.used), number, seq

    cdef int gather_commit(
        self, void* seals, void* events, uint64_t* number, uint64_t* seq, uint64_t from_seq,
        size_t most
    ) noexcept nogil:
        """Go on with the commit `number`, as far as there is room."""
        cdef Val key, data
        cdef uint64_t wanted = big_endian(number[0])
        cdef SealHead* seal
        cdef uint64_t end
        key.size, key.at = 8, &wanted
        cdef int rc = lm.cursor_get(seals, &key, &data, SET_KEY)
        if rc == NOTFOUND:
            return self.missing(seals, number[0], 0)
        if rc:
            return rc
        if check_seal(number[0], &data):
            return self.found_bad(SEAL, number[0])
        seal = <SealHead*>data.at
        end = seal.first_seq + seal.count
        if seq[0] == 0:
            rc = self.add(SEAL, &key, &data)
            seq[0] = max(seal.first_seq, from_seq)
        if rc == 0 and seq[0] < end:
            rc = self.gather_events(events, seq, end, most)
        if rc == 0 and seq[0] >= end:
            number[0] += 1
            seq[0] = 0
        return rc

    cdef int gather_events(
        self, void* events, uint64_t* seq, uint64_t end, size_t most
    ) noexcept nogil:
        cdef Val key, data
        cdef uint64_t wanted = big_endian(seq[0])
        key.size, key.at = 8, &wanted
        cdef int rc = lm.cursor_get(events, &key, &data, SET_KEY)
        while rc == 0:
            if key_of(&key) != seq[0]:
                return self.missing(events, seq[0], 1)
            if check_event(seq[0], &data):
                return self.found_bad(EVENT, seq[0])
            rc = self.add(EVENT, &key, &data)
            seq[0] += 1
            if seq[0] >= end or self.used >= most:
                return rc
            rc = rc or lm.cursor_get(events, &key, &data, NEXT)
        return self.missing(events, seq[0], 1) if rc == NOTFOUND else rc

    cdef int missing(self, void* cursor, uint64_t number, bint event) noexcept nogil:
        """Whether what is not there was trimmed since, or is lost."""
        cdef Val key, data
        if lm.cursor_get(cursor, &key, &data, FIRST) == 0 and key_of(&key) > number:
            return OVERTAKEN
        return self.found_bad(EVENT if event else SEAL, number)

    def rows(self, str table, bytes after not None, size_t most):
        """Some `most` bytes of items of one of TABLES, after the key `after`; how many those are,
        and the last key, b"" at the end. Raises StoreCorrupt."""
        cdef Val key, data
        cdef void* cursor
        cdef int rc
        cdef Table which = TABLES[table]
        cdef bint begun = len(after) > 0
        cdef Dbi dbi = self.dbs.timers
        if which != TIMER:
            dbi = self.dbs.done if which == DONE else self.dbs.notes
        cdef const void* before = NULL
        self.used = self.count = 0
        memset(self.last, 0, 16)
        memcpy(self.last, <char*>after, min(<size_t>16, <size_t>len(after)))
        key.size, key.at = 16, self.last
        cursor = self.tables_env.begin_cursor(dbi)
        try:
            with nogil:
                rc = lm.cursor_get(cursor, &key, &data, SET_RANGE if begun else FIRST)
                if rc == 0 and begun and key.size == 16 and not memcmp(key.at, self.last, 16):
                    rc = lm.cursor_get(cursor, &key, &data, NEXT)
                while rc == 0 and self.used < most:
                    rc = self.add_row(which, before, &key, &data)
                    before = key.at
                    rc = rc or lm.cursor_get(cursor, &key, &data, NEXT)
        finally:
            self.tables_env.end_cursor(cursor)
        self.raise_bad(0 if rc == NOTFOUND else rc)
        items = PyBytes_FromStringAndSize(self.piece, self.used)
        last = b"" if rc == NOTFOUND else PyBytes_FromStringAndSize(<char*>self.last, 16)
        return items, self.count, last

    cdef int add_row(
        self, Table which, const void* before, const Val* key, const Val* data
    ) noexcept nogil:
        cdef int wrong = -1
        if key.size == 16:
            if which == TIMER:
                wrong = check_row(key.at, data)
            elif which == DONE:
                wrong = check_cell(DONE_SEED, key, data)
            else:
                wrong = check_note(key, data)
        if wrong or not goes_on(before, key, self.tables_env.page_bytes):
            return self.found_bad(which, 0)
        memcpy(self.last, key.at, 16)
        self.count += 1
        return self.add(which, key, data)

    cdef int add(self, Table which, const Val* key, const Val* data) noexcept nogil:
        cdef ItemHead head
        cdef size_t wanted = self.used + sizeof(ItemHead) + key.size + data.size
        cdef char* at
        if wanted > self.room:
            at = <char*>realloc(self.piece, wanted + wanted // 2)
            if at is NULL:
                return NO_MEMORY
            self.piece, self.room = at, wanted + wanted // 2
        head.table, head.key_bytes, head.reserved = which, key.size, 0
        head.value_bytes = data.size
        at = self.piece + self.used
        memcpy(at, &head, sizeof(ItemHead))
        memcpy(at + sizeof(ItemHead), key.at, key.size)
        memcpy(at + sizeof(ItemHead) + key.size, data.at, data.size)
        self.used = wanted
        return 0

    cdef int found_bad(self, Table which, uint64_t number) noexcept nogil:
        self.bad_table, self.bad_number = which, number
        return BAD

    cdef int raise_bad(self, int rc) except -1:
        if rc == 0:
            return 0
        if rc == NO_MEMORY:
            raise MemoryError
        if rc == OVERTAKEN:
            raise Overtaken("the log was trimmed faster than it was read; try again")
        if rc != BAD:
            check(rc, "cannot read the store")
        if self.bad_table == EVENT:
            raise StoreCorrupt(
                f"event {self.bad_number} is damaged or missing; restore from a backup"
            )
        if self.bad_table == SEAL:
            raise StoreCorrupt(
                f"the seal of commit {self.bad_number} is damaged or missing; restore from a backup"
            )
        names = {number: name for name, number in TABLES.items()}
        raise StoreCorrupt(
            f"a row of the table {names[self.bad_table]} is damaged; restore from a backup"
        )

    def check_receipts(self, pairs: bytes) -> list[int]:
        """The seqs of those packed (seq, fired_ns) pairs that the receipts do not hold so."""
        cdef Val key, data
        cdef uint64_t wanted
        cdef int rc
        cdef list differ = []
        cdef void* txn = self.log_env.begin_read()
        try:
            for seq, fired_ns in struct.iter_unpack("<Qq", pairs):
                wanted = big_endian(<uint64_t>seq)
                key.size, key.at = 8, &wanted
                rc = lm.get(txn, self.log_dbs.receipts, &key, &data)
                if rc or check_receipt(&key, &data) or <int64_t>(<Cell*>data.at).value != fired_ns:
                    differ.append(seq)
        finally:
            self.log_env.end_read()
        return differ

    def first_receipt(self) -> int:
        """The oldest event whose receipt is kept, 0 if there is none: the head of the receipts is
        trimmed ahead of that of the events."""
        cdef uint64_t[2] at
        cdef void* txn = self.log_env.begin_read()
        try:
            check(self.ends_of(txn, self.log_dbs.receipts, at), "cannot read the receipts")
        finally:
            self.log_env.end_read()
        return at[0]

    def count_receipts(self, uint64_t from_seq) -> int:
        """How many receipts from `from_seq` on are kept, each tested. Raises StoreCorrupt."""
        cdef Val key, data
        cdef uint64_t wanted = big_endian(from_seq), count = 0
        cdef int rc
        key.size, key.at = 8, &wanted
        cdef void* cursor = self.log_env.begin_cursor(self.log_dbs.receipts)
        try:
            rc = lm.cursor_get(cursor, &key, &data, SET_RANGE)
            while rc == 0:
                if check_receipt(&key, &data):
                    raise StoreCorrupt(f"the receipt of event {key_of(&key)} is damaged")
                count += 1
                rc = lm.cursor_get(cursor, &key, &data, NEXT)
            if rc != NOTFOUND:
                check(rc, "cannot read the receipts")
        finally:
            self.log_env.end_cursor(cursor)
        return count

    def check_indexes(self) -> tuple[int, int]:
        """Compare the due index and the names with the timers; how many entries they have.

        Raises StoreCorrupt at the first timer whose entry is missing or differs, or when there are
        entries of no timer. One transaction: for a store that nobody writes.
        """
        cdef Val key, data
        cdef Image* image
        cdef Stat dues, names
        cdef uint64_t due_count = 0, name_count = 0
        cdef void* cursor = self.tables_env.begin_cursor(self.dbs.timers)
        cdef void* txn = self.tables_env.reader
        try:
            rc = lm.cursor_get(cursor, &key, &data, FIRST)
            while rc == 0:
                image = <Image*>(<char*>data.at + sizeof(RowHead))
                if image.state == STATE_SCHEDULED and image.due_ns:
                    due_count += 1
                    if not self.due_is_there(txn, image):
                        raise StoreCorrupt(f"the due row of timer {id_of(image)} is missing; reindex")
                if image.name_hash:
                    name_count += 1
                    if not self.name_is_there(txn, image):
                        raise StoreCorrupt(
                            f"the name row of timer {id_of(image)} is missing; reindex"
                        )
                rc = lm.cursor_get(cursor, &key, &data, NEXT)
            if rc != NOTFOUND:
                check(rc, "cannot read the timers")
            lm.stat(txn, self.dbs.due, &dues)
            lm.stat(txn, self.dbs.names, &names)
        finally:
            self.tables_env.end_cursor(cursor)
        if (dues.entries, names.entries) != (due_count, name_count):
            raise StoreCorrupt(
                f"the indexes hold {dues.entries} dues and {names.entries} names; the timers have "
                f"{due_count} and {name_count}; reindex"
            )
        return due_count, name_count

    cdef bint due_is_there(self, void* txn, const Image* image) noexcept nogil:
        cdef DueKey wanted
        cdef Val key, data
        wanted.scale, wanted.hour = image.scale, big_endian_32(hour_of(image.due_ns))
        memcpy(wanted.id, &image.id, 16)
        key.size, key.at = sizeof(DueKey), &wanted
        if lm.get(txn, self.dbs.due, &key, &data) or check_cell(DUE_SEED, &key, &data):
            return False
        return <int64_t>(<Cell*>data.at).value == image.due_ns

    cdef bint name_is_there(self, void* txn, const Image* image) noexcept nogil:
        cdef NameKey wanted
        cdef Val key, data
        wanted.hash = big_endian(image.name_hash)
        memcpy(wanted.id, &image.id, 16)
        key.size, key.at = sizeof(NameKey), &wanted
        return lm.get(txn, self.dbs.names, &key, &data) == 0 and check_name(&key, &data) == 0


cdef str id_of(const Image* image):
    return PyBytes_FromStringAndSize(<char*>image.id, 16).hex()
