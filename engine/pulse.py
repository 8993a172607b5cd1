"""What the pulse offers to the turn: letting events out, at once or on their instant.

Real: `_pulse.pyx`, a thread of C. Virtual: `edgenode/virtual.py`. One suite runs on both:
`tests/model/test_pulse_contract.py`.

A counter is a row of `COUNTERS_ROW` numbers, one row a tenant: the first counts all its events, the
others those of one type each. They are counted as they leave, whether or not somebody wanted them,
and stand in the stamp.
"""

from __future__ import annotations

from typing import Protocol

COUNTERS_ROW = 256
COUNTERS = 4_096
SLOTS = 131_072  # events under way at one time


# An expiry that waits for its instant: its due on BOOTTIME; seq; due in UTC; whether it is due by
# the wall clock, and moves with it; whether it is a misfire; topic and body, if they are wanted. A
# plain tuple, as one is made for each fire.
Release = tuple[int, int, int, bool, bool, bytes, bytes | None]

Left = tuple[int, int, int, bool]  # seq, fired_ns (UTC), late_ns, misfire


class Outlet(Protocol):
    """The way of events that leave at once."""

    def send(self, seq: int, counter: int, topic: bytes, body: bytes) -> bool:
        """Let one event out. False: no room now, ask again."""

    def tally(self, counter: int, count: int) -> bool:
        """Count events that nobody wants, in their place among the others. False: no room now."""

    def beat(self, topic: bytes, body: bytes) -> bool:
        """Let out what has no number: a heartbeat. False: no room now."""

    def flush(self) -> None:
        """Have what was handed over be seen at once: after a batch, as a wake-up costs some us."""

    def counts(self, row: int) -> list[int]:
        """A tenant's counters, as far as its events have left."""

    def subscriptions(self) -> list[bytes]:
        """Subscriptions that came since the last time: b"\\1prefix", or b"\\0prefix" for an end."""


class Releases(Protocol):
    """The way of expiries: each leaves at its instant, once, never early, and comes back."""

    held_count: int  # not taken back yet

    def hold(self, release: Release, counter: int) -> bool:
        """Take one that is durable; it leaves at once if it is due. False: no room now."""

    def take(self) -> list[Left]:
        """Those that have left since the last time, in the order in which they left."""

    def move(self, by_ns: int) -> None:
        """UTC was set: those of the wall clock are due `by_ns` later (negative: earlier)."""

    def clear(self) -> None:
        """Forget those that have not left; `take` gives those that have."""

    def fileno(self) -> int:
        """A descriptor that is readable when there is much to take, or a subscription; -1: none."""
