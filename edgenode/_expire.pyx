"""Writes `expired` for a timer in C: from its newest record, or its row, to the next record.

Nothing is unpacked: the image is copied and changed, the definition is copied, and an `every` rule
is advanced by the arithmetic of `engine/schedule.py`. What is odd in any way (no definition in the
record, damage, a timer that was moved or has ended, numbers at their limits) is left as it is, and
`fire.fire_due` decides about it; it is the oracle (tests/unit/test_expire.py).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport INT64_MAX, UINT32_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from engine._crc cimport crc32
from engine._hot cimport HotSet, arm_anew, disarm_again, note_newer
from engine._record cimport (
    FLAG_BLOB, FLAG_IMAGE, RECORD_VERSION, ROW_SEED, SCALE_STEADY, STATE_SCHEDULED, BlobHead,
    EventHead, Image, RowHead,
)

from edgenode import misfire as _misfire
from engine import record as _record
from engine import schedule as _schedule
from engine import timer as _timer

cdef extern from "<string.h>" nogil:
    void *memmem(const void *text, size_t size, const void *part, size_t part_size)

cdef const char* BUDGET = '"lateness_budget":'
cdef const char* KEY = '"key":'
cdef const char* POLICY = '"misfire":'

cdef enum:
    BUDGET_BYTES = 18
    KEY_BYTES = 6
    POLICY_BYTES = 10
    ID_BYTES = 16
    KIND_EXPIRED = 2
    FLAG_MISFIRE = 4
    STATE_COMPLETED = 3
    REASON_NONE = 0
    REASON_MAX_OCCURRENCES = 3
    REASON_EXPIRES_AT = 4
    FIXED_DELAY = 1

assert (KIND_EXPIRED, FLAG_MISFIRE) == (_record.Kind.EXPIRED, _record.FLAG_MISFIRE)
assert STATE_COMPLETED == _timer.State.COMPLETED
assert (REASON_NONE, REASON_MAX_OCCURRENCES, REASON_EXPIRES_AT) == (
    _timer.Reason.NONE,
    _timer.Reason.MAX_OCCURRENCES,
    _timer.Reason.EXPIRES_AT,
)
assert FIXED_DELAY == _schedule.FIXED_DELAY
assert <bytes>POLICY == _misfire.MARK and POLICY_BYTES == len(_misfire.MARK)


cdef packed struct Rule:  # engine/schedule.py, 36 bytes
    uint8_t recurring
    uint8_t mode
    uint16_t reserved
    uint32_t max_occurrences
    uint32_t first
    int64_t interval_ns
    int64_t anchor_ns
    int64_t expires_ns

assert sizeof(Rule) == len(_schedule.pack_rule(_schedule.ONE_SHOT._replace(recurring=True)))


cdef struct Instant:  # when it is decided, and what that is held against
    int64_t steady_ns, utc_ns, shift_ns
    int64_t wheel_tick, tick_ns
    int64_t misfire_after_ns, serving_since_ns
    int64_t held_steady_ns, held_wall_ns  # what is due before is held
    bint wall_held  # the wall clock is in doubt: its timers do not fire


cdef const char* image_of(bytes stored, uint64_t seq) noexcept:
    """The image inside a record (seq: where it stands) or a row (seq: 0) that is sound; or NULL."""
    cdef const char* raw = PyBytes_AS_STRING(stored)
    cdef size_t size = PyBytes_GET_SIZE(stored)
    cdef const EventHead* event = <const EventHead*>raw
    cdef const RowHead* row = <const RowHead*>raw
    cdef size_t head = sizeof(EventHead) if seq else sizeof(RowHead)
    cdef uint32_t seed = <uint32_t>(seq & UINT32_MAX) if seq else <uint32_t>ROW_SEED
    if size < head + sizeof(Image) + sizeof(BlobHead) or row.version != RECORD_VERSION:
        return NULL
    if seq and event.flags & (FLAG_IMAGE | FLAG_BLOB) != (FLAG_IMAGE | FLAG_BLOB):
        return NULL
    if crc32(seed, raw + 4, size - 4) != row.crc:
        return NULL
    if seq and (<const Image*>(raw + head)).seq != seq:
        return NULL
    return raw + head


cdef bint holds(const char* rest, size_t size, bint late) noexcept nogil:
    if memmem(rest, size, BUDGET, BUDGET_BYTES) != NULL:
        return True
    if memmem(rest, size, KEY, KEY_BYTES) != NULL:
        return True
    return late and memmem(rest, size, POLICY, POLICY_BYTES) != NULL


cdef bint read_rule(const char* blob, size_t size, bint late, Rule* rule) noexcept nogil:
    """The rule of a definition; False if the definition does not add up, or has a budget of
    lateness, a key or, where it is late, a misfire policy: these are for Python to read."""
    cdef const BlobHead* head = <const BlobHead*>blob
    cdef uint64_t total = sizeof(BlobHead) + <uint64_t>head.rule_bytes + head.name_bytes
    total += head.labels_bytes + <uint64_t>head.schedule_bytes + head.payload_bytes
    total += head.rest_bytes
    if total != size:
        return False
    if head.rest_bytes and holds(blob + size - head.rest_bytes, head.rest_bytes, late):
        return False
    rule.recurring = 0
    if head.rule_bytes:
        if head.rule_bytes != sizeof(Rule):
            return False
        memcpy(rule, blob + sizeof(BlobHead), sizeof(Rule))
    return True


cdef inline int64_t floor_div(int64_t number, int64_t by) noexcept nogil:
    return number // by - (number % by < 0)


cdef inline bint is_beyond(const Rule* rule, int64_t number, int64_t due_utc_ns) noexcept nogil:
    """Whether an occurrence is beyond the limits of its rule."""
    if rule.max_occurrences and number > rule.max_occurrences:
        return True
    return rule.expires_ns != 0 and due_utc_ns >= rule.expires_ns


cdef int advance(Image* image, const Rule* rule, const Instant* now) noexcept nogil:
    """The image after the fire; 0 if its numbers are beyond what C reckons with."""
    cdef int64_t number = <int64_t>image.occurrence + 1, behind, steps, due_ns
    if not rule.recurring:
        image.state, image.reason = STATE_COMPLETED, REASON_NONE
        return 1
    if rule.interval_ns <= 0 or rule.anchor_ns < 0 or image.due_ns < 0 or now.steady_ns < 0:
        return 0
    if rule.mode == FIXED_DELAY:
        due_ns = max(image.due_ns, now.steady_ns)
        if due_ns > INT64_MAX - rule.interval_ns:
            return 0
        due_ns += rule.interval_ns
    else:
        behind = floor_div(now.steady_ns - rule.anchor_ns, rule.interval_ns)
        if behind > UINT32_MAX:
            return 0
        number = max(number, rule.first + behind + 1)
        steps = number - rule.first
        if steps < 0 or steps > (INT64_MAX - rule.anchor_ns) // rule.interval_ns:
            return 0
        due_ns = rule.anchor_ns + steps * rule.interval_ns
    if number > UINT32_MAX or (now.shift_ns > 0 and due_ns > INT64_MAX - now.shift_ns):
        return 0
    if is_beyond(rule, number, due_ns + (now.shift_ns if image.scale == SCALE_STEADY else 0)):
        image.state, image.reason = STATE_COMPLETED, REASON_EXPIRES_AT
        if rule.max_occurrences and image.occurrence >= rule.max_occurrences:
            image.reason = REASON_MAX_OCCURRENCES
    else:
        image.due_ns, image.occurrence, image.reason = due_ns, <uint32_t>number, REASON_NONE
    return 1


cdef inline int64_t deadline_of(const Image* image, const Instant* now) noexcept nogil:
    return image.due_ns if image.scale == SCALE_STEADY else image.due_ns - now.shift_ns


cdef inline int64_t tick_at_or_after(int64_t deadline_ns, int64_t tick_ns) noexcept nogil:
    return deadline_ns // tick_ns + (deadline_ns % tick_ns > 0)


cdef bytes expired(
    const char* image_at, size_t size, bytes id, uint64_t seq, const Instant* now
):
    """The record of the fire; None if it is not for C to write."""
    cdef const Image* before = <const Image*>image_at
    cdef int64_t deadline_ns = deadline_of(before, now)
    cdef bytes made
    cdef EventHead* event
    cdef Image* image
    cdef Rule rule
    if before.state != STATE_SCHEDULED or before.revision == UINT32_MAX or before.due_ns <= 0:
        return None
    if before.due_ns < (
        now.held_steady_ns if before.scale == SCALE_STEADY else now.held_wall_ns
    ):
        return None
    if before.scale != SCALE_STEADY and now.wall_held:
        return None
    if memcmp(before.id, PyBytes_AS_STRING(id), ID_BYTES) != 0:
        return None
    if tick_at_or_after(deadline_ns, now.tick_ns) > now.wheel_tick:
        return None
    if not read_rule(
        image_at + sizeof(Image), size - sizeof(Image), deadline_ns < now.steady_ns, &rule
    ):
        return None
    made = PyBytes_FromStringAndSize(NULL, sizeof(EventHead) + size)
    event = <EventHead*>PyBytes_AS_STRING(made)
    image = <Image*>(PyBytes_AS_STRING(made) + sizeof(EventHead))
    memcpy(image, image_at, size)
    event.version, event.kind, event.reserved = RECORD_VERSION, KIND_EXPIRED, 0
    event.flags = FLAG_IMAGE | FLAG_BLOB
    if (
        now.steady_ns - deadline_ns > now.misfire_after_ns or deadline_ns < now.serving_since_ns
    ):
        event.flags |= FLAG_MISFIRE
    event.at_ns, event.prev_seq = now.utc_ns, before.seq
    event.due_ns = before.due_ns + (now.shift_ns if before.scale == SCALE_STEADY else 0)
    event.occurrence = before.occurrence
    image.seq, image.revision = seq, before.revision + 1
    if not advance(image, &rule, now):
        return None
    event.crc = crc32(<uint32_t>(seq & UINT32_MAX), &event.version, sizeof(EventHead) + size - 4)
    return made


def expire(
    HotSet hot not None, bytes id not None, bytes stored not None, uint64_t stored_seq,
    list events not None, uint64_t seq, now, int64_t wheel_tick, int64_t tick_ns,
    int64_t misfire_after_ns, int64_t serving_since_ns, int64_t horizon_ns, bint wall_held,
    tuple held_before_ns not None,
) -> tuple | None:
    """Fire a timer: its record is added to `events`, and the hot set has its next occurrence.

    stored: its newest record, at stored_seq, or its row, and then 0. seq: of the new record.
    held_before_ns: by scale, what is due before does not fire.
    Returns its due on its own scale, whether that is the wall clock's, and whether it goes on; or
    None if nothing was done, for it is not plain. 1 us.
    """
    cdef const char* image_at = image_of(stored, stored_seq)
    cdef const uint64_t* words = <const uint64_t*>PyBytes_AS_STRING(id)
    cdef Instant instant
    cdef const Image* image
    cdef bytes made
    cdef bint goes_on
    cdef int64_t due_ns
    if image_at == NULL or PyBytes_GET_SIZE(id) != ID_BYTES:
        return None
    due_ns = (<const Image*>image_at).due_ns
    instant.steady_ns, instant.utc_ns, instant.shift_ns = now
    instant.wheel_tick, instant.tick_ns = wheel_tick, tick_ns
    instant.wall_held = wall_held
    instant.held_steady_ns, instant.held_wall_ns = held_before_ns
    instant.misfire_after_ns, instant.serving_since_ns = misfire_after_ns, serving_since_ns
    made = expired(
        image_at,
        PyBytes_AS_STRING(stored) + PyBytes_GET_SIZE(stored) - image_at,
        id,
        seq,
        &instant,
    )
    if made is None:
        return None
    image = <const Image*>(PyBytes_AS_STRING(made) + sizeof(EventHead))
    goes_on = image.state == STATE_SCHEDULED
    events.append(made)
    note_newer(hot, words, seq, image.due_ns if goes_on else 0, image.scale)
    if goes_on and deadline_of(image, &instant) < horizon_ns:
        arm_anew(
            hot, words, <uint64_t>max(tick_at_or_after(deadline_of(image, &instant), tick_ns), 0)
        )
    else:
        disarm_again(hot, words)
    return due_ns, image.scale != SCALE_STEADY, goes_on
