"""Folding a slice into the tables: one transaction, each table in the order of its keys.

A timer's row is the image of its newest event and the newest definition; so however many events a
timer has in a slice, it costs one write, and one that was born and finished inside the slice costs
only its `done` row. Index rows change only where the due instant or the name did.

That the rows come in the order of their keys is the whole point: each page is met once, and what is
new at the end of a table is appended to full pages.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, qsort, realloc
from libc.string cimport memcmp, memcpy, memset

from engine._border cimport Shape, split_at_border
from engine._crc cimport crc32
from engine._lmdb cimport (
    APPEND,
    FIRST,
    KEYEXIST,
    LAST,
    NEXT,
    NOOVERWRITE,
    NOTFOUND,
    RESERVE,
    SET,
    SET_KEY,
    Dbi,
    Stat,
    Val,
    lm,
)
from engine._record cimport (
    DONE_SEED,
    DUE_SEED,
    FLAG_BLOB,
    KIND_LATE,
    KIND_SCHEDULED,
    META_SEED,
    NAME_SEED,
    NOTE_SEED,
    RECORD_VERSION,
    ROW_SEED,
    STATE_PAUSED,
    STATE_SCHEDULED,
    BlobHead,
    Cell,
    EventHead,
    Image,
    NoteHead,
    RowHead,
    big_endian,
    big_endian_32,
)
from engine._slice cimport (
    DUE_MISSING,
    NAME_MISSING,
    NO_MEMORY,
    NOTE_DAMAGED,
    ROW_DAMAGED,
    ROW_MISSING,
    TABLES_UNWRITABLE,
    Entry,
    Fault,
    NoteEntry,
    Slice,
    Wrong,
    grow,
    slice_event,
    wrong,
)

cdef enum:
    IMAGE_END = 112         # of an event: sizeof(EventHead) + sizeof(Image)
    ROW_IMAGE_END = 80      # of a row
    DUE_PREFIX = 5          # scale and hour of a DueKey: its group in the index
    NAME_PREFIX = 8         # hash of a NameKey

cdef int64_t HOUR_NS = 3600 * 1_000_000_000


cdef uint32_t hour_of(int64_t due_ns) noexcept nogil:
    """The hour that the due index files an instant under."""
    return <uint32_t>(due_ns // HOUR_NS) if due_ns > 0 else 0


cdef int check_row(const void* id, const Val* data) noexcept nogil:
    """0 if `data` is the whole row of the timer `id`, -1 otherwise."""
    cdef const RowHead* head = <const RowHead*>data.at
    if data.size < ROW_IMAGE_END + sizeof(BlobHead):
        return -1
    if head.crc != crc32(ROW_SEED, <char*>data.at + 4, data.size - 4):
        return -1
    return -1 if memcmp(<char*>data.at + sizeof(RowHead), id, 16) else 0


cdef int check_cell(uint32_t seed, const Val* key, const Val* data) noexcept nogil:
    """0 if `data` is the Cell that was stored under `key`, -1 otherwise."""
    cdef const Cell* cell = <const Cell*>data.at
    if data.size != sizeof(Cell):
        return -1
    return 0 if cell.crc == crc32(crc32(seed, key.at, key.size), &cell.value, 8) else -1


cdef int check_due(const Val* key, const Val* data) noexcept nogil:
    return check_cell(DUE_SEED, key, data)


cdef int check_name(const Val* key, const Val* data) noexcept nogil:
    """0 if this is a whole row of the names index, -1 otherwise."""
    cdef uint32_t crc = crc32(NAME_SEED, key.at, key.size)
    return 0 if data.size == 4 and memcmp(data.at, &crc, 4) == 0 else -1


cdef int check_note(const Val* key, const Val* data) noexcept nogil:
    """0 if `data` is the whole note that belongs under `key`, -1 otherwise."""
    cdef const NoteHead* head = <const NoteHead*>data.at
    if data.size < sizeof(NoteHead) or key.size != 16 or memcmp(key.at, head.key, 16):
        return -1
    return 0 if head.crc == crc32(NOTE_SEED, <char*>data.at + 4, data.size - 4) else -1


cdef void seal_cell(uint32_t seed, const Val* key, Cell* cell, uint64_t value) noexcept nogil:
    cell.value = value
    cell.crc = crc32(crc32(seed, key.at, key.size), &cell.value, 8)


cdef int check_standing(const Val* data) noexcept nogil:
    cdef const Standing* standing = <const Standing*>data.at
    if data.size != sizeof(Standing):
        return -1
    if standing.crc != crc32(META_SEED, <char*>data.at + 4, sizeof(Standing) - 4):
        return -1
    return 0


cdef int put_standing(Fold* fold, Standing* standing) noexcept nogil:
    """Write how far the tables are, last, in the same transaction; LMDB's error number."""
    cdef Val key, data
    cdef Stat stat
    cdef int rc = lm.stat(fold.txn, fold.dbs.timers, &stat)
    standing.live_count = stat.entries
    rc = rc or lm.stat(fold.txn, fold.dbs.notes, &stat)
    standing.notes_count = stat.entries
    standing.version = RECORD_VERSION
    standing.crc = crc32(META_SEED, <char*>standing + 4, sizeof(Standing) - 4)
    key.size, key.at = 8, <char*>b"standing"
    data.size, data.at = sizeof(Standing), standing
    return rc or lm.put(fold.txn, fold.dbs.meta, &key, &data, 0)


cdef int of_timer(Fault* fault, Wrong what, const void* id) noexcept nogil:
    memcpy(fault.id, id, 16)
    return wrong(fault, what, 0, 0)


cdef int unwritable(Fault* fault, int rc) noexcept nogil:
    return wrong(fault, TABLES_UNWRITABLE, rc, 0) if rc else 0


cdef int fold_slice(Fold* fold, Slice* piece, Fault* fault) noexcept nogil:
    """Write a sorted slice; 0, or -1 and the fault. The caller commits or aborts."""
    cdef Val key, data
    cdef size_t first = 0, after
    cdef int rc = lm.cursor_open(fold.txn, fold.dbs.timers, &fold.timers)
    rc = rc or lm.cursor_open(fold.txn, fold.dbs.done, &fold.done)
    if rc:
        return unwritable(fault, rc)
    fold.due.count = fold.names.count = 0
    fold.last_high = fold.last_low = 0
    if lm.cursor_get(fold.timers, &key, &data, LAST) == 0 and key.size == 16:
        memcpy(&fold.last_high, key.at, 8)
        memcpy(&fold.last_low, <char*>key.at + 8, 8)
        fold.last_high, fold.last_low = big_endian(fold.last_high), big_endian(fold.last_low)
    while rc == 0 and first < piece.entries_count:
        after = first + 1
        while after < piece.entries_count and same_timer(
            &piece.entries[first], &piece.entries[after]
        ):
            after += 1
        rc = fold_timer(fold, piece, first, after, fault)
        first = after
    lm.cursor_close(fold.timers)
    lm.cursor_close(fold.done)
    rc = rc or put_due(fold, fault)
    rc = rc or put_names(fold, fault)
    return rc or put_notes(fold, piece, fault)


cdef bint same_timer(const Entry* a, const Entry* b) noexcept nogil:
    return a.id_low == b.id_low and a.id_high == b.id_high


cdef int fold_timer(
    Fold* fold, Slice* piece, size_t first, size_t after, Fault* fault
) noexcept nogil:
    """The events [first, after) of the slice are one timer's, in order."""
    cdef size_t size, i
    cdef EventHead* born = slice_event(piece, piece.entries[first].at, &size)
    cdef EventHead* newest = slice_event(piece, piece.entries[after - 1].at, &size)
    cdef EventHead* head
    cdef Image* image = <Image*>(<char*>newest + sizeof(EventHead))
    cdef const char* blob = NULL
    cdef size_t blob_bytes = 0
    cdef bint finished = image.state > STATE_PAUSED
    for i in range(after - first):
        head = slice_event(piece, piece.entries[after - 1 - i].at, &size)
        if head.flags & FLAG_BLOB:
            blob, blob_bytes = <char*>head + IMAGE_END, size - IMAGE_END
            break
    cdef int rc
    if born.kind == KIND_SCHEDULED:
        if finished and not fold.lenient:
            return put_done(fold, image, fault)
        rc = KEYEXIST if finished else put_row(fold, image, blob, blob_bytes, NOOVERWRITE, fault)
        if rc == 0:
            return index(fold, NULL, image, fault)
        if rc != KEYEXIST:
            return rc
    rc = read_old(fold, image.id, fault)
    if rc == NOTFOUND and finished and born.kind == KIND_LATE:
        return put_done(fold, image, fault)
    if rc == NOTFOUND and fold.lenient:
        return fold_orphan(fold, image, blob, blob_bytes, fault)
    if rc:
        return of_timer(fault, ROW_MISSING, image.id) if rc == NOTFOUND else rc
    if index(fold, <Image*>(fold.old + sizeof(RowHead)), NULL if finished else image, fault):
        return -1
    if finished:
        rc = unwritable(fault, lm.cursor_del(fold.timers, 0))
        return rc or put_done(fold, image, fault)
    if blob is NULL:
        blob, blob_bytes = fold.old + ROW_IMAGE_END, fold.old_bytes - ROW_IMAGE_END
    return put_row(fold, image, blob, blob_bytes, 0, fault)


cdef int fold_orphan(
    Fold* fold, Image* image, const char* blob, size_t blob_bytes, Fault* fault
) noexcept nogil:
    """In a rebuild, a timer whose first events were trimmed: kept if its definition is left."""
    if image.state > STATE_PAUSED:
        return put_done(fold, image, fault)
    if blob is NULL:
        fold.lost += 1
        return 0
    return put_row(fold, image, blob, blob_bytes, 0, fault) or index(fold, NULL, image, fault)


cdef int read_old(Fold* fold, const void* id, Fault* fault) noexcept nogil:
    """Copy the row out: it moves when the tree is written to. 0, NOTFOUND, or -1 and the fault."""
    cdef Val key, data
    cdef void* room
    key.size, key.at = 16, <void*>id
    cdef int rc = lm.cursor_get(fold.timers, &key, &data, SET_KEY)
    if rc:
        return rc if rc == NOTFOUND else unwritable(fault, rc)
    if check_row(id, &data):
        return of_timer(fault, ROW_DAMAGED, id)
    if data.size > fold.old_room:
        room = realloc(fold.old, 2 * data.size)
        if room is NULL:
            return wrong(fault, NO_MEMORY, 0, 0)
        fold.old, fold.old_room = <char*>room, 2 * data.size
    memcpy(fold.old, data.at, data.size)
    fold.old_bytes = data.size
    return 0


cdef int put_row(
    Fold* fold, Image* image, const char* blob, size_t blob_bytes, unsigned int flags, Fault* fault
) noexcept nogil:
    """0, KEYEXIST if `flags` forbid to overwrite it, or -1 and the fault."""
    cdef Val key, data
    cdef RowHead* head
    cdef uint64_t high, low
    memcpy(&high, &image.id, 8)
    memcpy(&low, <char*>&image.id + 8, 8)
    high, low = big_endian(high), big_endian(low)
    if high > fold.last_high or (high == fold.last_high and low > fold.last_low):
        flags |= APPEND
        fold.last_high, fold.last_low = high, low
    key.size, key.at = 16, &image.id
    data.size, data.at = ROW_IMAGE_END + blob_bytes, NULL
    cdef int rc = lm.cursor_put(fold.timers, &key, &data, flags | RESERVE)
    if rc:
        return rc if rc == KEYEXIST else unwritable(fault, rc)
    head = <RowHead*>data.at
    memset(head, 0, sizeof(RowHead))
    head.version = RECORD_VERSION
    memcpy(<char*>head + sizeof(RowHead), image, sizeof(Image))
    memcpy(<char*>head + ROW_IMAGE_END, blob if blob_bytes else <char*>head, blob_bytes)
    head.crc = crc32(ROW_SEED, <char*>head + 4, data.size - 4)
    return 0


cdef int put_done(Fold* fold, Image* image, Fault* fault) noexcept nogil:
    cdef Val key, data
    cdef Cell cell
    key.size, key.at = 16, &image.id
    data.size, data.at = sizeof(Cell), &cell
    seal_cell(DONE_SEED, &key, &cell, image.seq)
    return unwritable(fault, lm.cursor_put(fold.done, &key, &data, 0))


cdef int index(Fold* fold, const Image* old, const Image* new, Fault* fault) noexcept nogil:
    """Note what changes in the indexes between `old` and `new`; NULL is no live timer."""
    cdef bint due_before = old is not NULL and old.state == STATE_SCHEDULED and old.due_ns != 0
    cdef bint due_after = new is not NULL and new.state == STATE_SCHEDULED and new.due_ns != 0
    cdef bint moved = not (
        due_before
        and due_after
        and old.scale == new.scale
        and hour_of(old.due_ns) == hour_of(new.due_ns)
    )
    cdef bint changed = moved or old.due_ns != new.due_ns
    cdef int rc = 0
    if due_before and moved:
        rc = add_due(fold, old, 0)
    if due_after and changed:
        rc = rc or add_due(fold, new, new.due_ns)
    cdef uint64_t name_before = 0 if old is NULL else old.name_hash
    cdef uint64_t name_after = 0 if new is NULL else new.name_hash
    if name_before and name_before != name_after:
        rc = rc or add_name(fold, old, 0)
    if name_after and name_before != name_after:
        rc = rc or add_name(fold, new, 1)
    return wrong(fault, NO_MEMORY, 0, 0) if rc else 0


cdef int add_due(Fold* fold, const Image* image, int64_t due_ns) noexcept nogil:
    cdef Op* op = add_op(&fold.due)
    if op is NULL:
        return -1
    cdef DueKey* key = <DueKey*>op.key
    key.scale, key.hour = image.scale, big_endian_32(hour_of(image.due_ns))
    memcpy(key.id, &image.id, 16)
    op.due_ns = due_ns
    return 0


cdef int add_name(Fold* fold, const Image* image, int64_t kept) noexcept nogil:
    cdef Op* op = add_op(&fold.names)
    if op is NULL:
        return -1
    cdef NameKey* key = <NameKey*>op.key
    key.hash = big_endian(image.name_hash)
    memcpy(key.id, &image.id, 16)
    op.due_ns = kept
    return 0


cdef Op* add_op(Ops* ops) noexcept nogil:
    cdef void* at = grow(ops.at, &ops.room, ops.count, sizeof(Op))
    if at is NULL:
        return NULL
    ops.at = <Op*>at
    ops.count += 1
    memset(&ops.at[ops.count - 1], 0, sizeof(Op))
    return &ops.at[ops.count - 1]


cdef int by_key(const void* a, const void* b) noexcept nogil:
    return memcmp(a, b, 24)


cdef int make_room(void* cursor, const Ops* ops, size_t i, const Shape* shape) noexcept nogil:
    """Before the first of several entries of one group. LMDB's error number."""
    cdef size_t after = i + 1
    if i and memcmp(ops.at[i].key, ops.at[i - 1].key, shape.prefix_bytes) == 0:
        return 0
    while after < ops.count and not memcmp(ops.at[i].key, ops.at[after].key, shape.prefix_bytes):
        after += 1
    return split_at_border(cursor, ops.at[i].key, after - i, shape) if after - i > 1 else 0


cdef int put_due(Fold* fold, Fault* fault) noexcept nogil:
    cdef Val key, data
    cdef Cell cell
    cdef Op* op
    cdef void* cursor
    cdef size_t i
    cdef int rc = lm.cursor_open(fold.txn, fold.dbs.due, &cursor)
    if rc:
        return unwritable(fault, rc)
    cdef Shape shape = Shape(sizeof(DueKey), DUE_PREFIX, sizeof(Cell), check_due)
    if fold.due.count:
        qsort(fold.due.at, fold.due.count, sizeof(Op), by_key)
    for i in range(fold.due.count):
        op = &fold.due.at[i]
        if unwritable(fault, make_room(cursor, &fold.due, i, &shape)):
            rc = -1
            break
        key.size, key.at = sizeof(DueKey), op.key
        if op.due_ns:
            data.size, data.at = sizeof(Cell), &cell
            seal_cell(DUE_SEED, &key, &cell, <uint64_t>op.due_ns)
            rc = lm.cursor_put(cursor, &key, &data, 0)
        else:
            rc = lm.cursor_get(cursor, &key, &data, SET) or lm.cursor_del(cursor, 0)
        if rc == NOTFOUND:
            rc = of_timer(fault, DUE_MISSING, (<DueKey*>op.key).id)
            break
        if unwritable(fault, rc):
            break
    lm.cursor_close(cursor)
    return -1 if rc else 0


cdef int put_names(Fold* fold, Fault* fault) noexcept nogil:
    cdef Val key, data
    cdef uint32_t crc
    cdef Op* op
    cdef void* cursor
    cdef size_t i
    cdef int rc = lm.cursor_open(fold.txn, fold.dbs.names, &cursor)
    if rc:
        return unwritable(fault, rc)
    cdef Shape shape = Shape(sizeof(NameKey), NAME_PREFIX, 4, check_name)
    if fold.names.count:
        qsort(fold.names.at, fold.names.count, sizeof(Op), by_key)
    for i in range(fold.names.count):
        op = &fold.names.at[i]
        if unwritable(fault, make_room(cursor, &fold.names, i, &shape)):
            rc = -1
            break
        key.size, key.at = sizeof(NameKey), op.key
        if op.due_ns:
            crc = crc32(NAME_SEED, op.key, sizeof(NameKey))
            data.size, data.at = 4, &crc
            rc = lm.cursor_put(cursor, &key, &data, 0)
        else:
            rc = lm.cursor_get(cursor, &key, &data, SET) or lm.cursor_del(cursor, 0)
        if rc == NOTFOUND:
            rc = of_timer(fault, NAME_MISSING, (<NameKey*>op.key).id)
            break
        if unwritable(fault, rc):
            break
    lm.cursor_close(cursor)
    return -1 if rc else 0


cdef int put_notes(Fold* fold, Slice* piece, Fault* fault) noexcept nogil:
    """Of two notes with one key the later one is kept."""
    cdef Val key, data
    cdef NoteEntry* note
    cdef size_t i, size
    cdef void* cursor
    cdef int rc = lm.cursor_open(fold.txn, fold.dbs.notes, &cursor)
    if rc:
        return unwritable(fault, rc)
    for i in range(piece.notes_count):
        note = &piece.notes[i]
        if i + 1 < piece.notes_count and same_timer(<Entry*>note, <Entry*>(note + 1)):
            continue
        data.at = slice_event(piece, note.at, &size)
        data.size = size
        key.size, key.at = 16, (<NoteHead*>data.at).key
        if check_note(&key, &data):
            rc = wrong(fault, NOTE_DAMAGED, 0, 0)
            break
        rc = unwritable(fault, lm.cursor_put(cursor, &key, &data, 0))
        if rc:
            break
    lm.cursor_close(cursor)
    return rc


cdef int fold_reindex(Fold* fold, Fault* fault) noexcept nogil:
    """Make the due and names indexes anew, from the timers."""
    cdef Val key, data
    cdef void* cursor
    cdef int rc = lm.drop(fold.txn, fold.dbs.due, 0)
    rc = rc or lm.drop(fold.txn, fold.dbs.names, 0)
    rc = rc or lm.cursor_open(fold.txn, fold.dbs.timers, &cursor)
    if rc:
        return unwritable(fault, rc)
    fold.due.count = fold.names.count = 0
    rc = lm.cursor_get(cursor, &key, &data, FIRST)
    while rc == 0:
        if key.size != 16 or check_row(key.at, &data):
            rc = of_timer(fault, ROW_DAMAGED, key.at)
            break
        rc = index(fold, NULL, <Image*>(<char*>data.at + sizeof(RowHead)), fault)
        rc = rc or lm.cursor_get(cursor, &key, &data, NEXT)
    lm.cursor_close(cursor)
    if rc != NOTFOUND:
        return rc if rc == -1 else unwritable(fault, rc)
    return put_due(fold, fault) or put_names(fold, fault)


cdef void fold_free(Fold* fold) noexcept nogil:
    free(fold.due.at)
    free(fold.names.at)
    free(fold.old)
    memset(fold, 0, sizeof(Fold))


assert IMAGE_END == sizeof(EventHead) + sizeof(Image)
assert ROW_IMAGE_END == sizeof(RowHead) + sizeof(Image)
assert sizeof(Op) == 32
