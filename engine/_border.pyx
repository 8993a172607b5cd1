"""Splitting an index page between two groups instead of in its middle.

The keys of an index are a prefix (an hour, the hash of a name) and the id of a timer; ids grow with
time. So what is new comes at the end of its group, in the middle of a page that holds the next
group's beginning. LMDB splits such a page in half, and nothing ever comes into the left half again:
after a while every page is half empty (0.507 and 0.541 full, measured). Only what comes at the end
of a page is split off alone. So before a run of entries would split a page, the next group is given
a page of its own; from then on the group before it grows at the end of its page, and all its pages
become full.

LMDB has no call for that, but it splits off a page's last entry together with a new one behind it.
So: take the next group's entries off the page, fill the page with stoppers, put them back, take the
stoppers out. What is on disk after the transaction is what a split at that place would have made.
"""

from libc.string cimport memcmp, memcpy, memset

from engine._lmdb cimport NEXT, NOOVERWRITE, NOTFOUND, PREV, RESERVE, SET, SET_RANGE, Val, lm

cdef enum:
    PAGE_BYTES = 4096
    ROOM_BYTES = 4080               # without the page's head
    NODE_HEAD = 8                   # before each key; and an offset of two bytes
    NODE_MAX = 2036                 # larger values get pages of their own
    ENTRIES_MAX = 128               # on a page, at most
    KEY_MAX = 32
    DATA_MAX = 16

cdef struct Lifted:
    char[KEY_MAX] key
    char[DATA_MAX] data


cdef size_t node_bytes(const Shape* of) noexcept nogil:
    """What an entry takes up of its page."""
    return ((NODE_HEAD + of.key_bytes + of.data_bytes + 1) & ~<size_t>1) + 2


cdef bint one_page(const Val* a, const Val* b) noexcept nogil:
    """Whether the two lie on one page of the file. A page that was written to in this transaction
    is in other memory, which need not be aligned: there the answer may be wrong, and the split at a
    worse place, nothing else."""
    return <size_t>a.at // PAGE_BYTES == <size_t>b.at // PAGE_BYTES


cdef int split_at_border(
    void* cursor, const void* first, size_t run, const Shape* of
) noexcept nogil:
    """Make room for `run` entries from the key `first` on, if they come at the end of their group
    and the page cannot take them. LMDB's error number."""
    cdef Val key, data, border
    cdef Lifted[ENTRIES_MAX] lifted
    cdef size_t before = 0, behind = 0, node = node_bytes(of)
    key.size, key.at = of.key_bytes, <void*>first
    cdef int rc = lm.cursor_get(cursor, &key, &border, SET_RANGE)
    if rc or memcmp(key.at, first, of.prefix_bytes) == 0:
        return 0 if rc == NOTFOUND else rc  # at the end of the table, or inside its group
    rc = lm.cursor_get(cursor, &key, &data, PREV)
    while rc == 0 and before < <size_t>ENTRIES_MAX and one_page(&data, &border):
        before += 1
        rc = lm.cursor_get(cursor, &key, &data, PREV)
    if before == 0 or (rc and rc != NOTFOUND):
        return 0 if rc == NOTFOUND else rc  # the border of the groups is one of pages already
    key.size, key.at = of.key_bytes, <void*>first
    rc = lm.cursor_get(cursor, &key, &data, SET_RANGE)
    while rc == 0 and behind < <size_t>ENTRIES_MAX and one_page(&data, &border):
        if key.size != of.key_bytes or of.check(&key, &data):
            return 0  # damaged: it stays where it is, for whoever reads it to find
        memcpy(lifted[behind].key, key.at, of.key_bytes)
        memcpy(lifted[behind].data, data.at, of.data_bytes)
        behind += 1
        rc = lm.cursor_get(cursor, &key, &data, NEXT)
    if rc and rc != NOTFOUND:
        return rc
    cdef size_t used = node * before
    if behind < 2 or used + node * (behind + run) <= <size_t>ROOM_BYTES:
        return 0
    if used + node * behind > <size_t>ROOM_BYTES or used + node * run < <size_t>ROOM_BYTES // 3:
        return 0  # two pages were taken for one, or the group would not fill its page
    return move(cursor, lifted, behind, ROOM_BYTES - used - node, of)


cdef int move(
    void* cursor, Lifted* lifted, size_t count, size_t fill_bytes, const Shape* of
) noexcept nogil:
    """Put the entries at the end of a page on a page of their own. fill_bytes: what the stoppers
    take up, so that the first of the entries has room behind them, and the second has not."""
    cdef char[KEY_MAX] stopper
    cdef Val key, data
    cdef size_t i, stoppers = 1 if fill_bytes <= <size_t>NODE_MAX else 2
    cdef int rc = 0
    memset(stopper, 0, KEY_MAX)
    memcpy(stopper, lifted[0].key, of.prefix_bytes)
    stopper[of.key_bytes - 1] = 1
    if memcmp(stopper, lifted[0].key, of.key_bytes) >= 0:
        return 0  # stoppers come before every id that a node makes, but not before this one
    for i in range(count):
        key.size, key.at = of.key_bytes, lifted[i].key
        rc = rc or lm.cursor_get(cursor, &key, &data, SET) or lm.cursor_del(cursor, 0)
    for i in range(stoppers):
        stopper[of.key_bytes - 1] = <char>i
        key.size, key.at = of.key_bytes, stopper
        data.size, data.at = value_bytes(fill_bytes // stoppers, of), NULL
        rc = rc or lm.cursor_put(cursor, &key, &data, NOOVERWRITE | RESERVE)
    for i in range(count):
        key.size, key.at = of.key_bytes, lifted[i].key
        data.size, data.at = of.data_bytes, lifted[i].data
        rc = rc or lm.cursor_put(cursor, &key, &data, 0)
    for i in range(stoppers):
        stopper[of.key_bytes - 1] = <char>i
        key.size, key.at = of.key_bytes, stopper
        rc = rc or lm.cursor_get(cursor, &key, &data, SET) or lm.cursor_del(cursor, 0)
    return rc


cdef size_t value_bytes(size_t node, const Shape* of) noexcept nogil:
    """Of the value that makes a node of `node` bytes, or of two less."""
    return (node - 2 - NODE_HEAD - of.key_bytes) & ~<size_t>1
