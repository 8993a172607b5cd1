"""What a node of a given size needs: memory, disk, time to start and to fill.

Nothing here is a guess: `sizing.json` holds what `minoots bench growth` measured, and on what
machine. Between two measured payloads a byte count is interpolated; beyond the largest measured
number of timers it is carried on, and the answer says so.

Disk is counted twice where it is needed twice: the log keeps the event that made a timer for
`log.retention`, the tables keep its row for as long as it is pending.
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import NamedTuple

import msgspec

from edgenode.config import Config
from minoots.wire.times import SECOND, format_duration

FILE = "sizing.json"
RATE_MAX = 10_000_000
COUNT_MAX = 10**13

_COUNT = re.compile(r"(\d{1,14})(?:\.(\d{1,6}))?([kKMG]?)", re.ASCII)
_UNITS = {"": 1, "k": 1_000, "K": 1_000, "M": 1_000_000, "G": 1_000_000_000}


class Point(msgspec.Struct, frozen=True):
    """Bytes of pages in use for each pending timer whose payload is `payload_bytes` of JSON."""

    payload_bytes: int
    log_bytes: float
    tables_bytes: float


class Coefficients(msgspec.Struct, frozen=True):
    """What was measured, on `machine`, with up to `timers` pending.

    points: by payload, ascending. log_slack, tables_slack: bytes of the file for each byte in use.
    fired_log_bytes, fired_tables_bytes: what a timer leaves that was made and fired, its payload of
    `fired_payload_bytes` not counted: two events, a receipt, a row that tells where its last is.
    base_rss_bytes: an empty node. full_rss_bytes: what `timers` pending add, written and settled.
    armed_bytes: memory of a timer inside the horizon. start_*: seconds, of a node and for each.
    """

    machine: dict[str, str | int]
    timers: int
    points: list[Point]
    log_slack: float
    tables_slack: float
    fired_log_bytes: float
    fired_tables_bytes: float
    fired_payload_bytes: int
    base_rss_bytes: int
    full_rss_bytes: int
    armed_bytes: float
    start_s: float
    start_timer_s: float
    start_behind_s: float
    start_armed_s: float
    fill_per_s: float


class Sizing(NamedTuple):
    """The answer. Bytes, seconds; `notes` are what the reader must know beside them.

    disk_bytes: while the log still holds the events that made the timers. kept_disk_bytes: once
    those are older than the retention. start_behind_s: after a kill while the tables were as far
    behind as they may be.
    """

    timers: int
    payload_bytes: int
    fires_per_s: float
    armed: int
    ram_bytes: int
    disk_bytes: int
    kept_disk_bytes: int
    fires_disk_bytes: int
    start_s: float
    start_behind_s: float
    fill_s: float
    notes: list[str]


def load() -> Coefficients:
    """The coefficients that came with this package."""
    data = files("edgenode").joinpath(FILE).read_bytes()
    return msgspec.json.decode(data, type=Coefficients)


def parse_count(text: str) -> int:
    """A whole number such as 50000, 1k, 1.5M or 2G. Raises ValueError saying what to write."""
    match = _COUNT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a number; write 50000, 1k, 1.5M or 2G")
    whole, fraction, unit = match[1], match[2] or "", _UNITS[match[3]]
    parts: int = 10 ** len(fraction)
    value, left = divmod(int(whole + fraction) * unit, parts)
    if left:
        raise ValueError(f"{text[:40]!r} is not a whole number")
    if value > COUNT_MAX:
        raise ValueError(f"{text[:40]!r} is too many; the limit is {COUNT_MAX}")
    return value


def size(
    known: Coefficients, config: Config, timers: int, payload_bytes: int, fires_per_s: float = 0
) -> Sizing:
    """What `timers` pending need while `fires_per_s` others are made and fire.

    Raises ValueError for what no node can hold.
    """
    _check(config, timers, payload_bytes, fires_per_s)
    point = interpolated(known.points, payload_bytes)
    armed = min(round(fires_per_s * config.engine.horizon / SECOND), config.engine.armed_max)
    log_bytes = timers * point.log_bytes * known.log_slack
    tables_bytes = timers * point.tables_bytes * known.tables_slack
    fired = fires_per_s * config.log.retention / SECOND
    fires_bytes = fired * _fired_bytes(known, payload_bytes)
    start_s = known.start_s + known.start_timer_s * timers + known.start_armed_s * armed
    found = Sizing(
        timers,
        payload_bytes,
        fires_per_s,
        armed,
        round(known.base_rss_bytes + known.full_rss_bytes + known.armed_bytes * armed),
        round(log_bytes + tables_bytes + fires_bytes),
        round(tables_bytes + fires_bytes),
        round(fires_bytes),
        start_s,
        start_s + known.start_behind_s * min(timers, config.log.overlay_max),
        timers / known.fill_per_s,
        [],
    )
    return found._replace(notes=_notes(known, config, found))


def _check(config: Config, timers: int, payload_bytes: int, fires_per_s: float) -> None:
    if timers < 1:
        raise ValueError(f"timers is {timers}; it must be at least 1")
    most = config.limits.payload_bytes_max
    if not 0 <= payload_bytes <= most:
        raise ValueError(f"payload is {payload_bytes} bytes; the limit is {most}")
    if not 0 <= fires_per_s <= RATE_MAX:
        raise ValueError(f"rate is {fires_per_s:g} fires/s; the range is 0 to {RATE_MAX}")


def interpolated(points: list[Point], payload_bytes: int) -> Point:
    """The bytes for a payload between the measured ones, or carried on from the last two."""
    upper = next((i for i, at in enumerate(points) if at.payload_bytes >= payload_bytes), None)
    right = len(points) - 1 if upper is None else max(upper, 1)
    low, high = points[right - 1], points[right]
    part = (payload_bytes - low.payload_bytes) / (high.payload_bytes - low.payload_bytes)
    return Point(
        payload_bytes,
        low.log_bytes + part * (high.log_bytes - low.log_bytes),
        low.tables_bytes + part * (high.tables_bytes - low.tables_bytes),
    )


def _fired_bytes(known: Coefficients, payload_bytes: int) -> float:
    """What a fired timer leaves in both files: each of its two events carries the definition."""
    here = interpolated(known.points, payload_bytes).log_bytes
    there = interpolated(known.points, known.fired_payload_bytes).log_bytes
    log_bytes = known.fired_log_bytes + 2 * max(here - there, 0)
    return log_bytes * known.log_slack + known.fired_tables_bytes * known.tables_slack


def _notes(known: Coefficients, config: Config, found: Sizing) -> list[str]:
    notes = []
    if found.timers > known.timers:
        notes.append(
            f"measured with up to {known.timers:,} timers; carried on from there, not measured"
        )
    if found.timers > config.limits.timers_max:
        notes.append(f"more than limits.timers_max ({config.limits.timers_max:,}): raise it")
    quota = config.log.bytes_max * 9 // 10
    if found.disk_bytes > quota:
        wanted = -(-found.disk_bytes * 10 // 9)
        notes.append(
            f"above 90 % of log.bytes_max ({config.log.bytes_max:,}), where creates are refused: "
            f"raise it to {wanted:,}, or shorten log.retention"
        )
    if found.fires_per_s and found.armed == config.engine.armed_max:
        notes.append(
            f"engine.armed_max ({found.armed:,}) is reached: the horizon shrinks to "
            f"{found.armed / found.fires_per_s:.0f} s"
        )
    return notes


def to_json(known: Coefficients, found: Sizing) -> str:
    """The answer and what it rests on, as a JSON object."""
    answer = {**found._asdict(), "coefficients": known}
    return msgspec.json.format(msgspec.json.encode(answer)).decode()


def to_text(known: Coefficients, config: Config, found: Sizing) -> str:
    """The answer for people."""
    kept = format_duration(config.log.retention)
    beside = f", {found.fires_per_s:,g} made and fired a second" if found.fires_per_s else ""
    rows = [
        ("memory", f"{_bytes(found.ram_bytes)}, and what is free caches the files"),
        ("disk", f"{_bytes(found.disk_bytes)} while the log holds what made them ({kept})"),
        ("  after that", _bytes(found.kept_disk_bytes)),
    ]
    if found.fires_per_s:
        rows.append(("  of it, fires", _bytes(found.fires_disk_bytes)))
        rows.append(("armed", f"{found.armed:,} timers inside the horizon"))
    rows += [
        ("start", _seconds(found.start_s)),
        ("  at worst", f"{_seconds(found.start_behind_s)}, killed with the tables far behind"),
        ("filling", f"{_seconds(found.fill_s)} at {known.fill_per_s:,.0f} timers/s"),
    ]
    machine = known.machine
    lines = [f"{found.timers:,} pending timers, {found.payload_bytes:,} bytes of payload{beside}"]
    lines += [f"  {name:<14} {text}" for name, text in rows]
    lines += [f"  note: {note}" for note in found.notes]
    lines.append(
        f"measured by `minoots bench growth` with {known.timers:,} timers on {machine['date']}: "
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, "
        f"Python {machine['python']}, commit {machine['commit']}"
    )
    return "\n".join(lines)


def _bytes(count: int) -> str:
    for unit, of in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= of:
            return f"{_figure(count / of, 3)} {unit}"
    return f"{count} bytes"


def _seconds(seconds: float) -> str:
    for unit, of in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * of:
            return f"{_figure(seconds / of, 2)} {unit}"
    return f"{_figure(seconds, 2)} s"


def _figure(value: float, digits: int) -> str:
    """No estimate is better than that."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.{digits}g}"
