"""The verbs of dead letters: list, redrive, drop. An id is `<consumer>/<seq>`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import msgspec
import orjson

from edgenode.call import Call
from edgenode.consumers import notes
from edgenode.consumers.dead import Dead
from edgenode.consumers.state import Consumer
from edgenode.event_filter import read_match
from edgenode.ledger import Ledger
from edgenode.verbs.consume import find
from engine.record import check_event
from minoots.wire import bodies
from minoots.wire.problems import refusal
from minoots.wire.times import format_instant

_list = msgspec.json.Decoder(bodies.DlqList)
_take = msgspec.json.Decoder(bodies.DlqTake)

Steps = Generator[int, None, bytes]
Picked = tuple[Consumer, Dead]

STEP = 256  # dead letters that are looked at before others go on


def list_dead(ledger: Ledger, call: Call) -> Steps:
    """`dlq.list`: a page of a consumer's dead letters, with their events."""
    asked = call.read(_list)
    if not 1 <= asked.limit <= bodies.PAGE_MAX:
        raise refusal(
            "validation",
            f"limit is {asked.limit}; it must be 1 to {bodies.PAGE_MAX}",
            pointer="/limit",
        )
    consumer = find(ledger, call, asked.consumer, "/consumer")
    after = _read_cursor(asked.cursor)
    items: list[bytes] = []
    cursor = b"null"
    for dead in (yield from _passing(ledger, consumer, asked.filter, after, asked.limit + 1)):
        if len(items) == asked.limit:
            cursor = b'"%d"' % after
            break
        after = dead.seq
        items.append(_item(ledger, consumer, dead))
    return b'{"items":[%b],"next_cursor":%b}' % (b",".join(items), cursor)


def _read_cursor(text: str | None) -> int:
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise refusal(
            "validation",
            f"cursor is {text[:40]!r}; send back what the page before gave, unchanged",
            pointer="/cursor",
        )
    return int(text)


def _item(ledger: Ledger, consumer: Consumer, dead: Dead) -> bytes:
    record, fired_ns = notes.event_of(ledger.delivery.copy(consumer, dead.seq))
    check_event(dead.seq, record)
    head = orjson.dumps(
        {
            "id": f"{consumer.name}/{dead.seq}",
            "attempts": dead.attempts,
            "reason": dead.reason,
            "at": format_instant(dead.at_ns),
        }
    )
    event = ledger.encoder.event(dead.seq, record, fired_ns, dead.attempts)
    return b'%b,"event":%b}' % (head[:-1], event)


def _passing(
    ledger: Ledger, consumer: Consumer, asked: bodies.EventFilter, after: int, most: int
) -> Generator[int, None, list[Dead]]:
    """Up to `most` dead letters whose event passes a filter, in order."""
    match, found = read_match(asked, consumer.tenant), []
    for looked, dead in enumerate(list(consumer.dead.after(after)), 1):
        if looked % STEP == 0:
            yield 0
        if consumer.dead.get(dead.seq) is not dead:
            continue  # it was taken meanwhile
        record, _ = notes.event_of(ledger.delivery.copy(consumer, dead.seq))
        if match.passes(record):
            found.append(dead)
            if len(found) == most:
                break
    return found


def redrive(ledger: Ledger, call: Call) -> Steps:
    """`dlq.redrive`: to be delivered again, as often as before; attempts go on counting."""
    return _each(ledger, call, ledger.delivery.redrive)


def drop(ledger: Ledger, call: Call) -> Steps:
    """`dlq.drop`: to be forgotten."""
    return _each(ledger, call, ledger.delivery.drop)


def _each(ledger: Ledger, call: Call, act: Callable[[Consumer, Dead], None]) -> Steps:
    """Count dead letters, by ids or by filter, and do something to each unless it is a dry run."""
    asked = call.read(_take)
    if (asked.ids is None) == (asked.consumer is None):
        raise refusal("validation", "give either ids, or consumer and filter", pointer="/ids")
    if asked.ids is not None:
        if asked.filter is not None:
            raise refusal(
                "validation", "filter goes with consumer, not with ids", pointer="/filter"
            )
        if len(asked.ids) > bodies.DELIVERIES_MAX:
            raise refusal(
                "too_large",
                f"there are {len(asked.ids)} ids; the limit is {bodies.DELIVERIES_MAX}",
                pointer="/ids",
            )
        picked = list(_by_id(ledger, call, asked.ids))
    else:
        assert asked.consumer is not None
        consumer = find(ledger, call, asked.consumer, "/consumer")
        wanted = asked.filter or bodies.EventFilter()
        found = yield from _passing(ledger, consumer, wanted, 0, 1 << 30)
        picked = [(consumer, dead) for dead in found]
    count = 0
    for consumer, dead in picked:
        if consumer.dead.get(dead.seq) is dead:
            count += 1
            if not asked.dry_run:
                act(consumer, dead)
    return b'{"count":%d}' % count


def _by_id(ledger: Ledger, call: Call, ids: list[str]) -> Iterator[Picked]:
    seen = set()
    for at, text in enumerate(ids):
        name, slash, seq = text.rpartition("/")
        if not slash or not (seq.isascii() and seq.isdigit() and len(seq) < 19):
            raise refusal(
                "validation",
                f"id is {text[:100]!r}; one is <consumer>/<seq>, as dlq.list shows it",
                pointer=f"/ids/{at}",
            )
        consumer = find(ledger, call, name, f"/ids/{at}")
        dead = consumer.dead.get(int(seq))
        if dead is not None and text not in seen:
            seen.add(text)
            yield consumer, dead
