"""A busy client, for the tests that take its node away; and what they have in common.

MINOOTS_SEED replays a load, as far as two processes can be replayed; MINOOTS_KILLS asks for more
than the suite has time for.
"""

from __future__ import annotations

import json
import os
import random
import time
from typing import Any

import zmq

from minoots.wire.times import format_instant
from tests.e2e.harness import Raw
from tests.proof.ledger import OutsideLedger

KILLS = int(os.environ.get("MINOOTS_KILLS", "15"))
SEED = int(os.environ.get("MINOOTS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
OUTSTANDING_MAX = 24  # requests under way
GRIDS_MAX = 8  # `every` timers at a time


class Load:
    """A client that keeps a node busy, and the ledger that it keeps of that."""

    def __init__(self, seed: int, *, many: tuple[int, int] = (2, 20)) -> None:
        """many: timers of a `timer.schedule_many`."""
        self.many = many
        self.random = random.Random(seed)
        self.ledger = OutsideLedger()
        self.boots = 0
        self._number = 0
        self._under_way: dict[bytes, str] = {}
        self._once: list[str] = []  # ids that may be cancelled
        self._grids: list[str] = []
        self._to_send: list[str] = []

    # ------------------------------------------------------------------------------- asking

    def _ask(self, op: str, body: Any, key: str) -> None:
        self.ledger.ask(key, op, body, time.time_ns())
        self._to_send.append(key)

    def _definition(self, name: str) -> Any:
        draw = self.random
        schedule: Any = {"kind": "after", "duration": f"{draw.randint(1, 1500)}ms"}
        if draw.random() < 0.1:
            instant = time.time_ns() + draw.randint(200, 1500) * 1_000_000
            schedule = {"kind": "at", "instant": format_instant(instant)}
        return {"name": name, "schedule": schedule, "payload": {"of": name}}

    def think_of_one(self) -> None:
        """One more request, of a kind that is drawn."""
        draw, key = self.random, f"k{self._number}"
        self._number += 1
        kind = draw.random()
        if kind < 0.15:
            timers = [self._definition(f"{key}.{n}") for n in range(draw.randint(*self.many))]
            self._ask("timer.schedule_many", {"timers": timers}, key)
        elif kind < 0.4 and self._once:
            at = draw.randrange(len(self._once))
            self._ask("timer.cancel", {"id": self._once.pop(at)}, key)
        elif kind < 0.43 and len(self._once) > 4:
            ids = [self._once.pop() for _ in range(3)]
            self._ask("timer.cancel_many", {"ids": ids}, key)
        elif kind < 0.5 and len(self._grids) < GRIDS_MAX:
            every = {"kind": "every", "interval": f"{draw.randint(50, 400)}ms"}
            self._ask("timer.schedule", {"name": f"{key}.0", "schedule": every}, key)
        elif kind < 0.53 and self._grids:
            id = self._grids.pop(draw.randrange(len(self._grids)))
            self._ask("timer.cancel", {"id": id}, key)
        else:
            self._ask("timer.schedule", self._definition(f"{key}.0"), key)

    def cancel_grids(self) -> None:
        """Nothing recurs from here on."""
        for id in self._grids:
            self._ask("timer.cancel", {"id": id}, f"end{id}")
        self._grids = []

    # ------------------------------------------------------------------------------- one life

    def begin(self) -> None:
        """A node has started: what was not answered is sent again."""
        self._under_way = {}
        self._to_send = [ask.key for ask in self.ledger.unanswered()]

    def _send(self, raw: Raw) -> None:
        while self._to_send and len(self._under_way) < OUTSTANDING_MAX:
            key = self._to_send.pop(0)
            ask = self.ledger.asks[key]
            self._under_way[raw.post(ask.op, ask.body, idem=key)] = key

    def take(self, raw: Raw, feed: zmq.Socket[bytes]) -> bool:
        """Take in what has come; whether there was anything."""
        some = False
        while raw.control.poll(0):
            kind, corr, body = raw.take()
            self._answered(kind, self._under_way.pop(corr), body)
            some = True
        while feed.poll(0):
            topic, stamp, frame = feed.recv_multipart()
            if b"/e/timer." in topic:
                self.ledger.live(stamp, json.loads(frame), time.time_ns())
            some = True
        return some

    def _answered(self, kind: str, key: str, body: Any) -> None:
        self.ledger.answer(key, kind, body)
        if kind == "E" and body.get("retryable"):
            self._to_send.append(key)
        if "replayed" in body:
            return
        ask = self.ledger.asks[key]
        for definition, view in zip(ask.definitions(), ask.views(), strict=False):
            if "id" in view:  # an instant that has passed meanwhile is refused
                grid = definition["schedule"]["kind"] == "every"
                (self._grids if grid else self._once).append(view["id"])
        self._once = self._once[-200:]

    def busy(self, raw: Raw, feed: zmq.Socket[bytes], until_s: float) -> None:
        """Ask and take until then."""
        poller = zmq.Poller()
        for socket in (raw.control, feed):
            poller.register(socket, zmq.POLLIN)
        while (left := until_s - time.monotonic()) > 0:
            if len(self._under_way) + len(self._to_send) < OUTSTANDING_MAX:
                self.think_of_one()
            self._send(raw)
            if not self.take(raw, feed):
                poller.poll(int(min(left * 1000, 2)))

    def finish(self, raw: Raw, feed: zmq.Socket[bytes]) -> None:
        """Ask for nothing new; until all is answered."""
        until_s = time.monotonic() + 20
        while self.ledger.unanswered():
            assert time.monotonic() < until_s, self.ledger.unanswered()[:5]
            self._send(raw)
            if not self.take(raw, feed):
                raw.control.poll(20)

    # ------------------------------------------------------------------------------- reading

    def catch_up(self, raw: Raw) -> None:
        """Read the log's newest part again, and where it ends."""
        stats = raw.ask("stats")
        self.ledger.stands_at(stats["log"]["seq"])
        from_seq = max(max(self.ledger.events, default=0) - 500, 0)
        self.ledger.replay(replay(raw, from_seq), from_seq)


def replay(raw: Raw, from_seq: int) -> list[Any]:
    """The events behind a cursor."""
    events: list[Any] = []
    place: dict[str, Any] = {"epoch": 1, "seq": from_seq}
    while True:
        page = raw.ask("stream.replay", {"from": place, "limit": 1000}, door="stream")
        events += page["events"]
        place = page["next"]
        if page["end"]:
            return events


def listen(raw: Raw) -> zmq.Socket[bytes]:
    """A SUB socket; what is published before it is connected is not missed by anybody here."""
    feed = raw.context.socket(zmq.SUB)
    raw._sockets.append(feed)
    feed.rcvhwm = 0
    feed.subscribe(b"t/default/e/")
    feed.connect(raw.doors["events"])
    return feed


def until(true: Any, seconds: float = 10.0) -> Any:
    """Wait for something to become true; what it was."""
    end_s = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end_s, "it did not come true in time"
        time.sleep(0.02)
    return found


def fires(raw: Raw) -> list[Any]:
    """The expirations that have left."""
    return raw.replay_all(("timer.expired",))
