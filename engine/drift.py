"""How far the steady clock is from a reference, how fast it leaves it, and how sure that is.

Pure: reads no clock, draws nothing at random, keeps at most `Tuning.points_max + register` samples.
It only estimates; what is done about an offset (see `slewed`) is the caller's business.

**Problem.** A quartz oscillator is off by tens of parts per million: 4 s a day at 50 ppm. A
reference can be asked over a network, where every answer is old by an unknown part of its round
trip; answers get lost, queues make some of them bad by a thousand times the usual, the reference
itself is stepped or smears a leap second. An air-gapped node has no reference for days. Whoever
reads the time wants two numbers: the best guess, and a bound that is true.

**Why the obvious fails.** The newest answer jumps by half of whatever its delay was. An average, or
a line by least squares, is dragged along by one bad answer. The standard deviation of what was seen
is no bound: it shows the noise and not the asymmetry of the path, which stays the same for ever.
And a filter that throws out what disagrees holds on to the past once the reference has moved.

**The idea.** Guess with statistics, bound with arithmetic, and let the bound have the last word.

1. *Samples are intervals.* From the four timestamps of an exchange come an offset and a delay; the
   true offset lies within delay/2 of it however unequal the two ways were, wider by the error that
   the peer states of itself. (`exchanged` adds what the clocks drift apart within the exchange.)
2. *Rates are intervals.* Each pair of samples bounds the mean rate between them from both sides.
   One thing has to be assumed: over the window of samples, and for as long as the estimate is used,
   the rate stays within a band `wander_ppb` wide. Then the rate at every instant is above the
   greatest lower bound less the wander, and below the least upper bound and the wander.
3. *Carry every interval to the present* with those two rates and cut them: what is left holds the
   true offset. Nothing else is needed for hold-over: without samples the interval opens by itself,
   at the wander plus what the rate was uncertain by.
4. *Inside it, guess.* Of the latest samples the one with the lowest delay (aged, so that an old one
   loses its rank) joins the points; the rate is the repeated median of their slopes, which half of
   them may be wrong without moving it much; the offset is the median of the newest points, carried
   to the present. Both are clamped into their intervals.
5. *A sample whose interval does not meet ours* shows that something assumed is false. If it meets
   what the newer half of the window says, the rate has crept out of its band: forget the older
   half. Otherwise it may be a broken answer: it is put aside, and the bound is widened until it
   covers both stories. When `suspects_max` in a row agree with each other, the reference was
   stepped (or the rate has jumped): start again from them, and say so.

The bound is true while the samples' own bounds are and the rate keeps to its band. It is not, and
nothing could be, from a step of the reference to the first sample that shows it.

**Figures.** `wander_ppb` is RFC 5905's PHI, 15 ppm. A temperature moves plain quartz by a few ppm
in the course of a day (Mills 2010, chapter 12), and a leap second smeared over 24 h is 11.6 ppm
(developers.google.com/time/smear), so both fit in. It is the price of an hour without a reference:
54 ms; a host that is known to be steadier may state less. `rate_ppb_max` is what Linux lets a clock
be disciplined by, 500 ppm (MAXFREQ), and bounds the rate as long as nothing has been learned.

Sources: RFC 5905, sections 8 (offset and delay), 10 (clock filter) and 11.2 (intervals that must
meet, after Marzullo 1984); Mills, Computer Network Time Synchronization, 2nd edition, 2010; Siegel,
Robust regression using repeated medians, Biometrika 69, 1982.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

BILLION = 1_000_000_000
RATE_PPB_MAX = 500_000
READING_NS = 2  # four timestamps that are rounded down, and the halving
ANY_PPB = 1 << 62  # no bound
POINTS_MIN = 8  # a window is not made shorter than that to please a sample
OFFSET_POINTS = 8  # whose median is the offset: fewer follow a bend sooner, more are quieter


class State(StrEnum):
    """Whether there is an estimate, and whether samples still come in."""

    UNSET = "unset"
    FOLLOWING = "following"
    HOLDOVER = "holdover"


class Kind(StrEnum):
    """What became of a sample."""

    USED = "used"  # a point of the regression came from it or from one shortly before
    HELD = "held"  # a better one is known: it only narrows the bound
    SUSPECT = "suspect"  # it contradicts the estimate; put aside
    STEPPED = "stepped"  # it and those before it agree on another offset: started anew
    REFUSED = "refused"  # impossible: a negative delay or error, or not after the one before


class Verdict(NamedTuple):
    """What became of a sample, and by how much it differed from what was expected of it.

    by_ns: of STEPPED, how far the reference was stepped.
    """

    kind: Kind
    by_ns: int


class Sample(NamedTuple):
    """One comparison with the reference. The true offset lies within `half_ns` of `offset_ns`.

    local_ns: the instant on the steady clock; offset_ns: reference minus steady;
    delay_ns: of the round trip, 0 without one; error_ns: what the reference states of itself.
    """

    local_ns: int
    offset_ns: int
    delay_ns: int
    error_ns: int = 0

    @property
    def half_ns(self) -> int:
        """Half the width of the interval, rounded up."""
        return (self.delay_ns + 1) // 2 + self.error_ns


class Estimate(NamedTuple):
    """The offset (reference minus steady) at one instant.

    error_ns: the true offset is not farther away than this; None without an estimate.
    age_ns: since the newest sample that was not put aside. samples: points of the regression.
    """

    offset_ns: int
    rate_ppb: int
    error_ns: int | None
    age_ns: int
    samples: int
    state: State


@dataclass(frozen=True, slots=True)
class Tuning:
    """What is assumed of clocks and how much is kept; the essay above says why."""

    wander_ppb: int = 15_000  # width of the band that the rate stays in
    rate_ppb_max: int = RATE_PPB_MAX  # whatever the band
    points_max: int = 64  # of the regression
    register: int = 8  # latest samples of which the best counts
    suspects_max: int = 3  # that agree with each other: a step
    holdover_after_ns: int = 300 * BILLION  # without a sample


def exchanged(
    t0_ns: int,
    t1_ns: int,
    t2_ns: int,
    t3_ns: int,
    *,
    error_ns: int = 0,
    rate_ppb_max: int = RATE_PPB_MAX,
) -> Sample:
    """A sample from the timestamps of one exchange.

    t0, t3: sent and received, on the steady clock; t1, t2: received and sent, by the reference.
    error_ns: what the peer states of itself. Impossible timestamps make a sample that is refused.
    """
    trip_ns = t3_ns - t0_ns
    delay_ns = trip_ns - (t2_ns - t1_ns)
    drift_ns = _ceil(max(trip_ns, 0) * rate_ppb_max, BILLION)
    if -drift_ns - READING_NS <= delay_ns < 0 and t2_ns >= t1_ns:
        delay_ns = 0  # the peer's clock runs faster than ours, and it took its time
    offset_ns = ((t1_ns - t0_ns) + (t2_ns - t3_ns)) // 2
    if trip_ns < 0 or t2_ns < t1_ns:
        delay_ns = -1
    return Sample(t0_ns + trip_ns // 2, offset_ns, delay_ns, error_ns + drift_ns + READING_NS)


def slewed(current_ns: int, target_ns: int, elapsed_ns: int, ppm_max: int) -> int:
    """The correction after `elapsed_ns`, on its way from `current_ns` to `target_ns`.

    It moves by ppm_max of the time elapsed at most, rounded down. ppm_max: 0 to 1,000,000; at the
    upper end UTC stands still for as long as it is ahead, and it never runs backwards.
    Raises ValueError.
    """
    if not 0 <= ppm_max <= 1_000_000:
        raise ValueError(f"ppm_max is {ppm_max}; the range is 0 to 1000000")
    if elapsed_ns < 0:
        raise ValueError(f"elapsed_ns is {elapsed_ns}; time can't go back")
    most_ns = elapsed_ns * ppm_max // 1_000_000
    return current_ns + max(-most_ns, min(target_ns - current_ns, most_ns))


class Discipline:
    """The estimate, fed by samples of one reference."""

    __slots__ = ("_line", "_newest_ns", "_register", "_suspects", "_tuning", "_window")

    def __init__(self, tuning: Tuning | None = None) -> None:
        self._tuning = tuning or Tuning()
        self.restart()

    def restart(self) -> None:
        """Forget everything: the steady clock was suspended, or another reference is asked."""
        self._window = _Window()
        self._register: deque[Sample] = deque(maxlen=self._tuning.register)
        self._suspects: list[Sample] = []
        self._line: _Line | None = None
        self._newest_ns: int | None = None  # on the steady clock, of all samples

    def feed(self, sample: Sample) -> Verdict:
        """Take a sample; they come in the order of their instants.

        O(points_max): some 0.5 ms with a full window.
        """
        if sample.delay_ns < 0 or sample.error_ns < 0:
            return Verdict(Kind.REFUSED, 0)
        if self._newest_ns is not None and sample.local_ns <= self._newest_ns:
            return Verdict(Kind.REFUSED, 0)
        self._newest_ns = sample.local_ns
        if self._line is None:
            self._start([sample])
            return Verdict(Kind.USED, 0)
        by_ns = sample.offset_ns - self._line.at(sample.local_ns)[1]
        if not self._line.meets(sample) and not self._shorten(sample):
            return Verdict(self._suspect(sample), by_ns)
        self._suspects.clear()
        return Verdict(self._take(sample), by_ns)

    def at(self, now_ns: int) -> Estimate:
        """The estimate for an instant of the steady clock.

        It may be before the newest sample, as far back as the rate has kept to its band. O(1).
        """
        line = self._line
        if line is None:
            return Estimate(0, 0, None, 0, 0, State.UNSET)
        low_ns, offset_ns, high_ns = line.at(now_ns)
        if self._suspects:
            other = self._suspects[-1]
            span_ns = abs(now_ns - other.local_ns) * self._tuning.rate_ppb_max
            reach_ns = other.half_ns + _ceil(span_ns, BILLION)
            low_ns = min(low_ns, other.offset_ns - reach_ns)
            high_ns = max(high_ns, other.offset_ns + reach_ns)
        age_ns = max(now_ns - line.anchor_ns, 0)
        held = age_ns > self._tuning.holdover_after_ns
        return Estimate(
            offset_ns,
            line.rate_ppb,
            max(high_ns - offset_ns, offset_ns - low_ns),
            age_ns,
            len(self._window.points),
            State.HOLDOVER if held else State.FOLLOWING,
        )

    def _start(self, samples: Sequence[Sample]) -> None:
        self._window = _Window(samples)
        self._register.clear()
        self._register.extend(samples)
        self._line = _fit(self._window, samples, self._tuning)
        self._suspects.clear()

    def _take(self, sample: Sample) -> Kind:
        """Through the filter into the window, and draw the line anew."""
        window = self._window
        self._register.append(sample)
        best = min(self._register, key=lambda kept: self._distance_ns(kept, sample.local_ns))
        kind = Kind.HELD
        if best.local_ns > window.points[-1].sample.local_ns:
            kind = Kind.USED
            window.add(best)
            window.drop(len(window.points) - self._tuning.points_max)
        # A window over which the rate did not keep to its band is too long: halve it.
        while (line := _fit(window, self._register, self._tuning)) is None:
            window.drop((len(window.points) + 1) // 2)
            if not window.points:
                self._start([sample])
                return Kind.USED
            while self._register[0].local_ns < window.points[0].sample.local_ns:
                self._register.popleft()
        self._line = line
        return kind

    def _shorten(self, sample: Sample) -> bool:
        """Keep the newest part of the window if the sample contradicts only what is before it.

        The rate has crept out of the band that the whole window had.
        """
        count = len(self._window.points) // 2
        while count >= POINTS_MIN:
            kept = [point.sample for point in self._window.points[-count:]]
            register = [each for each in self._register if each.local_ns >= kept[0].local_ns]
            window = _Window(kept)
            line = _fit(window, register or kept, self._tuning)
            if line is not None and line.meets(sample):
                self._window = window
                self._register = deque(register, self._tuning.register)
                return True
            count //= 2
        return False

    def _distance_ns(self, sample: Sample, now_ns: int) -> int:
        """How good a sample still is (RFC 5905, section 10): the lower, the better."""
        return sample.half_ns + (now_ns - sample.local_ns) * self._tuning.wander_ppb // BILLION

    def _suspect(self, sample: Sample) -> Kind:
        self._suspects.append(sample)
        while _fit(_Window(self._suspects), self._suspects, self._tuning) is None:
            del self._suspects[0]
        if len(self._suspects) < self._tuning.suspects_max:
            return Kind.SUSPECT
        self._start(self._suspects.copy())
        return Kind.STEPPED


class _Line(NamedTuple):
    """The offset as a line and its bounds as a wedge, from the newest sample on."""

    anchor_ns: int
    low_ns: int
    offset_ns: int
    high_ns: int
    slow_ppb: int
    rate_ppb: int
    fast_ppb: int

    def meets(self, sample: Sample) -> bool:
        """Whether the sample's interval and ours have a point in common."""
        low_ns, _, high_ns = self.at(sample.local_ns)
        half_ns = sample.half_ns
        return low_ns - half_ns <= sample.offset_ns <= high_ns + half_ns

    def at(self, now_ns: int) -> tuple[int, int, int]:
        """The offset's lower bound, the offset, its upper bound."""
        span_ns = now_ns - self.anchor_ns
        down_ppb, up_ppb = self.slow_ppb, self.fast_ppb
        if span_ns < 0:
            down_ppb, up_ppb = up_ppb, down_ppb
        offset_ns = self.offset_ns + span_ns * self.rate_ppb // BILLION
        low_ns = self.low_ns + span_ns * down_ppb // BILLION
        high_ns = self.high_ns + _ceil(span_ns * up_ppb, BILLION)
        return low_ns, offset_ns, high_ns


def _fit(window: _Window, latest: Sequence[Sample], tuning: Tuning) -> _Line | None:
    """The line through the window within the bounds of all; None if they contradict each other."""
    slow_ppb, rate_ppb, fast_ppb = window.rates(tuning)
    if slow_ppb > fast_ppb:
        return None
    points = [point.sample for point in window.points]
    anchor_ns = max(points[-1].local_ns, latest[-1].local_ns)
    lows_ns, highs_ns = [], []
    for local_ns, offset_ns, delay_ns, error_ns in (*points, *latest):
        age_ns = anchor_ns - local_ns
        half_ns = (delay_ns + 1) // 2 + error_ns
        lows_ns.append(offset_ns - half_ns + age_ns * slow_ppb // BILLION)
        highs_ns.append(offset_ns + half_ns - -age_ns * fast_ppb // BILLION)
    low_ns, high_ns = max(lows_ns), min(highs_ns)
    if low_ns > high_ns:
        return None
    rate_ppb = max(slow_ppb, min(rate_ppb, fast_ppb))
    carried_ns = sorted(
        point.offset_ns + (anchor_ns - point.local_ns) * rate_ppb // BILLION
        for point in points[-OFFSET_POINTS:]
    )
    offset_ns = max(low_ns, min(_middle(carried_ns), high_ns))
    return _Line(anchor_ns, low_ns, offset_ns, high_ns, slow_ppb, rate_ppb, fast_ppb)


@dataclass(slots=True)
class _Point:
    """A sample in the window, and its slopes to the others in ppb."""

    sample: Sample
    slopes: list[int]  # to all others, sorted
    slows: list[int]  # lower bounds with each earlier point, in their order
    fasts: list[int]  # upper bounds, likewise
    slow: int = -ANY_PPB  # the greatest of slows
    fast: int = ANY_PPB  # the least of fasts


class _Window:
    """Points in order of time; a point that comes or goes costs one slope to each other."""

    __slots__ = ("points",)

    def __init__(self, samples: Sequence[Sample] = ()) -> None:
        self.points: list[_Point] = []
        for sample in samples:
            self.add(sample)

    def add(self, sample: Sample) -> None:
        """Add a later sample."""
        new = _Point(sample, [], [], [])
        half_ns = sample.half_ns
        for point in self.points:
            earlier = point.sample
            span_ns = sample.local_ns - earlier.local_ns
            moved = (sample.offset_ns - earlier.offset_ns) * BILLION
            halves = (half_ns + earlier.half_ns) * BILLION
            slope = moved // span_ns
            insort(point.slopes, slope)
            new.slopes.append(slope)
            new.slows.append((moved - halves) // span_ns)
            new.fasts.append(-((-moved - halves) // span_ns))
        if self.points:
            new.slopes.sort()
            new.slow, new.fast = max(new.slows), min(new.fasts)
        self.points.append(new)

    def drop(self, count: int) -> None:
        """Drop that many of the oldest; none if it is not above 0."""
        for _ in range(count):
            oldest = self.points.pop(0).sample
            for point in self.points:
                span_ns = point.sample.local_ns - oldest.local_ns
                slope = (point.sample.offset_ns - oldest.offset_ns) * BILLION // span_ns
                del point.slopes[bisect_left(point.slopes, slope)]
                if point.slows.pop(0) == point.slow:
                    point.slow = max(point.slows, default=-ANY_PPB)
                if point.fasts.pop(0) == point.fast:
                    point.fast = min(point.fasts, default=ANY_PPB)

    def rates(self, tuning: Tuning) -> tuple[int, int, int]:
        """The lower bound of the rate, its estimate, and its upper bound, in ppb.

        The estimate is Siegel's: of each point the median slope to all others, of these the median.
        """
        points = self.points
        slow_ppb = max(point.slow for point in points) - tuning.wander_ppb
        fast_ppb = min(point.fast for point in points) + tuning.wander_ppb
        rate_ppb = 0
        if len(points) > 1:
            rate_ppb = _middle(sorted(_middle(point.slopes) for point in points))
        return max(slow_ppb, -tuning.rate_ppb_max), rate_ppb, min(fast_ppb, tuning.rate_ppb_max)


def _middle(ordered: list[int]) -> int:
    """The median of sorted numbers; of an even number of them rounded down."""
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) // 2


def _ceil(number: int, by: int) -> int:
    return -(-number // by)
