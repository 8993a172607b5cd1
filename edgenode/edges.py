"""What the loop stands on: store, doors, the events that wait for their instant, waiting itself.

Real: `doors/zeromq.py`, `doors/events.py` and `process.py`. Virtual: `virtual.py`.
"""

from __future__ import annotations

from typing import Protocol

from edgenode.call import Answer, Frames
from edgenode.principal import Principal
from engine.pulse import Left
from engine.store import Log, LogReader, Tables, TablesReader


class StoreLog(Log, LogReader, Protocol):
    """The log, both ways."""


class StoreTables(Tables, TablesReader, Protocol):
    """The tables, both ways."""


class Doors(Protocol):
    """Where requests come from, and where answers and events go."""

    def drain(self, limit: int) -> list[tuple[int, Frames, Principal]]:
        """Requests that have come: (door, frames, who asks); at most `limit` a door."""

    def pending(self) -> bool:
        """Whether something has come that was not drained: their descriptors tell only changes."""

    def send(self, answers: list[Answer]) -> None:
        """Send answers; one whose peer is gone or full is dropped and counted."""

    def newcomers(self) -> bool:
        """Whether somebody has subscribed since the last time this was asked."""

    def dropped(self) -> dict[str, int]:
        """What could not be sent since the doors were opened."""

    def heartbeat(
        self, tenant: str, epoch: int, floor: int, now_ns: int, clock_error_us: int | None
    ) -> None:
        """Publish the heartbeat of a tenant."""


class Events(Protocol):
    """The events door, as far as expiries go that were handed to it."""

    @property
    def is_full(self) -> bool:
        """Whether something waits for room."""

    @property
    def held_count(self) -> int:
        """Expiries that were handed over and have not been taken back."""

    def flush(self) -> None:
        """Have what was handed over be seen at once."""

    def retry(self) -> None:
        """Hand over what waited for room."""

    def take(self) -> list[Left]:
        """Those that have left since the last time."""

    def move(self, by_ns: int) -> None:
        """UTC was set: expiries of the wall clock are due `by_ns` later."""

    def clear(self) -> None:
        """Forget those that have not left."""


class Sleeper(Protocol):
    """Waits for the doors and the store."""

    def wait(self, boot_ns: int) -> bool:
        """Until something is readable or BOOTTIME has reached `boot_ns` (negative: no end); whether
        UTC was set."""
