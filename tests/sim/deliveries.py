"""What must be true of one durable consumer, whatever happened; judged by true time.

It knows what its workers said and were told, what `dlq.list` and `consumer.info` say in the end,
and what no client can know: each delivery as it leaves the node, also those that nobody gets.

    LOST       an event that passes is neither acknowledged nor dead; a delivery called stale for
               no reason; the consumer counts less than what was told
    EARLY      delivered before the event's instant, or again before `ack_wait` or a delay was over
    DUPLICATE  an attempt's number left twice or went down; settled twice; delivered when it was
               settled
    GHOST      delivered though it does not pass; dead without a reason; not what the log says
    ORDER      `ordered`, and an event of a timer came after a later one
    QUIET      something is held in the end
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from minoots.consumer_verbs import ConsumerView, DeadLetter
from minoots.wire.bodies import ConsumerConfig
from minoots.wire.times import parse_duration, parse_instant
from tests.proof.ledger import EXPIRED
from tests.sim.judge import Book
from tests.sim.world import START_NS, World


@dataclass(slots=True)
class Sent:
    """The newest delivery of an event that left. again_ns: it may not come again before."""

    attempt: int
    again_ns: int
    event: Any


@dataclass(slots=True)
class Told:
    """What was said of one event. unheard: how often, by verb, without an answer yet; counted: the
    verbs that counted; stale: the highest attempt of which a verdict did not."""

    unheard: dict[str, int] = field(default_factory=dict)
    counted: list[str] = field(default_factory=list)
    stale: int = 0
    late: set[int] = field(default_factory=set)  # attempts that were old when a verdict was sent


def named(delivery: str) -> tuple[int, int]:
    """(seq, attempt) of a delivery's name, which only a judge may read."""
    _, seq, attempt = map(int, delivery.split("."))
    return seq, attempt


@dataclass(slots=True)
class Deliveries:
    """See the module. begins: the seq after which the consumer began, once that is known."""

    world: World
    book: Book
    config: ConsumerConfig
    begins: int = 0
    sent: dict[int, Sent] = field(default_factory=dict)
    left_count: int = 0
    again_count: int = 0
    told: dict[int, Told] = field(default_factory=dict)
    dead: dict[int, DeadLetter] = field(default_factory=dict)
    view: ConsumerView | None = None
    found: list[str] = field(default_factory=list)
    _newest_of: dict[str, int] = field(default_factory=dict)  # timer to seq

    @property
    def name(self) -> str:
        """The consumer's."""
        return self.config.name

    def _wait_ns(self, attempt: int) -> int:
        waits = self.config.backoff or [self.config.ack_wait]
        return parse_duration(waits[min(attempt, len(waits)) - 1])

    def _passes(self, event: Any) -> bool:
        prefix = self.config.filter.name_prefix
        return bool(event["type"] == EXPIRED and event["data"]["name"].startswith(prefix))

    # ------------------------------------------------------------------------- taking in

    def left(self, pulled_ns: int, message: Any) -> None:
        """A delivery leaves the node, now; its pull was sent at `pulled_ns`."""
        seq, attempt, event, now = (
            message["seq"],
            message["attempt"],
            message["event"],
            self.world.now,
        )
        what = f"delivery {message['delivery']} of {self.name}"
        self.left_count += 1
        fired_ns = self.book.left_ns.get(seq)
        if fired_ns is None:
            self.found.append(f"EARLY {what} left before its event")
            fired_ns = now
        if (seq, attempt) != named(message["delivery"]) or attempt != event["attempt"]:
            self.found.append(f"GHOST {what} says attempts {attempt} and {event['attempt']}")
        before = self.sent.get(seq)
        since_ns = max(pulled_ns, fired_ns)
        if before is not None:
            self.again_count += 1
            self._again(what, attempt, event, before)
            since_ns = max(since_ns, before.again_ns)
        if self.config.max_deliver and attempt > self.config.max_deliver:
            self.found.append(f"GHOST {what} left beyond max_deliver")
        if seq in self.told and self.told[seq].counted:
            self.found.append(f"DUPLICATE {what} left after {self.told[seq].counted} counted")
        if self.config.ordered:
            newest = self._newest_of.setdefault(event["subject"], seq)
            if newest > seq:
                self.found.append(f"ORDER {what} left after {newest} of the same timer")
            self._newest_of[event["subject"]] = seq
        again_ns = since_ns + self._wait_ns(attempt)
        if not self.book.stepped:
            again_ns = max(again_ns, parse_instant(message["ack_deadline"]) - START_NS)
        self.sent[seq] = Sent(attempt, again_ns, event)

    def _again(self, what: str, attempt: int, event: Any, before: Sent) -> None:
        if attempt <= before.attempt:
            self.found.append(f"DUPLICATE {what} left after attempt {before.attempt}")
        if self.world.now < before.again_ns:
            early_ns = before.again_ns - self.world.now
            self.found.append(f"EARLY {what} came again {early_ns} ns before its wait was over")
        if event["dedupekey"] != before.event["dedupekey"]:
            self.found.append(f"GHOST {what} has another dedupe key than before")

    def ask(self, op: str, deliveries: list[str], delay_ns: int = 0) -> None:
        """A verdict is about to be sent for the first time."""
        for delivery in deliveries:
            seq, attempt = named(delivery)
            told = self.told.setdefault(seq, Told())
            told.unheard[op] = told.unheard.get(op, 0) + 1
            sent = self.sent[seq]
            if sent.attempt > attempt:
                told.late.add(attempt)
            elif op == "nack":
                sent.again_ns = min(sent.again_ns, self.world.now + delay_ns)

    def answer(self, op: str, deliveries: list[str], stale: list[str]) -> None:
        """The node has it; those that are `stale` did not count."""
        for delivery in deliveries:
            seq, attempt = named(delivery)
            told = self.told[seq]
            told.unheard[op] -= 1
            if delivery in stale:
                told.stale = max(told.stale, attempt)
                continue
            if attempt in told.late:
                self.found.append(f"DUPLICATE {op} of {delivery} of {self.name} counted, too late")
            if op == "nack":
                continue
            told.counted.append(op)
            if len(told.counted) > 1:
                self.found.append(f"DUPLICATE {told.counted} of {delivery} of {self.name} counted")

    def renewed(self, delivery: str, asked_ns: int, stale: list[str]) -> None:
        """Progress was asked for, and counted unless it is stale."""
        seq, attempt = named(delivery)
        sent, told = self.sent[seq], self.told.get(seq)
        if not stale and sent.attempt == attempt and not (told and told.unheard.get("nack")):
            sent.again_ns = max(sent.again_ns, asked_ns + self._wait_ns(attempt))

    # ------------------------------------------------------------------------- judging

    def faults(self) -> list[str]:
        """Everything that is not as it must be; the book is whole by now."""
        found = [*self.found]
        for check in (self._settled, self._stale, self._dead, self._same, self._view):
            found += check()
        return found

    def _settled(self) -> Iterator[str]:
        for seq, event in sorted(self.book.events.items()):
            if seq <= self.begins or not self._passes(event):
                if seq in self.sent:
                    yield f"GHOST event {seq} does not pass {self.name} and was delivered"
                continue
            told = self.told.get(seq, Told())
            acked = "ack" in told.counted
            if seq in self.dead and acked:
                yield f"DUPLICATE event {seq} of {self.name} is acknowledged, and dead"
            if "term" in told.counted and seq not in self.dead:
                yield f"LOST event {seq} was given up, and is no dead letter of {self.name}"
            if seq not in self.dead and not acked and not told.unheard.get("ack"):
                yield f"LOST event {seq} is neither acknowledged nor a dead letter of {self.name}"

    def _stale(self) -> Iterator[str]:
        for seq, told in self.told.items():
            newer = self.sent[seq].attempt > told.stale
            unheard = told.unheard.get("ack", 0) + told.unheard.get("term", 0)
            if told.stale and not (newer or told.counted or unheard or seq in self.dead):
                yield f"LOST a verdict of {seq}.{told.stale} of {self.name} was not taken"

    def _dead(self) -> Iterator[str]:
        most = self.config.max_deliver
        for seq, dead in self.dead.items():
            told = self.told.get(seq, Told())
            given_up = "term" in told.counted or told.unheard.get("term", 0) > 0
            sent = self.sent.get(seq)
            if not given_up and (not most or dead.attempts < most):
                yield f"GHOST event {seq} is dead after {dead.attempts} attempts of {self.name}"
            if sent is None:
                if dead.attempts < most or not most:
                    yield f"GHOST event {seq} is dead, and never left for {self.name}"
                continue
            if dead.attempts < sent.attempt:
                yield f"DUPLICATE event {seq} of {self.name} left after it was dead"
            in_time = dead.reason.startswith("not acknowledged") and dead.attempts == sent.attempt
            if in_time and not self.book.stepped:
                early_ns = sent.again_ns - parse_instant(dead.at) + START_NS
                if early_ns > 0:
                    yield f"EARLY event {seq} of {self.name} was dead {early_ns} ns too soon"

    def _same(self) -> Iterator[str]:
        for seq, sent in self.sent.items():
            event = self.book.events.get(seq)
            if event is None:
                yield f"GHOST event {seq} was delivered by {self.name} and is not in the log"
            elif any(event[part] != sent.event[part] for part in ("type", "subject", "dedupekey")):
                yield f"GHOST event {seq} was delivered by {self.name} as {sent.event}, is {event}"

    def _view(self) -> Iterator[str]:
        view = self.view
        if view is None:
            yield f"QUIET {self.name} did not come to its end"
            return
        if view.ack_pending or view.out or view.pending or view.waiting:
            yield f"QUIET {self.name} still holds {view}"
        if view.dead != len(self.dead):
            yield f"LOST {self.name} has {view.dead} dead letters, and lists {len(self.dead)}"
        acks = sum("ack" in told.counted for told in self.told.values())
        unheard = sum(told.unheard.get("ack", 0) for told in self.told.values())
        if not acks <= view.acked <= acks + unheard:
            yield f"LOST {self.name} counts {view.acked} acknowledgements: {acks} (+{unheard})"
        if view.delivered < self.left_count:
            yield f"LOST {self.name} counts {view.delivered} deliveries: {self.left_count} left"
