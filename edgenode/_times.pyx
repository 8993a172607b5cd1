"""Durations and instants read in C: what `minoots/wire/times.py` says in Python, or -1.

-1 is no refusal: Python reads what C leaves (leap seconds, odd offsets) and says what is wrong with
the rest. tests/unit/test_draft.py holds both against each other.
"""

from libc.stdint cimport int64_t

from minoots.wire import times as _times

cdef int64_t SECOND_NS = 1000000000
cdef int64_t DAY_NS = 86400 * SECOND_NS
cdef int64_t DURATION_NS_MAX = _times.DURATION_NS_MAX
cdef int64_t INSTANT_NS_MAX = _times.INSTANT_NS_MAX

# By rank: weeks, days, the T between them and the time, hours, minutes, seconds.
cdef int64_t[7] ISO_UNITS_NS
ISO_UNITS_NS[:] = [1, 7 * DAY_NS, DAY_NS, 1, 3600 * SECOND_NS, 60 * SECOND_NS, SECOND_NS]


cdef const char* skip_digits(const char* at, const char* end, int most) noexcept nogil:
    """Behind 1 to `most` digits, or NULL."""
    cdef const char* first = at
    while at < end and is_digit(at[0]):
        at += 1
    if at == first or at - first > most:
        return NULL
    return at


cdef int64_t read_duration(const char* at, size_t size) noexcept nogil:
    """A duration in ns; -1 for a text that is none, or one that is too long."""
    if size and at[0] == b"P":
        return read_iso(at + 1, at + size)
    return read_short(at, at + size)


cdef int64_t read_iso(const char* at, const char* end) noexcept nogil:
    """ISO 8601, weeks to seconds, each unit at most once and in order; only seconds are broken."""
    cdef const char* first
    cdef int64_t total_ns = 0, whole, fraction_ns, unit_ns
    cdef int rank, last = 0
    while at < end:
        if at[0] == b"T" and last < 3:
            at, last = at + 1, 3
        first, whole, fraction_ns = at, 0, 0
        at = skip_digits(at, end, 9)
        if at == NULL or at == end:
            return -1
        while first < at:
            whole = whole * 10 + first[0] - 48
            first += 1
        if at[0] == b"." or at[0] == b",":
            first = at + 1
            at = skip_digits(first, end, 9)
            if at == NULL or at == end or at[0] != b"S":
                return -1
            unit_ns = SECOND_NS
            while first < at:
                unit_ns //= 10
                fraction_ns += (first[0] - 48) * unit_ns
                first += 1
        rank = iso_rank(at[0], last >= 3)
        if rank <= last:
            return -1
        last = rank
        unit_ns = ISO_UNITS_NS[rank]
        if whole > DURATION_NS_MAX // unit_ns:
            return -1
        total_ns += whole * unit_ns + fraction_ns
        if total_ns > DURATION_NS_MAX:
            return -1
        at += 1
    return total_ns if last not in (0, 3) else -1


cdef int iso_rank(char unit, bint in_time) noexcept nogil:
    """The place of a unit in ISO_UNITS_NS; 0 for one that may not stand here."""
    if not in_time:
        return 1 if unit == b"W" else 2 if unit == b"D" else 0
    return 4 if unit == b"H" else 5 if unit == b"M" else 6 if unit == b"S" else 0


cdef int64_t read_short(const char* at, const char* end) noexcept nogil:
    """The short form: `250ms`, `1h30m`."""
    cdef const char* first
    cdef int64_t total_ns = 0, whole, fraction, scale, unit_ns
    if at == end:
        return -1
    while at < end:
        first, whole, fraction, scale = at, 0, 0, 1
        while at < end and is_digit(at[0]):
            whole = whole * 10 + at[0] - 48
            at += 1
            if at - first > 18:
                return -1
        if at == first:
            return -1
        if at < end and at[0] == b".":
            at += 1
            first = at
            while at < end and is_digit(at[0]):
                fraction = fraction * 10 + at[0] - 48
                scale *= 10
                at += 1
                if at - first > 9:
                    return -1
            if at == first:
                return -1
        unit_ns = read_unit(&at, end)
        if unit_ns == 0 or whole > DURATION_NS_MAX // unit_ns:
            return -1
        # A fraction of at most 9 digits: its product stays below a week in ns times 10^9.
        total_ns += whole * unit_ns + fraction_ns(fraction, unit_ns, scale)
        if total_ns > DURATION_NS_MAX:
            return -1
    return total_ns


cdef inline int64_t fraction_ns(int64_t fraction, int64_t unit_ns, int64_t scale) noexcept nogil:
    """fraction * unit_ns / scale, rounded down, without a product that is too large."""
    return unit_ns // scale * fraction + unit_ns % scale * fraction // scale


cdef int64_t read_unit(const char** at, const char* end) noexcept nogil:
    """The ns of the unit at `at`, which is moved behind it; 0 if there is none."""
    cdef char c, after
    if at[0] == end:
        return 0
    c = at[0][0]
    after = at[0][1] if at[0] + 1 < end else 0
    at[0] += 1
    if after == b"s" and (c == b"n" or c == b"u" or c == b"m"):
        at[0] += 1
        return 1 if c == b"n" else 1000 if c == b"u" else 1000000
    if c == b"s":
        return SECOND_NS
    if c == b"m":
        return 60 * SECOND_NS
    if c == b"h":
        return 3600 * SECOND_NS
    if c == b"d":
        return DAY_NS
    if c == b"w":
        return 7 * DAY_NS
    return 0


cdef int read_fixed(const char* at, int digits) noexcept nogil:
    """A number of exactly so many digits; -1 if they are none."""
    cdef int number = 0, k
    for k in range(digits):
        if not is_digit(at[k]):
            return -1
        number = number * 10 + at[k] - 48
    return number


cdef int64_t days_of(int year, int month, int day) noexcept nogil:
    """Days since 1970 of a civil date, which must exist; -1 if it does not. 1970 to 2200."""
    cdef bint leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    cdef int last = 31
    if year < 1970 or year > 2200 or not 1 <= month <= 12:
        return -1
    if month == 2:
        last = 29 if leap else 28
    elif month == 4 or month == 6 or month == 9 or month == 11:
        last = 30
    if not 1 <= day <= last:
        return -1
    if month <= 2:
        year -= 1
        month += 12
    # Days before 1 March of the year, from 1 March 0000, and before the month.
    return (
        365 * <int64_t>year + year // 4 - year // 100 + year // 400
        + (153 * (month - 3) + 2) // 5 + day - 1 - 719468
    )


cdef int64_t read_instant(const char* at, size_t size) noexcept nogil:
    """An RFC 3339 instant in ns since the epoch; -1 for what is none, or is one of the odd ones."""
    cdef const char* end = at + size
    cdef int64_t days, at_ns, unit_ns = SECOND_NS
    cdef int hour, minute, second, away
    if size < 20 or at[4] != b"-" or at[7] != b"-" or at[13] != b":" or at[16] != b":":
        return -1
    if at[10] != b"T" and at[10] != b"t" and at[10] != b" ":
        return -1
    days = days_of(read_fixed(at, 4), read_fixed(at + 5, 2), read_fixed(at + 8, 2))
    hour, minute, second = read_fixed(at + 11, 2), read_fixed(at + 14, 2), read_fixed(at + 17, 2)
    if days < 0 or not 0 <= hour < 24 or not 0 <= minute < 60 or not 0 <= second < 60:
        return -1
    at_ns = days * DAY_NS + (hour * 3600 + minute * 60 + second) * SECOND_NS
    at += 19
    if at[0] == b".":
        at += 1
        while at < end and is_digit(at[0]) and unit_ns > 1:
            unit_ns //= 10
            at_ns += (at[0] - 48) * unit_ns
            at += 1
        if unit_ns == SECOND_NS:
            return -1
    if end - at == 1 and (at[0] == b"Z" or at[0] == b"z"):
        away = 0
    elif end - at == 6 and (at[0] == b"+" or at[0] == b"-") and at[3] == b":":
        hour, minute = read_fixed(at + 1, 2), read_fixed(at + 4, 2)
        if not 0 <= hour < 24 or not 0 <= minute < 60:
            return -1
        away = hour * 60 + minute if at[0] == b"+" else -(hour * 60 + minute)
    else:
        return -1
    at_ns -= away * 60 * SECOND_NS
    return at_ns if 0 <= at_ns <= INSTANT_NS_MAX else -1


def duration_of(bytes text not None) -> int:
    """What `read_duration` makes of a text; for tests."""
    return read_duration(text, len(text))


def instant_of(bytes text not None) -> int:
    """What `read_instant` makes of a text; for tests."""
    return read_instant(text, len(text))
