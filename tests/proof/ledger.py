"""The outside ledger: what a node was asked, what it answered, what came; and whether that agrees.

It knows the contract and nothing of the node; every harness that hurts one judges by it. The load
names each timer `<key>.<n>`, after the idempotency key of the request that makes it, so that a
timer nobody has heard of can be told from one whose reply was lost.

    LOST       acknowledged, and not in the log; or due, and not fired; or seen live, then gone
    EARLY      due or fired before the time asked for
    LATE       fired later than `late_ns_max`, outages taken off
    DUPLICATE  one occurrence, key or request, done twice; two effects acknowledged for one key
    GHOST      done without having been asked, or after it was refused
    ZOMBIE     anything that happened to a timer after its cancel
    ORDER      the log's numbers have a gap, repeat, or differ from what was read before
    TENANT     an event that another tenant sees, or that names another tenant than its timer's
    CHAIN      the log's hash chain does not agree: `chain.py` reads the files for it
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.e2e.harness import ns_of

EXPIRED, SCHEDULED, CANCELLED, LATE = (
    f"io.minoots.timer.{word}.v1" for word in ("expired", "scheduled", "cancelled", "late")
)
TENANT = "default"
MS_NS = 1_000_000


@dataclass(slots=True)
class Ask:
    """One request, however often it was sent. reply: its final answer; problem: its refusal."""

    key: str
    op: str
    body: Any
    sent_ns: int
    tenant: str = TENANT
    reply: Any = None
    problem: Any = None

    def definitions(self) -> list[Any]:
        """The definitions that it asks for, in order."""
        if self.op == "timer.schedule":
            return [self.body]
        return list(self.body["timers"]) if self.op == "timer.schedule_many" else []

    def views(self) -> list[Any]:
        """The timers that it was told are made."""
        if self.reply is None or not self.op.startswith("timer.schedule"):
            return []
        return list(self.reply["results"]) if "results" in self.reply else [self.reply]


class Live(NamedTuple):
    """One live event. fired: by its stamp, 0 where nothing fired; came: by our own clock."""

    seq: int
    type: str
    subject: str
    dedupe: str
    due: int
    fired: int
    came: int


class Known(NamedTuple):
    """A timer that the node said it had made."""

    id: str
    definition: Any
    sent_ns: int
    due: int
    tenant: str


@dataclass(slots=True)
class OutsideLedger:
    """See the module. late_ns_max: 0 if lateness is not judged."""

    asks: dict[str, Ask] = field(default_factory=dict)
    lives: list[Live] = field(default_factory=list)
    events: dict[int, Any] = field(default_factory=dict)  # seq -> the event of the newest replay
    head: int = 0
    late_ns_max: int = 0
    outages: list[tuple[int, int]] = field(default_factory=list)  # the node was away, in order
    effects: dict[tuple[str, str], str] = field(default_factory=dict)
    _faults: list[str] = field(default_factory=list)

    # ------------------------------------------------------------------------------- taking in

    def ask(self, key: str, op: str, body: Any, now_ns: int, tenant: str = TENANT) -> None:
        """A request is about to be sent for the first time."""
        assert key not in self.asks
        self.asks[key] = Ask(key, op, body, now_ns, tenant)

    def answer(self, key: str, kind: str, reply: Any) -> None:
        """An answer came; a second one to the same key must say the same."""
        ask = self.asks[key]
        if kind == "E":
            if not reply.get("retryable"):
                ask.problem = reply
            return
        before = ask.views()
        ask.reply = {name: value for name, value in reply.items() if name != "replayed"}
        if before and [v.get("id") for v in before] != [v.get("id") for v in ask.views()]:
            self._say("DUPLICATE", f"request {key} was answered with other timers than before")

    def unanswered(self) -> list[Ask]:
        """What has to be sent again."""
        return [a for a in self.asks.values() if a.reply is None and a.problem is None]

    def live(self, stamp: bytes, event: Any, came_ns: int, reader: str = TENANT) -> None:
        """A live event came to a subscriber of the tenant `reader`."""
        self._see(event, reader)
        seq, fired = (int.from_bytes(stamp[at : at + 8], "big") for at in (0, 8))
        due = ns_of(event["data"]["due"]) if event["data"].get("due") else 0
        names = event.get("subject", ""), event.get("dedupekey", "")
        self.lives.append(Live(seq, event["type"], *names, due, fired, came_ns))

    def stands_at(self, seq: int) -> None:
        """The node said where its log ends."""
        if seq < self.head:
            self._say("ORDER", f"the log ends at {seq}; before it ended at {self.head}")
        self.head = max(self.head, seq)

    def outage(self, from_ns: int, to_ns: int) -> None:
        """The node was away, by our own clock: what was due meanwhile may be late by that."""
        assert not self.outages or self.outages[-1][1] <= from_ns
        self.outages.append((from_ns, to_ns))

    def effect(self, worker: str, event: Any, done: str) -> None:
        """A consumer's worker did what an event asks for, and its acknowledgement was taken.

        done: what tells this doing from another one.
        """
        key = worker, event["dedupekey"]
        if self.effects.setdefault(key, done) != done:
            self._say("DUPLICATE", f"{key} was done as {self.effects[key]} and as {done}")

    def replay(self, events: Iterable[Any], from_seq: int = 0, reader: str = TENANT) -> None:
        """What a replay from behind `from_seq` brought to a client of the tenant `reader`."""
        expected = from_seq + 1
        for event in events:
            self._see(event, reader)
            seq = int(event["sequence"])
            if seq != expected:
                self._say("ORDER", f"replay has {seq} where {expected} comes next")
            before = self.events.get(seq)
            if before is not None and _identity(before) != _identity(event):
                self._say("ORDER", f"event {seq} is {_identity(event)}, was {_identity(before)}")
            self.events[seq] = event
            expected = seq + 1

    # ------------------------------------------------------------------------------- judging

    def faults(self, until_ns: int) -> list[str]:
        """Everything that does not agree. until_ns: what was due by then must have fired."""
        known = {timer.id: timer for timer in self._known()}
        found = [*self._faults]
        checks = (self._order(), self._ghosts(known), self._duplicates(), self._early(known))
        found += [fault for check in checks for fault in check]
        checks = self._lost(known, until_ns), self._lost_live(), self._zombies(), self._late()
        found += [fault for check in checks for fault in check]
        return found + list(self._tenants(known))

    @property
    def timers_acknowledged(self) -> int:
        """Timers that the node said it had made."""
        return sum(1 for _ in self._known())

    def _see(self, event: Any, reader: str) -> None:
        tenant = event.get("tenant", TENANT)
        if tenant != reader:
            self._say("TENANT", f"event {event['sequence']} of {tenant} was shown to {reader}")

    def _say(self, what: str, text: str) -> None:
        self._faults.append(f"{what} {text}")

    def _known(self) -> Iterator[Known]:
        for ask in self.asks.values():
            for definition, view in zip(ask.definitions(), ask.views(), strict=False):
                if "id" in view:
                    due_ns = ns_of(view["due"])
                    yield Known(view["id"], definition, ask.sent_ns, due_ns, ask.tenant)

    def _of_type(self, type: str) -> Iterator[tuple[int, Any]]:
        return ((seq, e) for seq, e in sorted(self.events.items()) if e["type"] == type)

    def _fires(self) -> dict[str, list[tuple[int, Any]]]:
        fires: dict[str, list[tuple[int, Any]]] = {}
        for seq, event in self._of_type(EXPIRED):
            fires.setdefault(event["subject"], []).append((seq, event))
        return fires

    def _order(self) -> Iterator[str]:
        seqs = sorted(self.events)
        if seqs != list(range(1, len(seqs) + 1)):
            yield f"ORDER the replayed numbers are not 1 to {len(seqs)}"
        if seqs and seqs[-1] < self.head:
            yield f"ORDER the replay ends at {seqs[-1]}; the log ended at {self.head} before"

    def _ghosts(self, known: dict[str, Known]) -> Iterator[str]:
        for type in (SCHEDULED, EXPIRED):
            for seq, event in self._of_type(type):
                if event["subject"] in known:
                    continue
                name = event["data"]["name"]
                ask = self.asks.get(name.split(".")[0])
                if ask is None or ask.problem is not None or ask.reply is not None:
                    yield f"GHOST event {seq}: timer {name!r} was not asked for, or was refused"
        for live in self.lives:
            if live.type == EXPIRED and live.seq not in self.events:
                yield f"GHOST live event {live.seq} of {live.subject} is not in the log"

    def _duplicates(self) -> Iterator[str]:
        seq_of: dict[str, int] = {}
        made: dict[str, int] = {}
        for seq, event in self._of_type(EXPIRED):
            key, data = event["dedupekey"], event["data"]
            first = seq_of.setdefault(key, seq)
            if first != seq:
                yield f"DUPLICATE {key} is event {first} and event {seq}"
            if key != f"{event['tenant']}/{event['subject']}/{data['occurrence']}":
                yield f"DUPLICATE event {seq}, occurrence {data['occurrence']}, has key {key}"
        for live in self.lives:
            if live.type == EXPIRED and seq_of.get(live.dedupe, live.seq) != live.seq:
                yield f"DUPLICATE {live.dedupe} came as {live.seq}, is {seq_of[live.dedupe]}"
        for seq, event in self._of_type(SCHEDULED):
            name = event["data"]["name"]
            first = made.setdefault(name, seq)
            if first != seq:
                yield f"DUPLICATE timer {name!r} was made by event {first} and event {seq}"

    def _early(self, known: dict[str, Known]) -> Iterator[str]:
        for timer in known.values():
            asked = _earliest(timer)
            if timer.due < asked:
                yield f"EARLY {timer.id} is due {asked - timer.due} ns before what was asked"
        for seq, event in self._of_type(EXPIRED):
            data = event["data"]
            if "fired" in data and ns_of(data["fired"]) < ns_of(data["due"]):
                yield f"EARLY event {seq} fired {data['fired']}, was due {data['due']}"
        for live in self.lives:
            if live.type == EXPIRED and min(live.fired, live.came) < live.due:
                yield f"EARLY live event {live.seq} came {live.due - live.came} ns before its due"

    def _lost(self, known: dict[str, Known], until_ns: int) -> Iterator[str]:
        made = {event["subject"] for _, event in self._of_type(SCHEDULED)}
        ended = {event["subject"] for _, event in self._of_type(CANCELLED)}
        fires = self._fires()
        for timer in known.values():
            mine = fires.get(timer.id, [])
            if timer.id not in made:
                yield f"LOST {timer.id} was acknowledged and is not in the log"
            elif timer.definition["schedule"]["kind"] == "every":
                yield from _lost_occurrences(timer, mine, until_ns, cancelled=timer.id in ended)
            elif not mine and timer.id not in ended and timer.due <= until_ns:
                yield f"LOST {timer.id} was due {until_ns - timer.due} ns ago and did not fire"
        for mine in fires.values():
            for seq, event in mine:
                if "fired" not in event["data"] and ns_of(event["data"]["due"]) <= until_ns:
                    yield f"LOST event {seq} was due and has no receipt"
        for id in self._cancelled():
            if id not in ended:
                yield f"LOST the cancel of {id} was acknowledged and is not in the log"

    def _lost_live(self) -> Iterator[str]:
        for live in self.lives:
            event = self.events.get(live.seq)
            told = (live.type, live.subject, live.dedupe)
            if event is not None and _identity(event)[:3] != told:
                yield f"LOST live event {live.seq} was {told}; the log has {_identity(event)}"
            if event is None and live.type != EXPIRED:
                yield f"LOST live event {live.seq} of {live.subject} is not in the log"

    def _cancelled(self) -> set[str]:
        cancels = (a for a in self.asks.values() if a.op == "timer.cancel" and a.reply is not None)
        return {ask.reply["id"] for ask in cancels}

    def _zombies(self) -> Iterator[str]:
        fires, acknowledged = self._fires(), self._cancelled()
        ended: dict[str, int] = {}
        for seq, event in sorted(self.events.items()):
            at = ended.get(event.get("subject", ""))
            if at is not None and event["type"] != LATE:  # which is told of an earlier fire
                yield f"ZOMBIE {event['subject']} was cancelled by {at}; {event['type']} is {seq}"
            if event["type"] == CANCELLED:
                ended[event["subject"]] = seq
        for timer in self._known():
            once = timer.definition["schedule"]["kind"] != "every"
            if once and timer.id in acknowledged and timer.id in fires:
                yield f"ZOMBIE {timer.id} was cancelled, acknowledged, and fired"

    def lateness_ns(self) -> Iterator[tuple[int, int]]:
        """Of each fire that has its receipt: its seq, and how late it was, outages taken off."""
        starts = [begin for begin, _ in self.outages]
        for seq, event in self._of_type(EXPIRED):
            if "fired" not in event["data"]:
                continue
            due_ns, fired_ns = ns_of(event["data"]["due"]), ns_of(event["data"]["fired"])
            late_ns = fired_ns - due_ns
            at = max(bisect_right(starts, due_ns) - 1, 0)
            for begin, end in self.outages[at : bisect_right(starts, fired_ns)]:
                late_ns -= max(min(end, fired_ns) - max(begin, due_ns), 0)
            yield seq, late_ns

    def _late(self) -> Iterator[str]:
        if not self.late_ns_max:
            return
        for seq, late_ns in self.lateness_ns():
            if late_ns > self.late_ns_max:
                yield f"LATE event {seq} by {late_ns} ns; {self.late_ns_max} are allowed"

    def _tenants(self, known: dict[str, Known]) -> Iterator[str]:
        """Whose timer it is, says who asked for it; an event must not say anything else."""
        for seq, event in sorted(self.events.items()):
            timer = known.get(event.get("subject", ""))
            tenant = event.get("tenant", TENANT)
            if timer is not None and tenant != timer.tenant:
                yield f"TENANT event {seq} says {tenant}; {timer.tenant} asked for {timer.id}"
            if "dedupekey" in event and event["dedupekey"].split("/")[0] != tenant:
                yield f"TENANT event {seq} of {tenant} has the key {event['dedupekey']}"


def _identity(event: Any) -> tuple[str, str, str, str]:
    due = event["data"].get("due", "")
    return event["type"], event.get("subject", ""), event.get("dedupekey", ""), due


def _earliest(timer: Known) -> int:
    """The instant before which the timer must not be due."""
    schedule = timer.definition["schedule"]
    if schedule["kind"] == "at":
        return ns_of(schedule["instant"])
    return timer.sent_ns + ms_of(schedule.get("duration") or schedule["interval"]) * MS_NS


def ms_of(text: str) -> int:
    """The duration of the load's definitions, which are all written in ms."""
    assert text.endswith("ms"), text
    return int(text[:-2])


def _lost_occurrences(
    timer: Known, fires: list[tuple[int, Any]], until_ns: int, *, cancelled: bool
) -> Iterator[str]:
    """Occurrences of an `every` that were due and neither fired nor were passed over, late."""
    interval_ns = ms_of(timer.definition["schedule"]["interval"]) * MS_NS
    coming, number = timer.due, 1
    for seq, event in fires:
        data = event["data"]
        due, occurrence = ns_of(data["due"]), data["occurrence"]
        if due - coming != (occurrence - number) * interval_ns:
            yield f"LOST {timer.id}: occurrence {occurrence} is off its grid"
        if occurrence > number and _left_ns(fires, seq) < due - interval_ns:
            yield f"LOST {timer.id}: occurrences {number} to {occurrence - 1} were passed over"
        coming, number = due + interval_ns, occurrence + 1
    if not cancelled and coming <= until_ns:
        yield f"LOST {timer.id}: occurrence {number} was due and did not fire"


def _left_ns(fires: list[tuple[int, Any]], seq: int) -> int:
    """When the fire before `seq` left; -1 if there was none, so that nothing may be passed over."""
    at = [number for number, _ in fires].index(seq)
    data = fires[at - 1][1]["data"] if at else {}
    return ns_of(data["fired"]) if "fired" in data else -1
