"""Making a backup of a store, beside the node that goes on firing.

It is made by a process of its own, which reads the files of the store: it takes nothing from the
node but a share of the machine, works as well when the node is stopped or its disk is full, and no
client of a door can have a file written. Read transactions last some milliseconds each (why:
`_copy.pyx`), so what is read in the course of a backup is of different times:

1. A: where the tables stand
2. the log, from its oldest event to its end
3. the rows of the tables, while they move from A to B
4. the rest of the log, past B

Each event of the log carries its timer's whole image, so folding the events from A to B into those
rows brings every one of them to B, whenever it was read: that is what `restore` does, and from
there on as a node would. Only the head of the log could be trimmed while it is read: then the copy
begins anew.

What was written is read again and replayed before there is a manifest.
docs/decisions/0013-backup.md
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from edgenode.check import check_full, check_increment
from edgenode.config import NODE_ID_FILE, READY_FILE
from edgenode.manifest import (
    DIRECTORY_MODE,
    FILE_MODE,
    FORMAT,
    LOG_FILE,
    TABLES_FILE,
    LogPart,
    Manifest,
    Progress,
    TablesPart,
    made_at,
    write_manifest,
)
from engine._audit import Audit
from engine._copy import Overtaken, StoreFiles, write_out
from engine.errors import StoreCorrupt, StoreFailed
from engine.files import failed, sync_directory
from engine.store import CHAIN_START

PIECE_BYTES = 256 << 10  # of one read transaction
PACE_BYTES = 1 << 20  # written before the disk is waited for
TRIES = 3  # of copying a log whose head is trimmed meanwhile


@dataclass(slots=True)
class ItemFile:
    """A file of items that is being written."""

    path: Path
    fd: int = -1
    size: int = 0
    waited: int = 0
    sha: Any = field(default_factory=hashlib.sha256)

    def open(self) -> None:
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)

    def write(self, items: bytes) -> None:
        rest = memoryview(items)
        while rest:
            rest = rest[os.write(self.fd, rest) :]
        self.sha.update(items)
        self.size += len(items)
        if self.size - self.waited >= PACE_BYTES:
            write_out(self.fd, self.waited, self.size - self.waited)
            self.waited = self.size

    def empty(self) -> None:
        os.ftruncate(self.fd, 0)
        os.lseek(self.fd, 0, os.SEEK_SET)
        self.size = self.waited = 0
        self.sha = hashlib.sha256()

    def finish(self) -> None:
        os.fsync(self.fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _Span(NamedTuple):
    """A stretch of the log: from which commit and event, to which commit."""

    from_commit: int
    from_seq: int
    to_commit: int


def back_up(
    data_dir: Path, target: Path, before: Manifest | None, utc_ns: int, progress: Progress
) -> Manifest:
    """Write a backup into `target`, a new or empty directory; with `before`, another backup, only
    the log since then.

    Raises StoreFailed, StoreFull, StoreCorrupt, StoreTooNew; `target` is then as it was.
    """
    files = StoreFiles(data_dir)
    made = not target.exists()
    try:
        target.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise StoreFailed(f"{target} is not empty; name a new directory")
        try:
            return _back_up(files, node_id_of(data_dir), target, before, utc_ns, progress)
        except BaseException:
            _remove(target, made)
            raise
    except OSError as error:
        raise failed(str(target), error) from error
    finally:
        files.close()


def _back_up(
    files: StoreFiles,
    node_id: str,
    target: Path,
    before: Manifest | None,
    utc_ns: int,
    progress: Progress,
) -> Manifest:
    log_file, tables_file = ItemFile(target / LOG_FILE), ItemFile(target / TABLES_FILE)
    try:
        log_file.open()
        tables = None
        if before is None:
            tables_file.open()
            span, tables = _copy_all(files, log_file, tables_file, progress)
        else:
            span = _copy_since(files, log_file, before, progress)
        log_file.finish()
        if tables is not None:
            tables_file.finish()
    finally:
        log_file.close()
        tables_file.close()
    sync_directory(target)
    if tables is not None:
        audit = check_full(target, span.from_seq, tables, progress)
        log = _log_part(audit, log_file, span, CHAIN_START.hex() if span.from_commit == 1 else "")
    else:
        assert before is not None
        audit = check_increment(target, before, progress)
        log = _log_part(audit, log_file, span, before.log.chain)
    manifest = Manifest(
        FORMAT, version("minoots"), node_id, files.epoch, made_at(utc_ns), log, tables
    )
    write_manifest(target, manifest)
    return manifest


def _copy_all(
    files: StoreFiles, log_file: ItemFile, tables_file: ItemFile, progress: Progress
) -> tuple[_Span, TablesPart]:
    for attempt in range(TRIES):
        try:
            begun, ends = files.standing(), files.ends()
            if ends.first_seq > begun.seq + 1:
                raise Overtaken("the log was trimmed while it was looked at; try again")
            span = _Span(max(ends.first_commit, 1), max(ends.first_seq, 1), ends.last_commit)
            _copy_log(files, log_file, span, progress)
            counts = _copy_rows(files, tables_file, progress)
            reached, end = files.standing(), files.ends().last_commit
            _copy_log(files, log_file, span._replace(from_commit=span.to_commit + 1, to_commit=end))
            break
        except Overtaken:
            if attempt == TRIES - 1:
                raise
            log_file.empty()
            tables_file.empty()
    part = TablesPart(
        tables_file.size,
        tables_file.sha.hexdigest(),
        *counts,
        seq=begun.seq,
        commit=begun.commit,
        through_seq=reached.seq,
        through_commit=reached.commit,
        done_below=begun.done_below,
        rebuilt_from=begun.rebuilt_from,
        rebuild_to=begun.rebuild_to,
    )
    return span._replace(to_commit=end), part


def _copy_since(
    files: StoreFiles, log_file: ItemFile, before: Manifest, progress: Progress
) -> _Span:
    """The log after another backup."""
    if before.epoch != files.epoch:
        raise StoreFailed(
            f"that backup is of epoch {before.epoch}, this node is in {files.epoch}: it was "
            "restored since; make a full one"
        )
    ends, log = files.ends(), before.log
    if ends.last_commit < log.last_commit:
        raise StoreFailed(
            f"the log ends at commit {ends.last_commit}, that backup at {log.last_commit}; make a "
            "full one"
        )
    if ends.first_seq > log.last_seq + 1 or ends.first_commit > log.last_commit + 1:
        raise StoreFailed(
            f"the log begins at event {ends.first_seq}, that backup ended at {log.last_seq}; make "
            "a full one"
        )
    if files.chain_of(log.last_commit) not in (b"", bytes.fromhex(log.chain)):
        raise StoreFailed("that backup is of another node, by its hash chain; make a full one")
    span = _Span(log.last_commit + 1, log.last_seq + 1, ends.last_commit)
    _copy_log(files, log_file, span, progress)
    return span


def _copy_log(
    files: StoreFiles, to: ItemFile, span: _Span, progress: Progress | None = None
) -> None:
    number, seq = span.from_commit, 0
    while number <= span.to_commit:
        items, number, seq = files.log_items(
            number, seq, span.to_commit, span.from_seq, PIECE_BYTES
        )
        to.write(items)
        if progress is not None:
            progress("log", to.size)


def _copy_rows(files: StoreFiles, to: ItemFile, progress: Progress) -> tuple[int, int, int]:
    """Timers before the finished ones: one that ends meanwhile is in one of them at least."""
    counts = []
    for table in ("timers", "done", "notes"):
        after, count = b"", 0
        while True:
            items, rows, after = files.rows(table, after, PIECE_BYTES)
            to.write(items)
            count += rows
            progress("tables", to.size)
            if not after:
                break
        counts.append(count)
    return counts[0], counts[1], counts[2]


def _log_part(audit: Audit, file: ItemFile, span: _Span, chain_before: str) -> LogPart:
    if audit.last_commit < span.to_commit:
        raise StoreCorrupt(f"the copy ends at commit {audit.last_commit}, not {span.to_commit}")
    return LogPart(
        file.size,
        file.sha.hexdigest(),
        span.from_seq,
        max(audit.last_seq, span.from_seq - 1),
        span.from_commit,
        span.to_commit,
        audit.events,
        chain_before,
        audit.chain.hex(),
    )


def node_id_of(data_dir: Path) -> str:
    """The name of the node whose directory this is; "" if it never had one."""
    try:
        name = json.loads((data_dir / READY_FILE).read_bytes())["node_id"]
        if isinstance(name, str):
            return name
    except (OSError, ValueError, KeyError):
        pass  # it does not run
    path = data_dir / NODE_ID_FILE
    return path.read_text(encoding="ascii").strip() if path.exists() else ""


def _remove(target: Path, made: bool) -> None:
    """Leave nothing of a backup that failed."""
    for name in (LOG_FILE, TABLES_FILE, "manifest.new"):
        (target / name).unlink(missing_ok=True)
    if made:
        shutil.rmtree(target, ignore_errors=True)
