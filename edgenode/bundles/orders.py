"""Commands for a node that cannot be reached: kept until it has said that it has them, and carried
out there in their order.

A command is a request of the contract: `{"op": "timer.schedule", "body": {...}}`, one a line. Its
place in the chain of bundles is its number; the number is its idempotency key, so a crash between
a command and the note that it is done repeats nothing. Keys are kept for a time only
(`log.idem_keep`): an import that was cut longer ago than that is not gone on with unasked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec

from edgenode.bundles.keys import BundleError
from edgenode.manifest import UNREADABLE
from edgenode.node import OPS
from edgenode.verbs.about import BODIES
from minoots.wire.frames import BODY_BYTES_MAX
from minoots.wire.times import parse_instant

TOGETHER = 64  # after so many the book says how far it is
SOME_INSTANT = "2026-01-01T00:00:00Z"
ASK_ELSEWHERE = "consumer."  # what a worker does, not an operator


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A command: a verb that changes something, its body, the revision that its timer must have,
    and the instant after which it is not carried out."""

    op: str
    body: msgspec.Raw
    if_match: int | None = None
    expires_at: str = ""


class Outcome(NamedTuple):
    """What the node said to a command: code is "" if it did it."""

    code: str
    detail: str


# Sends a command with its idempotency key to our node. Raises BundleError if the node cannot be
# reached, or takes no commands now.
Carrier = Callable[[Order, str], Outcome]

_order = msgspec.json.Decoder(Order)
_encode = msgspec.json.Encoder().encode


def read_order(line: bytes) -> Order:
    """A command, checked as far as it can be here. Raises BundleError."""
    try:
        order = _order.decode(line)
    except UNREADABLE as error:
        raise BundleError(f'it is not {{"op": ..., "body": {{...}}}}: {error}') from error
    known = OPS.get(order.op)
    if known is None or not known.changes or order.op.startswith(ASK_ELSEWHERE):
        names = ", ".join(
            op for op, kind in OPS.items() if kind.changes and not op.startswith(ASK_ELSEWHERE)
        )
        raise BundleError(f"op is {order.op[:60]!r}; commands are {names}")
    if len(order.body) > BODY_BYTES_MAX:
        raise BundleError(f"its body is {len(order.body)} bytes; the limit is {BODY_BYTES_MAX}")
    try:
        msgspec.json.decode(order.body, type=BODIES[order.op])
    except UNREADABLE as error:
        raise BundleError(f"its body is no {order.op}: {error}") from error
    try:
        parse_instant(order.expires_at or SOME_INSTANT)
    except ValueError as error:
        raise BundleError(f"expires_at: {error}") from error
    return order


def read_orders(lines: Iterable[bytes], expires_at: str = "") -> list[Order]:
    """The commands of a file, a line each; empty lines are left out. expires_at: of those that do
    not say. Raises BundleError with the line's number, at the first that is wrong."""
    found = []
    for at, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            order = read_order(line.strip())
        except BundleError as error:
            raise BundleError(f"line {at}: {error}") from error
        if expires_at and not order.expires_at:
            order = msgspec.structs.replace(order, expires_at=expires_at)
        found.append(order)
    return found


def as_line(order: Order) -> bytes:
    """A command as one line of JSON, however it was laid out before."""
    return msgspec.json.format(_encode(order), indent=-1)


def key_of(chain: str, number: int) -> str:
    """The idempotency key of a command."""
    return f"bundle/{chain}/{number}"


def carry_out(
    chain: str,
    first: int,
    orders: list[Order],
    carry: Carrier,
    done: Callable[[int], None],
    utc_ns: int,
) -> Iterator[tuple[int, Outcome]]:
    """Carry out commands from number `first` on, one after the other: a later one may rest on an
    earlier one. (number, outcome) of each; one that has expired is refused here. done: told how
    far it is, now and then."""
    for number, order in enumerate(orders, first):
        if order.expires_at and parse_instant(order.expires_at) < utc_ns:
            late = f"it was to be carried out by {order.expires_at}"
            yield number, Outcome("deadline_exceeded", late)
        else:
            yield number, carry(order, key_of(chain, number))
        if (number - first) % TOGETHER == TOGETHER - 1 or number == first + len(orders) - 1:
            done(number + 1)
