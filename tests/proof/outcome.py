"""What a part of the regime says of a run: the same for all of them, so that one table holds them.

A part is a function of a seed and a budget of seconds: it plants its bug, works until the budget is
spent, and returns an `Outcome`. A budget of two seconds is to see that the part runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Outcome:
    """name: of the part. command: repeats it. counts: what was done, in the words of evidence.md.
    planted: the bug that was planted and caught. faults: what is wrong with the product; empty if
    nothing is. skipped: why it did not run at all."""

    name: str
    seed: int
    command: str
    counts: dict[str, float] = field(default_factory=dict)
    planted: str = ""
    faults: list[str] = field(default_factory=list)
    skipped: str = ""

    def add(self, **counts: float) -> None:
        """Add to the counts."""
        for name, value in counts.items():
            words = name.replace("_", " ")
            self.counts[words] = self.counts.get(words, 0) + value

    def most(self, **counts: float) -> None:
        """Keep the largest."""
        for name, value in counts.items():
            words = name.replace("_", " ")
            self.counts[words] = max(self.counts.get(words, 0), value)


Part = Callable[[int, float], Outcome]


def command(module: str, seed: int, seconds: float) -> str:
    """The one command that repeats a part."""
    return f"python -m tests.proof.{module} --seed {seed} --seconds {seconds:.0f}"
