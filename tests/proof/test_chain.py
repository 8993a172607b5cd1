"""The chain, read from the files by other code than the node's: good runs, and planted faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.record import Note, pack_note
from tests.proof.chain import chain_faults
from tests.unit.stored import behind, filled, flip, opened, receipt, timer_id


def note(number: int) -> bytes:
    return pack_note(Note(timer_id(number), bytes(16), number, 1, 1, b"reply"))


def test_a_good_log_has_no_fault(tmp_path: Path) -> None:
    filled(tmp_path)
    with opened(tmp_path) as (_, _, writer):
        writer.write([], notes=[note(1), note(2)], receipts=receipt(3, 33))
        writer.create(2)
    assert list(chain_faults(tmp_path)) == []


def test_a_trimmed_log_has_no_fault(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, _, writer):
        for _ in range(20):
            writer.create(5)
        writer.write([], trim_below=52)
        assert log.state().first_seq == 52
    assert list(chain_faults(tmp_path)) == []


@pytest.mark.parametrize(
    ("table", "at", "finds"),
    [(b"events", 3, "CHAIN commit 1"), (b"commits", 0, "CHAIN commit 1"), (b"commits", 1, "CHAIN")],
)
def test_a_changed_byte_is_found(tmp_path: Path, table: bytes, at: int, finds: str) -> None:
    filled(tmp_path)
    with behind(tmp_path / "log", table) as (_, keys):
        pass
    flip(tmp_path / "log", table, keys[at], 8 * 36 + 3)  # of an event and of a seal: no length
    assert any(finds in fault for fault in chain_faults(tmp_path))


@pytest.mark.parametrize(("table", "at"), [(b"events", 3), (b"events", -1), (b"commits", 0)])
def test_what_is_gone_is_found(tmp_path: Path, table: bytes, at: int) -> None:
    filled(tmp_path)
    with opened(tmp_path) as (_, _, writer):
        writer.create(2)
    with behind(tmp_path / "log", table) as (txn, keys):
        if table == b"commits":
            at = 1
        txn.delete(keys[at])
    assert list(chain_faults(tmp_path))
