"""`minoots reindex` on damage: what it mends, and what it leaves as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgenode.offline import reindex
from engine.errors import StoreCorrupt
from engine.files import open_store
from tests.unit.stored import behind, filled, flip, opened, timer_id

STANDING = (b"meta", b"standing", 100)


def rows_of(path: Path) -> list[bytes | None]:
    with opened(path) as (_, tables, _):
        return [tables.row(timer_id(number)) for number in range(1, 41)]


def test_tables_that_do_not_open_are_made_anew_from_a_whole_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "store"
    filled(path)
    before = rows_of(path)
    flip(path / "tables", *STANDING)
    with pytest.raises(StoreCorrupt):
        open_store(path)
    assert reindex(path, tables=False) == 1
    assert reindex(path, tables=True) == 0
    assert "reindexed 39 timers as of event 41" in capsys.readouterr().out
    assert rows_of(path) == before
    assert sorted(entry.name for entry in path.iterdir()) == ["lock", "log", "tables"]


def test_tables_stay_as_they_were_where_the_log_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "store"
    filled(path)
    before = rows_of(path)
    with behind(path / "log", b"events") as (_, keys):
        pass
    flip(path / "log", b"events", keys[2], 600)
    assert reindex(path, tables=True) == 1
    assert "event 3 does not agree with its checksum" in capsys.readouterr().err
    assert rows_of(path) == before
    assert not (path / "tables.old").exists()


def test_tables_of_a_trimmed_log_are_not_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "store"
    filled(path)
    with opened(path) as (log, _, writer):
        writer.write([], trim_below=10)
        assert log.state().first_seq == 10
    before = rows_of(path)
    assert reindex(path, tables=True) == 1
    assert "the log begins at event 10" in capsys.readouterr().err
    flip(path / "tables", *STANDING)
    assert reindex(path, tables=True) == 1
    assert "position does not agree" in capsys.readouterr().err
    flip(path / "tables", *STANDING)
    assert rows_of(path) == before
