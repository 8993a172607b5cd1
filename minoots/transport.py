"""The one module of the client side that opens ZeroMQ sockets, and that reads the machine's clocks.

A client asks two things of its surroundings: frames to and from a door, and a feed of live events.
`Transport` is that edge; ZmqTransport is the real one, and a node on a virtual clock in the same
process is another (`minoots.testing`). A DEALER or SUB socket belongs to one thread at a time: the
clients hold a lock, or a loop, around it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import zmq

from minoots.wire.frames import BODY_BYTES_MAX
from minoots.wire.problems import Unreachable

SEND_HWM = 10_000  # requests that wait for a door before sending says so
FEED_HWM = 200_000  # live events that wait for a slow watcher before the node drops some
RECONNECT_MS, RECONNECT_MS_MAX = 50, 1_000
ALIVE_MS, ALIVE_MS_MAX = 2_000, 6_000  # ZMTP pings, and how long a silent peer is believed in
HANDSHAKE_MS = 5_000

monotonic_s = time.monotonic
wall_ns = time.time_ns


def versions() -> dict[str, str]:
    """The versions of the libraries that speak ZeroMQ."""
    return {"pyzmq": zmq.__version__, "libzmq": zmq.zmq_version()}


class Feed(Protocol):
    """Live events of some topics."""

    def receive(self, timeout_s: float) -> list[bytes] | None:
        """The next message's frames, or None when `timeout_s` has passed."""
        ...

    def close(self) -> None:
        """Leave the feed; a second time does nothing."""
        ...


class Transport(Protocol):
    """What a synchronous client needs of the world."""

    def send(self, endpoint: str, frames: list[bytes]) -> None:
        """Send a request, or queue it until the door is there. Raises Unreachable when full."""
        ...

    def receive(self, timeout_s: float) -> list[bytes] | None:
        """The next reply from any door, or None when `timeout_s` has passed."""
        ...

    def reset(self, endpoint: str) -> None:
        """Drop the connection and what waits in it; the next `send` makes a new one."""
        ...

    def feed(self, endpoint: str, topics: Iterable[bytes]) -> Feed:
        """Subscribe to topics by prefix."""
        ...

    def now_ns(self) -> int:
        """The wall clock that requests' deadlines are counted on, ns since the epoch."""
        ...

    def close(self) -> None:
        """Close every socket; a second time does nothing."""
        ...


class AsyncFeed(Protocol):
    """Feed, awaited."""

    async def receive(self, timeout_s: float) -> list[bytes] | None:
        """The next message's frames, or None when `timeout_s` has passed."""
        ...

    def close(self) -> None:
        """Leave the feed; a second time does nothing."""
        ...


def _open(kind: int, endpoint: str) -> zmq.Socket[bytes]:
    # libzmq's defaults wait for ever at close and take messages of any size.
    sock: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.SNDHWM, SEND_HWM)
    sock.setsockopt(zmq.RCVHWM, FEED_HWM)
    sock.setsockopt(zmq.MAXMSGSIZE, BODY_BYTES_MAX)
    sock.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    sock.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS_MAX)
    sock.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    sock.setsockopt(zmq.HEARTBEAT_IVL, ALIVE_MS)
    sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, ALIVE_MS_MAX)
    try:
        sock.connect(endpoint)
    except zmq.ZMQError as error:
        sock.close()
        raise Unreachable(f"{endpoint} is no address that can be used: {error}") from None
    return sock


def _subscribe(endpoint: str, topics: Iterable[bytes]) -> zmq.Socket[bytes]:
    sock = _open(zmq.SUB, endpoint)
    for topic in topics:
        sock.setsockopt(zmq.SUBSCRIBE, topic)
    return sock


def _send(sock: zmq.Socket[bytes], endpoint: str, frames: list[bytes]) -> None:
    try:
        sock.send_multipart(frames, zmq.NOBLOCK, copy=True)
    except zmq.Again:
        raise Unreachable(
            f"{SEND_HWM} requests wait for {endpoint} already; is the node running?"
        ) from None


class ZmqFeed:
    """A SUB socket; `feeds` is where it stands while it is open."""

    def __init__(self, endpoint: str, topics: Iterable[bytes], feeds: set[ZmqFeed]) -> None:
        self._sock = _subscribe(endpoint, topics)
        self._feeds = feeds
        feeds.add(self)

    def receive(self, timeout_s: float) -> list[bytes] | None:
        if self._sock.closed:
            raise Unreachable("this watch is closed")
        try:
            return self._sock.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            pass
        if timeout_s > 0 and self._sock.poll(_whole_ms(timeout_s), zmq.POLLIN):
            return self._sock.recv_multipart(zmq.NOBLOCK)
        return None

    def close(self) -> None:
        self._feeds.discard(self)
        self._sock.close()


class ZmqTransport:
    """A DEALER for each door that is used; for one thread at a time."""

    def __init__(self) -> None:
        self._feeds: set[ZmqFeed] = set()
        self._doors: dict[str, zmq.Socket[bytes]] = {}
        self._poller = zmq.Poller()

    def send(self, endpoint: str, frames: list[bytes]) -> None:
        sock = self._doors.get(endpoint)
        if sock is None:
            sock = self._doors[endpoint] = _open(zmq.DEALER, endpoint)
            self._poller.register(sock, zmq.POLLIN)
        _send(sock, endpoint, frames)

    def receive(self, timeout_s: float) -> list[bytes] | None:
        for sock in self._doors.values():
            try:
                return sock.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                continue
        if timeout_s <= 0:
            return None
        if not self._poller.poll(_whole_ms(timeout_s)):
            return None
        return self.receive(0)

    def reset(self, endpoint: str) -> None:
        sock = self._doors.pop(endpoint, None)
        if sock is not None:
            self._poller.unregister(sock)
            sock.close()

    def feed(self, endpoint: str, topics: Iterable[bytes]) -> ZmqFeed:
        return ZmqFeed(endpoint, topics, self._feeds)

    def now_ns(self) -> int:
        return wall_ns()

    def close(self) -> None:
        for endpoint in list(self._doors):
            self.reset(endpoint)
        for feed in list(self._feeds):
            feed.close()


class AsyncZmqTransport:
    """DEALERs read by the running event loop; each reply goes to `deliver`.

    libzmq's descriptor tells of changes, not of states: it is silent about what came before the
    last look. So each look takes everything, and each send is followed by a look.
    """

    def __init__(self, deliver: Callable[[list[bytes]], None]) -> None:
        self._deliver = deliver
        self._doors: dict[str, zmq.Socket[bytes]] = {}
        self._feeds: set[AsyncZmqFeed] = set()
        self._loop = asyncio.get_running_loop()

    def send(self, endpoint: str, frames: list[bytes]) -> None:
        sock = self._doors.get(endpoint)
        if sock is None:
            sock = self._doors[endpoint] = _open(zmq.DEALER, endpoint)
            self._loop.add_reader(sock.FD, self._drain, sock)
        _send(sock, endpoint, frames)
        self._loop.call_soon(self._drain, sock)

    def _drain(self, sock: zmq.Socket[bytes]) -> None:
        while not sock.closed:
            try:
                frames = sock.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._deliver(frames)

    def reset(self, endpoint: str) -> None:
        """Drop the connection and what waits in it."""
        sock = self._doors.pop(endpoint, None)
        if sock is not None:
            self._loop.remove_reader(sock.FD)
            sock.close()

    def feed(self, endpoint: str, topics: Iterable[bytes]) -> AsyncZmqFeed:
        """Subscribe to topics by prefix."""
        return AsyncZmqFeed(endpoint, topics, self._feeds)

    def now_ns(self) -> int:
        """The wall clock, ns since the epoch."""
        return wall_ns()

    def close(self) -> None:
        """Close every socket; a second time does nothing."""
        for endpoint in list(self._doors):
            self.reset(endpoint)
        for feed in list(self._feeds):
            feed.close()


class AsyncZmqFeed:
    """A SUB socket read by the running event loop; `feeds` is where it stands while open."""

    def __init__(self, endpoint: str, topics: Iterable[bytes], feeds: set[AsyncZmqFeed]) -> None:
        self._sock = _subscribe(endpoint, topics)
        self._feeds = feeds
        feeds.add(self)
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._loop.add_reader(self._sock.FD, self._look)

    def _look(self) -> None:
        # Asking for EVENTS takes the signal off the descriptor; otherwise the loop would spin.
        if int(self._sock.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._arrived.set()

    async def receive(self, timeout_s: float) -> list[bytes] | None:
        deadline_s = monotonic_s() + timeout_s
        while True:
            if self._sock.closed:
                raise Unreachable("this watch is closed")
            self._arrived.clear()
            try:
                return self._sock.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                left_s = deadline_s - monotonic_s()
            if left_s <= 0:
                return None
            try:
                await asyncio.wait_for(self._arrived.wait(), left_s)
            except TimeoutError:
                return None

    def close(self) -> None:
        self._feeds.discard(self)
        if not self._sock.closed:
            self._loop.remove_reader(self._sock.FD)
            self._sock.close()


def _whole_ms(timeout_s: float) -> int:
    return max(1, int(timeout_s * 1_000))
