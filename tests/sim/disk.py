"""The virtual disk of a run: commits take time, fail, and after a crash only a prefix is there.

Over `engine/memory.py`, whose objects stand for the disk itself. A commit is durable when its
latency has passed; a crash finds the oldest of those under way on disk or not, as it is drawn. A
commit that failed may be on disk all the same, and only opening the store anew tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import StoreFailed, StoreFull
from engine.memory import MemoryLog, MemoryTables
from engine.record import Kind, chain_hash
from engine.store import CHAIN_START, Applied, Batch
from tests.sim.world import MINUTE, MS, SECOND, US, World


@dataclass(slots=True)
class Weather:
    """What the disk is like at present. fault: every write fails with it."""

    commit_ns: tuple[int, int] = (200 * US, 3 * MS)
    stall: float = 0.0  # probability that a commit takes up to stall_ns
    stall_ns: int = 2 * SECOND
    slice_delay_ns: int = 5 * SECOND
    slice_ns: tuple[int, int] = (1 * MS, 20 * MS)
    fault: str = ""  # EIO or ENOSPC

    def error(self) -> StoreFailed:
        """What a write fails with."""
        if self.fault == "ENOSPC":
            return StoreFull("write: No space left on device")
        return StoreFailed("fdatasync: Input/output error")


class SimLog(MemoryLog):
    """The log. wake: tells the node that something is readable.

    forgets, tears: planted bugs. The first loses the newest durable commit in a crash, the second
    keeps half of what a crash cut off.
    """

    def __init__(self, world: World, weather: Weather, wake: Callable[[], None]) -> None:
        super().__init__()
        self.hold()
        self.world, self.weather, self._wake = world, weather, wake
        self.forgets = self.tears = False
        self.lost_commits = 0
        self.history: dict[int, bytes] = {}  # all that ever was durable, trimmed or not
        self._doubtful: list[Batch] = []  # failed, and perhaps on disk
        self._life = 0
        self._checked = CHAIN_START
        self.applied_commit: Callable[[], int] = lambda: 0

    def submit(self, batch: Batch) -> int:
        number = super().submit(batch)
        weather, draw = self.weather, self.world.random
        took = draw.randint(*weather.commit_ns)
        if self.world.chance(weather.stall):
            took = draw.randint(took, weather.stall_ns)
        life = self._life
        self.world.after(took, lambda: self._written(life))
        return number

    def _written(self, life: int) -> None:
        if life != self._life or not self._under_way or self._failed is not None:
            return
        if self.weather.fault:
            self.world.tell("commit failed", self._submitted, self.weather.fault)
            self._doubtful = list(self._under_way)
            self.fail_next(self.weather.error())
        self._write(1)
        self._wake()

    def _commit(self, batch: Batch) -> None:
        receipts, notes = batch.receipts, b"".join(batch.notes)
        chain = chain_hash(self._checked, batch.first_seq, batch.events, receipts, notes)
        assert chain == batch.chain, f"CHAIN commit {self._durable + 1} does not follow"
        self._checked = chain
        super()._commit(batch)
        self.history.update(enumerate(batch.events, batch.first_seq))
        self.world.tell("commit", self._durable, batch.chain)

    def halt(self) -> None:
        """The process is gone: what is under way stays as it is until somebody opens it."""
        self._life += 1

    def reopen(self) -> None:
        """After a crash or a failure: what had not become durable landed, or not, from its start
        on."""
        self.halt()
        if self._failed is not None:
            self._failed = None
            self._under_way.extend(self._doubtful)
        self._doubtful = []
        torn = self._under_way[0] if self._under_way else None
        landed = self.world.random.randint(0, len(self._under_way))
        self.crash(landed)
        self.hold()
        if self.forgets:
            self._forget_newest()
        if self.tears and torn is not None and not landed and len(torn.events) > 1:
            self._tear(torn)
        self.world.tell("reopened", landed, self._durable)

    def _forget_newest(self) -> None:
        seal = self._seals.get(self._durable)
        if seal is None or self._durable < 2:
            return
        events = range(seal.commit.first_seq, self._last_seq + 1)
        if all(self._events[seq][5] != Kind.SCHEDULED for seq in events):
            return  # nobody would miss it
        if self.applied_commit() >= self._durable:
            return  # the tables have it: losing it here would be found at once
        for seq in events:
            del self._events[seq]
        del self._seals[self._durable]
        self._durable -= 1
        self._last_seq = seal.commit.first_seq - 1
        self._submitted, self._submitted_seq = self._durable, self._last_seq
        self._checked = self.state().chain
        self.lost_commits += 1

    def _tear(self, batch: Batch) -> None:
        batch.events = batch.events[: len(batch.events) // 2]
        batch.notes, batch.receipts = [], b""
        batch.chain = chain_hash(self._checked, batch.first_seq, batch.events, b"", b"")
        self._under_way.append(batch)
        self._write(1)
        self._submitted, self._submitted_seq = self._durable, self._last_seq
        self.lost_commits += 1


class SimTables(MemoryTables):
    """The tables: a slice comes at its time, or soon after it was asked for."""

    def __init__(
        self, log: SimLog, world: World, weather: Weather, wake: Callable[[], None]
    ) -> None:
        super().__init__(log)
        self.world, self.weather, self._wake = world, weather, wake
        self._life = 0
        self._slice_at = self._expired_ns = -1
        self._broken: StoreFailed | None = None
        log.applied_commit = lambda: self._commit

    def applied(self) -> Applied:
        if self._broken is not None:
            raise type(self._broken)(*self._broken.args)
        return super().applied()

    def follow(self, last_seq: int, commit: int, *, now: bool = False) -> None:
        self._held = True
        super().follow(last_seq, commit, now=now)
        self._held = False
        if self._followed_commit == self._commit:
            return
        draw = self.world.random
        wait = draw.randint(*self.weather.slice_ns)
        at = self.world.now + wait + (0 if now else self.weather.slice_delay_ns)
        if self._slice_at < 0 or at < self._slice_at:
            self._slice_at, life = at, self._life
            self.world.at(at, lambda: self._sliced(life, at))

    def _sliced(self, life: int, at: int) -> None:
        if life != self._life or at != self._slice_at or self._broken is not None:
            return
        self._slice_at = -1
        if self.weather.fault:
            self._broken = self.weather.error()
        else:
            self._slice()
            self.world.tell("slice", self._seq)
        self._wake()

    def expire(self, trim_below: int, notes_before_ns: int) -> int:
        """Once a minute: it looks at every note that it has."""
        if self.world.now - self._expired_ns < MINUTE:
            return self._done_below
        self._expired_ns = self.world.now
        return super().expire(trim_below, notes_before_ns)

    def halt(self) -> None:
        """The process is gone, and the slice under way with it."""
        self._life += 1

    def reopen(self) -> None:
        """After a crash or a failure: what was sliced is there."""
        self.halt()
        self._slice_at, self._broken = -1, None
        self.crash()
