"""Requests under way, in two shells: one for threads, one for an event loop.

Both carry the frames of `minoots.requests.Call`s, which decide everything; both know the doors, and
ask again where they are when a door has gone silent.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, TypeVar

from minoots import verbs
from minoots.connect import EVENTS, Doors, Locator, doors_of
from minoots.requests import Call, Patience, Request, Sending, idem_key, new_rng, read_reply
from minoots.transport import (
    AsyncFeed,
    AsyncZmqTransport,
    Feed,
    Transport,
    ZmqTransport,
    monotonic_s,
    wall_ns,
)
from minoots.wire.problems import Unreachable

T = TypeVar("T")

IN_FLIGHT_DEFAULT = 8  # messages of a bulk call on their way at the same time


class _Calls:
    """The calls under way, by corr_id: what both shells keep."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._rng = new_rng(os.urandom(16))
        self.under_way: dict[bytes, Call[Any]] = {}
        self.heard_s = 0.0
        self.reset_s = 0.0

    def start(self, request: Request[T], idem: str | None) -> Call[T]:
        if request.mutates and idem is None:
            idem = idem_key(os.urandom(16))
        call = Call(request, idem=idem, now_s=monotonic_s(), patience=self._patience, rng=self._rng)
        self.under_way[call.corr] = call
        return call

    def take(self, frames: list[bytes]) -> Call[Any] | None:
        """The call that a message answers; late and foreign ones are dropped."""
        self.heard_s = monotonic_s()
        reply = read_reply(frames)
        call = self.under_way.get(reply.corr) if reply is not None else None
        if reply is not None and call is not None:
            call.take(reply, self.heard_s)
        return call

    def connection_lost(self, sending: Sending) -> bool:
        """Whether to connect anew: nothing at all was heard since an attempt that brought nothing.

        True once for all calls that went out over the same connection: the first one's new
        connection must not be dropped by the second.
        """
        return sending.unanswered and self._silent_since(sending.since_s)

    def given_up(self, call: Call[Any]) -> bool:
        """The same for a call that has ended without a reply, when it was its last attempt."""
        return call.silent_since_s is not None and self._silent_since(call.silent_since_s)

    def _silent_since(self, since_s: float) -> bool:
        lost = max(self.heard_s, self.reset_s) < since_s
        if lost:
            self.reset_s = monotonic_s()
        return lost

    def cut_off(self, door: str) -> list[bytes]:
        """End what waits at a door for its only reply: it went with the old connection."""
        gone = [call for call in self.under_way.values() if call.request.door == door]
        for call in gone:
            call.cut_off("the connection was made anew")
        return [call.corr for call in gone if call.done]

    def drop(self, call: Call[Any]) -> None:
        self.under_way.pop(call.corr, None)


def _chosen(doors: Doors, door: str) -> str:
    """The endpoint of a door; any verb may go to control, but events come from one door only."""
    endpoint: str = getattr(doors, door)
    if not endpoint and door == EVENTS:
        raise Unreachable("the node has no events door")
    return endpoint or doors.control


class Exchange:
    """Requests from threads, one at a time; whoever waits carries the others' replies too.

    locate: asked at once, so that a missing node is told early, and after each loss.
    """

    def __init__(self, locate: Locator, patience: Patience, transport: Transport | None) -> None:
        self._locate = locate
        self._doors: Doors | None = locate()
        self._told = False  # a hello has told the doors that the locator did not know
        self._transport = transport or ZmqTransport()
        self._calls = _Calls(patience)
        self._lock = threading.RLock()
        self._closed = False

    def now_ns(self) -> int:
        """The wall clock, ns since the epoch."""
        return self._transport.now_ns()

    def close(self) -> None:
        """Close the connections; a second time does nothing."""
        with self._lock:
            self._closed = True
            self._transport.close()

    def call(self, request: Request[T], idem: str | None = None) -> T:
        """Send a request and wait for its result, retries included."""
        with self._lock:
            call = self._start(request, idem)
            try:
                return self._settle(call)
            finally:
                self._calls.drop(call)

    def pipeline(
        self, requests: Iterable[tuple[Request[T], str | None]], in_flight: int
    ) -> Iterator[T]:
        """The results of many requests, in order, `in_flight` of them on their way."""
        waiting: deque[Call[T]] = deque()
        coming = iter(requests)
        try:
            while True:
                with self._lock:
                    while len(waiting) < in_flight and (asked := next(coming, None)) is not None:
                        waiting.append(self._start(*asked))
                    if not waiting:
                        return
                    result = self._settle(waiting[0])
                    self._calls.drop(waiting.popleft())
                yield result
        finally:
            for call in waiting:
                self._calls.drop(call)

    def subscribe(self, topics: Iterable[bytes]) -> Feed:
        """A feed of the events door, wherever that is now."""
        with self._lock:
            self._doors = None
            return self._transport.feed(self._endpoint(EVENTS), topics)

    def _start(self, request: Request[T], idem: str | None) -> Call[T]:
        if self._closed:
            raise Unreachable("this client is closed")
        return self._calls.start(request, idem)

    def _settle(self, call: Call[T]) -> T:
        while not call.done:
            self._turn()
        return call.result()

    def _turn(self) -> None:
        """Take what has come; then send what is due; then wait for whichever is first."""
        while (frames := self._transport.receive(0)) is not None:
            self._calls.take(frames)
        now_s = monotonic_s()
        for call in list(self._calls.under_way.values()):
            if not call.done and call.due_s <= now_s:
                self._act(call, now_s)
        dues = [call.due_s for call in self._calls.under_way.values() if not call.done]
        if dues:
            taken = self._transport.receive(max(0.0, min(dues) - monotonic_s()))
            if taken is not None:
                self._calls.take(taken)

    def _act(self, call: Call[Any], now_s: float) -> None:
        sending = call.act(now_s, self._transport.now_ns())
        if sending is None:
            if self._doors is not None and self._calls.given_up(call):
                self._reset(_chosen(self._doors, call.request.door), call)
            return
        try:
            endpoint = self._endpoint(call.request.door)
            if self._calls.connection_lost(sending):
                self._reset(endpoint, call)
                endpoint = self._endpoint(call.request.door)
            self._transport.send(endpoint, sending.frames)
        except Unreachable:
            # At a later attempt the node may be away only while it starts anew.
            if call.attempts == 1:
                raise

    def _reset(self, endpoint: str, call: Call[Any]) -> None:
        self._transport.reset(endpoint)
        self._calls.cut_off(call.request.door)
        self._doors = None

    def _endpoint(self, door: str) -> str:
        if self._doors is None:
            self._doors, self._told = self._locate(), False
        if not getattr(self._doors, door) and not self._told:
            told = self.call(verbs.hello()).doors
            self._doors, self._told = doors_of(told, self._doors.control), True
        return _chosen(self._doors, door)


class AsyncExchange:
    """Requests from the tasks of one event loop, any number at the same time."""

    def __init__(self, locate: Locator, patience: Patience) -> None:
        self._locate = locate
        self._doors: Doors | None = locate()
        self._told = False
        self._calls = _Calls(patience)
        self._changed: dict[bytes, asyncio.Event] = {}
        self._transport: AsyncZmqTransport | None = None
        self._closed = False

    def now_ns(self) -> int:
        """The wall clock, ns since the epoch."""
        return wall_ns()

    def close(self) -> None:
        """Close the connections; a second time does nothing. Calls under way time out."""
        self._closed = True
        if self._transport is not None:
            self._transport.close()

    def _open(self) -> AsyncZmqTransport:
        if self._closed:
            raise Unreachable("this client is closed")
        if self._transport is None:
            self._transport = AsyncZmqTransport(self._deliver)
        return self._transport

    def _deliver(self, frames: list[bytes]) -> None:
        call = self._calls.take(frames)
        if call is not None and call.corr in self._changed:
            self._changed[call.corr].set()

    async def call(self, request: Request[T], idem: str | None = None) -> T:
        """Send a request and await its result, retries included."""
        transport = self._open()
        call = self._calls.start(request, idem)
        changed = self._changed[call.corr] = asyncio.Event()
        try:
            while not call.done:
                now_s = monotonic_s()
                if call.due_s <= now_s:
                    await self._act(transport, call, now_s)
                if not call.done:
                    await _until(changed, call.due_s)
            return call.result()
        finally:
            self._calls.drop(call)
            del self._changed[call.corr]

    async def pipeline(
        self, requests: Iterable[tuple[Request[T], str | None]], in_flight: int
    ) -> AsyncIterator[T]:
        """The results of many requests, in order, `in_flight` of them on their way."""
        waiting: deque[asyncio.Task[T]] = deque()
        coming = iter(requests)
        try:
            while True:
                while len(waiting) < in_flight and (asked := next(coming, None)) is not None:
                    waiting.append(asyncio.ensure_future(self.call(*asked)))
                if not waiting:
                    return
                yield await waiting[0]
                waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def subscribe(self, topics: Iterable[bytes]) -> AsyncFeed:
        """A feed of the events door, wherever that is now."""
        transport = self._open()
        self._doors = None
        return transport.feed(await self._endpoint(EVENTS), topics)

    async def _act(self, transport: AsyncZmqTransport, call: Call[Any], now_s: float) -> None:
        sending = call.act(now_s, wall_ns())
        if sending is None:
            if self._doors is not None and self._calls.given_up(call):
                self._reset(transport, _chosen(self._doors, call.request.door), call)
            return
        try:
            endpoint = await self._endpoint(call.request.door)
            if self._calls.connection_lost(sending):
                self._reset(transport, endpoint, call)
                endpoint = await self._endpoint(call.request.door)
            transport.send(endpoint, sending.frames)
        except Unreachable:
            if call.attempts == 1:
                raise

    def _reset(self, transport: AsyncZmqTransport, endpoint: str, call: Call[Any]) -> None:
        transport.reset(endpoint)
        for corr in self._calls.cut_off(call.request.door):
            if corr in self._changed:
                self._changed[corr].set()
        self._doors = None

    async def _endpoint(self, door: str) -> str:
        if self._doors is None:
            self._doors, self._told = self._locate(), False
        if not getattr(self._doors, door) and not self._told:
            control = self._doors.control
            told = (await self.call(verbs.hello())).doors
            self._doors, self._told = doors_of(told, control), True
        return _chosen(self._doors, door)


async def _until(changed: asyncio.Event, due_s: float) -> None:
    left_s = due_s - monotonic_s()
    if left_s <= 0:
        return
    try:
        await asyncio.wait_for(changed.wait(), left_s)
    except TimeoutError:
        return
    changed.clear()
