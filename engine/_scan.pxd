"""Which rows a scan yields, decided in C."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from engine._fold cimport DueKey
from engine._lmdb cimport Val

cdef enum:
    NEEDLES_MAX = 16

cdef struct Needle:
    const char* at
    size_t size

cdef struct RowFilter:              # `store.Filter`; its bytes stay where they are
    uint32_t states                 # a bit for each state; 0 asks for all
    uint32_t tenant
    size_t labels_count
    Needle[NEEDLES_MAX] labels
    Needle prefix
    int64_t due_from_ns, due_to_ns, shift_ns

cdef struct Found:                  # rows that passed, in the map, valid while the read lasts
    Val* rows
    size_t count
    uint8_t[16] last                # the last id that was looked at
    bint at_end
    bint damaged

cdef int fill_filter(RowFilter* to, filter) except -1
cdef int scan_rows(
    void* cursor, const RowFilter* filter, const void* after, uint64_t budget, size_t limit,
    size_t page_bytes, Found* found
) noexcept nogil

cdef struct DueEntry:               # 24 bytes
    int64_t due_ns
    uint64_t id_high, id_low

cdef struct DueList:
    DueEntry* at
    size_t count, room
    bint damaged
    bint at_end
    DueKey last                     # the key looked at last, where the budget ended

cdef DueKey due_begin(uint8_t scale, int64_t from_ns) noexcept nogil
cdef int gather_due(
    void* cursor, const DueKey* begin, bint past, int64_t from_ns, int64_t to_ns, uint64_t budget,
    size_t page_bytes, DueList* list
) noexcept nogil
