"""The verbs of durable consumers."""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

import msgspec
import orjson

from edgenode import call as calls
from edgenode.call import Call
from edgenode.consumers.deliver import LOOK_EVENTS, body_of
from edgenode.consumers.plan import PULL_WAIT_NS_MAX, Plan, check_name, read_plan, read_span
from edgenode.consumers.state import Consumer, Message
from edgenode.ledger import Ledger
from edgenode.verbs.place import PAGE_BYTES_MAX, STEP_EVENTS, replay_start
from engine.record import Kind
from minoots.wire import bodies
from minoots.wire.problems import refusal
from minoots.wire.times import format_instant

_config = msgspec.json.Decoder(bodies.ConsumerConfig)
_target = msgspec.json.Decoder(bodies.ConsumerTarget)
_list = msgspec.json.Decoder(bodies.ConsumerList)
_pull = msgspec.json.Decoder(bodies.Pull)
_deliveries = msgspec.json.Decoder(bodies.Deliveries)
_nack = msgspec.json.Decoder(bodies.Nack)
_term = msgspec.json.Decoder(bodies.Term)

Steps = Generator[int, None, bytes]

COUNT_MAX = 1_000_000  # events that `consumer.info` looks at to count what is pending
DELAY_NS_MAX = 30 * 86_400_000_000_000


def find(ledger: Ledger, call: Call, name: str, pointer: str = "/name") -> Consumer:
    """The consumer that a request is about. Raises Refused."""
    consumer = ledger.consumers.get(call.principal.tenant, name)
    if consumer is None:
        check_name(name, pointer)
        raise refusal(
            "not_found",
            f"there is no consumer {name!r}; make it with consumer.create",
            pointer=pointer,
        )
    return consumer


def create(ledger: Ledger, call: Call) -> Steps:
    """`consumer.create`: the same again changes nothing, another under the name is refused."""
    asked = call.read(_config)
    tenant = call.principal.tenant
    plan = read_plan(asked, tenant)
    there = ledger.consumers.get(tenant, asked.name)
    if there is None:
        first = yield from _begin(ledger, asked, plan)
        there = ledger.consumers.get(tenant, asked.name)  # others went on meanwhile
    if there is not None:
        if there.config != asked:
            raise refusal(
                "already_exists",
                f"consumer {asked.name!r} exists with another configuration; delete it first or "
                "take another name",
                pointer="/name",
            )
        return _view(ledger, there)
    most = ledger.config.limits.consumers_max
    if len(ledger.consumers.by_key) >= most:
        raise refusal(
            "quota_exceeded",
            f"there are {most} consumers (consumers_max); delete some or raise it",
        )
    consumer = ledger.consumers.make(tenant, asked, plan, ledger.now.utc_ns, first)
    ledger.consumers.listed = True
    ledger.consumers.active(consumer, ledger.now.steady_ns)
    consumer.touch()
    ledger.tell(Kind.CONSUMER_CREATED, calls.encode({"consumer": asked.name, "config": asked}))
    return _view(ledger, consumer)


def _begin(ledger: Ledger, asked: bodies.ConsumerConfig, plan: Plan) -> Generator[int, None, int]:
    """The first event that it looks at. Raises Refused: epoch_changed, out_of_retention."""
    policy, start = asked.deliver_policy, asked.from_
    needs = {"by_seq": "epoch and seq", "by_time": "time"}.get(policy)
    if (start is not None) != (needs is not None):
        detail = f"deliver_policy {policy!r} needs {needs}" if needs else f"{policy!r} takes none"
        raise refusal("validation", f"from: {detail}", pointer="/from")
    if start is not None:
        if (policy == "by_time") != (start.time is not None):
            raise refusal("validation", f"from: {policy!r} needs {needs}", pointer="/from")
        return replay_start(ledger, start)
    if policy == "new":
        return ledger.left_seq + 1
    if policy == "last":
        return (yield from _last(ledger, plan))
    return max(ledger.log.state().first_seq, 1)


def _last(ledger: Ledger, plan: Plan) -> Generator[int, None, int]:
    """The newest event that passes its filter; what comes next, if there is none."""
    end = before = ledger.left_seq + 1
    while before > ledger.log.state().first_seq:
        begin = max(before - STEP_EVENTS, ledger.log.state().first_seq)
        page = ledger.log.events(begin, before - begin, PAGE_BYTES_MAX)
        found = plan.match.among(page)
        if found:
            return begin + found[-1]
        before = begin
        yield 0
    return end


def delete(ledger: Ledger, call: Call) -> bytes:
    """`consumer.delete`: it and its dead letters; pulls that wait are told."""
    consumer = find(ledger, call, call.read(_target).name)
    view = _view(ledger, consumer)
    ledger.delivery.delete(consumer, "consumer.delete")
    return view


def info(ledger: Ledger, call: Call) -> Steps:
    """`consumer.info`: its configuration and where it stands; what is pending is counted."""
    name = call.read(_target).name
    consumer = find(ledger, call, name)
    seq, end, pending = consumer.cursor, ledger.left_seq, 0
    stop = min(end, seq + COUNT_MAX - 1)
    while seq <= stop:
        page = ledger.log.events(seq, min(LOOK_EVENTS, stop - seq + 1), PAGE_BYTES_MAX)
        if not page:
            break
        pending += len(consumer.plan.match.among(page))
        seq += len(page)
        yield 0
        consumer = find(ledger, call, name)
        if consumer.cursor > seq:
            seq, pending = consumer.cursor, 0
    return _view(ledger, consumer, pending=pending, more=seq <= end)


def list_consumers(ledger: Ledger, call: Call) -> bytes:
    """`consumer.list`: a page of them, in the order of their names."""
    asked = call.read(_list)
    if not 1 <= asked.limit <= bodies.PAGE_MAX:
        raise refusal(
            "validation",
            f"limit is {asked.limit}; it must be 1 to {bodies.PAGE_MAX}",
            pointer="/limit",
        )
    tenant, after = call.principal.tenant, asked.cursor or ""
    names = sorted(n for t, n in ledger.consumers.by_key if t == tenant and n > after)
    page = names[: asked.limit]
    items = [_view(ledger, find(ledger, call, name)) for name in page]
    cursor = orjson.dumps(page[-1] if len(names) > len(page) else None)
    return b'{"items":[%b],"next_cursor":%b}' % (b",".join(items), cursor)


def _view(
    ledger: Ledger, consumer: Consumer, *, pending: int | None = None, more: bool = False
) -> bytes:
    epoch = ledger.identity.epoch
    view: dict[str, object] = {
        "name": consumer.name,
        "config": consumer.config,
        "created_at": format_instant(consumer.created_ns),
        "floor": {"epoch": epoch, "seq": consumer.floor},
        "cursor": {"epoch": epoch, "seq": consumer.cursor - 1},
        "ack_pending": len(consumer.held) + len(consumer.again),
        "out": consumer.out_count,
        "waiting": len(consumer.waiting),
        "delivered": consumer.counts.delivered,
        "redelivered": consumer.counts.redelivered,
        "acked": consumer.counts.acked,
        "dead": len(consumer.dead),
    }
    if pending is not None:
        view |= {"pending": pending, "pending_more": more}
    return calls.encode(view)


def pull(ledger: Ledger, call: Call) -> bytes | None:
    """`consumer.pull`: messages now, or (None) once there are some."""
    asked = call.read(_pull)
    consumer = find(ledger, call, asked.name)
    if call.header.idem is not None:
        raise refusal(
            "validation",
            "consumer.pull takes no idempotency key: what is lost on its way comes again after "
            "ack_wait",
        )
    if not 1 <= asked.batch <= bodies.PAGE_MAX:
        raise refusal(
            "validation",
            f"batch is {asked.batch}; it must be 1 to {bodies.PAGE_MAX}",
            pointer="/batch",
        )
    wait_ns = read_span("wait", asked.wait, 0, PULL_WAIT_NS_MAX)
    now_ns, delivery = ledger.now.steady_ns, ledger.delivery
    ledger.consumers.active(consumer, now_ns)
    if not (asked.push and wait_ns):
        # Who has waited longer comes first.
        messages = [] if consumer.waiting else delivery.take(consumer, asked.batch)
        if messages or not wait_ns:
            return body_of(messages)
    waits = sum(len(one.waiting) for one in ledger.consumers.hungry.values())
    most = ledger.config.limits.inbox_max
    if waits >= most:
        raise refusal(
            "overloaded", f"{most} pulls wait (inbox_max); ask again", retry_after_ms=1_000
        )
    delivery.wait(consumer, call, asked.batch, now_ns + wait_ns, asked.push)
    return None


class Named(NamedTuple):
    """Deliveries of a request: those that are out, and those that are not, or not any more."""

    held: list[Message]
    stale: list[str]


def _named(ledger: Ledger, call: Call, consumer: Consumer, deliveries: list[str]) -> Named:
    if len(deliveries) > bodies.DELIVERIES_MAX:
        raise refusal(
            "too_large",
            f"there are {len(deliveries)} deliveries; the limit is {bodies.DELIVERIES_MAX}",
            pointer="/deliveries",
        )
    ledger.consumers.active(consumer, ledger.now.steady_ns)
    held: dict[int, Message] = {}
    stale = []
    for at, text in enumerate(deliveries):
        epoch, seq, attempt = _read_delivery(text, at)
        found = None
        if epoch == ledger.identity.epoch:
            found = consumer.delivered(seq, attempt)
        if found is None or seq in held:
            stale.append(text)
        else:
            held[seq] = found
    return Named(list(held.values()), stale)


def _read_delivery(text: str, at: int) -> tuple[int, int, int]:
    try:
        epoch, seq, attempt = map(int, text.split("."))
    except ValueError:
        raise refusal(
            "validation",
            f"delivery {text[:60]!r} is none; send back what came with the message, unchanged",
            pointer=f"/deliveries/{at}",
        ) from None
    return epoch, seq, attempt


def _counted(count: int, stale: list[str]) -> bytes:
    if not stale:
        return b'{"count":%d}' % count
    return orjson.dumps({"count": count, "stale": stale})


def ack(ledger: Ledger, call: Call) -> bytes:
    """`consumer.ack`: done. A delivery that was delivered again since is not counted."""
    asked = call.read(_deliveries)
    consumer = find(ledger, call, asked.name)
    held, stale = _named(ledger, call, consumer, asked.deliveries)
    for one in held:
        ledger.delivery.ack(consumer, one)
    return _counted(len(held), stale)


def progress(ledger: Ledger, call: Call) -> bytes:
    """`consumer.progress`: still at it."""
    asked = call.read(_deliveries)
    consumer = find(ledger, call, asked.name)
    held, stale = _named(ledger, call, consumer, asked.deliveries)
    count = sum(consumer.renew(one, ledger.now.steady_ns) for one in held)
    return _counted(count, stale)


def nack(ledger: Ledger, call: Call) -> bytes:
    """`consumer.nack`: to be delivered again, or dead-lettered if that was the last time."""
    asked = call.read(_nack)
    consumer = find(ledger, call, asked.name)
    delay_ns = None
    if asked.delay is not None:
        delay_ns = read_span("delay", asked.delay, 0, DELAY_NS_MAX)
    held, stale = _named(ledger, call, consumer, asked.deliveries)
    for one in held:
        if consumer.is_exhausted(one):
            ledger.delivery.bury(consumer, one, asked.reason or f"refused {one.attempt} times")
            continue
        wait_ns = delay_ns
        if wait_ns is None:
            wait_ns = consumer.wait_ns(one) if consumer.plan.has_backoff else 0
        consumer.put_back(one, ledger.now.steady_ns, wait_ns)
    return _counted(len(held), stale)


def term(ledger: Ledger, call: Call) -> bytes:
    """`consumer.term`: never again; dead-lettered."""
    asked = call.read(_term)
    consumer = find(ledger, call, asked.name)
    held, stale = _named(ledger, call, consumer, asked.deliveries)
    for one in held:
        ledger.delivery.bury(consumer, one, asked.reason or "given up by its worker")
    return _counted(len(held), stale)
