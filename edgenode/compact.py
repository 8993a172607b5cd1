"""Making the files of a stopped node small again: the same records in new files without free pages.

LMDB's files do not shrink: pages that were freed are used again. The new files are made beside the
old ones and verified; each then takes the old one's place by a rename. As both pairs stand at the
same commits, a crash between the two renames leaves a store like any other.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from edgenode.backup import PIECE_BYTES
from edgenode.manifest import DIRECTORY_MODE, Progress
from edgenode.verify import verify_store
from engine._copy import StoreFiles
from engine._load import StoreLoader
from engine.errors import StoreFailed
from engine.files import close_store, hold, open_store, reindex_due, sync_directory

WORK = "compacting"  # the folder in the data directory where the files are made
PARTS = ("log", "tables")


def compact(data_dir: Path, progress: Progress) -> tuple[int, int]:
    """Rewrite the store of a stopped node; the bytes of its files before and after.

    Needs room for the new files beside the old ones. Raises StoreLocked, StoreFailed, StoreFull,
    StoreCorrupt, StoreTooNew; the store is then as it was.
    """
    try:
        with hold(data_dir):
            work = data_dir / WORK
            shutil.rmtree(work, ignore_errors=True)
            try:
                _copy(data_dir, work, progress)
                verify_store(work, progress)
                before, after = _size(data_dir), _size(work)
                for part in PARTS:
                    (work / part / "data.mdb").replace(data_dir / part / "data.mdb")
                    sync_directory(data_dir / part)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise StoreFailed(f"{data_dir}: {error.strerror}") from error
    return before, after


def _copy(data_dir: Path, work: Path, progress: Progress) -> None:
    files = StoreFiles(data_dir)
    try:
        for folder in (work, *(work / part for part in PARTS)):
            folder.mkdir(DIRECTORY_MODE)
        ends, standing = files.ends(), files.standing()
        from_seq, size = max(ends.first_seq, 1), 0
        loader = StoreLoader(work, files.epoch, from_seq)
        try:
            number, seq = max(ends.first_commit, 1), 0
            while number <= ends.last_commit:
                items, number, seq = files.log_items(
                    number, seq, ends.last_commit, from_seq, PIECE_BYTES
                )
                loader.load(items)
                size += len(items)
                progress("compacted", size)
            for table in ("timers", "done", "notes"):
                after = b""
                while True:
                    items, _, after = files.rows(table, after, PIECE_BYTES)
                    loader.load(items)
                    size += len(items)
                    progress("compacted", size)
                    if not after:
                        break
            loader.finish(standing)
        finally:
            loader.close()
    finally:
        files.close()
    log, tables = open_store(work)
    try:
        reindex_due(tables)
    finally:
        close_store(work, log, tables)


def _size(folder: Path) -> int:
    return sum((folder / part / "data.mdb").stat().st_size for part in PARTS)
