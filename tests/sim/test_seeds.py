"""A few seeds of the simulation; `make sim SEEDS=` runs as many as are asked for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.sim.run import PLANTS, Size, judge, plant_one

ONE = "from tests.sim.run import judge; print(judge(5).trace)"


PLAIN = Size(0.0, 6, consumers=False)


@pytest.mark.parametrize("seed", range(1, 4))
def test_chaos_and_then_calm(seed: int) -> None:
    verdict = judge(seed, size=PLAIN)
    again = f"python -m tests.sim.run --seed {seed} --seeds 1"
    assert verdict.faults == [], "\n".join([*verdict.said[-20:], again])
    assert verdict.counts["timers"] > 50
    assert verdict.counts["lives"] > 1


@pytest.mark.parametrize("seed", [11, 17, 18])
def test_a_sick_disk(seed: int) -> None:
    """Commits fail over and over beneath a process that lives on."""
    verdict = judge(seed, size=Size(0.0, 8, ("disk",), consumers=False))
    assert verdict.faults == [], "\n".join(verdict.said[-20:])
    assert verdict.counts["disk"] > 1


@pytest.mark.parametrize("seed", [1, 2, 5, 25])
def test_workers_on_durable_consumers(seed: int) -> None:
    """Chaos with workers that pull, fail, forget, die and come back; 1 keeps order, 5 trims,
    25 sets the clock while the log is slow."""
    verdict = judge(seed)
    again = f"python -m tests.sim.run --seed {seed} --seeds 1"
    assert verdict.faults == [], "\n".join([*verdict.said[-20:], again])
    assert verdict.counts["deliveries"] > 500
    assert verdict.counts["repeated"] > 50
    assert verdict.counts["dead letters"] > 5


def test_a_seed_is_the_same_run_in_another_process() -> None:
    """With another order of sets and dicts of text, too."""
    here = judge(5).trace
    env = {**os.environ, "PYTHONHASHSEED": "4711"}
    done = subprocess.run(
        [sys.executable, "-c", ONE], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == here
    assert judge(6).trace != here


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_bug_is_found(plant: str) -> None:
    words = {
        "forget": ("LOST", "GHOST", "ORDER"),
        "tear": ("DUPLICATE", "GHOST", "QUIET"),
        "early": ("EARLY",),
        "attempt": ("DUPLICATE",),
    }
    found = plant_one(1, plant)
    assert any(word in found for word in words[plant]), found
