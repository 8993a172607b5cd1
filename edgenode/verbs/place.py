"""Where in the log a reader begins: after a cursor, or at the first event since a time."""

from __future__ import annotations

from edgenode.encode import time_of_event
from edgenode.ledger import Ledger
from minoots.wire import bodies
from minoots.wire.problems import refusal
from minoots.wire.times import parse_instant

STEP_EVENTS = 256  # events that are looked at before others go on
PAGE_BYTES_MAX = 4 << 20


def replay_start(ledger: Ledger, asked: bodies.ReplayFrom) -> int:
    """The first seq to look at. Raises Refused: epoch_changed, out_of_retention."""
    if asked.time is not None:
        if asked.seq is not None or asked.epoch is not None:
            raise refusal("validation", "give either time or epoch and seq", pointer="/from")
        try:
            at_ns = parse_instant(asked.time)
        except ValueError as error:
            raise refusal("validation", f"time: {error}", pointer="/from/time") from None
        return first_since(ledger, at_ns)
    first_seq = ledger.log.state().first_seq
    if asked.epoch is not None and asked.epoch != ledger.identity.epoch:
        raise refusal(
            "epoch_changed",
            f"the cursor is of epoch {asked.epoch}; the log is in epoch {ledger.identity.epoch}; "
            "take a snapshot and go on from there",
            pointer="/from/epoch",
        )
    if asked.seq is None:
        return max(first_seq, 1)
    if not 0 <= asked.seq < ledger.next_seq:
        raise refusal(
            "validation",
            f"seq is {asked.seq}; the log ends at {ledger.next_seq - 1}",
            pointer="/from/seq",
        )
    if asked.seq + 1 < first_seq:
        raise out_of_retention(ledger, asked.seq + 1)
    return asked.seq + 1


def first_since(ledger: Ledger, at_ns: int) -> int:
    """The first event whose `time` is not before an instant.

    An expiration is decided up to a lead before its own, so the search by decision begins earlier.
    """
    seq = ledger.log.seq_at(at_ns - ledger.config.engine.lead_max)
    while page := ledger.log.events(seq, STEP_EVENTS, PAGE_BYTES_MAX):
        for data in page:
            if time_of_event(data) >= at_ns:
                return seq
            seq += 1
    return seq


def out_of_retention(ledger: Ledger, seq: int) -> Exception:
    first_seq = ledger.log.state().first_seq
    return refusal(
        "out_of_retention",
        f"event {seq} is gone; the log begins at {first_seq}; take a snapshot and go on from there",
        pointer="/from/seq",
    )
