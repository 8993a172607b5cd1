"""Durations and instants, read from text."""

from libc.stdint cimport int64_t


cdef inline bint is_digit(char c) noexcept nogil:
    return b"0" <= c <= b"9"


cdef const char* skip_digits(const char* at, const char* end, int most) noexcept nogil
cdef int64_t read_duration(const char* at, size_t size) noexcept nogil
cdef int64_t read_instant(const char* at, size_t size) noexcept nogil
