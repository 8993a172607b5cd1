"""What a store must hold after each commit, folded from the batches by the slow and simple way.

This is the oracle of the crash states and of the bit flips. It decodes records with the product's
`record.py`, and takes nothing else from it: which timers live, what is due, named, ended, noted and
not yet receipted is worked out here, in Python, from one event after the other.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.record import IMAGE, ROW_HEAD_BYTES, Image, Kind, pack_row, unpack_event
from engine.store import Batch, Filter
from engine.timer import TERMINAL, State

EVERYTHING = 1 << 40
FAR_NS = 1 << 62
LOOKS = 24


@dataclass(slots=True)
class Standing:
    """The store as commit `number` left it. rows: of the live timers, by id, as stored. due: by
    scale, (due, id) in order. done: of the finished ones, their last seq. unreleased: expirations
    without a receipt."""

    number: int
    last_seq: int
    chain: bytes
    floor: int
    at_ns: int
    trim_below: int
    rows: dict[bytes, bytes] = field(default_factory=dict)
    due: tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]] = field(
        default_factory=lambda: ([], [])
    )
    named: dict[int, list[bytes]] = field(default_factory=dict)
    done: dict[bytes, int] = field(default_factory=dict)
    notes: dict[bytes, bytes] = field(default_factory=dict)
    unreleased: list[int] = field(default_factory=list)
    touched: dict[bytes, None] = field(default_factory=dict)  # by this commit alone


@dataclass(slots=True)
class History:
    """All that was submitted: events and receipts from 1 on, and the standing after each commit."""

    events: list[bytes] = field(default_factory=list)
    receipts: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # (commit, fired_ns)
    standings: list[Standing] = field(default_factory=list)
    _wanted: tuple[int, int, dict[int, int]] = (0, 0, {})

    def receipts_at(self, first: int, commit: int) -> dict[int, int]:
        """The receipts of the events from `first` on, as commit `commit` left them."""
        if self._wanted[:2] != (first, commit):
            # One that is released again after a crash has two: the later one counts.
            wanted = {
                seq: fired_ns
                for seq, given in self.receipts.items()
                if seq >= first
                for number, fired_ns in given
                if number <= commit
            }
            self._wanted = (first, commit, wanted)
        return self._wanted[2]

    def tables_only(self) -> int:
        """Live timers, in the end, of which the log may have nothing left."""
        last = self.standings[-1]
        seqs = (IMAGE.unpack_from(row, ROW_HEAD_BYTES)[1] for row in last.rows.values())
        return sum(seq < last.trim_below for seq in seqs)


def history(batches: list[Batch]) -> History:
    """Fold all batches."""
    told = History()
    told.standings.append(Standing(0, 0, bytes(32), 0, 0, 0))
    images: dict[bytes, Image] = {}
    blobs: dict[bytes, bytes] = {}
    rows: dict[bytes, bytes] = {}
    done: dict[bytes, int] = {}
    notes: dict[bytes, bytes] = {}
    waiting: dict[int, None] = {}
    for number, batch in enumerate(batches, 1):
        touched: dict[bytes, None] = {}
        for seq, data in enumerate(batch.events, batch.first_seq):
            event = unpack_event(seq, data)
            told.events.append(data)
            if event.kind == Kind.EXPIRED:
                waiting[seq] = None
            if event.image is not None:
                _fold(event, images, blobs, rows, done)
                touched[event.image.id] = None
        for seq, fired_ns in _receipts(batch.receipts):
            told.receipts.setdefault(seq, []).append((number, fired_ns))
            waiting.pop(seq, None)
        notes.update((note[8:24], note) for note in batch.notes)
        standing = Standing(
            number,
            len(told.events),
            batch.chain,
            batch.floor,
            batch.at_ns,
            max(batch.trim_below, told.standings[-1].trim_below),
        )
        standing.rows = {id: rows[id] for id in sorted(rows)}
        standing.due = _due(images, rows)
        for id in standing.rows:
            standing.named.setdefault(images[id].name_hash, []).append(id)
        standing.done, standing.notes = dict(done), dict(notes)
        standing.unreleased, standing.touched = list(waiting), touched
        told.standings.append(standing)
    return told


def _fold(
    event: Any,
    images: dict[bytes, Image],
    blobs: dict[bytes, bytes],
    rows: dict[bytes, bytes],
    done: dict[bytes, int],
) -> None:
    image = event.image
    images[image.id] = image
    if event.flags & 2:  # FLAG_BLOB: it defines the timer
        blobs[image.id] = event.blob
    if image.state in TERMINAL:
        rows.pop(image.id, None)
        done[image.id] = image.seq
    else:
        rows[image.id] = pack_row(image, blobs[image.id])


def _due(images: dict[bytes, Image], rows: dict[bytes, bytes]) -> Any:
    due: tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]] = ([], [])
    for id in rows:
        image = images[id]
        if image.state == State.SCHEDULED and image.due_ns:
            due[image.scale].append((image.due_ns, id))
    for scale in due:
        scale.sort()
    return due


def _receipts(packed: bytes) -> Iterator[tuple[int, int]]:
    for at in range(0, len(packed), 16):
        yield (
            int.from_bytes(packed[at : at + 8], "little"),
            int.from_bytes(packed[at + 8 : at + 16], "little", signed=True),
        )


# ------------------------------------------------------------------------------- comparing


def log_faults(log: Any, told: History) -> Iterator[str]:
    """What an open log says that is not so. Raises what the log raises."""
    state = log.state()
    if state.commit >= len(told.standings):
        yield f"GHOST the log ends at commit {state.commit}, which was never submitted"
        return
    now = told.standings[state.commit]
    if (state.last_seq, state.chain) != (now.last_seq, now.chain):
        yield f"CHAIN commit {state.commit} ends at {state.last_seq}, should at {now.last_seq}"
    if (state.floor, state.at_ns) != (now.floor, now.at_ns):
        yield f"CHAIN commit {state.commit} says other things than were submitted"
    if state.last_seq and state.first_seq > max(now.trim_below, 1):
        yield f"LOST the log begins at {state.first_seq}; only {now.trim_below} may be trimmed"
    first = state.first_seq
    events = log.events(first, EVERYTHING, EVERYTHING)
    if events != told.events[first - 1 : now.last_seq]:
        yield f"LOST or GHOST: the {len(events)} events from {first} on are not those submitted"
    receipts = log.receipts(first, now.last_seq)
    wanted = told.receipts_at(first, state.commit)
    if receipts != wanted:
        yield f"LOST or GHOST receipts: {sorted(set(receipts.items()) ^ set(wanted.items()))[:5]}"


class Forgotten(NamedTuple):
    """What tables may have forgotten: finished timers whose last event is below `below`, notes
    older than `notes_before_ns`. draw: looks at some of them only, LOOKS at most."""

    below: int
    notes_before_ns: int
    draw: random.Random | None = None


def tables_faults(
    tables: Any, told: History, log_commit: int, forgotten: Forgotten
) -> Iterator[str]:
    """What open tables say that is not so. Raises what the tables raise."""
    applied = tables.applied()
    if applied.commit > log_commit:
        yield f"GHOST the tables stand at commit {applied.commit}, the log at {log_commit}"
        return
    at = told.standings[applied.commit]
    if applied.seq != at.last_seq or applied.live_count != len(at.rows):
        yield f"LOST the tables say {applied}, should stand at {at.last_seq}, {len(at.rows)} rows"
    rows, after = tables.scan(Filter(), b"", len(at.rows) + 2, EVERYTHING)
    if rows != list(at.rows.values()) or after:
        yield f"LOST or GHOST: {len(rows)} rows are not the {len(at.rows)} that should be"
    for scale in range(2):
        yield from due_faults(tables, at, scale)
    for name, ids in at.named.items():
        if tables.named(name) != ids:
            yield f"LOST or GHOST timers of name {name}"
    yield from end_faults(tables, at, forgotten)


def due_faults(tables: Any, at: Standing, scale: int) -> Iterator[str]:
    """What the due index says of one scale that is not so."""
    ids, dues, _ = tables.due(scale, 0, FAR_NS)
    found = [
        (int.from_bytes(dues[8 * i : 8 * i + 8], "little"), ids[16 * i : 16 * i + 16])
        for i in range(len(ids) // 16)
    ]
    if sorted(found) != at.due[scale]:
        yield f"LOST or GHOST dues of scale {scale}: {len(found)}, should be {len(at.due[scale])}"


def end_faults(tables: Any, at: Standing, forgotten: Forgotten) -> Iterator[str]:
    """What tables say of timers that have ended and of idempotency keys that is not so."""
    ends, notes = list(at.done.items()), list(at.notes.items())
    if forgotten.draw is not None:
        ends = forgotten.draw.sample(ends, min(len(ends), LOOKS))
        notes = forgotten.draw.sample(notes, min(len(notes), LOOKS))
    for id, seq in ends:
        found = tables.done(id)
        if found != seq and (found or seq >= forgotten.below):
            yield f"LOST the end of {id.hex()} is event {seq}, the tables say {found}"
    for key, data in notes:
        found = tables.note(key)
        at_ns = int.from_bytes(data[40:48], "little", signed=True)
        if found != data and (found is not None or at_ns >= forgotten.notes_before_ns):
            yield f"LOST the idempotency note {key.hex()}"


def recovered_faults(ledger: Any, unreleased: list[int], told: History) -> Iterator[str]:
    """What a node that has just started would say of its timers that is not so."""
    state = ledger.log.state()
    now = told.standings[state.commit]
    applied = ledger.tables.applied().commit
    if ledger.live_count != len(now.rows):
        yield f"LOST {ledger.live_count} timers live, should be {len(now.rows)}"
    if unreleased != [seq for seq in now.unreleased if seq >= state.first_seq]:
        yield f"LOST or ZOMBIE expirations: {unreleased} wait, should {now.unreleased}"
    newer: dict[bytes, None] = {}
    for standing in told.standings[applied + 1 : state.commit + 1]:
        newer |= standing.touched
    for id in newer:
        timer = ledger.load(id)
        if id in now.rows:
            if timer is None or pack_row(timer.image, timer.blob) != now.rows[id]:
                yield f"LOST timer {id.hex()}, which is newer than the tables"
        elif timer is not None and timer.image.state not in TERMINAL:
            yield f"ZOMBIE timer {id.hex()} has ended and lives"
    for number in range(applied + 1, state.commit + 1):
        touched = told.standings[number]
        for key in touched.notes:
            if key not in told.standings[number - 1].notes and key not in ledger.newer_notes:
                yield f"LOST the note {key.hex()} of commit {number}"
    horizon = ledger.horizon_ns
    armed = sum(due < horizon for due, _ in now.due[0])
    armed += sum(due - ledger.now.shift_ns < horizon for due, _ in now.due[1])
    if ledger.hot.armed_count != armed:
        yield f"LOST {ledger.hot.armed_count} timers are armed, should be {armed}"
