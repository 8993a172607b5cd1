"""The events door: who listens for what, the numbers on every event, and what is to be sent.

The live feed may lose messages, and every loss can be seen: each event is counted for its tenant
and for its type whether or not anybody listens, and carries both numbers. Who finds a gap, or a
heartbeat that counts further than was heard, replays from the log.

Of the subscriptions only their presence is kept. libzmq tells of each subscriber to a prefix that
comes (XPUB_VERBOSE) and of the last one gone, exactly, however often a peer repeats itself or
vanishes; asked to tell of all that go (XPUB_VERBOSER) it tells each repetition but one end, and
counts of them never come down to zero.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

import orjson

from minoots.wire.times import format_instant

DRAIN_MAX = 1_000  # subscriptions taken in one go
SUBSCRIPTIONS_MAX = 10_000  # prefixes remembered; with more, everything is wanted
WANTED_MAX = 4_096  # answers of `wanted` remembered
QUEUE_MAX = 1_024  # events queued; at this they are sent without waiting for `flush`

SUBSCRIBE, UNSUBSCRIBE = 1, 0

_stamp = struct.Struct(">4q").pack
_NO_STAMP = _stamp(0, 0, 0, 0)


class Outlet(Protocol):
    """An XPUB socket's mailbox (`_mailbox.Mailbox`)."""

    @property
    def dropped_full(self) -> int:
        """How often a subscriber fell behind and began to lose events."""

    def drain(self, limit: int, frames_max: int = ...) -> list[tuple[bytes, ...]]:
        """Subscriptions that came."""

    def send(self, messages: list[tuple[bytes, ...]]) -> int:
        """Send to everybody who has subscribed and can take it."""


def _anybody(prefix: bytes) -> bool:
    return True


class EventsDoor:
    """Counts, queues and sends live events. `boot` names this start of the node.

    admit: whether a subscription to a prefix may count; a door with keys refuses the rest to libzmq
    as well, which needs XPUB_MANUAL.
    """

    def __init__(
        self, outlet: Outlet, boot: str = "", admit: Callable[[bytes], bool] = _anybody
    ) -> None:
        self.boot = boot
        self._outlet = outlet
        self._admit = admit
        self._queue: list[tuple[bytes, ...]] = []
        self._totals: dict[str, int] = {}
        self._ordinals: dict[str, dict[str, int]] = {}
        self._prefixes: set[bytes] = set()
        self._untracked_count = 0
        self._wanted: dict[bytes, bool] = {}
        self._newcomers = False
        self.take_subscriptions()

    @property
    def subscriptions_count(self) -> int:
        """Different prefixes that are subscribed to."""
        return len(self._prefixes) + self._untracked_count

    @property
    def dropped_full(self) -> int:
        """How often a subscriber fell behind and began to lose events."""
        return self._outlet.dropped_full

    def take_subscriptions(self) -> None:
        """Take note of subscriptions that came and went; `wanted` goes by them from then on."""
        while came := self._outlet.drain(DRAIN_MAX, 2):
            for frames in came:
                if frames[0][:1] in (b"\0", b"\1") and self._admit(frames[0][1:]):
                    self._note(frames[0][0], frames[0][1:])
            self._wanted.clear()

    def newcomers(self) -> bool:
        """Whether somebody has subscribed since the last time this was asked."""
        came, self._newcomers = self._newcomers, False
        return came

    def _note(self, kind: int, prefix: bytes) -> None:
        if kind == SUBSCRIBE:
            self._newcomers = True
            if len(self._prefixes) < SUBSCRIPTIONS_MAX:
                self._prefixes.add(prefix)
            else:
                self._untracked_count += 1
        elif prefix in self._prefixes:
            self._prefixes.remove(prefix)
        elif self._untracked_count:
            self._untracked_count -= 1

    def wanted(self, topic_prefix: bytes) -> bool:
        """Whether a subscription could match a topic under this prefix. 0.1 us if asked before."""
        known = self._wanted.get(topic_prefix)
        if known is None:
            known = self._untracked_count > 0 or any(
                prefix.startswith(topic_prefix) or topic_prefix.startswith(prefix)
                for prefix in self._prefixes
            )
            if len(self._wanted) >= WANTED_MAX:
                self._wanted.clear()
            self._wanted[topic_prefix] = known
        return known

    def publish(
        self, tenant: str, type: str, topic: bytes, seq: int, fired_ns: int, body: bytes | None
    ) -> None:
        """Count one event, and queue it unless nobody wanted its body.

        type: short. fired_ns: UTC, the instant it leaves; 0 where nothing fired. 1 us.
        """
        total = self._totals[tenant] = self._totals.get(tenant, 0) + 1
        ordinals = self._ordinals.get(tenant)
        if ordinals is None:
            ordinals = self._ordinals[tenant] = {}
        ordinal = ordinals[type] = ordinals.get(type, 0) + 1
        if body is not None:
            self._queue.append((topic, _stamp(seq, fired_ns, total, ordinal), body))
            if len(self._queue) >= QUEUE_MAX:
                self._send()

    def heartbeat(
        self,
        tenant: str,
        *,
        epoch: int,
        floor: int,
        now_ns: int,
        clock_error_us: int | None = None,
    ) -> None:
        """Queue the tenant's heartbeat: up to where every event has left, and how many have.

        clock_error_us: None while it is not known.
        """
        beat = {
            "epoch": epoch,
            "boot": self.boot,
            "floor": floor,
            "total": self._totals.get(tenant, 0),
            "ordinals": self._ordinals.get(tenant, {}),
            "now": format_instant(now_ns),
            "clock_error_us": clock_error_us,
        }
        self._queue.append((f"t/{tenant}/~/hb".encode(), _NO_STAMP, orjson.dumps(beat)))

    def flush(self) -> None:
        """Send what is queued."""
        if self._queue:
            self._send()

    def _send(self) -> None:
        queue, self._queue = self._queue, []
        self._outlet.send(queue)
