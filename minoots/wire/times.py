"""Instants, durations and timer ids as the contract writes them.

Instants are RFC 3339 with up to nanoseconds; durations are ISO 8601 (weeks to seconds) or the short
form `250ms`, `15m`, `1h30m`, `2w`; both become integer nanoseconds. A timer id is `tmr_` and the
Crockford base32 of a UUIDv7 (RFC 9562, 5.7), 26 characters.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache

US, MS, SECOND, MINUTE, HOUR, DAY, WEEK = (
    1_000,
    1_000_000,
    1_000_000_000,
    60_000_000_000,
    3_600_000_000_000,
    86_400_000_000_000,
    604_800_000_000_000,
)

DURATION_NS_MAX = 36_525 * DAY  # a hundred years
INSTANT_NS_MAX = 7_258_118_400 * SECOND  # the year 2200: it fits in 63 bits with room to add

_UNITS = {"ns": 1, "us": US, "ms": MS, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": WEEK}
_SHORT_PART = re.compile(r"(\d{1,18})(?:\.(\d{1,9}))?(ns|us|ms|s|m|h|d|w)")
_SHORT = re.compile(r"(?:\d{1,18}(?:\.\d{1,9})?(?:ns|us|ms|s|m|h|d|w))+", re.ASCII)
_ISO = re.compile(
    r"P(?:(\d{1,9})W)?(?:(\d{1,9})D)?"
    r"(?:T(?=\d)(?:(\d{1,9})H)?(?:(\d{1,9})M)?(?:(\d{1,9})(?:[.,](\d{1,9}))?S)?)?",
    re.ASCII,
)
_INSTANT = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


@lru_cache(maxsize=4096)
def parse_duration(text: str) -> int:
    """A duration in nanoseconds, 0 to DURATION_NS_MAX. Raises ValueError saying what to write."""
    if text.startswith("P"):
        total_ns = _iso_ns(text)
    elif _SHORT.fullmatch(text):
        total_ns = 0
        for whole, fraction, unit in _SHORT_PART.findall(text):
            total_ns += int(whole) * _UNITS[unit]
            if fraction:
                total_ns += int(fraction) * _UNITS[unit] // 10 ** len(fraction)
    else:
        total_ns = -1
    if total_ns < 0:
        raise ValueError(
            f"duration is {text[:40]!r}; write ISO 8601 such as PT15M, or 250ms, 15m, 1h30m, 2w"
        )
    if total_ns > DURATION_NS_MAX:
        raise ValueError(f"duration is {text[:40]!r}; the limit is 36525d (a hundred years)")
    return total_ns


def _iso_ns(text: str) -> int:
    match = _ISO.fullmatch(text)
    if match is None or not any(match.groups()):
        return -1
    weeks, days, hours, minutes, seconds, fraction = match.groups(default="0")
    return (
        int(weeks) * WEEK
        + int(days) * DAY
        + int(hours) * HOUR
        + int(minutes) * MINUTE
        + int(seconds) * SECOND
        + int(fraction.ljust(9, "0"))
    )


def format_duration(duration_ns: int) -> str:
    """The short form with the largest whole units: 5_400 s is `1h30m`; 0 is `0s`."""
    if duration_ns < 0:
        raise ValueError(f"duration is {duration_ns} ns; it must not be negative")
    parts = []
    for unit in ("w", "d", "h", "m", "s", "ms", "us", "ns"):
        count, duration_ns = divmod(duration_ns, _UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_instant(text: str) -> int:
    """An RFC 3339 instant in ns since the epoch, 1970 to 2200. Raises ValueError.

    A leap second (`:60`) is taken as the first instant of the next minute (UTC has no name for it
    in POSIX time). 1 us.
    """
    match = _INSTANT.fullmatch(text)
    if match is None:
        raise ValueError(
            f"instant is {text[:48]!r}; write RFC 3339 such as 2026-11-22T09:00:00.5Z "
            "(an offset is required)"
        )
    date, clock, fraction, zone = match.groups()
    leap_ns = 0
    if clock.endswith(":60"):
        clock, leap_ns = clock[:-2] + "59", SECOND
    try:
        moment = datetime.fromisoformat(f"{date}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    except ValueError as error:
        raise ValueError(f"instant is {text[:48]!r}; {error}") from None
    at_ns = int(moment.timestamp()) * SECOND + leap_ns
    if fraction:
        at_ns += int(fraction.ljust(9, "0"))
    if not 0 <= at_ns <= INSTANT_NS_MAX:
        raise ValueError(f"instant is {text[:48]!r}; it must lie between 1970 and 2200")
    return at_ns


@lru_cache(maxsize=64)
def _day_text(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m-%dT")


_CLOCK = [f"{h:02}:{m:02}:" for h in range(24) for m in range(60)]


def format_instant(at_ns: int) -> str:
    """RFC 3339 UTC with nanoseconds: `2026-11-22T09:00:00.123456789Z`. 0.7 us."""
    seconds, ns = divmod(at_ns, SECOND)
    day, second = divmod(seconds, 86_400)
    minute, second = divmod(second, 60)
    return f"{_day_text(day)}{_CLOCK[minute]}{second:02}.{ns:09}Z"


# ------------------------------------------------------------------------------------- timer ids

ID_PREFIX = "tmr_"
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [a + b for a in _CROCKFORD for b in _CROCKFORD]  # 10 bits at a time
# int(text, 32) reads 0-9a-v; Crockford's look-alikes are read as he asks, U is refused.
_TO_BASE32 = str.maketrans(
    _CROCKFORD + _CROCKFORD.lower() + "oOiIlL",
    "0123456789abcdefghijklmnopqrstuv" * 2 + "001111",
    "_- +uU",
)


def format_id(id: bytes) -> str:
    """`tmr_` and 26 characters for the 16 bytes of a timer id. 1.5 us."""
    number = int.from_bytes(id, "big")
    pairs = _PAIRS
    return ID_PREFIX + "".join([pairs[number >> shift & 1023] for shift in range(120, -1, -10)])


def parse_id(text: str) -> bytes:
    """The 16 bytes of a timer id. Raises ValueError saying what an id looks like. 0.5 us."""
    if len(text) == 30 and text.startswith(ID_PREFIX):
        digits = text[4:].translate(_TO_BASE32)
        if len(digits) == 26:
            try:
                return int(digits, 32).to_bytes(16, "big")
            except (ValueError, OverflowError):
                pass
    raise ValueError(f"timer id is {text[:40]!r}; an id is tmr_ and 26 characters of base32")


class IdMaker:
    """Makes timer ids cheaply: one random part a turn, then a 20-bit counter. 0.2 us an id.

    random_bits(n) gives n random bits: the caller's seeded or system source.
    """

    __slots__ = ("_count", "_high", "_low4", "_ms")

    COUNT_MAX = 1 << 20

    def __init__(self) -> None:
        self._count = self.COUNT_MAX
        self._ms = -1
        self._high = b""
        self._low4 = 0

    def begin(self, utc_ns: int, random_bits: int) -> None:
        """Start a turn: `random_bits` is a fresh random integer of 54 bits.

        Inside one millisecond the counter goes on, so that ids stay in order (RFC 9562, 6.2).
        """
        ms = max(utc_ns, 0) // MS & (1 << 48) - 1
        if ms == self._ms and self._count < self.COUNT_MAX // 2:
            return
        self._ms = ms
        rand_a, rand_b = random_bits >> 42, random_bits & (1 << 42) - 1
        number = ms << 80 | 7 << 76 | (rand_a & 0xFFF) << 64 | 2 << 62 | rand_b << 20
        self._high = (number >> 24).to_bytes(13, "big")
        self._low4 = number & 0xF00000
        self._count = 0

    def make(self, count: int = 1) -> bytes:
        """The next id, of `count` that differ from it in the last 20 bits alone, counting up.

        After COUNT_MAX in one turn, an AssertionError.
        """
        first = self._count
        assert first + count <= self.COUNT_MAX, "more ids in one turn than the counter holds"
        self._count = first + count
        return self._high + (self._low4 | first).to_bytes(3, "big")
