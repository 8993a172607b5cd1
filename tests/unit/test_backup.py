"""Backups: made of a store that moves, checked, restored; what is refused, and damage found.

That fires are no later beside one is measured by bench/backup.py; a real node is backed up, killed
and restored in tests/e2e/test_backup_hot.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgenode import backup as backups
from edgenode.backup import back_up
from edgenode.check import check_backups, check_increment_alone
from edgenode.manifest import LOG_FILE, MANIFEST, TABLES_FILE, read_manifest
from edgenode.restore import Restored, restore
from edgenode.verify import verify_store
from engine._copy import Overtaken, StoreFiles
from engine.clock import OsClock
from engine.errors import StoreCorrupt, StoreFailed, StoreLocked, StoreTooNew
from engine.files import catch_up, close_store, open_store
from tests.unit.churn import Churn, churned, churning, contents, run
from tests.unit.stored import HOUR_NS, expire, flip, opened

NOW_NS = 1_800_000_000 * 10**9


def quiet(what: str, size: int) -> None:
    assert what
    assert size >= 0


def make(data_dir: Path, target: Path, since: Path | None = None) -> None:
    back_up(data_dir, target, read_manifest(since) if since else None, NOW_NS, quiet)


def give_back(data_dir: Path, *folders: Path, epoch: int = 0) -> Restored:
    return restore(list(folders), data_dir, OsClock(), epoch, quiet)


def churn_on(path: Path, commits: int, seed: int) -> None:
    """More of it, by new timers: what those before have come to is not known any more."""
    log, tables = open_store(path, slice_entries=64, slice_age_ns=HOUR_NS)
    try:
        churn = Churn(log, seed)
        churn.born = seed * 1_000_000
        run(log, tables, churn, commits)
    finally:
        close_store(path, log, tables)


def test_a_restored_store_is_the_same(tmp_path: Path) -> None:
    churned(tmp_path / "data", 50)
    make(tmp_path / "data", tmp_path / "b")
    found = give_back(tmp_path / "new", tmp_path / "b")
    assert contents(tmp_path / "new") == contents(tmp_path / "data")
    assert found.epoch == 2
    assert found.timers == found.verified.timers > 20
    assert found.verified.last_seq == read_manifest(tmp_path / "b").log.last_seq


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_backup_of_a_store_that_moves_can_be_restored(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backups, "PIECE_BYTES", 3_000)  # so that many slices come in between
    folders = []
    with churning(tmp_path / "data", seed) as move:
        for name in ("full", "one", "two"):
            before = read_manifest(folders[-1]) if folders else None
            back_up(tmp_path / "data", tmp_path / name, before, NOW_NS, move)
            folders.append(tmp_path / name)
    tables = read_manifest(folders[0]).tables
    assert tables is not None
    assert tables.through_commit > tables.commit + 30, "the tables stood still"
    assert read_manifest(folders[2]).log.events > 0
    for count in (1, 3):
        found = give_back(tmp_path / f"new{count}", *folders[:count])
        last = read_manifest(folders[count - 1]).log
        assert found.verified.last_seq == found.verified.applied_seq == last.last_seq
        assert found.verified.chain == last.chain
        again = contents(tmp_path / f"new{count}")["events"]
        whole = contents(tmp_path / "data")["events"]
        assert again == whole[: len(again)]  # type: ignore[index,arg-type]
    verify_store(tmp_path / "data", quiet)


def test_a_trimmed_log_is_backed_up_as_far_as_it_is_kept(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as (log, tables, _):
        churn = Churn(log, 5)
        run(log, tables, churn, 30)
        catch_up(log, tables)
        below = log.state().last_seq - 100
        expire(tables, below)
        while log.state().first_seq < below:
            churn.writer.write([], trim_below=below, floor=churn.writer.state.floor)
        run(log, tables, churn, 5)
    make(tmp_path / "data", tmp_path / "b")
    assert read_manifest(tmp_path / "b").log.first_seq == below
    give_back(tmp_path / "new", tmp_path / "b")
    assert contents(tmp_path / "new") == contents(tmp_path / "data")


def test_increments_are_applied_in_order(tmp_path: Path) -> None:
    churned(tmp_path / "data", 20)
    make(tmp_path / "data", tmp_path / "a")
    churn_on(tmp_path / "data", 10, 7)
    make(tmp_path / "data", tmp_path / "b", tmp_path / "a")
    make(tmp_path / "data", tmp_path / "c", tmp_path / "b")  # nothing has happened
    churn_on(tmp_path / "data", 10, 8)
    make(tmp_path / "data", tmp_path / "d", tmp_path / "c")
    a, b, c, d = (tmp_path / name for name in "abcd")
    assert read_manifest(c).log.events == 0
    assert check_increment_alone(d, quiet)[1].events == read_manifest(d).log.events > 0
    with pytest.raises(StoreFailed, match=r"begins at commit 31 of epoch 1; commit 21 of epoch 1"):
        give_back(tmp_path / "new", a, d)
    with pytest.raises(StoreFailed, match="is an increment; name the full backup first"):
        give_back(tmp_path / "new", b)
    with pytest.raises(StoreFailed, match="only increments may follow"):
        give_back(tmp_path / "new", a, a)
    assert not (tmp_path / "new").exists()
    give_back(tmp_path / "new", a, b, c, d)
    assert contents(tmp_path / "new") == contents(tmp_path / "data")


def test_the_epoch_is_raised_once_more_each_time(tmp_path: Path) -> None:
    churned(tmp_path / "data", 3)
    make(tmp_path / "data", tmp_path / "a")
    assert give_back(tmp_path / "two", tmp_path / "a").epoch == 2
    make(tmp_path / "two", tmp_path / "b")
    assert give_back(tmp_path / "three", tmp_path / "b").epoch == 3
    assert give_back(tmp_path / "nine", tmp_path / "b", epoch=9).epoch == 9
    assert read_epoch(tmp_path / "nine") == 9
    with pytest.raises(StoreFailed, match="the epoch 2 is not above the backup's, 2"):
        give_back(tmp_path / "no", tmp_path / "b", epoch=2)
    with pytest.raises(StoreFailed, match="that backup is of epoch 1, this node is in 2"):
        make(tmp_path / "two", tmp_path / "c", tmp_path / "a")


def read_epoch(path: Path) -> int:
    files = StoreFiles(path)
    try:
        return files.epoch
    finally:
        files.close()


def test_an_increment_of_another_node_is_refused(tmp_path: Path) -> None:
    churned(tmp_path / "data", 5, seed=1)
    churned(tmp_path / "other", 9, seed=2)
    make(tmp_path / "data", tmp_path / "a")
    with pytest.raises(StoreFailed, match="is of another node, by its hash chain"):
        make(tmp_path / "other", tmp_path / "b", tmp_path / "a")
    churned(tmp_path / "short", 2, seed=1)
    with pytest.raises(StoreFailed, match="the log ends at commit 2, that backup at 5"):
        make(tmp_path / "short", tmp_path / "b", tmp_path / "a")
    assert not (tmp_path / "b").exists()


def test_an_increment_whose_beginning_is_trimmed_is_refused(tmp_path: Path) -> None:
    churned(tmp_path / "data", 5)
    make(tmp_path / "data", tmp_path / "a")
    with opened(tmp_path / "data") as (log, tables, writer):
        writer.create(50)
        catch_up(log, tables)
        below = log.state().last_seq
        expire(tables, below)
        writer.write([], trim_below=below)
    with pytest.raises(StoreFailed, match=r"the log begins at event \d+, that backup ended at"):
        make(tmp_path / "data", tmp_path / "b", tmp_path / "a")


def test_places_that_are_taken_are_refused(tmp_path: Path) -> None:
    churned(tmp_path / "data", 3)
    make(tmp_path / "data", tmp_path / "b")
    with pytest.raises(StoreFailed, match="is not empty; name a new directory"):
        make(tmp_path / "data", tmp_path / "b")
    assert check_backups([tmp_path / "b"], quiet)[1].events > 0  # it is as it was
    with pytest.raises(StoreFailed, match="has a store; move it away"):
        give_back(tmp_path / "data", tmp_path / "b")
    with pytest.raises(StoreFailed, match="there is no store in"):
        make(tmp_path / "nowhere", tmp_path / "c")
    assert not (tmp_path / "c").exists()
    with opened(tmp_path / "held"), pytest.raises(StoreLocked):
        give_back(tmp_path / "held", tmp_path / "b")


def test_a_damaged_store_is_not_backed_up(tmp_path: Path) -> None:
    churned(tmp_path / "data", 8)
    flip(tmp_path / "data" / "log", b"events", (9).to_bytes(8, "big"), 500)
    with pytest.raises(StoreCorrupt, match="event 9 is damaged or missing"):
        make(tmp_path / "data", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_every_flipped_bit_of_a_backup_is_found(tmp_path: Path) -> None:
    churned(tmp_path / "data", 6)
    folder = tmp_path / "b"
    make(tmp_path / "data", folder)
    for name in (LOG_FILE, TABLES_FILE):
        whole = (folder / name).read_bytes()
        for bit in range(3, 8 * len(whole), 8 * len(whole) // 150):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(damaged)
            with pytest.raises(StoreCorrupt):
                check_backups([folder], quiet)
        (folder / name).write_bytes(whole[:-5])
        with pytest.raises(StoreCorrupt, match="is cut short"):
            check_backups([folder], quiet)
        (folder / name).write_bytes(whole)
    (folder / LOG_FILE).write_bytes(b"")
    with pytest.raises(StoreCorrupt):
        give_back(tmp_path / "new", folder)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "kind", "finds"),
    [
        ({"format": 2}, StoreTooNew, "has backup format 2, newer than 1; upgrade minoots"),
        ({"epoch": "x"}, StoreCorrupt, r"manifest.json cannot be read: Expected `int`"),
        ({"extra": 1}, StoreCorrupt, "unknown field `extra`"),
    ],
)
def test_a_wrong_manifest_is_refused(
    tmp_path: Path, change: dict[str, object], kind: type[Exception], finds: str
) -> None:
    churned(tmp_path / "data", 3)
    make(tmp_path / "data", tmp_path / "b")
    path = tmp_path / "b" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(kind, match=finds):
        check_backups([tmp_path / "b"], quiet)
    path.unlink()
    with pytest.raises(StoreCorrupt, match=r"is no backup: manifest\.json"):
        check_backups([tmp_path / "b"], quiet)


@pytest.mark.parametrize("key", ["events", "last_seq", "last_commit", "bytes", "chain", "sha256"])
def test_a_manifest_that_says_otherwise_is_found(tmp_path: Path, key: str) -> None:
    churned(tmp_path / "data", 3)
    make(tmp_path / "data", tmp_path / "b")
    path = tmp_path / "b" / MANIFEST
    manifest = json.loads(path.read_text())
    said = manifest["log"][key]
    manifest["log"][key] = said + 1 if isinstance(said, int) else said[::-1]
    path.write_text(json.dumps(manifest))
    with pytest.raises(StoreCorrupt, match="the manifest says"):
        check_backups([tmp_path / "b"], quiet)


def test_what_is_overdue_is_told(tmp_path: Path) -> None:
    churned(tmp_path / "data", 10)
    make(tmp_path / "data", tmp_path / "b")
    found = give_back(tmp_path / "new", tmp_path / "b")
    with opened(tmp_path / "new") as (_, tables, _):
        dues = tables.due(0, 1, 1 << 62)[1]
    assert found.overdue == len(dues) // 8 > 0  # all are due in 1970
    assert found.since_ns == int.from_bytes(dues[:8], "little")


class Trimmed:
    """A store whose log is trimmed under its reader's feet, some times."""

    def __init__(self, path: Path) -> None:
        self.files = StoreFiles(path)

    left = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.files, name)

    def rows(self, table: str, after: bytes, most: int) -> tuple[bytes, int, bytes]:
        if table == "notes" and Trimmed.left:
            Trimmed.left -= 1
            raise Overtaken("the log was trimmed faster than it was read; try again")
        return self.files.rows(table, after, most)


@pytest.mark.parametrize("times", [2, 3])
def test_a_log_that_is_trimmed_meanwhile_is_copied_anew(
    tmp_path: Path, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    churned(tmp_path / "data", 10)
    monkeypatch.setattr(backups, "StoreFiles", Trimmed)
    monkeypatch.setattr(Trimmed, "left", times)
    if times == backups.TRIES:
        with pytest.raises(StoreFailed, match="trimmed faster than it was read"):
            make(tmp_path / "data", tmp_path / "b")
        assert not (tmp_path / "b").exists()
        return
    make(tmp_path / "data", tmp_path / "b")
    give_back(tmp_path / "new", tmp_path / "b")
    assert contents(tmp_path / "new") == contents(tmp_path / "data")


def test_what_was_trimmed_is_told_from_what_is_lost(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, tables, _):
        churn = Churn(log, 5)
        run(log, tables, churn, 20)
        catch_up(log, tables)
        below = churn.writer.state.last_seq - 30
        expire(tables, below)
        while log.state().first_seq < below:
            churn.writer.write([], trim_below=below, floor=churn.writer.state.floor)
    files = StoreFiles(tmp_path)
    try:
        ends = files.ends()
        assert ends.first_commit > 1
        with pytest.raises(Overtaken):
            files.log_items(1, 0, ends.last_commit, 1, 1 << 20)
        with pytest.raises(Overtaken):
            files.log_items(ends.first_commit, 1, ends.last_commit, 1, 1 << 20)
        with pytest.raises(StoreCorrupt, match=f"the seal of commit {ends.last_commit + 1} is"):
            files.log_items(ends.last_commit + 1, 0, ends.last_commit + 1, 1, 1 << 20)
    finally:
        files.close()
