"""A node for tests, in this process and on a virtual clock: a year passes in moments.

    with TestNode() as node:
        node.client.schedule("tea", after="4m")
        node.advance("5m")
        assert [event.name for event in node.expired] == ["tea"]

The node is the real one, with other edges: what it decides, refuses and publishes is what a real
one would. It is found by name (`edgenode.virtual`), so this package depends on nothing of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from importlib import import_module
from types import TracebackType
from typing import Protocol

import msgspec

from minoots.arguments import Duration, Instant, duration_text, instant_text
from minoots.client import Client
from minoots.connect import Doors
from minoots.event import Event, Stamp, as_datetime, read_event
from minoots.requests import RETRIES_DEFAULT
from minoots.wire.frames import STAMP_BYTES
from minoots.wire.problems import MinootsError
from minoots.wire.times import parse_duration, parse_instant

NODE_MODULE, NODE_CLASS = "edgenode.virtual", "VirtualNode"
_ENDPOINT = "virtual"


class Node(Protocol):
    """What a virtual node can do."""

    @property
    def now_ns(self) -> int:
        """UTC on the virtual clock."""
        ...

    def request(self, frames: list[bytes]) -> list[list[bytes]]:
        """Ask, and the answers."""
        ...

    def advance(self, ns: int) -> list[list[bytes]]:
        """Let time pass, and the live frames of what left meanwhile."""
        ...

    def close(self) -> None:
        """Leave."""
        ...


class TestNode:
    """A node whose time is moved by `advance` alone; also a context manager. For one thread.

    start: UTC at the beginning; without it, the node's own choice, the same every time. A client
    of it is `client`; `events` is what left the node so far, in the order in which it left.
    """

    __test__ = False  # it is a tool for tests, not a test

    def __init__(self, start: Instant | None = None) -> None:
        kind = getattr(import_module(NODE_MODULE), NODE_CLASS)
        self.node: Node = kind() if start is None else kind(parse_instant(instant_text(start)))
        self._events: list[Event] = []
        self._transport = VirtualTransport(self.node, self._events)
        self.client = _client(self._transport)

    @property
    def now_ns(self) -> int:
        """UTC on the virtual clock, ns since the epoch; `now` is the same as a datetime."""
        return self.node.now_ns

    @property
    def now(self) -> object:
        """UTC on the virtual clock as an aware datetime (microseconds)."""
        return as_datetime(self.node.now_ns)

    @property
    def events(self) -> list[Event]:
        """What has left the node, in the order in which it left."""
        self._transport.collect(0)
        return self._events

    @property
    def expired(self) -> list[Event]:
        """Those of the events that are expirations."""
        return [event for event in self.events if event.type == "timer.expired"]

    def advance(self, by: Duration) -> list[Event]:
        """Let time pass; the events that left meanwhile.

        Cost: what the node would do, not how long it takes.
        """
        self._transport.collect(0)
        known = len(self._events)
        self._transport.collect(parse_duration(duration_text(by)))
        return self._events[known:]

    def close(self) -> None:
        """Leave the node; a second time does nothing."""
        self.client.close()
        self.node.close()

    def __enter__(self) -> TestNode:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def client_of(node: Node) -> Client:
    """A client of a node in this process; what it refuses once it refuses again."""
    return _client(VirtualTransport(node, []), retries=0)


def _client(transport: VirtualTransport, retries: int = RETRIES_DEFAULT) -> Client:
    doors = Doors(control=_ENDPOINT, stream=_ENDPOINT, events=_ENDPOINT)
    return Client(transport=transport, locate=lambda: doors, retries=retries)


class VirtualTransport:
    """A client's transport to a node in the same process; nothing waits here."""

    def __init__(self, node: Node, events: list[Event]) -> None:
        self._node = node
        self._events = events
        self._replies: deque[list[bytes]] = deque()
        self._feeds: list[VirtualFeed] = []
        self._counts: dict[str, int] = {}
        self._epoch = 0

    def collect(self, ns: int) -> None:
        """Advance the node, and hand out what left."""
        for frames in self._node.advance(ns):
            if len(frames) != 3 or frames[0].endswith(b"/~/hb"):
                continue
            stamp = Stamp.read(frames[1])
            event = read_event(frames[2], stamp)
            self._epoch = event.epoch
            self._counts[""] = stamp.ordinal
            self._counts[event.type] = stamp.ordinal_of_type
            self._events.append(event)
            for feed in self._feeds:
                feed.offer(frames)

    def beat(self) -> list[bytes]:
        """A heartbeat as a node sends it; on virtual time, whoever subscribes gets one."""
        counts = dict(self._counts)
        body = {
            "epoch": self._epoch or 1,
            "boot": "virtual",
            "floor": 0,
            "total": counts.pop("", 0),
            "ordinals": counts,
            "now": self._node.now_ns,
        }
        return [b"t/default/~/hb", bytes(STAMP_BYTES), msgspec.json.encode(body)]

    def send(self, endpoint: str, frames: list[bytes]) -> None:
        replies = self._node.request(frames)
        if not replies:
            raise MinootsError(
                "the node answers when time has passed; pull with wait=0, and let time pass with "
                "advance()"
            )
        self._replies.extend(replies)

    def receive(self, timeout_s: float) -> list[bytes] | None:
        return self._replies.popleft() if self._replies else None

    def reset(self, endpoint: str) -> None:
        self._replies.clear()

    def feed(self, endpoint: str, topics: Iterable[bytes]) -> VirtualFeed:
        self.collect(0)
        made = VirtualFeed(self, tuple(topics))
        self._feeds.append(made)
        made.offer(self.beat())
        return made

    def leave(self, feed: VirtualFeed) -> None:
        """Forget a feed."""
        if feed in self._feeds:
            self._feeds.remove(feed)

    def now_ns(self) -> int:
        return self._node.now_ns

    def close(self) -> None:
        self._feeds.clear()
        self._replies.clear()


class VirtualFeed:
    """Live events of a node in the same process; waiting for what only `advance` brings fails."""

    def __init__(self, transport: VirtualTransport, topics: tuple[bytes, ...]) -> None:
        self._transport = transport
        self._topics = topics
        self._waiting: deque[list[bytes]] = deque()

    def offer(self, frames: list[bytes]) -> None:
        """Take a message if it is of a topic that is subscribed to."""
        if frames[0].startswith(self._topics):
            self._waiting.append(frames)

    def receive(self, timeout_s: float) -> list[bytes] | None:
        self._transport.collect(0)
        if self._waiting:
            return self._waiting.popleft()
        if timeout_s > 0:
            raise MinootsError("no event has left the node; let time pass with advance()")
        return None

    def close(self) -> None:
        self._transport.leave(self)
        self._waiting.clear()
