"""A durable consumer against a dict: what a pull brings, whatever happened before, crashes too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.sim.driver import Driver

ACK_WAIT_S = 10
MAX_DELIVER = 3
SLACK_S = 0.01  # a deadline runs out up to a tick late


@dataclass
class Message:
    """standing: ready, out, later, dead, done. until_s: when it is out or later no more. before:
    attempts before it was redriven."""

    seq: int
    standing: str = "ready"
    attempt: int = 0
    before: int = 0
    until_s: float = 0.0
    copied: bool = False

    @property
    def is_worn(self) -> bool:
        return self.attempt - self.before >= MAX_DELIVER


class ConsumerMachine(RuleBasedStateMachine):
    """Time passes in steps that are far from any deadline's tick."""

    @initialize(room=st.integers(1, 6))
    def begin(self, room: int) -> None:
        self.driver = Driver()
        self.now_s = 0.0
        self.room = room
        self.fired = 0
        self.unseen: list[int] = []  # fired, and not looked at yet
        self.messages: dict[int, Message] = {}
        self.driver.ask(
            "consumer.create",
            {
                "name": "w",
                "filter": {"types": ["timer.expired"]},
                "ack_wait": f"{ACK_WAIT_S}s",
                "max_deliver": MAX_DELIVER,
                "max_ack_pending": room,
            },
        )

    # ------------------------------------------------------------------- what happens

    @rule(count=st.integers(1, 4))
    def fire(self, count: int) -> None:
        for _ in range(count):
            self.driver.after("1ms", "t")
        self.pass_(0.1)
        found = self.driver.ask(
            "stream.replay", {"filter": {"types": ["timer.expired"]}, "limit": 1000}
        )["events"]
        seqs = [int(event["sequence"]) for event in found]
        assert len(seqs) == self.fired + count
        self.unseen += seqs[self.fired :]
        self.fired += count

    @rule(seconds=st.sampled_from([0.3, 2.7, ACK_WAIT_S + 0.05]))
    def pass_(self, seconds: float) -> None:
        self.driver.pass_(seconds)
        self.now_s += seconds
        for message in self.messages.values():
            if message.until_s + SLACK_S <= self.now_s:
                if message.standing == "out" and message.is_worn:
                    message.standing = "dead"
                elif message.standing in ("out", "later"):
                    message.standing = "ready"

    @rule(limit=st.integers(1, 5))
    def pull(self, limit: int) -> None:
        expected = sorted(m.seq for m in self.messages.values() if m.standing == "ready")[:limit]
        while len(expected) < limit and self.unseen and self.held() < self.room:
            seq = self.unseen.pop(0)
            self.messages[seq] = Message(seq)
            expected.append(seq)
        found = self.driver.ask("consumer.pull", {"name": "w", "batch": limit})["messages"]
        assert [one["seq"] for one in found] == expected
        for one in found:
            message = self.messages[one["seq"]]
            message.attempt += 1
            message.standing, message.until_s = "out", self.now_s + ACK_WAIT_S
            assert one["attempt"] == message.attempt
            assert one["delivery"] == f"1.{message.seq}.{message.attempt}"

    def held(self) -> int:
        held = ("ready", "out", "later")
        return sum(m.standing in held and not m.copied for m in self.messages.values())

    def picked(self, which: int, stale: bool) -> tuple[Message, str, bool] | None:
        """A message that was delivered, its delivery or an older one, and whether that counts."""
        known = [m for m in self.messages.values() if m.attempt]
        if not known:
            return None
        message = known[which % len(known)]
        attempt = message.attempt - stale
        counts = not stale and message.standing in ("ready", "out", "later")
        return message, f"1.{message.seq}.{attempt}", counts

    def tell(self, op: str, delivery: str, **more: Any) -> int:
        asked = {"name": "w", "deliveries": [delivery]} | more
        return int(self.driver.ask(f"consumer.{op}", asked)["count"])

    @rule(which=st.integers(0, 9), stale=st.booleans())
    def ack(self, which: int, stale: bool) -> None:
        if found := self.picked(which, stale):
            message, delivery, counts = found
            assert self.tell("ack", delivery) == counts
            if counts:
                message.standing = "done"

    @rule(which=st.integers(0, 9), delay_s=st.sampled_from([0, 3]))
    def nack(self, which: int, delay_s: int) -> None:
        if found := self.picked(which, stale=False):
            message, delivery, counts = found
            assert self.tell("nack", delivery, delay=f"{delay_s}s") == counts
            if counts and message.is_worn:
                message.standing = "dead"
            elif counts:
                message.standing = "later" if delay_s else "ready"
                message.until_s = self.now_s + delay_s

    @rule(which=st.integers(0, 9))
    def term(self, which: int) -> None:
        if found := self.picked(which, stale=False):
            message, delivery, counts = found
            assert self.tell("term", delivery) == counts
            if counts:
                message.standing = "dead"

    @rule(which=st.integers(0, 9))
    def progress(self, which: int) -> None:
        if found := self.picked(which, stale=False):
            message, delivery, counts = found
            out = counts and message.standing == "out"
            assert self.tell("progress", delivery) == out
            if out:
                message.until_s = self.now_s + ACK_WAIT_S

    @rule(which=st.integers(0, 9), drop=st.booleans())
    def take_dead(self, which: int, drop: bool) -> None:
        dead = [m for m in self.messages.values() if m.standing == "dead"]
        if not dead:
            return
        message = dead[which % len(dead)]
        op = "dlq.drop" if drop else "dlq.redrive"
        assert self.driver.ask(op, {"ids": [f"w/{message.seq}"]}) == {"count": 1}
        message.standing = "done" if drop else "ready"
        message.before, message.copied = message.attempt, True

    @rule()
    def crash(self) -> None:
        self.driver.node.restart()

    # ------------------------------------------------------------------- what holds

    @invariant()
    def stands_as_the_model_says(self) -> None:
        if not hasattr(self, "driver"):
            return
        found = self.driver.ask("consumer.info", {"name": "w"})
        by = [m.standing for m in self.messages.values()]
        assert found["ack_pending"] == sum(by.count(s) for s in ("ready", "out", "later"))
        assert found["out"] == by.count("out")
        assert found["dead"] == by.count("dead")
        assert found["pending"] == len(self.unseen)
        listed = self.driver.ask("dlq.list", {"consumer": "w", "limit": 1000})["items"]
        dead = sorted(m.seq for m in self.messages.values() if m.standing == "dead")
        assert [one["id"] for one in listed] == [f"w/{seq}" for seq in dead]


TestConsumer = ConsumerMachine.TestCase
TestConsumer.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
