"""What the timers and notes of a log came to; see `_audit.pyx`."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef struct Slot:                   # what a timer came to, or a note; 48 bytes
    uint64_t high, low              # its id, or the note's key
    uint64_t seq                    # its newest event, or the note's commit; 0: the slot is free
    int64_t at_ns                   # of a note
    uint32_t image_crc              # of its newest image; a note's own
    uint32_t blob_crc               # of its newest definition
    uint8_t state
    uint8_t flags

cdef class Fates:
    cdef Slot* slots
    cdef uint64_t mask
    cdef readonly uint64_t count

    cdef Slot* find(self, const void* id) noexcept nogil
    cdef Slot* place(self, uint64_t high, uint64_t low) noexcept nogil
    cdef Slot* take(self, const void* id) except NULL
    cdef int grow(self) except -1
