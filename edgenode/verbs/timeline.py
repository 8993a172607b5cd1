"""timeline.bins: how many fires are to come, counted into bins of time."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson

from edgenode.call import Call
from edgenode.forecast import Grid, add_dues
from edgenode.ledger import Ledger
from edgenode.verbs.find import SCAN_BUDGET, read_filter, unpack_id
from engine import schedule as rules
from engine.record import IMAGE, ROW_HEAD_BYTES, Image, Scale, rule_of, unpack_blob
from engine.schedule import Occurrence
from engine.store import Filter
from engine.timer import State
from minoots.wire import bodies
from minoots.wire.problems import refusal
from minoots.wire.times import format_duration, format_instant, parse_duration, parse_instant

_timeline = msgspec.json.Decoder(bodies.TimelineBins)

Steps = Generator[int, None, bytes]

STEP_TIMERS = 256  # that are looked at before others go on: some 0.5 ms
STEP_WORK = 20_000  # ... and bins that recurring ones are counted into: some 5 ms
BLOB_AT = ROW_HEAD_BYTES + IMAGE.size  # in a row
WORDS = {"second": "1s", "minute": "1m", "hour": "1h", "day": "1d"}


def bins(ledger: Ledger, call: Call) -> Steps:
    """`timeline.bins`: how many fires come in each bin, of the timers as they are now."""
    asked = call.read(_timeline)
    grid = _grid(asked, call.now.utc_ns)
    wanted = read_filter(asked.filter, ledger)
    due_to_ns = min(wanted.due_to_ns, grid.to_ns) if wanted.due_to_ns else grid.to_ns
    scheduled = int(State.SCHEDULED)
    found = Found(grid, asked.by)
    if not wanted.states or scheduled in wanted.states:
        wanted = wanted._replace(states=(scheduled,), due_to_ns=due_to_ns)
        yield ledger.next_seq - 1  # the tables must hold all that was asked before
        yield from _count_found(ledger, found, wanted)
    return orjson.dumps(found.told())


def _grid(asked: bodies.TimelineBins, now_ns: int) -> Grid:
    from_ns = now_ns if asked.from_ is None else _instant(asked.from_, "/from")
    to_ns = _instant(asked.to, "/to")
    try:
        width_ns = parse_duration(WORDS.get(asked.bin, asked.bin))
    except ValueError as error:
        raise refusal("validation", f"bin: {error}", pointer="/bin") from None
    if to_ns <= from_ns:
        raise refusal(
            "validation",
            f"to is {asked.to}, not after from, {format_instant(from_ns)}",
            pointer="/to",
        )
    grid = Grid(from_ns, to_ns, max(width_ns, 1))
    if not width_ns or grid.bins_count > bodies.BINS_MAX:
        raise refusal(
            "validation",
            f"bin is {asked.bin!r}, which makes {grid.bins_count} bins; the limit is "
            f"{bodies.BINS_MAX}: choose larger bins or a shorter time",
            pointer="/bin",
        )
    return grid


def _instant(text: str, pointer: str) -> int:
    try:
        return parse_instant(text)
    except ValueError as error:
        raise refusal("validation", str(error), pointer=pointer) from None


@dataclass(slots=True)
class Found:
    """The counts so far. groups: by the value of the label `by`; None: those without it."""

    grid: Grid
    by: str | None
    bins: list[int] = field(init=False)
    groups: dict[str | None, list[int]] = field(default_factory=dict)
    others: list[int] | None = None

    def __post_init__(self) -> None:
        self.bins = [0] * self.grid.bins_count

    def add(self, image: Image, blob: bytes, shift_ns: int) -> int:
        """Count one timer; what that cost, in bins."""
        rule = rules.unpack_rule(rule_of(blob))
        coming = Occurrence(image.occurrence, image.due_ns)
        if image.scale != Scale.STEADY:
            shift_ns = 0
        work = add_dues(self.bins, self.grid, rule, coming, shift_ns)
        if self.by is None:
            return work
        value = orjson.loads(unpack_blob(blob).labels).get(self.by)
        return work + add_dues(self._group(value), self.grid, rule, coming, shift_ns)

    def _group(self, value: str | None) -> list[int]:
        bins = self.groups.get(value)
        if bins is None and len(self.groups) < bodies.GROUPS_MAX:
            bins = self.groups[value] = [0] * self.grid.bins_count
        elif bins is None:
            bins = self.others = self.others or [0] * self.grid.bins_count
        return bins

    def told(self) -> dict[str, Any]:
        """The reply."""
        grid = self.grid
        reply: dict[str, Any] = {
            "from": format_instant(grid.from_ns),
            "to": format_instant(grid.to_ns),
            "bin": format_duration(grid.width_ns),
            "total": sum(self.bins),
            "bins": self.bins,
        }
        if self.by is not None:
            groups = [
                {"value": value, "total": sum(bins), "bins": bins}
                for value, bins in self.groups.items()
                if any(bins)
            ]
            groups.sort(key=lambda group: (-group["total"], group["value"] or ""))  # type: ignore
            reply["groups"] = groups
            if self.others is not None:
                reply["others"] = {"total": sum(self.others), "bins": self.others}
        return reply


def _count_found(ledger: Ledger, found: Found, wanted: Filter) -> Generator[int, None, None]:
    shift_ns = wanted.scale_shift_ns
    after, work = b"", 0
    while True:
        rows, after = ledger.tables.scan(wanted, after, STEP_TIMERS, SCAN_BUDGET)
        for row in rows:
            entry = ledger.hot.get(unpack_id(row))
            if entry is not None and entry[0]:  # it has changed since
                timer = ledger.load(unpack_id(row))
                if timer is None or timer.image.state != State.SCHEDULED:
                    continue
                work += found.add(timer.image, timer.blob, shift_ns)
            else:
                image = Image._make(IMAGE.unpack_from(row, ROW_HEAD_BYTES))
                work += found.add(image, row[BLOB_AT:], shift_ns)
            if work >= STEP_WORK:
                work = 0
                yield 0
        if not after:
            return
        yield 0
