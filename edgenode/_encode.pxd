"""What of the encoder other compiled modules use."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef class Encoder:
    cdef bytes tenant, id_prefix, view_tenant, epoch_tenant, dedupe
    cdef dict types, topics

    cdef char* put_head(self, char* to, uint64_t seq, const char* raw) except NULL
    cdef char* put_timer(
        self, char* to, const char* raw, size_t size, int64_t fired_ns, uint32_t attempt
    ) except NULL
    # A view of the image at `image`, its definition behind it, `size` bytes in all.
    cdef bytes view_at(self, const char* image, Py_ssize_t size, int64_t shift_ns, bytes state)
    cdef char* put_view(
        self, char* to, const char* image, Py_ssize_t size, int64_t shift_ns, bytes state
    ) except NULL
