"""What a node notices about its clocks, and what it does about it: every finding is an event.

    UTC was set               clock_stepped: timers of the wall clock move with it
    ... by too much           clock_held: nothing of the wall clock fires until somebody agrees
    set back, or agreed with  clock_released
    put right by a reference  clock_slewed, each 10 ms of it
    the machine slept         suspended: what was due meanwhile fires now, late and flagged

BOOTTIME, which the wheel and the pulse run on, is stepped by nobody and counts through a suspend.
A reference that corrects (another node) is followed by slewing UTC; an offset above STEP_NS is
taken at once. Without one UTC is the kernel's, and only its error is watched. What is known grows
old: the bound of the error grows while nothing comes in (`engine.drift`).
"""

from __future__ import annotations

from typing import NamedTuple

import orjson

from edgenode.config import ClockSection
from edgenode.reference import Reference
from engine.clock import CorrectedClock, Step, Timescale
from engine.drift import Discipline, Estimate, Tuning, slewed
from engine.drift import Kind as VerdictKind
from engine.record import Kind
from minoots.wire.times import format_instant

SUSPEND_NS_MIN = 10_000_000  # a suspend that is shorter is not told
STEP_NS = 128_000_000  # RFC 5905's STEPT: a larger offset is not slewed
SLEW_TOLD_NS = 10_000_000
AGREED_NS = 1_000_000_000  # UTC this near to what a reference says is agreed with


class Finding(NamedTuple):
    """One event of the node about its clocks, and its data."""

    kind: Kind
    data: dict[str, object]

    @property
    def json(self) -> bytes:
        """The event's data as JSON."""
        return orjson.dumps(self.data)


class Timekeeper:
    """Keeps the timescale. clock: what the timescale reads UTC from."""

    def __init__(
        self,
        timescale: Timescale,
        clock: CorrectedClock,
        config: ClockSection,
        reference: Reference | None = None,
    ) -> None:
        self.timescale = timescale
        self._clock = clock
        self._config = config
        self._reference = reference
        self._discipline = Discipline(Tuning(wander_ppb=config.wander_ppm * 1_000))
        self._suspended_ns = clock.suspended_ns()
        self._asked_ns = 0  # steady
        self._checked_ns = self._steady_ns()
        self._slewed_ns = 0  # since it was last told

    def _steady_ns(self) -> int:
        return self.timescale.now(self._clock).steady_ns

    @property
    def is_held(self) -> bool:
        """Whether UTC is in doubt."""
        return self.timescale.doubt is not None

    @property
    def error_us(self) -> int | None:
        """How far UTC may be off; None while nothing is known of it."""
        estimate = self._discipline.at(self._steady_ns())
        if estimate.error_ns is None:
            return None
        off_ns = abs(estimate.offset_ns - self.timescale.shift_ns)
        return (estimate.error_ns + off_ns + 999) // 1_000

    def facts(self) -> dict[str, object]:
        """For `stats` and `time.sync`."""
        estimate = self._discipline.at(self._steady_ns())
        doubt, known = self.timescale.doubt, estimate.error_ns is not None
        return {
            "reference": self._reference.name if self._reference is not None else "",
            "state": estimate.state.value,
            "offset_us": (estimate.offset_ns - self.timescale.shift_ns) // 1_000 if known else None,
            "rate_ppb": estimate.rate_ppb if known else None,
            "error_us": self.error_us,
            "age_ms": estimate.age_ns // 1_000_000 if known else None,
            "correction_us": self._clock.correction_ns // 1_000,
            "shift_ns": self.timescale.shift_ns,
            "held": doubt is not None,
            "held_by_ns": _by_ns(doubt) if doubt is not None else 0,
        }

    # ------------------------------------------------------------------------- what was found

    def resumed(self) -> list[Finding]:
        """What was found when the timescale was taken up again."""
        found = []
        if self.timescale.resumed is not None:
            found.append(self._stepped(self.timescale.resumed))
        if self.timescale.doubt is not None:
            found.append(self._held(self.timescale.doubt))
        return found

    def hear(self) -> list[Finding]:
        """Take what the reference has answered."""
        found = []
        for sample in self._reference.samples() if self._reference is not None else ():
            verdict = self._discipline.feed(sample)
            if verdict.kind == VerdictKind.STEPPED and self._corrects:
                data = {"by_ns": verdict.by_ns, "of": "reference"}
                found.append(Finding(Kind.CLOCK_STEPPED, data))
        return found

    def check(self) -> list[Finding]:
        """Look at all clocks; what has changed since the last time."""
        now_ns = self._steady_ns()
        found = self._wake_up()
        if self._reference is not None and now_ns - self._asked_ns >= self._config.poll:
            self._asked_ns = now_ns
            self._reference.ask()
        found += self.hear()
        estimate = self._discipline.at(now_ns)
        slew_ns = self._correct(estimate, now_ns - self._checked_ns) if self._corrects else 0
        self._checked_ns = now_ns
        return found + self._read(estimate, slew_ns)

    def accept(self) -> list[Finding]:
        """Somebody agrees with UTC as it is."""
        return self._agree("operator") if self.is_held else []

    @property
    def _corrects(self) -> bool:
        return self._reference is not None and self._reference.corrects

    def _wake_up(self) -> list[Finding]:
        asleep_ns = self._clock.suspended_ns()
        slept_ns, self._suspended_ns = asleep_ns - self._suspended_ns, asleep_ns
        if slept_ns < SUSPEND_NS_MIN:
            self._suspended_ns = asleep_ns - slept_ns
            return []
        self._discipline.restart()  # the oscillator went on by another clock
        self._asked_ns = 0
        return [Finding(Kind.SUSPENDED, {"for_ns": slept_ns})]

    def _correct(self, estimate: Estimate, passed_ns: int) -> int:
        """Bring UTC nearer to what the reference says; how far it was slewed."""
        if estimate.error_ns is None:
            return 0
        before_ns = self._clock.correction_ns
        raw_ns = self.timescale.measure(self._clock) - before_ns
        wanted_ns = estimate.offset_ns - raw_ns
        if abs(wanted_ns - before_ns) > STEP_NS:
            self._clock.correction_ns = wanted_ns
            return 0
        most_ppm = self._config.slew_max_ppm
        self._clock.correction_ns = slewed(before_ns, wanted_ns, max(passed_ns, 0), most_ppm)
        return self._clock.correction_ns - before_ns

    def _read(self, estimate: Estimate, slew_ns: int) -> list[Finding]:
        """Read UTC: small moves of our own are told when they have added up."""
        before = self.timescale.doubt
        step = self.timescale.read(self._clock)
        doubt = self.timescale.doubt
        found = []
        if before is not None and doubt is None:
            found.append(self._released("clock"))
        self._slewed_ns += slew_ns
        if step is not None and self._corrects and abs(_by_ns(step)) <= SLEW_TOLD_NS:
            if abs(self._slewed_ns) >= SLEW_TOLD_NS:
                found.append(Finding(Kind.CLOCK_SLEWED, {"by_ns": self._slewed_ns}))
                self._slewed_ns = 0
        elif step is not None:
            found.append(self._stepped(step))
        if doubt is None:
            return found
        if self._corrects and estimate.error_ns is not None:
            off_ns = abs(estimate.offset_ns - doubt.after_shift_ns)
            if off_ns <= estimate.error_ns + AGREED_NS:
                return found + self._agree("reference")
        return found if before is not None else [*found, self._held(doubt)]

    def _agree(self, by: str) -> list[Finding]:
        step = self.timescale.accept(self._clock)
        return [self._released(by)] + ([self._stepped(step)] if step is not None else [])

    def _stepped(self, step: Step) -> Finding:
        return Finding(Kind.CLOCK_STEPPED, {"by_ns": _by_ns(step)})

    def _held(self, doubt: Step) -> Finding:
        now = self.timescale.now(self._clock)
        claimed_ns = max(now.steady_ns + doubt.after_shift_ns, 0)
        data: dict[str, object] = {
            "by_ns": _by_ns(doubt),
            "believed": format_instant(now.utc_ns),
            "claimed": format_instant(claimed_ns),
        }
        return Finding(Kind.CLOCK_HELD, data)

    def _released(self, by: str) -> Finding:
        return Finding(Kind.CLOCK_RELEASED, {"by": by})


def _by_ns(step: Step) -> int:
    return step.after_shift_ns - step.before_shift_ns
