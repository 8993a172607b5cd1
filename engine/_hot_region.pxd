"""Address space that is reserved once and made usable as it fills, so that nothing is copied."""

from libc.stdint cimport uint8_t
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE, mmap,
    mprotect,
)

cdef enum:
    COMMIT_BYTES = 262_144

cdef struct Region:           # address space of which the beginning may be used
    uint8_t *base
    size_t reserved           # bytes
    size_t committed          # bytes


cdef inline int reserve(Region *region, size_t size) except -1:
    region.base = <uint8_t *>mmap(
        NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
    )
    if region.base == <uint8_t *>MAP_FAILED:
        region.base = NULL
        raise MemoryError(f"can't reserve {size} bytes of address space for the hot set")
    region.reserved = size
    return 0


cdef inline int commit(Region *region, size_t size) except -1:
    """Make the first `size` bytes usable; new ones are 0.

    Huge pages would make cold look-ups a third faster, but one fault took 5 ms here.
    """
    if size <= region.committed:
        return 0
    cdef size_t upto = min((size + COMMIT_BYTES - 1) // COMMIT_BYTES * COMMIT_BYTES, region.reserved)
    if upto < size or mprotect(region.base, upto, PROT_READ | PROT_WRITE) != 0:
        raise MemoryError(f"the hot set can't grow from {region.committed} to {size} bytes")
    region.committed = upto
    return 0
