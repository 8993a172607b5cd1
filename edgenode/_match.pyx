"""Which records of a page of the log pass a filter, told from their bytes: 20 ns each by type alone.

Nothing is decoded and no checksum is looked at: whoever shows a record checks it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp

from engine._record cimport FLAG_IMAGE, BlobHead, EventHead, Image

cdef extern from "<string.h>" nogil:
    void *memmem(const void *text, size_t size, const void *part, size_t part_size)


cdef bint names(const char* at, size_t size, tuple needles, bytes prefix):
    """Whether the definition in a record has the labels and the prefix asked for."""
    cdef EventHead* head = <EventHead*>at
    cdef BlobHead* blob
    cdef size_t begin = sizeof(EventHead) + sizeof(Image) + sizeof(BlobHead)
    cdef size_t wanted = <size_t>PyBytes_GET_SIZE(prefix)
    cdef bytes needle
    cdef const char* part
    cdef size_t part_bytes
    if not head.flags & FLAG_IMAGE or size < begin:
        return False
    blob = <BlobHead*>(at + begin - sizeof(BlobHead))
    begin += blob.rule_bytes
    if begin + blob.name_bytes + blob.labels_bytes > size or blob.name_bytes < wanted:
        return False
    if memcmp(at + begin, PyBytes_AS_STRING(prefix), wanted):
        return False
    begin += blob.name_bytes
    for needle in needles:
        part, part_bytes = PyBytes_AS_STRING(needle), PyBytes_GET_SIZE(needle)
        if memmem(at + begin, blob.labels_bytes, part, part_bytes) == NULL:
            return False
    return True


def select(
    list page not None,
    Py_ssize_t begin,
    uint64_t kinds_low,
    uint64_t kinds_high,
    tuple needles not None,
    bytes prefix not None,
) -> list:
    """The places in `page`, from `begin` on, of the records that pass.

    kinds_low, kinds_high: a bit for each kind below 64, and from 64 on.
    """
    cdef list found = []
    cdef bint by_name = bool(needles) or bool(prefix)
    cdef Py_ssize_t i
    cdef uint8_t kind
    cdef bytes data
    for i in range(begin, len(page)):
        data = page[i]
        if PyBytes_GET_SIZE(data) < <Py_ssize_t>sizeof(EventHead):
            continue
        kind = (<EventHead*>PyBytes_AS_STRING(data)).kind
        if not ((kinds_low if kind < 64 else kinds_high) >> (kind & 63)) & 1:
            continue
        if by_name and not names(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), needles, prefix):
            continue
        found.append(i)
    return found
