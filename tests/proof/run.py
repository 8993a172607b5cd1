"""The regime: every part of it, one after the other, and what came of it into docs/evidence.md.

    python -m tests.proof.run [--hours H] [--seed N] [--only PART] [--small]

Ten minutes unless told otherwise. Each part plants its bug first and must catch it, prints its seed
first and the command that repeats it last. A run writes one file into `results/`; docs/evidence.md
is made from all of them, and has nothing in it that was written by hand.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.proof import (
    evidence,
    flips,
    fscuts,
    fuzzed,
    kills,
    lost_writes,
    powercut,
    shim,
    simulated,
)
from tests.proof.outcome import Outcome, Part

RUN_S = 600.0
SMALL_PART_S = 2.0
FAULTS_SHOWN = 20


class Entry(NamedTuple):
    """One line of the table. share: of the time, as weight."""

    name: str
    share: float
    part: Part


# The table of the regime. To add a part: a function as `outcome` describes it, and a line here.
PARTS = [
    Entry("crash-states", 4, powercut.part),
    Entry("bit-flips", 2, flips.part),
    Entry("kills", 4, kills.part),
    Entry("fs-cuts", 2, fscuts.part),
    Entry("lost-writes", 2, lost_writes.part),
    Entry("simulation", 3, simulated.part),
    Entry("fuzzing", 2, fuzzed.part),
]


def go(entry: Entry, seed: int, seconds: float) -> Outcome:
    """Run one part, and tell."""
    print(f"\n{entry.name}: seed {seed}", flush=True)
    began_s = time.monotonic()
    outcome = entry.part(seed, seconds)
    if outcome.skipped:
        print(f"skipped: {outcome.skipped}")
        return outcome
    print(f"planted and caught: {outcome.planted}")
    print(", ".join(f"{name} {value:,.0f}" for name, value in outcome.counts.items()))
    for fault in outcome.faults[:FAULTS_SHOWN]:
        print(f"FAULT {fault}")
    print(f"{len(outcome.faults)} faults in {time.monotonic() - began_s:.0f} s")
    print(f"again: {outcome.command}", flush=True)
    return outcome


def one(part: Part) -> int:
    """The command line of a part by itself; 1 if there is a fault."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 1 << 31))
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    [name] = [entry.name for entry in PARTS if entry.part.__module__.endswith(_module(part))]
    try:
        return 1 if go(Entry(name, 1, part), given.seed, given.seconds).faults else 0
    finally:
        shim.discard()


def _module(part: Part) -> str:
    """The module of a part that is run as a program is called __main__; its file tells."""
    return Path(part.__code__.co_filename).stem


def main(words: list[str]) -> int:
    """Run; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=RUN_S / 3600)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 1 << 31))
    parser.add_argument("--only", choices=[entry.name for entry in PARTS])
    parser.add_argument("--small", action="store_true", help="a few seconds; writes nothing")
    given = parser.parse_args(words)
    print(f"seed {given.seed}", flush=True)
    entries = [entry for entry in PARTS if given.only in (None, entry.name)]
    weight = sum(entry.share for entry in entries)
    outcomes = []
    try:
        for at, entry in enumerate(entries):
            seconds = SMALL_PART_S if given.small else 3600 * given.hours * entry.share / weight
            outcomes.append(go(entry, given.seed + 1000 * at, seconds))
    finally:
        shim.discard()
    command = "make proof" if not words else f"python -m tests.proof.run {' '.join(words)}"
    if not given.small:
        evidence.keep(given.seed, command, outcomes)
        evidence.write()
    print(f"\nagain: python -m tests.proof.run --seed {given.seed} {' '.join(words)}")
    return 1 if any(outcome.faults for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
