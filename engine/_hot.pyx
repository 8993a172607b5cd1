"""The hot set: which timers have a record newer than the tables, and which are armed.

The turn asks it before the tables, for each timer that it touches, and the wheel knows timers only
by handles; so this is one hash from id to {seq, due, handle} and one array from the wheel's index
back to the entry. It holds what the horizon and the tables' lag make of it, some 10^5 to 10^7.

No call may stall the turn, so nothing here is ever copied to grow. Slab and buckets are reserved as
address space and committed as they fill. The hash grows by linear hashing (Litwin 1980): one
bucket is split at a time, the next in order, so that there are 3 for 2 entries. Chains run through
the entries: a miss, the commonest question, touches 0.7 of one, a hit 1.3.

An entry that is neither newer nor armed says nothing, and is freed at once.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport INT64_MAX
from libc.string cimport memcpy
from posix.mman cimport MADV_DONTNEED, madvise, munmap

from engine._hot_region cimport commit, reserve
from engine._wheel_slots cimport Level, first_from

from engine.errors import WheelFull

cdef extern from *:
    void prefetch "__builtin_prefetch"(const void *at) noexcept nogil

cdef enum:
    ID_BYTES = 16
    BUCKETS_MIN = 1024
    RUN_BITS = 6
    SPLITS_AHEAD = 8
    ENTRIES_MAX = 134_217_728
    SCRATCH_COUNT = 1024
    BLOCK = 32  # ids whose memory is asked for ahead, in bulk calls

assert sizeof(Entry) == 48


@cython.overflowcheck(False)
cdef inline uint32_t hash_of(const uint64_t *id) noexcept nogil:
    """Ids that differ in their last RUN_BITS alone get neighbouring buckets, as such are made and
    used together; every other bit reaches the low bits, by which a bucket is chosen."""
    cdef uint64_t run = id[1] >> 56 & ((1 << RUN_BITS) - 1)
    cdef uint64_t h = id[0] * <uint64_t>0x9E3779B97F4A7C15
    h += (id[1] ^ run << 56) * <uint64_t>0xC2B2AE3D27D4EB4F
    h = (h ^ (h >> 32)) * <uint64_t>0xD6E8FEB86659FD93
    return <uint32_t>((h >> 32) + run)


cdef inline uint64_t tick_at_or_after(
    int64_t due_ns, int64_t shift_ns, int64_t tick_ns
) noexcept nogil:
    if shift_ns > 0 and due_ns > INT64_MAX - shift_ns:
        return INT64_MAX // tick_ns
    due_ns += shift_ns
    if due_ns <= 0:
        return 0
    return <uint64_t>(due_ns // tick_ns + (due_ns % tick_ns != 0))


cdef inline const uint64_t *id_words(bytes id) except NULL:
    if PyBytes_GET_SIZE(id) != ID_BYTES:
        raise ValueError(f"an id is {len(id)} bytes; a timer's has {ID_BYTES}")
    return <const uint64_t *>PyBytes_AS_STRING(id)


@cython.final
cdef class HotSet:
    """What is newer than the tables, and what is armed. One thread."""

    def __cinit__(self, Wheel wheel not None):
        """wheel: an empty Wheel, from now on used by nobody else."""
        if len(wheel):
            raise ValueError(f"the wheel holds {len(wheel)} timers; a hot set needs an empty one")
        self.wheel = wheel
        reserve(&self.slab_region, <size_t>ENTRIES_MAX * sizeof(Entry))
        reserve(&self.bucket_region, <size_t>ENTRIES_MAX * 2 * sizeof(uint32_t))
        reserve(&self.armed_region, <size_t>ENTRIES_MAX * sizeof(uint32_t))
        self.slab = <Entry *>self.slab_region.base
        self.buckets = <uint32_t *>self.bucket_region.base
        self.armed = <uint32_t *>self.armed_region.base
        self.high = 1  # slab index 0 ends chains
        self.buckets_mask = BUCKETS_MIN - 1
        commit(&self.bucket_region, BUCKETS_MIN * sizeof(uint32_t))

    def __dealloc__(self):
        munmap(self.slab_region.base, self.slab_region.reserved)
        munmap(self.bucket_region.base, self.bucket_region.reserved)
        munmap(self.armed_region.base, self.armed_region.reserved)

    def __len__(self) -> int:
        return self.count

    @property
    def newer_count(self) -> int:
        """Entries with a record newer than the tables."""
        return self.count_newer

    @property
    def armed_count(self) -> int:
        """Entries on the wheel."""
        return self.count_armed

    @property
    def bytes_committed(self) -> int:
        """Memory that may be in use, the wheel's own not counted."""
        return (
            self.slab_region.committed + self.bucket_region.committed + self.armed_region.committed
        )

    def note(self, bytes id not None, uint64_t seq, int64_t due_ns, uint8_t scale) -> None:
        """Say that the newest record of this timer is at `seq` in the log.

        seq: from 1. due_ns: on `scale`; 0: it is not scheduled. Armed or not stays as it is. O(1).
        """
        if seq == 0:
            raise ValueError("seq is 0; the log's records are numbered from 1")
        note_newer(self, id_words(id), seq, due_ns, scale)

    def get(self, bytes id not None):
        """(seq, due_ns, scale, armed) of a timer, None if it is not here; seq 0: the tables have
        its newest record. O(1)."""
        cdef uint32_t index = self.find(id_words(id))
        if index == 0:
            return None
        cdef Entry *entry = &self.slab[index]
        return (entry.seq, entry.due_ns, entry.scale, entry.handle != 0)

    def arm(self, bytes id not None, uint64_t due_tick) -> None:
        """Arm a timer, or arm it anew. Raises WheelFull; it is then not armed. O(1)."""
        arm_anew(self, id_words(id), due_tick)

    def disarm(self, bytes id not None) -> bool:
        """Take a timer off the wheel; False if it is not there. O(1)."""
        return disarm_again(self, id_words(id)) != 0

    def next_tick(self):
        """When to advance next; None while nothing is armed."""
        cdef uint64_t tick
        return tick if self.wheel.c_next_tick(&tick) else None

    def backlog_ns(
        self, uint64_t from_tick, uint32_t ticks, int64_t cost_ns, int64_t tick_ns
    ) -> int:
        """How late the timers due in `ticks` would be at the worst, if each cost `cost_ns`, from
        `from_tick` on. Knows level 0 of the wheel; what was cancelled may count. 6 ns a slot."""
        cdef Level *level = &self.wheel.levels[0]
        cdef int64_t done_ns = 0, late_ns = 0
        cdef uint64_t tick = from_tick
        while first_from(level, tick, &tick) and tick < from_tick + ticks:
            done_ns += level.slots[tick & level.mask].count * cost_ns
            late_ns = max(late_ns, done_ns - <int64_t>(tick - from_tick) * tick_ns)
            tick += 1
        return late_ns

    def must_begin(
        self, int64_t now_ns, uint32_t ticks, int64_t cost_ns, int64_t tick_ns, int64_t lead_ns
    ) -> int:
        """The last tick of `ticks` to come that must be begun with now, so that all that is due up
        to it is decided `lead_ns` before it; 0 for none."""
        cdef Level *level = &self.wheel.levels[0]
        cdef int64_t done_ns = lead_ns
        cdef uint64_t first = now_ns // tick_ns, last = 0
        cdef uint64_t tick = first
        while first_from(level, tick, &tick) and tick < first + ticks:
            done_ns += level.slots[tick & level.mask].count * cost_ns
            if done_ns >= <int64_t>tick * tick_ns - now_ns:
                last = tick
            tick += 1
        return last

    def advance(self, uint64_t now_tick, uint32_t limit) -> list:
        """Take at most `limit` timers that are due at `now_tick` off the wheel; their ids, in the
        order of their dues. Call again while `limit` of them come."""
        cdef list due = []
        cdef uint64_t handles[SCRATCH_COUNT]
        cdef uint32_t wanted, got, k, index
        cdef Entry *entry
        if now_tick < self.wheel.now:
            raise ValueError(f"now_tick is {now_tick}; the wheel is at {self.wheel.now} already")
        while limit:
            wanted = min(limit, <uint32_t>SCRATCH_COUNT)
            got = self.wheel.c_advance(now_tick, handles, wanted)
            for k in range(got):
                index = self.armed[<uint32_t>handles[k]]
                entry = &self.slab[index]
                assert entry.handle == handles[k], "the wheel fired a stale handle"
                entry.handle = 0
                self.count_armed -= 1
                due.append(PyBytes_FromStringAndSize(<const char *>entry.id, ID_BYTES))
                self.put_back(index)
            if got < wanted:
                break
            limit -= got
        return due

    def load(
        self, const uint8_t[::1] ids, const uint8_t[::1] dues, uint8_t scale, int64_t shift_ns,
        int64_t tick_ns,
    ) -> int:
        """Arm timers from the due index; return how many were not armed or ruled by a newer record.

        ids: 16 bytes each. dues: 8 each, little-endian, on `scale`. shift_ns: from that to the
        wheel's scale. Raises WheelFull; what came before is then armed. 0.1 to 0.3 us each.
        """
        cdef Py_ssize_t count = ids.shape[0] // ID_BYTES
        cdef Py_ssize_t at, k, block
        cdef uint64_t words[BLOCK][2]
        cdef uint32_t index, loaded = 0
        cdef int64_t due_ns
        cdef Entry *entry
        if ids.shape[0] != count * ID_BYTES or dues.shape[0] != count * 8:
            raise ValueError(f"{ids.shape[0]} bytes of ids do not go with {dues.shape[0]} of dues")
        if tick_ns <= 0:
            raise ValueError(f"tick_ns is {tick_ns}; a tick is at least 1 ns")
        for at in range(0, count, BLOCK):
            block = min(count - at, <Py_ssize_t>BLOCK)
            memcpy(words, &ids[at * ID_BYTES], block * ID_BYTES)
            self.fetch_ahead(words, block)
            for k in range(block):
                index = self.find_or_add(words[k])
                entry = &self.slab[index]
                if entry.seq or entry.handle:
                    continue
                memcpy(&due_ns, &dues[(at + k) * 8], 8)
                entry.scale = scale
                entry.due_ns = due_ns
                self.arm_entry(index, tick_at_or_after(due_ns, shift_ns, tick_ns))
                loaded += 1
        return loaded

    def load_newer(
        self, int64_t from_ns, int64_t to_ns, uint8_t scale, int64_t shift_ns, int64_t tick_ns
    ) -> int:
        """Arm what is newer than the tables and due: from_ns <= due < to_ns on `scale`.

        Return how many were not armed yet. Raises WheelFull. Looks at every entry: 5 ns each.
        """
        cdef uint32_t index, loaded = 0
        cdef Entry *entry
        if tick_ns <= 0:
            raise ValueError(f"tick_ns is {tick_ns}; a tick is at least 1 ns")
        for index in range(1, self.high):
            entry = &self.slab[index]
            if entry.seq == 0 or entry.handle or entry.scale != scale or entry.due_ns == 0:
                continue
            if from_ns <= entry.due_ns < to_ns:
                self.arm_entry(index, tick_at_or_after(entry.due_ns, shift_ns, tick_ns))
                loaded += 1
        return loaded

    def newer_due(self, int64_t from_ns, int64_t to_ns, uint8_t scale) -> list:
        """(id, due) of what is newer than the tables and due: from_ns <= due < to_ns on `scale`."""
        cdef list found = []
        cdef uint32_t index
        cdef Entry *entry
        for index in range(1, self.high):
            entry = &self.slab[index]
            if entry.seq and entry.scale == scale and entry.due_ns:
                if from_ns <= entry.due_ns < to_ns:
                    id = PyBytes_FromStringAndSize(<const char *>entry.id, ID_BYTES)
                    found.append((id, entry.due_ns))
        return found

    def disarm_scale(self, uint8_t scale) -> int:
        """Disarm all timers of a scale, because it was stepped; return how many."""
        return self.disarm_if(scale, 0)

    def disarm_beyond(self, uint64_t due_tick) -> int:
        """Disarm what is due after `due_tick`, to make room; return how many."""
        return self.disarm_if(-1, due_tick)

    def sweep(self, uint64_t applied_seq, uint32_t budget) -> int:
        """Forget records that the tables have: those up to `applied_seq`. Looks at `budget` slots.

        Returns the applied_seq that the last complete round over all slots began with: the log may
        be trimmed up to it, as no entry points there. 3 ns a slot.
        """
        cdef uint32_t index, end
        if self.sweep_at == 0:
            if applied_seq <= self.swept_seq:
                return self.swept_seq
            self.sweep_seq = applied_seq
            self.sweep_at = 1
            # Slots that come into use during the round have newer records, as `note` sees to.
            self.sweep_end = self.high if self.count_newer else 1
        end = min(self.sweep_end, self.high)
        end = self.sweep_at + min(budget, max(end, self.sweep_at) - self.sweep_at)
        for index in range(self.sweep_at, end):
            if 0 < self.slab[index].seq <= applied_seq:
                self.slab[index].seq = 0
                self.count_newer -= 1
                self.put_back(index)
        self.sweep_at = end
        if end >= min(self.sweep_end, self.high):
            self.swept_seq = self.sweep_seq
            self.sweep_at = 0
        return self.swept_seq

    def clear(self) -> None:
        """Forget everything and disarm it."""
        cdef uint32_t index
        for index in range(1, self.high):
            if self.slab[index].handle:
                self.disarm_entry(index)
        # Untouched memory reads as 0 again, which is an empty bucket.
        madvise(self.bucket_region.base, self.bucket_region.committed, MADV_DONTNEED)
        madvise(self.slab_region.base, self.slab_region.committed, MADV_DONTNEED)
        self.high = 1
        self.free_head = self.count = self.count_newer = self.buckets_split = self.sweep_at = 0
        self.buckets_mask = BUCKETS_MIN - 1
        self.swept_seq = self.sweep_seq = 0

    cdef uint32_t buckets_count(self) noexcept nogil:
        return self.buckets_mask + 1 + self.buckets_split

    cdef uint32_t bucket_of(self, uint32_t hash) noexcept nogil:
        cdef uint32_t bucket = hash & self.buckets_mask
        if bucket < self.buckets_split:
            bucket = hash & (self.buckets_mask << 1 | 1)
        return bucket

    cdef uint32_t find(self, const uint64_t *id) noexcept nogil:
        """The slab index of an id; 0 if it is not here."""
        cdef uint32_t index = self.buckets[self.bucket_of(hash_of(id))]
        while index and (self.slab[index].id[1] != id[1] or self.slab[index].id[0] != id[0]):
            index = self.slab[index].next
        return index

    cdef uint32_t find_or_add(self, const uint64_t *id) except 0:
        """The slab index of an id; a new entry is neither newer nor armed."""
        cdef uint32_t index = self.find(id)
        cdef uint32_t *head
        cdef Entry *entry
        if index:
            return index
        index = self.free_head or self.high
        if index == self.high:
            if index == ENTRIES_MAX:
                raise MemoryError(f"the hot set holds {ENTRIES_MAX - 1} entries, its limit")
            commit(&self.slab_region, <size_t>(index + 1) * sizeof(Entry))
        while self.buckets_count() * 2 < (self.count + 1) * 3:
            self.split()
        entry = &self.slab[index]
        if index == self.high:
            self.high += 1
        else:
            self.free_head = entry.next
        head = &self.buckets[self.bucket_of(hash_of(id))]
        entry.id[0] = id[0]
        entry.id[1] = id[1]
        entry.seq = entry.handle = 0
        entry.due_ns = 0
        entry.scale = 0
        entry.next = head[0]
        head[0] = index
        self.count += 1
        return index

    cdef int split(self) except -1:
        """Make one bucket more out of the next in order."""
        cdef uint32_t low = self.buckets_split
        cdef uint32_t size = self.buckets_mask + 1
        cdef uint32_t index
        cdef uint32_t *stays
        cdef uint32_t *goes
        commit(&self.bucket_region, <size_t>(size + low + 1) * sizeof(uint32_t))
        stays = &self.buckets[low]
        goes = &self.buckets[size + low]
        index = stays[0]
        while index:
            if hash_of(self.slab[index].id) & size:
                goes[0] = index
                goes = &self.slab[index].next
            else:
                stays[0] = index
                stays = &self.slab[index].next
            index = self.slab[index].next
        stays[0] = goes[0] = 0
        self.buckets_split += 1
        if self.buckets_split == size:
            self.buckets_mask = self.buckets_mask << 1 | 1
            self.buckets_split = 0
        # One that will be split soon; by then its memory is here.
        prefetch(&self.slab[self.buckets[self.buckets_split + SPLITS_AHEAD]])
        return 0

    cdef int put_back(self, uint32_t index) noexcept nogil:
        """Free an entry that says nothing any more."""
        cdef Entry *entry = &self.slab[index]
        cdef uint32_t *link
        if entry.handle or entry.seq:
            return 0
        link = &self.buckets[self.bucket_of(hash_of(entry.id))]
        while link[0] != index:
            link = &self.slab[link[0]].next
        link[0] = entry.next
        entry.next = self.free_head
        self.free_head = index
        self.count -= 1
        if self.count == 0:
            # Begin again at the front, so that rounds over the slab are short after a peak.
            self.high, self.free_head = 1, 0
        return 0

    cdef int arm_entry(self, uint32_t index, uint64_t due_tick) except -1:
        cdef uint64_t handle = self.wheel.c_arm(due_tick)
        if handle == 0:
            self.put_back(index)
            raise WheelFull(f"the wheel holds {len(self.wheel)} timers, its capacity")
        try:
            commit(&self.armed_region, <size_t>(<uint32_t>handle + 1) * sizeof(uint32_t))
        except MemoryError:
            self.wheel.c_disarm(handle)
            self.put_back(index)
            raise
        self.armed[<uint32_t>handle] = index
        self.slab[index].handle = handle
        self.count_armed += 1
        return 0

    cdef int disarm_entry(self, uint32_t index) except -1:
        cdef bint was_armed = self.wheel.c_disarm(self.slab[index].handle)
        assert was_armed, "the wheel lost a timer"
        self.slab[index].handle = 0
        self.count_armed -= 1
        return 0

    cdef uint32_t disarm_if(self, int scale, uint64_t due_tick) except? 0:
        """Disarm what is of `scale`, or for a negative one what is due after `due_tick`."""
        cdef uint32_t index, disarmed = 0
        cdef uint64_t tick = 0
        cdef Entry *entry
        for index in range(1, self.high):
            entry = &self.slab[index]
            if entry.handle == 0 or (scale >= 0 and entry.scale != scale):
                continue
            if scale < 0 and self.wheel.c_due_tick(entry.handle, &tick) and tick <= due_tick:
                continue
            self.disarm_entry(index)
            self.put_back(index)
            disarmed += 1
        return disarmed

    cdef int fetch_ahead(self, uint64_t[2] *ids, Py_ssize_t count) noexcept nogil:
        """Ask for the memory that `count` look-ups will need."""
        cdef uint32_t buckets[BLOCK]
        cdef Py_ssize_t k
        for k in range(count):
            buckets[k] = self.bucket_of(hash_of(ids[k]))
            prefetch(&self.buckets[buckets[k]])
        for k in range(count):
            prefetch(&self.slab[self.buckets[buckets[k]]])
        return 0

    def _check(self) -> None:
        """Walk everything the slow way; raises AssertionError at the first thing that is wrong."""
        self.check_slab()
        self.check_buckets()
        assert self.count_armed == len(self.wheel), (self.count_armed, len(self.wheel))

    cdef int check_slab(self) except -1:
        cdef uint32_t index, free = 0, newer = 0, armed = 0
        cdef Entry *entry
        for index in range(1, self.high):
            entry = &self.slab[index]
            if entry.seq == 0 and entry.handle == 0:
                free += 1
                continue
            assert self.find(entry.id) == index, f"entry {index} is not found"
            assert entry.seq == 0 or entry.seq > self.swept_seq, index
            newer += entry.seq != 0
            if entry.handle:
                armed += 1
                assert self.armed[<uint32_t>entry.handle] == index, index
                assert self.wheel.c_is_armed(entry.handle), index
        assert self.count == self.high - 1 - free, (self.count, self.high, free)
        assert (newer, armed) == (self.count_newer, self.count_armed), (newer, armed)
        index = self.free_head
        while index:
            free -= 1
            assert self.slab[index].seq == 0 and self.slab[index].handle == 0, index
            index = self.slab[index].next
        assert free == 0, f"{free} free entries are not in the free list"
        return 0

    cdef int check_buckets(self) except -1:
        cdef uint32_t bucket, index, seen = 0
        for bucket in range(self.buckets_count()):
            index = self.buckets[bucket]
            while index:
                assert self.bucket_of(hash_of(self.slab[index].id)) == bucket, index
                seen += 1
                index = self.slab[index].next
        assert seen == self.count, (seen, self.count)
        return 0
