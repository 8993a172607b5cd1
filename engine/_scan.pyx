"""Reading the tables in bulk: rows by a filter, and hours of the due index in order of their dues.

A scan of all rows in their order beats an index walk with a look-up each by ten to one, so there is
no index of labels: the needles are searched for in each row's bytes. Every row that is looked at is
checked, not just those that pass: damage must not make a timer invisible.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcmp, memcpy, memset

from engine._fold cimport DueKey, check_cell, check_row, hour_of
from engine._lmdb cimport FIRST, NEXT, NOTFOUND, SET_RANGE, Val, lm
from engine._pages cimport goes_on
from engine._record cimport (
    DUE_SEED,
    SCALE_STEADY,
    BlobHead,
    Cell,
    Image,
    RowHead,
    big_endian,
    big_endian_32,
)
from engine._slice cimport grow

cdef extern from "<string.h>" nogil:
    void* memmem(const void* hay, size_t hay_size, const void* needle, size_t size)


cdef int fill_filter(RowFilter* to, filter) except -1:
    cdef bytes needle
    memset(to, 0, sizeof(RowFilter))
    for state in filter.states:
        assert 0 < state < 32, f"there is no state {state}"
        to.states |= <uint32_t>1 << <uint32_t>state
    to.tenant = filter.tenant
    assert len(filter.labels) <= NEEDLES_MAX, (
        f"a filter has {len(filter.labels)} labels; the limit is {NEEDLES_MAX}"
    )
    for needle in filter.labels:
        to.labels[to.labels_count].at, to.labels[to.labels_count].size = needle, len(needle)
        to.labels_count += 1
    needle = filter.name_prefix
    to.prefix.at, to.prefix.size = needle, len(needle)
    to.due_from_ns, to.due_to_ns = filter.due_from_ns, filter.due_to_ns
    to.shift_ns = filter.scale_shift_ns
    return 0


cdef bint passes(const RowFilter* filter, const Val* data) noexcept nogil:
    cdef const Image* image = <const Image*>(<char*>data.at + sizeof(RowHead))
    cdef int64_t due_ns
    if image.tenant != filter.tenant:
        return False
    if filter.states and not filter.states >> image.state & 1:
        return False
    if filter.due_from_ns or filter.due_to_ns:
        if image.due_ns == 0:
            return False
        due_ns = image.due_ns + (filter.shift_ns if image.scale == SCALE_STEADY else 0)
        if due_ns < filter.due_from_ns or (filter.due_to_ns and due_ns >= filter.due_to_ns):
            return False
    if filter.prefix.size == 0 and filter.labels_count == 0:
        return True
    return passes_text(filter, data)


cdef bint passes_text(const RowFilter* filter, const Val* data) noexcept nogil:
    cdef size_t head_end = sizeof(RowHead) + sizeof(Image) + sizeof(BlobHead)
    cdef const BlobHead* head = <const BlobHead*>(<char*>data.at + head_end - sizeof(BlobHead))
    cdef const char* name = <char*>data.at + head_end + head.rule_bytes
    cdef const char* labels = name + head.name_bytes
    cdef size_t i
    if head_end + head.rule_bytes + head.name_bytes + head.labels_bytes > data.size:
        return False
    if filter.prefix.size > head.name_bytes or memcmp(name, filter.prefix.at, filter.prefix.size):
        return False
    for i in range(filter.labels_count):
        if memmem(labels, head.labels_bytes, filter.labels[i].at, filter.labels[i].size) is NULL:
            return False
    return True


cdef int scan_rows(
    void* cursor, const RowFilter* filter, const void* after, uint64_t budget, size_t limit,
    size_t page_bytes, Found* found
) noexcept nogil:
    """Fill `found` from behind the id `after` (NULL: from the start) on. LMDB's error number."""
    cdef Val key, data
    cdef const void* before = after
    cdef int rc
    key.size, key.at = 16, <void*>after
    if after is NULL:
        rc = lm.cursor_get(cursor, &key, &data, FIRST)
    else:
        rc = lm.cursor_get(cursor, &key, &data, SET_RANGE)
        if rc == 0 and key.size == 16 and memcmp(key.at, after, 16) == 0:
            rc = lm.cursor_get(cursor, &key, &data, NEXT)
    found.count = 0
    found.at_end = found.damaged = False
    while rc == 0 and budget:
        if key.size == 16:
            memcpy(found.last, key.at, 16)
        if key.size != 16 or check_row(key.at, &data) or not goes_on(before, &key, page_bytes):
            found.damaged = True
            return 0
        before = key.at
        if passes(filter, &data):
            found.rows[found.count] = data
            found.count += 1
            if found.count == limit:
                return 0
        budget -= 1
        if budget:
            rc = lm.cursor_get(cursor, &key, &data, NEXT)
    if rc == NOTFOUND:
        found.at_end = True
        return 0
    return rc


cdef int by_due(const void* a, const void* b) noexcept nogil:
    cdef const DueEntry* left = <const DueEntry*>a
    cdef const DueEntry* right = <const DueEntry*>b
    if left.due_ns != right.due_ns:
        return 1 if left.due_ns > right.due_ns else -1
    if left.id_high != right.id_high:
        return 1 if left.id_high > right.id_high else -1
    return (left.id_low > right.id_low) - (left.id_low < right.id_low)


cdef DueKey due_begin(uint8_t scale, int64_t from_ns) noexcept nogil:
    """The key before all those of the hour of `from_ns`."""
    cdef DueKey begin
    memset(&begin, 0, sizeof(DueKey))
    begin.scale, begin.hour = scale, big_endian_32(hour_of(from_ns))
    return begin


cdef int gather_due(
    void* cursor, const DueKey* begin, bint past, int64_t from_ns, int64_t to_ns, uint64_t budget,
    size_t page_bytes, DueList* list
) noexcept nogil:
    """Fill `list` with the dues in [from_ns, to_ns), sorted; their ids as they stand in memory.

    Looks at `budget` entries (0: all) from the key `begin` on, or from the one past it.
    LMDB's error number, or -1 for no memory."""
    cdef Val key, data
    cdef DueKey* at
    cdef DueEntry* entry
    cdef const void* before = NULL
    cdef void* room
    cdef int64_t due_ns
    key.size, key.at = sizeof(DueKey), <void*>begin
    cdef int rc = lm.cursor_get(cursor, &key, &data, SET_RANGE)
    if past and rc == 0 and key.size == sizeof(DueKey):
        if memcmp(key.at, begin, sizeof(DueKey)) == 0:
            rc = lm.cursor_get(cursor, &key, &data, NEXT)
    list.at_end = True
    while rc == 0:
        at = <DueKey*>key.at
        if key.size != sizeof(DueKey) or check_cell(DUE_SEED, &key, &data):
            list.damaged = True
            return 0
        if not goes_on(before, &key, page_bytes):
            list.damaged = True
            return 0
        before = key.at
        if at.scale != begin.scale or big_endian_32(at.hour) > hour_of(to_ns):
            break
        due_ns = <int64_t>(<Cell*>data.at).value
        if from_ns <= due_ns < to_ns:
            room = grow(list.at, &list.room, list.count, sizeof(DueEntry))
            if room is NULL:
                return -1
            list.at = <DueEntry*>room
            entry = &list.at[list.count]
            entry.due_ns = due_ns
            memcpy(&entry.id_high, at.id, 16)
            entry.id_high, entry.id_low = big_endian(entry.id_high), big_endian(entry.id_low)
            list.count += 1
        if budget == 1:
            list.last, list.at_end = at[0], False
            break
        budget -= budget > 0
        rc = lm.cursor_get(cursor, &key, &data, NEXT)
    if list.count:
        qsort(list.at, list.count, sizeof(DueEntry), by_due)
    return 0 if rc == NOTFOUND else rc
