"""The data directory: its lock, its checks at opening; what crashes, damage, full disks leave.

Children are forked or spawned for what this process would not survive.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgenode.config import NODE_ID_FILE
from edgenode.serve import _node_id
from engine.errors import EngineError, StoreCorrupt, StoreFull, StoreLocked
from engine.files import (
    catch_up,
    check_together,
    close_store,
    open_store,
    verify_chain,
    write_durably,
)
from engine.memory import MemoryLog
from engine.record import Note, chain_hash, pack_note, unpack_event, unpack_row
from engine.store import Batch, Filter
from tests.unit.stored import Writer, behind, event, expire, filled, flip, opened, receipt, timer_id

EVERYTHING = 1 << 62
NOTE = pack_note(Note(b"k" * 16, b"h" * 16, 1, 1, 1, b"reply"))
RIGHT, TOLD, WRONG = 0, 3, 4  # how a child ends

WRITER = """
import sys
from pathlib import Path
from engine.files import open_store
from tests.unit.stored import Writer, event
log, tables = open_store(Path(sys.argv[1]), slice_entries=500)
writer = Writer(log)
while True:
    number = writer.create(100)
    tables.follow(writer.state.last_seq, number)
    print(number, flush=True)
"""


def test_a_new_store_is_private(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    with opened(path):
        pass
    for folder in (path, path / "log", path / "tables"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in ("lock", "log/data.mdb", "log/lock.mdb", "tables/data.mdb"):
        assert stat.S_IMODE((path / file).stat().st_mode) == 0o600


def test_one_node_per_directory(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(StoreLocked) as caught:
        open_store(tmp_path)
    assert str(caught.value) == f"store is locked by pid {os.getpid()}; one node per directory"
    assert caught.value.pid == os.getpid()
    with opened(tmp_path):
        pass


@pytest.mark.parametrize("left", [1, 4_096, 8_192, 10_000])
def test_a_store_that_was_being_made_when_power_was_cut_is_made_anew(
    tmp_path: Path, left: int
) -> None:
    for name in ("log", "tables"):
        path = tmp_path / name
        log, tables = open_store(path)
        close_store(path, log, tables)
        os.truncate(path / name / "data.mdb", left)
        log, tables = open_store(path)
        assert log.state().last_seq == tables.applied().seq == 0
        close_store(path, log, tables)


def test_a_log_of_which_only_its_heads_are_left_is_refused_beside_its_tables(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store"
    filled(path)
    os.truncate(path / "log" / "data.mdb", 4_096)
    with pytest.raises(StoreCorrupt, match="the tables stand at"):
        open_store(path)


def test_a_failed_opening_lets_go_of_the_lock(tmp_path: Path) -> None:
    filled(tmp_path)
    flip(tmp_path / "log", b"meta", b"format", 9)
    for _ in range(2):
        with pytest.raises(StoreCorrupt, match="format stamp"):
            open_store(tmp_path)


def test_the_last_commit_is_checked_at_opening(tmp_path: Path) -> None:
    filled(tmp_path)
    flip(tmp_path / "log", b"events", (41).to_bytes(8, "big"), 500)
    with pytest.raises(StoreCorrupt, match="event 41 does not agree with its checksum"):
        open_store(tmp_path)


def test_a_forged_last_commit_is_found_by_the_chain(tmp_path: Path) -> None:
    filled(tmp_path)
    with behind(tmp_path / "log", b"events") as (txn, keys):
        txn.put(keys[-1], event(41))
    with pytest.raises(StoreCorrupt, match="commit 2 does not agree with the hash chain"):
        open_store(tmp_path)


def test_tables_ahead_of_the_log_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with opened(path) as (log, tables, writer):
        writer.create(3)
        shutil.copytree(path / "log", tmp_path / "older")
        writer.create(3)
        catch_up(log, tables)
    shutil.rmtree(path / "log")
    (tmp_path / "older").rename(path / "log")
    with pytest.raises(StoreCorrupt, match="the tables stand at event 6, the log ends at 3"):
        open_store(path)


def test_tables_that_the_log_has_left_behind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with opened(path) as (log, tables, writer):
        shutil.copytree(path / "tables", tmp_path / "older")
        writer.create(9)
        catch_up(log, tables)
        writer.create(1)
        expire(tables, 8)
        writer.write([], trim_below=8)
    shutil.rmtree(path / "tables")
    (tmp_path / "older").rename(path / "tables")
    with pytest.raises(StoreCorrupt, match="the tables stand at event 0, the log begins at 8"):
        open_store(path)


def test_the_chain_is_verified_commit_by_commit(tmp_path: Path) -> None:
    with opened(tmp_path) as (log, tables, writer):
        for number in range(1, 131):
            writer.write([event(number)], receipts=receipt(number, 5), notes=[NOTE])
        assert list(verify_chain(log)) == list(range(1, 131))
        assert list(verify_chain(log, 70)) == list(range(70, 131))
        catch_up(log, tables)
        expire(tables, 40)
        writer.write([], trim_below=40)
        assert list(verify_chain(log)) == list(range(41, 132))


def test_the_twin_s_chain_is_verified_too() -> None:
    log = MemoryLog()
    chain = bytes(32)
    for number in (1, 2, 3):
        chain = chain_hash(chain, number, [event(number)], b"", b"")
        log.submit(Batch(number, 0, events=[event(number)], chain=chain))
    assert list(verify_chain(log)) == [1, 2, 3]
    log.damage(2, event(2, at_ns=77))
    found: list[int] = []
    with pytest.raises(StoreCorrupt, match="commit 2 does not agree with the hash chain"):
        found.extend(verify_chain(log))


@pytest.mark.parametrize("commits", [1, 7])
def test_a_killed_node_loses_nothing_that_was_durable(tmp_path: Path, commits: int) -> None:
    for life in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            said = [int(child.stdout.readline()) for _ in range(commits)]
            child.send_signal(signal.SIGKILL)
            said += [int(line) for line in child.stdout if line.endswith("\n")]
        with opened(tmp_path) as (log, tables, _):
            state = log.state()
            assert state.commit in (said[-1], said[-1] + 1)
            assert list(verify_chain(log)) == list(range(1, state.commit + 1))
            assert state.last_seq == 100 * state.commit
            catch_up(log, tables)
            assert tables.applied().live_count == state.last_seq
            assert life or said[0] == 1


def forked(body: Callable[[], int]) -> int:
    """Run `body` in a forked child; its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # LMDB's assertions
            code = body()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_flipped_bit_of_a_file_never_comes_back_as_a_value(tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(path, 30)
    for name in ("log", "tables"):
        file = path / name / "data.mdb"
        whole = file.read_bytes()
        ends = [
            forked(lambda: end_of_reading(path))
            for _ in flips(file, whole, range(40_000, 10**7, 14_983))
        ]
        file.write_bytes(whole)
        assert WRONG not in ends
        assert 99 not in ends
        assert ends.count(TOLD) > 3
        assert end_of_reading(path) == RIGHT


def flips(file: Path, whole: bytes, bits: range):  # type: ignore[no-untyped-def]
    for bit in bits:
        if bit // 8 >= len(whole):
            return
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        yield bit


def end_of_reading(path: Path) -> int:
    """Read what `filled` wrote, in every way there is."""
    try:
        with opened(path) as (log, tables, _):
            catch_up(log, tables)  # damage may bring back an older slice: then it is made again
            raw = log.events(1, EVERYTHING, EVERYTHING)
            events = [unpack_event(seq, data) for seq, data in enumerate(raw, 1)]
            whole = [e.image is not None and e.image.seq == e.seq for e in events] == [True] * 31
            whole = whole and log.receipts(1, 31) == {1: 11, 2: 22} and len(log.commits(1, 9)) == 2
            rows, _ = tables.scan(Filter(), b"", 99, 99)
            images = [unpack_row(row[8:24], row)[0] for row in rows]
            due, _ = tables.due(1, 0, EVERYTHING)[:2]
            named = tables.named(images[0].name_hash)
            live = [timer_id(number) for number in range(1, 31) if number != 3]
            whole = whole and [image.id for image in images] == named == live
            whole = whole and due == b"".join(live) and tables.done(timer_id(3)) == 31
            return RIGHT if whole else WRONG
    except EngineError:
        return TOLD


def write_until_full(path: Path) -> int:
    """TOLD if the store says that it is full and, opened anew, has all that was durable."""
    try:
        log, tables = open_store(path)
    except StoreFull:
        return TOLD
    writer = Writer(log)
    try:
        for _ in range(10_000):
            number = writer.create(200)
    except StoreFull:
        state = log.state()
        close_store(path, log, tables)
        log, tables = open_store(path)
        check_together(log, tables)
        same = log.state()[:7] == state[:7] and list(verify_chain(log))[-1] == number
        return TOLD if same else WRONG
    return RIGHT


def test_a_file_size_limit_is_a_full_store(tmp_path: Path) -> None:
    def body() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))
        return write_until_full(tmp_path)

    assert forked(body) == TOLD


@pytest.mark.parametrize("room", ["4k", "12k", "40k", "2m"])
def test_a_full_file_system_is_a_full_store(tmp_path: Path, room: str) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    try:
        assert forked(lambda: write_until_full(tmp_path / "store")) == TOLD
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that this process has synced, in order."""
    paths: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        paths.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


def test_a_small_file_is_on_disk_before_its_name_is(tmp_path: Path, synced: list[str]) -> None:
    path = tmp_path / "name"
    write_durably(path, b"old")
    write_durably(path, b"new")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)
    assert synced == 2 * [str(tmp_path / "name.new"), str(tmp_path)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["name"]


def test_the_names_of_a_store_are_on_disk(tmp_path: Path, synced: list[str]) -> None:
    path = tmp_path / "store"
    with opened(path):
        files = [str(path / name / "data.mdb") for name in ("log", "tables")]
        names = [str(path / "log"), str(path / "tables"), str(path), str(tmp_path)]
        assert synced == files + names


def test_a_node_keeps_its_name_and_one_that_a_power_cut_emptied_gets_one(tmp_path: Path) -> None:
    (tmp_path / NODE_ID_FILE).write_bytes(b"")
    name = _node_id(tmp_path)
    assert name.startswith("node-")
    assert _node_id(tmp_path) == name
    assert (tmp_path / NODE_ID_FILE).read_text() == f"{name}\n"
