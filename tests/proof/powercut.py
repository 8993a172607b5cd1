"""Crash states: what a power cut could leave of a store, each opened by the real code.

    python -m tests.proof.powercut --seed N --seconds N

A recording (`recorder.py`) says in which order log and tables were written and synced. At each
moment of it some writes are pending; any of their sectors may have reached the disk. So for each
moment a number of images is made: nothing of it, all of it, each prefix, each page alone, each page
missing, and drawn subsets of pages and of 512-byte sectors, in both files at once. Each is opened,
recovered from, and held against the truth (`truth.py`). The same is done, a little, for recordings
made without syncs: those must fail, or the check is worth nothing.

The images of one moment are all different; one of a moment may be one of the next moment too, where
more was acknowledged. They are made by patching a copy in memory's file system, and undoing that.
A seed draws the load and the images again, but not how two threads took turns: so the first image
with a fault is kept.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import engine._lmdb as lmdb_edge

from edgenode.recovery import recover
from edgenode.virtual import START_NS
from engine.clock import CorrectedClock, VirtualClock
from engine.errors import EngineError
from engine.files import UNBORN_PAGES, catch_up, close_store, open_store, reindex_due
from tests.proof import afterlife, pool, recorder, shim, trace, truth
from tests.proof.outcome import Outcome, command
from tests.proof.pool import Board
from tests.proof.trace import LOG, TABLES, File, Write

SECTOR = 512
PAGE = 4096
NAMES = ("log", "tables")
DEEP_EVERY = 64  # of the images: the tables follow to the end, indexes are made anew, all compared
LIFE_EVERY = 4096  # ... a node goes on from it until everything has fired
LIFE_S = 60
KEPT = Path("build/proof")
CONFIG = recorder.config()
CONTROL_STATES, CONTROL_STEPS, CONTROL_EACH = 150, 40, 4
STATES_AT_ONCE, STATES_A_SECOND, STEPS = 25_000, 600, 200  # of one recording
IMAGES_EACH = 24  # of a moment
Units = tuple[tuple[int, bytes], ...]  # (offset, bytes) of sectors that reached the disk


class Moment(NamedTuple):
    """A stretch of the recording in which the disk did not change. bases: what is durable of each
    file. units: by file, the sectors that are pending. told, begun: the commits that the node was
    told of, and that it has submitted."""

    bases: tuple[bytes, bytes]
    units: tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]]
    told: int
    begun: int
    forget_below: int
    now_ns: int


def moments(path: Path, wanted: Callable[[], bool]) -> Iterator[Moment]:
    """Those moments of a recording that are wanted, in order; `wanted` is asked for each once."""
    files = (File(), File())
    told = begun = forget_below = 0
    now_ns = START_NS
    changed = False
    for record in trace.read(path):
        ends = record.what != trace.SYNC and (record.what != trace.MARK or record.at == shim.SUBMIT)
        if changed and ends:
            changed = False
            if wanted():
                yield _moment(files, told, begun, forget_below, now_ns)
        if record.what != trace.MARK:
            changed |= files[record.file].take(record)
        elif record.at == shim.SUBMIT:
            begun = record.size
        elif record.at == shim.DURABLE:
            told, changed = record.size, True
        elif record.at == shim.FORGET:
            forget_below = max(forget_below, record.size)
        else:
            now_ns = record.size


def _moment(
    files: tuple[File, File], told: int, begun: int, forget_below: int, now_ns: int
) -> Moment:
    log, tables = files
    bases = log.snapshot(), tables.snapshot()
    return Moment(
        bases, (list(_sectors(log)), list(_sectors(tables))), told, begun, forget_below, now_ns
    )


def _sectors(file: File) -> Iterator[tuple[int, bytes]]:
    """The pending sectors that would change something, in the order of the writes."""
    for write in file.pending:
        for at, data in _pieces(write):
            if file.base[at : at + len(data)] != data:
                yield at, data


def _pieces(write: Write) -> Iterator[tuple[int, bytes]]:
    """A write cut at the borders of sectors."""
    at, end = write.at, write.at + len(write.data)
    while at < end:
        stop = min((at // SECTOR + 1) * SECTOR, end)
        yield at, write.data[at - write.at : stop - write.at]
        at = stop


# ------------------------------------------------------------------------------- the images


def subsets(units: list[tuple[int, bytes]], draw: random.Random) -> Iterator[Units]:
    """Sectors that reached the disk: first those that are easily thought of, then drawn ones
    without end."""
    yield ()
    yield tuple(units)
    pages: dict[int, list[tuple[int, bytes]]] = {}
    for unit in units:
        pages.setdefault(unit[0] // PAGE, []).append(unit)
    keys = list(pages)
    for cut in range(1, len(keys)):
        yield tuple(unit for key in keys[:cut] for unit in pages[key])
    for key in keys:
        yield tuple(pages[key])
        yield tuple(unit for other in keys if other != key for unit in pages[other])
    while units:
        share = draw.random()
        if draw.random() < 0.5:
            kept = {key for key in keys if draw.random() < share}
            yield tuple(unit for unit in units if unit[0] // PAGE in kept)
        else:
            yield tuple(unit for unit in units if draw.random() < share)


def images(moment: Moment, most: int, draw: random.Random) -> Iterator[tuple[Units, Units]]:
    """At most `most` different pairs of what may have reached the two files."""
    seen: set[bytes] = set()
    sides = [subsets(units, draw) for units in moment.units]
    held: list[list[Units]] = [[next(side)] for side in sides]
    tries = 0
    while len(seen) < most and tries < 3 * most + 8:
        tries += 1
        side = draw.randrange(2) if all(moment.units) else (0 if moment.units[0] else 1)
        fresh = next(sides[side], None)
        if fresh is not None:
            held[side].append(fresh)
        pair = [draw.choice(one[-32:]) for one in held]
        if fresh is not None:
            pair[side] = fresh
        mark = hashlib.blake2b(digest_size=12)
        for units in pair:
            for at, data in units:
                mark.update(struct.pack("<QQ", at, len(data)))
            mark.update(b"/")
        if mark.digest() not in seen:
            seen.add(mark.digest())
            yield pair[0], pair[1]


class Image:
    """A store's two files in a folder of its own, patched and put back."""

    def __init__(self, home: Path) -> None:
        self.path = home
        self.base: list[bytes] = [b"", b""]
        self.fds = []
        for name in NAMES:
            (home / name).mkdir(parents=True, mode=0o700)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self.fds.append(os.open(home / name / "data.mdb", flags, 0o600))

    def rebase(self, bases: tuple[bytes, bytes]) -> None:
        """The durable part has become this one."""
        for file in (LOG, TABLES):
            if self.base[file] is bases[file]:
                continue
            self.base[file] = bases[file]
            os.ftruncate(self.fds[file], 0)
            os.pwrite(self.fds[file], bases[file], 0)

    def spoil(self) -> None:
        """It was written to: the next `rebase` makes it anew."""
        self.base = [b"", b""]

    def patch(self, pair: tuple[Units, Units]) -> None:
        """Put these sectors on the disk."""
        for file in (LOG, TABLES):
            for at, data in pair[file]:
                os.pwrite(self.fds[file], data, at)

    def keep(self, bases: tuple[bytes, bytes], pair: tuple[Units, Units], folder: Path) -> None:
        """Copy the image that this makes."""
        self.rebase(bases)
        self.patch(pair)
        shutil.copytree(self.path, folder)
        self.restore(pair)

    def restore(self, pair: tuple[Units, Units]) -> None:
        """Take them away again."""
        for file in (LOG, TABLES):
            base = self.base[file]
            if len(base) < UNBORN_PAGES * PAGE:  # opening it has made a store of it
                os.ftruncate(self.fds[file], 0)
                os.pwrite(self.fds[file], base, 0)
                continue
            for at, data in pair[file]:
                os.pwrite(self.fds[file], base[at : at + len(data)], at)
            os.ftruncate(self.fds[file], len(base))


# ------------------------------------------------------------------------------- the check


def faults(path: Path, moment: Moment, told: truth.History, board: Board) -> list[str]:
    """What is wrong with a store that a power cut left; it is opened as a node would open it."""
    draw = random.Random(board["at"])
    try:
        log, tables = open_store(path, slice_entries=1 << 20, slice_age_ns=1 << 60)
    except (EngineError, AssertionError) as error:
        return [f"LOST the store does not open: {error}"]
    found = []
    try:
        commit = log.state().commit
        if not moment.told <= commit <= moment.begun:
            found.append(
                f"LOST the log ends at commit {commit}; {moment.told} was acknowledged, "
                f"{moment.begun} begun"
            )
        board["landed"] += commit > moment.told
        found += truth.log_faults(log, told)
        before_ns = moment.now_ns - CONFIG.log.idem_keep
        forgotten = truth.Forgotten(moment.forget_below, before_ns, draw)
        found += truth.tables_faults(tables, told, commit, forgotten)
        if not found:
            clock = CorrectedClock(VirtualClock(moment.now_ns, moment.now_ns - START_NS))
            bits = draw.getrandbits
            recovered = recover(CONFIG, "virtual", log, tables, clock, bits)
            waiting = [seq for seq, _ in recovered.unreleased]
            found += truth.recovered_faults(recovered.ledger, waiting, told)
    except (EngineError, AssertionError) as error:
        found.append(f"LOST the store opens, and reading it says: {error}")
    finally:
        close_store(path, log, tables)
    return found


def deep_faults(path: Path, told: truth.History, now_ns: int) -> list[str]:
    """The tables follow to the log's end and the indexes are made anew; writes to the image."""
    log, tables = open_store(path, slice_entries=1 << 20, slice_age_ns=1 << 60)
    try:
        forgotten = truth.Forgotten(1 << 62, now_ns)
        catch_up(log, tables)
        found = list(truth.tables_faults(tables, told, log.state().commit, forgotten))
        reindex_due(tables)
        return found + list(truth.tables_faults(tables, told, log.state().commit, forgotten))
    finally:
        close_store(path, log, tables)


# ------------------------------------------------------------------------------- the work


class Tally(NamedTuple):
    """What was found. failed: images with a fault; died: those that ended the process, which are
    among them; deep: those that were written to as well; lives: of those, in which a node went on;
    landed: those in which a commit was on the disk that nobody had been told of; first: what was
    wrong with one of them."""

    states: int
    failed: int
    died: int
    deep: int
    lives: int
    landed: int
    seconds: float
    first: str


class Plan(NamedTuple):
    """Which images are made of a recording: at most `each` of a moment, which is taken with the
    chance `share`. turn: of `turns`, each has other moments. kept: where the first image with a
    fault goes."""

    folder: Path
    seed: int
    share: float
    each: int
    turn: int
    turns: int
    kept: Path | None


def work(plan: Plan, told: truth.History, home: Path, board: Board) -> None:
    """Open images, those behind board["at"]."""
    lmdb_edge._mapped_at = lambda data: 0  # type: ignore[assignment]  # it only spares memory
    image, number, behind = Image(home), 0, board["at"]
    draw, turns = random.Random(f"{plan.seed}/{plan.turn}"), itertools.count()

    def wanted() -> bool:
        return next(turns) % plan.turns == plan.turn and draw.random() < plan.share

    for moment in moments(plan.folder / "trace", wanted):
        for pair in images(moment, plan.each, random.Random(draw.random())):
            number += 1
            if number <= behind:
                continue
            board["at"] = number
            pool.limit()
            found = _one(image, moment, pair, told, board)
            board["failed"] += bool(found)
            if found:
                board.say(f"image {number}: {found[0]}")
                if plan.kept is not None and not plan.kept.exists():
                    image.keep(moment.bases, pair, plan.kept)
        pool.limit(0)


def _one(
    image: Image, moment: Moment, pair: tuple[Units, Units], told: truth.History, board: Board
) -> list[str]:
    image.rebase(moment.bases)
    image.patch(pair)
    found = faults(image.path, moment, told, board)
    if found or board["at"] % DEEP_EVERY:
        image.restore(pair)
        return found
    board["deep"] += 1
    if board["at"] % LIFE_EVERY:
        found = deep_faults(image.path, told, moment.now_ns)
    else:
        board["lives"] += 1
        pool.limit(LIFE_S)
        found = afterlife.faults(image.path, told, moment.now_ns)
    image.spoil()
    return found


def record(folder: Path, seed: int, steps: int, swallow: str = "") -> truth.History:
    """Make a recording in `folder`; what its store must hold."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.proof.recorder", "--seed", str(seed)]
    command += ["--steps", str(steps), "--out", str(folder)]
    subprocess.run(command, env=shim.environment(folder / "trace", swallow), check=True)
    shutil.rmtree(folder / "store")
    told = truth.history(recorder.load(folder).batches)
    if steps >= recorder.STEPS_TO_TRIM:
        assert told.tables_only(), "no timer stands in the tables alone: more steps are needed"
    return told


def cut(
    seed: int,
    states: int,
    steps: int,
    workers: int,
    swallow: str = "",
    each: int = IMAGES_EACH,
    kept: Path | None = None,
) -> Tally:
    """Enumerate about so many crash states of one recording, at least `each` of a moment where
    there are so many. kept: a folder that is made for the first image with a fault."""
    began_s = time.monotonic()
    with pool.Home("cut") as home:
        told = record(home / "recording", seed, steps, swallow)
        count = 0

        def counted() -> bool:
            nonlocal count
            count += 1
            return False

        assert not list(moments(home / "recording" / "trace", counted))
        share = min(states / (each * count), 1.0)
        each = max(each, round(states / count / share))
        boards = [Board("failed", "deep", "lives", "landed") for _ in range(workers)]

        def child(i: int, board: Board) -> None:
            mine = home / f"{i}-{os.getpid()}"
            plan = Plan(home / "recording", seed, share, each, i, workers, kept)
            work(plan, told, mine, board)

        pool.run(child, boards)
    return Tally(
        sum(board["at"] for board in boards),
        sum(board["failed"] + board["died"] + board["hung"] for board in boards),
        sum(board["died"] + board["hung"] for board in boards),
        sum(board["deep"] for board in boards),
        sum(board["lives"] for board in boards),
        sum(board["landed"] for board in boards),
        time.monotonic() - began_s,
        next((board.note for board in boards if board.note), ""),
    )


def part(seed: int, seconds: float) -> Outcome:
    """See `outcome`."""
    outcome = Outcome("crash states", seed, command("powercut", seed, seconds))
    outcome.skipped = shim.missing()
    if outcome.skipped:
        return outcome
    planted = []
    for swallow, name in (("meta", "NOMETASYNC"), ("all", "NOSYNC")):
        tally = cut(seed, CONTROL_STATES, CONTROL_STEPS, 1, swallow, CONTROL_EACH)
        assert tally.failed, f"a store with {name} lost nothing: the crash states prove nothing"
        planted.append(f"{name}: {tally.failed} of {tally.states} failed")
    outcome.planted = "; ".join(planted)
    until_s, round = time.monotonic() + seconds, 0
    while not round or time.monotonic() < until_s:
        left = until_s - time.monotonic()
        states = min(STATES_AT_ONCE, max(200, int(left * STATES_A_SECOND)))
        steps = STEPS if states > 1_000 else recorder.STEPS_TO_TRIM
        kept = KEPT / f"{seed + round}"
        tally = cut(seed + round, states, steps, os.cpu_count() or 1, kept=kept)
        outcome.add(states=tally.states, recordings=1, written_to_as_well=tally.deep)
        outcome.add(lived_on_for_22_days=tally.lives)
        outcome.add(with_a_commit_nobody_was_told_of=tally.landed, seconds=tally.seconds)
        if tally.failed:
            outcome.faults.append(f"{tally.failed} of {tally.states}: {tally.first}; see {kept}")
        round += 1
    return outcome


if __name__ == "__main__":
    from tests.proof.run import one

    sys.exit(one(part))
