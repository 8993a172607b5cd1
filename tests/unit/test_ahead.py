"""The log's file goes on behind what is in it: written zeros, a step at a time, and no more."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import lmdb

from engine.files import open_store
from tests.unit.stored import Writer, opened

MIB = 1 << 20


def file_of(path: Path) -> Path:
    return path / "log" / "data.mdb"


def end_of(path: Path) -> int:
    """Where the pages end that were ever in use, by the file's own word; of a closed log."""
    with lmdb.open(str(path / "log"), max_dbs=8, readonly=True, lock=False) as found:
        return (int(found.info()["last_pgno"]) + 1) * int(found.stat()["psize"])


def settled(writer: Writer, count: int = 1) -> None:
    """Commits of one timer each; the last one has begun when the room before it was made."""
    for _ in range(count + 1):
        writer.create(1)


def test_small_commits_find_room(tmp_path: Path) -> None:
    """From then on the file's size stays as it is, until half a step is used up."""
    with opened(tmp_path) as (_, _, writer):
        settled(writer)
        size = file_of(tmp_path).stat().st_size
        sizes = set()
        for _ in range(60):
            writer.create(1)
            sizes.add(file_of(tmp_path).stat().st_size)
        assert sizes == {size}
    ahead = size - end_of(tmp_path)
    assert MIB // 2 <= ahead <= MIB
    stat = file_of(tmp_path).stat()
    assert stat.st_blocks * 512 >= stat.st_size, "the room is a hole: its pages were never written"
    with open(file_of(tmp_path), "rb") as file:
        file.seek(end_of(tmp_path))
        assert file.read() == bytes(ahead)


def test_the_room_follows_the_file(tmp_path: Path) -> None:
    """In steps of an eighth of it; what was written stands as it was."""
    sizes: list[int] = []
    with opened(tmp_path) as (log, _, writer):
        for _ in range(24):
            writer.create(5_000)
        settled(writer)
        before = file_of(tmp_path).stat().st_size
        while file_of(tmp_path).stat().st_size == before:
            writer.create(50)
        settled(writer)
        sizes.append(file_of(tmp_path).stat().st_size)
        last = log.state().last_seq
    end = end_of(tmp_path)
    assert end > 16 * MIB, "too small a file to tell a step of an eighth from the least"
    assert end // 16 - MIB // 2 <= sizes[0] - end <= end // 8
    with opened(tmp_path) as (log, _, writer):
        assert log.state().last_seq == last
        assert len(log.events(1, last, 1 << 40)) == last
        writer.create(10)


def test_a_large_commit_is_not_written_twice(tmp_path: Path) -> None:
    with opened(tmp_path) as (_, _, writer):
        for _ in range(8):
            writer.create(5_000)
    assert file_of(tmp_path).stat().st_size - end_of(tmp_path) < MIB


def forked(body: Callable[[], bool]) -> bool:
    """Whether `body` says so in a process of its own."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if body() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_where_no_room_can_be_made_the_log_goes_on(tmp_path: Path) -> None:
    """The limit lies inside the first step: the log finds its own end of it, not this one's."""

    def body() -> bool:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB // 2, MIB // 2))
        log, _ = open_store(tmp_path)
        writer = Writer(log)
        for _ in range(20):
            writer.create(1)
        return file_of(tmp_path).stat().st_size == MIB // 2 and log.state().last_seq == 20

    assert forked(body)
