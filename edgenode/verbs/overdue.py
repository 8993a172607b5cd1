"""The verbs about what is held: overdue.report, overdue.fire, overdue.skip."""

from __future__ import annotations

from collections.abc import Generator

import msgspec
import orjson

from edgenode import overdue
from edgenode.call import Call
from edgenode.held import Order, Word
from edgenode.ledger import Ledger
from engine.record import Kind, Scale
from minoots.wire import bodies
from minoots.wire.bodies import TimerFilter
from minoots.wire.problems import refusal
from minoots.wire.times import format_instant, parse_duration, parse_instant

_report = msgspec.json.Decoder(bodies.OverdueReport)
_order = msgspec.json.Decoder(bodies.OverdueOrder)
_encode = msgspec.json.Encoder().encode

Steps = Generator[int, None, bytes]

SAMPLE_MAX = 100
RATE_MIN = 0.1
RATE_MAX = 100_000.0
ORDERS_MAX = 64  # that are not done


def report(ledger: Ledger, call: Call) -> Steps:
    """`overdue.report`: what is held, by tenant and age, why, and what is ordered."""
    asked = call.read(_report)
    if not 0 <= asked.sample <= SAMPLE_MAX:
        raise refusal(
            "validation",
            f"sample is {asked.sample}; it must be 0 to {SAMPLE_MAX}",
            pointer="/sample",
        )
    census = yield from _counted(ledger, _filter(ledger, asked), asked.sample)
    claimed = yield from _due_if_accepted(ledger)
    held = ledger.held
    facts = census.facts(ledger.now.utc_ns) | {"sample": census.shown(ledger)}
    return orjson.dumps(
        {
            **overdue.summary(held),
            "tenants": {ledger.identity.tenant: facts},
            "orders": [orjson.loads(_encode(order)) for order in held.orders],
            "clock": {
                "held": ledger.wall_held,
                "held_by_ns": ledger.wall_held_by_ns,
                "due_if_accepted": claimed,
            },
        }
    )


def fire(ledger: Ledger, call: Call) -> Steps:
    """`overdue.fire`: let go of what matches; each timer then does as its own policy says."""
    return _ordered(ledger, call, "fire")


def skip(ledger: Ledger, call: Call) -> Steps:
    """`overdue.skip`: what matches does not fire; recurring timers go on with their next due."""
    return _ordered(ledger, call, "skip")


def _ordered(ledger: Ledger, call: Call, word: Word) -> Steps:
    asked = call.read(_order)
    if asked.rate is not None and not RATE_MIN <= asked.rate <= RATE_MAX:
        raise refusal(
            "validation",
            f"rate is {asked.rate:g}; it must be {RATE_MIN:g} to {RATE_MAX:g} per second",
            pointer="/rate",
        )
    wanted = _filter(ledger, asked)
    census = yield from _counted(ledger, wanted, 0)
    held = ledger.held
    if census.count and not asked.dry_run:
        if len(held.orders) >= ORDERS_MAX:
            raise refusal(
                "overloaded",
                f"{len(held.orders)} orders are not done; the limit is {ORDERS_MAX}",
                retry_after_ms=1_000,
            )
        order = Order(word, wanted, asked.rate or 0.0, census.count)
        held.orders = [*held.orders, order]
        ledger.tell(Kind.OVERDUE_ORDERED, _encode(order))
        ledger.remember(held.note())
    return b'{"count":%d}' % census.count


def _counted(
    ledger: Ledger, wanted: TimerFilter, sample: int
) -> Generator[int, None, overdue.Census]:
    census, matches = overdue.Census(sample), overdue.Wanted(wanted)
    for page in overdue.entries(ledger):
        census.add(ledger, page, matches)
        yield 0
    return census


def _due_if_accepted(ledger: Ledger) -> Generator[int, None, int]:
    """How many timers of the wall clock would be due if the clock that is in doubt were right."""
    now_ns, by_ns, count = ledger.now.utc_ns, ledger.wall_held_by_ns, 0
    if by_ns > 0:
        for page in overdue.entries_of(ledger, Scale.WALL, now_ns, now_ns + by_ns):
            count += len(page)
            yield 0
    return count


def _filter(ledger: Ledger, asked: bodies.OverdueReport | bodies.OverdueOrder) -> TimerFilter:
    """The filter with `older_than` in it, as instants. Raises Refused."""
    wanted = asked.filter
    if wanted.state:
        raise refusal(
            "validation",
            "state: all that is held is scheduled; leave it out",
            pointer="/filter/state",
        )
    for member in ("due_from", "due_to"):
        _instant(getattr(wanted, member), f"/filter/{member}")
    if asked.older_than is None:
        return wanted
    try:
        due_to_ns = ledger.now.utc_ns - parse_duration(asked.older_than)
    except ValueError as error:
        raise refusal("validation", f"older_than: {error}", pointer="/older_than") from None
    if wanted.due_to is not None:
        due_to_ns = min(due_to_ns, parse_instant(wanted.due_to))
    return msgspec.structs.replace(wanted, due_to=format_instant(max(due_to_ns, 0)))


def _instant(text: str | None, pointer: str) -> None:
    if text is None:
        return
    try:
        parse_instant(text)
    except ValueError as error:
        raise refusal("validation", str(error), pointer=pointer) from None
