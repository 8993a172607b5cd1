"""Virtual time for a whole run: what happens next, in an order that one seed decides.

World time is ns since the run began and only grows. The node's clocks stand on it: BOOTTIME begins
anew with each boot, UTC may be set. Idle stretches cost nothing: time jumps to what comes next.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable
from typing import Protocol

from engine.clock import VirtualClock

US, MS, SECOND = 1_000, 1_000_000, 1_000_000_000
MINUTE, HOUR, DAY = 60 * SECOND, 3_600 * SECOND, 86_400 * SECOND
YEAR = 365 * DAY
HAPPENS_MAX = 2_000_000  # in one run: some 60,000 do
START_NS = 1_800_000_000_000_000_000  # UTC at the beginning


class Killed(BaseException):
    """The node's process ends here, without a word: what `kill -9` is to the real one."""


class Source(Protocol):
    """Something with a time of its own (the pulse), asked before each step."""

    def next_ns(self) -> int | None:
        """World time at which it acts next."""

    def run(self) -> None:
        """Act."""


class World:
    """See the module. trace: grows with all that happens; two runs of a seed must agree on it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = VirtualClock(START_NS)
        self.now = 0
        self.source: Source | None = None
        self.happened = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._trace = hashlib.blake2b(digest_size=16)

    @property
    def true_utc_ns(self) -> int:
        """What a clock that nobody sets would show."""
        return START_NS + self.now

    def tell(self, *facts: object) -> None:
        """Write into the trace."""
        self.happened += 1
        assert self.happened < HAPPENS_MAX, f"QUIET {HAPPENS_MAX} things have happened, and no end"
        self._trace.update(repr((self.now, *facts)).encode())

    @property
    def trace(self) -> str:
        """The hash of all that has happened."""
        return self._trace.hexdigest()

    def at(self, ns: int, do: Callable[[], None]) -> None:
        """Have `do` happen at that instant of the world, or now if it has passed."""
        heapq.heappush(self._heap, (max(ns, self.now), next(self._order), do))

    def after(self, ns: int, do: Callable[[], None]) -> None:
        """Have `do` happen `ns` from now."""
        self.at(self.now + ns, do)

    def chance(self, probability: float) -> bool:
        """Whether something happens that does so with this probability."""
        return probability > 0 and self.random.random() < probability

    def pass_to(self, ns: int) -> None:
        """Let time pass with nothing happening in it: a stall, a suspend."""
        self.clock.advance(ns - self.now)
        self.now = ns

    def suspend(self, ns: int) -> None:
        """The machine sleeps; what would have happened happens when it wakes."""
        self.clock.suspend(ns)
        self.now += ns

    def world_ns(self, boot_ns: int) -> int:
        """The world time at which BOOTTIME stands at `boot_ns`, in this boot."""
        return self.now + boot_ns - self.clock.steady_boot_ns()

    def run_to(self, ns: int, until: Callable[[], bool] = lambda: False) -> None:
        """Have happen what comes up to `ns`, in order; no further once `until` says so."""
        while not until():
            acts = self.source.next_ns() if self.source is not None else None
            comes = self._heap[0][0] if self._heap else None
            coming = min((at for at in (acts, comes) if at is not None), default=None)
            if coming is None or coming > ns:
                if ns > self.now:
                    self.pass_to(ns)
                return
            if coming > self.now:
                self.pass_to(coming)
            if acts is not None and acts <= coming:
                assert self.source is not None
                self.source.run()
            else:
                heapq.heappop(self._heap)[2]()
