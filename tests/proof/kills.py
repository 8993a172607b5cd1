"""The kill loop: the real node under load, ended by kill -9 over and over, also while it starts.

    python -m tests.proof.kills --seed N --seconds N

Every request carries an idempotency key, and is sent again until it is answered. In the end the
node runs in peace, everything due has time to fire, and the outside ledger judges; the hash chain
is read from the files by code that is not the node's.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.harness import Node, Raw, spawn
from tests.e2e.load import Load, listen, replay
from tests.proof.chain import chain_faults
from tests.proof.ledger import CANCELLED, EXPIRED
from tests.proof.outcome import Outcome, command
from tests.proof.zygote import Zygote

RUN_S = (0.01, 0.16)  # how long a node lives under load
START_SHARE = 0.3  # of the lives that end while the node starts
LONG_WAY_EVERY = 20  # lives: the interpreter starts anew
LATE_NS_MAX = 2_000_000_000  # beyond the outage; the machine is busy with killing and starting
KILLS_AT_ONCE = 150  # of one data directory: what is replayed in the end grows with it
KILLS_A_SECOND = 4.0
REST_S = 1.7  # the longest timer of the load is due within that

End = Callable[[Node], None]


class Tally(NamedTuple):
    """What was done and found. in_start: kills of a node that was starting. timers: acknowledged.
    late_ms: the latest fire, outages taken off."""

    kills: int
    in_start: int
    requests: int
    timers: int
    events: int
    fires: int
    cancels: int
    late_ms: float
    seconds: float
    faults: list[str]


class Killer:
    """One node, one load, and what became of them."""

    def __init__(self, node: Node, load: Load, zygote: Zygote | None, end: End) -> None:
        self.node, self.load, self.zygote, self.end = node, load, zygote, end
        self.down_ns = time.time_ns()
        self.start_s = 0.3  # how long the last start took
        self.in_start = 0
        self.names = {node.node_id}  # that the node has given itself: one

    def kill(self) -> None:
        self.end(self.node)
        self.down_ns = self.down_ns or time.time_ns()

    def start(self) -> None:
        began_s = time.monotonic()
        self.node.start()
        self.start_s = time.monotonic() - began_s
        self.names.add(self.node.node_id)
        self.load.ledger.outage(self.down_ns, time.time_ns())
        self.down_ns = 0

    def life(self, number: int) -> None:
        """One life of the node."""
        draw, load = self.load.random, self.load
        long_way = self.zygote is None or number % LONG_WAY_EVERY == 0
        self.node.spawn = spawn if long_way else self.zygote.start  # type: ignore[union-attr]
        if draw.random() < START_SHARE:
            self.node.start(wait=False)
            time.sleep(draw.uniform(0, 1.2 * self.start_s))
            self.kill()
            self.in_start += 1
            return
        self.start()
        with Raw(self.node.doors) as raw:
            feed = listen(raw)
            load.begin()
            load.catch_up(raw)
            load.busy(raw, feed, time.monotonic() + draw.uniform(*RUN_S))
            # Before it is gone, so that nothing is held against it.
            self.down_ns = time.time_ns()
            self.kill()
            while load.take(raw, feed):
                pass  # what was on its way when the node died was said, too

    def rest(self) -> int:
        """No more kills: all is answered, all that is due fires; until when that was judged."""
        load, node = self.load, self.node
        load.cancel_grids()
        self.start()
        with Raw(node.doors) as raw:
            feed = listen(raw)
            load.begin()
            load.finish(raw, feed)
            load.cancel_grids()  # those whose acknowledgement came only now
            load.finish(raw, feed)
            until_ns = time.time_ns() + 1_500_000_000
            time.sleep(REST_S)
            load.take(raw, feed)
        assert node.stop() == 0, node.log()[-4000:]
        node.start()
        with Raw(node.doors) as raw:
            load.catch_up(raw)
            load.ledger.replay(replay(raw, 0))
        assert node.stop() == 0, node.log()[-4000:]
        return until_ns


def run(
    seed: int,
    kills: int,
    folder: Path,
    *,
    fast: bool = True,
    end: End = Node.kill,
    env: dict[str, str] | None = None,
    log: Path | None = None,
) -> Tally:
    """Kill a node so often. fast: most of its starts are forks of a zygote. end: how a life ends.
    env: of the node. log: what the node says, by default beside its directory."""
    began_s = time.monotonic()
    load = Load(seed, many=(4, 20))
    load.ledger.late_ns_max = LATE_NS_MAX
    node = Node(folder / "data", env=env)
    node.log_path = log or node.log_path
    with contextlib.ExitStack() as stack:
        zygote = stack.enter_context(Zygote(env)) if fast else None
        stack.enter_context(node)
        killer = Killer(node, load, zygote, end)
        killer.kill()
        for number in range(1, kills + 1):
            killer.life(number)
        until_ns = killer.rest()
    faults = load.ledger.faults(until_ns) + list(chain_faults(folder / "data"))
    if len(killer.names) != 1 or "" in killer.names:
        faults.append(f"LOST the node's name: it was {sorted(killer.names)}")
    return _tally(load, killer, kills, time.monotonic() - began_s, faults + _verify(folder))


def _tally(load: Load, killer: Killer, kills: int, seconds: float, faults: list[str]) -> Tally:
    ledger = load.ledger
    types = [event["type"] for event in ledger.events.values()]
    return Tally(
        kills,
        killer.in_start,
        len(ledger.asks),
        ledger.timers_acknowledged,
        len(types),
        types.count(EXPIRED),
        types.count(CANCELLED),
        max((late_ns for _, late_ns in ledger.lateness_ns()), default=0) / 1e6,
        seconds,
        faults,
    )


def _verify(folder: Path) -> list[str]:
    """What `minoots verify` has against the log."""
    command = [sys.executable, "-m", "edgenode", "verify", "--data", str(folder / "data")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [] if done.returncode == 0 and "agree" in done.stdout else [f"CHAIN {done.stderr}"]


def planted(seed: int) -> list[str]:
    """What the ledger finds once it has taken note of an acknowledgement that no node gave."""
    with tempfile.TemporaryDirectory() as folder, Node(Path(folder) / "data").start() as node:
        load = Load(seed)
        with Raw(node.doors) as raw:
            feed = listen(raw)
            load.begin()
            load.busy(raw, feed, time.monotonic() + 0.1)
            load.finish(raw, feed)
            view = raw.after("1h")
            schedule: Any = {
                "name": "lie.0",
                "schedule": {"kind": "after", "duration": "3600000ms"},
            }
            load.ledger.ask("lie", "timer.schedule", schedule, 0)
            load.ledger.answer("lie", "R", {**view, "id": "tmr_that_is_lost"})
            load.ledger.replay(replay(raw, 0))
        return [fault for fault in load.ledger.faults(0) if "tmr_that_is_lost" in fault]


def tell(outcome: Outcome, tally: Tally, word: str) -> None:
    """Put a tally into the outcome of a part."""
    outcome.add(**{word: tally.kills, f"{word}_in_start": tally.in_start})
    outcome.add(requests=tally.requests, timers_acknowledged=tally.timers, events=tally.events)
    outcome.add(fires=tally.fires, cancels=tally.cancels, seconds=tally.seconds)
    outcome.most(latest_fire_ms=tally.late_ms)
    outcome.faults += tally.faults


def part(seed: int, seconds: float) -> Outcome:
    """See `outcome`."""
    outcome = Outcome("kills", seed, command("kills", seed, seconds))
    found = planted(seed)
    assert found, "an acknowledgement that no node gave was not found out"
    outcome.planted = found[0]
    until_s, round = time.monotonic() + seconds, 0
    while not round or time.monotonic() < until_s:
        count = min(KILLS_AT_ONCE, max(6, int((until_s - time.monotonic()) * KILLS_A_SECOND)))
        with tempfile.TemporaryDirectory() as folder:
            tell(outcome, run(seed + round, count, Path(folder)), "kills")
        round += 1
    return outcome


if __name__ == "__main__":
    from tests.proof.run import one

    sys.exit(one(part))
