"""Simulated years: whole nodes, clients and consumers on virtual time, disk and sockets.

    python -m tests.proof.simulated --seed N --seconds S

Seed after seed of `tests/sim/run.py`, each twice, until the time is spent.
"""

from __future__ import annotations

import sys
import time

from tests.proof.outcome import Outcome, command
from tests.sim.run import SMALL, YEAR, Size, judge, plant_one

LONG = Size(8.0, 20)  # idle years, incidents
LONG_S = 30.0  # a budget from which on runs are long


def part(seed: int, seconds: float) -> Outcome:
    """See the module."""
    outcome = Outcome("simulation", seed, command("simulated", seed, seconds))
    until_s = time.monotonic() + seconds
    outcome.planted = plant_one(seed)
    at, node_ns, size = seed, 0, LONG if seconds >= LONG_S else SMALL
    while at == seed or time.monotonic() < until_s:
        verdict, again = judge(at, size=size), judge(at, size=size)
        outcome.faults += [f"seed {at}: {fault}" for fault in verdict.faults[:3]]
        if again.trace != verdict.trace:
            outcome.faults.append(f"seed {at}: its trace is another the second time")
        node_ns += verdict.node_ns
        outcome.add(seeds=1, **{name.replace(" ", "_"): n for name, n in verdict.counts.items()})
        at += 1
    outcome.add(node_years=round(node_ns / YEAR, 1))
    return outcome


if __name__ == "__main__":
    from tests.proof.run import one

    sys.exit(one(part))
