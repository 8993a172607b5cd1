"""The log over LMDB: what it takes and refuses, how it trims, what it says of damaged bytes."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from engine._log import LmdbLog
from engine.errors import StoreCorrupt, StoreFailed, StoreFull, StoreTooNew
from engine.files import catch_up
from engine.memory import MemoryLog
from engine.record import Kind, unpack_event
from engine.store import CHAIN_START, Batch
from tests.unit.stored import Writer, behind, event, expire, filled, flip, opened, receipt, wait

EVERYTHING = 1 << 62


def test_an_empty_log_says_so(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, _, _):
        state = log.state()
        assert (state.epoch, state.first_seq, state.last_seq, state.commit) == (1, 1, 0, 0)
        assert (state.chain, state.floor, state.at_ns) == (CHAIN_START, 0, 0)
        assert log.event(0) is None
        assert log.event(1) is None
        assert log.events(1, 10, EVERYTHING) == []
        assert log.commits(1, 10) == []
        assert log.seq_at(0) == 1


def test_what_does_not_follow_on_is_a_bug(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, _, writer):
        with pytest.raises(AssertionError, match="begins at seq 2; the log goes on at 1"):
            log.submit(Batch(2, 0, events=[event(2)]))
        with pytest.raises(AssertionError, match="receipts are pairs of 16 bytes"):
            log.submit(Batch(1, 0, receipts=b"123"))
        with pytest.raises(AssertionError, match="a chain is 32 bytes, not 3"):
            log.submit(Batch(1, 0, chain=b"abc"))
        with pytest.raises(TypeError, match="an event is bytes, not bytearray"):
            log.submit(Batch(1, 0, events=[bytearray(50)]))  # type: ignore[list-item]
        assert writer.create(3) == 1  # nothing of it was taken


def test_a_record_is_seen_at_once_and_survives_its_caller(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, _, _):
        events = [event(seq) for seq in range(1, 2001)]
        batch = Batch(1, 0, events=list(events))
        assert log.submit(batch) == 1
        assert log.event(2000) == events[1999]
        batch.events.clear()
        copies = [bytes(bytearray(data)) for data in events]
        del events
        gc.collect()
        while not log.durable():
            wait(log.fileno())
        assert log.events(1, EVERYTHING, EVERYTHING) == copies


def test_receipts_may_come_late_and_out_of_order(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, _, writer):
        writer.create(5)
        writer.write([], receipts=receipt(5, 50) + receipt(2, -20) + receipt(4, 40))
        writer.write([], receipts=receipt(1, 10) + receipt(2, 21))
        assert log.receipts(1, 5) == {1: 10, 2: 21, 4: 40, 5: 50}
        assert log.receipts(3, 4) == {4: 40}
        assert log.sealed_receipts(2) == receipt(5, 50) + receipt(2, -20) + receipt(4, 40)


def test_a_commit_trims_a_bounded_number(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, tables, writer):
        writer.create(1000)
        catch_up(log, tables)
        below = expire(tables, 900)
        assert below == 900
        writer.write([event(1001)], trim_below=900)
        assert log.state().first_seq == 1 + 256 + 2
        assert log.event(258) is None
        assert log.event(259) is not None
        assert log.events(258, 5, EVERYTHING) == []
        for _ in range(5):
            writer.write([], trim_below=900)
        assert log.state().first_seq == 900
        assert [c.number for c in log.commits(1, 99)] == [1, 2, 3, 4, 5, 6, 7]


def test_an_event_that_is_kept_keeps_its_receipt_and_its_seal(tmp_path: Path) -> None:
    """A commit deletes a bounded number, and there are fewer receipts and seals than events."""
    with opened(tmp_path) as (log, tables, writer):
        for _ in range(10):
            writer.create(100)
        writer.write([], receipts=b"".join(receipt(seq, seq) for seq in range(850, 900)))
        catch_up(log, tables)
        assert expire(tables, 900) == 900
        writer.write([event(1001)], trim_below=900)
        assert log.state().first_seq == 259
        assert set(log.receipts(1, 1000)) == set(range(850, 900))
        assert log.commits(1, 1)[0].first_seq == 201
        for _ in range(5):
            writer.write([], trim_below=900)
        assert log.state().first_seq == 900
        assert log.receipts(1, 1000) == {}


def test_a_log_never_trims_its_newest_commit(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, _, writer):
        writer.create(5)
        writer.create(5)
        writer.write([event(11)], trim_below=EVERYTHING)
        assert log.state().first_seq == 10
        assert [c.number for c in log.commits(1, 99)] == [2, 3]


def test_events_stop_at_either_limit(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, _, writer):
        writer.create(10)
        one = len(event(1))
        assert len(log.events(3, 4, EVERYTHING)) == 4
        assert len(log.events(3, 100, 0)) == 1
        assert len(log.events(3, 100, one)) == 2
        assert len(log.events(3, 100, 3 * one - 1)) == 3
        assert log.events(3, 0, EVERYTHING) == []
        assert log.events(11, 9, EVERYTHING) == []


def test_an_instant_finds_its_first_event(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, _, writer):
        writer.write([event(seq, at_ns=seq // 3 * 100) for seq in range(1, 30)])
        assert log.seq_at(0) == 1
        assert log.seq_at(101) == log.seq_at(200) == 6
        assert log.seq_at(900) == 27
        assert log.seq_at(901) == 30


def test_the_epoch_grows_and_stays(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, _, _):
        assert log.raise_epoch() == 2
        assert log.state().epoch == 2
    with opened(tmp_path) as (log, _, _):
        assert log.epoch == 2


def test_large_records_and_notes_come_back(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, _, writer):
        big = event(1, blob=bytes(1 << 20))
        writer.write([big, event(2)], notes=[b"n" * 100_000, b"m"])
        assert log.event(1) == big
        assert log.commits(1, 1)[0].notes == [b"n" * 100_000, b"m"]


def test_a_full_map_fails_for_good_and_what_was_durable_stays(tmp_path: Path) -> None:
    with opened(tmp_path, map_bytes=1 << 20) as (log, _, writer):
        with pytest.raises(StoreFull, match=r"commit \d+ failed at \w+: MDB_MAP_FULL"):
            write_for_ever(writer)
        durable = log.state()
        assert durable.last_seq >= 500
        with pytest.raises(StoreFull):
            log.submit(Batch(1, 0))
        with pytest.raises(StoreFull):
            log.durable()
    with opened(tmp_path) as (log, _, writer):
        assert log.state()[:7] == durable[:7]
        writer.create(500)


def write_for_ever(writer: Writer) -> None:
    while True:
        writer.create(500)


def test_a_failed_commit_of_the_twin_fails_for_good() -> None:
    log = MemoryLog()
    log.submit(Batch(1, 0, events=[event(1)]))
    log.fail_next(StoreFull("no room"))
    log.submit(Batch(2, 0, events=[event(2)]))
    for _ in range(2):
        with pytest.raises(StoreFull, match="no room"):
            log.durable()
    with pytest.raises(StoreFailed):
        log.submit(Batch(3, 0))
    log.crash()
    assert (log.durable(), log.state().last_seq) == (1, 1)


def test_the_twin_holds_two_under_way() -> None:
    log = MemoryLog()
    log.hold()
    log.submit(Batch(1, 0, events=[event(1)]))
    log.submit(Batch(2, 0, events=[event(2)]))
    assert (log.ready(), log.durable(), log.events(1, 9, EVERYTHING)) == (False, 0, [])
    assert log.event(2) == event(2)
    with pytest.raises(AssertionError, match="two batches are under way"):
        log.submit(Batch(3, 0))
    log.let_go(1)
    assert (log.ready(), log.durable()) == (True, 1)
    log.crash(landed=1)
    assert log.durable() == 2


@pytest.mark.parametrize("table", [b"events", b"receipts", b"commits"])
def test_no_flipped_bit_comes_back_as_a_value(tmp_path: Path, table: bytes) -> None:
    path = tmp_path / "store"
    filled(path, 5)
    with behind(path / "log", table) as (_, keys):
        assert keys
    for key in keys:
        for bit in range(3, 1400, 131):
            flip(path / "log", table, key, bit)
            with pytest.raises(StoreCorrupt):
                read_all(path)
            flip(path / "log", table, key, bit)
    read_all(path)


def read_all(path: Path) -> None:
    with opened(path) as (log, _, _):
        state = log.state()
        for seq, data in enumerate(log.events(1, EVERYTHING, EVERYTHING), 1):
            unpack_event(seq, data)
        log.receipts(1, state.last_seq)
        log.commits(1, EVERYTHING)


def test_a_lost_record_is_told_from_a_trimmed_one(tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(path)
    with behind(path / "log", b"events") as (txn, keys):
        txn.delete(keys[9])
    with opened(path) as (log, _, _):
        with pytest.raises(StoreCorrupt, match="event 10 is missing from the log"):
            log.event(10)
        with pytest.raises(StoreCorrupt, match="event 10 is missing from the log"):
            log.events(5, 20, EVERYTHING)
        assert len(log.events(11, 20, EVERYTHING)) == 20


def test_a_cut_end_is_found_at_opening(tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(path)
    with behind(path / "log", b"events") as (txn, keys):
        txn.delete(keys[-1])
    with pytest.raises(StoreCorrupt, match="the log ends at event 40; its last seal says 41"):
        LmdbLog(str(path / "log"))


def test_the_format_stamp_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(path)
    flip(path / "log", b"meta", b"format", 70)
    with pytest.raises(StoreCorrupt, match=r"the format stamp of .* does not agree"):
        LmdbLog(str(path / "log"))


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    from engine._lmdb import pack_stamp  # type: ignore[import-not-found]

    filled(tmp_path)
    with behind(tmp_path / "log", b"meta") as (txn, _):
        txn.put(b"format", pack_stamp(9, 1))
    with pytest.raises(StoreTooNew, match="has format 9, newer than 1; upgrade minoots"):
        LmdbLog(str(tmp_path / "log"))


def test_an_environment_is_opened_once(tmp_path: Path) -> None:
    log = LmdbLog(str(tmp_path))
    with pytest.raises(AssertionError, match="is open in this process already"):
        LmdbLog(str(tmp_path))
    Writer(log).write([event(1, Kind.NODE_STARTED)])
    log.close()
    log.close()
    with pytest.raises(AssertionError, match="is closed"):
        log.event(1)
    LmdbLog(str(tmp_path)).close()
