"""`compact`: smaller files that hold the same, and nothing changed when it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgenode.compact import compact
from edgenode.verify import verify_store
from engine.errors import StoreCorrupt, StoreLocked
from engine.files import catch_up, rebuild_tables
from tests.unit.churn import Churn, churned, run
from tests.unit.stored import expire, flip, opened
from tests.unit.test_backup import contents, quiet


def test_a_store_is_smaller_and_the_same(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, tables, _):
        churn = Churn(log, 3)
        run(log, tables, churn, 200)
        catch_up(log, tables)
        below = log.state().last_seq - 50
        expire(tables, below)
        while log.state().first_seq < below:
            churn.writer.write([], trim_below=below, floor=churn.writer.state.floor)
    held, was = contents(tmp_path), verify_store(tmp_path, quiet)
    before, after = compact(tmp_path, quiet)
    assert after < before / 2
    assert sum(path.stat().st_size for path in tmp_path.glob("*/data.mdb")) == after
    assert verify_store(tmp_path, quiet) == was
    assert contents(tmp_path) == held
    assert not (tmp_path / "compacting").exists()


def test_tables_that_are_behind_stay_so(tmp_path: Path) -> None:
    churned(tmp_path, 40)
    was = verify_store(tmp_path, quiet)
    assert was.applied_seq < was.last_seq
    compact(tmp_path, quiet)
    assert verify_store(tmp_path, quiet) == was


def test_a_failure_changes_nothing(tmp_path: Path) -> None:
    churned(tmp_path, 20)
    flip(tmp_path / "tables", b"timers", next(iter(keys(tmp_path))), 200)
    files = {path: path.read_bytes() for path in tmp_path.glob("*/data.mdb")}
    with pytest.raises(StoreCorrupt, match="a row of the table timers is damaged"):
        compact(tmp_path, quiet)
    assert {path: path.read_bytes() for path in tmp_path.glob("*/data.mdb")} == files
    assert not (tmp_path / "compacting").exists()


def keys(path: Path) -> list[bytes]:
    from tests.unit.stored import behind

    with behind(path / "tables", b"timers") as (_, found):
        return found


def test_a_running_node_is_not_compacted(tmp_path: Path) -> None:
    churned(tmp_path, 2)
    with opened(tmp_path), pytest.raises(StoreLocked):
        compact(tmp_path, quiet)


def test_rebuilt_tables_of_a_trimmed_log_can_be_compacted_and_verified(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, tables, _):
        churn = Churn(log, 4)
        run(log, tables, churn, 30)
        catch_up(log, tables)
        expire(tables, 60)
        churn.writer.write([], trim_below=60, floor=churn.writer.state.floor)
        assert rebuild_tables(log, tables) > 0
    was = verify_store(tmp_path, quiet)
    compact(tmp_path, quiet)
    assert verify_store(tmp_path, quiet) == was
