"""Where a page of an index is split."""

from engine._lmdb cimport Val

cdef struct Shape:                  # of an index whose entries are all of one size
    size_t key_bytes
    size_t prefix_bytes             # entries with one prefix stand together, in order of their ids
    size_t data_bytes
    int (*check)(const Val* key, const Val* data) noexcept nogil    # 0 if the entry is whole

cdef int split_at_border(void* cursor, const void* first, size_t run, const Shape* of) noexcept nogil
