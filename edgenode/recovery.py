"""The start-up path: from the store to a ledger that decides. Also what follows a failed commit.

1. the steady timescale goes on from the anchor kept in the notes
2. events that the tables do not hold yet are read into the hot set, and their notes
3. expirations without a receipt wait for their release again, with the same seq
4. if too much is overdue, or the log was restored, that is held (`overdue.py`)
5. the horizon is opened: what is overdue and not held, or due soon, is armed
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from edgenode.config import Config
from edgenode.consumers import notes as consumer_notes
from edgenode.consumers.deliver import Delivery
from edgenode.consumers.room import Consumers
from edgenode.definitions import budget_of
from edgenode.edges import StoreLog, StoreTables
from edgenode.encode import Identity
from edgenode.held import HELD_KEY, held_of
from edgenode.horizon import Horizon
from edgenode.ledger import TICK_NS, Ledger
from edgenode.overdue import guard
from edgenode.turns import Awaited
from engine import schedule as rules
from engine._hot import HotSet
from engine._wheel import Wheel
from engine.clock import Anchor, Clock, Timescale, tick_floor
from engine.record import (
    FOR_EVER_NS,
    Event,
    Image,
    Kind,
    Note,
    Scale,
    rule_of,
    unpack_event,
    unpack_note,
)
from engine.timer import TERMINAL, Reason, State

ANCHOR_KEY = b"\x00minoots.anchor\x00"  # no digest of a client's key: those are random
PAGE_EVENTS = 4_096
PAGE_BYTES = 16 << 20

_encode = msgspec.json.Encoder().encode
_anchor = msgspec.json.Decoder(Anchor)


class Recovered(NamedTuple):
    """A ledger ready to decide. unreleased: (seq, record) of what is to be released again. held:
    what to tell of a set that is held from now on; None for nothing new. held_note: the store does
    not know it yet."""

    ledger: Ledger
    horizon: Horizon
    timescale: Timescale
    unreleased: list[tuple[int, bytes]]
    held: dict[str, object] | None
    held_note: bool


def recover(
    config: Config,
    node_id: str,
    log: StoreLog,
    tables: StoreTables,
    clock: Clock,
    random_bits: Callable[[int], int],
) -> Recovered:
    """Build the ledger from the store. Raises StoreCorrupt."""
    state = log.state()
    notes = newer_notes(log, tables.applied().commit)
    timescale = _timescale(notes, tables, clock, config.clock.hold_above)
    now = timescale.now(clock)
    # A wheel that began at 0 would hold all of them in its heap for what is far away.
    hot = HotSet(Wheel(capacity=1 << 26, now_tick=tick_floor(now.steady_ns, TICK_NS)))
    newest = {key: data for _, key, data in notes}  # the last of each key
    ledger = Ledger(
        config,
        Identity(node_id, "default", state.epoch),
        log,
        tables,
        hot,
        random_bits,
        now,
        consumers_of(log, tables, newest, now.steady_ns),
        chain=state.chain,
        first_seq=state.last_seq + 1,
        serving_since_ns=now.steady_ns,
        settled_seq=state.last_seq,
        live_count=tables.applied().live_count,
        wall_held=timescale.doubt is not None,
        wall_held_by_ns=timescale.doubt_ns,
    )
    for commit, key, data in notes:
        ledger.recovered_note(commit, key, data)
    ledger.delivery = Delivery(ledger)
    _read_newer(ledger, tables.applied().seq + 1)
    unreleased = _unreleased(ledger, state.floor + 1)
    stored = _newest_note(notes, tables, HELD_KEY)
    ledger.held = held_of(stored)
    found = guard(ledger)
    horizon = Horizon(ledger, config.engine)
    horizon.open()
    changed = found is not None or ledger.held != held_of(stored)
    return Recovered(ledger, horizon, timescale, unreleased, found, changed)


def anchor_note(timescale: Timescale, clock: Clock) -> Note:
    """The note that the next start goes on from."""
    anchor = timescale.anchor(clock)
    return Note(ANCHOR_KEY, bytes(16), FOR_EVER_NS, 0, 0, _encode(anchor))


def consumers_of(
    log: StoreLog, tables: StoreTables, newest: dict[bytes, bytes], now_ns: int
) -> Consumers:
    """The durable consumers as they stand. newest: the notes that the tables do not have. Raises
    StoreCorrupt, StoreTooNew."""

    def find(key: bytes) -> bytes | None:
        data = newest.get(key) or tables.note(key)
        return None if data is None else unpack_note(data).reply

    consumers = consumer_notes.restore(find, log.event, now_ns)
    for consumer in consumers.by_key.values():
        # What is gone passed no filter: else it would be held, and kept for that.
        consumer.cursor = max(consumer.cursor, log.state().first_seq)
    return consumers


def newer_notes(log: StoreLog, applied_commit: int) -> list[tuple[int, bytes, bytes]]:
    """(commit, key, note) of those in the log that the tables do not have, in order."""
    found = []
    at = applied_commit + 1
    while page := log.commits(at, PAGE_EVENTS):
        for commit in page:
            found += [(commit.number, note[8:24], note) for note in commit.notes]
        at = page[-1].number + 1
    return found


def _timescale(
    notes: list[tuple[int, bytes, bytes]],
    tables: StoreTables,
    clock: Clock,
    hold_above_ns: int,
) -> Timescale:
    newest = _newest_note(notes, tables, ANCHOR_KEY)
    if newest is None:
        return Timescale.fresh(clock, hold_above_ns)
    saved = _anchor.decode(unpack_note(newest).reply)
    return Timescale.resume(saved, clock, hold_above_ns)


def _newest_note(
    notes: list[tuple[int, bytes, bytes]], tables: StoreTables, wanted: bytes
) -> bytes | None:
    newest = tables.note(wanted)
    for _, key, data in notes:
        if key == wanted:
            newest = data
    return newest


def _read_newer(ledger: Ledger, from_seq: int) -> None:
    """Put what the tables do not hold yet into the hot set."""
    seq = from_seq
    while page := ledger.log.events(seq, PAGE_EVENTS, PAGE_BYTES):
        for data in page:
            image = unpack_event(seq, data).image
            if image is not None:
                scheduled = image.state == State.SCHEDULED
                due_ns = image.due_ns if scheduled else 0
                ledger.hot.note(image.id, seq, due_ns, image.scale)
                ended = image.state in TERMINAL and data[5] != Kind.LATE
                ledger.live_count += (data[5] == Kind.SCHEDULED) - ended
            seq += 1


def _unreleased(ledger: Ledger, from_seq: int) -> list[tuple[int, bytes]]:
    """The expirations that have no receipt."""
    found = []
    seq = from_seq
    while page := ledger.log.events(seq, PAGE_EVENTS, PAGE_BYTES):
        receipts = ledger.log.receipts(seq, seq + len(page) - 1)
        for data in page:
            if data[5] == Kind.EXPIRED and seq not in receipts:
                ledger.expect_receipt(seq, _awaited(ledger, unpack_event(seq, data)))
                found.append((seq, data))
            seq += 1
    ledger.fires_since_ns = 0  # those were decided by an earlier run
    return found


def _awaited(ledger: Ledger, fire: Event) -> Awaited:
    """What an expiry without a receipt waits for."""
    assert fire.image is not None
    wall = fire.image.scale == Scale.WALL
    due_ns = fire.due_ns if wall else _steady_due(ledger, fire, fire.image)
    return Awaited(fire.image.id, due_ns, wall, budget_of(fire.blob))


def _steady_due(ledger: Ledger, fire: Event, image: Image) -> int:
    """The due of an expiry on the steady scale. The event tells it in the UTC of its time, which
    may have been set since; but it follows from the image and the rule."""
    if image.reason == Reason.TRIGGERED:
        return ledger.now.steady_ns
    if image.state in TERMINAL:
        return image.due_ns
    rule = rules.unpack_rule(rule_of(fire.blob))
    if rule.mode == rules.FIXED_DELAY:
        return image.due_ns - rule.interval_ns
    return rule.anchor_ns + (fire.occurrence - rule.first) * rule.interval_ns
