"""Restoring a backup into an empty data directory.

Everything is read and replayed before anything is written. The files are made in a folder beside
their place and verified as a whole store; then they are moved there, the log last: a node that is
started in between finds tables without a log, and refuses. The rows of a backup are of different
times (`backup.py`); folding the events into them from where the tables stood brings them together.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgenode.check import check_backups, pieces
from edgenode.config import NODE_ID_FILE
from edgenode.manifest import (
    DIRECTORY_MODE,
    LOG_FILE,
    TABLES_FILE,
    Manifest,
    Progress,
)
from edgenode.recovery import ANCHOR_KEY
from edgenode.verify import Verified, verify_store
from engine._load import StoreLoader
from engine._tables import LmdbTables
from engine.clock import Anchor, Clock, Timescale
from engine.errors import StoreFailed
from engine.files import (
    catch_up,
    close_store,
    failed,
    hold,
    open_store,
    reindex_due,
    sync_directory,
    write_durably,
)
from engine.record import Scale, Standing, unpack_note

WORK = "restoring"  # the folder in the data directory where the files are made
ID_BYTES = 16
DUE_BYTES = 8


@dataclass(frozen=True, slots=True)
class Restored:
    """What there is now. overdue: timers whose due has passed; since_ns: the oldest due of them on
    its own scale, 0 if there is none."""

    manifest: Manifest
    verified: Verified
    epoch: int
    timers: int
    overdue: int
    since_ns: int


def restore(
    folders: list[Path], data_dir: Path, clock: Clock, epoch: int, progress: Progress
) -> Restored:
    """Make a store in `data_dir` of a full backup and the increments that follow it, in order.

    epoch: the new one, above the backup's; 0: the next. Raises StoreCorrupt, StoreTooNew,
    StoreLocked, StoreFailed, StoreFull; `data_dir` then has no store.
    """
    manifests, audit = check_backups(folders, progress)
    first, newest = manifests[0], manifests[-1]
    epoch = epoch or newest.epoch + 1
    if epoch <= newest.epoch:
        raise StoreFailed(
            f"the epoch {epoch} is not above the backup's, {newest.epoch}; leave --epoch out, or "
            "name one above every node that was restored from it"
        )
    try:
        with hold(data_dir):
            _refuse_used(data_dir)
            work = data_dir / WORK
            shutil.rmtree(work, ignore_errors=True)
            try:
                make_store(work, folders, first, epoch, audit.from_seq, progress)
                verified = verify_store(work, progress)
                counts = _overdue_of(work, clock)
                _move(work, data_dir, newest.node_id)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise failed(str(data_dir), error) from error
    return Restored(newest, verified, epoch, *counts)


def _refuse_used(data_dir: Path) -> None:
    for name in ("log", "tables"):
        if (data_dir / name).exists():
            raise StoreFailed(
                f"{data_dir} has a store; move it away, or name another directory with --data"
            )


def make_store(
    work: Path,
    folders: list[Path],
    first: Manifest,
    epoch: int,
    from_seq: int,
    progress: Progress,
) -> None:
    """Write the files into `work`, which is not there, have the tables follow the log to its end,
    and raise the epoch to `epoch`. What is in `folders` was checked."""
    for folder in (work, work / "log", work / "tables"):
        folder.mkdir(DIRECTORY_MODE)
    loader, size = StoreLoader(work, epoch - 1, from_seq), 0
    try:
        for path in (*(folder / LOG_FILE for folder in folders), folders[0] / TABLES_FILE):
            for items in pieces(path):
                loader.load(items)
                size += len(items)
                progress("restored", size)
        tables = first.tables
        assert tables is not None
        until = max(tables.rebuild_to, tables.through_commit)
        loader.finish(
            Standing(
                tables.seq,
                tables.commit,
                tables.timers,
                tables.notes,
                tables.done_below,
                tables.rebuilt_from,
                until,
                bytes(ID_BYTES),
            )
        )
    finally:
        loader.close()
    log, stored = open_store(work)
    try:
        reindex_due(stored)
        catch_up(log, stored)
        log.raise_epoch()
    finally:
        close_store(work, log, stored)


def _overdue_of(work: Path, clock: Clock) -> tuple[int, int, int]:
    """Timers in all, those that are overdue, and the oldest due of them."""
    log, tables = open_store(work)
    try:
        now_ns = {Scale.WALL: clock.utc_ns(), Scale.STEADY: _steady_ns(tables, clock)}
        overdue, oldest_ns = 0, 0
        for scale, until_ns in now_ns.items():
            ids, dues, _ = tables.due(scale, 1, until_ns + 1)
            overdue += len(ids) // ID_BYTES
            if dues:
                due_ns = int.from_bytes(dues[:DUE_BYTES], "little")
                oldest_ns = min(oldest_ns or due_ns, due_ns)
        return tables.applied().live_count, overdue, oldest_ns
    finally:
        close_store(work, log, tables)


def _steady_ns(tables: LmdbTables, clock: Clock) -> int:
    """The steady time as a start would take it up."""
    note = tables.note(ANCHOR_KEY)
    if note is None:
        return clock.utc_ns()
    anchor = msgspec.json.decode(unpack_note(note).reply, type=Anchor)
    return Timescale.resume(anchor, clock, 1 << 62).now(clock).steady_ns


def _move(work: Path, data_dir: Path, node_id: str) -> None:
    if node_id:
        write_durably(data_dir / NODE_ID_FILE, f"{node_id}\n".encode("ascii"))
    (work / "tables").rename(data_dir / "tables")
    sync_directory(data_dir)
    (work / "log").rename(data_dir / "log")
    sync_directory(data_dir)
