"""Batches for tests of the store, and damage done to its files behind its back."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from engine._log import LmdbLog
from engine._tables import LmdbTables
from engine.files import catch_up, close_store, open_store
from engine.record import Image, Kind, chain_hash, name_hash, pack_blob, pack_event
from engine.store import Batch
from engine.timer import State

BLOB = pack_blob(b"rule", b"tea", b'{"team":"ops"}', b"s" * 30, b"p" * 60, b"rest")
SLIM = pack_blob(b"rule", b"tea", b'{"team":"ops"}', b"", b"", b"")
HOUR_NS = 3600 * 10**9


def timer_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def event(
    seq: int,
    kind: Kind = Kind.SCHEDULED,
    state: State = State.SCHEDULED,
    *,
    timer: int = 0,
    due_ns: int = 5,
    blob: bytes = b"",
    flags: int = 0,
    at_ns: int = 0,
    name: bytes = b"tea",
    prev_seq: int = 0,
) -> bytes:
    """One event; of the timer with its own number, unless another is named."""
    image = Image(
        timer_id(timer or seq), seq, due_ns if state == State.SCHEDULED else 0, 1, 0,
        name_hash(name), 1, 1, 0, state, 1, 0,
    )  # fmt: skip
    blob = blob or (BLOB if kind == Kind.SCHEDULED else b"")
    return pack_event(seq, kind, flags, at_ns or seq, prev_seq, due_ns, 1, image, blob)


def receipt(seq: int, fired_ns: int) -> bytes:
    return seq.to_bytes(8, "little") + fired_ns.to_bytes(8, "little", signed=True)


class Writer:
    """Submits batches, chained, and waits for each."""

    def __init__(self, log: LmdbLog) -> None:
        self.log = log
        self.state = log.state()

    def write(self, events: list[bytes], **fields: object) -> int:
        batch = Batch(self.state.last_seq + 1, self.state.last_seq, events=events, **fields)  # type: ignore[arg-type]
        notes = b"".join(batch.notes)
        batch.chain = chain_hash(self.state.chain, batch.first_seq, events, batch.receipts, notes)
        number = self.log.submit(batch)
        while self.log.durable() < number:
            wait(self.log.fileno())
        self.state = self.log.state()
        return number

    def create(self, count: int, *, due_ns: int = 5) -> int:
        """That many new timers, one commit."""
        first = self.state.last_seq + 1
        return self.write([event(seq, due_ns=due_ns + seq) for seq in range(first, first + count)])


def wait(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(20_000), "nothing happened in 20 s"


@contextmanager
def opened(
    path: Path, *, entries: int = 65_536, map_bytes: int = 0
) -> Iterator[tuple[LmdbLog, LmdbTables, Writer]]:
    """An open store and its writer; the tables make no slice unless they are asked."""
    log, tables = open_store(path, slice_entries=entries, slice_age_ns=HOUR_NS, map_bytes=map_bytes)
    try:
        yield log, tables, Writer(log)
    finally:
        close_store(path, log, tables)


def expire(tables: LmdbTables, below: int, notes_before_ns: int = 0) -> int:
    """Ask to expire, and wait until it is done."""
    while True:
        seq = tables.applied().seq
        reached = tables.expire(below, notes_before_ns)
        if reached >= min(below, seq):
            return reached
        wait(tables.fileno())


def filled(path: Path, count: int = 40) -> None:
    """A closed store of some timers, of which one is finished, with receipts and tables."""
    with opened(path) as (log, tables, writer):
        writer.create(count)
        last = count + 1
        writer.write(
            [event(last, Kind.CANCELLED, State.CANCELLED, timer=3, prev_seq=3)],
            receipts=receipt(2, 22) + receipt(1, 11),
        )
        catch_up(log, tables)


@contextmanager
def behind(path: Path, table: bytes) -> Iterator[tuple[lmdb.Transaction, list[bytes]]]:
    """A write transaction on one table of a closed environment, and its keys."""
    environment = lmdb.open(str(path), max_dbs=8, map_size=1 << 30, sync=False)
    try:
        database = environment.open_db(table, create=False)
        with environment.begin(db=database, write=True) as txn:
            yield txn, [bytes(key) for key, _ in txn.cursor()]
    finally:
        environment.close()


def flip(path: Path, table: bytes, key: bytes, bit: int) -> None:
    """Flip one bit of a stored value; bit counts from its start, and wraps."""
    with behind(path, table) as (txn, _):
        value = txn.get(key)
        assert value is not None
        damaged = bytearray(value)
        damaged[bit // 8 % len(damaged)] ^= 1 << bit % 8
        txn.put(key, bytes(damaged))
