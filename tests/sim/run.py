"""One run of the simulation: chaos, then calm, then years of idling, then judgement.

    python -m tests.sim.run --seeds 100            a hundred seeds; each runs twice
    python -m tests.sim.run --seed 7 --plant early one, with a bug planted

The seed is printed first, and the command that repeats it last. One bug is planted before any seed
counts, and has to be found.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from edgenode.call import Frames
from edgenode.config import ClockSection, Config, EngineSection, LogSection
from minoots.wire.times import format_instant
from tests.sim.clients import Auditor, Operator, Watcher, Worker
from tests.sim.disk import Weather
from tests.sim.judge import Book
from tests.sim.machine import ASLEEP, AWAKE, Machine
from tests.sim.net import Faults, Net
from tests.sim.pullers import Desk
from tests.sim.world import DAY, HOUR, MINUTE, MS, SECOND, US, YEAR, World

PLANT_SEEDS = 40
PLANTS = ("forget", "tear", "early", "attempt")
PASSES_IDLE_MAX = 20_000  # of a node that has nothing to do, in QUIET_NS
QUIET_NS = 10 * MINUTE
PATIENCE_NS = HOUR  # by which everything asked must have been answered
HOLD_ABOVE_NS = HOUR
HORIZON_STEPS_MAX = 30_000  # in the idle stretch


@dataclass(slots=True)
class Features:
    """What befalls a run, drawn from its seed."""

    stepped: bool
    referred: bool
    plain: bool
    reboots: bool
    incidents: int
    idle_ns: int
    horizon_ns: int
    sick: bool  # the disk
    rough: bool  # the network
    trims: bool  # the log keeps two minutes


@dataclass(slots=True)
class Verdict:
    """What came of a run."""

    seed: int
    trace: str
    faults: list[str]
    node_ns: int
    counts: dict[str, int] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)


class Size(NamedTuple):
    """How large a run may become. years: of idling; incidents: how many make the chaos; only: of
    these kinds alone; consumers: whether durable consumers take part."""

    years: float = 8.0
    incidents: int = 20
    only: tuple[str, ...] = ()
    consumers: bool = True


SMALL = Size(years=0.0, incidents=6)


class Run:
    """See the module."""

    def __init__(self, seed: int, plant: str = "", size: Size = SMALL) -> None:
        self.seed, self.plant, self.size = seed, plant, size
        self.world = world = World(seed)
        self.has = self._draw_features()
        has = self.has
        self.faults = Faults()
        self.net = Net(world, self.faults)
        self.weather = Weather()
        config = Config(
            engine=EngineSection(horizon=has.horizon_ns),
            log=LogSection(retention=2 * MINUTE if has.trims else 3_650 * DAY),
            clock=ClockSection(hold_above=HOLD_ABOVE_NS),
        )
        stepped = has.stepped or has.referred
        self.book = Book(world, stepped=stepped, plain=has.plain, trims=has.trims)
        self.machine = Machine(
            world, config, self.net, self.weather, self._left, referred=has.referred
        )
        self.machine.log.forgets = plant == "forget"
        self.machine.log.tears = plant == "tear"
        self.machine.hastens_ns = 2 * MS if plant == "early" else 0
        self.machine.leaks = plant == "attempt"
        self._clients()
        self._held = False
        self._befell: dict[str, int] = {}

    def _draw_features(self) -> Features:
        draw, size = self.world.random, self.size
        stepped = draw.random() < 0.4
        horizon_ns = draw.choice((30 * SECOND, 5 * MINUTE, HOUR, DAY, DAY, DAY))
        most_ns = horizon_ns // 10 * HORIZON_STEPS_MAX
        if self.plant:  # what nobody knows of may go on all the while
            most_ns = MINUTE
        return Features(
            stepped=stepped,
            referred=stepped and draw.random() < 0.4,
            plain=draw.random() < 0.5,
            reboots=not stepped and draw.random() < 0.6,
            incidents=draw.randint(max(size.incidents // 3, 1), size.incidents),
            idle_ns=min(draw.randint(HOUR, max(int(size.years * YEAR), DAY)), most_ns),
            horizon_ns=horizon_ns,
            sick=draw.random() < 0.6,
            rough=draw.random() < 0.8,
            trims=draw.random() < 0.3,
        )  # fmt: skip

    def _clients(self) -> None:
        """Who takes part. The desks draw from a generator of their own: without them a seed is the
        run that it was before there were any."""
        world, net, book = self.world, self.net, self.book
        changes = not self.has.plain
        self.workers = [Worker(world, net, book, f"w{n}", changes=changes) for n in range(3)]
        self.watchers = [
            Watcher(world, net, book, "all"),
            Watcher(world, net, book, "fires", types=("timer.expired",)),
        ]
        log = self.machine.log
        self.auditor = Auditor(world, net, book, lambda: log.state().first_seq)
        self.operator = Operator(world, net)
        draw = random.Random(f"consumers of {self.seed}")
        count = draw.randint(1, 2) if self.size.consumers else 0
        self.desks = [Desk(world, net, book, draw, f"c{n}") for n in range(count)]
        self.net.answers = self._answered
        self.clients = [*self.workers, *self.watchers, self.auditor, self.operator, *self.desks]

    def _answered(self, frames: Frames) -> None:
        for desk in self.desks:
            desk.left(frames)

    def _left(self, topic: bytes, stamp: bytes, body: bytes) -> None:
        loop, clock = self.machine.loop, self.world.clock
        believed_ns = clock.utc_ns()
        if loop is not None:
            believed_ns = loop.recovered.timescale.now(clock).utc_ns
        self.world.tell("left", stamp)
        self.book.left(self.machine.lives, stamp, believed_ns)

    # ------------------------------------------------------------------------- the script

    def run(self) -> Verdict:
        """From the beginning to judgement."""
        script = self._script()

        def go_on() -> None:
            wait_ns = next(script, None)
            if wait_ns is not None:
                self.world.after(wait_ns, go_on)

        self.world.after(0, go_on)
        self.machine.run()
        if self.has.trims:
            self.book.fill(self.machine.log.history)
        faults = self.book.faults()
        for watcher in self.watchers:
            shown = {event.seq for event in watcher.shown}
            faults += self.book.missing(watcher.name, watcher.types, shown)
        for client in self.clients:
            faults += client.faults()
        counts = {
            "timers": len(self.book.timers),
            "fires": len(self.book.leaves),
            "events": len(self.book.events),
            "lives": self.machine.lives,
            "lost messages": self.net.lost,
            "deliveries": sum(desk.judged.left_count for desk in self.desks),
            "repeated": sum(desk.judged.again_count for desk in self.desks),
            "dead letters": sum(len(desk.judged.dead) for desk in self.desks),
            "trimmed events": self.machine.log.state().first_seq - 1,
            **self._befell,
        }
        trace = self.world.trace
        return Verdict(self.seed, trace, faults, self.machine.up_ns, counts, self.machine.said)

    def _script(self) -> Iterator[int]:
        for client in self.clients:
            client.start()
        yield from self._chaos()
        yield from self._calm()
        yield from self._years()
        yield from self._end()
        self.machine.over = True
        self.machine.stop()

    def _chaos(self) -> Iterator[int]:
        has, draw, faults = self.has, self.world.random, self.faults
        if has.rough:
            faults.drop, faults.duplicate = draw.uniform(0, 0.1), draw.uniform(0, 0.1)
            faults.feed_drop, faults.slow = draw.uniform(0, 0.1), draw.uniform(0, 0.05)
            faults.answers_max = draw.choice((4, 1_000))
            self.watchers[0].feed.hwm = draw.choice((5, 1_000))
            self.watchers[1].feed.every_ns = draw.choice((0, 200 * MS))
        self.weather.stall = draw.uniform(0, 0.02)
        if self.plant in ("tear", "attempt"):  # a kill has to meet a commit under way
            self.weather.commit_ns = (100 * MS, 300 * MS)
        choices = ["kill", "kill", "stop", "busy", "suspend", "break"]
        choices += ["disk", "disk"] if has.sick else []
        choices += ["step", "leap", "slew"] if has.stepped else []
        choices += ["power"] * 2 if has.reboots else []
        choices = list(self.size.only) or choices
        for _ in range(has.incidents):
            yield draw.randint(100 * MS, 5 * SECOND)
            what = draw.choice(choices)
            self._befell[what] = self._befell.get(what, 0) + 1
            self.world.tell("befalls", what)
            yield from getattr(self, f"_do_{what}")()
        for _ in range(6 if self.plant in ("forget", "tear", "attempt") else 0):
            yield draw.randint(6 * SECOND, 7 * SECOND)
            yield from self._do_kill()

    def _do_kill(self) -> Iterator[int]:
        for _ in range(self.world.random.choice((1, 1, 1, 4))):  # in the middle of restart too
            self.world.after(0, self.machine.kill)
            yield self.world.random.randint(1 * MS, 300 * MS)

    def _do_power(self) -> Iterator[int]:
        down_ns = self.world.random.randint(SECOND, MINUTE)
        self.world.after(0, lambda: self.machine.kill(down_ns))
        yield 0

    def _do_stop(self) -> Iterator[int]:
        self.machine.stop()
        yield 0

    def _do_busy(self) -> Iterator[int]:
        self.machine.cpu_ns = (1 * MS, 60 * MS)
        if self.machine.doors is not None:
            self.machine.doors.cpu_ns = self.machine.cpu_ns
        yield self.world.random.randint(SECOND, 4 * SECOND)
        self._rest()

    def _rest(self) -> None:
        self.machine.cpu_ns = (10 * US, 200 * US)
        if self.machine.doors is not None:
            self.machine.doors.cpu_ns = self.machine.cpu_ns

    def _do_suspend(self) -> Iterator[int]:
        self.world.suspend(self.world.random.randint(20 * MS, 30 * SECOND))
        self.machine.wake()
        yield 0

    def _do_break(self) -> Iterator[int]:
        self.world.random.choice(self.watchers).breaks()
        yield 0

    def _do_disk(self) -> Iterator[int]:
        draw = self.world.random
        self.weather.fault = draw.choice(("EIO", "ENOSPC"))
        yield draw.choice((1 * MS, 200 * MS, 5 * SECOND, 20 * SECOND))
        self.weather.fault = ""

    def _do_step(self) -> Iterator[int]:
        draw = self.world.random
        self.machine.set_utc(draw.choice((1, -1)) * draw.randint(2 * MS, 30 * MINUTE))
        yield 0

    def _do_slew(self) -> Iterator[int]:
        sign = self.world.random.choice((1, -1))
        for _ in range(self.world.random.randint(5, 50)):
            self.world.clock.step_utc(sign * 400 * US)  # too little for anybody to be told
            yield 50 * MS

    def _do_leap(self) -> Iterator[int]:
        """The clock is set by more than is believed; somebody agrees, or puts it back."""
        draw = self.world.random
        by_ns = draw.choice((1, -1)) * draw.randint(2 * HOUR, 200 * DAY)
        self.machine.set_utc(by_ns)
        yield draw.randint(100 * MS, 20 * SECOND)
        if draw.random() < 0.5:
            self.machine.set_utc(-by_ns)
        else:
            self.operator.accept()

    def _calm(self) -> Iterator[int]:
        """All is well again, and the wall clock is right."""
        self.world.tell("calm")
        good, faults = Faults(), self.faults
        faults.drop = faults.duplicate = faults.feed_drop = faults.slow = 0.0
        faults.answers_max = good.answers_max
        for watcher in self.watchers:
            watcher.feed.hwm, watcher.feed.every_ns = 1_000, 0
        self.weather.fault, self.weather.stall = "", 0.0
        self.weather.commit_ns = (200 * US, MS)
        self._rest()
        if self.has.stepped:
            off_ns = self.world.clock.utc_ns() - self.world.true_utc_ns
            self.machine.set_utc(-off_ns)
            yield SECOND
            self.operator.accept()
        # Chaos may end in a power cut of a minute; what is asked meanwhile may well be late.
        yield from self._wait(lambda: self.machine.doors is not None, "a start")
        yield 10 * SECOND
        self.book.calm_ns = self.world.now
        for number in range(5):
            self._probe(number)
            yield self.world.random.randint(10 * MS, 900 * MS)
        yield 5 * SECOND
        yield from self._wait(lambda: all(w.is_answered for w in self.workers), "an answer")

    def _probe(self, number: int) -> None:
        """A timer that must fire on its instant."""
        worker, draw = self.workers[0], self.world.random
        key = f"probe{number}"
        schedule = {"kind": "after", "duration": f"{draw.randint(1_000, 3_000)}ms"}
        if number % 2:
            instant = self.world.true_utc_ns + draw.randint(SECOND, 3 * SECOND)
            schedule = {"kind": "at", "instant": format_instant(instant)}
        worker._ask("timer.schedule", {"name": f"{key}.0", "schedule": schedule}, key)

    def _years(self) -> Iterator[int]:
        """The clients sleep; time jumps from one due instant to the next."""
        has, draw = self.has, self.world.random
        yield from self._hush()
        for worker in self.workers:
            worker.long_ones(has.idle_ns, max(has.idle_ns // 40, 10 * SECOND))
        yield from self._wait(lambda: all(w.is_answered for w in self.workers), "an answer")
        for client in self.clients:
            client.sleep()
        yield SECOND
        self.machine.set_pace(ASLEEP)
        until_ns = self.world.now + has.idle_ns
        while self.world.now < until_ns:
            yield min(draw.randint(1, has.idle_ns // 2), until_ns - self.world.now)
            self.world.after(0, self.machine.kill)
            yield MINUTE
        self.machine.set_pace(AWAKE)
        for client in self.clients:
            client.wake()
        yield 10 * SECOND

    def _hush(self) -> Iterator[int]:
        """Nothing new, and what recurs or is paused is cancelled."""
        for worker in self.workers:
            worker.hush()
        yield SECOND

        def settled() -> bool:
            for worker in self.workers:
                if worker.is_answered and not worker.is_done:
                    worker.hush()
            return all(client.is_done for client in (*self.workers, self.operator))

        yield from self._wait(settled, "an answer")

    def _end(self) -> Iterator[int]:
        for client in self.clients:
            client.hush()
        yield from self._hush()
        yield MINUTE  # what is due yet is due within it
        for desk in self.desks:
            desk.finish()
        yield from self._wait(lambda: all(desk.is_done for desk in self.desks), "a consumer's end")
        yield from self._wait(lambda: self.auditor.is_done, "the auditor")
        self.auditor.sleep()
        self.auditor.read(0)
        yield from self._wait(lambda: self.auditor.complete, "the auditor")
        yield 2 * SECOND
        yield from self._quiet()

    def _quiet(self) -> Iterator[int]:
        loop, doors = self.machine.loop, self.machine.doors
        assert loop is not None
        assert doors is not None
        ledger = loop.recovered.ledger
        before = (ledger.next_seq, len(self.book.leaves), doors.passes)
        yield QUIET_NS
        after = (ledger.next_seq, len(self.book.leaves), doors.passes)
        if after[:2] != before[:2]:
            self.book.found.append(f"QUIET {before[:2]} became {after[:2]} with nothing to do")
        if after[2] - before[2] > PASSES_IDLE_MAX:
            self.book.found.append(f"QUIET {after[2] - before[2]} passes in an idle time")
        pending = (ledger.live_count, ledger.hot.armed_count, loop.events.held_count)
        if any(pending) or loop.under_way:
            self.book.found.append(f"QUIET (live, armed, held) is {pending} in the end")

    def _wait(self, true: object, what: str) -> Iterator[int]:
        until_ns = self.world.now + PATIENCE_NS
        assert callable(true)
        while not true():
            if self.world.now > until_ns:
                self.book.found.append(f"LOST {what} did not come in an hour of calm")
                return
            yield 100 * MS


# ------------------------------------------------------------------------------- the command


def judge(seed: int, plant: str = "", size: Size = SMALL) -> Verdict:
    """Run a seed; what the node itself stumbles over is a fault too."""
    run = Run(seed, plant, size)
    try:
        return run.run()
    except Exception as error:
        fault = f"NODE {type(error).__name__}: {error}"
        trace = run.world.trace
        return Verdict(seed, trace, [fault], run.machine.up_ns, {}, run.machine.said)


def plant_one(seed: int, plant: str = "") -> str:
    """Plant a bug that the seed chooses; what finds it. Raises AssertionError if nothing does."""
    plant = plant or PLANTS[seed % len(PLANTS)]
    for at in range(seed, seed + PLANT_SEEDS):
        verdict = judge(at, plant)
        if verdict.faults:
            return f"{plant} in seed {at}: {verdict.faults[0]}"
    raise AssertionError(f"the planted bug {plant!r} was not found from seed {seed} on")


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.run")
    parser.add_argument("--seeds", type=int, default=20, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the first; by default drawn")
    parser.add_argument("--plant", choices=PLANTS, help="run one seed with this bug")
    parser.add_argument("--years", type=float, default=8.0, help="idle stretch of a run, at most")
    parser.add_argument("--incidents", type=int, default=20, help="of its chaos, at most")
    asked = parser.parse_args()
    size = Size(asked.years, asked.incidents)
    first = asked.seed or time.time_ns() % 1_000_000_000
    print(f"seed {first}", flush=True)
    if asked.plant:
        verdict = judge(first, asked.plant, size)
        print("\n".join(verdict.faults) or "nothing was found")
        return not verdict.faults
    print(f"planted and found: {plant_one(first)}", flush=True)
    totals: dict[str, int] = {}
    node_ns, began_s = 0, time.process_time()
    for seed in range(first, first + asked.seeds):
        verdict = judge(seed, size=size)
        spent_s = time.process_time()
        again = judge(seed, size=size)
        began_s += time.process_time() - spent_s  # the second time proves, and is not counted
        faults = verdict.faults
        if again.trace != verdict.trace:
            faults = [f"TRACE {verdict.trace} the first time, {again.trace} the second", *faults]
        if faults:
            print("\n".join(verdict.said[-40:]))
            print("\n".join(faults[:20]))
            print(f"again: python -m tests.sim.run --seed {seed} --seeds 1 --years {asked.years}")
            return 1
        node_ns += verdict.node_ns
        for what, count in verdict.counts.items():
            totals[what] = totals.get(what, 0) + count
    spent_s = time.process_time() - began_s
    years = node_ns / YEAR
    print(", ".join(f"{count} {what}" for what, count in totals.items()))
    print(f"{asked.seeds} seeds, {years:.1f} node-years in {spent_s:.0f} s of CPU: "
          f"{years / spent_s * 3600:.0f} node-years a CPU hour; nothing was found")  # fmt: skip
    print(
        f"again: python -m tests.sim.run --seed {first} --seeds {asked.seeds} --years {asked.years}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
