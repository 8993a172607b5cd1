"""The asynchronous client: the same verbs, awaited, any number of them at the same time.

An AsyncClient belongs to the event loop in which it is first used. What it raises, and what the
arguments mean, is said at `minoots.client.Client`; both send what `minoots.verbs` builds.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from minoots import arguments, verbs
from minoots.arguments import Duration, Instant, ManyVerb, Mode
from minoots.client import (
    SYNC_SAMPLES,
    Definitions,
    Events,
    Instants,
    Results,
    Timer,
    Timers,
)
from minoots.connect import Locator, locator
from minoots.consumer import KEEP_DEFAULT, PREFETCH_DEFAULT, WAIT_DEFAULT, AsyncConsumer
from minoots.consumers import AsyncConsumers, AsyncDeadLetters, setup
from minoots.event import Event, as_datetime
from minoots.exchange import IN_FLIGHT_DEFAULT, AsyncExchange
from minoots.order import WatchCore
from minoots.overdue import AsyncOverdue
from minoots.requests import RETRIES_DEFAULT, TIMEOUT_S_DEFAULT, Patience, Request
from minoots.transport import monotonic_s
from minoots.watch import AsyncWatch, Since, interest_of, replay_start, start_of
from minoots.wire.bodies import (
    PAGE_MAX,
    SCHEDULE_MANY_MAX,
    BulkResult,
    Cursor,
    EventFilter,
    ReplayFrom,
    TimerView,
)
from minoots.wire.definition import Schedule
from minoots.wire.problems import Refused
from minoots.wire.times import parse_instant

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AsyncSnapshot:
    """The pending timers, page by page as they are iterated over, as of a place in the log."""

    as_of: Cursor
    timers: AsyncIterator[TimerView]


class AsyncClient:
    """A client of one node, for asyncio; use it by `async with`, or call `close`.

    The arguments are those of Client.
    """

    def __init__(
        self,
        control: str | None = None,
        *,
        data: str | os.PathLike[str] | None = None,
        timeout: float = TIMEOUT_S_DEFAULT,
        retries: int = RETRIES_DEFAULT,
        tenant: str = "default",
        locate: Locator | None = None,
    ) -> None:
        self._exchange = AsyncExchange(locate or locator(control, data), Patience(timeout, retries))
        self._tenant = tenant
        self._timeout_s = timeout
        self.consumers = AsyncConsumers(self.call)
        self.dlq = AsyncDeadLetters(self.call)
        self.overdue = AsyncOverdue(self.call)

    async def close(self) -> None:
        """Close the connections; a second time does nothing."""
        self._exchange.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def call(self, request: Request[T], *, idem: str | None = None) -> T:
        """Send a request of `minoots.verbs` and wait for its result, retries included."""
        return await self._exchange.call(request, idem)

    # ----------------------------------------------------------------------------------- the node

    async def hello(self) -> verbs.Hello:
        """Who the node is, what it can do, and where its doors are."""
        return await self.call(verbs.hello())

    async def ping(self) -> float:
        """The seconds that one `hello` takes, there and back."""
        began_s = monotonic_s()
        await self.call(verbs.hello())
        return monotonic_s() - began_s

    async def stats(self) -> dict[str, Any]:
        """The node's figures, as the JSON document of the contract."""
        return await self.call(verbs.stats())

    async def health(self) -> dict[str, Any]:
        """Whether the node is well, and what is not."""
        return await self.call(verbs.health())

    async def schema(self, op: str | None = None) -> dict[str, Any]:
        """The JSON Schema of a verb's body, or of all."""
        return await self.call(verbs.schema(op))

    async def time_sync(self, samples: int = SYNC_SAMPLES) -> verbs.TimeSync:
        """How the node's clock stands to ours: the best of `samples` exchanges."""
        if samples < 1:
            raise ValueError(f"samples is {samples}; take at least one")
        taken = []
        for _ in range(samples):
            t0 = self._exchange.now_ns()
            reply = await self.call(verbs.time_sync(t0))
            taken.append((t0, reply, self._exchange.now_ns()))
        return verbs.best_sync(taken)

    async def time_accept(self) -> bool:
        """Have the node believe UTC as its machine has it; whether it was in doubt."""
        return bool((await self.call(verbs.time_accept()))["accepted"])

    # ------------------------------------------------------------------------------ making timers

    async def schedule(
        self,
        name: str = "",
        *,
        after: Duration | None = None,
        at: Instant | None = None,
        every: Duration | None = None,
        schedule: Schedule | Mapping[str, Any] | None = None,
        payload: Any = None,
        labels: Mapping[str, str] | None = None,
        max_occurrences: int | None = None,
        expires_at: Instant | None = None,
        mode: Mode | None = None,
        anchor: Instant | None = None,
        idem: str | None = None,
        **more: Any,
    ) -> TimerView:
        """Schedule one timer; when this returns, it is on the node's disk.

        Exactly one of: after, every (`15m`, seconds, or a timedelta); at (RFC 3339, or an aware
        datetime); schedule (of the contract). payload: any JSON up to 64 KiB. mode (fixed_rate,
        fixed_delay) and anchor go with every. more: further members of the definition.
        """
        timer = arguments.definition(
            name,
            after=after,
            at=at,
            every=every,
            schedule=schedule,
            payload=payload,
            labels=labels,
            max_occurrences=max_occurrences,
            expires_at=expires_at,
            mode=mode,
            anchor=anchor,
            **more,
        )
        return await self.call(verbs.schedule(timer), idem=idem)

    async def schedule_many(
        self, timers: Definitions, *, atomic: bool = False, idem: str | None = None
    ) -> Results:
        """Schedule many timers; a view or a Refused for each, in order.

        timers: Definitions, or dicts of what `schedule` takes. atomic: all or none, at most 1,000.
        Above 1,000 they go in several transactions, some at the same time.
        """
        asked = [arguments.definition_of(timer) for timer in timers]
        if atomic:
            arguments.check_atomic(len(asked))
        coming = self.schedule_many_iter(asked, atomic=atomic, idem=idem)
        return [result async for result in coming]

    async def schedule_many_iter(
        self,
        timers: Definitions,
        *,
        in_flight: int = IN_FLIGHT_DEFAULT,
        chunk: int = SCHEDULE_MANY_MAX,
        atomic: bool = False,
        idem: str | None = None,
    ) -> AsyncIterator[TimerView | Refused]:
        """The same as a pipeline for bulk users: results come while later timers are sent.

        in_flight: messages on their way at the same time. chunk: timers in a message; atomic holds
        for each message. Reads `timers` only as far as it sends. Each message has its own timeout.
        """
        if in_flight < 1:
            raise ValueError(f"in_flight is {in_flight}; it must be at least 1")
        requests = (
            (verbs.schedule_many(some, atomic=atomic), arguments.chunk_key(idem, index))
            for index, some in enumerate(arguments.chunks_of(timers, chunk))
        )
        async for results in self._exchange.pipeline(requests, in_flight):
            for result in results:
                yield result

    # ---------------------------------------------------------------------------- changing timers

    async def cancel(
        self, timer: Timer, *, idem: str | None = None, if_match: int | None = None
    ) -> TimerView:
        """Cancel a timer: it will not fire again.

        timer: a view, an id (begins with tmr_), or a name that is unique among those that have not
        ended. if_match: the revision that it must have. Raises NotFound, AlreadyTerminal.
        """
        return await self._change("timer.cancel", timer, idem, if_match)

    async def pause(
        self, timer: Timer, *, idem: str | None = None, if_match: int | None = None
    ) -> TimerView:
        """Hold a timer until it is resumed."""
        return await self._change("timer.pause", timer, idem, if_match)

    async def resume(
        self, timer: Timer, *, idem: str | None = None, if_match: int | None = None
    ) -> TimerView:
        """Let a paused timer go on."""
        return await self._change("timer.resume", timer, idem, if_match)

    async def trigger(
        self, timer: Timer, *, idem: str | None = None, if_match: int | None = None
    ) -> TimerView:
        """Fire a timer now."""
        return await self._change("timer.trigger", timer, idem, if_match)

    async def _change(
        self, op: str, timer: Timer, idem: str | None, if_match: int | None
    ) -> TimerView:
        return await self.call(verbs.change(op, arguments.target(timer), if_match), idem=idem)

    async def reschedule(
        self,
        timer: Timer,
        *,
        after: Duration | None = None,
        at: Instant | None = None,
        every: Duration | None = None,
        schedule: Schedule | Mapping[str, Any] | None = None,
        mode: Mode | None = None,
        anchor: Instant | None = None,
        idem: str | None = None,
        if_match: int | None = None,
    ) -> TimerView:
        """Give a timer another schedule, from now on."""
        rule = arguments.schedule_of(
            after=after, at=at, every=every, schedule=schedule, mode=mode, anchor=anchor
        )
        return await self.call(verbs.reschedule(arguments.target(timer), rule, if_match), idem=idem)

    async def extend(
        self, timer: Timer, by: Duration, *, idem: str | None = None, if_match: int | None = None
    ) -> TimerView:
        """Move a timer's next due, and those after it, `by` later."""
        moved = arguments.duration_text(by)
        return await self.call(verbs.extend(arguments.target(timer), moved, if_match), idem=idem)

    async def cancel_many(
        self,
        filter: Timers = None,
        *,
        ids: Sequence[str] | None = None,
        idem: str | None = None,
    ) -> int:
        """Cancel all that a filter finds, or those with these ids; how many there were.

        An empty filter is refused: write `{"name_prefix": ""}` to mean every timer.
        """
        return (await self.change_many("cancel", filter, ids=ids, idem=idem)).count

    async def change_many(
        self,
        verb: ManyVerb,
        filter: Timers = None,
        *,
        ids: Sequence[str] | None = None,
        by: Duration | None = None,
        set: Mapping[str, str] | None = None,
        remove: Sequence[str] = (),
        dry_run: bool = False,
        idem: str | None = None,
    ) -> BulkResult:
        """Cancel, pause, resume, shift or relabel all that a filter finds, or those with these ids.

        by: of shift, later, or earlier if negative (`-10m`). set, remove: of relabel, labels and
        keys of labels. dry_run: only count them, and show some. Up to 1,000 are one commit.
        """
        op, body = arguments.many(verb, filter, ids, by=by, set=set, remove=remove, dry_run=dry_run)
        return await self.call(verbs.change_many(op, body), idem=idem)

    # ----------------------------------------------------------------------------- finding timers

    async def get(self, timer: Timer) -> TimerView:
        """A timer as it is now; by id also after it has ended, within retention."""
        return await self.call(verbs.get(arguments.target(timer)))

    async def page(
        self, filter: Timers = None, *, limit: int = PAGE_MAX, cursor: str | None = None
    ) -> verbs.Page:
        """One page of pending timers, in order of id."""
        return await self.call(verbs.list_page(arguments.timer_filter(filter), limit, cursor))

    async def list(
        self, filter: Timers = None, *, page_size: int = PAGE_MAX
    ) -> AsyncIterator[TimerView]:
        """All pending timers that a filter finds, in order of id; pages are read as needed.

        filter: state[], labels{}, name_prefix, due_from, due_to.
        """
        cursor: str | None = None
        while True:
            page = await self.page(filter, limit=page_size, cursor=cursor)
            for view in page.items:
                yield view
            cursor = page.next_cursor
            if cursor is None:
                return

    async def next(
        self,
        timer: Timer | None = None,
        *,
        count: int = 5,
        after: Duration | None = None,
        at: Instant | None = None,
        every: Duration | None = None,
        schedule: Schedule | Mapping[str, Any] | None = None,
        mode: Mode | None = None,
        anchor: Instant | None = None,
        max_occurrences: int | None = None,
        expires_at: Instant | None = None,
    ) -> Instants:
        """The coming dues of a timer, or those that a schedule would have, as aware datetimes."""
        asked = arguments.next_body(
            timer,
            count,
            after=after,
            at=at,
            every=every,
            schedule=schedule,
            mode=mode,
            anchor=anchor,
            max_occurrences=max_occurrences,
            expires_at=expires_at,
        )
        found = await self.call(verbs.next_dues(asked))
        return [as_datetime(parse_instant(due)) for due in found.dues]

    async def forecast(
        self,
        end: Instant,
        *,
        start: Instant | None = None,
        bin: str = "minute",
        by: str | None = None,
        filter: Timers = None,
    ) -> verbs.Forecast:
        """How many fires are to come from `start`, or now, to `end`, counted by bins.

        bin: `second`, `minute`, `hour`, `day`, or a duration. by: a label to count by as well.
        """
        asked = arguments.timeline_body(end, start, bin, by, filter)
        return await self.call(verbs.timeline(asked))

    async def snapshot(self, filter: Timers = None, *, page_size: int = PAGE_MAX) -> AsyncSnapshot:
        """The pending timers with the place in the log from which a watch goes on."""
        asked = arguments.timer_filter(filter)
        first = await self.call(verbs.snapshot_page(asked, page_size, None))

        async def timers() -> AsyncIterator[TimerView]:
            page = first
            while True:
                for view in page.items:
                    yield view
                if page.next_cursor is None:
                    return
                page = await self.call(verbs.snapshot_page(asked, page_size, page.next_cursor))

        return AsyncSnapshot(first.as_of, timers())

    # ------------------------------------------------------------------------------------- events

    async def history(self, timer: Timer, *, limit: int | None = None) -> Events:
        """A timer's events, oldest first; with `limit`, its newest ones."""
        found = arguments.target(timer)
        id = found.id if found.id is not None else (await self.get(timer)).id
        pages: deque[Events] = deque()
        left, cursor = limit, None
        while left is None or left > 0:
            size = PAGE_MAX if left is None else min(left, PAGE_MAX)
            page = await self.call(verbs.history_page(id, size, cursor))
            pages.appendleft(page.events)
            left = None if left is None else left - len(page.events)
            cursor = page.next_cursor
            if cursor is None:
                break
        return [event for events in pages for event in events]

    async def replay_page(
        self,
        start: ReplayFrom | None = None,
        filter: EventFilter | None = None,
        *,
        limit: int = PAGE_MAX,
    ) -> verbs.ReplayPage:
        """One page of the log, with the cursor of the next."""
        return await self.call(
            verbs.replay_page(start or ReplayFrom(), filter or EventFilter(), limit)
        )

    async def replay(
        self,
        *,
        from_cursor: Cursor | tuple[int, int] | None = None,
        since: Since = "start",
        filter: EventFilter | Mapping[str, Any] | None = None,
        types: Sequence[str] = (),
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        page_size: int = PAGE_MAX,
    ) -> AsyncIterator[Event]:
        """The log's events up to now, in order of seq; pages are read as needed.

        Begins after `from_cursor`, (epoch, seq), or `since` a time or the start of the log.
        Raises OutOfRetention, EpochChanged.
        """
        interest = interest_of(
            tenant=self._tenant, filter=filter, types=types, name=name, labels=labels
        )
        start = replay_start(from_cursor, since)
        while True:
            page = await self.replay_page(start, interest.filter(), limit=page_size)
            for event in page.events:
                if interest.wants(event):
                    yield event
            start = ReplayFrom(epoch=page.next.epoch, seq=page.next.seq)
            if page.end:
                return

    def watch(
        self,
        filter: EventFilter | Mapping[str, Any] | None = None,
        *,
        types: Sequence[str] = (),
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        since: Since = "now",
        snapshot: bool = False,
    ) -> AsyncWatch:
        """Watch events as they leave the node, each once, and none lost; see Watch.

        types: `timer.expired` or `expired`. since: `now`, `start`, a cursor (epoch, seq), or a
        time. snapshot: first an event of the type `snapshot` for each pending timer.
        Returns when the subscription is live, at most some seconds later. Raises Unreachable.
        """
        interest = interest_of(
            tenant=self._tenant, filter=filter, types=types, name=name, labels=labels
        )
        return AsyncWatch(
            WatchCore(interest, start_of(since), snapshot=snapshot),
            ask=self.call,
            subscribe=lambda: self._exchange.subscribe(interest.topics()),
            ready_s=self._timeout_s,
        )

    def consumer(
        self,
        name: str,
        *,
        prefetch: int = PREFETCH_DEFAULT,
        wait: Duration = WAIT_DEFAULT,
        keep: Duration = KEEP_DEFAULT,
        **config: Any,
    ) -> AsyncConsumer:
        """A durable consumer to iterate over, by `async with`; see `Client.consumer`."""
        asked = setup(name, config)
        return AsyncConsumer(self.call, asked, prefetch=prefetch, wait=wait, keep=keep)
