"""The virtual twin of the store: the log and the tables in dicts, for simulations and tests.

It keeps the promises of `store.py` with no disk and no thread: a commit is durable when `submit`
returns, unless `hold` was called; then it is under way until `let_go`. `crash` forgets what was
under way, `fail_next` makes the next commit fail. The objects stand for the disk: after a crash the
same ones are given to a new node. It must never be used where a timer matters.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from dataclasses import replace
from typing import NamedTuple

from engine.errors import StoreCorrupt, StoreFailed
from engine.filters import passes
from engine.record import (
    FLAG_BLOB,
    Image,
    Kind,
    pack_row,
    unpack_event,
    unpack_note,
    unpack_row,
)
from engine.store import (
    CHAIN_START,
    RECEIPT_BYTES,
    Applied,
    Batch,
    Commit,
    Filter,
    LogState,
)
from engine.timer import TERMINAL, State

UNDER_WAY_MAX = 2
TRIM_SPARE = 256  # a commit may delete twice what it appends, and this many more
HOUR_NS = 3600 * 10**9
SLICE_ENTRIES = 65_536


def due_hour(due_ns: int) -> int:
    """The hour that the due index files an instant under."""
    return max(due_ns, 0) // HOUR_NS


class _Sealed(NamedTuple):
    commit: Commit
    receipts: bytes


class MemoryLog:
    """`Log` and `LogReader` in dicts."""

    def __init__(self, epoch: int = 1) -> None:
        self._epoch = epoch
        self._events: dict[int, bytes] = {}
        self._receipts: dict[int, int] = {}
        self._seals: dict[int, _Sealed] = {}
        self._seals_first = 1
        self._first_seq = 1
        self._last_seq = 0
        self._bytes = 0
        self._under_way: deque[Batch] = deque()
        self._submitted_seq = 0
        self._submitted = 0
        self._durable = 0
        self._held = False
        self._fail_next: StoreFailed | None = None
        self._failed: StoreFailed | None = None

    # Log

    def submit(self, batch: Batch) -> int:
        self._raise_failed()
        assert len(self._under_way) < UNDER_WAY_MAX, "two batches are under way; ask ready first"
        assert batch.first_seq == self._submitted_seq + 1, (
            f"the batch begins at seq {batch.first_seq}; the log goes on at "
            f"{self._submitted_seq + 1}"
        )
        assert len(batch.receipts) % RECEIPT_BYTES == 0, "receipts are pairs of 16 bytes"
        self._under_way.append(replace(batch, events=list(batch.events), notes=list(batch.notes)))
        self._submitted_seq += len(batch.events)
        self._submitted += 1
        number = self._submitted
        if not self._held:
            self._write(1)
        return number

    def ready(self) -> bool:
        return len(self._under_way) < UNDER_WAY_MAX

    def durable(self) -> int:
        self._raise_failed()
        return self._durable

    def state(self) -> LogState:
        newest = self._seals.get(self._durable)
        return LogState(
            self._epoch,
            self._first_seq,
            self._last_seq,
            self._durable,
            newest.commit.chain if newest else CHAIN_START,
            newest.commit.floor if newest else 0,
            newest.commit.at_ns if newest else 0,
            self._bytes,
        )

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        if self._failed is None:
            self._write(len(self._under_way))

    # LogReader

    def event(self, seq: int) -> bytes | None:
        for batch in self._under_way:
            at = seq - batch.first_seq
            if 0 <= at < len(batch.events):
                return batch.events[at]
        return self._events.get(seq)

    def events(self, from_seq: int, limit: int, bytes_max: int) -> list[bytes]:
        found: list[bytes] = []
        size = 0
        if from_seq < self._first_seq:
            return found
        for seq in range(from_seq, min(from_seq + limit, self._last_seq + 1)):
            if size > bytes_max:
                break
            found.append(self._events[seq])
            size += len(found[-1])
        return found

    def receipts(self, from_seq: int, to_seq: int) -> dict[int, int]:
        last = min(to_seq, self._last_seq)
        return {
            seq: self._receipts[seq]
            for seq in range(max(from_seq, self._first_seq), last + 1)
            if seq in self._receipts
        }

    def seq_at(self, at_ns: int) -> int:
        low, high = self._first_seq, self._last_seq + 1
        while low < high:
            middle = (low + high) // 2
            if unpack_event(middle, self._events[middle]).at_ns < at_ns:
                low = middle + 1
            else:
                high = middle
        return low

    def commits(self, from_commit: int, limit: int) -> list[Commit]:
        first = max(from_commit, self._seals_first)
        last = min(first + limit - 1, self._durable)
        return [self._seals[number].commit for number in range(first, last + 1)]

    def sealed_receipts(self, number: int) -> bytes:
        """The packed receipts of one commit, as they were submitted: the chain covers them."""
        return self._seals[number].receipts

    # what tests turn

    def hold(self) -> None:
        """From now on a submitted batch stays under way."""
        self._held = True

    def let_go(self, count: int | None = None) -> None:
        """Make `count` of the batches under way durable, the oldest first; and hold on. Without a
        count: all of them, and hold no more."""
        self._held = count is not None
        self._write(len(self._under_way) if count is None else count)

    @property
    def under_way_count(self) -> int:
        """Batches that were submitted and are not durable."""
        return len(self._under_way)

    def fail_next(self, error: StoreFailed) -> None:
        """The next commit that would become durable fails with `error`, and so the log."""
        self._fail_next = error

    def crash(self, landed: int = 0) -> None:
        """Lose what is under way, but for the oldest `landed` batches: a commit may reach the disk
        though nobody heard of it."""
        if self._failed is None:
            self._write(landed)
        self._under_way.clear()
        self._submitted = self._durable
        self._submitted_seq = self._last_seq
        self._held = False
        self._failed = self._fail_next = None

    def damage(self, seq: int, data: bytes) -> None:
        """Put `data` where the record of `seq` was."""
        self._events[seq] = data

    def _raise_failed(self) -> None:
        if self._failed is not None:
            raise type(self._failed)(*self._failed.args)

    def _write(self, count: int) -> None:
        for _ in range(min(count, len(self._under_way))):
            if self._fail_next is not None:
                self._failed, self._fail_next = self._fail_next, None
                self._under_way.clear()
                return
            self._commit(self._under_way.popleft())

    def _commit(self, batch: Batch) -> None:
        for seq, data in enumerate(batch.events, batch.first_seq):
            self._events[seq] = data
        for at in range(0, len(batch.receipts), RECEIPT_BYTES):
            pair = batch.receipts[at : at + RECEIPT_BYTES]
            seq = int.from_bytes(pair[:8], "little")
            if seq >= self._first_seq:
                self._receipts[seq] = int.from_bytes(pair[8:], "little", signed=True)
        self._trim(min(batch.trim_below, self._last_seq), 2 * len(batch.events) + TRIM_SPARE)
        self._bytes += sum(map(len, batch.events)) + len(batch.receipts)
        self._last_seq += len(batch.events)
        self._durable += 1
        commit = Commit(
            self._durable,
            batch.first_seq,
            len(batch.events),
            batch.at_ns,
            batch.chain,
            batch.floor,
            len(batch.receipts) // RECEIPT_BYTES,
            batch.notes,
        )
        self._seals[self._durable] = _Sealed(commit, batch.receipts)

    def _trim(self, below: int, budget: int) -> None:
        end = min(below, self._first_seq + budget)
        while self._first_seq < end:
            self._bytes -= len(self._events.pop(self._first_seq))
            self._receipts.pop(self._first_seq, None)
            self._first_seq += 1
        for _ in range(budget):
            oldest = self._seals.get(self._seals_first)
            if (
                oldest is None
                or oldest.commit.first_seq + max(oldest.commit.events_count, 1) > self._first_seq
            ):
                break
            del self._seals[self._seals_first]
            self._bytes -= len(oldest.receipts)
            self._seals_first += 1


class MemoryTables:
    """`Tables` and `TablesReader` in dicts, behind a `MemoryLog`."""

    def __init__(self, log: MemoryLog, slice_entries: int = SLICE_ENTRIES) -> None:
        self._log = log
        self._slice_entries = slice_entries
        self._rows: dict[bytes, bytes] = {}
        self._ids: list[bytes] = []  # of _rows, sorted: scan goes in their order
        self._due: dict[tuple[int, int], dict[bytes, int]] = {}
        self._names: dict[int, set[bytes]] = {}
        self._done: dict[bytes, int] = {}
        self._notes: dict[bytes, bytes] = {}
        self._seq = 0
        self._commit = 0
        self._bytes = 0  # of rows and notes
        self._done_below = 1
        self._followed = 0
        self._followed_commit = 0
        self._now = False
        self._held = False

    # Tables

    def applied(self) -> Applied:
        return Applied(self._seq, self._commit, len(self._rows), len(self._notes), self._bytes)

    def follow(self, last_seq: int, commit: int, *, now: bool = False) -> None:
        assert commit <= self._log.state().commit, "the tables follow durable commits only"
        if commit > self._followed_commit:
            self._followed, self._followed_commit = last_seq, commit
        self._now = self._now or now
        if not self._held and (now or self._followed - self._seq >= self._slice_entries):
            self._slice()

    def fileno(self) -> int:
        return -1

    def expire(self, trim_below: int, notes_before_ns: int) -> int:
        if self._held:
            return self._done_below
        self._done_below = max(self._done_below, self._log.state().first_seq)
        while self._done_below < min(trim_below, self._seq):
            self._forget(self._done_below)
            self._done_below += 1
        for key, data in list(self._notes.items()):
            if unpack_note(data).at_ns < notes_before_ns:
                self._bytes -= len(self._notes.pop(key))
        return self._done_below

    def close(self) -> None:
        self._held = True

    # TablesReader

    def row(self, id: bytes) -> bytes | None:
        return self._rows.get(id)

    def done(self, id: bytes) -> int:
        return 0 if id in self._rows else self._done.get(id, 0)

    def named(self, name_hash: int) -> list[bytes]:
        return sorted(self._names.get(name_hash, ()))

    def due(
        self, scale: int, from_ns: int, to_ns: int, after: bytes = b"", budget: int = 0
    ) -> tuple[bytes, bytes, bytes]:
        first, last = due_hour(from_ns), due_hour(to_ns)
        entries = sorted(
            (hour.to_bytes(4, "big") + id, due)
            for (hour_scale, hour), timers in self._due.items()
            if hour_scale == scale and first <= hour <= last
            for id, due in timers.items()
        )
        page = [entry for entry in entries if entry[0] > after]
        more = 0 < budget <= len(page)
        page = page[:budget] if more else page
        found = sorted((due, key[4:]) for key, due in page if from_ns <= due < to_ns)
        return (
            b"".join(id for _, id in found),
            b"".join(due.to_bytes(8, "little", signed=True) for due, _ in found),
            page[-1][0] if more else b"",
        )

    def scan(
        self, filter: Filter, after_id: bytes, limit: int, budget: int
    ) -> tuple[list[bytes], bytes]:
        found: list[bytes] = []
        start = bisect_right(self._ids, after_id) if after_id else 0
        for looked, id in enumerate(self._ids[start : start + budget], 1):
            if passes(filter, *unpack_row(id, self._rows[id])):
                found.append(self._rows[id])
            if len(found) == limit or looked == budget:
                return found, id
        return found, b""

    def note(self, key: bytes) -> bytes | None:
        return self._notes.get(key)

    # what tests turn

    def hold(self) -> None:
        """From now on no slice is made, whatever `follow` says."""
        self._held = True

    def let_go(self) -> None:
        """Make the slice that was asked for meanwhile, and hold no more."""
        self._held = False
        if self._now or self._followed - self._seq >= self._slice_entries:
            self._slice()

    def crash(self) -> None:
        """Forget what was asked for; what was applied is on disk."""
        self._followed, self._followed_commit = self._seq, self._commit
        self._now = self._held = False

    def _slice(self) -> None:
        self._now = False
        for commit in self._log.commits(self._commit + 1, self._followed_commit - self._commit):
            if commit.number != self._commit + 1:
                raise StoreCorrupt(f"commit {self._commit + 1} was trimmed before it was applied")
            seqs = range(commit.first_seq, commit.first_seq + commit.events_count)
            for seq, data in zip(
                seqs, self._log.events(seqs.start, len(seqs), 1 << 62), strict=True
            ):
                self._apply(seq, data)
            for note in commit.notes:
                key = unpack_note(note).key
                self._bytes += len(note) - len(self._notes.get(key, b""))
                self._notes[key] = note
            self._seq, self._commit = seqs.stop - 1, commit.number

    def _apply(self, seq: int, data: bytes) -> None:
        event = unpack_event(seq, data)
        image = event.image
        if image is None:
            return
        old = self._rows.get(image.id)
        blob = event.blob if event.flags & FLAG_BLOB else b""
        if old is not None:
            before, old_blob = unpack_row(image.id, old)
            self._drop(before)
            blob = blob or old_blob
        elif event.kind != Kind.SCHEDULED and not (
            event.kind == Kind.LATE and image.id in self._done
        ):
            raise StoreCorrupt(f"event {seq} changes timer {image.id.hex()}, which has no row")
        if image.state in TERMINAL:
            self._done[image.id] = seq
        else:
            self._keep(image, blob)

    def _keep(self, image: Image, blob: bytes) -> None:
        insort(self._ids, image.id)
        self._rows[image.id] = row = pack_row(image, blob)
        self._bytes += len(row)
        if image.name_hash:
            self._names.setdefault(image.name_hash, set()).add(image.id)
        if image.state == State.SCHEDULED and image.due_ns:
            hour = self._due.setdefault((image.scale, due_hour(image.due_ns)), {})
            hour[image.id] = image.due_ns

    def _drop(self, image: Image) -> None:
        self._bytes -= len(self._rows.pop(image.id))
        del self._ids[bisect_left(self._ids, image.id)]
        self._names.get(image.name_hash, set()).discard(image.id)
        self._due.get((image.scale, due_hour(image.due_ns)), {}).pop(image.id, None)

    def _forget(self, seq: int) -> None:
        data = self._log.event(seq)
        assert data is not None, "the log was trimmed above what expire returned"
        image = unpack_event(seq, data).image
        if image is not None and self._done.get(image.id) == seq:
            del self._done[image.id]
