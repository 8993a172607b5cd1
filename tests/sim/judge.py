"""What must be true of a run, whatever happened in it; judged from outside, by true time.

The judge knows what was asked and answered, what the log says when it is read by the contract, what
each watcher was shown, and what no client can know: when each expiry really left.

    LOST       acknowledged, and not in the log; due, and never left; in the log, not shown
    EARLY      left before what was asked for
    LATE       in the calm, left later than it may be
    DUPLICATE  one occurrence, key or request, done twice; shown twice
    GHOST      done without having been asked, or after it was refused
    ZOMBIE     fired after a cancel that was acknowledged
    ORDER      the log's numbers have a gap, repeat, or differ from what was read before
    QUIET      something still goes on when all has ended

Where nobody sets the clock and timers are only made and cancelled, `tests/proof/ledger.py` judges
too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from edgenode._encode import Encoder
from minoots.wire.times import parse_instant
from tests.proof.ledger import CANCELLED, EXPIRED, SCHEDULED, OutsideLedger
from tests.sim.world import MS, START_NS, World

LATE_NS_MAX = 5 * MS


@dataclass(slots=True)
class Wish:
    """One request, however often it was sent."""

    op: str
    body: Any
    sent_ns: int
    reply: Any = None
    refused: str = ""


@dataclass(slots=True)
class Leave:
    """An expiry that left. believed_ns: UTC as the node believed it then."""

    seq: int
    at_ns: int
    fired_ns: int
    believed_ns: int


@dataclass(slots=True)
class Timer:
    """A timer that was acknowledged. frees: when changes were first asked for that may make it
    earlier (trigger, reschedule)."""

    id: str
    definition: Any
    sent_ns: int
    frees: list[int] = field(default_factory=list)
    triggers: int = 0
    cancelled: bool = False

    @property
    def kind(self) -> str:
        """Of its schedule."""
        return str(self.definition["schedule"]["kind"])


@dataclass(slots=True)
class Book:
    """See the module."""

    world: World
    stepped: bool  # somebody sets the clock in this run
    plain: bool  # timers are only made and cancelled
    trims: bool = False  # the log forgets its head: nobody can read it whole
    wishes: dict[str, Wish] = field(default_factory=dict)
    timers: dict[str, Timer] = field(default_factory=dict)
    events: dict[int, Any] = field(default_factory=dict)
    leaves: list[Leave] = field(default_factory=list)
    left_by: set[tuple[int, int]] = field(default_factory=set)  # process, seq
    left_ns: dict[int, int] = field(default_factory=dict)  # when each first left, by seq
    calm_ns: int = -1  # from then on nothing may be late
    outside: OutsideLedger = field(default_factory=OutsideLedger)
    found: list[str] = field(default_factory=list)

    # ------------------------------------------------------------------------- taking in

    def ask(self, key: str, op: str, body: Any) -> None:
        """A request is about to be sent for the first time."""
        self.wishes[key] = Wish(op, body, self.world.now)
        self.outside.ask(key, op, body, self.world.true_utc_ns)
        timer = self.timers.get(body.get("id", ""))
        if timer is not None and op in ("timer.trigger", "timer.reschedule"):
            timer.frees.append(self.world.now)
            timer.triggers += op == "timer.trigger"

    def answer(self, key: str, reply: Any) -> list[tuple[Any, str]]:
        """A final reply; (definition, id) of the timers that it acknowledges."""
        wish = self.wishes[key]
        wish.reply = reply
        self.outside.answer(key, "R", reply)
        if wish.op == "timer.cancel" and reply["id"] in self.timers:
            self.timers[reply["id"]].cancelled = True
        if not wish.op.startswith("timer.schedule"):
            return []
        many = wish.op == "timer.schedule_many"
        definitions = wish.body["timers"] if many else [wish.body]
        views = reply["results"] if many else [reply]
        made = []
        for definition, view in zip(definitions, views, strict=True):
            if "id" in view:
                self.timers[view["id"]] = Timer(view["id"], definition, wish.sent_ns)
                made.append((definition, view["id"]))
        return made

    def refuse(self, key: str, code: str) -> None:
        """A final refusal."""
        self.wishes[key].refused = code
        self.outside.answer(key, "E", {"code": code, "retryable": False})

    @property
    def agrees_outside(self) -> bool:
        """Whether `tests/proof/ledger.py` can judge this run too."""
        return self.plain and not self.stepped and not self.trims

    def fill(self, history: dict[int, bytes]) -> None:
        """What was trimmed before it was read; what was read must say the same."""
        encoder = Encoder("sim", "default", 1)
        for seq, data in history.items():
            event = orjson.loads(encoder.event(seq, data))
            read = self.events.setdefault(seq, event)
            if (read["type"], read.get("subject")) != (event["type"], event.get("subject")):
                self.found.append(f"ORDER event {seq} was read as {read['type']}: {event['type']}")

    @property
    def read_up_to(self) -> int:
        """The newest event that was read."""
        return max(self.events, default=0)

    def replay(self, events: list[Any], from_seq: int) -> None:
        """A page of the log, read by the contract."""
        if self.agrees_outside:
            self.outside.replay(events, from_seq)
        coming = from_seq + 1
        for event in events:
            seq = int(event["sequence"])
            if seq != coming:
                self.found.append(f"ORDER replay has {seq} where {coming} comes next")
            coming = seq + 1
            before = self.events.setdefault(seq, event)
            if "fired" not in before["data"]:  # its receipt was not in yet
                self.events[seq] = event
            elif before["data"] != event["data"]:
                self.found.append(f"ORDER event {seq} is {event['data']}, was {before['data']}")

    def left(self, life: int, stamp: bytes, believed_ns: int) -> None:
        """An expiry leaves, now; a process lets each out once, whatever its disk does."""
        seq, fired_ns = (int.from_bytes(stamp[at : at + 8], "big") for at in (0, 8))
        if (life, seq) in self.left_by:
            self.found.append(f"DUPLICATE event {seq} left twice from one process")
        self.left_by.add((life, seq))
        self.left_ns.setdefault(seq, self.world.now)
        self.leaves.append(Leave(seq, self.world.now, fired_ns, believed_ns))

    def live(self, frames: list[bytes]) -> None:
        """A live event came to a subscriber."""
        if b"/e/timer." in frames[0] and self.agrees_outside:
            self.outside.live(frames[1], orjson.loads(frames[2]), self.world.true_utc_ns)

    # ------------------------------------------------------------------------- judging

    def faults(self) -> list[str]:
        """Everything that is not as it must be."""
        found = [*self.found]
        for check in (
            self._order,
            self._early,
            self._once,
            self._lost,
            self._ghosts,
            self._zombies,
        ):
            found += check()
        if self.agrees_outside:
            found += [f"{fault} (outside)" for fault in self.outside.faults(self.world.true_utc_ns)]
        return found

    def _of_type(self, type: str) -> Iterator[tuple[int, Any]]:
        return ((seq, e) for seq, e in sorted(self.events.items()) if e["type"] == type)

    def _order(self) -> Iterator[str]:
        seqs = sorted(self.events)
        if seqs != list(range(1, len(seqs) + 1)):
            yield f"ORDER the numbers read are not 1 to {len(seqs)}"
        newest: dict[str, int] = {}
        for seq, event in self._of_type(EXPIRED):
            number = event["data"]["occurrence"]
            if number <= newest.get(event["subject"], 0):
                yield f"ORDER event {seq} is occurrence {number} of {event['subject']}, again"
            newest[event["subject"]] = number

    def _early(self) -> Iterator[str]:
        for leave in self.leaves:
            event = self.events.get(leave.seq)
            if event is None or event["type"] != EXPIRED:
                yield f"GHOST event {leave.seq} left and is not in the log"
                continue
            due_ns = parse_instant(event["data"]["due"])
            if leave.fired_ns < due_ns:
                yield f"EARLY event {leave.seq} left {due_ns - leave.fired_ns} ns before its due"
            timer = self.timers.get(event["subject"])
            if timer is not None:
                yield from self._too_soon(leave, timer, event["data"])
            if self.calm_ns >= 0 and timer is not None and timer.sent_ns >= self.calm_ns:
                late_ns = leave.fired_ns - due_ns
                if late_ns > LATE_NS_MAX and event["data"]["name"].startswith("probe"):
                    yield f"LATE event {leave.seq} left {late_ns} ns late, in the calm"

    def _too_soon(self, leave: Leave, timer: Timer, data: Any) -> Iterator[str]:
        schedule = timer.definition["schedule"]
        if timer.kind == "at":
            ahead_ns = parse_instant(schedule["instant"]) - leave.believed_ns
            if not self.stepped:
                ahead_ns = parse_instant(schedule["instant"]) - START_NS - leave.at_ns
        else:
            span = schedule.get("duration") or schedule["interval"]
            number = data["occurrence"] - timer.triggers if timer.kind == "every" else 1
            ahead_ns = timer.sent_ns + number * int(span[:-2]) * MS - leave.at_ns
        if ahead_ns > 0 and not any(free <= leave.at_ns for free in timer.frees):
            yield f"EARLY event {leave.seq} of {timer.definition} left {ahead_ns} ns too soon"

    def _once(self) -> Iterator[str]:
        keys: dict[str, int] = {}
        names: dict[str, int] = {}
        for seq, event in self._of_type(EXPIRED):
            if keys.setdefault(event["dedupekey"], seq) != seq:
                yield f"DUPLICATE {event['dedupekey']} is {keys[event['dedupekey']]} and {seq}"
        for seq, event in self._of_type(SCHEDULED):
            name = event["data"]["name"]
            if names.setdefault(name, seq) != seq:
                yield f"DUPLICATE timer {name} was made by {names[name]} and {seq}"

    def _lost(self) -> Iterator[str]:
        made = {event["subject"] for _, event in self._of_type(SCHEDULED)}
        ended = {event["subject"] for _, event in self._of_type(CANCELLED)}
        fired = {event["subject"] for _, event in self._of_type(EXPIRED)}
        left = {leave.seq for leave in self.leaves}
        for timer in self.timers.values():
            if timer.id not in made:
                yield f"LOST {timer.definition} was acknowledged and is not in the log"
            elif timer.id not in ended and timer.id not in fired:
                yield f"LOST {timer.definition} neither fired nor was cancelled"
            elif timer.cancelled and timer.id not in ended:
                yield f"LOST the cancel of {timer.definition} is not in the log"
        for seq, _ in self._of_type(EXPIRED):
            if seq not in left:
                yield f"LOST event {seq} is in the log and never left"

    def _ghosts(self) -> Iterator[str]:
        for seq, event in self._of_type(SCHEDULED):
            wish = self.wishes.get(event["data"]["name"].rsplit(".", 1)[0])
            if wish is None or wish.refused:
                yield f"GHOST event {seq}: {event['data']['name']} was not asked for, or refused"
            elif wish.reply is not None and event["subject"] not in self.timers:
                yield f"GHOST event {seq}: {event['data']['name']} was made beside what was told"

    def _zombies(self) -> Iterator[str]:
        ended = {event["subject"]: seq for seq, event in self._of_type(CANCELLED)}
        for seq, event in self._of_type(EXPIRED):
            if seq > ended.get(event["subject"], seq):
                yield f"ZOMBIE {event['subject']} was cancelled and fired as {seq}"

    def missing(self, name: str, types: tuple[str, ...], shown: set[int]) -> list[str]:
        """What a watcher should have been shown and was not, and the other way round."""
        wanted = {
            seq
            for seq, event in self.events.items()
            if not types or event["type"].removeprefix("io.minoots.").removesuffix(".v1") in types
        }
        lost, ghosts = sorted(wanted - shown)[:5], sorted(shown - wanted)[:5]
        found = [f"GHOST {name} was shown events {ghosts}"] if ghosts else []
        if lost and not self.trims:
            found.append(f"LOST {name} was not shown events {lost}")
        return found
