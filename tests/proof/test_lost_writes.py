"""The disk that forgets, as a model and as a file system; and that the cuts see what it loses."""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proof.forgetful import PAGE, SECTOR, Change, Directory, Disk, File, Loss
from tests.proof.lost_writes import Cut, Mount, cuts, missing


def made(disk: Disk, *names: str) -> list[File]:
    """Files that are empty, whose names are durable."""
    files = [File(name, 0o100600) for name in names]
    disk.root.change(disk.next(), dict(zip(names, files, strict=True)))
    disk.root.sync()
    return files


def write(disk: Disk, file: File, at: int, data: bytes, durable: bool = False) -> None:
    file.change(Change(disk.next(), at, data, durable))


def outcomes(kind: str, *writes: tuple[str, int, bytes]) -> set[tuple[bytes, bytes]]:
    """What a cut of that kind makes of two files that hold nothing durable."""
    found = set()
    for seed in range(200):
        disk = Disk()
        files = dict(zip("ab", made(disk, "a", "b"), strict=True))
        for name, at, data in writes:
            write(disk, files[name], at, data)
        disk.cut(kind, random.Random(seed))
        found.add((bytes(files["a"].seen), bytes(files["b"].seen)))
    return found


def test_what_was_synced_is_kept_and_what_was_not_is_lost() -> None:
    disk = Disk()
    [file] = made(disk, "a")
    write(disk, file, 0, b"one two")
    file.sync()
    write(disk, file, 4, b"and three")
    file.change(Change(disk.next(), 2, None))
    assert file.seen == b"on"
    assert disk.cut("none", random.Random(1))["a"] == Loss(pending=2, lost=2)
    assert file.seen == b"one two"


def test_a_write_that_is_its_own_sync_has_its_place_among_the_others() -> None:
    for seed in range(50):
        disk = Disk()
        [file] = made(disk, "a")
        write(disk, file, 0, b"older...")
        write(disk, file, 2, b"META", True)
        write(disk, file, 0, b"new")
        disk.cut("some", random.Random(seed))
        assert bytes(file.seen) in {b"\0\0META", b"olMETA..", b"newETA", b"newETA.."}


def test_a_prefix_is_one_over_all_files() -> None:
    writes = ("a", 0, b"1"), ("b", 0, b"2"), ("a", 1, b"3")
    assert outcomes("none", *writes) == {(b"", b"")}
    assert outcomes("prefix", *writes) == {(b"", b""), (b"1", b""), (b"1", b"2"), (b"13", b"2")}
    assert len(outcomes("some", *writes)) == 8


def test_the_last_write_is_torn_at_a_boundary() -> None:
    found = outcomes("torn", ("a", 0, b"first"), ("b", 100, b"x" * (2 * PAGE)))
    sizes = {len(b) for a, b in found if a}
    assert {0, SECTOR, 3 * SECTOR, PAGE, 2 * PAGE} <= sizes
    assert all(size % SECTOR == 0 for size in sizes)
    assert outcomes("torn", ("a", 0, b"alone")) == {(b"", b"")}  # nothing of a sector


def test_sectors_are_whole_or_not_there() -> None:
    found = {a.ljust(3 * SECTOR, b"\0") for a, _ in outcomes("sectors", ("a", 0, b"x" * 1536))}
    assert len(found) == 8
    assert all(len(set(a[at : at + SECTOR])) == 1 for a in found for at in (0, SECTOR, 1024))


def test_a_file_is_lost_with_its_name_and_a_rename_is_one_change() -> None:
    disk = Disk()
    old, new = File("name", 0), File("name.new", 0)
    disk.root.change(disk.next(), {"name": old})
    disk.root.sync()
    disk.root.change(disk.next(), {"name.new": new})
    write(disk, new, 0, b"whole")
    new.sync()
    disk.root.change(disk.next(), {"name": new, "name.new": None})
    seen = set()
    for seed in range(50):
        again = Disk()
        again.root = Directory(0, dict(disk.root.seen), {"name": old}, list(disk.root.pending))
        again.cut("prefix", random.Random(seed))
        seen.add(tuple(sorted((name, node is new) for name, node in again.root.seen.items())))
    before, after = (("name", False),), (("name", True),)
    assert seen == {before, (("name", False), ("name.new", True)), after}


needs_fuse = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Mount]:
    mount = Mount(tmp_path)
    yield mount
    mount.close()
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def lose(disk: Mount) -> None:
    disk.ask(Cut("none", 1, 0))
    disk.cut(Cut("none", 1, 0), 5)


@needs_fuse
def test_a_map_shows_what_is_written_and_a_cut_what_was_synced(disk: Mount) -> None:
    fd = os.open(disk.at / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"a" * PAGE)
    os.fsync(fd)
    disk_names = os.open(disk.at, os.O_RDONLY)
    os.fsync(disk_names)
    os.close(disk_names)
    with mmap.mmap(fd, PAGE, prot=mmap.PROT_READ) as seen:
        os.pwrite(fd, b"lost", 0)
        assert seen[:5] == b"losta"
    os.rename(disk.at / "file", disk.at / "renamed")
    (disk.at / "unnamed").write_bytes(b"lost with its name")
    lose(disk)
    for ask in (lambda: os.pwrite(fd, b"late", 0), lambda: os.fsync(fd), disk.at.iterdir):
        with pytest.raises(OSError, match="Input/output error") as found:
            list(ask())  # type: ignore[call-overload]
        assert found.value.errno == errno.EIO
    os.close(fd)
    disk.again()
    assert [path.name for path in disk.at.iterdir()] == ["file"]
    assert (disk.at / "file").read_bytes() == b"a" * PAGE


@needs_fuse
def test_a_write_with_o_dsync_syncs_itself_and_no_other(disk: Mount) -> None:
    fd = os.open(disk.at / "file", os.O_RDWR | os.O_CREAT)
    direct = os.open(disk.at / "file", os.O_WRONLY | os.O_DSYNC)
    names = os.open(disk.at, os.O_RDONLY)
    os.fsync(names)
    os.pwrite(fd, b"lost", 0)
    os.pwrite(direct, b"kept", 4)
    lose(disk)
    for held in (fd, direct, names):
        os.close(held)
    disk.again()
    assert (disk.at / "file").read_bytes() == b"\0\0\0\0kept"
    assert disk.losses == [
        {"": {"pending": 0, "lost": 0, "torn": 0}, "file": {"pending": 1, "lost": 1, "torn": 0}}
    ]


@needs_fuse
def test_a_cut_comes_at_the_write_that_was_asked_for(disk: Mount) -> None:
    fd = os.open(disk.at / "file", os.O_RDWR | os.O_CREAT)
    disk.ask(Cut("none", 1, 3))
    os.pwrite(fd, b"1", 0)
    os.fsync(fd)
    with pytest.raises(OSError, match="Input/output error"):
        os.pwrite(fd, b"3", 0)
    disk.cut(Cut("none", 1, 3), 5)
    os.close(fd)
    disk.again()


KILLED = """
import os, sys
from pathlib import Path
from tests.proof.lost_writes import Mount
Mount(Path(sys.argv[1]))
os.kill(os.getpid(), 9)
"""


@needs_fuse
def test_nothing_is_left_of_one_who_is_killed() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run([sys.executable, "-c", KILLED, folder], check=False)
        assert ran.returncode == -signal.SIGKILL
        until_s = time.monotonic() + 10
        while folder in Path("/proc/self/mounts").read_text():
            assert time.monotonic() < until_s, "it is mounted still"
            time.sleep(0.01)


@needs_fuse
def test_a_disk_that_does_not_heed_the_syncs_of_directories_is_found_out() -> None:
    tally, _ = cuts(20263, 2, swallow="names", kinds=("none",))
    assert [fault for fault in tally.faults if fault.startswith("LOST the node's name")]
