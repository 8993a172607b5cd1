"""A store in which everything moves: timers made, moved, paused, fired and cancelled at random.

As a program it does so at each line of its standard input, for what reads the store beside it:

    python -m tests.unit.churn DIR SEED
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from engine._log import LmdbLog
from engine._tables import LmdbTables
from engine.files import catch_up, close_store, open_store
from engine.record import (
    Image,
    Kind,
    Note,
    name_hash,
    pack_blob,
    pack_event,
    pack_note,
    unpack_row,
)
from engine.store import Filter
from engine.timer import State
from tests.unit.stored import Writer, opened, receipt

HOUR_NS = 3600 * 10**9
KEPT_NS = 1 << 62
KEYS = 30


class Timer(NamedTuple):
    id: bytes
    seq: int
    state: State
    due_ns: int
    name: bytes


def key_of(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()[:16]


class Churn:
    """Decides commits at random, each valid after the one before."""

    def __init__(self, log: LmdbLog, seed: int, live_max: int = 400) -> None:
        self.random = random.Random(seed)
        self.writer = Writer(log)
        self.live: list[Timer] = []
        self.born, self.live_max = 0, live_max
        state = log.state()
        events = enumerate(log.events(state.first_seq, 10**9, 1 << 40), state.first_seq)
        told = log.receipts(1, state.last_seq)
        self.expired = [seq for seq, data in events if data[5] == Kind.EXPIRED and seq not in told]

    def commit(self) -> int:
        """One commit of some events, the receipts of the last one's fires, and a note."""
        seq = self.writer.state.last_seq + 1
        events, receipts, floor = [], b"".join(receipt(at, at + 7) for at in self.expired), seq - 1
        self.expired = []
        for _ in range(self.random.randrange(1, 40)):
            events.append(self.event(seq))
            seq += 1
        note = Note(key_of(-self.random.randrange(KEYS)), bytes(16), KEPT_NS, seq, 0, b"%d" % seq)
        return self.writer.write(events, receipts=receipts, notes=[pack_note(note)], floor=floor)

    def event(self, seq: int) -> bytes:
        if (len(self.live) < self.live_max and self.random.random() < 0.55) or not self.live:
            self.born += 1
            name = b"n%d" % self.random.randrange(20)
            timer = Timer(key_of(self.born), 0, State.SCHEDULED, self.due_ns(), name)
            self.live.append(timer)
            return self.say(seq, Kind.SCHEDULED, timer, blob=True)
        timer = self.live[self.random.randrange(len(self.live))]
        if timer.state == State.PAUSED:
            kind, state = self.random.choice(
                [(Kind.RESUMED, State.SCHEDULED), (Kind.CANCELLED, State.CANCELLED)]
            )
        else:
            kind, state = self.random.choice(
                [
                    (Kind.EXPIRED, State.COMPLETED),
                    (Kind.EXPIRED, State.SCHEDULED),
                    (Kind.CANCELLED, State.CANCELLED),
                    (Kind.RESCHEDULED, State.SCHEDULED),
                    (Kind.PAUSED, State.PAUSED),
                ]
            )
        if kind == Kind.EXPIRED:
            self.expired.append(seq)
        changed = timer._replace(state=state, due_ns=self.due_ns())
        return self.say(seq, kind, changed, blob=kind in (Kind.RESCHEDULED, Kind.EXPIRED))

    def due_ns(self) -> int:
        return self.random.randrange(1, 50 * HOUR_NS)

    def say(self, seq: int, kind: Kind, timer: Timer, *, blob: bool) -> bytes:
        due_ns = timer.due_ns if timer.state == State.SCHEDULED else 0
        image = Image(
            timer.id, seq, due_ns, 1, 0, name_hash(timer.name), 1, 1, 0, timer.state, 0, 0
        )
        definition = pack_blob(b"", timer.name, b"{}", b"s", b"%d" % seq, b"") if blob else b""
        at = next(k for k, one in enumerate(self.live) if one.id == timer.id)
        if timer.state in (State.SCHEDULED, State.PAUSED):
            self.live[at] = timer._replace(seq=seq)
        else:
            self.live.pop(at)
        return pack_event(seq, kind, 0, seq, timer.seq, timer.due_ns, 1, image, definition)


def churned(path: Path, commits: int, seed: int = 1) -> None:
    """A closed store of that many commits, the tables some commits behind the log."""
    log, tables = open_store(path, slice_entries=64, slice_age_ns=HOUR_NS)
    try:
        run(log, tables, Churn(log, seed), commits)
    finally:
        close_store(path, log, tables)


def run(log: LmdbLog, tables: LmdbTables, churn: Churn, commits: int) -> None:
    for _ in range(commits):
        number = churn.commit()
        tables.follow(log.state().last_seq, number)


def contents(path: Path) -> dict[str, object]:
    """Everything that a store holds, tables caught up."""
    with opened(path) as (log, tables, _):
        catch_up(log, tables)
        rows, _ = tables.scan(Filter(), b"", 10**6, 10**6)
        state = log.state()
        dues = [tables.due(scale, 0, 1 << 62)[:2] for scale in (0, 1)]
        images = [unpack_row(row[8:24], row)[0] for row in rows]
        return {
            "events": log.events(state.first_seq, 10**9, 1 << 40),
            "receipts": log.receipts(1, state.last_seq),
            "commits": log.commits(1, 10**9),
            "rows": rows,
            "dues": dues,
            "names": {image.name_hash: tables.named(image.name_hash) for image in images},
            "applied": tables.applied()[:4],
            "state": state[1:7],
        }


@contextmanager
def churning(path: Path, seed: int) -> Iterator[Callable[[str, int], None]]:
    """A process that changes the store, and its tables, each time that it is called."""
    words = [sys.executable, "-m", "tests.unit.churn", str(path), str(seed)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"

        def move(what: str, size: int) -> None:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(b"\n")
            child.stdin.flush()
            assert child.stdout.readline() == b"moved\n"

        yield move
        child.communicate(timeout=20)
        assert child.returncode == 0


def main() -> None:
    path, seed = Path(sys.argv[1]), int(sys.argv[2])
    log, tables = open_store(path, slice_entries=32, slice_age_ns=HOUR_NS)
    churn = Churn(log, seed)
    run(log, tables, churn, 60)
    catch_up(log, tables)
    print("ready", flush=True)
    for _ in sys.stdin:
        run(log, tables, churn, 2)
        catch_up(log, tables)
        print("moved", flush=True)
    close_store(path, log, tables)


if __name__ == "__main__":
    main()
