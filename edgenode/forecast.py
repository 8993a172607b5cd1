"""How many fires come in each bin of a stretch of time: by reckoning, not by playing it through.

A recurring timer costs at most one look at each bin, however short its interval is. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

from engine.schedule import Occurrence, Rule


class Grid(NamedTuple):
    """Bins of `width_ns` from `from_ns` (UTC) on; the last may end beyond `to_ns`, and what
    is due there does not count."""

    from_ns: int
    to_ns: int
    width_ns: int

    @property
    def bins_count(self) -> int:
        """How many bins there are."""
        return -((self.from_ns - self.to_ns) // self.width_ns)


def add_dues(counts: list[int], grid: Grid, rule: Rule, coming: Occurrence, shift_ns: int) -> int:
    """Count the dues of a timer into the bins; what that cost, in bins that were looked at.

    coming: its next one, on its own scale. shift_ns: UTC minus that scale.
    """
    due_ns = coming.due_ns + shift_ns
    if not rule.recurring:
        if grid.from_ns <= due_ns < grid.to_ns:
            counts[(due_ns - grid.from_ns) // grid.width_ns] += 1
        return 1
    interval_ns = rule.interval_ns
    most = _before(grid.to_ns, due_ns, interval_ns)
    if rule.max_occurrences:
        most = min(most, max(rule.max_occurrences - coming.number + 1, 0))
    if rule.expires_ns:
        most = min(most, _before(rule.expires_ns, due_ns, interval_ns))
    first = _before(grid.from_ns, due_ns, interval_ns)
    if first >= most:
        return 1
    if interval_ns >= grid.width_ns:
        for at in range(first, most):
            counts[(due_ns + at * interval_ns - grid.from_ns) // grid.width_ns] += 1
        return most - first
    at_bin = (due_ns + first * interval_ns - grid.from_ns) // grid.width_ns
    done, looked = first, 0
    while done < most:
        looked += 1
        end_ns = grid.from_ns + (at_bin + 1) * grid.width_ns
        so_far = min(_before(end_ns, due_ns, interval_ns), most)
        counts[at_bin] += so_far - done
        done, at_bin = so_far, at_bin + 1
    return looked


def _before(end_ns: int, due_ns: int, interval_ns: int) -> int:
    """How many of the dues, the first at `due_ns`, are before an instant."""
    return max(-((due_ns - end_ns) // interval_ns), 0)
