"""Room ahead of a file's end."""

from libc.stdint cimport int64_t

from engine._lmdb cimport Environment

cdef struct Ahead:
    int64_t end                     # of what is in the file, when it was last looked at
    bint off                        # the file cannot be made longer: not tried again

cdef int write_ahead(Environment env, Ahead* ahead) noexcept nogil
