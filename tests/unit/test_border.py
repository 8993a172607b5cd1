"""Index pages are split between groups: they become full, and hold what they held before."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bench import pages
from engine._log import LmdbLog
from engine._tables import LmdbTables
from engine.errors import StoreCorrupt
from engine.files import catch_up
from engine.record import Image, Kind, Scale, name_hash, pack_event
from engine.timer import State
from tests.unit.stored import BLOB, HOUR_NS, Writer, opened

NAMES = [f"name-{k}".encode() for k in range(7)]
END_NS = 1 << 62


class Timers:
    """Timers written to a store, and what its indexes must then hold."""

    def __init__(self, writer: Writer, first_id: int = 1_000) -> None:
        self.writer = writer
        self.next_id = first_id
        self.live: dict[bytes, tuple[int, bytes]] = {}
        self.pending: list[bytes] = []

    def put(self, id: bytes, due_ns: int, name: bytes, kind: Kind, state: State) -> None:
        """One event, decided but not written yet."""
        seq = self.writer.state.last_seq + 1 + len(self.pending)
        image = Image(id, seq, due_ns, 1, 0, name_hash(name), 1, 1, 0, state, Scale.WALL, 0)
        blob = BLOB if kind == Kind.SCHEDULED else b""
        self.pending.append(pack_event(seq, kind, 0, seq, 0, due_ns, 1, image, blob))

    def create(self, due_ns: int, name: bytes) -> bytes:
        id = self.next_id.to_bytes(16, "big")
        self.next_id += 1
        self.put(id, due_ns, name, Kind.SCHEDULED, State.SCHEDULED)
        self.live[id] = (due_ns, name)
        return id

    def cancel(self, id: bytes) -> None:
        self.put(id, 0, self.live.pop(id)[1], Kind.CANCELLED, State.CANCELLED)

    def move(self, id: bytes, due_ns: int) -> None:
        name = self.live[id][1]
        self.put(id, due_ns, name, Kind.RESCHEDULED, State.SCHEDULED)
        self.live[id] = (due_ns, name)

    def slice(self, log: LmdbLog, tables: LmdbTables) -> None:
        """Write what is pending, and have the tables take it in at once."""
        self.writer.write(self.pending)
        self.pending = []
        catch_up(log, tables)

    def check(self, tables: LmdbTables) -> None:
        """Raise AssertionError unless both indexes hold the live timers and nothing else."""
        ids, dues, _ = tables.due(Scale.WALL, 0, END_NS)
        found = {
            ids[16 * k : 16 * k + 16]: int.from_bytes(dues[8 * k : 8 * k + 8], "little")
            for k in range(len(dues) // 8)
        }
        assert len(ids) // 16 == len(found)
        assert found == {id: due_ns for id, (due_ns, _) in self.live.items()}
        for name in {name for _, name in self.live.values()}:
            expected = sorted(id for id, (_, of) in self.live.items() if of == name)
            assert tables.named(name_hash(name)) == expected


def fill_of(path: Path, table: str) -> float:
    fill: float = pages.of_store(path, contents=True)["tables"]["databases"][table]["leaf_fill"]
    return fill


@pytest.mark.parametrize("per_slice", [3, 20, 300])
def test_pages_become_full_when_groups_grow_side_by_side(tmp_path: Path, per_slice: int) -> None:
    with opened(tmp_path / "s") as (log, tables, writer):
        timers = Timers(writer)
        for _ in range(1 + 1_500 // per_slice):
            for hour in range(1, 6):
                for k in range(per_slice):
                    timers.create(hour * HOUR_NS + k, NAMES[hour])
            timers.slice(log, tables)
        timers.check(tables)
    # Half of each page was empty while LMDB split them in the middle: 0.52 and 0.53.
    assert fill_of(tmp_path / "s", "due") > 0.9
    assert fill_of(tmp_path / "s", "names") > 0.75


@pytest.mark.parametrize("seed", range(6))
def test_the_indexes_hold_what_they_should(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    hours = rng.choice([2, 9, 60])
    with opened(tmp_path / "s") as (log, tables, writer):
        timers = Timers(writer)
        for _ in range(12):
            for _ in range(rng.choice([1, 30, 400])):
                due_ns = rng.randint(1, hours) * HOUR_NS + rng.randrange(HOUR_NS)
                timers.create(due_ns, rng.choice(NAMES[: rng.randint(1, 7)]))
            timers.slice(log, tables)
            for id in rng.sample(sorted(timers.live), len(timers.live) // 5):
                if rng.random() < 0.5:
                    timers.cancel(id)
                else:
                    timers.move(id, rng.randint(1, hours) * HOUR_NS + rng.randrange(HOUR_NS))
            if timers.pending:
                timers.slice(log, tables)
            timers.check(tables)


def test_ids_that_sort_before_a_stopper_are_left_alone(tmp_path: Path) -> None:
    """A node makes no such ids; whoever else fills a store may."""
    with opened(tmp_path / "s") as (log, tables, writer):
        timers = Timers(writer, first_id=0)
        timers.create(2 * HOUR_NS, NAMES[0])
        timers.create(2 * HOUR_NS, NAMES[0])
        for _ in range(60):
            timers.create(2 * HOUR_NS, NAMES[1])
        timers.slice(log, tables)
        for _ in range(8):
            for _ in range(25):
                timers.create(HOUR_NS, NAMES[2])
            timers.slice(log, tables)
            timers.check(tables)


def test_a_damaged_entry_is_not_moved(tmp_path: Path) -> None:
    """It stays where it is and is found when it is read; the slice goes on."""
    path = tmp_path / "s"
    with opened(path) as (log, tables, writer):
        timers = Timers(writer)
        for hour in (1, 1, 2, 2):
            for _ in range(20):
                timers.create(hour * HOUR_NS, b"")
        timers.slice(log, tables)
    file = path / "tables/data.mdb"
    key = bytes([Scale.WALL]) + (2).to_bytes(4, "big") + (1_079).to_bytes(16, "big")
    damaged = key[:6] + b"\x40" + key[7:]
    assert key in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(key, damaged))
    with opened(path) as (log, tables, writer):
        again = Timers(writer, first_id=5_000)
        for _ in range(40):
            again.create(HOUR_NS, b"")
        again.slice(log, tables)
        with pytest.raises(StoreCorrupt, match="due"):
            tables.due(Scale.WALL, 2 * HOUR_NS, 3 * HOUR_NS)
