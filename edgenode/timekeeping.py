"""What a node notices about its clocks, and what it does about it: every finding is an event.

    UTC was set            clock_stepped: timers of the wall clock move with it
    ... by too much        clock_held: nothing of the wall clock fires until somebody agrees
    it was set back, or accepted   clock_released
    the machine slept      suspended: what was due meanwhile fires now, late and flagged

BOOTTIME, which the wheel and the pulse run on, is stepped by nobody and counts through a suspend.
"""

from __future__ import annotations

from typing import NamedTuple

import orjson

from engine.clock import Clock, Step, Timescale
from engine.record import Kind
from minoots.wire.times import format_instant

SUSPEND_NS_MIN = 10_000_000  # a suspend that is shorter is not told


class Finding(NamedTuple):
    """One event of the node about its clocks, and its data."""

    kind: Kind
    data: dict[str, object]

    @property
    def json(self) -> bytes:
        """The event's data as JSON."""
        return orjson.dumps(self.data)


class Timekeeper:
    """Reads the clocks that it is given; keeps the timescale."""

    def __init__(self, timescale: Timescale, clock: Clock) -> None:
        self.timescale = timescale
        self._clock = clock
        self._suspended_ns = clock.suspended_ns()

    @property
    def is_held(self) -> bool:
        """Whether UTC is in doubt."""
        return self.timescale.doubt is not None

    @property
    def error_us(self) -> int | None:
        """How far UTC may be off; None while nothing is known of it."""
        return None

    def resumed(self) -> list[Finding]:
        """What was found when the timescale was taken up again."""
        found = []
        if self.timescale.resumed is not None:
            found.append(self._stepped(self.timescale.resumed))
        if self.timescale.doubt is not None:
            found.append(self._held(self.timescale.doubt))
        return found

    def check(self) -> list[Finding]:
        """Look at all clocks; what has changed since the last time."""
        found = []
        before = self.timescale.doubt
        step = self.timescale.read(self._clock)
        doubt = self.timescale.doubt
        if before is not None and doubt is None:
            found.append(self._released("clock"))
        if step is not None:
            found.append(self._stepped(step))
        if doubt is not None and before is None:
            found.append(self._held(doubt))
        asleep_ns = self._clock.suspended_ns()
        if asleep_ns - self._suspended_ns >= SUSPEND_NS_MIN:
            slept_ns = asleep_ns - self._suspended_ns
            found.append(Finding(Kind.SUSPENDED, {"for_ns": slept_ns}))
            self._suspended_ns = asleep_ns
        return found

    def accept(self) -> list[Finding]:
        """Somebody agrees with UTC as it is."""
        if self.timescale.doubt is None:
            return []
        step = self.timescale.accept(self._clock)
        found = [self._released("operator")]
        return found + ([self._stepped(step)] if step is not None else [])

    def facts(self) -> dict[str, object]:
        """For `stats`."""
        doubt = self.timescale.doubt
        return {
            "shift_ns": self.timescale.shift_ns,
            "held": doubt is not None,
            "held_by_ns": _by_ns(doubt) if doubt is not None else 0,
            "suspended_ns": self._suspended_ns,
        }

    def _stepped(self, step: Step) -> Finding:
        return Finding(Kind.CLOCK_STEPPED, {"by_ns": _by_ns(step)})

    def _held(self, doubt: Step) -> Finding:
        now = self.timescale.now(self._clock)
        claimed_ns = max(now.steady_ns + doubt.after_shift_ns, 0)
        data = {
            "by_ns": _by_ns(doubt),
            "believed": format_instant(now.utc_ns),
            "claimed": format_instant(claimed_ns),
        }
        return Finding(Kind.CLOCK_HELD, data)

    def _released(self, by: str) -> Finding:
        return Finding(Kind.CLOCK_RELEASED, {"by": by})


def _by_ns(step: Step) -> int:
    return step.after_shift_ns - step.before_shift_ns
