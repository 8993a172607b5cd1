"""Makes the record of a new timer straight from the bytes of a request, where these are plain.

A draft is the whole record of a `scheduled` event but for what is known only when it is written:
its seq, the timer's id, the instant of the decision and the checksum. A create of 300 bytes costs
1 us here, where decoding, checking and packing objects cost 7. Whatever is not plain gets None, and
goes the way through `definitions.plan`, which alone refuses; the records are the same, byte by byte
(tests/unit/test_draft.py).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import cython

from edgenode._encode cimport Encoder
from edgenode._plain cimport (
    KIND_AFTER, Plain, Span, is_word, read_definition, read_text, skip_space, skip_value,
)
from engine._blake cimport name_hash
from engine._crc cimport crc32
from engine._hot cimport HotSet, arm_anew, note_newer
from engine._record cimport (
    FLAG_BLOB, FLAG_IMAGE, KIND_SCHEDULED, RECORD_VERSION, SCALE_STEADY, STATE_SCHEDULED, BlobHead,
    EventHead, Image, big_endian,
)

import msgspec

from edgenode import definitions as _definitions
from minoots.wire.bodies import SCHEDULE_MANY_MAX as _SCHEDULE_MANY_MAX

cdef enum:
    SCALE_WALL = 1
    COUNT_MAX = 1000
    ID_BYTES = 16

cdef int64_t PAST_GRACE_NS = _definitions.PAST_GRACE_NS
cdef const char* AFTER_HEAD = b'{"duration":"'
cdef const char* AFTER_TAIL = b'","kind":"after"}'
cdef const char* AT_HEAD = b'{"instant":"'
cdef const char* AT_TAIL = b'","kind":"at"}'

assert COUNT_MAX == _SCHEDULE_MANY_MAX


cdef int read_terms(Terms* terms, now, limits) except -1:
    terms.steady_ns, terms.utc_ns, terms.shift_ns = now
    terms.due_max_ns = limits.due_max
    terms.name_bytes_max = limits.name_bytes_max
    terms.labels_max = limits.labels_max
    terms.payload_bytes_max = limits.payload_bytes_max
    return 0


cdef inline char* put(char* to, const void* from_, size_t size) noexcept nogil:
    if size:  # without a name there is nothing to copy from either
        memcpy(to, from_, size)
    return to + size


cdef bint is_allowed(const Plain* asked, const Terms* terms) noexcept nogil:
    """Whether nothing forbids it; what does is for `definitions.plan` to say."""
    if (
        asked.name.size > <size_t>terms.name_bytes_max
        or asked.labels_count > terms.labels_max
        or asked.payload.size > <size_t>terms.payload_bytes_max
    ):
        return False
    if asked.kind == KIND_AFTER:
        return asked.when_ns <= terms.due_max_ns and terms.steady_ns <= INT64_MAX - asked.when_ns
    return -PAST_GRACE_NS <= asked.when_ns - terms.utc_ns <= terms.due_max_ns


cdef bint is_printable(const Plain* asked) except -1:
    cdef const char* at = asked.name.at
    cdef size_t k
    if not asked.name_is_ascii:
        return at[: asked.name.size].decode("utf-8", "surrogatepass").isprintable()
    for k in range(asked.name.size):
        if at[k] == 127:  # the texts hold nothing below 32
            return False
    return True


cdef bytes draft_of(const Plain* asked, const Terms* terms):
    """The draft of a definition; None if something forbids it."""
    cdef BlobHead head
    cdef Image* image
    cdef EventHead* event
    cdef size_t size
    cdef bint after = asked.kind == KIND_AFTER
    cdef bytes made
    cdef char* to
    if not is_allowed(asked, terms) or not is_printable(asked):
        return None
    memset(&head, 0, sizeof(head))
    head.name_bytes = asked.name.size
    head.labels_bytes = 2 + asked.labels_bytes
    if asked.labels_count:
        head.labels_bytes += 6 * asked.labels_count - 1
    head.schedule_bytes = asked.when.size + (30 if after else 26)
    head.payload_bytes = asked.payload.size or 4
    size = sizeof(EventHead) + sizeof(Image) + sizeof(BlobHead) + head.name_bytes
    size += head.labels_bytes + head.schedule_bytes + head.payload_bytes
    made = PyBytes_FromStringAndSize(NULL, size)
    to = PyBytes_AS_STRING(made)
    event, image = <EventHead*>to, <Image*>(to + sizeof(EventHead))
    memset(to, 0, sizeof(EventHead) + sizeof(Image))
    event.version = RECORD_VERSION
    event.kind = KIND_SCHEDULED
    event.flags = FLAG_IMAGE | FLAG_BLOB
    event.occurrence = image.occurrence = image.revision = 1
    image.due_ns = asked.when_ns + (terms.steady_ns if after else 0)
    event.due_ns = image.due_ns + (terms.shift_ns if after else 0)
    image.created_ns = terms.utc_ns
    image.name_hash = name_hash(asked.name.at, asked.name.size, 0)
    image.state = STATE_SCHEDULED
    image.scale = SCALE_STEADY if after else SCALE_WALL
    to = put(to + sizeof(EventHead) + sizeof(Image), &head, sizeof(head))
    to = put_labels(put(to, asked.name.at, asked.name.size), asked)
    to = put(to, AFTER_HEAD, 13) if after else put(to, AT_HEAD, 12)
    to = put(to, asked.when.at, asked.when.size)
    to = put(to, AFTER_TAIL, 17) if after else put(to, AT_TAIL, 14)
    if asked.payload.size:
        put(to, asked.payload.at, asked.payload.size)
    else:
        put(to, "null", 4)
    return made


cdef char* put_labels(char* to, const Plain* asked) noexcept nogil:
    """Compact JSON, the keys in order."""
    cdef int k
    to[0] = b"{"
    to += 1
    for k in range(asked.labels_count):
        if k:
            to[0] = b","
            to += 1
        to[0] = b'"'
        to = put(put(to + 1, asked.keys[k].at, asked.keys[k].size), '":"', 3)
        to = put(to, asked.values[k].at, asked.values[k].size)
        to[0] = b'"'
        to += 1
    to[0] = b"}"
    return to + 1


def draft(bytes body not None, now, limits):
    """The draft of the one definition that `body` is; None if it is not plain. 1 us.

    now: a clock.Now. limits: a config.LimitsSection.
    """
    cdef Terms terms
    read_terms(&terms, now, limits)
    return draft_whole(body, &terms)


cdef bytes draft_whole(bytes body, const Terms* terms):
    """The draft of the one definition that `body` is; None if it is not plain."""
    cdef const char* at = PyBytes_AS_STRING(body)
    cdef const char* end = at + PyBytes_GET_SIZE(body)
    cdef Plain asked
    at = read_definition(skip_space(at, end), end, &asked)
    if at == NULL or skip_space(at, end) != end:
        return None
    return draft_of(&asked, terms)


@cython.final
cdef class ManyDrafts:
    """Reads the body of a `timer.schedule_many` piece by piece.

    ended: all is read, and well-formed. atomic: what the request says; known once it has ended.
    """

    cdef readonly bint ended, atomic
    cdef bytes body
    cdef const char* at
    cdef const char* end
    cdef bint said_atomic
    cdef int count
    cdef Terms terms

    def __init__(self, bytes body not None, now, limits) -> None:
        self.body = body
        self.end = PyBytes_AS_STRING(body) + PyBytes_GET_SIZE(body)
        self.at = PyBytes_AS_STRING(body)
        read_terms(&self.terms, now, limits)

    def take(self, int limit):
        """The next at most `limit` definitions: a draft, or a msgspec.Raw of one that is not plain.

        None if the body is not plain: then it is to be read in another way from its beginning."""
        cdef list taken = []
        if self.count == 0:
            self.at = self.read_start()
        while self.at != NULL and len(taken) < limit and not self.ended:
            self.take_one(taken)
        return None if self.at == NULL else taken

    cdef int take_one(self, list taken) except -1:
        """One definition, and what is behind it; `at` is NULL if that is not plain."""
        cdef const char* first = self.at
        cdef Plain asked
        cdef bytes made = None
        self.at = read_definition(first, self.end, &asked)
        if self.at != NULL:
            made = draft_of(&asked, &self.terms)
        else:
            self.at = skip_value(first, self.end, 1)
            if self.at == NULL:
                return 0
        taken.append(msgspec.Raw(first[: self.at - first]) if made is None else made)
        self.count += 1
        self.at = skip_space(self.at, self.end)
        if self.count > COUNT_MAX or self.at == self.end:
            self.at = NULL
        elif self.at[0] == b",":
            self.at = skip_space(self.at + 1, self.end)
        elif self.at[0] == b"]":
            self.at = self.read_end(self.at + 1)
            self.ended = self.at != NULL
        else:
            self.at = NULL
        return 0

    cdef const char* read_start(self) noexcept nogil:
        """From the beginning to the first definition."""
        cdef const char* at = skip_space(self.at, self.end)
        cdef Span key
        cdef bint ascii
        if at == self.end or at[0] != b"{":
            return NULL
        at = read_text(skip_space(at + 1, self.end), self.end, &key, &ascii)
        if at != NULL and is_word(&key, "atomic", 6):
            at = skip_space(self.read_atomic(at), self.end)
            if at == NULL or at == self.end or at[0] != b",":
                return NULL
            at = read_text(skip_space(at + 1, self.end), self.end, &key, &ascii)
        if at == NULL or not is_word(&key, "timers", 6):
            return NULL
        at = skip_space(at, self.end)
        if at == self.end or at[0] != b":":
            return NULL
        at = skip_space(at + 1, self.end)
        if at == self.end or at[0] != b"[":
            return NULL
        return skip_space(at + 1, self.end)

    cdef const char* read_end(self, const char* at) noexcept nogil:
        """From behind the last definition to the end."""
        cdef Span key
        cdef bint ascii
        at = skip_space(at, self.end)
        if at < self.end and at[0] == b"," and not self.said_atomic:
            at = read_text(skip_space(at + 1, self.end), self.end, &key, &ascii)
            if at == NULL or not is_word(&key, "atomic", 6):
                return NULL
            at = skip_space(self.read_atomic(at), self.end)
        if at == NULL or at == self.end or at[0] != b"}":
            return NULL
        at = skip_space(at + 1, self.end)
        if at != self.end:
            return NULL
        return at

    cdef const char* read_atomic(self, const char* at) noexcept nogil:
        """`: true` or `: false`."""
        cdef Span word
        at = skip_space(at, self.end)
        if at == self.end or at[0] != b":":
            return NULL
        at = skip_space(at + 1, self.end)
        word.at = at
        at = skip_value(at, self.end, 1)
        word.size = at - word.at if at != NULL else 0
        self.said_atomic = True
        self.atomic = is_word(&word, "true", 4)
        if not self.atomic and not is_word(&word, "false", 5):
            return NULL
        return at


def write(
    list drafts not None, Py_ssize_t at, Py_ssize_t end, new_ids, list events not None,
    uint64_t first_seq, now, int64_t horizon_ns, int64_t tick_ns, HotSet hot not None,
    Encoder encoder not None, list views not None,
) -> int:
    """Finish the drafts that stand in a row from `drafts[at]` on, to `end` at most; their number.

    Each becomes the next of `events`, is noted and armed in the hot set, and its view is added to
    `views`. A draft is written once, and is nobody else's. new_ids(n): the first of n timer ids, of
    which only the last 20 bits differ. now: of the decision. 0.4 us each.
    """
    cdef Py_ssize_t stop = at, k
    cdef int64_t at_ns = now.utc_ns, shift_ns = now.shift_ns, deadline_ns
    cdef bytes made
    cdef const uint64_t* first_id
    cdef EventHead* event
    cdef Image* image
    cdef uint64_t low
    cdef uint64_t[2] id
    while stop < end and type(drafts[stop]) is bytes:
        stop += 1
    if stop == at:
        return 0
    made = new_ids(stop - at)
    assert len(made) == ID_BYTES
    memcpy(id, PyBytes_AS_STRING(made), ID_BYTES)
    low = big_endian(id[1])
    for k in range(stop - at):
        made = <bytes>drafts[at + k]
        event = <EventHead*>PyBytes_AS_STRING(made)
        image = <Image*>(PyBytes_AS_STRING(made) + sizeof(EventHead))
        id[1] = big_endian(low + <uint64_t>k)
        memcpy(image.id, id, ID_BYTES)
        image.seq = first_seq + <uint64_t>k
        event.at_ns = at_ns
        event.crc = crc32(
            <uint32_t>image.seq, &event.version, PyBytes_GET_SIZE(made) - sizeof(event.crc)
        )
        events.append(made)
        note_newer(hot, id, image.seq, image.due_ns, image.scale)
        deadline_ns = image.due_ns - (shift_ns if image.scale == SCALE_WALL else 0)
        if deadline_ns < horizon_ns:
            arm_anew(hot, id, tick_at_or_after(deadline_ns, tick_ns))
        views.append(
            encoder.view_at(
                <const char*>image, PyBytes_GET_SIZE(made) - sizeof(EventHead), shift_ns, None
            )
        )
    return stop - at


cdef inline uint64_t tick_at_or_after(int64_t deadline_ns, int64_t tick_ns) noexcept nogil:
    if deadline_ns <= 0:
        return 0
    return <uint64_t>(deadline_ns // tick_ns + (deadline_ns % tick_ns != 0))
