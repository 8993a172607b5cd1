"""What a node counts: histograms with 3 % buckets, and counters. No clock is read here."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.pulse import Left
from engine.record import Kind

_BITS = 5  # 32 buckets for each power of two: 3 % wide
_SIZE = (64 - _BITS) << _BITS


class Histogram:
    """Counts of non-negative integers in buckets of 3 %; 0.3 us a record, 15 KB."""

    __slots__ = ("_counts", "count", "max")

    def __init__(self) -> None:
        self._counts = [0] * _SIZE
        self.count = 0
        self.max = 0

    def record(self, value: int, times: int = 1) -> None:
        """Count a value; a negative one counts as 0."""
        if value < 1 << _BITS:
            bucket = max(value, 0)
        else:
            power = value.bit_length() - _BITS - 1
            bucket = (power << _BITS) + (value >> power)
        self._counts[bucket] += times
        self.count += times
        if value > self.max:
            self.max = value

    def quantile(self, q: float) -> int:
        """The lower edge of the bucket that holds the q-quantile; 0 for an empty histogram."""
        left = q * self.count
        for bucket, count in enumerate(self._counts):
            left -= count
            if count and left <= 0:
                power = max((bucket >> _BITS) - 1, 0)
                return min(bucket - (power << _BITS) << power, self.max)
        return self.max

    def summary(self) -> dict[str, int]:
        """p50, p99, p999, max and count."""
        return {
            "p50": self.quantile(0.5),
            "p99": self.quantile(0.99),
            "p999": self.quantile(0.999),
            "max": self.max,
            "count": self.count,
        }


@dataclass(slots=True)
class Metrics:
    """What one run of a node counted. Durations in us unless the name says otherwise."""

    started_ns: int = 0
    fired: int = 0
    late: int = 0  # released more than LATE_US after their due
    misfires: int = 0
    skipped: int = 0  # `skipped` events; one can stand for several occurrences
    escalated: int = 0
    over_budget: dict[str, int] = field(default_factory=dict)  # by tenant
    lead_ns: int = 0
    lateness_us: Histogram = field(default_factory=Histogram)
    due_to_durable_us: Histogram = field(default_factory=Histogram)
    turn_us: Histogram = field(default_factory=Histogram)
    commit_us: Histogram = field(default_factory=Histogram)
    requests: dict[str, int] = field(default_factory=dict)
    problems: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)  # what the doors could not send

    def left(self, left: list[Left]) -> None:
        """Count expiries that have left."""
        record = self.lateness_us.record
        self.fired += len(left)
        for _, _, late_ns, misfire in left:
            record(late_ns // 1_000)
            if late_ns > LATE_NS:
                self.late += 1
            if misfire:
                self.misfires += 1

    def fires(self) -> dict[str, object]:
        """Counts of expirations that left."""
        return {
            "total": self.fired,
            "late": self.late,
            "misfires": self.misfires,
            "skipped": self.skipped,
            "escalated": self.escalated,
            "over_budget": self.over_budget,
        }

    def count_policy(self, written: Kind) -> None:
        """Count what a misfire policy had written instead of, or before, a fire."""
        if written is Kind.SKIPPED:
            self.skipped += 1
        elif written is Kind.ESCALATED:
            self.escalated += 1

    def count(self, of: dict[str, int], what: str) -> None:
        """Add one to a named counter."""
        of[what] = of.get(what, 0) + 1

    def uptime_s(self, steady_ns: int) -> int:
        """Whole seconds since the node began to serve."""
        return max(steady_ns - self.started_ns, 0) // 1_000_000_000


LATE_US = 5_000  # an expiration that left later than this counts as late
LATE_NS = LATE_US * 1_000
