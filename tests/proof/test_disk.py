"""The model of a disk that the crash states rest on, and the shim that feeds it."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import StoreCorrupt
from engine.files import close_store, open_store
from tests.proof import shim, trace
from tests.proof.powercut import SECTOR, _sectors, cut, subsets
from tests.proof.trace import SYNC, SYNCED, WRITE, WRITTEN, File, Record


def feed(file: File, *records: tuple[int, int, bool, int, bytes]) -> None:
    for what, id, durable, at, data in records:
        file.take(Record(what, 0, durable, id, at, len(data), data))


def write(
    id: int, at: int, data: bytes, durable: bool = False
) -> tuple[int, int, bool, int, bytes]:
    return WRITE, id, durable, at, data


def done(what: int, id: int, durable: bool = False) -> tuple[int, int, bool, int, bytes]:
    return what, id, durable, 0, b""


def test_a_write_is_pending_until_a_sync_that_began_after_it_has_ended() -> None:
    file = File()
    feed(file, write(1, 0, b"aaaa"), done(WRITTEN, 1), write(2, 4, b"bbbb"), done(SYNC, 3))
    feed(file, done(WRITTEN, 2))
    assert (bytes(file.base), len(file.pending)) == (b"", 2)
    feed(file, done(SYNCED, 3))
    assert bytes(file.base) == b"aaaa"  # the second had not ended when the sync began
    assert [write.id for write in file.pending] == [2]
    feed(file, done(SYNC, 4), done(SYNCED, 4))
    assert (bytes(file.base), file.pending) == (b"aaaabbbb", [])


def test_a_write_that_is_its_own_sync_is_durable_once_it_has_returned() -> None:
    file = File()
    feed(file, write(1, 0, b"old."), write(2, 8, b"meta", True))
    assert bytes(file.base) == b""
    feed(file, done(WRITTEN, 2, True))
    assert bytes(file.base) == bytes(8) + b"meta"
    assert [write.id for write in file.pending] == [1]


def test_pending_writes_are_cut_into_sectors_that_change_something() -> None:
    file = File()
    feed(file, write(1, 0, bytes(2 * SECTOR)), done(WRITTEN, 1), done(SYNC, 2), done(SYNCED, 2))
    feed(file, write(3, 100, b"x" * SECTOR))
    assert [(at, len(data)) for at, data in _sectors(file)] == [(100, 412), (SECTOR, 100)]
    feed(file, write(4, 0, bytes(SECTOR)))
    assert len(list(_sectors(file))) == 2  # nothing changes by the last one


def test_subsets_begin_with_none_and_all() -> None:
    units = [(at * SECTOR, b"x") for at in range(20)]
    found = subsets(units, random.Random(1))
    first = [next(found) for _ in range(200)]
    assert first[:2] == [(), tuple(units)]
    assert len(set(first)) > 80
    assert list(subsets([], random.Random(1))) == [(), ()]


SCRIPT = """
import ctypes, os, sys
folder = sys.argv[1]
fd = os.open(folder + "/log/data.mdb", os.O_RDWR | os.O_CREAT)
direct = os.open(folder + "/log/data.mdb", os.O_WRONLY | os.O_DSYNC)
other = os.open(folder + "/other", os.O_RDWR | os.O_CREAT)
os.write(other, b"not ours")
os.writev(fd, [b"one ", b"two"])
ctypes.CDLL(None).proof_mark(7, 8)
os.fdatasync(fd)
os.pwrite(direct, b"meta", 4)
"""


@pytest.mark.skipif(bool(shim.missing()), reason=shim.missing())
@pytest.mark.parametrize(("swallow", "synced"), [("", True), ("meta", True), ("all", False)])
def test_the_shim_takes_down_what_happens(tmp_path: Path, swallow: str, synced: bool) -> None:
    (tmp_path / "log").mkdir()
    env = shim.environment(tmp_path / "trace", swallow)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    subprocess.run(command, env=env, check=True)
    found = [(r.what, r.durable, r.at, r.data or r.size) for r in trace.read(tmp_path / "trace")]
    sync = [(trace.SYNC, False, 0, 0), (trace.SYNCED, False, 0, 0)] if synced else []
    direct = not swallow
    assert found == [
        (trace.WRITE, False, 0, b"one two"),
        (trace.WRITTEN, False, 0, 0),
        (trace.MARK, False, 7, 8),
        *sync,
        (trace.WRITE, direct, 4, b"meta"),
        (trace.WRITTEN, direct, 0, 0),
    ]
    assert (tmp_path / "log" / "data.mdb").read_bytes() == b"one meta"


MAPPED = """
import mmap, os, sys
fd = os.open(sys.argv[1] + "/log/data.mdb", os.O_RDWR | os.O_CREAT)
os.write(fd, bytes(4096))
mmap.mmap(fd, 4096)
"""


@pytest.mark.skipif(bool(shim.missing()), reason=shim.missing())
def test_a_writable_map_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    env = shim.environment(tmp_path / "trace")
    command = [sys.executable, "-c", MAPPED, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == -6
    assert "written through the map" in done.stderr


@pytest.mark.skipif(bool(shim.missing()), reason=shim.missing())
def test_an_image_with_a_fault_is_kept(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    tally = cut(3, 100, 30, 1, "meta", each=4, kept=kept)
    assert tally.failed
    assert tally.first.startswith("image ")
    assert (kept / "log" / "data.mdb").stat().st_size
    try:
        log, tables = open_store(kept)
    except StoreCorrupt:
        return  # one of the two has less than the other was told
    close_store(kept, log, tables)  # it opens, and has less than was acknowledged
