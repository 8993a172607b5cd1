"""How far ahead of its instant a fire is committed: long enough for nearly every commit.

The lead is the p99.9 of the recent times from a fire's decision to its durability, widened by a
tenth, between lead_min and lead_max. It follows a rise at once, and forgets it after one to two
GENERATIONs of samples: a disk has bad spells, and what it did a minute ago it will do again.
"""

from __future__ import annotations

from edgenode.metrics import Histogram

FIRST_NS = 22_000_000  # and a tenth more: before enough is known of the disk
GENERATION = 65_536  # weights of samples: a minute or two of steady fires
WEIGHT_NS = 1_000_000
QUANTILE = 0.999
LEARN = 4_096  # before so much is known it does not become shorter than FIRST_NS
TIGHTEN_EVERY = 256  # samples between two looks at whether it may be shorter


class Lead:
    """Pure; times in ns, kept in buckets of 3 %."""

    def __init__(self, lowest_ns: int, highest_ns: int) -> None:
        self._lowest_ns = lowest_ns
        self._highest_ns = highest_ns
        self._older, self._newer = Histogram(), Histogram()
        self._since = 0
        self.ns = self._bounded(FIRST_NS)

    def feed(self, took_ns: int) -> None:
        """One turn that held a fire took this long from the decision to the disk."""
        if self._newer.count >= GENERATION:
            self._older, self._newer = self._newer, Histogram()
        self._newer.record(took_ns, 1 + max(took_ns, 0) // WEIGHT_NS)
        self._since += 1
        if self._since >= TIGHTEN_EVERY or self._bounded(took_ns) > self.ns:
            self._since = 0
            longest_ns = max(self._older.quantile(QUANTILE), self._newer.quantile(QUANTILE))
            if self._older.count + self._newer.count < LEARN:
                longest_ns = max(longest_ns, FIRST_NS)
            self.ns = self._bounded(longest_ns)

    def _bounded(self, took_ns: int) -> int:
        return min(max(took_ns + took_ns // 10, self._lowest_ns), self._highest_ns)
