"""What leaves as JSON, put together in C from stored bytes: views, events, topics.

Schedule, labels and payload are JSON already when they are stored, so they are copied, never
parsed. A view or an event costs about 1 us; in Python it was 5 to 14, and of all that the turn did
this was the most. `tests/unit/slow_encode.py` says the same in Python and is the oracle.

Names hold no control characters (`definitions.py` refuses them): only quotes and backslashes are
escaped. Layouts are those of `engine/record.py`.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

import cython

from engine._record cimport big_endian

from edgenode import encode as _names
from engine import record as _record
from engine.record import Kind as _Kind
from minoots.wire.frames import long_type as _long_type
from minoots.wire.times import format_duration as _format_duration

cdef const char* DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
cdef const char* HEX = "0123456789ABCDEF"

cdef enum:
    HEAD = 40  # engine.record.EVENT_HEAD_BYTES
    IMAGE = 72
    BLOB = 20
    HAS_IMAGE = 1
    MISFIRE = 4
    STEADY = 0
    LATE = 3
    SKIPPED = 10
    ESCALATED = 11
    FIXED_MAX = 1200  # more than all members of fixed size take
    ID_TEXT = 30
    ROOM = 6144  # on the stack, for what is put together; what is larger gets memory of its own

assert (HEAD, IMAGE, BLOB, HAS_IMAGE, MISFIRE, STEADY) == (
    _record.EVENT_HEAD_BYTES,
    _record.IMAGE_BYTES,
    _record.BLOB_HEAD.size,
    _record.FLAG_IMAGE,
    _record.FLAG_MISFIRE,
    _record.Scale.STEADY,
)
assert _record.IMAGE_END == HEAD + IMAGE
assert (_Kind.LATE, _Kind.SKIPPED, _Kind.ESCALATED) == (LATE, SKIPPED, ESCALATED)

cdef struct Parts:  # of a blob
    const char* name
    const char* labels
    const char* schedule
    const char* payload
    const char* rest
    uint32_t name_bytes
    uint32_t labels_bytes
    uint32_t schedule_bytes
    uint32_t payload_bytes
    uint32_t rest_bytes


cdef inline uint64_t u64(const char* at) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, at, 8)
    return value


cdef inline int64_t i64(const char* at) noexcept nogil:
    cdef int64_t value
    memcpy(&value, at, 8)
    return value


cdef inline uint32_t u32(const char* at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, 4)
    return value


cdef inline uint16_t u16(const char* at) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, at, 2)
    return value


cdef inline char* put(char* to, const char* text, size_t size) noexcept nogil:
    memcpy(to, text, size)
    return to + size


cdef inline char* put_text(char* to, bytes text):
    return put(to, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))


# All numbers of two digits, and all pairs of base32 digits.
cdef char[200] TENS
cdef char[2048] PAIRS


cdef void fill_tables() noexcept:
    cdef int k
    for k in range(100):
        TENS[2 * k], TENS[2 * k + 1] = <char>(48 + k // 10), <char>(48 + k % 10)
    for k in range(1024):
        PAIRS[2 * k], PAIRS[2 * k + 1] = DIGITS[k >> 5], DIGITS[k & 31]


fill_tables()


cdef inline char* put_two(char* to, uint32_t number) noexcept nogil:
    memcpy(to, &TENS[2 * number], 2)
    return to + 2


cdef char* put_number(char* to, uint64_t number) noexcept nogil:
    """Decimal."""
    cdef char[24] digits
    cdef int at = 24
    while number >= 100:
        at -= 2
        memcpy(&digits[at], &TENS[2 * (number % 100)], 2)
        number //= 100
    if number >= 10:
        at -= 2
        memcpy(&digits[at], &TENS[2 * number], 2)
    else:
        at -= 1
        digits[at] = <char>(48 + number)
    return put(to, &digits[at], 24 - at)


cdef char* put_sequence(char* to, uint64_t number) noexcept nogil:
    """Decimal in 20 digits, zeros in front."""
    cdef int at
    for at in range(18, -1, -2):
        memcpy(to + at, &TENS[2 * (number % 100)], 2)
        number //= 100
    return to + 20


cdef char* put_instant(char* to, int64_t at_ns) noexcept nogil:
    """RFC 3339 UTC with nanoseconds. Civil date from days by eras of 400 years from 1 March 0000."""
    cdef uint64_t seconds = <uint64_t>at_ns // 1000000000
    cdef uint32_t ns = <uint32_t>(<uint64_t>at_ns - seconds * 1000000000)
    cdef uint32_t days = <uint32_t>(seconds // 86400)
    cdef uint32_t second = <uint32_t>(seconds - <uint64_t>days * 86400)
    cdef uint32_t era, day, year, of_year, month
    days += 719468
    era = days // 146097
    day = days % 146097
    year = (day - day // 1460 + day // 36524 - day // 146096) // 365
    of_year = day - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    year += era * 400 + (1 if month >= 10 else 0)
    to = put_two(put_two(to, year // 100), year % 100)
    to[0] = 45
    to = put_two(to + 1, month + 3 if month < 10 else month - 9)
    to[0] = 45
    to = put_two(to + 1, of_year - (153 * month + 2) // 5 + 1)
    to[0] = 84
    to = put_two(to + 1, second // 3600)
    to[0] = 58
    to = put_two(to + 1, second // 60 % 60)
    to[0] = 58
    to = put_two(to + 1, second % 60)
    to[0] = 46
    to[1] = <char>(48 + ns // 100000000)
    to = put_two(to + 2, ns // 1000000 % 100)
    to = put_two(to, ns // 10000 % 100)
    to = put_two(to, ns // 100 % 100)
    to = put_two(to, ns % 100)
    to[0] = 90
    return to + 1


@cython.overflowcheck(False)  # bits leave at the top on purpose
cdef char* put_id(char* to, const char* id) noexcept nogil:
    """`tmr_` and Crockford's base32 of 128 bits, 26 digits, the first of three bits."""
    cdef uint64_t high = big_endian(u64(id)), low = big_endian(u64(id + 8))
    cdef int pair
    to = put(to, "tmr_", 4)
    # Thirteen pairs of ten bits each; the seventh has bits of both words.
    for pair in range(6):
        memcpy(to + 2 * pair, &PAIRS[2 * (high >> (56 - 10 * pair) & 1023)], 2)
    memcpy(to + 12, &PAIRS[2 * ((low >> 60 | high << 4) & 1023)], 2)
    for pair in range(6):
        memcpy(to + 14 + 2 * pair, &PAIRS[2 * (low >> (50 - 10 * pair) & 1023)], 2)
    return to + 26


cdef char* put_escaped(char* to, const char* text, size_t size) noexcept nogil:
    """The inside of a JSON string."""
    cdef size_t i
    for i in range(size):
        if text[i] == 34 or text[i] == 92:
            to[0] = 92
            to += 1
        to[0] = text[i]
        to += 1
    return to


cdef char* put_percent(char* to, const char* text, size_t size) noexcept nogil:
    """Percent-encoded but for letters, digits and `-._~` (RFC 3986, 2.3)."""
    cdef size_t i
    cdef uint8_t c
    for i in range(size):
        c = <uint8_t>text[i]
        if 48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122 or c in (45, 46, 95, 126):
            to[0] = c
            to += 1
        else:
            to[0] = 37
            to[1] = HEX[c >> 4]
            to[2] = HEX[c & 15]
            to += 3
    return to


cdef int read_parts(Parts* parts, const char* blob, size_t size) except -1:
    cdef uint64_t rule_bytes, total
    if size == 0:
        parts.name = parts.labels = parts.schedule = parts.payload = parts.rest = b""
        parts.name_bytes = parts.labels_bytes = parts.schedule_bytes = 0
        parts.payload_bytes = parts.rest_bytes = 0
        return 0
    if size < BLOB:
        raise ValueError(f"a definition of {size} bytes has no room for its head")
    rule_bytes = u16(blob)
    parts.name_bytes, parts.labels_bytes = u16(blob + 2), u16(blob + 4)
    parts.schedule_bytes, parts.payload_bytes = u32(blob + 8), u32(blob + 12)
    parts.rest_bytes = u32(blob + 16)
    total = BLOB + rule_bytes + parts.name_bytes + parts.labels_bytes
    total += <uint64_t>parts.schedule_bytes + parts.payload_bytes + parts.rest_bytes
    if total != size:
        raise ValueError(f"a definition of {size} bytes holds parts of {total}")
    parts.name = blob + BLOB + rule_bytes
    parts.labels = parts.name + parts.name_bytes
    parts.schedule = parts.labels + parts.labels_bytes
    parts.payload = parts.schedule + parts.schedule_bytes
    parts.rest = parts.payload + parts.payload_bytes
    return 0


# By a byte of the image, whatever stands there: one that a later version wrote has no name.
_STATES = [_names.STATE_NAMES.get(state, "").encode() for state in range(256)]
_REASONS = [_names.REASON_NAMES.get(reason, "").encode() for reason in range(256)]
_FIRES = frozenset({_Kind.EXPIRED, _Kind.SKIPPED, _Kind.LATE, _Kind.ESCALATED})


@cython.final
cdef class Encoder:
    """Makes the JSON of one node's views and events."""

    def __init__(self, str node_id, str tenant, uint64_t epoch) -> None:
        source = f'"source":"minoots://{node_id}/{tenant}",'
        self.tenant = tenant.encode()
        self.id_prefix = f'{{"specversion":"1.0","id":"{epoch}-'.encode()
        self.view_tenant = f'","tenant":"{tenant}","state":"'.encode()
        self.epoch_tenant = f'","epoch":{epoch},"tenant":"{tenant}",'.encode()
        self.dedupe = f'","dedupekey":"{tenant}/'.encode()
        self.types = {
            kind: f'",{source}"type":"{_long_type(name)}","time":"'.encode()
            for kind, name in _names.KIND_NAMES.items()
        }
        self.topics = {
            kind: f"t/{tenant}/e/{name}/".encode() for kind, name in _names.KIND_NAMES.items()
        }

    def event(
        self, uint64_t seq, bytes data not None, int64_t fired_ns=-1, uint32_t attempt=1
    ) -> bytes:
        """One CloudEvent of the record at `seq`. fired_ns: its receipt's, -1 while there is none;
        a live frame has it in its stamp. Raises ValueError for a record that does not add up."""
        cdef const char* raw = PyBytes_AS_STRING(data)
        cdef size_t size = PyBytes_GET_SIZE(data)
        cdef char[ROOM] room
        cdef char* start = room
        cdef bytes larger
        cdef char* to
        if size < HEAD or (u16(raw + 6) & HAS_IMAGE and size < HEAD + IMAGE):
            raise ValueError(f"event {seq} is cut short at {size} bytes")
        if FIXED_MAX + 2 * size > ROOM:
            larger = PyBytes_FromStringAndSize(NULL, FIXED_MAX + 2 * size)
            start = PyBytes_AS_STRING(larger)
        to = self.put_head(start, seq, raw)
        if u16(raw + 6) & HAS_IMAGE:
            to = self.put_timer(to, raw, size, fired_ns, attempt)
        else:
            to = put(to, '"data":', 7)
            to = put(to, raw + HEAD, size - HEAD)
        to[0] = 125
        return PyBytes_FromStringAndSize(start, to + 1 - start)

    cdef char* put_head(self, char* to, uint64_t seq, const char* raw) except NULL:
        cdef int kind = <uint8_t>raw[5]
        cdef int64_t at_ns = i64(raw + 8), due_ns = i64(raw + 24)
        to = put_text(to, self.id_prefix)
        to = put_number(to, seq)
        to = put_text(to, <bytes>self.types[kind])
        to = put_instant(to, max(at_ns, due_ns) if kind in _FIRES else at_ns)
        to = put(to, '","datacontenttype":"application/json","sequence":"', 51)
        to = put_sequence(to, seq)
        return put_text(to, self.epoch_tenant)

    cdef char* put_timer(
        self, char* to, const char* raw, size_t size, int64_t fired_ns, uint32_t attempt
    ) except NULL:
        cdef const char* image = raw + HEAD
        cdef int64_t due_ns = i64(raw + 24)
        cdef uint32_t occurrence = u32(raw + 32)
        cdef char[ID_TEXT] id_text
        cdef Parts parts
        if <uint8_t>raw[5] == LATE:
            fired_ns = i64(raw + 8)  # it is told of that instant
        read_parts(&parts, image + IMAGE, size - HEAD - IMAGE)
        to = put(to, '"subject":"', 11)
        put_id(id_text, image)
        to = put(to, id_text, ID_TEXT)
        to = put_text(to, self.dedupe)
        to = put(to, id_text, ID_TEXT)
        to[0] = 47
        to = put_number(to + 1, occurrence)
        to = put(to, '","attempt":', 12)
        to = put_number(to, attempt)
        to = put(to, ',"data":{"timer_id":"', 21)
        to = put(to, id_text, ID_TEXT)
        to = put(to, '","occurrence":', 15)
        to = put_number(to, occurrence)
        if due_ns:
            to = put(to, ',"due":"', 8)
            to = put_instant(to, due_ns)
            to = put(to, '"', 1)
        if fired_ns >= 0:
            to = put(to, ',"fired":"', 10)
            to = put_instant(to, fired_ns)
            to = put(to, '","lateness_us":', 16)
            to = put_number(to, max(fired_ns - due_ns, 0) // 1000)
        if <uint8_t>raw[5] in _FIRES:
            if u16(raw + 6) & MISFIRE:
                to = put(to, ',"misfire":true', 15)
            else:
                to = put(to, ',"misfire":false', 16)
        to = put(to, ',"state":"', 10)
        to = put_text(to, <bytes>_STATES[<uint8_t>image[66]])
        to = put(to, '","state_reason":"', 18)
        to = put_text(to, <bytes>_REASONS[<uint8_t>image[68]])
        to = put_named(put(to, '",', 2), &parts)
        if parts.payload_bytes:
            to = put(to, ',"payload":', 11)
            to = put(to, parts.payload, parts.payload_bytes)
        if <uint8_t>raw[5] in (SKIPPED, ESCALATED) and parts.rest_bytes > 2:
            to = put(to, ",", 1)
            to = put(to, parts.rest + 1, parts.rest_bytes - 2)
        return put(to, "}", 1)

    def view(
        self, bytes raw not None, Py_ssize_t at, int64_t shift_ns, str position=""
    ) -> bytes:
        """A timer view of the image that stands at `at` in `raw`, its whole definition behind it.

        shift_ns: UTC minus steady. position: `armed` or `firing` where that is what the timer is.
        Raises ValueError for bytes that do not add up."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(raw) - at
        if at < 0 or size < IMAGE:
            raise ValueError(f"an image of {size} bytes is cut short")
        return self.view_at(
            PyBytes_AS_STRING(raw) + at, size, shift_ns, position.encode() if position else None
        )

    cdef bytes view_at(self, const char* image, Py_ssize_t size, int64_t shift_ns, bytes state):
        cdef char[ROOM] room
        cdef char* start = room
        cdef bytes larger
        if FIXED_MAX + 2 * size > ROOM:
            larger = PyBytes_FromStringAndSize(NULL, FIXED_MAX + 2 * size)
            start = PyBytes_AS_STRING(larger)
        return PyBytes_FromStringAndSize(
            start, self.put_view(start, image, size, shift_ns, state) - start
        )

    cdef char* put_view(
        self, char* to, const char* image, Py_ssize_t size, int64_t shift_ns, bytes state
    ) except NULL:
        """state: None for what the image says."""
        cdef int64_t due_ns = i64(image + 24), left_ns = i64(image + 40)
        cdef Parts parts
        read_parts(&parts, image + IMAGE, size - IMAGE)
        to = put(to, '{"id":"', 7)
        to = put_text(put_id(to, image), self.view_tenant)
        to = put_text(to, <bytes>_STATES[<uint8_t>image[66]] if state is None else state)
        to = put(to, '","state_reason":"', 18)
        to = put_text(to, <bytes>_REASONS[<uint8_t>image[68]])
        to = put(to, '","occurrence":', 15)
        to = put_number(to, u32(image + 56))
        if due_ns:
            to = put(to, ',"due":"', 8)
            to = put_instant(to, due_ns + (shift_ns if image[67] == STEADY else 0))
            to = put(to, '"', 1)
        if left_ns:
            to = put_text(to, f',"remaining":"{_format_duration(left_ns)}"'.encode())
        if parts.rest_bytes > 2:
            to = put(to, ",", 1)
            to = put(to, parts.rest + 1, parts.rest_bytes - 2)
        to = put(to, ',"revision":', 12)
        to = put_number(to, u32(image + 60))
        to = put(to, ',"created_at":"', 15)
        to = put_instant(to, i64(image + 32))
        to = put_named(put(to, '",', 2), &parts)
        to = put(to, ',"schedule":', 12)
        to = put_json(to, parts.schedule, parts.schedule_bytes)
        to = put(to, ',"payload":', 11)
        to = put_json(to, parts.payload, parts.payload_bytes)
        return put(to, "}", 1)

    def expiry(self, uint64_t seq, bytes data not None, bint wanted) -> tuple:
        """What an `expired` record says of its release: the due in UTC and whether it is a misfire;
        its topic and its body, if they are wanted, else b"" and None."""
        cdef const char* raw = PyBytes_AS_STRING(data)
        if PyBytes_GET_SIZE(data) < HEAD:
            raise ValueError(f"event {seq} is cut short at {PyBytes_GET_SIZE(data)} bytes")
        cdef bint misfire = u16(raw + 6) & MISFIRE != 0
        if not wanted:
            return i64(raw + 24), misfire, b"", None
        return i64(raw + 24), misfire, self.topic(data), self.event(seq, data)

    def topic(self, bytes data not None) -> bytes:
        """The topic of a record: t/<tenant>/e/<type>/<name, percent-encoded>/<timer id>."""
        cdef const char* raw = PyBytes_AS_STRING(data)
        cdef size_t size = PyBytes_GET_SIZE(data)
        cdef Parts parts
        cdef char[ROOM] room
        cdef char* start = room
        cdef bytes larger
        cdef char* to
        if size < HEAD or not u16(raw + 6) & HAS_IMAGE or size < HEAD + IMAGE:
            return <bytes>self.topics[data[5]] + b"/"
        read_parts(&parts, raw + HEAD + IMAGE, size - HEAD - IMAGE)
        if 256 + 3 * parts.name_bytes > ROOM:
            larger = PyBytes_FromStringAndSize(NULL, 256 + 3 * parts.name_bytes)
            start = PyBytes_AS_STRING(larger)
        to = put_text(start, <bytes>self.topics[<uint8_t>raw[5]])
        to = put_percent(to, parts.name, parts.name_bytes)
        to = put_id(put(to, "/", 1), raw + HEAD)
        return PyBytes_FromStringAndSize(start, to - start)


cdef char* put_named(char* to, const Parts* parts) noexcept nogil:
    to = put(to, '"name":"', 8)
    to = put_escaped(to, parts.name, parts.name_bytes)
    to = put(to, '","labels":', 11)
    if parts.labels_bytes:
        return put(to, parts.labels, parts.labels_bytes)
    return put(to, "{}", 2)


cdef char* put_json(char* to, const char* text, size_t size) noexcept nogil:
    return put(to, text, size) if size else put(to, "null", 4)
