"""The data directory: who has it open, what is in it, and whether it holds together.

    lock      held while a process has the directory open; says which
    log/      the log's environment, the truth
    tables/   the tables' environment, which follows it

`open_store` checks what a crash or a copy can leave behind: that the log ends where its last seal
says, with the chain that the seal says, and that the tables are not ahead of it. `verify_chain`
reads all of it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import select
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from engine._log import LmdbLog
from engine._tables import SLICE_AGE_NS, SLICE_ENTRIES, LmdbTables
from engine.errors import StoreCorrupt, StoreFailed, StoreFull, StoreLocked
from engine.record import chain_hash, check_event
from engine.store import CHAIN_START, Commit, LogState

DIRECTORY_MODE = 0o700
LOCK_MODE = 0o600
LMDB_LOCK_BYTES = 8192
UNBORN_PAGES = 3  # two heads, and a page that the first commit adds at least
VERIFY_COMMITS = 64  # seals that are read at a time
VERIFY_ROWS = 4_096
FAR_NS = 1 << 62

_held: dict[str, int] = {}  # data directories this process has open -> the lock's descriptor


class SealedLog(Protocol):
    """What is read of a log to check its chain."""

    def state(self) -> LogState: ...
    def events(self, from_seq: int, limit: int, bytes_max: int) -> list[bytes]: ...
    def commits(self, from_commit: int, limit: int) -> list[Commit]: ...
    def sealed_receipts(self, number: int) -> bytes: ...


def open_store(
    data_dir: Path,
    *,
    slice_entries: int = SLICE_ENTRIES,
    slice_age_ns: int = SLICE_AGE_NS,
    map_bytes: int = 0,
    renewed: bool = False,
) -> tuple[LmdbLog, LmdbTables]:
    """Open or create the store in `data_dir`, and check its tail; `close_store` closes it.

    map_bytes: address space for each of the two files, 0 for 1 TiB; a full one is StoreFull.
    renewed: the tables are new, and the log need not reach back to where they stand.
    Raises StoreLocked, StoreFull, StoreFailed, StoreCorrupt, StoreTooNew.
    """
    lock_fd = _lock(data_dir)
    log: LmdbLog | None = None
    tables: LmdbTables | None = None
    try:
        log = LmdbLog(_directory(data_dir / "log"), map_bytes=map_bytes)
        tables = LmdbTables(
            _directory(data_dir / "tables"),
            log,
            slice_entries=slice_entries,
            slice_age_ns=slice_age_ns,
            map_bytes=map_bytes,
        )
        _sync_names(data_dir)
        check_tail(log)
        if not renewed:
            check_together(log, tables)
    except BaseException:
        if tables is not None:
            tables.close()
        if log is not None:
            log.close()
        os.close(lock_fd)
        raise
    _held[os.path.realpath(data_dir)] = lock_fd
    return log, tables


def _sync_names(data_dir: Path) -> None:
    """LMDB syncs what is in its files, not that they are there. What is on disk costs nothing."""
    directories = [data_dir / "log", data_dir / "tables", data_dir]
    if os.access(data_dir.parent, os.R_OK):
        directories.append(data_dir.parent)
    try:
        for directory in directories:
            sync_directory(directory)
    except OSError as error:
        raise failed(f"cannot sync the directories of {data_dir}", error) from error


def close_store(data_dir: Path, log: LmdbLog, tables: LmdbTables) -> None:
    """Finish what is under way, close both environments, let go of the lock."""
    tables.close()
    log.close()
    lock_fd = _held.pop(os.path.realpath(data_dir), -1)
    if lock_fd >= 0:
        os.close(lock_fd)


@contextmanager
def hold(data_dir: Path) -> Iterator[None]:
    """Keep every other process from opening the store. Raises StoreLocked, StoreFailed."""
    lock_fd = _lock(data_dir)
    try:
        yield
    finally:
        os.close(lock_fd)


def check_tail(log: LmdbLog) -> None:
    """Raise StoreCorrupt unless the last commit's chain covers its events, as far as they are
    kept; a log whose newest commit was the only one left is taken on trust."""
    state = log.state()
    if state.commit:
        for _ in verify_chain(log, state.commit):
            pass


def check_together(log: LmdbLog, tables: LmdbTables) -> None:
    """Raise StoreCorrupt unless the log holds all that the tables have still to follow."""
    state, applied = log.state(), tables.applied()
    if applied.commit > state.commit or applied.seq > state.last_seq:
        raise StoreCorrupt(
            f"the tables stand at event {applied.seq}, the log ends at {state.last_seq}; "
            "restore both from one backup"
        )
    if state.first_seq > applied.seq + 1:
        raise StoreCorrupt(
            f"the tables stand at event {applied.seq}, the log begins at {state.first_seq}; "
            "restore both from one backup"
        )


def verify_chain(log: SealedLog, from_commit: int = 1) -> Iterator[int]:
    """Recompute the chain commit by commit; yield each number once it agrees.

    Begins at the first commit from `from_commit` on whose events are all kept and whose
    predecessor's seal is. Raises StoreCorrupt at the first that does not agree.
    """
    previous = CHAIN_START if from_commit <= 1 else b""
    number = max(from_commit - 1, 1)
    while commits := log.commits(number, VERIFY_COMMITS):
        for commit in commits:
            if commit.number != number:
                previous = b""  # the head was trimmed
            if previous and commit.number >= from_commit and _verify(log, commit, previous):
                yield commit.number
            previous = commit.chain
            number = commit.number + 1


def _verify(log: SealedLog, commit: Commit, previous: bytes) -> bool:
    """Whether the commit could be checked; False if part of it was trimmed."""
    events = log.events(commit.first_seq, commit.events_count, 1 << 62)
    if len(events) != commit.events_count:
        if commit.first_seq < log.state().first_seq:
            return False
        raise StoreCorrupt(
            f"commit {commit.number} holds {len(events)} of {commit.events_count} events"
        )
    for seq, data in enumerate(events, commit.first_seq):
        check_event(seq, data)
    receipts = log.sealed_receipts(commit.number)
    notes = b"".join(commit.notes)
    if chain_hash(previous, commit.first_seq, events, receipts, notes) != commit.chain:
        raise StoreCorrupt(f"commit {commit.number} does not agree with the hash chain")
    return True


def reindex_due(tables: LmdbTables) -> None:
    """Make the due and names indexes anew from the timers. Raises StoreCorrupt at a bad row."""
    tables.reindex()


def rebuild_tables(log: LmdbLog, tables: LmdbTables) -> int:
    """Make the tables anew as far as the log reaches; how many timers' definitions were trimmed
    away, so that they have no row (at most). Raises StoreCorrupt at a bad event."""
    state = log.state()
    oldest = log.commits(1, 1)
    if oldest:
        tables.restart(oldest[0].first_seq - 1, oldest[0].number - 1, state)
    else:
        tables.restart(0, 0, state)
    catch_up(log, tables)
    return tables.lost


@contextmanager
def renewed_tables(data_dir: Path, *, accept_loss: bool = False) -> Iterator[bool]:
    """Put the tables of a directory that nobody has open aside while new ones are made, if the log
    still has all of its events or the loss of those that it has not is accepted: yields whether.
    If that fails they are put back, else removed.

    To empty damaged tables instead could do more damage: LMDB would follow their pages to find out
    which are free now. Raises StoreLocked, StoreCorrupt, StoreFailed, StoreTooNew.
    """
    kept, aside = data_dir / "tables", data_dir / "tables.old"
    renewed = kept.is_dir() and (_log_is_whole(data_dir) or accept_loss)
    if renewed:
        shutil.rmtree(aside, ignore_errors=True)
        kept.rename(aside)
    try:
        yield renewed
    except BaseException:
        if renewed:
            shutil.rmtree(kept, ignore_errors=True)
            aside.rename(kept)
        raise
    if renewed:
        shutil.rmtree(aside)


def _log_is_whole(data_dir: Path) -> bool:
    lock_fd = _lock(data_dir)
    try:
        log = LmdbLog(_directory(data_dir / "log"))
        try:
            check_tail(log)
            return log.state().first_seq == 1
        finally:
            log.close()
    finally:
        os.close(lock_fd)


def catch_up(log: LmdbLog, tables: LmdbTables) -> None:
    """Have the tables follow to the log's end, and wait for it. Raises StoreFailed."""
    state = log.state()
    tables.follow(state.last_seq, state.commit, now=True)
    waiter = select.poll()
    waiter.register(tables.fileno(), select.POLLIN)
    while tables.applied().commit < state.commit:
        waiter.poll()


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file, mode 0600, so that after a power cut it is whole or as it was before."""
    fresh = path.with_suffix(".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, LOCK_MODE)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    fresh.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Have the names in a directory on disk: a file that is, under a name that is not, is lost."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _lock(data_dir: Path) -> int:
    """Take the directory's lock, and write our pid into it; the descriptor that holds it."""
    try:
        data_dir.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        fd = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, LOCK_MODE)
    except OSError as error:
        raise failed(f"cannot open {data_dir}", error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        pid = int(text) if text.isdigit() else 0
        raise StoreLocked(
            f"store is locked by pid {pid or 'unknown'}; one node per directory", pid
        ) from None
    try:
        os.pwrite(fd, b"%-19d\n" % os.getpid(), 0)  # in place: a full disk has room for that
    except OSError as error:
        os.close(fd)
        raise failed(f"cannot write the lock in {data_dir}", error) from error
    return fd


def _forget_unborn(file: Path) -> None:
    """Begin anew with a file that was being made when power was cut: its heads may be half there,
    and LMDB refuses it. Smaller than a first commit leaves it, it never held anything."""
    if file.exists() and 0 < file.stat().st_size < UNBORN_PAGES * mmap.PAGESIZE:
        os.truncate(file, 0)


def _directory(path: Path) -> str:
    """Make an environment's directory, and room for LMDB's lock file.

    LMDB maps that file and writes through the map, which on a full file system is SIGBUS.
    """
    try:
        path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        _forget_unborn(path / "data.mdb")
        fd = os.open(path / "lock.mdb", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, LOCK_MODE)
        try:
            os.posix_fallocate(fd, 0, LMDB_LOCK_BYTES)
        finally:
            os.close(fd)
    except OSError as error:
        raise failed(f"cannot make room in {path}", error) from error
    return str(path)


def failed(what: str, error: OSError) -> StoreFailed:
    """What to raise for an error of the system: StoreFull where there is no room."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return (StoreFull if full else StoreFailed)(f"{what}: {error.strerror} (errno {error.errno})")
