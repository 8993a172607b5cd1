"""How far ahead of its instant a fire is committed: long enough for nearly every commit.

The lead is the p99.9 of the recent times from a fire's decision to its durability, widened by a
tenth, between lead_min and lead_max. It follows a rise at once and a fall over some 500 samples.
"""

from __future__ import annotations

from collections import deque

FIRST_NS = 25_000_000  # before anything is known of the disk
SAMPLES_MAX = 1_024
QUANTILE_PER_MILLE = 999
TIGHTEN_EVERY = 128


class Lead:
    """Pure; times in ns."""

    def __init__(self, lowest_ns: int, highest_ns: int) -> None:
        self._lowest_ns = lowest_ns
        self._highest_ns = highest_ns
        self._samples: deque[int] = deque(maxlen=SAMPLES_MAX)
        self._since = 0
        self.ns = min(max(FIRST_NS, lowest_ns), highest_ns)

    def feed(self, took_ns: int) -> None:
        """One turn that held a fire took this long from the decision to the disk."""
        self._samples.append(took_ns)
        self._since += 1
        if self._since >= TIGHTEN_EVERY or self._bounded(took_ns) > self.ns:
            self._since = 0
            ranked = sorted(self._samples)
            at = min(len(ranked) * QUANTILE_PER_MILLE // 1_000, len(ranked) - 1)
            self.ns = self._bounded(ranked[at])

    def _bounded(self, took_ns: int) -> int:
        return min(max(took_ns + took_ns // 10, self._lowest_ns), self._highest_ns)
