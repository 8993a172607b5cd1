from libc.stdint cimport uint16_t, uint64_t

# record.name_hash: 64 bits that stand for a name; 0 for no name.
cdef uint64_t name_hash(const void* name, size_t size, uint16_t tenant) noexcept nogil
