"""What a definition becomes, for other compiled modules."""

from libc.stdint cimport int64_t

from edgenode._plain cimport Plain

cdef struct Terms:  # what a definition is held against
    int64_t steady_ns, utc_ns, shift_ns
    int64_t due_max_ns
    Py_ssize_t name_bytes_max, labels_max, payload_bytes_max

cdef int read_terms(Terms* terms, now, limits) except -1
cdef bytes draft_of(const Plain* asked, const Terms* terms)
cdef bytes draft_whole(bytes body, const Terms* terms)
