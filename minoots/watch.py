"""Watching events: the two shells, blocking and awaited, around `minoots.order.WatchCore`.

The core decides what to show, what to ask and how long to listen; a shell only does it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from minoots.arguments import instant_text
from minoots.event import Event
from minoots.order import SILENCE_S, Ask, Interest, Listen, WatchCore
from minoots.requests import Request
from minoots.transport import AsyncFeed, Feed, monotonic_s
from minoots.wire.bodies import Cursor, EventFilter, ReplayFrom
from minoots.wire.frames import short_type
from minoots.wire.problems import MinootsError, Unreachable

DRAIN_MAX = (
    10_000  # messages taken from the feed between two requests, so that it does not overflow
)
SETTLE_S = 0.25  # between two attempts to find the events door again

Since = str | datetime | Cursor | tuple[int, int]


def interest_of(
    *,
    tenant: str,
    filter: EventFilter | Mapping[str, Any] | None,
    types: Sequence[str],
    name: str | None,
    labels: Mapping[str, str] | None,
) -> Interest:
    """Which events are meant: `filter` and the other arguments together.

    types: `timer.expired`, `expired` or the long form.
    """
    prefix, wanted, marks = "", list(types), dict(labels or {})
    if filter is not None:
        asked = filter if isinstance(filter, EventFilter) else EventFilter(**filter)
        prefix, wanted, marks = asked.name_prefix, wanted + asked.types, asked.labels | marks
    kinds = tuple(dict.fromkeys(type_of(kind) for kind in wanted))
    return Interest(tenant=tenant, types=kinds, name=name, name_prefix=prefix, labels=marks)


def type_of(text: str) -> str:
    """The short type that is meant by `expired`, `timer.expired` or the long form."""
    short = short_type(text)
    return short if "." in short else f"timer.{short}"


def start_of(since: Since | None) -> ReplayFrom | None:
    """Where a replay begins: `start`, a cursor, or a time; None for `now`."""
    if since is None or since == "now":
        return None
    if since == "start":
        return ReplayFrom()
    if isinstance(since, Cursor):
        return ReplayFrom(epoch=since.epoch, seq=since.seq)
    if isinstance(since, tuple):
        epoch, seq = since
        return ReplayFrom(epoch=epoch, seq=seq)
    return ReplayFrom(time=instant_text(since))


def replay_start(from_cursor: Cursor | tuple[int, int] | None, since: Since) -> ReplayFrom:
    """Where `replay` begins. Raises ValueError for `now`, after which there is nothing yet."""
    start = start_of(since if from_cursor is None else from_cursor)
    if start is None:
        raise ValueError("since is 'now'; a replay begins earlier: give a time or a cursor")
    return start


class Watch:
    """An endless iterator of events; also a context manager. For one thread.

    Each event comes once; where the feed lost some, they are replayed before later ones are shown.
    While the node is away it waits, and goes on where it was. Raises OutOfRetention when the log no
    longer reaches back to what is missing.
    """

    def __init__(
        self,
        core: WatchCore,
        *,
        ask: Callable[[Request[Any]], Any],
        subscribe: Callable[[], Feed],
        ready_s: float,
    ) -> None:
        self._core = core
        self._ask = ask
        self._subscribe = subscribe
        self._feed = subscribe()
        try:
            self._await_live(ready_s)
        except BaseException:
            self.close()
            raise

    def _await_live(self, ready_s: float) -> None:
        deadline_s = monotonic_s() + ready_s
        while not self._core.live:
            left_s = deadline_s - monotonic_s()
            if left_s <= 0:
                raise Unreachable(_no_beat(ready_s))
            frames = self._feed.receive(left_s)
            if frames is not None:
                self._core.heard(frames)

    @property
    def cursor(self) -> Cursor | None:
        """Where to go on later (`since=`); some events may then come again, none is missed."""
        return self._core.cursor

    def __iter__(self) -> Watch:
        return self

    def __next__(self) -> Event:
        while not self._core.ready:
            self._pump(None)
        return self._core.ready.popleft()

    def poll(self, timeout_s: float) -> Event | None:
        """The next event, or None when `timeout_s` has passed."""
        deadline_s = monotonic_s() + timeout_s
        while not self._core.ready:
            left_s = deadline_s - monotonic_s()
            self._pump(max(left_s, 0.0))
            if left_s <= 0:
                break
        return self._core.ready.popleft() if self._core.ready else None

    def _pump(self, limit_s: float | None) -> None:
        core = self._core
        step = core.step(monotonic_s())
        if isinstance(step, Listen):
            wait_s = step.seconds if limit_s is None else min(step.seconds, limit_s)
            frames = self._feed.receive(wait_s)
            if frames is None:
                core.idle(wait_s)
            else:
                core.heard(frames)
        elif isinstance(step, Ask):
            try:
                step.take(self._ask(step.request))
            except MinootsError as error:
                core.failed(error, monotonic_s())
            self._drain()
        else:
            self._reopen()

    def _drain(self) -> None:
        for _ in range(DRAIN_MAX):
            frames = self._feed.receive(0)
            if frames is None:
                return
            self._core.heard(frames)

    def _reopen(self) -> None:
        try:
            feed = self._subscribe()
        except MinootsError:
            self._core.idle(SILENCE_S)  # so that the next step tries again
            self._feed.receive(SETTLE_S)
            return
        self._feed.close()
        self._feed = feed

    def close(self) -> None:
        """Leave the feed; a second time does nothing."""
        self._feed.close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncWatch:
    """Watch, for `async for`; for one task. It is live from the first step on, not before."""

    def __init__(
        self,
        core: WatchCore,
        *,
        ask: Callable[[Request[Any]], Awaitable[Any]],
        subscribe: Callable[[], Awaitable[AsyncFeed]],
        ready_s: float,
    ) -> None:
        self._core = core
        self._ask = ask
        self._subscribe = subscribe
        self._ready_s = ready_s
        self._feed: AsyncFeed | None = None

    async def ready(self) -> AsyncWatch:
        """Wait until the subscription is live; `async with` and `async for` do it by themselves."""
        if self._feed is None:
            self._feed = await self._subscribe()
        deadline_s = monotonic_s() + self._ready_s
        while not self._core.live:
            left_s = deadline_s - monotonic_s()
            if left_s <= 0:
                self.close()
                raise Unreachable(_no_beat(self._ready_s))
            frames = await self._feed.receive(left_s)
            if frames is not None:
                self._core.heard(frames)
        return self

    @property
    def cursor(self) -> Cursor | None:
        """Where to go on later (`since=`); some events may then come again, none is missed."""
        return self._core.cursor

    def __aiter__(self) -> AsyncWatch:
        return self

    async def __anext__(self) -> Event:
        if not self._core.live:
            await self.ready()
        while not self._core.ready:
            await self._pump()
        return self._core.ready.popleft()

    async def _pump(self) -> None:
        core, feed = self._core, self._feed
        if feed is None:
            raise StopAsyncIteration
        step = core.step(monotonic_s())
        if isinstance(step, Listen):
            frames = await feed.receive(step.seconds)
            if frames is None:
                core.idle(step.seconds)
            else:
                core.heard(frames)
        elif isinstance(step, Ask):
            try:
                step.take(await self._ask(step.request))
            except MinootsError as error:
                core.failed(error, monotonic_s())
            await self._drain(feed)
        else:
            await self._reopen(feed)

    async def _drain(self, feed: AsyncFeed) -> None:
        for _ in range(DRAIN_MAX):
            frames = await feed.receive(0)
            if frames is None:
                return
            self._core.heard(frames)

    async def _reopen(self, feed: AsyncFeed) -> None:
        try:
            self._feed = await self._subscribe()
        except MinootsError:
            self._core.idle(SILENCE_S)  # so that the next step tries again
            await feed.receive(SETTLE_S)
            return
        feed.close()

    def close(self) -> None:
        """Leave the feed; a second time does nothing."""
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    async def __aenter__(self) -> AsyncWatch:
        return await self.ready()

    async def __aexit__(self, *exc: object) -> None:
        self.close()


def _no_beat(ready_s: float) -> str:
    return f"no heartbeat came from the events door in {ready_s:g} s; is it switched on?"
