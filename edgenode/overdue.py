"""Looks after timers that were overdue at a start: are they too many to fire without a word?

After a start from a backup, or with more overdue timers than `overdue.hold_above`, the set is held
(`held.py`): nothing of it is armed, all else goes on. Orders, given by verbs or by the
configuration, work it off a few timers at a time, beside everything else; they are kept in the note
too, so a start in between goes on with them. An order is done when a look at all that is held finds
nothing more that it is for: whatever came in meanwhile is met by the next look.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import nsmallest

import orjson

from edgenode.definitions import label_needle
from edgenode.fire import fire_due, skip_missed
from edgenode.held import Held, Order
from edgenode.ledger import TICK_NS, Ledger, Timer
from engine.clock import tick_at_or_after
from engine.record import Kind, Scale, unpack_blob
from engine.timer import State
from minoots.wire.bodies import TimerFilter
from minoots.wire.times import format_duration, format_id, format_instant, parse_instant

PAGE_ENTRIES = 512  # of the due index, looked at in one go: up to 2 ms where labels count
STEP_TIMERS = 64  # decided in one pass: 1 to 2 ms
BURST_NS = 100_000_000  # for which a rate may be made up
LOOK_NS = 1_000_000_000  # between two looks, where something has to be waited for
AGES_NS = tuple(
    seconds * 1_000_000_000 for seconds in (0, 60, 600, 3_600, 21_600, 86_400, 604_800, 2_592_000)
)

Entry = tuple[bytes, int, int]  # id, due and scale


def entries(ledger: Ledger) -> Iterator[list[Entry]]:
    """All that is held, in pages."""
    for scale in Scale:
        before_ns = ledger.held.before_ns[scale]
        if before_ns:
            yield from entries_of(ledger, scale, 0, before_ns)


def entries_of(ledger: Ledger, scale: Scale, from_ns: int, to_ns: int) -> Iterator[list[Entry]]:
    """What is scheduled with from_ns <= due < to_ns, in pages: first what is newer than the tables,
    then by hours of the due."""
    newer = ledger.hot.newer_due(from_ns, to_ns, scale)
    seen = {id for id, _ in newer}
    for at in range(0, len(newer), PAGE_ENTRIES):
        yield [(id, due_ns, scale) for id, due_ns in newer[at : at + PAGE_ENTRIES]]
    after, more = b"", True
    while more:
        ids, dues, after = ledger.tables.due(scale, from_ns, to_ns, after, PAGE_ENTRIES)
        yield _of_tables(ledger, scale, ids, dues, seen)
        more = bool(after)


def _of_tables(
    ledger: Ledger, scale: int, ids: bytes, dues: bytes, seen: set[bytes]
) -> list[Entry]:
    """A page of the due index without what a newer record rules. 0.5 us each."""
    page = []
    get = ledger.hot.get if ledger.hot.newer_count else None
    for at, due_ns in enumerate(memoryview(dues).cast("q")):
        id = ids[at * 16 : at * 16 + 16]
        entry = get(id) if get is not None else None
        if id not in seen and (entry is None or not entry[0]):
            page.append((id, due_ns, scale))
    return page


class Wanted:
    """A filter as it is held against what is held."""

    __slots__ = ("_due_from_ns", "_due_to_ns", "_labels", "_prefix")

    def __init__(self, asked: TimerFilter) -> None:
        self._due_from_ns = parse_instant(asked.due_from) if asked.due_from is not None else 0
        self._due_to_ns = parse_instant(asked.due_to) if asked.due_to is not None else 1 << 63
        self._labels = [label_needle(key, value) for key, value in asked.labels.items()]
        self._prefix = asked.name_prefix.encode("utf-8", "surrogatepass")

    def takes(self, ledger: Ledger, id: bytes, due_utc_ns: int) -> bool:
        """Whether this one is meant. 0.1 us, or some 10 where names or labels count."""
        if not self._due_from_ns <= due_utc_ns < self._due_to_ns:
            return False
        if not self._labels and not self._prefix:
            return True
        timer = ledger.load(id)
        if timer is None:
            return False
        parts = unpack_blob(timer.blob)
        named = parts.name.startswith(self._prefix)
        return named and all(needle in parts.labels for needle in self._labels)


def due_utc_ns(ledger: Ledger, due_ns: int, scale: int) -> int:
    """A due in UTC as it is now."""
    return due_ns + (ledger.now.shift_ns if scale == Scale.STEADY else 0)


# ------------------------------------------------------------------------------- counted


@dataclass(slots=True)
class Census:
    """How many are held, how old, and which are the oldest."""

    sample_most: int
    count: int = 0
    oldest_ns: int = 0  # dues in UTC
    newest_ns: int = 0
    ages: list[int] = field(default_factory=lambda: [0] * len(AGES_NS))
    sample: list[tuple[int, bytes]] = field(default_factory=list)

    def add(self, ledger: Ledger, page: list[Entry], wanted: Wanted) -> None:
        """Count a page."""
        now_ns, found = ledger.now.utc_ns, []
        for id, due_ns, scale in page:
            utc_ns = due_utc_ns(ledger, due_ns, scale)
            if wanted.takes(ledger, id, utc_ns):
                found.append((utc_ns, id))
                self.ages[_age(now_ns - utc_ns)] += 1
        if found:
            self.oldest_ns = min(found)[0] if not self.count else min(self.oldest_ns, min(found)[0])
            self.newest_ns = max(self.newest_ns, max(found)[0])
            self.count += len(found)
            self.sample = nsmallest(self.sample_most, [*self.sample, *found])

    def facts(self, now_ns: int) -> dict[str, object]:
        """For a report: count, oldest and newest due, and how many of each age."""
        told: dict[str, object] = {"count": self.count}
        if not self.count:
            return told | {"ages": []}
        told["oldest"], told["newest"] = (
            format_instant(self.oldest_ns),
            format_instant(self.newest_ns),
        )
        ages = []
        for at, count in enumerate(self.ages):
            if count:
                older = AGES_NS[at + 1] if at + 1 < len(AGES_NS) else 0
                ages.append(
                    {
                        "older_than": format_duration(AGES_NS[at]),
                        "count": count,
                        "due_from": format_instant(max(now_ns - older, 0)) if older else None,
                        "due_to": format_instant(now_ns - AGES_NS[at]) if at else None,
                    }
                )
        return told | {"ages": ages}

    def shown(self, ledger: Ledger) -> list[dict[str, object]]:
        """The sample, oldest first."""
        found: list[dict[str, object]] = []
        for utc_ns, id in self.sample:
            timer = ledger.load(id)
            if timer is not None:
                name = unpack_blob(timer.blob).name.decode("utf-8", "replace")
                found.append({"id": format_id(id), "name": name, "due": format_instant(utc_ns)})
        return found


def _age(late_ns: int) -> int:
    at = 0
    while at + 1 < len(AGES_NS) and late_ns > AGES_NS[at + 1]:
        at += 1
    return at


EVERYTHING = Wanted(TimerFilter())


def summary(held: Held) -> dict[str, object]:
    """What is held, for `stats` and reports."""
    return {
        "held": held.is_on,
        "why": held.why,
        "since": format_instant(held.since_ns) if held.is_on else None,
        "count_at_start": held.count,
        "fired": held.fired,
        "skipped": held.skipped,
    }


def guard(ledger: Ledger) -> dict[str, object] | None:
    """Decide at a start whether what is overdue is held; what to tell if that is new.

    Nothing is armed yet. Reads the part of the due index that lies behind now: 1 us for each timer
    there.
    """
    held, now, config = ledger.held, ledger.now, ledger.config.overdue
    epoch = ledger.identity.epoch
    restored = held.epoch not in (0, epoch)
    held.epoch = epoch
    if config.policy == "fire":
        held.end()
        return None
    was_ns, held.before_ns = held.before_ns, (now.steady_ns, now.utc_ns)
    census, fresh = Census(0), 0
    for page in entries(ledger):
        census.add(ledger, page, EVERYTHING)
        fresh += sum(due_ns >= was_ns[scale] for _, due_ns, scale in page)
    if not census.count or fresh <= (0 if restored else config.hold_above):
        held.before_ns = was_ns
        if config.policy == "skip" and held.is_on and not held.orders:
            held.orders = [Order("skip", TimerFilter(), count=held.count)]
        return None
    held.why = (
        f"the log was restored: its epoch is {epoch} now"
        if restored
        else f"{fresh} timers came due while no node served; the limit is {config.hold_above} "
        "(overdue.hold_above)"
    )
    held.since_ns, held.count, held.fired, held.skipped = now.utc_ns, census.count, 0, 0
    if config.policy == "skip":
        held.orders = [Order("skip", TimerFilter(), count=census.count)]
    return {"why": held.why, "policy": config.policy, **census.facts(now.utc_ns)}


# ------------------------------------------------------------------------------- worked off


class Runner:
    """Carries out the orders, the first one first, as far as time, rate and room permit."""

    def __init__(self, ledger: Ledger, count: Callable[[Kind], None]) -> None:
        """count: is told what was written."""
        self._ledger = ledger
        self._count = count
        self._look: _Look | None = None
        self._next_ns = 0

    @property
    def next_ns(self) -> int | None:
        """When there is something to do again (steady); None without orders, or without room."""
        ledger = self._ledger
        full = len(ledger.events) >= ledger.config.limits.turn_events_max
        return None if full or not ledger.held.orders else self._next_ns

    def step(self, wheel_tick: int) -> None:
        """Do a few; `wheel_tick`: where the wheel is."""
        ledger = self._ledger
        next_ns, now_ns = self.next_ns, ledger.now.steady_ns
        if next_ns is None or now_ns < next_ns:
            return
        order = ledger.held.orders[0]
        if self._look is None:
            self._look = _Look(entries(ledger), Wanted(order.filter))
        for _ in range(STEP_TIMERS):
            timer = self._look.next(ledger)
            if timer is None:
                break
            self._carry_out(order, timer, wheel_tick)
            if order.rate:
                begin_ns = max(self._next_ns or now_ns, now_ns - BURST_NS)
                self._next_ns = begin_ns + round(1_000_000_000 / order.rate)
                if self._next_ns > now_ns:
                    return
        else:
            return
        if self._look.ended:
            self._looked(order, self._look)

    def _looked(self, order: Order, look: _Look) -> None:
        """All that is held was looked at: the order is done, or there is another look."""
        ledger, self._look = self._ledger, None
        if look.taken and not look.waits:
            return
        held = ledger.held
        ledger.let_go = {id for id in ledger.let_go if _is_catching_up(ledger, id)}
        if look.taken or look.waits or ledger.let_go:
            self._next_ns = ledger.now.steady_ns + LOOK_NS
            return
        held.orders = held.orders[1:]
        self._next_ns = 0
        if not look.others:
            self._end()
        ledger.remember(held.note())

    def _end(self) -> None:
        """Nothing is held any more. What came in behind the last look fires by itself."""
        ledger, held = self._ledger, self._ledger.held
        told = {"fired": held.fired, "skipped": held.skipped}
        ledger.tell(Kind.OVERDUE_RELEASED, orjson.dumps(told))
        held.end()
        for id in ledger.turned_away:
            timer = ledger.load(id)
            if timer is not None and timer.image.state == State.SCHEDULED:
                deadline_ns = ledger.deadline_ns(timer.image)
                ledger.hot.arm(id, tick_at_or_after(deadline_ns, TICK_NS))
        ledger.turned_away.clear()

    def _carry_out(self, order: Order, timer: Timer, wheel_tick: int) -> None:
        ledger, held, id = self._ledger, self._ledger.held, timer.image.id
        if order.word == "skip":
            skip_missed(ledger, timer)
            self._count(Kind.SKIPPED)
            held.skipped += 1
            return
        ledger.let_go.add(id)
        written = fire_due(ledger, id, wheel_tick)
        if written is not None:
            self._count(written)
        held.fired += written in (Kind.EXPIRED, Kind.ESCALATED)
        held.skipped += written is Kind.SKIPPED
        if not _is_catching_up(ledger, id):
            ledger.let_go.discard(id)


def _is_catching_up(ledger: Ledger, id: bytes) -> bool:
    """Whether it is behind still, and the wheel has it."""
    entry = ledger.hot.get(id)
    if entry is None or not entry[3]:
        return False
    _, due_ns, scale, _ = entry
    return 0 < due_ns < ledger.held.before_ns[scale]


class _Look:
    """One look at all that is held. taken: whether any was for the order; others: whether any was
    not; waits: whether any waits for the clock."""

    def __init__(self, pages: Iterator[list[Entry]], wanted: Wanted) -> None:
        self._pages = pages
        self._wanted = wanted
        self._page: deque[Entry] = deque()
        self.taken = self.others = self.waits = self.ended = False

    def next(self, ledger: Ledger) -> Timer | None:
        """The next timer that the order is for; None at the end of a page too."""
        if not self._page:
            page = next(self._pages, None)
            self.ended = page is None
            self._page.extend(page or ())
        while self._page:
            id, due_ns, scale = self._page.popleft()
            if not self._wanted.takes(ledger, id, due_utc_ns(ledger, due_ns, scale)):
                self.others = True
                continue
            timer = ledger.load(id)
            if timer is None or timer.image.state != State.SCHEDULED:
                continue
            if not ledger.is_held(timer.image):
                continue
            if scale == Scale.WALL and ledger.wall_held:
                self.waits = True
                continue
            self.taken = True
            return timer
        return None
