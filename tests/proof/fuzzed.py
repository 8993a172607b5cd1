"""What comes from outside and from the disk, mutated: the fuzzers of `tests/fuzz`.

python -m tests.proof.fuzzed --seed N --seconds S
"""

from __future__ import annotations

import sys
import time

from tests.fuzz import sanitize
from tests.fuzz.run import keep, plant, run, ways
from tests.fuzz.targets import PLANTED, TARGETS
from tests.proof.outcome import Outcome, command

LEAST_S = 1.0  # for each way
BUILD_S = 30.0  # less is not worth a build


def part(seed: int, seconds: float) -> Outcome:
    """See the module."""
    outcome = Outcome("fuzzing", seed, command("fuzzed", seed, seconds))
    if seconds < BUILD_S:
        outcome.skipped = f"it takes {BUILD_S:.0f} s at least, as it builds with sanitizers"
        return outcome
    if not sanitize.refused():
        sanitize.build()
    outcome.planted = plant(seed, sorted(PLANTED))
    found, _ = ways([name for name in TARGETS if name not in PLANTED])
    each_s = max(seconds / len(found), LEAST_S)
    for way in found:
        began_s = time.monotonic()
        came = run(way, each_s, seed)
        outcome.add(
            executions=came.executions,
            **{f"{'C' if way.sanitized else 'Python'}_targets": 1},
            seconds=round(time.monotonic() - began_s),
        )
        if came.fault:
            outcome.faults.append(f"{way.name} ({way.says}): {came.fault}; {keep(way, came)}")
    return outcome


if __name__ == "__main__":
    from tests.proof.run import one

    sys.exit(one(part))
