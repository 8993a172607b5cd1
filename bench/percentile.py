"""Percentiles as HdrHistogram gives them: by nines, and the whole curve; over rounds of one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Samples: TypeAlias = npt.NDArray[np.int64]  # ns

LEVELS = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9}  # of each round; then their median
RARE = {"p9999": 99.99, "max": 100.0}  # of all rounds together: one round has too few samples
STEPS_A_DECADE = 12  # of the curve


def at(samples: Samples, percent: float) -> float:
    """The smallest sample (us) that `percent` of all do not exceed: never one between two."""
    return float(np.percentile(samples, percent, method="inverted_cdf")) / 1e3


def of_round(samples: Samples) -> dict[str, float]:
    """The percentiles of one round (us)."""
    return {name: round(at(samples, percent), 2) for name, percent in LEVELS.items()}


def summary(rounds: Sequence[Samples]) -> dict[str, Any]:
    """Medians over the rounds' percentiles (us), the far tail of all together, the curve.

    early: how many were below zero.
    """
    kept = [samples for samples in rounds if len(samples)]
    if not kept:
        return {"count": 0, "early": 0}
    each = [of_round(samples) for samples in kept]
    together = np.concatenate(kept)
    return {
        "count": len(together),
        "early": int((together < 0).sum()),
        **{name: round(float(np.median([one[name] for one in each])), 2) for name in LEVELS},
        **{name: round(at(together, percent), 2) for name, percent in RARE.items()},
        "p99_of_rounds": [one["p99"] for one in each],
        "curve": curve(together),
    }


def curve(samples: Samples) -> list[tuple[float, float]]:
    """Points (1 / (1 - quantile), us); the last is the greatest sample, one in all there are."""
    decades = np.log10(max(len(samples), 2))
    tails = np.logspace(0, decades, int(decades * STEPS_A_DECADE) + 2)
    points = [(round(float(x), 4), round(at(samples, 100 - 100 / x), 3)) for x in tails[:-1]]
    return [*points, (round(float(tails[-1]), 4), round(at(samples, 100), 3))]


def ratio(rounds: Sequence[Samples], floors: Sequence[Samples], percent: float) -> float | None:
    """A percentile over the floor's of the same round: the median of the rounds' ratios."""
    pairs = [(at(a, percent), at(b, percent)) for a, b in zip(rounds, floors, strict=True)]
    found = [a / b for a, b in pairs if b > 0]
    return round(float(np.median(found)), 3) if found else None
