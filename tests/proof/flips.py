"""Bit flips: one bit of a store's files is turned over; no answer may be wrong because of it.

    python -m tests.proof.flips --seed N --seconds N

LMDB has no checksums of its own; each record of ours has one, and its pages are looked at
(`engine/_pages.pyx`). So a flip may be harmless (it hit room that is not in use), be found when the
store is opened, or be found when what it hit is read. Half of them hit bytes that lead to records
(`structure.py`), which are few among all. Everything is read: every event, receipt, seal, row, due
and name, end and note. An answer that is not the truth (`truth.py`) and not an error is WRONG, as
is a record that is not found. Damage may also end the process (LMDB follows a pointer to nowhere):
that is told apart, and is no answer.

Then the damage is repaired, if it was in the tables: by `reindex` if the rows are whole, else by
`reindex --tables` from the log; what was damaged in the log has to be named by its number.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import sys
import time
import zlib
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import engine._lmdb as lmdb_edge

from edgenode.offline import reindex
from edgenode.verify import verify_store
from engine.errors import EngineError
from engine.files import close_store, open_store, verify_chain
from engine.record import check_event, unpack_note, unpack_row
from engine.store import Filter
from tests.proof import pool, recorder, truth
from tests.proof.outcome import Outcome, command
from tests.proof.pool import Board
from tests.proof.powercut import NAMES
from tests.proof.structure import structure

FORGOTTEN_AHEAD = 500  # events: the tables forget first, a later commit trims the log
STEPS = 60
STRIDE = 5  # between what is searched for
FLIPS_AT_ONCE, FLIPS_A_SECOND = 20_000, 500  # of two stores
LONG_H = 1 << 20  # of retention: the log keeps everything
KINDS = (
    "harmless",
    "at_open",
    "at_read",
    "wrong",
    "log_hits",
    "named",
    "tables_hits",
    "repaired",
)
_NUMBER = re.compile(r"\b(?:event|commit|events)\s+(?:the events )?\d+")


class Store(NamedTuple):
    """A closed store that is to be damaged. paths: by file, the bytes that lead to its records.
    whole: the log has not been trimmed."""

    files: tuple[bytes, ...]
    paths: tuple[array[int], ...]
    told: truth.History
    whole: bool

    def draw(self, draw: random.Random) -> tuple[int, int]:
        """A file and a bit of it: of any byte, or as often of one that leads to records."""
        file = int(draw.random() < 0.5)
        bit = draw.randrange(8 * len(self.files[file]))
        if draw.random() < 0.5:
            bit = 8 * draw.choice(self.paths[file]) + bit % 8
        return file, bit


def make(folder: Path, seed: int, steps: int, retention_h: int) -> Store:
    """Have a node run, and take what it leaves."""
    folder.mkdir()
    recorder.record(seed, steps, folder, lambda what, number: None, retention_h)
    told = truth.history(recorder.load(folder).batches)
    path = folder / "store"
    files = tuple((path / name / "data.mdb").read_bytes() for name in NAMES)
    _leave_forgotten(path, told)
    paths = tuple(structure(data) for data in files)
    return Store(files, paths, told, told.standings[-1].trim_below <= 1)


def _leave_forgotten(path: Path, told: truth.History) -> None:
    """Take from the truth what the undamaged tables have rightly forgotten: from here on an end or
    a note that is not found is lost."""
    log, tables = open_store(path)
    try:
        at = told.standings[tables.applied().commit]
        last = told.standings[-1]
        gone = truth.Forgotten(last.trim_below + FORGOTTEN_AHEAD, last.at_ns)
        assert not list(truth.tables_faults(tables, told, last.number, gone))
        at.done = {id: seq for id, seq in at.done.items() if tables.done(id)}
        at.notes = {key: note for key, note in at.notes.items() if tables.note(key)}
    finally:
        close_store(path, log, tables)


# ------------------------------------------------------------------------------- reading


class Reading:
    """Reads everything. errors: what was found to be damaged. wrong: answers that are not so."""

    def __init__(self, log: Any, tables: Any, told: truth.History) -> None:
        self.log, self.tables, self.told = log, tables, told
        self.log_errors: list[str] = []
        self.row_errors: list[str] = []
        self.index_errors: list[str] = []
        self.wrong: list[str] = []

    def everything(self) -> None:
        """Each part by itself: damage in one must not hide another."""
        self._try(self.log_errors, partial(truth.log_faults, self.log, self.told), self._events)
        self._try(self.log_errors, self._chain)
        self._try(self.log_errors, self._commits)
        self._try(self.log_errors, self._within)
        applied = self.told.standings[self.tables.applied().commit]
        self._try(self.row_errors, partial(self._scan, applied))
        for id, row in applied.rows.items():
            self._try(self.row_errors, partial(self._row, id, row))
        for id, seq in applied.done.items():
            self._try(self.row_errors, partial(self._end, id, seq))
        for key, note in applied.notes.items():
            self._try(self.row_errors, partial(self._note, key, note))
        for scale in range(2):
            self._try(self.index_errors, partial(self._due, applied, scale))
        for name, ids in applied.named.items():
            self._try(self.index_errors, partial(self._named, name, ids))

    def _try(
        self,
        errors: list[str],
        read: Callable[[], Iterator[str]],
        again: Callable[[], Iterator[str]] | None = None,
    ) -> None:
        try:
            found = list(read())
        except EngineError as error:
            errors.append(str(error))
            return
        if found and again is not None:
            self._try(errors, again)
        else:
            self.wrong += found

    def _events(self) -> Iterator[str]:
        """Event by event: a record that is not what it was has to be found by its checksum."""
        state = self.log.state()
        for seq in range(state.first_seq, state.last_seq + 1):
            data = self.log.event(seq)
            if data == self.told.events[seq - 1]:
                continue
            try:
                if data is not None:
                    check_event(seq, data)
            except EngineError as error:
                self.log_errors.append(str(error))
            else:
                yield f"event {seq} is served as {(data or b'').hex()[:32]}, which it is not"
        if not self.log_errors:
            yield from truth.log_faults(self.log, self.told)

    def _chain(self) -> Iterator[str]:
        for _ in verify_chain(self.log):
            pass
        yield from ()

    def _commits(self) -> Iterator[str]:
        for commit in self.log.commits(1, truth.EVERYTHING):
            standing = self.told.standings[commit.number]
            if (commit.chain, commit.floor) != (standing.chain, standing.floor):
                yield f"commit {commit.number} is served, and is not what was written"

    def _within(self) -> Iterator[str]:
        """Receipts and seals that a search leads to, from somewhere inside."""
        state = self.log.state()
        for seq in range(state.first_seq, state.last_seq + 1, STRIDE):
            wanted = self.told.receipts_at(1, state.commit)
            if self.log.receipts(seq, seq) != ({seq: wanted[seq]} if seq in wanted else {}):
                yield f"the receipt of event {seq} is served, and is not what was written"
        first = self.log.commits(1, 1)[0].number
        for number in range(first, state.commit + 1, STRIDE):
            if [commit.number for commit in self.log.commits(number, 1)] != [number]:
                yield f"the seal of commit {number} is served, and is another one"

    def _scan(self, at: truth.Standing) -> Iterator[str]:
        rows, after = self.tables.scan(Filter(), b"", len(at.rows) + 2, truth.EVERYTHING)
        if rows != list(at.rows.values()) or after:
            yield f"a scan has {len(rows)} rows, should have {len(at.rows)}, or other ones"

    def _row(self, id: bytes, row: bytes) -> Iterator[str]:
        found = self.tables.row(id)
        if found != row:
            if found is None:
                yield f"the row of {id.hex()} is not found"
            else:
                seqs = unpack_row(id, found)[0].seq, unpack_row(id, row)[0].seq
                yield f"the row of {id.hex()} is served as of event {seqs[0]}, is of {seqs[1]}"

    def _end(self, id: bytes, seq: int) -> Iterator[str]:
        found = self.tables.done(id)
        if found != seq:
            yield f"the end of {id.hex()} is {found}, not event {seq}"

    def _note(self, key: bytes, note: bytes) -> Iterator[str]:
        found = self.tables.note(key)
        if found != note:
            if found is not None:
                unpack_note(found)
            yield f"the note {key.hex()} is not found, or not what was written"

    def _due(self, at: truth.Standing, scale: int) -> Iterator[str]:
        yield from truth.due_faults(self.tables, at, scale)

    def _named(self, name: int, ids: list[bytes]) -> Iterator[str]:
        found = self.tables.named(name)
        if found != ids:
            yield f"the timers of the name {name:x} are others"


# ------------------------------------------------------------------------------- one flip


class Bench:
    """A store in a folder, in which one bit at a time is turned over."""

    def __init__(self, home: Path, store: Store) -> None:
        self.store, self.path = store, home
        self.fds: list[int] = []
        self.fresh()

    def fresh(self) -> None:
        """Write both files anew."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        for name, data in zip(NAMES, self.store.files, strict=True):
            (self.path / name).mkdir(parents=True, mode=0o700, exist_ok=True)
            path = self.path / name / "data.mdb"
            path.write_bytes(data)
            path.chmod(0o600)
            self.fds.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def flip(self, file: int, bit: int) -> None:
        """Turn one bit over, or back."""
        at = bit // 8
        byte = os.pread(self.fds[file], 1, at)[0] ^ (1 << bit % 8)
        os.pwrite(self.fds[file], bytes([byte]), at)

    def read(self) -> Reading | None:
        """Open and read everything; None if it does not open."""
        try:
            log, tables = open_store(self.path, slice_entries=1 << 20, slice_age_ns=1 << 60)
        except EngineError:
            return None
        reading = Reading(log, tables, self.store.told)
        try:
            reading.everything()
        finally:
            close_store(self.path, log, tables)
        return reading

    def verify(self) -> str:
        """What `minoots verify` says of it; "" if nothing."""
        try:
            verify_store(self.path, lambda what, size: None)
        except EngineError as error:
            return str(error)
        return ""

    def repair(self, *, tables: bool) -> Reading | None:
        """What `minoots reindex` makes of it; None if it refuses."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if reindex(self.path, tables=tables):
                return None
        return self.read()


def turn_over(bench: Bench, file: int, bit: int, board: Board) -> None:
    """Flip, read, judge, repair, flip back."""
    bench.flip(file, bit)
    reading = bench.read()
    if reading is not None and reading.wrong:
        board["wrong"] += 1
        board.say(f"bit {bit} of {NAMES[file]}: {reading.wrong[0]}", over=True)
    errors = [] if reading is None else _errors(reading)
    if reading is None or errors:
        board["at_open" if reading is None else "at_read"] += 1
        if file == 0 and reading is not None:
            board["log_hits"] += 1
            board["named"] += any(_NUMBER.search(error) for error in errors)
        if file == 1 and bench.store.whole:
            board["tables_hits"] += 1
            board["repaired"] += _repair(bench, reading, board, bit)
            bench.fresh()
            return
    else:
        board["harmless"] += not reading.wrong
    bench.flip(file, bit)


def _errors(reading: Reading) -> list[str]:
    return reading.log_errors + reading.row_errors + reading.index_errors


def _repair(bench: Bench, reading: Reading | None, board: Board, bit: int) -> bool:
    """Whether it is whole again; rows that are whole are enough to make the indexes from."""
    rows_whole = reading is not None and not reading.row_errors
    after = bench.repair(tables=False) if rows_whole else None
    if after is None or after.wrong or _errors(after):
        bench.fresh()
        bench.flip(1, bit)
        after = bench.repair(tables=True)
    if after is None:
        return False
    if after.wrong:
        board["wrong"] += 1
        board.say(f"bit {bit} of the tables, repaired: {after.wrong[0]}")
    return not (after.wrong or _errors(after))


# ------------------------------------------------------------------------------- the work


class Tally(NamedTuple):
    """What became of the flips. log_hits: found in the log when it was read; named: of those, by
    the number of an event or commit. tables_hits: found in tables whose log is whole; repaired."""

    flips: int
    counts: dict[str, int]
    seconds: float
    first: str


def run(seed: int, flips: int, steps: int, workers: int) -> Tally:
    """Turn over so many bits, one at a time, half of them in a store whose log was trimmed."""
    began_s = time.monotonic()
    with pool.Home("flips") as home:
        stores = [make(home / "whole", seed, steps, LONG_H), make(home / "trimmed", seed, steps, 4)]
        assert stores[0].whole
        assert not stores[1].whole, "the log was not trimmed: more steps are needed"
        boards = [Board(*KINDS) for _ in range(workers)]

        def child(i: int, board: Board) -> None:
            lmdb_edge._mapped_at = lambda data: 0  # type: ignore[assignment]  # only spares memory
            benches = [Bench(home / f"{i}-{os.getpid()}-{n}", s) for n, s in enumerate(stores)]
            for bench in benches:
                assert not bench.verify(), f"{bench.verify()}: `verify` refuses a whole store"
            draw = random.Random(f"{seed}/{i}")
            for number in range(1, flips // workers + 1):
                bench = benches[draw.random() < 0.5]
                file, bit = bench.store.draw(draw)
                if number <= board["at"]:
                    continue
                board["at"] = number
                pool.limit()
                turn_over(bench, file, bit, board)
                pool.limit(0)

        pool.run(child, boards)
    names = (*KINDS, "died", "hung")
    counts = {name: sum(board[name] for board in boards) for name in names}
    told = sorted(boards, key=lambda board: -board["wrong"])  # that is more than a death
    note = next((board.note for board in told if board.note), "")
    return Tally(sum(board["at"] for board in boards), counts, time.monotonic() - began_s, note)


def planted(seed: int) -> str:
    """Change an event and give it the checksum that belongs to that; what is said of it."""
    with pool.Home("planted") as home:
        store = make(home / "made", seed, STEPS, LONG_H)
        seq = len(store.told.events) // 2
        event = store.told.events[seq - 1]
        body = event[4:40] + bytes([event[40] ^ 1]) + event[41:]  # of the timer's id
        changed = zlib.crc32(body, seq).to_bytes(4, "little") + body
        log = store.files[0].replace(event, changed)
        assert log != store.files[0]
        reading = Bench(home / "bench", store._replace(files=(log, store.files[1]))).read()
        return reading.wrong[0] if reading is not None and reading.wrong else ""


def part(seed: int, seconds: float) -> Outcome:
    """See `outcome`."""
    outcome = Outcome("bit flips", seed, command("flips", seed, seconds))
    outcome.planted = planted(seed)
    assert outcome.planted, "a changed event was served and nobody said so"
    until_s, round = time.monotonic() + seconds, 0
    while not round or time.monotonic() < until_s:
        left = until_s - time.monotonic()
        flips = min(FLIPS_AT_ONCE, max(400, int(left * FLIPS_A_SECOND)))
        tally = run(seed + round, flips, STEPS, os.cpu_count() or 1)
        counts = tally.counts
        outcome.add(flips=tally.flips, stores=2, harmless=counts["harmless"])
        outcome.add(found_at_open=counts["at_open"], found_when_read=counts["at_read"])
        outcome.add(ended_the_process=counts["died"] + counts["hung"])
        outcome.add(log_found_when_read=counts["log_hits"], log_named_by_number=counts["named"])
        outcome.add(tables_found=counts["tables_hits"], tables_repaired=counts["repaired"])
        outcome.add(seconds=tally.seconds)
        if counts["wrong"]:
            outcome.faults.append(f"{counts['wrong']} of {tally.flips}: {tally.first}")
        round += 1
    return outcome


if __name__ == "__main__":
    from tests.proof.run import one

    sys.exit(one(part))
