"""The tables behind the log: when slices are made, what is forgotten, what is rebuilt."""

from __future__ import annotations

from pathlib import Path

import lmdb
import pytest

from engine._tables import LmdbTables
from engine.errors import EngineError, StoreCorrupt
from engine.files import catch_up, close_store, open_store, rebuild_tables, reindex_due
from engine.memory import MemoryLog, MemoryTables
from engine.record import FLAG_SLIM, Kind, Note, name_hash, pack_blob, pack_note, unpack_row
from engine.store import Batch, Filter
from engine.timer import State
from tests.unit.stored import (
    BLOB,
    HOUR_NS,
    SLIM,
    Writer,
    behind,
    event,
    expire,
    filled,
    flip,
    opened,
    timer_id,
    wait,
)

EVERYTHING = 1 << 62
TEA = name_hash(b"tea")


def test_a_slice_is_made_once_enough_wait(tmp_path: Path) -> None:
    with opened(tmp_path, entries=10) as (log, tables, writer):
        for _ in range(3):
            writer.create(3)
            tables.follow(log.state().last_seq, log.state().commit)
        assert tables.applied().commit == 0
        writer.create(1)
        tables.follow(10, 4)
        while tables.applied().commit < 4:
            wait(tables.fileno())
        assert tables.applied()[:4] == (10, 4, 10, 0)


def test_a_slice_is_made_once_the_oldest_has_waited(tmp_path: Path) -> None:
    log, tables = open_store(tmp_path, slice_age_ns=5_000_000)
    Writer(log).create(2)
    tables.follow(2, 1)
    while tables.applied().commit < 1:
        wait(tables.fileno())
    close_store(tmp_path, log, tables)


def test_a_timer_that_lived_inside_one_slice_costs_only_its_done_row(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with opened(path) as (log, tables, writer):
        writer.write([event(1, timer=9)])
        writer.write([event(2, Kind.EXPIRED, State.COMPLETED, timer=9)])
        catch_up(log, tables)
        assert (tables.row(timer_id(9)), tables.done(timer_id(9))) == (None, 2)
    for table, count in ((b"timers", 0), (b"due", 0), (b"names", 0), (b"done", 1)):
        with behind(path / "tables", table) as (_, keys):
            assert len(keys) == count


def test_a_row_keeps_its_newest_definition(tmp_path: Path) -> None:
    newer = pack_blob(b"rule", b"tea", b"{}", b"", b"newer", b"")
    older = pack_blob(b"rule", b"tea", b"{}", b"", b"older", b"")
    with opened(tmp_path) as (log, tables, writer):
        writer.create(1)
        writer.write([event(2, Kind.PAUSED, State.PAUSED, timer=1)])
        catch_up(log, tables)
        assert unpack_row(timer_id(1), tables.row(timer_id(1)) or b"")[1] == BLOB
        assert tables.due(1, 0, EVERYTHING)[:2] == (b"", b"")
        writer.write(
            [
                event(3, Kind.RESCHEDULED, timer=1, blob=older),
                event(4, Kind.RESCHEDULED, timer=1, blob=newer),
                event(5, Kind.EXPIRED, timer=1, due_ns=99, blob=SLIM, flags=FLAG_SLIM),
            ]
        )
        catch_up(log, tables)
        image, blob = unpack_row(timer_id(1), tables.row(timer_id(1)) or b"")
        assert (image.seq, image.due_ns, blob) == (5, 99, newer)
        assert tables.due(1, 0, EVERYTHING)[:2] == (timer_id(1), (99).to_bytes(8, "little"))


def test_a_definition_without_its_timer_is_corrupt(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, tables, writer):
        writer.write([event(1, Kind.PAUSED, State.PAUSED, timer=5)])
        tables.follow(1, 1, now=True)
        wait(tables.fileno())
        with pytest.raises(StoreCorrupt, match=f"the row of timer {timer_id(5).hex()} is missing"):
            tables.applied()
        with pytest.raises(StoreCorrupt):
            tables.applied()
        assert log.state().commit == 1


def test_a_born_again_timer_outlives_its_first_end(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, tables, writer):
        writer.write([event(1, timer=9), event(2, Kind.CANCELLED, State.CANCELLED, timer=9)])
        catch_up(log, tables)
        writer.write([event(3, timer=9)])
        catch_up(log, tables)
        assert tables.done(timer_id(9)) == 0
        writer.write([event(4, Kind.CANCELLED, State.CANCELLED, timer=9), event(5)])
        catch_up(log, tables)
        assert expire(tables, 4) == 4
        assert tables.done(timer_id(9)) == 4
        assert expire(tables, 5) == 5
        assert tables.done(timer_id(9)) == 0


def test_what_is_expired_never_passes_what_was_applied(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, tables, writer):
        writer.create(4)
        catch_up(log, tables)
        writer.create(4)
        assert expire(tables, 100) == 4
        assert tables.expire(100, 0) == 4


def test_old_notes_are_swept_and_new_ones_kept(tmp_path: Path) -> None:
    def note(number: int) -> bytes:
        return pack_note(Note(timer_id(number), bytes(16), number, 1, 1, b""))

    with opened(tmp_path) as (log, tables, writer):
        writer.write([event(1)], notes=[note(number) for number in range(5000)])
        writer.write([], notes=[note(7)])
        catch_up(log, tables)
        assert tables.applied().notes_count == 5000
        while tables.applied().notes_count > 3000:
            tables.expire(0, 2000)
            wait(tables.fileno())
        assert tables.note(timer_id(1999)) is None
        assert tables.note(timer_id(2000)) == note(2000)


def test_due_opens_hours_and_sorts_them(tmp_path: Path) -> None:
    dues = [3 * HOUR_NS, 5, HOUR_NS, HOUR_NS - 1, 2 * HOUR_NS, 5]
    with opened(tmp_path) as (log, tables, writer):
        writer.write([event(seq, due_ns=due) for seq, due in enumerate(dues, 1)])
        catch_up(log, tables)
        ids, found = tables.due(1, 5, 2 * HOUR_NS)[:2]
        assert ids == b"".join(timer_id(number) for number in (2, 6, 4, 3))
        assert found == b"".join(due.to_bytes(8, "little") for due in (5, 5, HOUR_NS - 1, HOUR_NS))
        assert tables.due(1, 6, HOUR_NS)[:2] == (timer_id(4), (HOUR_NS - 1).to_bytes(8, "little"))
        assert tables.due(0, 0, EVERYTHING)[:2] == (b"", b"")
        assert tables.due(1, -5, 0)[:2] == (b"", b"")


def test_a_scan_ends_where_it_says(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, tables, writer):
        writer.create(10)
        catch_up(log, tables)
        rows, after = tables.scan(Filter(), b"", 4, 100)
        assert (len(rows), after) == (4, timer_id(4))
        rows, after = tables.scan(Filter(states=(State.PAUSED,)), after, 4, 3)
        assert (rows, after) == ([], timer_id(7))
        rows, after = tables.scan(Filter(labels=(b'"ops"',)), after, 4, 100)
        assert ([row[8:24] for row in rows], after) == ([timer_id(n) for n in (8, 9, 10)], b"")
        assert tables.scan(Filter(tenant=1), b"", 4, 100) == ([], b"")
        with pytest.raises(AssertionError, match="a filter has 17 labels; the limit is 16"):
            tables.scan(Filter(labels=(b"x",) * 17), b"", 1, 1)


def test_the_indexes_are_made_anew_from_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(path)
    with opened(path) as (_, tables, _):
        due, names = tables.due(1, 0, EVERYTHING)[:2], tables.named(TEA)
        assert len(names) == 39
    for table in (b"due", b"names"):
        with behind(path / "tables", table) as (txn, keys):
            for key in keys[::2]:
                txn.delete(key)
    with opened(path) as (_, tables, _):
        assert len(tables.named(TEA)) < 39
        reindex_due(tables)
        assert (tables.due(1, 0, EVERYTHING)[:2], tables.named(TEA)) == (due, names)


def test_tables_are_rebuilt_as_far_as_the_log_reaches(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with opened(path, entries=50) as (log, tables, writer):
        writer.create(600)
        writer.write([event(601, Kind.RESCHEDULED, timer=5, due_ns=77, blob=BLOB)])
        writer.write([event(602, Kind.RESCHEDULED, timer=6, due_ns=78)])
        writer.write([event(603, Kind.CANCELLED, State.CANCELLED, timer=7)])
        catch_up(log, tables)
        whole = everything(tables)
        assert rebuild_tables(log, tables) == 0
        assert everything(tables) == whole
        expire(tables, 258)
        writer.write([], trim_below=258)
        catch_up(log, tables)
        assert log.state().first_seq == 257
        assert rebuild_tables(log, tables) == 1
        assert tables.applied().live_count == 600 - 256 + 1
        assert tables.row(timer_id(6)) is None
        assert tables.done(timer_id(7)) == 603
    with opened(path) as (log, tables, writer):
        writer.write([event(604, Kind.CANCELLED, State.CANCELLED, timer=5)])
        catch_up(log, tables)
        assert tables.applied().live_count == 600 - 256


def everything(tables: LmdbTables) -> tuple[object, ...]:
    rows = tables.scan(Filter(), b"", 10_000, 10_000)
    return rows, tables.due(1, 0, EVERYTHING)[:2], tables.named(TEA), tables.done(timer_id(7))


def test_no_flipped_bit_comes_back_as_a_value(tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(path, 6)
    for table in (b"timers", b"due", b"names", b"done"):
        with behind(path / "tables", table) as (_, keys):
            assert keys
        for key in (keys[0], keys[-1]):
            for bit in range(3, 1300, 197):
                flip(path / "tables", table, key, bit)
                with opened(path) as (_, tables, _), pytest.raises(StoreCorrupt):
                    read_all(tables)
                flip(path / "tables", table, key, bit)
    with opened(path) as (_, tables, _):
        read_all(tables)


def read_all(tables: LmdbTables) -> None:
    for number in range(1, 7):
        row = tables.row(timer_id(number))
        if row is not None:
            unpack_row(timer_id(number), row)
        tables.done(timer_id(number))
    everything(tables)


def test_a_damaged_event_stops_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with opened(path) as (log, _, writer):
        writer.create(5)
        writer.create(5)
    with behind(path / "log", b"events") as (_, keys):
        pass
    flip(path / "log", b"events", keys[2], 600)
    with opened(path) as (log, tables, _):
        with pytest.raises(StoreCorrupt, match="event 3 does not agree with its checksum"):
            catch_up(log, tables)
        with pytest.raises(EngineError):
            tables.applied()
        assert tables.row(timer_id(1)) is None


def test_a_damaged_position_is_found_at_opening(tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(path)
    flip(path / "tables", b"meta", b"standing", 100)
    with pytest.raises(StoreCorrupt, match="the tables' position does not agree"):
        open_store(path)
    flip(path / "tables", b"meta", b"standing", 100)
    with behind(path / "tables", b"timers") as (txn, keys):
        txn.delete(keys[0])
    with pytest.raises(StoreCorrupt, match="the tables hold 38 timers and 0 notes"):
        open_store(path)


def test_the_twin_makes_no_slice_while_it_is_held() -> None:
    log = MemoryLog()
    tables = MemoryTables(log, slice_entries=2)
    log.submit(Batch(1, 0, events=[event(1)]))
    tables.follow(1, 1)
    assert tables.applied().commit == 0
    tables.hold()
    log.submit(Batch(2, 0, events=[event(2)]))
    tables.follow(2, 2)
    assert (tables.applied().commit, tables.expire(2, 0)) == (0, 1)
    tables.let_go()
    assert tables.applied()[:3] == (2, 2, 2)
    log.damage(2, event(3))
    log.submit(Batch(3, 0, events=[event(3)]))
    tables.follow(3, 3, now=True)
    with pytest.raises(StoreCorrupt, match="event 2 does not agree with its checksum"):
        tables.expire(EVERYTHING, 0)


def test_a_scan_of_everything_does_not_stay_in_memory(tmp_path: Path) -> None:
    """The rows are 60 MB of file; what is mapped of it is let go every 65,536 of them."""
    blob = pack_blob(b"", b"tea", b"{}", b"s" * 30, b"p" * 400, b"")

    def mapped_bytes() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssFile:")[2].split()[0]) * 1024

    with opened(tmp_path) as (log, tables, writer):
        for first in range(1, 100_001, 10_000):
            writer.write([event(seq, blob=blob) for seq in range(first, first + 10_000)])
        catch_up(log, tables)
        before, most, after = mapped_bytes(), 0, b""
        while True:
            rows, after = tables.scan(Filter(labels=(b"none",)), after, 10, 4_096)
            assert rows == []
            most = max(most, mapped_bytes() - before)
            if not after:
                break
        assert tables.applied().bytes_used > 55 << 20
        assert 4 << 20 < most < 48 << 20


def commits_of(path: Path) -> int:
    """How many transactions the tables of a closed store have seen."""
    with lmdb.open(str(path / "tables"), max_dbs=8, readonly=True, lock=False) as found:
        return int(found.info()["last_txnid"])


def test_a_slice_that_is_due_by_its_age_is_written_in_pieces(tmp_path: Path) -> None:
    """So that no commit of the log waits for all of it to be synced."""
    with opened(tmp_path):
        pass
    before = commits_of(tmp_path)
    log, tables = open_store(tmp_path, slice_age_ns=50_000_000)
    writer = Writer(log)
    for _ in range(20):
        writer.create(1_000)
    state = log.state()
    tables.follow(state.last_seq, state.commit)
    while tables.applied().seq < state.last_seq:
        wait(tables.fileno())
    close_store(tmp_path, log, tables)
    assert 2 <= commits_of(tmp_path) - before <= 4


def test_who_hurries_takes_whole_slices(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    before = commits_of(tmp_path)
    with opened(tmp_path, entries=20_000) as (log, tables, writer):
        for _ in range(20):
            writer.create(1_000)
        catch_up(log, tables)
    assert commits_of(tmp_path) - before == 1


def test_a_slice_that_has_enough_events_is_written_whole(tmp_path: Path) -> None:
    with opened(tmp_path, entries=16_000) as (log, tables, writer):
        for _ in range(35):
            writer.create(1_000)
        state = log.state()
        tables.follow(state.last_seq, state.commit)
        wait(tables.fileno())
        assert tables.applied().seq >= 16_000
