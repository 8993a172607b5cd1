"""Every verb of the contract as a Request: what is asked, at which door, and how its reply is read.

Pure, and shared by both clients: they only carry what is built here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from minoots.event import Event, read_event
from minoots.requests import Request
from minoots.wire import bodies
from minoots.wire.bodies import (
    BulkResult,
    Cursor,
    EventFilter,
    ReplayFrom,
    TimerFilter,
    TimerView,
)
from minoots.wire.definition import Definition, Schedule
from minoots.wire.problems import Problem, ProtocolError, Refused

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode


class Hello(msgspec.Struct, kw_only=True):
    """Who the node is: versions, limits, features, and the endpoints of its doors."""

    protocol: list[int] = []
    version: str = ""
    node_id: str = ""
    epoch: int = 0
    limits: dict[str, Any] = {}
    features: list[str] = []
    doors: dict[str, str] = {}


class Page(msgspec.Struct, kw_only=True):
    """Some timers in order of id; `next_cursor` is None at the end."""

    items: list[TimerView]
    next_cursor: str | None = None


class SnapshotPage(msgspec.Struct, kw_only=True):
    """A page of pending timers, and the place in the log that it shows."""

    items: list[TimerView]
    next_cursor: str | None = None
    as_of: Cursor


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The pending timers, page by page as they are iterated over, as of a place in the log.

    A watch from `as_of` tells what has changed since; a page read later may show it already.
    """

    as_of: Cursor
    timers: Iterator[TimerView]


class HistoryPage(msgspec.Struct, kw_only=True):
    """Some events of one timer, in order; `next_cursor` leads to older ones."""

    events: list[Event]
    next_cursor: str | None = None


class ReplayPage(msgspec.Struct, kw_only=True):
    """Some events in order of seq. `next`: where to go on; `end`: nothing more at present."""

    events: list[Event]
    next: Cursor
    end: bool


class TimeReply(msgspec.Struct, kw_only=True):
    """`time.sync`: when the request came in (t1) and the reply left (t2), ns since the epoch."""

    t0: int = 0
    t1: int
    t2: int
    clock_error_us: int | None = None


@dataclass(frozen=True, slots=True)
class TimeSync:
    """How the node's clock stands to ours.

    offset_ns: node minus ours. delay_ns: the way there and back of the best sample; the offset is
    right to half of it. samples: how many were taken.
    """

    offset_ns: int
    delay_ns: int
    samples: int


class _RawEvents(msgspec.Struct, kw_only=True):
    events: list[msgspec.Raw]
    next_cursor: str | None = None


class _RawReplay(msgspec.Struct, kw_only=True):
    events: list[msgspec.Raw]
    next: Cursor
    end: bool = False


class _Results(msgspec.Struct):
    results: list[msgspec.Raw]


class _Result(msgspec.Struct):
    problem: Problem | None = None


class Group(msgspec.Struct, kw_only=True):
    """The counts of the timers with one value of a label; None: without that label."""

    value: str | None = None
    total: int = 0
    bins: list[int] = []


class Forecast(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How many fires come in each bin from `from_` on. groups: by label, the largest first;
    others: those beyond the values that are kept apart."""

    from_: str = msgspec.field(name="from")
    to: str
    bin: str
    total: int
    bins: list[int]
    groups: list[Group] = []
    others: Group | None = None


class _Count(msgspec.Struct):
    count: int


class NextDues(msgspec.Struct):
    """Coming dues, RFC 3339; `occurrence` is the number of the first."""

    occurrence: int
    dues: list[str]


_view: Callable[[bytes], TimerView] = msgspec.json.Decoder(TimerView).decode
_hello: Callable[[bytes], Hello] = msgspec.json.Decoder(Hello).decode
_page: Callable[[bytes], Page] = msgspec.json.Decoder(Page).decode
_snapshot: Callable[[bytes], SnapshotPage] = msgspec.json.Decoder(SnapshotPage).decode
_time: Callable[[bytes], TimeReply] = msgspec.json.Decoder(TimeReply).decode
_results = msgspec.json.Decoder(_Results)
_result = msgspec.json.Decoder(_Result)
_raw_events = msgspec.json.Decoder(_RawEvents)
_raw_replay = msgspec.json.Decoder(_RawReplay)
_count = msgspec.json.Decoder(_Count)
_bulk: Callable[[bytes], BulkResult] = msgspec.json.Decoder(BulkResult).decode
_dues: Callable[[bytes], NextDues] = msgspec.json.Decoder(NextDues).decode
_forecast: Callable[[bytes], Forecast] = msgspec.json.Decoder(Forecast).decode
_document: Callable[[bytes], dict[str, Any]] = msgspec.json.Decoder(dict[str, Any]).decode


def hello() -> Request[Hello]:
    """`hello`."""
    return Request("hello", b"{}", _hello)


def schedule(timer: Definition) -> Request[TimerView]:
    """`timer.schedule`."""
    return Request("timer.schedule", _encode(timer), _view, mutates=True)


def schedule_many(
    timers: Sequence[Definition], *, atomic: bool
) -> Request[list[TimerView | Refused]]:
    """`timer.schedule_many`, one message: at most SCHEDULE_MANY_MAX timers."""
    count = len(timers)

    def read(body: bytes) -> list[TimerView | Refused]:
        results = _results.decode(body).results
        if len(results) != count:
            raise ProtocolError(f"{count} timers were sent, and {len(results)} results came back")
        return [_read_result(raw) for raw in results]

    body = _encode(bodies.ScheduleMany(timers=list(timers), atomic=atomic))
    return Request("timer.schedule_many", body, read, mutates=True)


def _read_result(raw: msgspec.Raw) -> TimerView | Refused:
    problem = _result.decode(raw).problem
    return _view(bytes(raw)) if problem is None else Refused.of(problem)


def change(op: str, timer: bodies.Target, if_match: int | None) -> Request[TimerView]:
    """`timer.cancel`, `pause`, `resume`, `trigger`: verbs that need only a target."""
    return Request(op, _encode(timer), _view, mutates=True, if_match=if_match)


def command(op: str, body: bytes, if_match: int | None = None) -> Request[bytes]:
    """Any verb that changes something, with its body as JSON; the reply's body as it came."""
    return Request(op, body, bytes, mutates=True, if_match=if_match)


def change_many(op: str, body: bodies.Change) -> Request[BulkResult]:
    """`timer.cancel_many`, `pause_many`, `resume_many`, `shift_many`, `relabel_many`."""
    return Request(op, _encode(body), _bulk, mutates=not body.dry_run)


def reschedule(timer: bodies.Target, rule: Schedule, if_match: int | None) -> Request[TimerView]:
    """`timer.reschedule`."""
    body = _encode(bodies.Reschedule(schedule=rule, id=timer.id, name=timer.name, key=timer.key))
    return Request("timer.reschedule", body, _view, mutates=True, if_match=if_match)


def extend(timer: bodies.Target, by: str, if_match: int | None) -> Request[TimerView]:
    """`timer.extend`."""
    body = _encode(bodies.Extend(by=by, id=timer.id, name=timer.name, key=timer.key))
    return Request("timer.extend", body, _view, mutates=True, if_match=if_match)


def get(timer: bodies.Target) -> Request[TimerView]:
    """`timer.get`."""
    return Request("timer.get", _encode(timer), _view)


def list_page(timers: TimerFilter, limit: int, cursor: str | None) -> Request[Page]:
    """`timer.list`, one page."""
    body = _encode(bodies.ListTimers(filter=timers, limit=limit, cursor=cursor))
    return Request("timer.list", body, _page, door="stream")


def snapshot_page(timers: TimerFilter, limit: int, cursor: str | None) -> Request[SnapshotPage]:
    """`stream.snapshot`, one page."""
    body = _encode(bodies.ListTimers(filter=timers, limit=limit, cursor=cursor))
    return Request("stream.snapshot", body, _snapshot, door="stream")


def history_page(id: str, limit: int, cursor: str | None) -> Request[HistoryPage]:
    """`timer.history`, one page: the newest first."""

    def read(body: bytes) -> HistoryPage:
        page = _raw_events.decode(body)
        events = [read_event(bytes(raw)) for raw in page.events]
        return HistoryPage(events=events, next_cursor=page.next_cursor)

    body = _encode(bodies.History(id=id, limit=limit, cursor=cursor))
    return Request("timer.history", body, read, door="stream")


def replay_page(start: ReplayFrom, events: EventFilter, limit: int) -> Request[ReplayPage]:
    """`stream.replay`, one page."""

    def read(body: bytes) -> ReplayPage:
        page = _raw_replay.decode(body)
        return ReplayPage(
            events=[read_event(bytes(raw)) for raw in page.events], next=page.next, end=page.end
        )

    body = _encode(bodies.Replay(from_=start, filter=events, limit=limit))
    return Request("stream.replay", body, read, door="stream")


def next_dues(body: bodies.Next) -> Request[NextDues]:
    """`timer.next`: the coming dues of a timer, or of a schedule that is only tried."""
    return Request("timer.next", _encode(body), _dues)


def timeline(body: bodies.TimelineBins) -> Request[Forecast]:
    """`timeline.bins`: how many fires are to come, by bins."""
    return Request("timeline.bins", _encode(body), _forecast, door="stream")


def stats() -> Request[dict[str, Any]]:
    """`stats`: a JSON document; docs/protocol.md has its members."""
    return Request("stats", b"{}", _document)


def health() -> Request[dict[str, Any]]:
    """`health`: a JSON document."""
    return Request("health", b"{}", _document)


def time_sync(t0_ns: int) -> Request[TimeReply]:
    """`time.sync`, one sample: asked once, because a late reply would lie about the way."""
    return Request("time.sync", _encode(bodies.TimeSync(t0=t0_ns)), _time, once=True)


def time_accept() -> Request[dict[str, Any]]:
    """`time.accept`: a JSON document."""
    return Request("time.accept", b"{}", _document)


def overdue(timers: TimerFilter, older_than: str | None, sample: int) -> Request[dict[str, Any]]:
    """`overdue.report`: a JSON document."""
    body = _encode(bodies.OverdueReport(filter=timers, older_than=older_than, sample=sample))
    return Request("overdue.report", body, _document, door="stream")


def overdue_order(op: str, order: bodies.OverdueOrder) -> Request[int]:
    """`overdue.fire`, `overdue.skip`: for how many it is."""
    return Request(op, _encode(order), lambda raw: _count.decode(raw).count, mutates=True)


def best_sync(samples: Sequence[tuple[int, TimeReply, int]]) -> TimeSync:
    """The sample with the least delay: (t0, reply, t3), t0 and t3 by our clock."""
    found = []
    for t0, reply, t3 in samples:
        delay_ns = (t3 - t0) - (reply.t2 - reply.t1)
        offset_ns = ((reply.t1 - t0) + (reply.t2 - t3)) // 2
        found.append((delay_ns, offset_ns))
    delay_ns, offset_ns = min(found)
    return TimeSync(offset_ns, delay_ns, len(found))


def schema(op: str | None) -> Request[dict[str, Any]]:
    """`schema.get`: the JSON Schema of a verb's body, or of all."""
    return Request("schema.get", _encode(bodies.SchemaGet(op=op)), _document)
