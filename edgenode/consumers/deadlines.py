"""When an acknowledgement, a delay or a long poll runs out: a timing wheel of their own.

The same wheel that timers are on, but not the same one: a timer is handed over a lead ahead of its
instant, so that it can be committed; these must never run out early, and nothing waits for them on
another thread.
"""

from __future__ import annotations

from array import array
from typing import Generic, TypeVar

from engine._wheel import Wheel
from engine.clock import tick_at_or_after, tick_floor

T = TypeVar("T")

TICK_NS = 1 << 20
ROOM = 1 << 26  # address space: a thousand consumers that hold as much as they may
BATCH = 1_024  # that run out at one time are told in one go


class Deadlines(Generic[T]):
    """Deadlines of things of one type. Late by up to a tick, never early. O(1) each."""

    def __init__(self, now_ns: int) -> None:
        self._wheel = Wheel(capacity=ROOM, now_tick=tick_floor(now_ns, TICK_NS))
        self._of: dict[int, T] = {}
        self._out = array("Q", bytes(8 * BATCH))

    def arm(self, due_ns: int, what: T) -> int:
        """Have `what` run out at a steady instant; the handle to disarm it by."""
        handle = self._wheel.arm(max(tick_at_or_after(due_ns, TICK_NS), 0))
        self._of[handle] = what
        return handle

    def disarm(self, handle: int) -> None:
        """It does not run out; nothing happens if it has."""
        if self._of.pop(handle, None) is not None:
            self._wheel.disarm(handle)

    def expire(self, now_ns: int) -> list[T]:
        """What has run out since the last time; at most BATCH: ask again until nothing has."""
        count = self._wheel.advance(
            max(tick_floor(now_ns, TICK_NS), self._wheel.now_tick), self._out
        )
        return [self._of.pop(handle) for handle in self._out[:count]]

    @property
    def next_ns(self) -> int | None:
        """The steady instant at which something may run out next; None if there is nothing."""
        tick = self._wheel.next_tick()
        return None if tick is None else tick * TICK_NS
