"""A hash from ids of 16 bytes to what they came to, for the replay of a log (`_audit.pyx`)."""

cimport cython

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset


@cython.final
cdef class Fates:
    """A hash from ids to slots, by linear probing; grows by doubling."""

    def __cinit__(self):
        self.slots = <Slot*>calloc(1024, sizeof(Slot))
        if self.slots is NULL:
            raise MemoryError
        self.mask = 1023

    def __dealloc__(self):
        free(self.slots)

    cdef Slot* find(self, const void* id) noexcept nogil:
        """The slot of `id`, or the free one where it belongs."""
        cdef uint64_t high, low
        memcpy(&high, id, 8)
        memcpy(&low, <char*>id + 8, 8)
        return self.place(high, low)

    @cython.overflowcheck(False)
    cdef Slot* place(self, uint64_t high, uint64_t low) noexcept nogil:
        cdef uint64_t at = (high ^ low * <uint64_t>0x9E3779B97F4A7C15U) * <uint64_t>0xD6E8FEB86659FD93U
        cdef Slot* slot
        at >>= 20
        while True:
            slot = &self.slots[at & self.mask]
            if slot.seq == 0 or (slot.high == high and slot.low == low):
                return slot
            at += 1

    cdef Slot* take(self, const void* id) except NULL:
        """The slot of `id`; if it is new, with its key and the rest 0."""
        cdef Slot* slot = self.find(id)
        if slot.seq:
            return slot
        if self.count * 4 >= self.mask * 3:
            self.grow()
            slot = self.find(id)
        memset(slot, 0, sizeof(Slot))
        memcpy(&slot.high, id, 8)
        memcpy(&slot.low, <char*>id + 8, 8)
        self.count += 1
        return slot

    cdef int grow(self) except -1:
        cdef Slot* old = self.slots
        cdef uint64_t size = self.mask + 1, i
        cdef Slot* fresh = <Slot*>calloc(2 * size, sizeof(Slot))
        if fresh is NULL:
            raise MemoryError
        self.slots, self.mask = fresh, 2 * size - 1
        for i in range(size):
            if old[i].seq:
                self.place(old[i].high, old[i].low)[0] = old[i]
        free(old)
        return 0


assert sizeof(Slot) == 48
