"""Times as people write and read them: `09:00`, `2026-11-22 09:00`, `in 4m`, `12s ago`. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo

from minoots.wire.times import SECOND, format_instant, parse_duration, parse_instant
from minoots.wire.zones import zone

_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?")
_LOCAL = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d{1,2}:\d\d(?::\d\d)?))?")
_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
_FORMS = "write RFC 3339 (2026-11-22T09:00:00Z), `2026-11-22 09:00`, or `09:00`"


def zone_of(name: str | None) -> tzinfo | None:
    """The zone of that name; None is the machine's own. Raises ValueError."""
    if name is None:
        return None
    try:
        return zone(name)
    except KeyError:
        raise ValueError(f"tz is {name!r}; write a zone such as Europe/Berlin or UTC") from None


def instant_of(text: str, *, tz: str | None, now_ns: int) -> str:
    """RFC 3339 of what somebody wrote: RFC 3339, or a local date and time, or a time of day.

    A time of day is the next one: today, or tomorrow if it has passed. Raises ValueError, also for
    a local time that is skipped when clocks go forward; of one that comes twice, the first.
    """
    zone = zone_of(tz)
    try:
        parse_instant(text)
    except ValueError:
        pass
    else:
        return text
    clock, dated = _CLOCK.fullmatch(text), _LOCAL.fullmatch(text)
    try:
        if clock:
            return _next_clock(text, zone, now_ns)
        if dated:
            date, hours = dated.groups(default="00:00")
            return _utc(datetime.fromisoformat(f"{date}T{_padded(hours)}"), zone)
    except ValueError as error:
        raise ValueError(f"time is {text!r}; {error}") from None
    raise ValueError(f"time is {text!r}; {_FORMS}")


def _next_clock(text: str, zone: tzinfo | None, now_ns: int) -> str:
    now = datetime.fromtimestamp(now_ns / SECOND, UTC).astimezone(zone)
    today = datetime.fromisoformat(f"{now:%Y-%m-%d}T{_padded(text)}")
    found = _utc(today, zone)
    if parse_instant(found) <= now_ns:
        found = _utc(today + timedelta(days=1), zone)
    return found


def _padded(hours: str) -> str:
    return f"0{hours}" if hours[1] == ":" else hours


def _utc(local: datetime, zone: tzinfo | None) -> str:
    aware = local.astimezone() if zone is None else local.replace(tzinfo=zone)
    back = aware.astimezone(UTC).astimezone(zone).replace(tzinfo=None, fold=0)
    if back != local:
        raise ValueError("it does not exist there: clocks go forward over it")
    return format_instant(int(aware.timestamp()) * SECOND)


def ago_or_instant(text: str, *, tz: str | None, now_ns: int) -> str:
    """An instant, or that of a duration ago: `10m` is ten minutes before now."""
    try:
        length_ns = parse_duration(text)
    except ValueError:
        return instant_of(text, tz=tz, now_ns=now_ns)
    return format_instant(max(0, now_ns - length_ns))


def relative(at_ns: int, now_ns: int) -> str:
    """`in 4m`, `in 3m 58s`, `in 1h 20m`, `now`, `12s ago`: at most two units, to the nearest."""
    if abs(at_ns - now_ns) < SECOND:
        return "now"
    length = span(abs(at_ns - now_ns))
    return f"in {length}" if at_ns > now_ns else f"{length} ago"


def span(length_ns: int) -> str:
    """A length of time for people: at most two units, and no seconds from ten minutes on."""
    if length_ns < SECOND:
        return f"{length_ns // 1_000_000}ms"
    length_s = (length_ns + SECOND // 2) // SECOND
    if length_s >= 600:
        length_s = (length_s + 30) // 60 * 60
    counts = []
    for unit, size in _UNITS:
        count, length_s = divmod(length_s, size)
        counts.append((count, unit))
    while counts[0][0] == 0:
        del counts[0]
    return " ".join(f"{count}{unit}" for count, unit in counts[:2] if count)


def exact(at_ns: int) -> str:
    """UTC to the second where that is exact, else with what it has."""
    text = format_instant(at_ns)
    seconds, _, fraction = text[:-1].partition(".")
    fraction = fraction.rstrip("0")
    return f"{seconds}.{fraction}Z" if fraction else f"{seconds}Z"


def local(at_ns: int) -> str:
    """Weekday, date and time where this runs: `Sun 2026-11-22 10:00:00 CET`."""
    here = datetime.fromtimestamp(at_ns // SECOND, UTC).astimezone()
    return f"{here:%a %Y-%m-%d %H:%M:%S %Z}"


def near(at_ns: int, now_ns: int) -> str:
    """The local time of day if it is today's, else date and time."""
    here = datetime.fromtimestamp(at_ns // SECOND, UTC).astimezone()
    today = datetime.fromtimestamp(now_ns // SECOND, UTC).astimezone()
    return f"{here:%H:%M:%S}" if here.date() == today.date() else f"{here:%Y-%m-%d %H:%M}"


def clock(at_ns: int) -> str:
    """The local time of day with milliseconds, for lines of a running watch."""
    local = datetime.fromtimestamp(at_ns // SECOND, UTC).astimezone()
    return f"{local:%H:%M:%S}.{at_ns % SECOND // 1_000_000:03}"


def lateness(late_us: int) -> str:
    """`+85us`, `+1.2ms`, `+3.4s`, `+2m`: how late something fired."""
    if late_us < 1_000:
        return f"+{late_us}us"
    if late_us < 1_000_000:
        return f"+{late_us / 1_000:.1f}ms"
    if late_us < 60_000_000:
        return f"+{late_us / 1_000_000:.1f}s"
    return "+" + span(late_us * 1_000).replace(" ", "")
