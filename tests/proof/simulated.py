"""Simulated years: whole nodes, clients and consumers on virtual time, disk and sockets.

    python -m tests.proof.simulated --seed N --seconds S

Seed after seed of `tests/sim/run.py`, each twice, until the time is spent.
"""

from __future__ import annotations

import sys
import time

from tests.proof.outcome import Outcome, command
from tests.sim.run import YEAR, judge, plant_one


def part(seed: int, seconds: float) -> Outcome:
    """See the module."""
    outcome = Outcome("simulation", seed, command("simulated", seed, seconds))
    until_s = time.monotonic() + seconds
    outcome.planted = plant_one(seed)
    at, node_ns = seed, 0
    while at == seed or time.monotonic() < until_s:
        verdict, again = judge(at), judge(at)
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
