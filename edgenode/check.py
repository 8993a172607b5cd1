"""Checking a backup without a store: everything in its files is read and replayed.

First the full backup, then the increments on top of it, in order; each must go on where the one
before it ends. What the manifests say of sizes, sums and ends must be so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgenode.manifest import (
    LOG_FILE,
    TABLES_FILE,
    LogPart,
    Manifest,
    Progress,
    TablesPart,
    read_manifest,
)
from engine._audit import Audit, whole_items
from engine.errors import StoreCorrupt, StoreFailed

READ_BYTES = 4 << 20


def pieces(path: Path, sha: Any = None) -> Iterator[bytes]:
    """The items of a file in pieces of some megabytes, each of whole items.

    sha: takes in the bytes as they are read. Raises StoreCorrupt, StoreFailed.
    """
    try:
        with path.open("rb") as file:
            rest = b""
            while piece := file.read(READ_BYTES):
                if sha is not None:
                    sha.update(piece)
                rest += piece
                whole = whole_items(rest)
                if whole:
                    yield rest[:whole]
                    rest = rest[whole:]
    except OSError as error:
        raise StoreFailed(f"{path}: {error.strerror}") from error
    if rest:
        raise StoreCorrupt(f"{path} is cut short: its last {len(rest)} bytes are no whole item")


def check_backups(folders: list[Path], progress: Progress) -> tuple[list[Manifest], Audit]:
    """Read and replay a full backup and the increments that follow it.

    Raises StoreCorrupt, StoreTooNew, StoreFailed.
    """
    manifests = [read_manifest(folder) for folder in folders]
    tables = manifests[0].tables
    if tables is None:
        raise StoreFailed(f"{folders[0]} is an increment; name the full backup first")
    audit = check_full(folders[0], manifests[0].log.first_seq, tables, progress, manifests[0].log)
    before = manifests[0]
    for folder, manifest in zip(folders[1:], manifests[1:], strict=True):
        if manifest.tables is not None:
            raise StoreFailed(f"{folder} is a full backup; only increments may follow the first")
        if manifest.log.first_commit != before.log.last_commit + 1 or (
            manifest.log.chain_before != before.log.chain or manifest.epoch != before.epoch
        ):
            raise StoreFailed(
                f"{folder} begins at commit {manifest.log.first_commit} of epoch {manifest.epoch}; "
                f"commit {before.log.last_commit + 1} of epoch {before.epoch} comes next, with the "
                "same hash chain"
            )
        _replay(folder, audit, manifest.log, progress)
        before = manifest
    return manifests, audit


def check_increment_alone(folder: Path, progress: Progress) -> tuple[Manifest, Audit]:
    """Read and replay one increment by itself: what its timers were before is not known."""
    manifest = read_manifest(folder)
    log = manifest.log
    audit = Audit(log.first_seq, bytes.fromhex(log.chain_before), log.first_commit - 1)
    _replay(folder, audit, log, progress)
    return manifest, audit


def check_increment(folder: Path, before: Manifest, progress: Progress) -> Audit:
    """The log of an increment that has no manifest yet, behind `before`."""
    log = before.log
    audit = Audit(log.last_seq + 1, bytes.fromhex(log.chain), log.last_commit)
    _replay(folder, audit, None, progress)
    return audit


def check_full(
    folder: Path,
    from_seq: int,
    tables: TablesPart,
    progress: Progress,
    log: LogPart | None = None,
) -> Audit:
    """A full backup; `log` is what its manifest says, None while it has none."""
    audit = Audit(from_seq)
    _replay(folder, audit, log, progress)
    sha, size = hashlib.sha256(), 0
    for items in pieces(folder / TABLES_FILE, sha):
        size += len(items)
        audit.compare(items, applied_seq=tables.through_seq, moving=True)
        progress("checked", size)
    _same(folder / TABLES_FILE, "bytes", size, tables.bytes)
    _same(folder / TABLES_FILE, "the SHA-256", sha.hexdigest(), tables.sha256)
    _same(folder / TABLES_FILE, "rows", audit.rows, tables.timers + tables.done + tables.notes)
    if not tables.commit <= tables.through_commit <= audit.last_commit:
        raise StoreCorrupt(
            f"the tables went from commit {tables.commit} to {tables.through_commit}; the log of "
            f"the backup ends at {audit.last_commit}"
        )
    return audit


def _replay(folder: Path, audit: Audit, log: LogPart | None, progress: Progress) -> None:
    events, sha, size = audit.events, hashlib.sha256(), 0
    path = folder / LOG_FILE
    for items in pieces(path, sha):
        size += len(items)
        audit.feed(items)
        audit.take_receipts()
        progress("checked", size)
    audit.ended()
    if log is None:
        return
    _same(path, "bytes", size, log.bytes)
    _same(path, "the SHA-256", sha.hexdigest(), log.sha256)
    _same(path, "events", audit.events - events, log.events)
    _same(path, "the last event", audit.last_seq, log.last_seq)
    _same(path, "the last commit", audit.last_commit, log.last_commit)
    _same(path, "the hash chain", audit.chain.hex(), log.chain)


def _same(path: Path, what: str, found: object, said: object) -> None:
    if found != said:
        raise StoreCorrupt(f"{path}: {what}: {found} is there, the manifest says {said}")
