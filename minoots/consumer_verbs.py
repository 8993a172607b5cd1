"""The verbs of durable consumers and of their dead letters as Requests; see minoots.verbs.

Pure, and shared by both clients. They go to the stream door. Two are asked differently from other
verbs: a pull is never asked twice, because each attempt takes messages (what is lost on its way
comes again after ack_wait); progress bears no idempotency key, because twice is as good as once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from minoots.arguments import Duration, duration_text
from minoots.event import Event, read_event
from minoots.requests import Request
from minoots.watch import Since, start_of, type_of
from minoots.wire import bodies
from minoots.wire.bodies import (
    DELIVERIES_MAX,
    ConsumerConfig,
    Cursor,
    DeliverPolicy,
    EventFilter,
    ReplayFrom,
)
from minoots.wire.times import SECOND, parse_duration

_encode = msgspec.json.Encoder().encode
_DOOR = "stream"


class ConsumerView(msgspec.Struct, kw_only=True):
    """A consumer: its configuration and where it stands.

    floor: every event up to it is settled. cursor: how far it has looked. ack_pending: found and
    not settled, of which `out` are with a worker. waiting: pulls that wait. pending: events that it
    has not looked at and that pass its filter, from `consumer.info` only; pending_more: at least.
    """

    name: str
    config: ConsumerConfig
    created_at: str
    floor: Cursor
    cursor: Cursor
    ack_pending: int = 0
    out: int = 0
    waiting: int = 0
    delivered: int = 0
    redelivered: int = 0
    acked: int = 0
    dead: int = 0
    pending: int | None = None
    pending_more: bool = False


class ConsumerPage(msgspec.Struct, kw_only=True):
    """Some consumers in the order of their names; `next_cursor` is None at the end."""

    items: list[ConsumerView]
    next_cursor: str | None = None


class Delivered(msgspec.Struct, frozen=True):
    """A message as a pull brings it. delivery: what an acknowledgement names. attempt: from 1.
    ack_deadline: RFC 3339, by the node's clock. raw: its event's JSON."""

    delivery: str
    seq: int
    attempt: int
    ack_deadline: str
    raw: msgspec.Raw = msgspec.field(name="event")

    @property
    def event(self) -> Event:
        """The event, decoded at each call."""
        return read_event(bytes(self.raw))


class Settled(msgspec.Struct):
    """What became of some deliveries: `count` were out and are settled; `stale` are those that had
    been delivered again, or settled, before."""

    count: int
    stale: list[str] = []


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that is not delivered any more. id: `<consumer>/<seq>`; at: RFC 3339."""

    id: str
    attempts: int
    reason: str
    at: str
    event: Event


@dataclass(frozen=True, slots=True)
class DeadPage:
    """Some dead letters in the order of their seq; `next_cursor` is None at the end."""

    items: list[DeadLetter]
    next_cursor: str | None = None


class _Messages(msgspec.Struct):
    messages: list[Delivered]


class _Dead(msgspec.Struct):
    id: str
    attempts: int
    reason: str
    at: str
    event: msgspec.Raw


class _DeadPage(msgspec.Struct):
    items: list[_Dead]
    next_cursor: str | None = None


class _Count(msgspec.Struct):
    count: int


_view: Callable[[bytes], ConsumerView] = msgspec.json.Decoder(ConsumerView).decode
_page: Callable[[bytes], ConsumerPage] = msgspec.json.Decoder(ConsumerPage).decode
_settled: Callable[[bytes], Settled] = msgspec.json.Decoder(Settled).decode
_messages = msgspec.json.Decoder(_Messages)
_dead_page = msgspec.json.Decoder(_DeadPage)
_count = msgspec.json.Decoder(_Count)


# ------------------------------------------------------------------------------------ arguments


def config_of(
    name: str,
    *,
    types: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    name_prefix: str = "",
    deliver_policy: DeliverPolicy | None = None,
    since: Since | None = None,
    ack_wait: Duration = "30s",
    max_deliver: int = 0,
    backoff: Sequence[Duration] = (),
    max_ack_pending: int = 1_000,
    ordered: bool = False,
    inactive_threshold: Duration | None = None,
) -> ConsumerConfig:
    """A consumer's configuration. Raises ValueError, TypeError.

    types: `timer.expired` or `expired`. since: `start`, `now`, a cursor (epoch, seq) after which it
    begins, or a time; deliver_policy says the same in the words of the contract, and `last`.
    """
    start = None
    if since is not None:
        if deliver_policy is not None:
            raise ValueError("since and deliver_policy both say where it begins; give one")
        deliver_policy, start = _where(since)
    return ConsumerConfig(
        name=name,
        deliver_policy=deliver_policy or "all",
        from_=start,
        filter=EventFilter(
            types=[type_of(kind) for kind in types],
            labels=dict(labels or {}),
            name_prefix=name_prefix,
        ),
        ack_wait=duration_text(ack_wait),
        max_deliver=max_deliver,
        backoff=[duration_text(wait) for wait in backoff],
        max_ack_pending=max_ack_pending,
        ordered=ordered,
        inactive_threshold=None
        if inactive_threshold is None
        else duration_text(inactive_threshold),
    )


def _where(since: Since) -> tuple[DeliverPolicy, ReplayFrom | None]:
    start = start_of(since)
    if start is None:
        return "new", None
    if start.time is not None:
        return "by_time", start
    return ("all", None) if start.seq is None else ("by_seq", start)


def waits_s(config: ConsumerConfig) -> tuple[float, ...]:
    """The seconds that an acknowledgement may take after the first, second ... delivery; the last
    one repeats."""
    return tuple(parse_duration(text) / SECOND for text in config.backoff or [config.ack_wait])


def deliveries_of(messages: str | Delivered | Iterable[str | Delivered]) -> list[str]:
    """The deliveries that are meant by messages, or by their `delivery` texts.

    Raises ValueError above DELIVERIES_MAX of them.
    """
    some = [messages] if isinstance(messages, str | Delivered) else messages
    found = [one if isinstance(one, str) else one.delivery for one in some]
    if len(found) > DELIVERIES_MAX:
        raise ValueError(f"there are {len(found)} deliveries; at most {DELIVERIES_MAX} at a time")
    return found


# ---------------------------------------------------------------------------------------- verbs


def create(config: ConsumerConfig) -> Request[ConsumerView]:
    """`consumer.create`."""
    return Request("consumer.create", _encode(config), _view, door=_DOOR, mutates=True)


def info(name: str) -> Request[ConsumerView]:
    """`consumer.info`."""
    body = _encode(bodies.ConsumerTarget(name=name))
    return Request("consumer.info", body, _view, door=_DOOR)


def delete(name: str) -> Request[ConsumerView]:
    """`consumer.delete`."""
    body = _encode(bodies.ConsumerTarget(name=name))
    return Request("consumer.delete", body, _view, door=_DOOR, mutates=True)


def list_page(limit: int, cursor: str | None) -> Request[ConsumerPage]:
    """`consumer.list`, one page."""
    body = _encode(bodies.ConsumerList(limit=limit, cursor=cursor))
    return Request("consumer.list", body, _page, door=_DOOR)


def pull(name: str, batch: int, wait: Duration) -> Request[list[Delivered]]:
    """`consumer.pull`: up to `batch` messages, waiting for the first at most `wait`."""
    text = duration_text(wait)
    return Request(
        "consumer.pull",
        _encode(bodies.Pull(name=name, batch=batch, wait=text)),
        lambda body: _messages.decode(body).messages,
        door=_DOOR,
        once=True,
        wait_s=parse_duration(text) / SECOND,
    )


def ack(name: str, deliveries: list[str]) -> Request[Settled]:
    """`consumer.ack`."""
    body = _encode(bodies.Deliveries(name=name, deliveries=deliveries))
    return Request("consumer.ack", body, _settled, door=_DOOR, mutates=True)


def progress(name: str, deliveries: list[str]) -> Request[Settled]:
    """`consumer.progress`."""
    body = _encode(bodies.Deliveries(name=name, deliveries=deliveries))
    return Request("consumer.progress", body, _settled, door=_DOOR)


def nack(
    name: str, deliveries: list[str], delay: Duration | None = None, reason: str = ""
) -> Request[Settled]:
    """`consumer.nack`. delay: none for the consumer's backoff, or at once if it has none."""
    asked = bodies.Nack(
        name=name,
        deliveries=deliveries,
        delay=None if delay is None else duration_text(delay),
        reason=reason,
    )
    return Request("consumer.nack", _encode(asked), _settled, door=_DOOR, mutates=True)


def term(name: str, deliveries: list[str], reason: str = "") -> Request[Settled]:
    """`consumer.term`."""
    body = _encode(bodies.Term(name=name, deliveries=deliveries, reason=reason))
    return Request("consumer.term", body, _settled, door=_DOOR, mutates=True)


def dead_page(
    consumer: str, events: EventFilter, limit: int, cursor: str | None
) -> Request[DeadPage]:
    """`dlq.list`, one page."""

    def read(body: bytes) -> DeadPage:
        page = _dead_page.decode(body)
        items = [
            DeadLetter(one.id, one.attempts, one.reason, one.at, read_event(bytes(one.event)))
            for one in page.items
        ]
        return DeadPage(items, page.next_cursor)

    asked = bodies.DlqList(consumer=consumer, filter=events, limit=limit, cursor=cursor)
    return Request("dlq.list", _encode(asked), read, door=_DOOR)


def dead_take(
    op: str,
    ids: Sequence[str] | None,
    consumer: str | None,
    events: EventFilter | Mapping[str, Any] | None,
    *,
    dry_run: bool,
) -> Request[int]:
    """`dlq.redrive` and `dlq.drop`: by ids, or those of a consumer that pass a filter."""
    wanted = events if events is None or isinstance(events, EventFilter) else EventFilter(**events)
    asked = bodies.DlqTake(
        ids=None if ids is None else list(ids), consumer=consumer, filter=wanted, dry_run=dry_run
    )
    if (asked.ids is None) == (consumer is None):
        raise ValueError("give either ids, or a consumer and a filter")
    return Request(
        op, _encode(asked), lambda raw: _count.decode(raw).count, door=_DOOR, mutates=True
    )
