"""A whole node in this process on virtual time, disk and sockets: what `minoots.testing` drives.

The same node, loop and wheel as the real one; only the edges are others.
"""

from __future__ import annotations

import heapq
import random
import struct
from collections import deque

from edgenode.call import Answer, Frames
from edgenode.config import Config, EngineSection
from edgenode.doors.events import EventsDoor
from edgenode.lead import Lead
from edgenode.loop import Loop
from edgenode.metrics import Metrics
from edgenode.node import Node
from edgenode.pace import Pace
from edgenode.principal import LOCAL, Principal
from edgenode.publish import Publisher
from edgenode.recovery import recover
from edgenode.reference import Reference
from edgenode.timekeeping import Timekeeper
from edgenode.verbs.about import About
from engine.clock import Clock, CorrectedClock, VirtualClock
from engine.memory import MemoryLog, MemoryTables
from engine.pulse import COUNTERS, COUNTERS_ROW, Left, Release

START_NS = 1_800_000_000_000_000_000  # 2027-01-15T08:00:00Z
DAY_NS = 86_400_000_000_000
LEAD_NS = 2_000_000

# Nobody waits for a heartbeat here, and an idle year must not cost a second's work each second.
PACE = Pace(heartbeat=DAY_NS, clock=DAY_NS, upkeep=DAY_NS // 4, anchor=DAY_NS)


_stamp = struct.Struct(">4q").pack


class VirtualPulse:
    """Lets events out into a list, when it is asked to and the clock it is given says so.

    room: how many expiries it holds at most.
    """

    def __init__(self, clock: Clock, room: int = 1 << 30) -> None:
        self.sent: list[Frames] = []
        self.held_count = 0
        self._clock = clock
        self._room = room
        self._waiting: list[tuple[int, int, int, Release]] = []
        self._left: list[Left] = []
        self._counts = [0] * COUNTERS
        self._order = 0
        self._subscriptions = [b"\x01"]  # everybody subscribes to everything

    def send(self, seq: int, counter: int, topic: bytes, body: bytes) -> bool:
        """See `engine.pulse.Outlet`."""
        self._leave(seq, counter, 0, topic, body)
        return True

    def tally(self, counter: int, count: int) -> bool:
        """See `engine.pulse.Outlet`."""
        self._counts[counter - counter % COUNTERS_ROW] += count
        self._counts[counter] += count
        return True

    def beat(self, topic: bytes, body: bytes) -> bool:
        """See `engine.pulse.Outlet`."""
        self.sent.append((topic, _stamp(0, 0, 0, 0), body))
        return True

    def flush(self) -> None:
        """See `engine.pulse.Outlet`."""

    def counts(self, row: int) -> list[int]:
        """See `engine.pulse.Outlet`."""
        return self._counts[row : row + COUNTERS_ROW]

    def subscriptions(self) -> list[bytes]:
        """See `engine.pulse.Outlet`."""
        came, self._subscriptions = self._subscriptions, []
        return came

    def hold(self, release: Release, counter: int) -> bool:
        """See `engine.pulse.Releases`."""
        if self.held_count >= self._room:
            return False
        self.held_count += 1
        self._order += 1
        heapq.heappush(self._waiting, (release[0], self._order, counter, release))
        return True

    def take(self) -> list[Left]:
        """See `engine.pulse.Releases`."""
        self.run()
        left, self._left = self._left, []
        self.held_count -= len(left)
        return left

    def move(self, by_ns: int) -> None:
        """See `engine.pulse.Releases`."""
        moved = []
        for due_ns, order, counter, release in self._waiting:
            moved_ns = due_ns + (by_ns if release[3] else 0)
            moved.append((moved_ns, order, counter, release))
        self._waiting = moved
        heapq.heapify(moved)

    def clear(self) -> None:
        """See `engine.pulse.Releases`."""
        self.held_count -= len(self._waiting)
        self._waiting = []

    def fileno(self) -> int:
        """See `engine.pulse.Releases`."""
        return -1

    def stats(self) -> dict[str, object]:
        """As the real one; there is nothing to tell."""
        return {
            "policy": "other",
            "policy_refused": "",
            "locked": False,
            "slack_ns": 0,
            "reach_us": 0,
            "wakes": 0,
            "releases": self._order - len(self._waiting),
            "held": self.held_count,
            "handed_late": 0,
            "spin_us": 0,
            "spin_share": 0.0,
            "dropped_full": 0,
            "send_errors": 0,
        }

    @property
    def next_ns(self) -> int | None:
        """The BOOTTIME instant at which something leaves next."""
        return self._waiting[0][0] if self._waiting else None

    def run(self) -> None:
        """Let out what is due: the real one does so by itself."""
        now_ns = self._clock.steady_boot_ns()
        while self._waiting and self._waiting[0][0] <= now_ns:
            due_ns, _, counter, release = heapq.heappop(self._waiting)
            _, seq, due_utc_ns, _, misfire, topic, body = release
            late_ns = now_ns - due_ns
            fired_ns = due_utc_ns + late_ns
            self._leave(seq, counter, fired_ns, topic, body)
            self._left.append((seq, fired_ns, late_ns, misfire))

    def _leave(
        self, seq: int, counter: int, fired_ns: int, topic: bytes, body: bytes | None
    ) -> None:
        row = counter - counter % COUNTERS_ROW
        self._counts[row] += 1
        self._counts[counter] += 1
        if body is not None:
            stamp = _stamp(seq, fired_ns, self._counts[row], self._counts[counter])
            self.sent.append((topic, stamp, body))


class _Doors:
    """Stands for the doors: requests from a list, answers into one."""

    def __init__(self, events: EventsDoor) -> None:
        self.events = events
        self.inbox: deque[tuple[int, Frames, Principal]] = deque()
        self.outbox: list[Frames] = []

    def drain(self, limit: int) -> list[tuple[int, Frames, Principal]]:
        taken: list[tuple[int, Frames, Principal]] = []
        while self.inbox and len(taken) < limit:
            taken.append(self.inbox.popleft())
        return taken

    def pending(self) -> bool:
        return bool(self.inbox)

    def send(self, answers: list[Answer]) -> None:
        self.outbox.extend(answer.frames[1:] for answer in answers)

    def newcomers(self) -> bool:
        return False

    def dropped(self) -> dict[str, int]:
        return {}

    def heartbeat(
        self, tenant: str, epoch: int, floor: int, now_ns: int, clock_error_us: int | None
    ) -> None:
        """Nobody listens for it here."""


class _NoSleep:
    def wait(self, boot_ns: int) -> bool:
        """Time moves by `advance` alone."""
        return False


class VirtualNode:
    """One node, driven step by step. start_ns: UTC at the beginning; seed: of its ids;
    clock_pace_ns: between two looks at the clocks."""

    def __init__(
        self,
        start_ns: int = START_NS,
        *,
        seed: int = 0,
        config: Config | None = None,
        clock_pace_ns: int = DAY_NS,
    ) -> None:
        self.clock = VirtualClock(start_ns)
        self._corrected = CorrectedClock(self.clock)
        self.log = MemoryLog()
        self.tables = MemoryTables(self.log)
        self._random = random.Random(seed)
        self._follow_ns = 0
        self.reference: Reference | None = None
        self._clock_pace_ns = clock_pace_ns
        self._config = config or Config(engine=EngineSection(horizon=DAY_NS))
        self._start()

    def _start(self) -> None:
        recovered = recover(
            self._config,
            "virtual",
            self.log,
            self.tables,
            self._corrected,
            self._random.getrandbits,
        )
        ledger = recovered.ledger
        self.pulse = VirtualPulse(self.clock)
        self._doors = _Doors(EventsDoor(self.pulse, boot="virtual"))
        self._doors.events.take_subscriptions()
        timescale = recovered.timescale
        keeper = Timekeeper(timescale, self._corrected, self._config.clock, self.reference)
        metrics = Metrics(started_ns=ledger.now.steady_ns)
        about = About("virtual", "virtual", {}, metrics)
        about.clock = keeper.facts
        about.pulse = self.pulse.stats
        self._loop = Loop(
            Node(ledger, about),
            recovered,
            Publisher(ledger.identity, self._doors.events, timescale.boot_ns(0)),
            self._doors.events,
            self._doors,
            _NoSleep(),
            self._corrected,
            keeper,
            Lead(LEAD_NS, LEAD_NS),
            metrics,
            self.log.state().commit,
            pace=PACE._replace(clock=self._clock_pace_ns),
        )
        self._loop.step()

    @property
    def now_ns(self) -> int:
        """UTC."""
        return self.clock.utc_ns()

    def request(self, frames: list[bytes]) -> list[list[bytes]]:
        """Ask, as a client's socket would: MZP/1 frames without the peer; and the answers."""
        self.start_request(frames)
        for _ in range(10_000):
            self._loop.step()
            if self._doors.outbox:
                break
        return self.answers()

    def post(self, frames: list[bytes]) -> None:
        """Ask what may be answered later."""
        self._doors.inbox.append((0, (b"virtual", *frames), LOCAL))
        self._loop.step()
        self._loop.step()

    def answers(self) -> list[list[bytes]]:
        """The answers since the last time."""
        answers, self._doors.outbox = self._doors.outbox, []
        return [list(answer) for answer in answers]

    def start_request(self, frames: list[bytes]) -> None:
        """Ask, and decide what can be in one pass; the answers may come later, or never."""
        self._doors.inbox.append((0, (b"virtual", *frames), LOCAL))
        self._loop.step()

    def step(self) -> None:
        """One pass, without time going on."""
        self._loop.step()

    def advance(self, ns: int) -> list[list[bytes]]:
        """Let `ns` pass; the live frames of what left meanwhile, in order."""
        end_ns = self.clock.steady_boot_ns() + ns
        while True:
            self._loop.step()
            now_ns = self.clock.steady_boot_ns()
            self._follow(now_ns)
            wake_ns = self._loop.wake_boot_ns()
            if self.pulse.next_ns is not None:
                wake_ns = min(wake_ns, self.pulse.next_ns)
            if wake_ns > end_ns:
                break
            self.clock.advance(max(wake_ns - now_ns, 0))
        self.clock.advance(end_ns - now_ns)
        self._loop.step()
        return self.live()

    def _follow(self, now_ns: int) -> None:
        """Have the tables follow now and then: the virtual ones have no thread of their own."""
        if now_ns >= self._follow_ns:
            self._follow_ns = now_ns + PACE.upkeep
            seq = self._loop.recovered.ledger.settled_seq
            self.tables.follow(seq, self._loop.settled_commit, now=True)

    def live(self) -> list[list[bytes]]:
        """The live frames since the last time: [topic, stamp, body]."""
        sent, self.pulse.sent = self.pulse.sent, []
        return [list(frames) for frames in sent]

    def step_utc(self, ns: int) -> None:
        """Set the wall clock forwards, or back; the node notices at once."""
        self.clock.step_utc(ns)
        self._loop.times.clock = 0
        self._loop.step()
        self._loop.step()

    def restart(self, landed: int = 0) -> None:
        """Stop as by kill -9, and start again on what was durable, and on the oldest `landed` of
        the commits under way."""
        self.log.crash(landed)
        self._start()

    def close(self) -> None:
        """Nothing is open."""
