"""A read beyond the end of a buffer, which only a sanitizer notices."""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy


def beyond(bytes data not None) -> int:
    """The byte behind a copy of `data`, if that begins so."""
    cdef size_t size = len(data), i
    cdef const unsigned char* wanted = b"MZP9"
    cdef volatile unsigned char* copy = <volatile unsigned char*>malloc(size + (size == 0))
    cdef unsigned char got = 0
    if copy == NULL:
        raise MemoryError
    memcpy(<void*>copy, <const char*>data, size)
    for i in range(4):
        if i >= size or copy[i] != wanted[i]:
            free(<void*>copy)
            return 0
    got = copy[size]
    free(<void*>copy)
    return got
