"""How far ahead of its instant a fire is committed: long enough for nearly every commit.

The lead is the p99.9 of the recent times from a fire's decision to its durability, widened by a
tenth, between lead_min and lead_max. It follows a rise at once, and forgets it after one to two
GENERATIONs of samples: a disk has bad spells, and what it did half a minute ago it will do again.
"""

from __future__ import annotations

from edgenode.metrics import Histogram

FIRST_NS = 25_000_000  # before anything is known of the disk
GENERATION = 16_384  # weights of samples: some half a minute of steady fires
WEIGHT_NS = 1_000_000
QUANTILE = 0.999
TIGHTEN_EVERY = 256  # samples between two looks at whether it may be shorter


class Lead:
    """Pure; times in ns, kept in buckets of 3 %."""

    def __init__(self, lowest_ns: int, highest_ns: int) -> None:
        self._lowest_ns = lowest_ns
        self._highest_ns = highest_ns
        self._older, self._newer = Histogram(), Histogram()
        self._since = 0
        self.ns = min(max(FIRST_NS, lowest_ns), highest_ns)

    def feed(self, took_ns: int) -> None:
        """One turn that held a fire took this long from the decision to the disk."""
        if self._newer.count >= GENERATION:
            self._older, self._newer = self._newer, Histogram()
        self._newer.record(took_ns, 1 + max(took_ns, 0) // WEIGHT_NS)
        self._since += 1
        if self._since >= TIGHTEN_EVERY or self._bounded(took_ns) > self.ns:
            self._since = 0
            longest_ns = max(self._older.quantile(QUANTILE), self._newer.quantile(QUANTILE))
            self.ns = self._bounded(longest_ns)

    def _bounded(self, took_ns: int) -> int:
        return min(max(took_ns + took_ns // 10, self._lowest_ns), self._highest_ns)
