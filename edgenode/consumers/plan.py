"""What a consumer's configuration means, checked."""

from __future__ import annotations

import re
from typing import NamedTuple

from edgenode.event_filter import Match, read_match
from engine.record import Kind
from minoots.wire.bodies import PULL_WAIT_MAX, ConsumerConfig
from minoots.wire.problems import Refused, refusal
from minoots.wire.times import format_duration, parse_duration

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
ACK_WAIT_NS_MIN = 10_000_000
ACK_WAIT_NS_MAX = 30 * 86_400_000_000_000
DELIVER_MAX = 1_000_000
BACKOFF_MAX = 64
ACK_PENDING_MAX = 65_536
PULL_WAIT_NS_MAX = parse_duration(PULL_WAIT_MAX)

_TIMER_KINDS = (1 << Kind.NODE_STARTED) - 1


class Plan(NamedTuple):
    """waits_ns: how long an acknowledgement may take after the first, second ... delivery; the last
    one repeats. has_backoff: whether they are backoffs, which a nack waits too. inactive_ns: 0 for
    never."""

    match: Match
    waits_ns: tuple[int, ...]
    has_backoff: bool
    max_deliver: int
    max_ack_pending: int
    ordered: bool
    inactive_ns: int

    def wait_ns(self, attempt: int) -> int:
        """How long the acknowledgement of the delivery with this number, from 1, may take."""
        return self.waits_ns[min(attempt, len(self.waits_ns)) - 1]


def read_plan(asked: ConsumerConfig, tenant: str) -> Plan:
    """Check a configuration, all but where it begins. Raises Refused."""
    check_name(asked.name)
    _between("max_deliver", asked.max_deliver, 0, DELIVER_MAX)
    _between("max_ack_pending", asked.max_ack_pending, 1, ACK_PENDING_MAX)
    if len(asked.backoff) > BACKOFF_MAX:
        raise _wrong("backoff", f"has {len(asked.backoff)} waits; the limit is {BACKOFF_MAX}")
    if asked.max_deliver and len(asked.backoff) > asked.max_deliver:
        raise _wrong(
            "backoff",
            f"has {len(asked.backoff)} waits for {asked.max_deliver} deliveries (max_deliver); "
            "leave out the last ones",
        )
    waits = asked.backoff or [asked.ack_wait]
    member = "backoff" if asked.backoff else "ack_wait"
    inactive_ns = 0
    if asked.inactive_threshold is not None:
        inactive_ns = read_span("inactive_threshold", asked.inactive_threshold, ACK_WAIT_NS_MIN)
    read_span("ack_wait", asked.ack_wait, ACK_WAIT_NS_MIN)
    match = read_match(asked.filter, tenant)
    if not asked.filter.types:  # what the node tells of itself has to be asked for
        match = match._replace(kinds_low=_TIMER_KINDS, kinds_high=0)
    return Plan(
        match,
        tuple(read_span(member, text, ACK_WAIT_NS_MIN) for text in waits),
        bool(asked.backoff),
        asked.max_deliver,
        asked.max_ack_pending,
        asked.ordered,
        inactive_ns,
    )


def check_name(name: str, pointer: str = "/name") -> None:
    """Raise Refused unless this can be the name of a consumer."""
    if not NAME.fullmatch(name):
        raise refusal(
            "validation",
            f"name is {name[:80]!r}; a consumer's has 1 to 64 of the characters A-Z a-z 0-9 _ -",
            pointer=pointer,
        )


def read_span(member: str, text: str, low_ns: int, high_ns: int = ACK_WAIT_NS_MAX) -> int:
    """A duration within its range, in ns. Raises Refused."""
    try:
        span_ns = parse_duration(text)
    except ValueError as error:
        raise _wrong(member, f"{error}", named=False) from None
    if not low_ns <= span_ns <= high_ns:
        raise _wrong(
            member,
            f"is {text!r}; the range is {format_duration(low_ns)} to {format_duration(high_ns)}",
        )
    return span_ns


def _between(member: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise _wrong(member, f"is {value}; the range is {low} to {high}")


def _wrong(member: str, detail: str, *, named: bool = True) -> Refused:
    text = f"{member} {detail}" if named else f"{member}: {detail}"
    return refusal("validation", text, pointer=f"/{member}")
