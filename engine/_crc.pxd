from libc.stdint cimport uint8_t, uint32_t

# The checksum of zlib.crc32, of `size` bytes going on from `seed`.
cdef uint32_t crc32(uint32_t seed, const void* at, size_t size) noexcept nogil
