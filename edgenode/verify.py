"""Verifying a store: its whole log is replayed, and the tables are held against what comes of it.

The replay stops where the tables stand, so that they are compared with what they follow from, and
goes on to the log's end then. Nothing is written; the node must be stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgenode.manifest import Progress
from edgenode.recovery import consumers_of, newer_notes
from engine._audit import Audit
from engine._copy import StoreFiles
from engine.errors import StoreCorrupt
from engine.files import close_store, hold, open_store
from engine.record import Standing
from engine.store import LogEnds

PIECE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found to agree."""

    first_seq: int
    last_seq: int
    commits: int
    events: int
    unchained: int
    receipts: int
    receipts_waiting: int
    timers: int
    rows: int
    dues: int
    names: int
    consumers: int
    applied_seq: int
    epoch: int
    chain: str


def verify_store(data_dir: Path, progress: Progress) -> Verified:
    """Replay the store in `data_dir`. Raises StoreCorrupt at the first difference, StoreLocked,
    StoreFailed, StoreTooNew. 1 to 2 us an event and a row."""
    with hold(data_dir):
        files = StoreFiles(data_dir)
        try:
            files.check_pages()
            ends, standing = files.ends(), files.standing()
            receipts_from = files.first_receipt() or ends.last_seq + 1
            audit = Audit(max(ends.first_seq, 1), receipts_from=receipts_from)
            if standing.commit > ends.last_commit:
                raise StoreCorrupt(
                    f"the tables stand at commit {standing.commit}, the log ends at "
                    f"{ends.last_commit}; restore both from one backup"
                )
            replay = _Replay(files, audit, ends, progress)
            replay.to(standing.commit)
            timers = _compare_tables(files, audit, standing, progress)
            dues, names = files.check_indexes()
            replay.to(ends.last_commit)
            replay.check_end()
            epoch = files.epoch
        finally:
            files.close()
    return Verified(
        ends.first_seq,
        ends.last_seq,
        audit.commits,
        audit.events,
        audit.unchained,
        audit.receipts,
        audit.receipts_waiting,
        timers,
        audit.rows,
        dues,
        names,
        _check_consumers(data_dir),
        standing.seq,
        epoch,
        audit.chain.hex(),
    )


class _Replay:
    """The log on its way through the audit."""

    def __init__(self, files: StoreFiles, audit: Audit, ends: LogEnds, progress: Progress) -> None:
        self.files, self.audit, self.ends, self.progress = files, audit, ends, progress
        self.number, self.bytes = max(ends.first_commit, 1), 0
        self.differ: set[int] = set()  # events whose receipt was another so far

    def to(self, commit: int) -> None:
        """Replay up to the end of `commit`."""
        seq, from_seq = 0, self.audit.from_seq
        while self.number <= commit:
            items, self.number, seq = self.files.log_items(
                self.number, seq, commit, from_seq, PIECE_BYTES
            )
            self.audit.feed(items)
            self._check_receipts()
            self.bytes += len(items)
            self.progress("log", self.bytes)
        self.audit.ended()
        self._check_receipts()

    def _check_receipts(self) -> None:
        """The newest receipt of an event is the one that is kept: an older one may differ."""
        pairs = self.audit.take_receipts()
        if pairs:
            self.differ.difference_update(
                int.from_bytes(pairs[at : at + 8], "little") for at in range(0, len(pairs), 16)
            )
            self.differ.update(self.files.check_receipts(pairs))

    def check_end(self) -> None:
        """Nothing is left over."""
        audit, ends = self.audit, self.ends
        if (audit.last_seq, audit.last_commit) != (ends.last_seq, ends.last_commit):
            raise StoreCorrupt(
                f"the log ends at event {ends.last_seq} and commit {ends.last_commit}; its seals "
                f"say {audit.last_seq} and {audit.last_commit}"
            )
        if self.differ:
            raise StoreCorrupt(f"the receipt of event {min(self.differ)} is not what its seal says")
        kept = self.files.count_receipts(audit.from_seq)
        if kept != audit.receipts:
            raise StoreCorrupt(f"{kept} receipts are kept; the seals tell of {audit.receipts}")


def _compare_tables(files: StoreFiles, audit: Audit, standing: Standing, progress: Progress) -> int:
    timers = size = 0
    for table in ("timers", "done", "notes"):
        after, count = b"", 0
        while True:
            items, rows, after = files.rows(table, after, PIECE_BYTES)
            audit.compare(items, applied_seq=standing.seq)
            count += rows
            size += len(items)
            progress("tables", size)
            if not after:
                break
        said = {"timers": standing.live_count, "notes": standing.notes_count}.get(table, count)
        if count != said:
            raise StoreCorrupt(f"the tables hold {count} {table}; they should hold {said}")
        timers += count if table == "timers" else 0
    audit.finish(done_below=standing.done_below, rebuilt=standing.rebuilt_from > 0)
    return timers


def _check_consumers(data_dir: Path) -> int:
    """Restore the durable consumers as a start would; how many there are."""
    log, tables = open_store(data_dir)
    try:
        notes = newer_notes(log, tables.applied().commit)
        newest = {key: data for _, key, data in notes}
        return len(consumers_of(log, tables, newest, 0).by_key)
    finally:
        close_store(data_dir, log, tables)
