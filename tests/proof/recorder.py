"""A node on virtual time over the real store, under the shim: what it does, and the truth about it.

    python -m tests.proof.recorder --seed N --steps N --out DIR

The node, its loop, log and tables are the product's; only time, sockets and randomness are virtual,
so that a month of timers takes a second. Each batch that the node submits is kept as it was
submitted: that is the truth which whatever a power cut leaves is held against. The marks in the
trace say what the node was told, so what it may have told others:

    SUBMIT n    commit n goes to the log now
    DURABLE n   the log has said that commit n is durable: answers and events may leave
    FORGET seq  finished timers whose last event is below seq may be forgotten
    CLOCK ns    virtual UTC
"""

from __future__ import annotations

import argparse
import pickle
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from edgenode.config import Config, EngineSection, LogSection
from edgenode.virtual import DAY_NS, START_NS, VirtualNode
from engine.clock import CorrectedClock, VirtualClock
from engine.files import close_store, open_store
from engine.record import Kind
from engine.store import Batch
from tests.proof.shim import CLOCK, DURABLE, FORGET, SUBMIT, Marker

Mark = Callable[[int, int], None]

HOUR_NS = DAY_NS // 24
RETENTION_H = 24
STEPS_TO_TRIM = 100
SLICE_ENTRIES = 48  # events that make the tables follow
FAR_SHARE = 0.5  # of the timers: due after the log has forgotten that they were made


def config(retention_h: int = RETENTION_H) -> Config:
    """A node's configuration; what it keeps is short, so that it forgets."""
    keep_ns = retention_h * HOUR_NS
    return Config(
        engine=EngineSection(horizon=2 * HOUR_NS),
        log=LogSection(retention=keep_ns, idem_keep=2 * keep_ns),
    )


class Truth(NamedTuple):
    """batches: in order, commit 1 first. answered: timers that a client was told of -> the commit
    that was durable then."""

    seed: int
    batches: list[Batch]
    answered: dict[str, int]


class WatchedLog:
    """The real log; a batch is kept, marked, and waited for."""

    def __init__(self, log: Any, clock: VirtualClock, mark: Mark) -> None:
        self.real = log
        self.before = log.state().commit
        self.clock = clock
        self.mark = mark
        self.batches: list[Batch] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def submit(self, batch: Batch) -> int:
        self.batches.append(batch)
        self.mark(CLOCK, self.clock.utc_ns())
        self.mark(SUBMIT, self.before + len(self.batches))
        number: int = self.real.submit(batch)
        assert number == self.before + len(self.batches)
        while self.real.durable() < number:
            time.sleep(0)
        self.mark(DURABLE, number)
        return number


class WatchedTables:
    """The real tables; they make their slices on their own thread, by size."""

    def __init__(self, tables: Any, mark: Mark) -> None:
        self.real = tables
        self.mark = mark

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def expire(self, below: int, notes_before_ns: int) -> int:
        self.mark(FORGET, below)
        reached: int = self.real.expire(below, notes_before_ns)
        return reached


class StoredNode(VirtualNode):
    """A virtual node over the store in `path`. now_ns: UTC at its start."""

    def __init__(
        self, path: Path, seed: int, mark: Mark, config: Config, now_ns: int = START_NS
    ) -> None:
        self.clock = VirtualClock(now_ns, now_ns - START_NS)
        self._corrected = CorrectedClock(self.clock)
        self._random = random.Random(seed)
        self._follow_ns = 0
        self.reference = None
        self._clock_pace_ns = DAY_NS
        self._config = config
        self.path = path
        log, tables = open_store(path, slice_entries=SLICE_ENTRIES, slice_age_ns=1 << 60)
        self.log: Any = WatchedLog(log, self.clock, mark)
        self.tables: Any = WatchedTables(tables, mark)
        self._start()

    def close(self) -> None:
        close_store(self.path, self.log.real, self.tables.real)


class Client:
    """Asks for whatever a client may ask for, as its seed has it."""

    def __init__(self, node: StoredNode, seed: int) -> None:
        self.node = node
        self.random = random.Random(seed)
        self.live: list[str] = []
        self.answered: dict[str, int] = {}
        self._number = 0

    def ask(self, op: str, body: Any, **header: Any) -> tuple[str, Any]:
        self._number += 1
        frames = [b"MZP1", b"Q", b"%d" % self._number]
        frames += [orjson.dumps({"op": op, **header}), orjson.dumps(body)]
        ((_, kind, _, _, reply),) = self.node.request(frames)
        return kind.decode(), orjson.loads(reply)

    def step(self) -> None:
        """One thing that a client does, or time that passes."""
        draw, kind = self.random, self.random.random()
        if kind < 0.25:
            self.node.advance(draw.randint(1, 5 * HOUR_NS))
        elif kind < 0.45:
            timers = [self._definition() for _ in range(draw.randint(2, 25))]
            self._made(*self.ask("timer.schedule_many", {"timers": timers}, idem=self._key()))
        elif kind < 0.65 or len(self.live) < 5:
            self._made(*self.ask("timer.schedule", self._definition(), idem=self._key()))
        else:
            self._change(self.live[draw.randrange(len(self.live))])

    def _change(self, id: str) -> None:
        draw = self.random
        op = draw.choice(["cancel", "cancel", "reschedule", "pause", "resume", "trigger", "extend"])
        body: Any = {"id": id}
        if op == "reschedule":
            body["schedule"] = self._schedule()
        if op == "extend":
            body["by"] = "1h"
        self.ask(f"timer.{op}", body, idem=self._key())
        if op == "cancel":
            self.live.remove(id)

    def _made(self, kind: str, reply: Any) -> None:
        assert kind == "R", reply
        durable = self.node.log.durable()
        for view in reply.get("results", [reply]):
            self.live.append(view["id"])
            self.answered[view["id"]] = durable
        self.live = self.live[-150:]

    def _key(self) -> str:
        return f"idem-{self._number}"

    def _schedule(self) -> Any:
        draw = self.random
        hours = draw.randint(48, 480) if draw.random() < FAR_SHARE else draw.randint(1, 20)
        if draw.random() < 0.2:
            return {"kind": "every", "interval": f"{hours}h"}
        if draw.random() < 0.3:
            at = time.gmtime((self.node.now_ns + hours * HOUR_NS) // 1_000_000_000)
            return {"kind": "at", "instant": time.strftime("%Y-%m-%dT%H:%M:%SZ", at)}
        return {"kind": "after", "duration": f"{hours}h"}

    def _definition(self) -> Any:
        draw = self.random
        self._number += 1
        return {
            "name": f"timer-{self._number % 40}",
            "schedule": self._schedule(),
            "labels": {"of": str(draw.randint(1, 5))},
            "payload": "x" * draw.choice([10, 100, 100, 1000, 6000]),
        }


def record(seed: int, steps: int, out: Path, mark: Mark, retention_h: int = RETENTION_H) -> Truth:
    """Run the workload; the store in `out`/store, the truth in `out`/truth.

    Raises AssertionError if the log was to be trimmed and the steps did not suffice for it.
    """
    node = StoredNode(out / "store", seed, mark, config(retention_h))
    client = Client(node, seed)
    for _ in range(steps):
        client.step()
    node.close()
    truth = Truth(seed, node.log.batches, client.answered)
    _check(truth, trimmed=retention_h <= RETENTION_H and steps >= STEPS_TO_TRIM)
    (out / "truth").write_bytes(pickle.dumps(tuple(truth)))  # Truth is of __main__ here
    return truth


def load(out: Path) -> Truth:
    """The truth that `record` left in `out`."""
    return Truth(*pickle.loads((out / "truth").read_bytes()))


def _check(truth: Truth, *, trimmed: bool) -> None:
    """A recording that does not have what it is made for proves nothing."""
    kinds = {data[5] for batch in truth.batches for data in batch.events}
    wanted = {Kind.SCHEDULED, Kind.EXPIRED, Kind.CANCELLED, Kind.RESCHEDULED}
    assert wanted <= kinds, kinds
    assert all(0 < commit <= len(truth.batches) for commit in truth.answered.values())
    if trimmed:
        assert truth.batches[-1].trim_below > 1, "the log was not trimmed: more steps are needed"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    record(given.seed, given.steps, given.out, Marker())
