"""The tables: an LMDB environment that follows the log; how they are read.

They are written by the thread of `_follow.pyx`, in slices. Each read is one short transaction on
the newest slice, by the caller's thread; everything is copied out before it ends.

# If you change a layout here, raise FORMAT_VERSION, keep the old reader, add a fixture.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from engine._fold cimport (
    DueKey,
    NameKey,
    TableDbs,
    check_cell,
    check_name,
    check_note,
    check_row,
)
from engine._follow cimport Follower
from engine._lmdb cimport (
    LAST,
    NEXT,
    NOTFOUND,
    PREV,
    SET_RANGE,
    Dbi,
    Environment,
    Val,
    check,
    lm,
)
from engine._log cimport LmdbLog
from engine._pages cimport goes_on
from engine._record cimport DONE_SEED, DUE_SEED, Cell, big_endian
from engine._scan cimport (
    DueList,
    Found,
    RowFilter,
    due_begin,
    fill_filter,
    gather_due,
    scan_rows,
)

from engine.errors import StoreCorrupt

SLICE_ENTRIES = 65_536
SLICE_AGE_NS = 5_000_000_000
LOOK_EVERY_NS = 3_600_000_000_000

cdef enum:
    LOOKED_MAX = 65_536     # rows that scans may look at before the file's pages are let go


@cython.final
cdef class LmdbTables:
    """`Tables` and `TablesReader` over LMDB in the directory `path`, behind `log`.

    slice_entries, slice_age_ns: when a slice is made. map_bytes: address space, 0 for 1 TiB.
    look_every_ns: how often the pages of both files are looked at.
    Raises StoreFull, StoreFailed, StoreCorrupt, StoreTooNew.
    """

    cdef Follower follower
    cdef Environment env
    cdef TableDbs dbs
    cdef uint64_t looked    # at rows, at most, since the pages were let go

    def __cinit__(
        self,
        path: str,
        LmdbLog log not None,
        *,
        uint64_t slice_entries = SLICE_ENTRIES,
        int64_t slice_age_ns = SLICE_AGE_NS,
        size_t map_bytes = 0,
        int64_t look_every_ns = LOOK_EVERY_NS,
    ):
        self.follower = Follower(path, log, slice_entries, slice_age_ns, map_bytes, look_every_ns)
        self.env, self.dbs = self.follower.env, self.follower.dbs

    def applied(self):
        """See `store.Tables`. Raises StoreFailed, StoreFull, StoreCorrupt, StoreTooNew."""
        return self.follower.applied()

    def follow(self, uint64_t last_seq, uint64_t commit, *, bint now = False) -> None:
        """See `store.Tables`."""
        self.follower.follow(last_seq, commit, now)

    def fileno(self) -> int:
        """See `store.Tables`."""
        return self.follower.event_fd

    def expire(self, uint64_t trim_below, int64_t notes_before_ns) -> int:
        """See `store.Tables`. A call that finds work costs one commit: make it a rare one."""
        return self.follower.expire(trim_below, notes_before_ns)

    def close(self) -> None:
        """See `store.Tables`."""
        self.follower.close()

    @property
    def lost(self) -> int:
        """Timers that a rebuild could not make a row for, at most: their definition was trimmed."""
        return self.follower.fold.lost

    def reindex(self) -> None:
        """Make the due and names indexes anew, from the rows. Raises StoreCorrupt at a bad row."""
        self.follower.reindex()

    def restart(self, uint64_t seq, uint64_t commit, state) -> None:
        """Empty the tables, to follow the log anew from behind (seq, commit); see `files.py`."""
        self.follower.restart(seq, commit, state)

    # Reading.

    def row(self, bytes id not None) -> bytes | None:
        """See `store.TablesReader`."""
        found = self.env.read(self.dbs.timers, id)
        if found is None:
            self.check_around(self.dbs.timers, id)
        return found

    def done(self, bytes id not None) -> int:
        """See `store.TablesReader`."""
        if self.env.read(self.dbs.timers, id) is not None:
            return 0
        cdef Val key, data
        key.size, key.at = len(id), <char*>id
        cdef void* cursor = self.env.begin_cursor(self.dbs.done)
        try:
            if self.env.find(cursor, &key, &data):
                if check_cell(DONE_SEED, &key, &data):
                    raise StoreCorrupt(f"the row of the finished timer {id.hex()} is damaged")
                return (<Cell*>data.at).value
        finally:
            self.env.end_cursor(cursor)
        self.check_around(self.dbs.timers, id)
        self.check_around(self.dbs.done, id)
        return 0

    def named(self, uint64_t name_hash) -> list[bytes]:
        """See `store.TablesReader`."""
        cdef Val key, data
        cdef list found = []
        cdef NameKey begin
        cdef const void* before = NULL
        cdef int rc
        memset(&begin, 0, sizeof(NameKey))
        begin.hash = big_endian(name_hash)
        self.check_around(self.dbs.names, PyBytes_FromStringAndSize(<char*>&begin, sizeof(NameKey)))
        key.size, key.at = sizeof(NameKey), &begin
        cdef void* cursor = self.env.begin_cursor(self.dbs.names)
        try:
            rc = lm.cursor_get(cursor, &key, &data, SET_RANGE)
            while rc == 0:
                if check_name(&key, &data) or not goes_on(before, &key, self.env.page_bytes):
                    raise StoreCorrupt("a row of the names index is damaged; rebuild the due index")
                if (<NameKey*>key.at).hash != begin.hash:
                    return found
                found.append(PyBytes_FromStringAndSize(<char*>(<NameKey*>key.at).id, 16))
                before = key.at
                rc = lm.cursor_get(cursor, &key, &data, NEXT)
            if rc != NOTFOUND:
                check(rc, "cannot read the names")
            return found
        finally:
            self.env.end_cursor(cursor)

    def due(
        self,
        uint8_t scale,
        int64_t from_ns,
        int64_t to_ns,
        bytes after not None=b"",
        uint64_t budget=0,
    ) -> tuple[bytes, bytes, bytes]:
        """See `store.TablesReader`. The GIL is free meanwhile; 10 M entries/s."""
        cdef DueList found
        cdef int rc
        cdef bint past = len(after) > 0
        cdef DueKey begin = due_begin(scale, from_ns)
        if past:
            assert len(after) == sizeof(DueKey), "not a key of the due index"
            memcpy(&begin, PyBytes_AS_STRING(after), sizeof(DueKey))
        self.check_around(self.dbs.due, PyBytes_FromStringAndSize(<char*>&begin, sizeof(DueKey)))
        memset(&found, 0, sizeof(DueList))
        cdef void* cursor = self.env.begin_cursor(self.dbs.due)
        try:
            with nogil:
                rc = gather_due(
                    cursor, &begin, past, from_ns, to_ns, budget, self.env.page_bytes, &found
                )
            if rc == -1:
                raise MemoryError
            check(rc, "cannot read the due index")
            if found.damaged:
                raise StoreCorrupt("a row of the due index is damaged; rebuild the due index")
            last = PyBytes_FromStringAndSize(<char*>&found.last, sizeof(DueKey))
            return (*columns(&found), b"" if found.at_end else last)
        finally:
            self.env.end_cursor(cursor)
            free(found.at)

    def scan(self, filter, bytes after_id not None, size_t limit, uint64_t budget):
        """See `store.TablesReader`. The GIL is free meanwhile."""
        cdef RowFilter wanted
        cdef Found found
        cdef int rc
        cdef const char* after = PyBytes_AS_STRING(after_id) if after_id else NULL
        assert limit > 0 and budget > 0, "a scan looks at one row at least"
        assert len(after_id) in (0, 16), "an id is 16 bytes"
        fill_filter(&wanted, filter)
        if after is not NULL:
            self.check_around(self.dbs.timers, after_id)
        cdef void* cursor = self.env.begin_cursor(self.dbs.timers)
        found.rows = <Val*>malloc(min(limit, budget) * sizeof(Val))
        try:
            if found.rows is NULL:
                raise MemoryError
            with nogil:
                rc = scan_rows(
                    cursor, &wanted, after, budget, limit, self.env.page_bytes, &found
                )
            check(rc, "cannot read the timers")
            last = PyBytes_FromStringAndSize(<char*>found.last, 16)
            if found.damaged:
                raise StoreCorrupt(
                    f"the row of timer {last.hex()} does not agree with its checksum or its place"
                )
            return rows_of(&found), b"" if found.at_end else last
        finally:
            self.env.end_cursor(cursor)
            free(found.rows)
            self.looked += min(budget, <uint64_t>LOOKED_MAX)
            if self.looked >= <uint64_t>LOOKED_MAX:
                # Or a scan of everything makes the whole file count as this process's memory.
                self.looked = 0
                self.env.drop_pages()

    def note(self, bytes key not None) -> bytes | None:
        """See `store.TablesReader`."""
        found = self.env.read(self.dbs.notes, key)
        if found is None:
            self.check_around(self.dbs.notes, key)
        return found

    cdef int check_around(self, Dbi dbi, bytes missed) except -1:
        """Raise StoreCorrupt if one of the two rows beside the place of a key is damaged, or does
        not belong there.

        A flipped bit of a key leaves its row where it was, so it is beside the place it is missed
        at: this is how a damaged key is told from one that was never there. Pages above the rows
        hold keys too, without a checksum; where one of those is damaged the search ends in the
        wrong page, and what it finds there is not above, or what is before it not below. And a
        page may not list all of its rows.
        """
        cdef Val key, data
        cdef int rc, bad = 0
        cdef size_t size = len(missed)
        cdef const char* at = missed
        key.size, key.at = size, <char*>at
        cdef void* cursor = self.env.begin_cursor(dbi)
        rc = lm.cursor_get(cursor, &key, &data, SET_RANGE)
        if rc == 0:
            bad = self.check_one(dbi, &key, &data)
            bad = bad or key.size != size or memcmp(at, key.at, size) > 0
            bad = bad or not goes_on(NULL, &key, self.env.page_bytes)
            if bad == 0 and memcmp(at, key.at, size) == 0:
                # It is there, and it may have come after it was missed; a search has to find it.
                bad = lm.get(self.env.reader, dbi, &key, &data)
            rc = lm.cursor_get(cursor, &key, &data, PREV)
        elif rc == NOTFOUND:
            rc = lm.cursor_get(cursor, &key, &data, LAST)
        if rc == 0:
            bad = bad or self.check_one(dbi, &key, &data)
            bad = bad or key.size != size or memcmp(key.at, at, size) >= 0
            bad = bad or not goes_on(NULL, &key, self.env.page_bytes)
        self.env.end_cursor(cursor)
        if bad or rc not in (0, NOTFOUND):
            raise StoreCorrupt(f"a row of the tables beside the key {missed.hex()} is damaged")
        return 0

    cdef int check_one(self, Dbi dbi, const Val* key, const Val* data) noexcept nogil:
        if dbi == self.dbs.timers:
            return -1 if key.size != 16 else check_row(key.at, data)
        if dbi == self.dbs.notes:
            return check_note(key, data)
        if dbi == self.dbs.names:
            return check_name(key, data)
        return check_cell(DONE_SEED if dbi == self.dbs.done else DUE_SEED, key, data)


cdef list rows_of(const Found* found):
    cdef size_t i
    return [
        PyBytes_FromStringAndSize(<char*>found.rows[i].at, found.rows[i].size)
        for i in range(found.count)
    ]


cdef tuple columns(const DueList* list):
    """The ids in one piece and the dues in another."""
    cdef bytes ids = PyBytes_FromStringAndSize(NULL, list.count * 16)
    cdef bytes dues = PyBytes_FromStringAndSize(NULL, list.count * 8)
    cdef char* id = PyBytes_AS_STRING(ids)
    cdef char* due = PyBytes_AS_STRING(dues)
    cdef uint64_t[2] halves
    cdef size_t i
    for i in range(list.count):
        halves[0] = big_endian(list.at[i].id_high)
        halves[1] = big_endian(list.at[i].id_low)
        memcpy(id + 16 * i, halves, 16)
        memcpy(due + 8 * i, &list.at[i].due_ns, 8)
    return ids, dues
