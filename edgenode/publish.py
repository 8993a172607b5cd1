"""From durable events to the live feed: what is told at once, and what waits for its instant.

The publisher reads records, never decisions: what is published is what the log says. An expiry goes
to the pulse with its instant. Pure but for the feed that it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from edgenode import encode
from edgenode._encode import Encoder
from edgenode.encode import Identity
from edgenode.turns import Awaited
from engine.pulse import Release
from engine.record import Kind


class Feed(Protocol):
    """The events door (`edgenode.doors.events.EventsDoor`)."""

    def wanted(self, topic_prefix: bytes) -> bool:
        """Whether any subscription could match a topic under this prefix."""

    def publish(self, tenant: str, type: str, topic: bytes, seq: int, body: bytes) -> None:
        """Let one event out at once."""

    def tally(self, tenant: str, type: str, count: int) -> None:
        """Count events that nobody wanted."""

    def counter(self, tenant: str, type: str) -> int:
        """The counter of a tenant's events of one type."""

    def hold(self, counter: int, release: Release) -> None:
        """Let an expiry out at its instant."""

    def flush(self) -> None:
        """Have what was handed over be seen at once."""


class Publisher:
    """Reads each durable record once, in order of seq.

    boot_shift_ns: BOOTTIME minus steady, the same for one run.
    """

    def __init__(self, identity: Identity, feed: Feed, boot_shift_ns: int) -> None:
        self._tenant = identity.tenant
        self._encoder = Encoder(*identity)
        self._feed = feed
        self._boot_shift_ns = boot_shift_ns
        self._expired = feed.counter(identity.tenant, encode.KIND_NAMES[Kind.EXPIRED])
        self._prefixes = {
            kind: f"t/{identity.tenant}/e/{name}/".encode()
            for kind, name in encode.KIND_NAMES.items()
        }

    def settled(
        self, first_seq: int, events: list[bytes], shift_ns: int, awaited: Mapping[int, Awaited]
    ) -> None:
        """Take the events of a commit that is durable now. shift_ns: UTC minus steady; awaited: of
        the expiries that have not left."""
        unwanted: dict[int, int] = {}
        for seq, data in enumerate(events, first_seq):
            kind = data[5]
            if kind == Kind.EXPIRED:
                self.hold(seq, data, awaited[seq], shift_ns)
            elif kind in unwanted:  # nobody subscribes in the middle of this
                unwanted[kind] += 1
            elif not self._feed.wanted(self._prefixes[kind]):
                unwanted[kind] = 1
            else:
                if unwanted:
                    self._tally(unwanted)
                self._publish(seq, kind, data)
        if unwanted:
            self._tally(unwanted)
        self._feed.flush()

    def tell(self, seq: int, data: bytes) -> None:
        """Publish one event that is no expiry."""
        kind = data[5]
        if self._feed.wanted(self._prefixes[kind]):
            self._publish(seq, kind, data)
        else:
            self._tally({kind: 1})
        self._feed.flush()

    def _publish(self, seq: int, kind: int, data: bytes) -> None:
        topic, body = self._encoder.topic(data), self._encoder.event(seq, data)
        self._feed.publish(self._tenant, encode.KIND_NAMES[kind], topic, seq, body)

    def _tally(self, unwanted: dict[int, int]) -> None:
        """Count what nobody wants, before what somebody wants is numbered."""
        for kind, count in unwanted.items():
            self._feed.tally(self._tenant, encode.KIND_NAMES[kind], count)
        unwanted.clear()

    def hold(self, seq: int, data: bytes, awaited: Awaited, shift_ns: int) -> None:
        """Give an expiry to the pulse."""
        wanted = self._feed.wanted(self._prefixes[Kind.EXPIRED])
        due_utc_ns, misfire, topic, body = self._encoder.expiry(seq, data, wanted)
        _, due_ns, wall, _ = awaited
        boot_ns = due_ns - (shift_ns if wall else 0) + self._boot_shift_ns
        release = (boot_ns, seq, due_utc_ns, wall, misfire, topic, body)
        self._feed.hold(self._expired, release)
