"""How often the regular work of a node is done, and when it is due next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Pace(NamedTuple):
    """How often the regular work is done (ns)."""

    heartbeat: int = 1_000_000_000
    clock: int = 1_000_000_000
    upkeep: int = 1_000_000_000
    anchor: int = 600_000_000_000


@dataclass(slots=True)
class Times:
    """When the regular work is due next (steady ns)."""

    heartbeat: int = 0
    clock: int = 0
    upkeep: int = 0
    anchor: int = 0
    beat: int = 0  # when the last heartbeat left

    def next(self) -> int:
        """The earliest of them."""
        return min(self.heartbeat, self.clock, self.upkeep)
