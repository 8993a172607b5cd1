"""A whole node in this process on virtual time, disk and sockets: what `minoots.testing` drives.

The same node, loop and wheel as the real one; only the edges are others.
"""

from __future__ import annotations

import random
from collections import deque

from edgenode.call import Answer, Frames
from edgenode.config import Config, EngineSection
from edgenode.doors.events import EventsDoor
from edgenode.lead import Lead
from edgenode.loop import Loop, Pace
from edgenode.metrics import Metrics
from edgenode.node import Node
from edgenode.principal import LOCAL, Principal
from edgenode.publish import Publisher, ReleaseQueue
from edgenode.recovery import recover
from edgenode.verbs.about import About
from engine.clock import VirtualClock
from engine.memory import MemoryLog, MemoryTables

START_NS = 1_800_000_000_000_000_000  # 2027-01-15T08:00:00Z
DAY_NS = 86_400_000_000_000
LEAD_NS = 2_000_000

# Nobody waits for a heartbeat here, and an idle year must not cost a second's work each second.
PACE = Pace(heartbeat=DAY_NS, clock=DAY_NS, upkeep=DAY_NS // 4, anchor=DAY_NS)


class _Sink:
    """Stands for the events socket: everybody subscribes to everything."""

    def __init__(self) -> None:
        self.sent: list[Frames] = []
        self.dropped_full = 0
        self._subscriptions: list[Frames] = [(b"\x01",)]

    def drain(self, limit: int, frames_max: int = 2) -> list[Frames]:
        came, self._subscriptions = self._subscriptions, []
        return came

    def send(self, messages: list[Frames]) -> int:
        self.sent.extend(messages)
        return len(messages)


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

    def flush(self) -> None:
        self.events.flush()

    def newcomers(self) -> bool:
        return False

    def dropped(self) -> dict[str, int]:
        return {}

    def heartbeat(self, tenant: str, epoch: int, floor: int, now_ns: int) -> None:
        """Nobody listens for it here."""


class _NoSleep:
    def wait(self, boot_ns: int) -> None:
        """Time moves by `advance` alone."""


class VirtualNode:
    """One node, driven step by step. start_ns: UTC at the beginning; seed: of its ids."""

    def __init__(self, start_ns: int = START_NS, *, seed: int = 0) -> None:
        self.clock = VirtualClock(start_ns)
        self.log = MemoryLog()
        self.tables = MemoryTables(self.log)
        self._random = random.Random(seed)
        self._follow_ns = 0
        # Virtual time stands still while code runs: nothing may spin until it has come.
        self._config = Config(engine=EngineSection(horizon=DAY_NS, spin_max=0))
        self._start()

    def _start(self) -> None:
        recovered = recover(
            self._config, "virtual", self.log, self.tables, self.clock, self._random.getrandbits
        )
        ledger = recovered.ledger
        self._sink = _Sink()
        self._doors = _Doors(EventsDoor(self._sink, boot="virtual"))
        queue = ReleaseQueue()
        metrics = Metrics(started_ns=ledger.now.steady_ns)
        about = About("virtual", "virtual", {}, metrics)
        self._loop = Loop(
            Node(ledger, about),
            recovered,
            Publisher(ledger.identity, self._doors.events, queue),
            queue,
            self._doors,
            _NoSleep(),
            self.clock,
            Lead(LEAD_NS, LEAD_NS),
            metrics,
            self.log.state().commit,
            pace=PACE,
        )
        self._loop.step()

    @property
    def now_ns(self) -> int:
        """UTC."""
        return self.clock.utc_ns()

    def request(self, frames: list[bytes]) -> list[list[bytes]]:
        """Ask, as a client's socket would: MZP/1 frames without the peer; and the answers."""
        self._doors.inbox.append((0, (b"virtual", *frames), LOCAL))
        for _ in range(10_000):
            self._loop.step()
            if self._doors.outbox:
                break
        answers, self._doors.outbox = self._doors.outbox, []
        return [list(answer) for answer in answers]

    def advance(self, ns: int) -> list[list[bytes]]:
        """Let `ns` pass; the live frames of what left meanwhile, in order."""
        end_ns = self.clock.steady_boot_ns() + ns
        while True:
            self._loop.step()
            now_ns = self.clock.steady_boot_ns()
            self._follow(now_ns)
            wake_ns = self._loop.wake_boot_ns()
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
        sent, self._sink.sent = self._sink.sent, []
        return [list(frames) for frames in sent]

    def step_utc(self, ns: int) -> None:
        """Set the wall clock forwards, or back; the node notices at once."""
        self.clock.step_utc(ns)
        self._loop.times.clock = 0
        self._loop.step()
        self._loop.step()

    def restart(self) -> None:
        """Stop as by kill -9, and start again on what was durable."""
        self.log.crash()
        self._start()

    def close(self) -> None:
        """Nothing is open."""
