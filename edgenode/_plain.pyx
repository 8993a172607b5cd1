"""Reads the plain case of a definition in C, without an object made.

Plain is: `name`, `labels`, `payload` and a schedule of the kind `after` or `at`, each at most once,
in texts without escapes. Whatever else there is, faults above all, gives NULL here, and msgspec with
`definitions.plan` decide about it: this module never refuses anything, and what it takes, they
would have taken alike (tests/unit/test_draft.py holds both against each other).

The bytes are UTF-8, as `call.read` has made sure. Every payload that is taken is JSON by RFC 8259
and nothing that other readers stumble over: no escaped surrogates, no long digits, no deep nesting.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memcmp

from edgenode._times cimport is_digit, read_duration, read_instant, skip_digits

from minoots.wire.definition import (
    LABEL_KEY_BYTES_MAX as _LABEL_KEY_BYTES_MAX,
    LABEL_VALUE_BYTES_MAX as _LABEL_VALUE_BYTES_MAX,
    LABELS_MAX as _LABELS_MAX,
)

cdef enum:
    DEPTH_MAX = 64
    DIGITS_MAX = 19
    EXPONENT_DIGITS_MAX = 2
    KEY_BYTES_MAX = 63
    VALUE_BYTES_MAX = 255

cdef enum:  # members of a definition, as bits
    NAME = 1
    LABELS = 2
    PAYLOAD = 4
    SCHEDULE = 8

assert (KEY_BYTES_MAX, VALUE_BYTES_MAX) == (_LABEL_KEY_BYTES_MAX, _LABEL_VALUE_BYTES_MAX)
assert LABELS_HELD == _LABELS_MAX


# NULL goes in and out again through all that read JSON: one test at the end is enough.


cdef const char* skip_space(const char* at, const char* end) noexcept nogil:
    while at != NULL and at < end and (at[0] == b" " or at[0] == b"\n" or at[0] == b"\r" or at[0] == b"\t"):
        at += 1
    return at


cdef bint is_word(const Span* text, const char* word, size_t size) noexcept nogil:
    return text.size == size and memcmp(text.at, word, size) == 0


# ------------------------------------------------------------------------------------------- JSON


cdef const char* read_text(
    const char* at, const char* end, Span* text, bint* ascii
) noexcept nogil:
    """A text without escapes, from its first quote on; behind its last, or NULL."""
    cdef uint8_t all_bits = 0
    if at == NULL or at == end or at[0] != b'"':
        return NULL
    at += 1
    text.at = at
    while at < end and at[0] != b'"':
        if <uint8_t>at[0] < 32 or at[0] == b"\\":
            return NULL
        all_bits |= <uint8_t>at[0]
        at += 1
    if at == end:
        return NULL
    text.size = at - text.at
    ascii[0] = all_bits < 128
    return at + 1


cdef const char* skip_text(const char* at, const char* end) noexcept nogil:
    """Behind a text, from behind its first quote; NULL if it is not plain. Escapes are."""
    while at < end and at[0] != b'"':
        if <uint8_t>at[0] < 32:
            return NULL
        if at[0] != b"\\":
            at += 1
            continue
        at = skip_escape(at + 1, end)
        if at == NULL:
            return NULL
    if at == end:
        return NULL
    return at + 1


cdef const char* skip_escape(const char* at, const char* end) noexcept nogil:
    """Behind an escape, from behind its backslash. Halves of surrogate pairs are not plain."""
    cdef int code = 0, k
    cdef char c
    if at == end:
        return NULL
    if at[0] in b'"\\/bfnrt':
        return at + 1
    if at[0] != b"u" or end - at < 5:
        return NULL
    for k in range(1, 5):
        c = at[k]
        if is_digit(c):
            code = code * 16 + c - 48
        elif b"a" <= c <= b"f" or b"A" <= c <= b"F":
            code = code * 16 + (c & 7) + 9
        else:
            return NULL
    if 0xD800 <= code < 0xE000:
        return NULL
    return at + 5


cdef const char* skip_number(const char* at, const char* end) noexcept nogil:
    if at[0] == b"-":
        at += 1
        if at == end:
            return NULL
    if at[0] == b"0":
        at += 1
    else:
        at = skip_digits(at, end, DIGITS_MAX)
    if at != NULL and at < end and at[0] == b".":
        at = skip_digits(at + 1, end, DIGITS_MAX)
    if at != NULL and at < end and (at[0] == b"e" or at[0] == b"E"):
        at += 1
        if at < end and (at[0] == b"+" or at[0] == b"-"):
            at += 1
        at = skip_digits(at, end, EXPONENT_DIGITS_MAX)
    return at


cdef const char* skip_value(const char* at, const char* end, int depth) noexcept nogil:
    """Behind the JSON value that begins at `at`; NULL if there is none or it is not plain."""
    cdef char c
    if at == NULL or at == end or depth > DEPTH_MAX:
        return NULL
    c = at[0]
    if c == b'"':
        return skip_text(at + 1, end)
    if c == b"{":
        return skip_members(at, end, depth, b"}", True)
    if c == b"[":
        return skip_members(at, end, depth, b"]", False)
    if c == b"-" or is_digit(c):
        return skip_number(at, end)
    if end - at >= 4 and (memcmp(at, "true", 4) == 0 or memcmp(at, "null", 4) == 0):
        return at + 4
    if end - at >= 5 and memcmp(at, "false", 5) == 0:
        return at + 5
    return NULL


cdef const char* skip_members(
    const char* at, const char* end, int depth, char close, bint keyed
) noexcept nogil:
    """Behind an object or an array."""
    at = skip_space(at + 1, end)
    if at < end and at[0] == close:
        return at + 1
    while True:
        if keyed:
            if at == end or at[0] != b'"':
                return NULL
            at = skip_colon(skip_text(at + 1, end), end)
        at = skip_space(skip_value(at, end, depth + 1), end)
        if at == NULL or at == end:
            return NULL
        if at[0] == close:
            return at + 1
        if at[0] != b",":
            return NULL
        at = skip_space(at + 1, end)


cdef inline const char* skip_colon(const char* at, const char* end) noexcept nogil:
    """Behind a colon and the space around it."""
    at = skip_space(at, end)
    if at == NULL or at == end or at[0] != b":":
        return NULL
    return skip_space(at + 1, end)


# ------------------------------------------------------------------------------------- definition


cdef const char* read_definition(const char* at, const char* end, Plain* made) noexcept nogil:
    """Read the definition that begins at `at`; behind it, or NULL if it is not plain."""
    cdef int member, seen = 0
    cdef Span key
    cdef bint ascii = True
    made.name.size = made.payload.size = made.labels_bytes = 0
    made.name_is_ascii = True
    made.labels_count = 0
    if at == end or at[0] != b"{":
        return NULL
    at = skip_space(at + 1, end)
    while True:
        at = skip_colon(read_text(at, end, &key, &ascii), end)
        if at == NULL:
            return NULL
        member = member_of(&key)
        if member == 0 or seen & member:
            return NULL
        seen |= member
        at = skip_space(read_member(member, at, end, made), end)
        if at == NULL or at == end:
            return NULL
        if at[0] == b"}":
            if not seen & SCHEDULE:
                return NULL
            return at + 1
        if at[0] != b",":
            return NULL
        at = skip_space(at + 1, end)


cdef int member_of(const Span* key) noexcept nogil:
    if is_word(key, "name", 4):
        return NAME
    if is_word(key, "labels", 6):
        return LABELS
    if is_word(key, "payload", 7):
        return PAYLOAD
    return SCHEDULE if is_word(key, "schedule", 8) else 0


cdef const char* read_member(
    int member, const char* at, const char* end, Plain* made
) noexcept nogil:
    cdef const char* first = at
    if member == NAME:
        return read_text(at, end, &made.name, &made.name_is_ascii)
    if member == LABELS:
        return read_labels(at, end, made)
    if member == SCHEDULE:
        return read_schedule(at, end, made)
    at = skip_value(at, end, 1)
    if at != NULL:
        made.payload.at = first
        made.payload.size = at - first
    return at


cdef const char* read_labels(const char* at, const char* end, Plain* made) noexcept nogil:
    cdef Span key, value
    cdef bint ascii
    if at == end or at[0] != b"{":
        return NULL
    at = skip_space(at + 1, end)
    if at < end and at[0] == b"}":
        return at + 1
    while True:
        at = skip_colon(read_text(at, end, &key, &ascii), end)
        at = read_text(at, end, &value, &ascii)
        if at == NULL or not keep_label(made, &key, &value):
            return NULL
        at = skip_space(at, end)
        if at == end:
            return NULL
        if at[0] == b"}":
            return at + 1
        if at[0] != b",":
            return NULL
        at = skip_space(at + 1, end)


cdef bint keep_label(Plain* made, const Span* key, const Span* value) noexcept nogil:
    """Put a label where it belongs in the order; False if it is too large or one too many."""
    cdef int k = made.labels_count, order
    if k == LABELS_HELD or not 1 <= key.size <= KEY_BYTES_MAX or value.size > VALUE_BYTES_MAX:
        return False
    while k:
        order = memcmp(key.at, made.keys[k - 1].at, min(key.size, made.keys[k - 1].size))
        if order > 0 or (order == 0 and key.size > made.keys[k - 1].size):
            break
        if order == 0 and key.size == made.keys[k - 1].size:
            return False
        made.keys[k], made.values[k] = made.keys[k - 1], made.values[k - 1]
        k -= 1
    made.keys[k], made.values[k] = key[0], value[0]
    made.labels_count += 1
    made.labels_bytes += key.size + value.size
    return True


cdef const char* read_schedule(const char* at, const char* end, Plain* made) noexcept nogil:
    """`{"kind":"after","duration":"15m"}`, `{"kind":"at","instant":"..."}`, in any order."""
    cdef Span[2] keys
    cdef Span[2] values
    cdef const char* closing = ",}"
    cdef bint ascii
    cdef int k, kind
    if at == end or at[0] != b"{":
        return NULL
    at += 1
    for k in range(2):
        at = skip_colon(read_text(skip_space(at, end), end, &keys[k], &ascii), end)
        at = skip_space(read_text(at, end, &values[k], &ascii), end)
        if at == NULL or at == end or at[0] != closing[k]:
            return NULL
        at += 1
    kind = 0 if is_word(&keys[0], "kind", 4) else 1
    if not is_word(&keys[kind], "kind", 4):
        return NULL
    made.when = values[1 - kind]
    if is_word(&values[kind], "after", 5) and is_word(&keys[1 - kind], "duration", 8):
        made.kind = KIND_AFTER
        made.when_ns = read_duration(made.when.at, made.when.size)
    elif is_word(&values[kind], "at", 2) and is_word(&keys[1 - kind], "instant", 7):
        made.kind = KIND_AT
        made.when_ns = read_instant(made.when.at, made.when.size)
    else:
        return NULL
    if made.when_ns < 0:
        return NULL
    return at


# ------------------------------------------------------------------------------------- for tests


def is_plain_json(bytes text not None) -> bool:
    """Whether a text is one plain JSON value and nothing else."""
    cdef const char* at = text
    cdef const char* end = at + len(text)
    return skip_value(at, end, 1) == end
