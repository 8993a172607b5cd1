"""The hot set's layout and what it offers to other compiled modules."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from engine._hot_region cimport Region
from engine._wheel cimport Wheel

cdef struct Entry:            # 48 bytes
    uint64_t id[2]            # the timer's id, its 16 bytes as they are
    uint64_t seq              # of the newest record in the log; 0: the tables have it
    int64_t due_ns            # on its scale; 0: not scheduled
    uint64_t handle           # of the wheel; 0: not armed. A free entry has neither seq nor handle
    uint32_t next             # slab index: of the same bucket, or in the free list; 0 at the end
    uint8_t scale

cdef class HotSet:
    cdef readonly Wheel wheel
    cdef Region slab_region, bucket_region, armed_region
    cdef Entry *slab
    cdef uint32_t *buckets
    cdef uint32_t *armed              # from the wheel's index to the slab's
    cdef uint32_t high                # slab slots from here on were never used
    cdef uint32_t free_head
    cdef uint32_t count, count_newer, count_armed
    cdef uint32_t buckets_mask        # of the buckets before this round of splits
    cdef uint32_t buckets_split       # how many of them have been split in it
    cdef uint32_t sweep_at, sweep_end # slab slots; sweep_at 0: between two rounds
    cdef uint64_t sweep_seq           # what the round under way will have done
    cdef uint64_t swept_seq           # what the last complete one has

    cdef uint32_t buckets_count(self) noexcept nogil
    cdef uint32_t bucket_of(self, uint32_t hash) noexcept nogil
    cdef uint32_t find(self, const uint64_t *id) noexcept nogil
    cdef uint32_t find_or_add(self, const uint64_t *id) except 0
    cdef int split(self) except -1
    cdef int fetch_ahead(self, uint64_t[2] *ids, Py_ssize_t count) noexcept nogil
    cdef int put_back(self, uint32_t index) noexcept nogil
    cdef int arm_entry(self, uint32_t index, uint64_t due_tick) except -1
    cdef int disarm_entry(self, uint32_t index) except -1
    cdef uint32_t disarm_if(self, int scale, uint64_t due_tick) except? 0
    cdef int check_slab(self) except -1
    cdef int check_buckets(self) except -1


# What the turn does to each timer that it writes; `HotSet.note`, `arm` and `disarm` are these.


cdef inline int note_newer(
    HotSet hot, const uint64_t *id, uint64_t seq, int64_t due_ns, uint8_t scale
) except -1:
    """seq: from 1."""
    cdef Entry *entry = &hot.slab[hot.find_or_add(id)]
    hot.count_newer += entry.seq == 0
    entry.seq = seq
    entry.due_ns = due_ns
    entry.scale = scale
    # The log must not be trimmed up to a record that is being pointed to.
    if seq <= hot.swept_seq or seq <= hot.sweep_seq:
        hot.swept_seq = min(hot.swept_seq, seq - 1)
        hot.sweep_seq = min(hot.sweep_seq, seq - 1)
    return 0


cdef inline int arm_anew(HotSet hot, const uint64_t *id, uint64_t due_tick) except -1:
    cdef uint32_t index = hot.find_or_add(id)
    if hot.slab[index].handle:
        hot.disarm_entry(index)
    return hot.arm_entry(index, due_tick)


cdef inline int disarm_again(HotSet hot, const uint64_t *id) except -1:
    """1 if it was armed."""
    cdef uint32_t index = hot.find(id)
    if index == 0 or hot.slab[index].handle == 0:
        return 0
    hot.disarm_entry(index)
    hot.put_back(index)
    return 1
