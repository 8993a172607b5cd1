"""The synchronous client.

A Client may be shared between threads: a lock lets one request through at a time, and the others
wait for it (their timeouts count from when they are sent). For requests at the same time, make one
Client for each thread, or an AsyncClient. A Watch belongs to the thread that iterates over it.

Every verb raises a subclass of `Refused` when the node says no, `Unreachable` when no answer came
in time (what was asked may have been done; ask again with the same `idem` to be sure), and
ValueError or TypeError when the arguments make no sense, before anything is sent.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from minoots import arguments, verbs
from minoots.arguments import Duration, Instant, ManyVerb, Mode
from minoots.connect import Locator, locator
from minoots.consumers import Consumers, DeadLetters
from minoots.event import Event, as_datetime
from minoots.exchange import Exchange
from minoots.order import WatchCore
from minoots.overdue import Overdue
from minoots.requests import RETRIES_DEFAULT, TIMEOUT_S_DEFAULT, Patience, Request
from minoots.transport import Transport, monotonic_s
from minoots.watch import Since, Watch, interest_of, replay_start, start_of
from minoots.wire.bodies import (
    PAGE_MAX,
    SCHEDULE_MANY_MAX,
    BulkResult,
    Cursor,
    EventFilter,
    ReplayFrom,
    Target,
    TimerFilter,
    TimerView,
)
from minoots.wire.definition import Definition, Schedule
from minoots.wire.problems import Refused
from minoots.wire.times import parse_instant

if TYPE_CHECKING:
    from minoots.blocking import Consumer

T = TypeVar("T")

IN_FLIGHT_DEFAULT = 8  # messages of a bulk call on their way at the same time
SYNC_SAMPLES = 8

# Inside the class, `list` is the verb.
Results = list[TimerView | Refused]
Events = list[Event]
Instants = list[datetime]
Timer = str | TimerView | Target
Timers = TimerFilter | Mapping[str, Any] | None
Definitions = Iterable[Definition | Mapping[str, Any]]


class Client:
    """A client of one node.

    control: the endpoint of its control door; without it, the node that serves from the directory
    `data`, from MINOOTS_DATA, or from the usual place is taken. timeout: seconds for each call with
    all its retries. retries: further attempts after a loss or a problem that may pass; each bears
    the same idempotency key. tenant: whose events are watched.
    Raises Unreachable when no node serves from the directory; connects at the first call.
    """

    def __init__(
        self,
        control: str | None = None,
        *,
        data: str | os.PathLike[str] | None = None,
        timeout: float = TIMEOUT_S_DEFAULT,
        retries: int = RETRIES_DEFAULT,
        tenant: str = "default",
        transport: Transport | None = None,
        locate: Locator | None = None,
    ) -> None:
        self._locate = locate or locator(control, data)
        self._patience = Patience(timeout, retries)
        self._exchange = Exchange(self._locate, self._patience, transport)
        self._tenant = tenant
        self._timeout_s = timeout
        self.consumers = Consumers(self.call)
        self.dlq = DeadLetters(self.call)
        self.overdue = Overdue(self.call)

    def close(self) -> None:
        """Close the connections; a second time does nothing."""
        self._exchange.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def call(self, request: Request[T], *, idem: str | None = None) -> T:
        """Send a request of `minoots.verbs` and wait for its result, retries included."""
        return self._exchange.call(request, idem)

    # ----------------------------------------------------------------------------------- the node

    def hello(self) -> verbs.Hello:
        """Who the node is, what it can do, and where its doors are."""
        return self.call(verbs.hello())

    def ping(self) -> float:
        """The seconds that one `hello` takes, there and back."""
        began_s = monotonic_s()
        self.call(verbs.hello())
        return monotonic_s() - began_s

    def stats(self) -> dict[str, Any]:
        """The node's figures, as the JSON document of the contract."""
        return self.call(verbs.stats())

    def health(self) -> dict[str, Any]:
        """Whether the node is well, and what is not."""
        return self.call(verbs.health())

    def schema(self, op: str | None = None) -> dict[str, Any]:
        """The JSON Schema of a verb's body, or of all."""
        return self.call(verbs.schema(op))

    def time_sync(self, samples: int = SYNC_SAMPLES) -> verbs.TimeSync:
        """How the node's clock stands to ours: the best of `samples` exchanges."""
        if samples < 1:
            raise ValueError(f"samples is {samples}; take at least one")
        taken = []
        for _ in range(samples):
            t0 = self._exchange.now_ns()
            reply = self.call(verbs.time_sync(t0))
            taken.append((t0, reply, self._exchange.now_ns()))
        return verbs.best_sync(taken)

    def time_accept(self) -> bool:
        """Have the node believe UTC as its machine has it; whether it was in doubt."""
        return bool(self.call(verbs.time_accept())["accepted"])

    # ------------------------------------------------------------------------------ making timers

    def schedule(
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
        return self.call(verbs.schedule(timer), idem=idem)

    def schedule_many(
        self, timers: Definitions, *, atomic: bool = False, idem: str | None = None
    ) -> Results:
        """Schedule many timers; a view or a Refused for each, in order.

        timers: Definitions, or dicts of what `schedule` takes. atomic: all or none, at most 1,000.
        Above 1,000 they go in several transactions, some at the same time.
        """
        asked = [arguments.definition_of(timer) for timer in timers]
        if atomic:
            arguments.check_atomic(len(asked))
        return list(self.schedule_many_iter(asked, atomic=atomic, idem=idem))

    def schedule_many_iter(
        self,
        timers: Definitions,
        *,
        in_flight: int = IN_FLIGHT_DEFAULT,
        chunk: int = SCHEDULE_MANY_MAX,
        atomic: bool = False,
        idem: str | None = None,
    ) -> Iterator[TimerView | Refused]:
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
        for results in self._exchange.pipeline(requests, in_flight):
            yield from results

    # ---------------------------------------------------------------------------- changing timers

    def cancel(
        self, timer: Timer, *, idem: str | None = None, if_match: int | None = None
    ) -> TimerView:
        """Cancel a timer: it will not fire again.

        timer: a view, an id (begins with tmr_), or a name that is unique among those that have not
        ended. if_match: the revision that it must have. Raises NotFound, AlreadyTerminal.
        """
        return self._change("timer.cancel", timer, idem, if_match)

    def pause(
        self, timer: Timer, *, idem: str | None = None, if_match: int | None = None
    ) -> TimerView:
        """Hold a timer until it is resumed."""
        return self._change("timer.pause", timer, idem, if_match)

    def resume(
        self, timer: Timer, *, idem: str | None = None, if_match: int | None = None
    ) -> TimerView:
        """Let a paused timer go on."""
        return self._change("timer.resume", timer, idem, if_match)

    def trigger(
        self, timer: Timer, *, idem: str | None = None, if_match: int | None = None
    ) -> TimerView:
        """Fire a timer now."""
        return self._change("timer.trigger", timer, idem, if_match)

    def _change(self, op: str, timer: Timer, idem: str | None, if_match: int | None) -> TimerView:
        return self.call(verbs.change(op, arguments.target(timer), if_match), idem=idem)

    def reschedule(
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
        return self.call(verbs.reschedule(arguments.target(timer), rule, if_match), idem=idem)

    def extend(
        self, timer: Timer, by: Duration, *, idem: str | None = None, if_match: int | None = None
    ) -> TimerView:
        """Move a timer's next due, and those after it, `by` later."""
        moved = arguments.duration_text(by)
        return self.call(verbs.extend(arguments.target(timer), moved, if_match), idem=idem)

    def cancel_many(
        self,
        filter: Timers = None,
        *,
        ids: Sequence[str] | None = None,
        idem: str | None = None,
    ) -> int:
        """Cancel all that a filter finds, or those with these ids; how many there were.

        An empty filter is refused: write `{"name_prefix": ""}` to mean every timer.
        """
        return (self.change_many("cancel", filter, ids=ids, idem=idem)).count

    def change_many(
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
        return self.call(verbs.change_many(op, body), idem=idem)

    # ----------------------------------------------------------------------------- finding timers

    def get(self, timer: Timer) -> TimerView:
        """A timer as it is now; by id also after it has ended, within retention."""
        return self.call(verbs.get(arguments.target(timer)))

    def page(
        self, filter: Timers = None, *, limit: int = PAGE_MAX, cursor: str | None = None
    ) -> verbs.Page:
        """One page of pending timers, in order of id."""
        return self.call(verbs.list_page(arguments.timer_filter(filter), limit, cursor))

    def list(self, filter: Timers = None, *, page_size: int = PAGE_MAX) -> Iterator[TimerView]:
        """All pending timers that a filter finds, in order of id; pages are read as needed.

        filter: state[], labels{}, name_prefix, due_from, due_to.
        """
        cursor: str | None = None
        while True:
            page = self.page(filter, limit=page_size, cursor=cursor)
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def next(
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
        found = self.call(verbs.next_dues(asked))
        return [as_datetime(parse_instant(due)) for due in found.dues]

    def forecast(
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
        return self.call(verbs.timeline(asked))

    def snapshot(self, filter: Timers = None, *, page_size: int = PAGE_MAX) -> verbs.Snapshot:
        """The pending timers with the place in the log from which a watch goes on."""
        asked = arguments.timer_filter(filter)
        first = self.call(verbs.snapshot_page(asked, page_size, None))

        def timers() -> Iterator[TimerView]:
            page = first
            while True:
                yield from page.items
                if page.next_cursor is None:
                    return
                page = self.call(verbs.snapshot_page(asked, page_size, page.next_cursor))

        return verbs.Snapshot(first.as_of, timers())

    # ------------------------------------------------------------------------------------- events

    def history(self, timer: Timer, *, limit: int | None = None) -> Events:
        """A timer's events, oldest first; with `limit`, its newest ones."""
        found = arguments.target(timer)
        id = found.id if found.id is not None else self.get(timer).id
        pages: deque[Events] = deque()
        left, cursor = limit, None
        while left is None or left > 0:
            size = PAGE_MAX if left is None else min(left, PAGE_MAX)
            page = self.call(verbs.history_page(id, size, cursor))
            pages.appendleft(page.events)
            left = None if left is None else left - len(page.events)
            cursor = page.next_cursor
            if cursor is None:
                break
        return [event for events in pages for event in events]

    def replay_page(
        self,
        start: ReplayFrom | None = None,
        filter: EventFilter | None = None,
        *,
        limit: int = PAGE_MAX,
    ) -> verbs.ReplayPage:
        """One page of the log, with the cursor of the next."""
        return self.call(verbs.replay_page(start or ReplayFrom(), filter or EventFilter(), limit))

    def replay(
        self,
        *,
        from_cursor: Cursor | tuple[int, int] | None = None,
        since: Since = "start",
        filter: EventFilter | Mapping[str, Any] | None = None,
        types: Sequence[str] = (),
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        page_size: int = PAGE_MAX,
    ) -> Iterator[Event]:
        """The log's events up to now, in order of seq; pages are read as needed.

        Begins after `from_cursor`, (epoch, seq), or `since` a time or the start of the log.
        Raises OutOfRetention, EpochChanged.
        """
        interest = interest_of(
            tenant=self._tenant, filter=filter, types=types, name=name, labels=labels
        )
        start = replay_start(from_cursor, since)
        while True:
            page = self.replay_page(start, interest.filter(), limit=page_size)
            yield from (event for event in page.events if interest.wants(event))
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
    ) -> Watch:
        """Watch events as they leave the node, each once, and none lost; see Watch.

        types: `timer.expired` or `expired`. since: `now`, `start`, a cursor (epoch, seq), or a
        time. snapshot: first an event of the type `snapshot` for each pending timer.
        Returns when the subscription is live, at most some seconds later. Raises Unreachable.
        """
        interest = interest_of(
            tenant=self._tenant, filter=filter, types=types, name=name, labels=labels
        )
        return Watch(
            WatchCore(interest, start_of(since), snapshot=snapshot),
            ask=self.call,
            subscribe=lambda: self._exchange.subscribe(interest.topics()),
            ready_s=self._timeout_s,
        )

    def consumer(self, name: str, **options: Any) -> Consumer:
        """A durable consumer to iterate over, by `with`; it has a thread and a connection of its
        own.

        options: what it is, as of `minoots.consumer_verbs.config_of` (types, labels, since,
        ack_wait, max_deliver, backoff ...): it is made if it is not there. Without any it has to be
        there. And `prefetch`, `wait`, `keep`, as of `minoots.consumer.AsyncConsumer`.
        """
        from minoots.aio import AsyncClient  # only here: it needs what is defined in this module
        from minoots.blocking import Consumer

        return Consumer(
            lambda: AsyncClient(
                timeout=self._patience.timeout_s,
                retries=self._patience.retries,
                tenant=self._tenant,
                locate=self._locate,
            ),
            lambda client: client.consumer(name, **options),
        )
