"""Reach into the wheel: call what has no Python name, and break invariants on purpose."""

from libc.stdint cimport uint32_t, uint64_t

from engine._wheel cimport Wheel
from engine._wheel_slots cimport CHUNK_BITS, Level, clear_bit, first_from, next_bit, set_bit


def call_without_gil(Wheel wheel, uint64_t due_tick, uint64_t now_tick):
    """Arm, look at, disarm and fire through the C methods; return what they said."""
    cdef uint64_t due_ticks[2]
    cdef uint64_t handles[2]
    cdef uint64_t out[4]
    cdef uint64_t tick = 0
    cdef uint64_t due = 0
    cdef uint64_t handle
    cdef size_t armed, disarmed, fired
    cdef bint is_armed, was_armed, has_next, has_due
    due_ticks[0] = due_ticks[1] = due_tick
    with nogil:
        handle = wheel.c_arm(due_tick)
        is_armed = wheel.c_is_armed(handle)
        has_due = wheel.c_due_tick(handle, &due)
        was_armed = wheel.c_disarm(handle)
        armed = wheel.c_arm_many(due_ticks, handles, 2)
        disarmed = wheel.c_disarm_many(handles, 1)
        has_next = wheel.c_next_tick(&tick)
        fired = wheel.c_advance(now_tick, out, 4)
    return (
        is_armed, has_due, due, was_armed, armed, disarmed, has_next, tick, fired,
        out[0] == handles[1],
    )


def set_generation(Wheel wheel, uint32_t index, uint32_t generation):
    wheel.pool.generations[index] = generation


def break_live(Wheel wheel):
    wheel.pool.live += 1


def break_dead(Wheel wheel):
    wheel.dead += 1


def break_bit(Wheel wheel, int level):
    cdef uint32_t at = next_bit(&wheel.levels[level], 0)
    wheel.levels[level].bits[at >> 6] ^= <uint64_t>1 << (at & 63)


def break_summary(Wheel wheel, int level):
    wheel.levels[level].summary = 0


def break_count(Wheel wheel, int level):
    wheel.levels[level].slots[next_bit(&wheel.levels[level], 0)].count -= 1


def break_tail(Wheel wheel, int level):
    wheel.levels[level].slots[next_bit(&wheel.levels[level], 0)].tail += 1


def break_entry(Wheel wheel, int level):
    """Turn a due tick's low bits in an entry, as a wrong slot would."""
    cdef uint32_t at = next_bit(&wheel.levels[level], 0)
    wheel.arena.words[wheel.levels[level].slots[at].head] ^= 1


def break_chain(Wheel wheel, int level):
    """Cut a slot of more than one chunk after its first."""
    cdef uint32_t at = next_bit(&wheel.levels[level], 0)
    wheel.arena.words[wheel.levels[level].slots[at].head >> CHUNK_BITS << CHUNK_BITS] = 1 << 32


def break_chunks(Wheel wheel):
    """Lose a chunk."""
    wheel.arena.top += 1


def break_free_index(Wheel wheel):
    wheel.pool.stack[0] = 0


def break_heap(Wheel wheel):
    wheel.far.items[0].due_tick = wheel.far.items[1].due_tick + 1


def break_place(Wheel wheel):
    wheel.pool.lows[<uint32_t>wheel.far.items[0].handle] += 1


def break_cursor(Wheel wheel):
    wheel.cursor = wheel.now + 1


def skip_cascade(Wheel wheel, uint64_t tick):
    """Put the cursor where nothing has been moved down."""
    wheel.now = wheel.cursor = tick


def walk_bits(occupied, uint64_t number):
    """The slot that follows `number` in a ring with these occupied, by the fast way; or None."""
    cdef Level level
    cdef uint64_t found = 0
    cdef uint32_t at
    level.mask = 4095
    level.summary = 0
    for at in range(64):
        level.bits[at] = 0
    for at in range(4096):  # setting all and clearing most exercises both
        set_bit(&level, at)
    for at in range(4096):
        if at not in occupied:
            clear_bit(&level, at)
    return found if first_from(&level, number, &found) else None
