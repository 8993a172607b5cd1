"""How late timers fire, beside what the machine can do: for whoever has to decide about trust.

    python -m bench.jitter [--small]

One run holds everything that is compared, in rounds: in each, for ipc and tcp, a fresh node, and
within seconds of each other the floor (cyclictest, or our own loop in C), our timers, bare PUB/SUB
and asyncio; idle, beside a busy process, and beside 10,000 durable creates a second. Figures are
medians over the rounds. Lateness is measured twice: at release (the live event's `fired` minus
`due`) and at a subscriber (its clock when it has received, minus `due`).

`bench/jitter_report.py` says in words what was found.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zmq

from bench import children, floor, jitter_report, load, percentile, subscriber
from bench.node import ask, at_timer, doors_of
from bench.percentile import Samples
from bench.report import machine
from bench.subscriber import DUE, FIRED, HEARD, SEQ
from minoots.cli.demo import ephemeral_node

NS = 1_000_000_000
BATCH = 500
IN_FLIGHT = 8
STEADY = 1_000  # fires a second where loads are compared
CREATES = 10_000  # durable creates a second beside fires
PACE = 30_000.0  # timers scheduled a second, until it is known how many it is, and
PACE_SPARE = 2.0  # how many times longer they may take than the last ones did
PACED_BY = 4_000  # timers from which on it is known
MARGIN_NS = 120_000_000  # all are in so long before the first instant: beyond the node's lead
HERD_MARGIN_NS = 2_200_000_000  # ... of a large herd: beyond engine.herd_max
HERD_LARGE = 10_000
TRIES = 4
SETTLE_S = 0.2  # between loads

RELEASE, SUBSCRIBER, FLOOR, OWN, ASYNCIO, TRANSIT = (
    "release",
    "subscriber",
    "floor",
    "own loop",
    "asyncio",
    "bare transit",
)
IDLE, BUSY, CREATING = "idle", "a busy process", "10,000 creates/s"
WARM_UP, DISCARDED = "warming up", "discarded"  # only looked at for what is early


class Case(NamedTuple):
    """What was measured, and beside what."""

    what: str
    load: str
    transport: str = ""
    rate: int = 0  # fires a second; 0 where it has none
    herd: int = 0  # timers due at one instant

    @property
    def name(self) -> str:
        """How it is called in the results."""
        many = f"herd of {self.herd:,}" if self.herd else f"{self.rate:,}/s" if self.rate else ""
        return ", ".join(word for word in (self.what, self.transport, many, self.load) if word)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int
    transports: tuple[str, ...]
    seconds: dict[int, float]  # of each rate, in fires a second
    steady_s: float  # of STEADY, beside each load
    floor_s: float  # of floor, asyncio and bare transit, each
    idle_s: float
    ahead_s: float  # at least, between the first request and the first instant
    quiet_s: float  # silence after which the rest counts as lost
    herds: tuple[int, ...]


FULL = Plan(
    rounds=3,
    transports=("ipc", "tcp"),
    seconds={1: 5, 10: 3, 100: 3, 5_000: 3, 10_000: 3},
    steady_s=4,
    floor_s=1.5,
    idle_s=10,
    ahead_s=0.6,
    quiet_s=10,
    herds=(10_000, 100_000),
)
SMALL = Plan(
    rounds=1,
    transports=("ipc",),
    seconds={100: 0.1},
    steady_s=0.1,
    floor_s=0.1,
    idle_s=0.1,
    ahead_s=0.3,
    quiet_s=1,
    herds=(500,),
)


class Last(NamedTuple):
    """Of a herd in one round: the last, after its instant, and how many were heard."""

    last_s: float
    heard: int


@dataclass(slots=True)
class Found:
    """Everything that a run has found; samples by case and round."""

    samples: dict[Case, list[Samples]] = field(default_factory=dict)
    policies: dict[str, str] = field(default_factory=dict)
    herds: dict[Case, list[Last]] = field(default_factory=dict)
    expected: int = 0
    heard: int = 0
    doubled: int = 0
    ahead_ms: list[float] = field(default_factory=list)  # last ack to first instant
    creates_per_second: list[float] = field(default_factory=list)
    creates_refused: int = 0
    idle_cpu: list[float] = field(default_factory=list)  # of a core
    firing_cpu: list[float] = field(default_factory=list)  # at STEADY, idle otherwise
    firing_spin: list[float] = field(default_factory=list)
    pulse: dict[str, Any] = field(default_factory=dict)

    def add(self, case: Case, samples: Samples) -> None:
        """Take the samples of one round."""
        self.samples.setdefault(case, []).append(samples)


class Listener:
    """The subscriber's process, seen from here."""

    def __init__(self, endpoint: str) -> None:
        self._process = children.start("bench.subscriber", "listen", endpoint)
        self.policy: str = json.loads(children.answer_of(self._process))["policy"]

    def ask(self, name: str, count: int, quiet_s: float, path: Path) -> None:
        """Have it listen; returns at once."""
        children.tell(self._process, f"{name} {count} {round(quiet_s * 1e3)} {path}")

    def heard(self, path: Path) -> npt.NDArray[np.int64]:
        """What it heard; waits until it has."""
        children.answer_of(self._process)
        found = np.fromfile(path, np.int64).reshape(-1, 4)
        path.unlink()
        return found

    def close(self) -> None:
        """End the process."""
        children.end(self._process)


class Bench:
    """A node that serves, its subscriber, and what is measured with them."""

    def __init__(self, pid: int, folder: Path, transport: str, plan: Plan, found: Found) -> None:
        self.found = found
        self._plan = plan
        self._pid = pid
        self._folder = folder.parent
        self._transport = transport
        self._doors = doors_of(folder)
        self._context: zmq.Context[Any] = zmq.Context()
        self._control = load.dealer(self._context, self._doors["control"])
        self._listener = Listener(self._doors["events"])
        self._names = 0
        self._pace = PACE
        found.policies["subscriber"] = self._listener.policy

    def close(self) -> None:
        """End what was started."""
        self._listener.close()
        self._context.destroy(linger=0)

    # ------------------------------------------------------------------------------- the floor

    def wakes(self, what: str, beside: str) -> None:
        """The machine's wake-ups, without us."""
        count = max(round(self._plan.floor_s * floor.RATE), 1)
        if what == FLOOR:
            late, policy = floor.lowest(count)
        else:
            late, policy = floor.measure("own" if what == OWN else "asyncio", count)
        self.found.policies[what] = policy
        self.found.add(Case(what, beside), late)

    def transit(self, beside: str) -> None:
        """Bare PUB/SUB: from just before the send to the subscriber's clock."""
        seconds = self._plan.floor_s
        count = max(round(seconds * STEADY), 1)
        where = {"ipc": f"ipc://{self._folder}/bare.ipc", "tcp": "tcp://127.0.0.1:*"}
        publisher = children.start(
            "bench.subscriber", "publish", where[self._transport], str(STEADY)
        )
        try:
            hearer = Listener(children.answer_of(publisher))
            try:
                path = self._folder / "bare"
                hearer.ask(subscriber.BARE, count, seconds + self._plan.quiet_s, path)
                children.tell(publisher, str(count))
                heard = hearer.heard(path)
            finally:
                hearer.close()
        finally:
            children.end(publisher)
        self.found.add(Case(TRANSIT, beside, self._transport), heard[:, HEARD] - heard[:, FIRED])

    # ------------------------------------------------------------------------------- our timers

    def steady(self, rate: int, beside: str, seconds: float) -> None:
        """`rate` fires a second, evenly spread."""
        count = max(round(rate * seconds), 1)
        after_ns = [k * NS // rate for k in range(count)]
        heard = self._fire(after_ns, watch_cpu=(rate, beside) == (STEADY, IDLE))
        for what, column in ((RELEASE, FIRED), (SUBSCRIBER, HEARD)):
            case = Case(what, beside, self._transport, rate)
            self.found.add(case, heard[:, column] - heard[:, DUE])

    def herd(self, count: int) -> None:
        """`count` timers due at one instant: when the last has left, and when it is heard."""
        margin_ns = HERD_MARGIN_NS if count >= HERD_LARGE else MARGIN_NS
        heard = self._fire([0] * count, margin_ns=margin_ns)
        for what, column in ((RELEASE, FIRED), (SUBSCRIBER, HEARD)):
            late_ns = heard[:, column] - heard[:, DUE]
            case = Case(what, IDLE, self._transport, herd=count)
            self.found.add(case, late_ns)
            last_s = int(late_ns.max(initial=0)) / NS
            self.found.herds.setdefault(case, []).append(Last(last_s, len(late_ns)))

    def _fire(
        self, after_ns: list[int], *, watch_cpu: bool = False, margin_ns: int = MARGIN_NS
    ) -> npt.NDArray[np.int64]:
        """Schedule timers ahead, `after_ns` a common instant, and hear them.

        Again, with more time, if they were not all in well before that instant: then it was
        something else that was measured.
        """
        count = len(after_ns)
        for _ in range(TRIES):
            began_ns = time.time_ns()
            fill_ns = round((self._plan.ahead_s + count / self._pace) * NS)
            begin_ns = began_ns + fill_ns + margin_ns
            path = self._schedule([begin_ns + each_ns for each_ns in after_ns])
            now_ns = time.time_ns()
            in_time = begin_ns - now_ns > margin_ns
            if not in_time or count >= PACED_BY:
                self._pace = count * NS / (now_ns - began_ns) / PACE_SPARE
            if in_time:
                heard = self._watch_cpu(begin_ns, path) if watch_cpu else self._listener.heard(path)
                self.found.ahead_ms.append((begin_ns - now_ns) / 1e6)
                self.found.expected += count
                self.found.heard += len(heard)
                self.found.doubled += len(heard) - len(np.unique(heard[:, SEQ]))
                return heard
            heard = self._listener.heard(path)
            self.found.add(Case(RELEASE, DISCARDED), heard[:, FIRED] - heard[:, DUE])
        raise RuntimeError(f"{count} timers could not be scheduled ahead in {TRIES} tries")

    def _schedule(self, dues: list[int]) -> Path:
        """Have the subscriber listen for timers, and schedule them; where it puts its rows."""
        self._names += 1
        name = f"case-{self._names}"
        path = self._folder / name
        quiet_s = self._plan.quiet_s + (dues[0] - time.time_ns()) / NS
        self._listener.ask(name, len(dues), quiet_s, path)
        timers = [at_timer(due_ns) | {"name": name} for due_ns in dues]
        bodies = [
            json.dumps({"timers": timers[first : first + BATCH]}).encode()
            for first in range(0, len(timers), BATCH)
        ]
        load.pump(self._control, "timer.schedule_many", bodies, len(bodies), IN_FLIGHT)
        return path

    # ------------------------------------------------------------------------------- what it costs

    def idle(self, seconds: float) -> None:
        """The node's share of a core while nothing happens but its heartbeats."""
        used_ns, began_ns = cpu_ns(self._pid), time.monotonic_ns()
        time.sleep(seconds)
        self.found.idle_cpu.append((cpu_ns(self._pid) - used_ns) / (time.monotonic_ns() - began_ns))

    def _watch_cpu(self, first_ns: int, path: Path) -> npt.NDArray[np.int64]:
        """The node's share of a core, and the part of it that it spins, while timers fire."""
        time.sleep(max(first_ns - time.time_ns() - 50_000_000, 0) / NS)
        before = self.pulse()
        used_ns, began_ns = cpu_ns(self._pid), time.monotonic_ns()
        heard = self._listener.heard(path)
        took_ns = time.monotonic_ns() - began_ns
        self.found.firing_cpu.append((cpu_ns(self._pid) - used_ns) / took_ns)
        self.found.pulse = after = self.pulse()
        if "spin_us" in after:
            spun_us = after["spin_us"] - before.get("spin_us", 0)
            self.found.firing_spin.append(spun_us * 1e3 / took_ns)
        return heard

    def pulse(self) -> dict[str, Any]:
        """What `stats` says of the thread that keeps time; empty where it says nothing."""
        stats = ask(self._doors["control"], "stats")
        found: dict[str, Any] = stats.get("pulse") or {}
        return found | {"commit_lead_us": stats.get("lead_us")}

    @contextmanager
    def beside(self, what: str) -> Iterator[None]:
        """A load for as long as this lasts."""
        if what == IDLE:
            yield
            return
        if what == BUSY:
            child = children.start("bench.wakeups", "busy")
        else:
            child = load.spawn("paced", self._doors["control"], CREATES)
        try:
            children.begin(child)
            yield
            children.tell(child, "stop")
            if what == CREATING:
                result = json.loads(children.answer_of(child))
                self.found.creates_per_second.append(round(result["per_second"]))
                self.found.creates_refused += result["refused"]
        finally:
            children.end(child)


def cpu_ns(pid: int) -> int:
    """CPU time of a process, all its threads: Linux makes a clock of it from the pid."""
    return time.clock_gettime_ns((~pid << 3) | 2)


def block(plan: Plan, transport: str, found: Found) -> None:
    """One transport in one round, with a fresh node."""
    with tempfile.TemporaryDirectory(prefix="minoots-jitter-") as temporary:
        folder = Path(temporary) / "data"
        flags = ("--events", f"ipc://{temporary}/events") if transport == "ipc" else ()
        with ephemeral_node(folder, *flags) as process:
            bench = Bench(process.pid, folder, transport, plan, found)
            try:
                measure(plan, bench)
            finally:
                bench.close()


def measure(plan: Plan, bench: Bench) -> None:
    """Everything, in the order in which it is compared."""
    bench.steady(STEADY, WARM_UP, min(plan.steady_s, 0.5))
    bench.idle(plan.idle_s)
    for what in (IDLE, BUSY, CREATING):
        with bench.beside(what):
            bench.wakes(FLOOR, what)
            if what == IDLE and bench.found.policies[FLOOR].startswith("cyclictest"):
                bench.wakes(OWN, what)
            bench.steady(STEADY, what, plan.steady_s)
            bench.transit(what)
            bench.wakes(ASYNCIO, what)
        time.sleep(SETTLE_S)
    for rate, seconds in plan.seconds.items():
        bench.steady(rate, IDLE, seconds)
    for count in plan.herds:
        bench.herd(count)


def steal() -> tuple[int, int]:
    """(stolen, all) CPU time of this machine since it started, in ticks."""
    words = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
    return int(words[7]), sum(map(int, words))


def run(small: bool = False) -> dict[str, Any]:
    """All rounds; the result holds `early`, which must be 0, and the verdict's goals."""
    plan, found = SMALL if small else FULL, Found()
    began_s, before, busy = time.monotonic(), steal(), os.getloadavg()[0]
    for number in range(plan.rounds):
        for transport in plan.transports:
            print(f"  round {number + 1} of {plan.rounds}, {transport}", flush=True)
            block(plan, transport, found)
    stolen, total = (b - a for a, b in zip(before, steal(), strict=True))
    result = {
        "machine": machine(),
        "small": small,
        "rounds": plan.rounds,
        "took_s": round(time.monotonic() - began_s),
        "load_before": round(busy, 2),
        "stolen_share": round(stolen / max(total, 1), 4),
        **results(found, plan),
    }
    result["goals"] = [goal._asdict() for goal in jitter_report.goals(result)]
    return result


def results(found: Found, plan: Plan) -> dict[str, Any]:
    """The figures of a run."""
    # Each round has a floor beside each transport: together they are that round's floor.
    width = len(plan.transports)
    floors = {
        case.load: by_round(rounds, width)
        for case, rounds in found.samples.items()
        if case.what == FLOOR
    }
    cases: dict[str, Any] = {}
    for case, rounds in sorted(found.samples.items()):
        if case.load not in floors:
            continue
        own = rounds if case.transport else by_round(rounds, width)
        cases[case.name] = case._asdict() | percentile.summary(own)
        whole = len(own) == plan.rounds and all(len(samples) for samples in own)
        if case.what != FLOOR and not case.herd and whole:
            cases[case.name]["ratio_to_floor"] = {
                name: percentile.ratio(own, floors[case.load], percent)
                for name, percent in percentile.LEVELS.items()
            }
    ours = [one for case, one in found.samples.items() if case.what in (RELEASE, SUBSCRIBER)]
    return {
        "policies": found.policies,
        "cases": cases,
        "herds": {
            case.name: case._asdict()
            | {
                "last_s": median([one.last_s for one in rounds]),
                "complete": all(one.heard == case.herd for one in rounds),
                "of_rounds": [one._asdict() for one in rounds],
            }
            for case, rounds in sorted(found.herds.items())
        },
        "expected": found.expected,
        "heard": found.heard,
        "doubled": found.doubled,
        "early": sum(int((samples < 0).sum()) for rounds in ours for samples in rounds),
        "discarded": len(found.samples.get(Case(RELEASE, DISCARDED), [])),
        "ahead_ms_min": round(min(found.ahead_ms), 1),
        "creates_per_second": median(found.creates_per_second),
        "creates_refused": found.creates_refused,
        "cpu": {
            "idle_share": median(found.idle_cpu),
            "firing_share": median(found.firing_cpu),
            "spin_share": median(found.firing_spin),
        },
        "pulse": found.pulse,
    }


def by_round(blocks: list[Samples], width: int) -> list[Samples]:
    """The samples of `width` blocks each, together."""
    return [np.concatenate(blocks[at : at + width]) for at in range(0, len(blocks), width)]


def median(values: list[float]) -> float | None:
    """The median; None of nothing."""
    return round(float(np.median(values)), 5) if values else None


def verdict(result: dict[str, Any]) -> str:
    """A page in words, from the figures."""
    return jitter_report.verdict(result)


def plot(result: dict[str, Any], path: Path) -> None:
    """The percentiles as curves."""
    jitter_report.plot(result, path)


if __name__ == "__main__":
    print(verdict(run("--small" in sys.argv)))
