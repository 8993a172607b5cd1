"""The two edges of the store: the log, which is the truth, and the tables, which follow it.

The turn fills a Batch, hands it to `Log.submit` and goes on; the log's own thread writes and syncs
it in one commit. Nothing that a batch decided may leave the process before `Log.durable` has
reached its number. A second thread folds durable events into the tables; until it has done so the
turn finds them through the hot set (`_hot.pyx`), which knows the seq of each newer record.

Real: `_log.pyx`, `_tables.pyx` over LMDB. Virtual: `memory.py`. One suite runs on both:
`tests/model/test_store_contract.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

RECEIPT_BYTES = 16  # seq, fired_ns: two little-endian 64-bit integers

CHAIN_START = bytes(32)


@dataclass(slots=True)
class Batch:
    """What one turn decided; one commit.

    events: records packed by `record.pack_event`, numbered first_seq, first_seq + 1, ...
    receipts: packed (seq, fired_ns) pairs, of this or of earlier commits' expired events.
    notes: packed idempotency notes. chain: `record.chain_hash` over all of these.
    floor: every expired event up to this seq has its receipt.
    trim_below: events, receipts and commits wholly below this seq may be deleted, a bounded number
    in each commit.
    """

    first_seq: int
    at_ns: int
    events: list[bytes] = field(default_factory=list)
    receipts: bytes = b""
    notes: list[bytes] = field(default_factory=list)
    chain: bytes = CHAIN_START
    floor: int = 0
    trim_below: int = 0


class LogState(NamedTuple):
    """Where the log stands: its durable end, and what it holds.

    first_seq: the oldest event kept. last_seq, commit, chain, floor, at_ns: of the newest durable
    commit (0, 0, CHAIN_START, 0, 0 for an empty log). epoch: grows when a log is restored.
    """

    epoch: int
    first_seq: int
    last_seq: int
    commit: int
    chain: bytes
    floor: int
    at_ns: int
    bytes_used: int


class LogEnds(NamedTuple):
    """The oldest and the newest of what a log keeps: 0 of what there is none of."""

    first_seq: int
    last_seq: int
    first_commit: int
    last_commit: int


class Commit(NamedTuple):
    """The seal of one commit, as it is stored."""

    number: int
    first_seq: int
    events_count: int
    at_ns: int
    chain: bytes
    floor: int
    receipts_count: int
    notes: list[bytes]


class Log(Protocol):
    """The append-only log. One thread calls it; a thread of its own writes."""

    def submit(self, batch: Batch) -> int:
        """Hand over a batch, return its commit number; never waits for the disk.

        Raises StoreFailed once any earlier commit failed, and AssertionError when `ready` said no.
        """

    def ready(self) -> bool:
        """Whether `submit` would take a batch now (at most two are under way)."""

    def durable(self) -> int:
        """The newest commit that is on disk. Raises StoreFailed, StoreFull after a failed one."""

    def state(self) -> LogState:
        """Where the durable log stands."""

    def fileno(self) -> int:
        """An eventfd that becomes readable when `durable` has moved or failed; -1 if there is none.

        `durable` clears it."""

    def close(self) -> None:
        """Wait for what is under way, then close the files."""


class LogReader(Protocol):
    """Reading the log, by the same thread. Batches under way are seen by `event` alone."""

    def event(self, seq: int) -> bytes | None:
        """The record at `seq`, of a durable commit or one under way; None if trimmed or not yet.

        Does not check the checksum: `record.unpack_event` does."""

    def events(self, from_seq: int, limit: int, bytes_max: int) -> list[bytes]:
        """Durable records from `from_seq` on, in order, contiguous: at most `limit`, and no more
        once `bytes_max` is passed."""

    def receipts(self, from_seq: int, to_seq: int) -> dict[int, int]:
        """The durable receipts of expired events in [from_seq, to_seq]: seq -> fired_ns."""

    def seq_at(self, at_ns: int) -> int:
        """The first durable event that was decided at or after `at_ns`; last_seq + 1 if none."""

    def commits(self, from_commit: int, limit: int) -> list[Commit]:
        """Durable seals from `from_commit` on; checked. Raises StoreCorrupt."""


class Applied(NamedTuple):
    """How far the tables have followed the log, and what they hold."""

    seq: int
    commit: int
    live_count: int
    notes_count: int
    bytes_used: int


class Filter(NamedTuple):
    """Which live timers a scan yields; an empty tuple or bytes asks for all.

    states: state numbers. labels: needles such as b'"team":"ops"', all of which must occur in the
    labels JSON. due_from_ns <= due < due_to_ns, on the timer's own scale plus `scale_shift_ns` for
    steady ones (UTC = steady + shift).
    """

    states: tuple[int, ...] = ()
    labels: tuple[bytes, ...] = ()
    name_prefix: bytes = b""
    due_from_ns: int = 0
    due_to_ns: int = 0
    scale_shift_ns: int = 0
    tenant: int = 0


class Tables(Protocol):
    """What follows the log. One thread calls it; a thread of its own writes."""

    def applied(self) -> Applied:
        """How far the tables are, durably. Raises StoreFailed after a failed slice."""

    def follow(self, last_seq: int, commit: int, *, now: bool = False) -> None:
        """Say how far the log is durable; `now` asks for a slice at once instead of at its time."""

    def fileno(self) -> int:
        """An eventfd that becomes readable when `applied` has moved; -1 if there is none."""

    def expire(self, trim_below: int, notes_before_ns: int) -> int:
        """Ask to forget finished timers whose last event is below `trim_below`, and notes older
        than `notes_before_ns`; return the seq below which that has durably been done."""

    def close(self) -> None:
        """Finish the slice under way, then close the files."""


class TablesReader(Protocol):
    """Reading the tables: durable slices only; each call is one short read transaction."""

    def row(self, id: bytes) -> bytes | None:
        """The row of a live (not finished) timer; `record.unpack_row` checks it."""

    def done(self, id: bytes) -> int:
        """The seq of a finished timer's last event; 0 if it is unknown."""

    def named(self, name_hash: int) -> list[bytes]:
        """The ids of the live timers whose name has this hash, in order."""

    def due(
        self, scale: int, from_ns: int, to_ns: int, after: bytes = b"", budget: int = 0
    ) -> tuple[bytes, bytes, bytes]:
        """Ids (16 bytes each) and dues (8, little-endian) of the scheduled timers with
        from_ns <= due < to_ns on `scale`, sorted by due; and the key to go on after, b"" if none.

        Whole hours are opened, as far as `budget` entries (0: all of them) after the key `after`;
        timers that come or move between two pages may be missed: the hot set knows those."""

    def scan(
        self, filter: Filter, after_id: bytes, limit: int, budget: int
    ) -> tuple[list[bytes], bytes]:
        """Rows of live timers in the order of their ids, after `after_id` (b'' from the start):
        at most `limit` that pass `filter`, looking at no more than `budget`; and the id to go on
        after, b'' at the end."""

    def note(self, key: bytes) -> bytes | None:
        """An idempotency note; `record.unpack_note` checks it."""
