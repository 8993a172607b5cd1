"""One suite for both twins of the store: a rule-based machine of turns, slices, trims, crashes.

The model beside it is as plain as can be: a list of decoded events, replayed from the start.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.record import (
    FLAG_BLOB,
    FLAG_SLIM,
    Event,
    Image,
    Kind,
    Note,
    chain_hash,
    name_hash,
    pack_blob,
    pack_event,
    pack_note,
    unpack_blob,
    unpack_event,
    unpack_note,
    unpack_row,
)
from engine.store import Batch, Filter
from engine.timer import TERMINAL, State
from tests.model.stores import HOUR_NS, LmdbStore, MemoryStore, follow_all, wait_durable

EVERYTHING = 1 << 62
IDS = 12
NAMES = (b"", b"tea", b"teapot", b"night")
LABELS = (b"{}", b'{"team":"ops"}', b'{"env":"prod","team":"ops"}')


def pairs(ids: bytes, dues: bytes) -> list[tuple[int, bytes]]:
    """(due, id) of a page of the due index."""
    return [
        (int.from_bytes(dues[k * 8 : k * 8 + 8], "little", signed=True), ids[k * 16 : k * 16 + 16])
        for k in range(len(ids) // 16)
    ]


def paged(tables: Any, scale: int, low: int, high: int) -> list[tuple[int, bytes]]:
    """The same, read three entries at a time."""
    found, after = [], b""
    while True:
        ids, dues, after = tables.due(scale, low, high, after, 3)
        found += pairs(ids, dues)
        if not after:
            return sorted(found)


@dataclass
class Model:
    """What a store must hold, event by event and commit by commit."""

    events: list[Event] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    receipts: dict[int, int] = field(default_factory=dict)
    live: dict[bytes, Image] = field(default_factory=dict)

    def tables(self, commit: int) -> Tables:
        tables = Tables()
        for batch in self.batches[:commit]:
            for seq in range(batch.first_seq, batch.first_seq + len(batch.events)):
                tables.fold(self.events[seq - 1])
            for note in batch.notes:
                tables.notes[unpack_note(note).key] = note
        return tables


@dataclass
class Tables:
    rows: dict[bytes, tuple[Image, bytes]] = field(default_factory=dict)
    done: dict[bytes, int] = field(default_factory=dict)
    notes: dict[bytes, bytes] = field(default_factory=dict)

    def fold(self, event: Event) -> None:
        image = event.image
        if image is None:
            return
        old = self.rows.pop(image.id, (None, b""))[1]
        if image.state in TERMINAL:
            self.done[image.id] = event.seq
        else:
            self.rows[image.id] = (image, event.blob if event.flags & FLAG_BLOB else old)


turns = st.lists(
    st.tuples(
        # create, reschedule, fire, skip, escalate, pause, cancel, resume, node
        st.sampled_from("cccccrrfsepxun"),
        st.integers(0, IDS - 1),
        st.integers(1, 5 * HOUR_NS),
        st.integers(0, 40),
    ),
    max_size=8,
)


class StoreMachine(RuleBasedStateMachine):
    """Turns, slices at any time, trimming, reopening and crashing between any two steps."""

    harness: Any

    def __init__(self) -> None:
        super().__init__()
        self.store = self.harness()
        self.model = Model()
        self.clock = 1000
        self.trim = 0
        self.notes_before = 0

    def teardown(self) -> None:
        self.store.close()

    @rule(ops=turns, notes=st.integers(0, 2), twice=st.booleans())
    def turn(self, ops: list[tuple[str, int, int, int]], notes: int, twice: bool) -> None:
        numbers = [self.submit(self.decide(ops, notes))]
        if twice:
            numbers.append(self.submit(self.decide(ops[::-1], 0)))
        for seq, raw in enumerate(self.model.raw[-len(ops) :], len(self.model.raw) - len(ops) + 1):
            assert not ops or self.store.log.event(seq) == raw
        wait_durable(self.store.log, numbers[-1])

    @precondition(lambda self: self.model.batches)
    @rule(behind=st.integers(0, 3))
    def slice(self, behind: int) -> None:
        number = max(self.store.tables.applied().commit, len(self.model.batches) - behind)
        if number:
            batch = self.model.batches[number - 1]
            follow_all(self.store.tables, batch.first_seq + len(batch.events) - 1, number)

    @rule(back=st.integers(0, 6), notes_before=st.integers(0, 10))
    def expire(self, back: int, notes_before: int) -> None:
        applied = self.store.tables.applied()
        below = max(self.trim, applied.seq - back)
        self.notes_before = max(self.notes_before, self.clock - 200 * notes_before - 200)
        reached = self.store.expire(below, self.notes_before)
        assert reached <= max(applied.seq, 1)
        self.trim = max(self.trim, min(below, reached, applied.seq))

    @rule()
    def reopen(self) -> None:
        self.store.reopen()

    @rule(ops=turns, landed=st.integers(0, 1))
    def crash(self, ops: list[tuple[str, int, int, int]], landed: int) -> None:
        batch = self.decide(ops, 1)
        state = self.store.log.state()
        if self.store.crash(batch, landed):
            self.remember(batch)
        else:
            # Pages of LMDB's own free list are counted as they were before the last commit.
            assert self.store.log.state()._replace(bytes_used=0) == state._replace(bytes_used=0)

    def decide(self, ops: list[tuple[str, int, int, int]], notes: int) -> Batch:
        self.clock += 100
        state = self.model
        first = len(state.raw) + 1
        batch = Batch(first, self.clock)
        live = dict(state.live)
        for op, which, due, size in ops:
            seq = first + len(batch.events)
            raw = self.event(op, which, due, size, seq, live)
            batch.events.append(raw)
        expired = [e.seq for e in state.events if e.kind == Kind.EXPIRED][-3:]
        owed = [seq for seq in expired if seq not in state.receipts]
        pairs = [(seq, self.clock + seq) for seq in reversed(owed)]
        batch.receipts = b"".join(
            seq.to_bytes(8, "little") + at.to_bytes(8, "little") for seq, at in pairs
        )
        for n in range(notes):
            key = hashlib.sha256(b"%d" % ((first + n) % 7)).digest()[:16]
            note = Note(key, bytes(16), self.clock, first, len(batch.events), b"reply" * n)
            batch.notes.append(pack_note(note))
        batch.floor = first - 1
        batch.trim_below = self.trim
        previous = state.batches[-1].chain if state.batches else bytes(32)
        batch.chain = chain_hash(
            previous, first, batch.events, batch.receipts, b"".join(batch.notes)
        )
        return batch

    def event(
        self, op: str, which: int, due: int, size: int, seq: int, live: dict[bytes, Image]
    ) -> bytes:
        id = which.to_bytes(2, "big") * 8
        old = live.get(id)
        if op == "n" or (old is None and op != "c"):
            return pack_event(seq, Kind.NODE_STARTED, 0, self.clock, 0, 0, 0, None, b"start")
        blob = b""
        name = NAMES[which % len(NAMES)]
        if old is None:
            kind, state = Kind.SCHEDULED, State.SCHEDULED
        else:
            kind, state = {
                "c": (Kind.RESCHEDULED, State.SCHEDULED),
                "r": (Kind.RESCHEDULED, State(old.state)),
                "f": (Kind.EXPIRED, State.COMPLETED if due % 2 else State(old.state)),
                "s": (Kind.SKIPPED, State.COMPLETED if due % 2 else State(old.state)),
                "e": (Kind.ESCALATED, State(old.state)),
                "p": (Kind.PAUSED, State.PAUSED),
                "x": (Kind.CANCELLED, State.CANCELLED),
                "u": (Kind.RESUMED, State.SCHEDULED),
            }[op]
        if old is None or op == "c":
            labels = LABELS[due % len(LABELS)]
            blob = pack_blob(b"r", name, labels, b"s", b"p" * size * size * 4, b"rest")
        image = Image(
            id, seq, due if state == State.SCHEDULED else 0, self.clock, 5, name_hash(name),
            1, 1, which % 2, state, which % 3 % 2, 0,
        )  # fmt: skip
        live[id] = image
        if state in TERMINAL:
            del live[id]
        prev = old.seq if old else 0
        if op in "se" and old is not None:
            told = pack_blob(b"", name, b"{}", b"", b"", b'{"count":3}')
            return pack_event(seq, kind, FLAG_SLIM, self.clock, prev, due, 1, image, told)
        return pack_event(seq, kind, 0, self.clock, prev, due, 1, image, blob)

    def submit(self, batch: Batch) -> int:
        while not self.store.log.ready():
            self.store.log.durable()
        number: int = self.store.log.submit(batch)
        self.remember(batch)
        assert number == len(self.model.batches)
        return number

    def remember(self, batch: Batch) -> None:
        model = self.model
        model.batches.append(batch)
        for seq, raw in enumerate(batch.events, batch.first_seq):
            event = unpack_event(seq, raw)
            model.events.append(event)
            model.raw.append(raw)
            if event.image and event.image.state in TERMINAL:
                model.live.pop(event.image.id, None)
            elif event.image:
                model.live[event.image.id] = event.image
        for at in range(0, len(batch.receipts), 16):
            seq = int.from_bytes(batch.receipts[at : at + 8], "little")
            model.receipts[seq] = int.from_bytes(batch.receipts[at + 8 : at + 16], "little")

    @invariant()
    def log_agrees(self) -> None:
        log, model = self.store.log, self.model
        state = log.state()
        assert (state.last_seq, state.commit) == (len(model.raw), len(model.batches))
        assert 1 <= state.first_seq <= max(self.trim, 1)
        if model.batches:
            newest = model.batches[-1]
            assert (state.chain, state.floor, state.at_ns) == (
                newest.chain,
                newest.floor,
                newest.at_ns,
            )
        first = state.first_seq
        assert log.events(first, EVERYTHING, EVERYTHING) == model.raw[first - 1 :]
        assert log.events(first, 3, EVERYTHING) == model.raw[first - 1 :][:3]
        assert log.events(first, 3, 0) == model.raw[first - 1 :][:1]
        assert log.event(first - 1) is None
        assert log.event(state.last_seq + 1) is None
        assert log.receipts(first, state.last_seq) == {
            seq: at for seq, at in model.receipts.items() if seq >= first
        }
        at = self.clock - 150
        expected = [e.seq for e in model.events[first - 1 :] if e.at_ns >= at]
        assert log.seq_at(at) == (expected[0] if expected else state.last_seq + 1)

    @invariant()
    def commits_agree(self) -> None:
        commits = self.store.log.commits(1, EVERYTHING)
        batches = self.model.batches
        assert all(a.number + 1 == b.number for a, b in pairwise(commits))
        assert len(batches) == (commits[-1].number if commits else 0)
        assert not commits or commits[0].first_seq <= max(self.store.log.state().first_seq, 1)
        for commit in commits:
            batch = batches[commit.number - 1]
            assert commit[1:] == (
                batch.first_seq,
                len(batch.events),
                batch.at_ns,
                batch.chain,
                batch.floor,
                len(batch.receipts) // 16,
                batch.notes,
            )
            assert self.store.log.sealed_receipts(commit.number) == batch.receipts

    @invariant()
    def tables_agree(self) -> None:
        tables = self.store.tables
        applied = tables.applied()
        model = self.model.tables(applied.commit)
        assert applied.live_count == len(model.rows)
        assert applied.seq == sum(len(b.events) for b in self.model.batches[: applied.commit])
        for which in range(IDS):
            id = which.to_bytes(2, "big") * 8
            row = tables.row(id)
            assert (unpack_row(id, row) if row else None) == model.rows.get(id)
            done = 0 if id in model.rows else model.done.get(id, 0)
            assert tables.done(id) == done or (tables.done(id) == 0 and done < self.trim_reached())
        for name in NAMES[1:]:
            expected = sorted(
                i for i, (m, _) in model.rows.items() if m.name_hash == name_hash(name)
            )
            assert tables.named(name_hash(name)) == expected
        for key, raw in model.notes.items():
            old = unpack_note(raw).at_ns < self.notes_before
            assert tables.note(key) == raw or (old and tables.note(key) is None)
        assert tables.note(b"?" * 16) is None

    def trim_reached(self) -> int:
        reached: int = self.store.expire(0, 0)
        return reached

    @invariant()
    def due_agrees(self) -> None:
        model = self.model.tables(self.store.tables.applied().commit)
        for scale in (0, 1):
            for low, high in ((0, EVERYTHING), (HOUR_NS // 2, 2 * HOUR_NS), (HOUR_NS, HOUR_NS + 5)):
                found = sorted(
                    (image.due_ns, id)
                    for id, (image, _) in model.rows.items()
                    if image.scale == scale and image.due_ns and low <= image.due_ns < high
                )
                ids, dues = self.store.tables.due(scale, low, high)[:2]
                assert paged(self.store.tables, scale, low, high) == sorted(pairs(ids, dues))
                assert ids == b"".join(id for _, id in found)
                assert dues == b"".join(due.to_bytes(8, "little") for due, _ in found)

    @invariant()
    def scan_agrees(self) -> None:
        model = self.model.tables(self.store.tables.applied().commit)
        filters = (
            Filter(),
            Filter(tenant=1, states=(State.SCHEDULED,)),
            Filter(labels=(b'"team":"ops"',), name_prefix=b"tea"),
            Filter(due_from_ns=2 * HOUR_NS, due_to_ns=4 * HOUR_NS, scale_shift_ns=HOUR_NS),
        )
        for filter in filters:
            expected = [id for id in sorted(model.rows) if passes(filter, *model.rows[id])]
            assert self.scanned(filter, 100, 100) == expected
            assert self.scanned(filter, 2, 3) == expected

    def scanned(self, filter: Filter, limit: int, budget: int) -> list[bytes]:
        found, after = [], b""
        while True:
            rows, after = self.store.tables.scan(filter, after, limit, budget)
            assert len(rows) <= limit
            found += [row[8:24] for row in rows]
            if not after:
                return found


def passes(filter: Filter, image: Image, blob: bytes) -> bool:
    parts = unpack_blob(blob)
    due = image.due_ns + (filter.scale_shift_ns if image.scale == 0 else 0)
    asked = bool(filter.due_from_ns or filter.due_to_ns)
    in_time = image.due_ns and due >= filter.due_from_ns
    in_time = in_time and (not filter.due_to_ns or due < filter.due_to_ns)
    return bool(
        image.tenant == filter.tenant
        and (not filter.states or image.state in filter.states)
        and all(needle in parts.labels for needle in filter.labels)
        and parts.name.startswith(filter.name_prefix)
        and (not asked or in_time)
    )


class MemoryMachine(StoreMachine):
    harness = MemoryStore


class LmdbMachine(StoreMachine):
    harness = LmdbStore


calm = settings(
    max_examples=50,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestMemory = MemoryMachine.TestCase
TestMemory.settings = calm
TestLmdb = LmdbMachine.TestCase
TestLmdb.settings = calm
