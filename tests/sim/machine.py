"""The node of a run as a process: the shell of `edgenode/serve.py` itself, on virtual edges.

It waits by letting the world go on; a kill ends it wherever it waits, and a supervisor starts it
again on what its disk holds. What is virtual: clock, disk, doors, pulse, and the randomness. All
else, what it does when the disk fails included, is the product's own code.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from edgenode import loop as loop_module
from edgenode import serve
from edgenode.config import Config
from edgenode.loop import Loop, Pace
from edgenode.metrics import Metrics
from edgenode.process import Serving, Store
from engine.clock import CorrectedClock, Timescale
from engine.drift import Sample
from engine.errors import StoreFailed
from tests.sim.disk import SimLog, SimTables, Weather
from tests.sim.net import Net, SimDoors, SimPulse
from tests.sim.world import DAY, MS, SECOND, US, Killed, World

AWAKE = Pace()
ASLEEP = Pace(heartbeat=400 * DAY, clock=DAY, upkeep=DAY // 4, anchor=DAY)
MESSAGES = b'{"messages":[{'  # how the reply to a pull begins that has some
RESTART_NS = (20 * MS, 5 * SECOND)


class Watch:
    """Word that UTC was set (`engine._kernel.SetWatch`)."""

    def __init__(self) -> None:
        self.is_set = False


class SimStore:
    """An open store: closing it lets the objects, which are the disk, be opened again."""

    def __init__(self, log: SimLog, tables: SimTables) -> None:
        self.log, self.tables = log, tables

    def close(self) -> None:
        self.log.close()


class TrueReference:
    """A reference that knows the true UTC, to half a millisecond."""

    name, corrects = "sim", True

    def __init__(self, world: World, timescale: Timescale) -> None:
        self._world, self._timescale = world, timescale
        self._found: list[Sample] = []

    def ask(self) -> None:
        steady_ns = self._timescale.now(self._world.clock).steady_ns
        off_ns = self._world.random.randint(-400 * US, 400 * US)
        offset_ns = self._world.true_utc_ns - steady_ns + off_ns
        self._found.append(Sample(steady_ns, offset_ns, 1 * MS, 0))

    def samples(self) -> list[Sample]:
        found, self._found = self._found, []
        return found


@dataclass(slots=True)
class Machine:
    """See the module. left: what judges an expiry as it leaves."""

    world: World
    config: Config
    net: Net
    weather: Weather
    left: Callable[[bytes, bytes, bytes], None]
    referred: bool = False  # whether UTC is put right by a reference
    hastens_ns: int = 0  # a planted bug of the pulse
    leaks: bool = False  # a planted bug of the barrier: see _Leaky
    lag_ns: int = 50 * US
    cpu_ns: tuple[int, int] = (10 * US, 200 * US)
    log: SimLog = field(init=False)
    tables: SimTables = field(init=False)
    watch: Watch = field(default_factory=Watch)
    pace: Pace = AWAKE
    over: bool = False
    lives: int = 0
    passes: int = 0
    up_ns: int = 0
    said: list[str] = field(default_factory=list)
    serving: Serving | None = None
    doors: SimDoors | None = None
    loop: Loop | None = None
    killed: bool = False  # to be, at the next chance
    reboots_ns: int = -1  # the kill is one of the machine, which is down for so long

    def __post_init__(self) -> None:
        self.log = SimLog(self.world, self.weather, self.wake)
        self.tables = SimTables(self.log, self.world, self.weather, self.wake)

    # ------------------------------------------------------------------------- what befalls it

    def wake(self) -> None:
        """Something is readable."""
        if self.doors is not None:
            self.doors.wake()

    def kill(self, reboots_ns: int = -1) -> None:
        """kill -9; with a time, power loss for as long. Only while the process runs."""
        if self.doors is not None:
            self.reboots_ns = reboots_ns
            raise Killed

    def stop(self) -> None:
        """SIGTERM."""
        if self.serving is not None:
            self.serving.stop = True
            self.wake()

    def set_utc(self, by_ns: int) -> None:
        """Somebody sets the wall clock."""
        self.world.clock.step_utc(by_ns)
        self.world.tell("utc set", by_ns)
        self.watch.is_set = True
        self.wake()

    def set_pace(self, pace: Pace) -> None:
        """How often the node does its regular work, from now on."""
        self.pace = pace
        if self.loop is not None:
            self.loop.pace = pace
            times = self.loop.times
            times.heartbeat = times.clock = times.upkeep = 0
            self.wake()

    # ------------------------------------------------------------------------- its lives

    def run(self) -> None:
        """One life after another, until `over`."""
        with self._instead():
            while not self.over:
                self._live()
                if self.over:
                    break
                if self.reboots_ns >= 0:
                    self.world.run_to(self.world.now + 1)
                    before = self.world.now
                    self.world.run_to(before + self.reboots_ns)
                    self.world.clock.new_boot()
                    self.reboots_ns = -1
                else:
                    self.world.run_to(self.world.now + self.world.random.randint(*RESTART_NS))
                self.log.reopen()
                self.tables.reopen()

    def _live(self) -> None:
        """From a start to an end of the process."""
        world = self.world
        self.lives += 1
        began_ns = world.now
        boot = f"boot-{self.lives}"
        pulse = SimPulse(world, self.net, self.left, self.lag_ns)
        pulse.hastens_ns = self.hastens_ns
        doors = SimDoors(world, self.net, pulse, boot, self.cpu_ns)
        self.doors = self.net.node = doors
        world.source = pulse
        clock = CorrectedClock(world.clock)
        serving = Serving(
            self.config, Path("/nowhere"), "sim", boot, clock, cast(Any, self.watch), None,
            cast(Any, doors), Metrics(),
        )  # fmt: skip
        self.serving = serving
        world.tell("start", self.lives)
        how = "ended"
        try:
            serve._serve_all(serving, cast(Store, SimStore(self.log, self.tables)))
        except Killed:
            how = "killed"
        except StoreFailed as error:
            how = f"could not start: {error}"
        world.tell(how)
        self.said.append(f"{world.now / SECOND:.6f} {how}")
        self.passes += doors.passes
        self.up_ns += world.now - began_ns
        self.net.break_all()
        self.log.halt()
        self.tables.halt()
        world.source = self.doors = self.serving = self.loop = None

    def _sleeper(self, serving: Serving, store: Store | None) -> _Sleeper:
        return _Sleeper(self, serving)

    def _open(self, config: Config, data_dir: Path) -> Store:
        """The store anew, after a failure: the disk may be as bad as before."""
        self.log.reopen()
        self.tables.reopen()
        return cast(Store, SimStore(self.log, self.tables))

    def _make_loop(self, *parts: Any) -> Loop:
        make = _Leaky if self.leaks else Loop
        self.loop = make(*parts, pace=self.pace)
        return self.loop

    def _say(self, level: str, event: str, **facts: object) -> None:
        told = " ".join(f"{name}={value}" for name, value in facts.items())
        self.said.append(f"{self.world.now / SECOND:.6f} {level} {event} {told}")
        self.world.tell(event)

    def _reference(self, serving: Serving, timescale: Timescale) -> TrueReference | None:
        return TrueReference(self.world, timescale) if self.referred else None

    @contextmanager
    def _instead(self) -> Iterator[None]:
        """The names by which the shell reaches out of the process, bound to this machine."""
        draw = random.Random(self.world.random.getrandbits(64))
        ours: dict[str, object] = {
            "_open": self._open,
            "sleeper": self._sleeper,
            "reference": self._reference,
            "Loop": self._make_loop,
            "tell_ready": lambda serving: None,
            "say": self._say,
            "secrets": SimpleNamespace(randbits=draw.getrandbits),
            "gc": SimpleNamespace(
                collect=int, freeze=int, unfreeze=int, set_threshold=lambda *_: None
            ),
        }
        before = {name: getattr(serve, name) for name in ours}
        before_say = loop_module.say
        try:
            for name, value in ours.items():
                setattr(serve, name, value)
            loop_module.say = self._say  # type: ignore[assignment]
            yield
        finally:
            for name, value in before.items():
                setattr(serve, name, value)
            loop_module.say = before_say


class _Leaky(Loop):
    """A loop that lets messages out before the numbers of their attempts are durable."""

    __slots__ = ()

    def submit(self) -> None:
        ledger = self.recovered.ledger
        messages = [one for one in ledger.answers if one.frames[-1].startswith(MESSAGES)]
        self.doors.send(messages)
        ledger.answers = [one for one in ledger.answers if one not in messages]
        Loop.submit(self)


class _Sleeper:
    """Waits by letting the world go on."""

    def __init__(self, machine: Machine, serving: Serving) -> None:
        self._machine, self._serving = machine, serving
        self._doors = cast(SimDoors, serving.doors)

    def wait(self, boot_ns: int) -> bool:
        machine, doors = self._machine, self._doors
        world = machine.world
        until_ns = world.world_ns(boot_ns) if boot_ns >= 0 else world.now + 100 * 365 * DAY
        world.run_to(until_ns, lambda: doors.woken)
        doors.woken = False
        was_set, machine.watch.is_set = machine.watch.is_set, False
        return was_set
