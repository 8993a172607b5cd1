"""From durable events to the live feed: what is told at once, and what waits for its instant.

The publisher reads records, never decisions: what is published is what the log says. An expiration
goes to the release queue, an edge of its own; a C thread can take its place. Pure but for the feed
and the queue that it is given.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple, Protocol

from edgenode import encode
from edgenode._encode import Encoder
from edgenode.encode import Identity
from engine.record import (
    EVENT_HEAD,
    FLAG_MISFIRE,
    Kind,
)


class Feed(Protocol):
    """The events door (`edgenode.doors.events.EventsDoor`)."""

    def wanted(self, topic_prefix: bytes) -> bool:
        """Whether any subscription could match a topic under this prefix."""

    def publish(
        self, tenant: str, type: str, topic: bytes, seq: int, fired_ns: int, body: bytes | None
    ) -> None:
        """Count one event, and queue its frames unless `body` is None."""


class Release(NamedTuple):
    """An expiration that waits for its instant; in the order of the queue."""

    due_ns: int  # steady
    seq: int
    due_utc_ns: int
    misfire: bool
    topic: bytes
    body: bytes | None


class ReleaseQueue:
    """Holds releases until their instant. The wake-up in time is the loop's."""

    def __init__(self) -> None:
        self._heap: list[Release] = []

    def add(self, release: Release) -> None:
        """Take one that is durable."""
        heapq.heappush(self._heap, release)

    def take_due(self, now_ns: int, limit: int) -> list[Release]:
        """Those whose instant has come, earliest first, at most `limit`."""
        heap = self._heap
        due: list[Release] = []
        while heap and heap[0].due_ns <= now_ns and len(due) < limit:
            due.append(heapq.heappop(heap))
        return due

    def next_ns(self) -> int | None:
        """The earliest instant waited for (steady); None if there is none."""
        return self._heap[0].due_ns if self._heap else None

    def __len__(self) -> int:
        return len(self._heap)


_TYPE_BYTES = {kind: name.encode() for kind, name in encode.KIND_NAMES.items()}


class Publisher:
    """Reads each durable record once, in order of seq."""

    def __init__(self, identity: Identity, feed: Feed, queue: ReleaseQueue) -> None:
        self._identity = identity
        self._encoder = Encoder(*identity)
        self._feed = feed
        self._queue = queue
        self._prefixes = {
            kind: b"t/%b/e/%b/" % (identity.tenant.encode(), name)
            for kind, name in _TYPE_BYTES.items()
        }

    def settled(self, first_seq: int, events: list[bytes], shift_ns: int) -> None:
        """Take the events of a commit that is durable now. shift_ns: UTC minus steady."""
        for at, data in enumerate(events):
            self.tell(first_seq + at, data, shift_ns)

    def tell(self, seq: int, data: bytes, shift_ns: int) -> None:
        """Publish one event, or queue it for its instant if it is an expiration."""
        kind = data[5]
        wanted = self._feed.wanted(self._prefixes[kind])
        topic, body = b"", None
        if wanted:
            topic, body = self._encoder.topic(data), self._encoder.event(seq, data)
        if kind == Kind.EXPIRED:
            _, _, _, flags, _, _, due_utc_ns, _, _ = EVENT_HEAD.unpack_from(data)
            misfire = bool(flags & FLAG_MISFIRE)
            due_ns = due_utc_ns - shift_ns
            self._queue.add(Release(due_ns, seq, due_utc_ns, misfire, topic, body))
        else:
            self._feed.publish(self._identity.tenant, encode.KIND_NAMES[kind], topic, seq, 0, body)

    def release(self, release: Release, fired_ns: int) -> None:
        """Publish an expiration whose instant has come. fired_ns: UTC."""
        type = encode.KIND_NAMES[Kind.EXPIRED]
        self._feed.publish(
            self._identity.tenant, type, release.topic, release.seq, fired_ns, release.body
        )
