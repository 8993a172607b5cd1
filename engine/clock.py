"""The clocks that time is read from, and the steady timescale that nothing steps.

Two clocks exist. CLOCK_BOOTTIME counts on through suspends and is stepped by nothing, but starts at
0 with each boot. CLOCK_REALTIME is UTC, and somebody may set it. From both comes a third scale:

    steady_ns   ns since the epoch as if UTC had never been stepped

It runs with BOOTTIME from an anchor (boot_id, boot_ns, steady_ns, utc_ns) that the log keeps, so
that durations survive a restart, and goes on by UTC over a reboot, the one time when there is
nothing better. `shift_ns = utc - steady` says how far apart the two are; it moves only when UTC is
stepped, for the kernel slews both clocks alike.

Integers only. What rounds says so in its name: deadlines up, now down.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from engine._kernel import suspended_ns
from engine._wait import boottime_ns, realtime_ns

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
STEP_NS_MIN = 1_000_000  # UTC that moved by less is not said to have been stepped
SAMPLES_COUNT = 3


class Clock(Protocol):
    """Where time comes from: the machine, or a test."""

    @property
    def boot_id(self) -> str:
        """Another with each boot, and only then."""

    def steady_boot_ns(self) -> int:
        """Ns since that boot, suspends included."""

    def utc_ns(self) -> int:
        """Ns since the epoch, as the machine believes it."""

    def suspended_ns(self) -> int:
        """For how long the machine was suspended: its growth counts, not where it began."""


class OsClock:
    """The machine's clocks. Raises OSError where /proc is not mounted."""

    __slots__ = ("_boot_id",)

    def __init__(self) -> None:
        self._boot_id = BOOT_ID_FILE.read_text(encoding="ascii").strip()

    @property
    def boot_id(self) -> str:
        return self._boot_id

    def steady_boot_ns(self) -> int:
        return boottime_ns()

    def utc_ns(self) -> int:
        return realtime_ns()

    def suspended_ns(self) -> int:
        return suspended_ns()


class VirtualClock:
    """A clock that moves when it is told to."""

    __slots__ = ("_boot_ns", "_boots", "_suspended_ns", "_utc_ns")

    def __init__(self, utc_ns: int = 1_800_000_000_000_000_000, boot_ns: int = 0) -> None:
        self._boots = 1
        self._boot_ns = boot_ns
        self._utc_ns = utc_ns
        self._suspended_ns = 0

    @property
    def boot_id(self) -> str:
        return f"virtual-{self._boots}"

    def steady_boot_ns(self) -> int:
        return self._boot_ns

    def utc_ns(self) -> int:
        return self._utc_ns

    def suspended_ns(self) -> int:
        return self._suspended_ns

    def suspend(self, ns: int) -> None:
        """Let `ns` pass in a suspend."""
        self.advance(ns)
        self._suspended_ns += ns

    def advance(self, ns: int) -> None:
        """Let `ns` pass, on both clocks."""
        if ns < 0:
            raise ValueError(f"time can't pass by {ns} ns; step_utc sets UTC back")
        self._boot_ns += ns
        self._utc_ns += ns

    def step_utc(self, ns: int) -> None:
        """Set UTC forwards, or back for a negative `ns`; no time passes."""
        self._utc_ns += ns

    def new_boot(self, down_ns: int = 0) -> None:
        """Reboot; the machine was down for `down_ns`."""
        self.advance(down_ns)
        self._boots += 1
        self._boot_ns = self._suspended_ns = 0


class CorrectedClock:
    """A clock whose UTC is put right by what a reference says: `correction_ns` is added to it."""

    __slots__ = ("_clock", "correction_ns")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.correction_ns = 0

    @property
    def boot_id(self) -> str:
        return self._clock.boot_id

    def steady_boot_ns(self) -> int:
        return self._clock.steady_boot_ns()

    def utc_ns(self) -> int:
        return self._clock.utc_ns() + self.correction_ns

    def suspended_ns(self) -> int:
        return self._clock.suspended_ns()


class Now(NamedTuple):
    """One instant on both scales; shift_ns = utc_ns - steady_ns."""

    steady_ns: int
    utc_ns: int
    shift_ns: int


class Step(NamedTuple):
    """UTC was set: the shift before and after."""

    before_shift_ns: int
    after_shift_ns: int


@dataclass(frozen=True, slots=True)
class Anchor:
    """One instant on all scales, to be saved."""

    boot_id: str
    boot_ns: int
    steady_ns: int
    utc_ns: int


class Timescale:
    """The steady scale and UTC beside it. Reads no clock but the one it is given.

    hold_above_ns: UTC that moves by more than this is not believed, and `doubt` says so, until
    `accept` or until it has moved back; 0: everything is believed.
    """

    __slots__ = ("_boot_ns", "_doubt", "_hold_above_ns", "_resumed", "_shift_ns", "_steady_ns")

    def __init__(
        self, boot_ns: int, steady_ns: int, shift_ns: int, *, hold_above_ns: int = 0
    ) -> None:
        self._boot_ns = boot_ns
        self._steady_ns = steady_ns
        self._shift_ns = shift_ns
        self._hold_above_ns = hold_above_ns
        self._resumed: Step | None = None
        self._doubt: Step | None = None

    @classmethod
    def fresh(cls, clock: Clock, hold_above_ns: int = 0) -> Timescale:
        """Begin: steady is UTC."""
        offset_ns, _ = _utc_minus_boot_ns_floor(clock)
        boot_ns = clock.steady_boot_ns()
        return cls(boot_ns, boot_ns + offset_ns, 0, hold_above_ns=hold_above_ns)

    @classmethod
    def resume(cls, saved: Anchor, clock: Clock, hold_above_ns: int = 0) -> Timescale:
        """Go on from a saved anchor; `resumed` is the step of UTC that came in between, if any.

        In the same boot steady has gone on with BOOTTIME. Otherwise only UTC can tell how long the
        machine was down, and steady goes on by it, but never back.
        """
        offset_ns, error_ns = _utc_minus_boot_ns_floor(clock)
        boot_ns = clock.steady_boot_ns()
        # A virtual machine put back to a snapshot keeps its boot id, and its BOOTTIME goes back.
        if saved.boot_id == clock.boot_id and boot_ns >= saved.boot_ns:
            steady_ns = saved.steady_ns + boot_ns - saved.boot_ns
        else:
            steady_ns = saved.steady_ns + max(0, boot_ns + offset_ns - saved.utc_ns)
        shift_ns = saved.utc_ns - saved.steady_ns
        scale = cls(boot_ns, steady_ns, shift_ns, hold_above_ns=hold_above_ns)
        scale._resumed = scale._move(offset_ns, error_ns)
        return scale

    @property
    def resumed(self) -> Step | None:
        """How far UTC was stepped while nobody watched, before `resume`; None if it was not."""
        return self._resumed

    @property
    def doubt(self) -> Step | None:
        """The step of UTC that is not believed; None if there is none."""
        return self._doubt

    @property
    def doubt_ns(self) -> int:
        """How far the UTC that is not believed is ahead of that which is; 0 without a doubt."""
        return self._doubt.after_shift_ns - self._doubt.before_shift_ns if self._doubt else 0

    def measure(self, clock: Clock) -> int:
        """UTC minus steady as it is now, believed or not."""
        return _utc_minus_boot_ns_floor(clock)[0] + self._boot_ns - self._steady_ns

    def accept(self, clock: Clock) -> Step | None:
        """Believe UTC as it is now."""
        limit_ns, self._hold_above_ns = self._hold_above_ns, 0
        step = self._move(*_utc_minus_boot_ns_floor(clock))
        self._hold_above_ns = limit_ns
        return step

    @property
    def shift_ns(self) -> int:
        """UTC minus steady."""
        return self._shift_ns

    def now(self, clock: Clock) -> Now:
        """The instant on both scales; one read of the clock."""
        steady_ns = self._steady_ns + clock.steady_boot_ns() - self._boot_ns
        return Now(steady_ns, steady_ns + self._shift_ns, self._shift_ns)

    def boot_ns(self, steady_ns: int) -> int:
        """Where BOOTTIME stands at that steady instant; what a wait needs."""
        return self._boot_ns + steady_ns - self._steady_ns

    def anchor(self, clock: Clock) -> Anchor:
        """The present instant, to be saved and resumed from."""
        boot_ns = clock.steady_boot_ns()
        steady_ns = self._steady_ns + boot_ns - self._boot_ns
        return Anchor(clock.boot_id, boot_ns, steady_ns, steady_ns + self._shift_ns)

    def read(self, clock: Clock) -> Step | None:
        """Compare UTC with steady again; a Step if somebody has set it since.

        Moves of STEP_NS_MIN or less are ignored and leave the shift as it is, so several small ones
        add up until they are seen.
        """
        return self._move(*_utc_minus_boot_ns_floor(clock))

    def _move(self, offset_ns: int, error_ns: int) -> Step | None:
        before_ns = self._shift_ns
        after_ns = offset_ns + self._boot_ns - self._steady_ns
        moved_ns = abs(after_ns - before_ns)
        if self._hold_above_ns and moved_ns > self._hold_above_ns:
            self._doubt = Step(before_ns, after_ns)
            return None
        self._doubt = None
        if moved_ns <= STEP_NS_MIN + error_ns:
            return None
        self._shift_ns = after_ns
        return Step(before_ns, after_ns)


def _utc_minus_boot_ns_floor(clock: Clock) -> tuple[int, int]:
    """UTC minus BOOTTIME, and how far that may be off.

    Three samples of UTC between two reads of BOOTTIME; the tightest counts, as the thread may have
    been put aside inside the others.
    """
    best_ns, offset_ns = -1, 0
    for _ in range(SAMPLES_COUNT):
        before_ns = clock.steady_boot_ns()
        utc_ns = clock.utc_ns()
        after_ns = clock.steady_boot_ns()
        if best_ns < 0 or after_ns - before_ns < best_ns:
            best_ns = after_ns - before_ns
            offset_ns = utc_ns - (before_ns + best_ns // 2)
    return offset_ns, (best_ns + 1) // 2


def tick_at_or_after(deadline_ns: int, tick_ns: int) -> int:
    """The first tick that is not before the deadline."""
    return -(-deadline_ns // tick_ns)


def tick_floor(now_ns: int, tick_ns: int) -> int:
    """The last tick that has begun."""
    return now_ns // tick_ns
