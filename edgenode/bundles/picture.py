"""The picture of another node: its log and tables as of the newest bundle, a store like its own.

    bundles/pictures/NODE/store    what `view.py` reads; verify, backup and restore take it as well

It is begun from a bundle with the tables in it, and made longer by those that go on where it ends.
Each transaction holds whole commits, which were replayed from the picture's own hash chain before:
after a crash the picture ends earlier, and the same bundle makes it longer again.
"""

from __future__ import annotations

import select
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from edgenode.bundles.keys import FOLDER, BundleError
from edgenode.check import check_backups
from edgenode.manifest import DIRECTORY_MODE, LogPart, Progress
from edgenode.restore import make_store
from engine._audit import Audit
from engine._copy import StoreFiles
from engine._load import StoreLoader, behind_commit, last_seal
from engine.errors import StoreCorrupt
from engine.files import catch_up, close_store, hold, open_store, sync_directory

PICTURES = "pictures"
STORE, FRESH, OLD = "store", "fresh", "old"  # in the folder of a picture
FOR_EVER = (1 << 63) - 1
FORGET_WAITS, FORGET_WAIT_MS = 100, 100
NOTES_KEPT_NS = 30 * 86_400_000_000_000  # as long as any node keeps idempotency keys

LogItems = Callable[[], Iterable[bytes]]  # the items of a log, in pieces, again each time


class Place(NamedTuple):
    """Where a picture stands: its log from `first_seq` to `last_seq`, the end of `commit`."""

    epoch: int
    first_seq: int
    last_seq: int
    commit: int
    chain: bytes


class Picture:
    """The picture of one node, in a data directory; it may not be there yet."""

    def __init__(self, data_dir: Path, node: str) -> None:
        self.node = node
        self.folder = data_dir / FOLDER / PICTURES / node
        self.store = self.folder / STORE

    @property
    def is_there(self) -> bool:
        """Whether it has been begun, and no crash has left it between two renames."""
        return (self.store / "log").is_dir()

    def place(self) -> Place | None:
        """Where it stands; None if there is none. Raises StoreCorrupt."""
        if not self.is_there:
            return None
        files = StoreFiles(self.store)
        try:
            ends = files.ends()
            chain = files.chain_of(ends.last_commit)
            return Place(files.epoch, ends.first_seq, ends.last_seq, ends.last_commit, chain)
        finally:
            files.close()

    def begin(self, backup: Path, progress: Progress) -> None:
        """Make it anew of a full backup. Raises StoreCorrupt, StoreFailed, StoreFull."""
        [manifest], audit = check_backups([backup], progress)
        self.folder.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
        fresh = self.folder / FRESH
        shutil.rmtree(fresh, ignore_errors=True)
        make_store(fresh, [backup], manifest, manifest.epoch, audit.from_seq, progress)
        if self.store.exists():
            self.store.rename(self.folder / OLD)  # which `settle` has seen to
        fresh.rename(self.store)
        sync_directory(self.folder)
        shutil.rmtree(self.folder / OLD, ignore_errors=True)

    def extend(self, log: LogPart, items: LogItems, begins: int, progress: Progress) -> int:
        """Make it longer by what `items` has behind its end; how many events those were.

        begins: the oldest event that the node keeps: older ones are forgotten here as well.

        Raises StoreCorrupt before anything is written if they do not follow from what is there.
        """
        place = self.place()
        assert place is not None
        audit = Audit(place.last_seq + 1, place.chain, place.commit)
        try:
            for piece in _behind(items(), place.commit):
                audit.feed(piece)
                progress("checked", len(piece))
            audit.ended()
        except StoreCorrupt as error:
            raise StoreCorrupt(
                f"the log in it does not go on from the picture of {self.node}: {error}; if that "
                f"node was put back, remove the picture (minoots bundle forget {self.node})"
            ) from error
        if audit.last_commit != log.last_commit or audit.chain.hex() != log.chain:
            raise StoreCorrupt(
                f"the log in it ends at commit {audit.last_commit}, its head says {log.last_commit}"
            )
        with hold(self.store):
            loader = StoreLoader(self.store, place.epoch, place.first_seq, longer=True)
            try:
                for piece in _behind(items(), place.commit):
                    loader.load(piece)
                    progress("taken in", len(piece))
            finally:
                loader.close()
        self._trim(place, self._follow(begins))
        return audit.events

    def bridge(self, log: LogPart, items: LogItems, progress: Progress) -> tuple[int, int]:
        """Go on with a log that begins later than the picture ends; the events [from, to] that are
        missing now. Timers that were made among them are missing, ended ones may still be there,
        until they are next heard of or the picture is begun anew. Raises StoreCorrupt."""
        place = self.place()
        assert place is not None
        audit = Audit(log.first_seq, bytes.fromhex(log.chain_before), log.first_commit - 1)
        fresh = self.folder / FRESH
        shutil.rmtree(fresh, ignore_errors=True)
        for folder in (fresh, fresh / "log", fresh / "tables"):
            folder.mkdir(DIRECTORY_MODE)
        loader = StoreLoader(fresh, place.epoch, log.first_seq)
        try:
            for piece in _behind(items(), 0):
                audit.feed(piece)
                loader.load(piece)
                progress("taken in", len(piece))
            audit.ended()
        finally:
            loader.close()
        with hold(self.store):
            self._stand_before(log)
            (self.store / "log").rename(self.folder / OLD)
            (fresh / "log").rename(self.store / "log")
            sync_directory(self.store)
        for folder in (fresh, self.folder / OLD):
            shutil.rmtree(folder)
        self._follow(0)
        return place.last_seq + 1, log.first_seq - 1

    def _stand_before(self, log: LogPart) -> None:
        """Have the tables follow a log that begins later than they have followed."""
        files = StoreFiles(self.store)
        try:
            stood = files.standing()
        finally:
            files.close()
        standing = stood._replace(
            seq=log.first_seq - 1,
            commit=log.first_commit - 1,
            done_below=log.first_seq,
            rebuilt_from=log.first_seq,
            rebuild_to=FOR_EVER,  # what was made in the gap has no row, and may still be told of
        )
        StoreLoader(self.store, 0, 0, longer=True).finish(standing)

    def forget(self) -> None:
        """Remove it."""
        shutil.rmtree(self.folder)

    def _follow(self, begins: int) -> int:
        """Have the tables follow to the end of the log, and forget what ended before `begins`; the
        event up to which they have."""
        log, tables = open_store(self.store)
        try:
            catch_up(log, tables)
            state, waiter = log.state(), select.poll()
            below = min(begins, state.last_seq)
            waiter.register(tables.fileno(), select.POLLIN)
            for _ in range(FORGET_WAITS):
                done = tables.expire(below, state.at_ns - NOTES_KEPT_NS)
                if done >= below:
                    break
                waiter.poll(FORGET_WAIT_MS)
                tables.applied()
            return min(done, below)
        finally:
            close_store(self.store, log, tables)

    def _trim(self, place: Place, below: int) -> None:
        """Forget the events below a seq, which the tables have forgotten."""
        if below <= place.first_seq:
            return
        with hold(self.store):
            loader = StoreLoader(self.store, place.epoch, place.first_seq, longer=True)
            try:
                loader.trim(below)
            finally:
                loader.close()

    def settle(self) -> None:
        """Put right what a crash has left; whoever changes pictures calls it first.

        Between two renames: what was there is there again. Behind the last transaction of the log:
        the tables follow it."""
        old = self.folder / OLD
        is_log = (old / "data.mdb").is_file()
        missing = self.store / "log" if is_log else self.store
        if old.is_dir() and not missing.exists():
            old.rename(missing)
        shutil.rmtree(old, ignore_errors=True)
        if self.is_there:
            self._follow(0)


def pictures(data_dir: Path) -> list[Picture]:
    """Those that there are, by name."""
    folder = data_dir / FOLDER / PICTURES
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [Picture(data_dir, name) for name in names]


def picture_of(data_dir: Path, node: str) -> Picture:
    """The picture of a node. Raises BundleError if there is none."""
    known = pictures(data_dir)
    for picture in known:
        if picture.node == node:
            return picture
    names = ", ".join(picture.node for picture in known) or "none"
    raise BundleError(f"there is no picture of {node[:64]!r} here; there are: {names}")


def _behind(pieces: Iterable[bytes], commit: int) -> Iterator[bytes]:
    """The whole commits above a number, in runs of about a piece."""
    rest = b""
    for piece in pieces:
        rest += piece
        whole = last_seal(rest)
        if whole:
            yield from _from(rest[:whole], commit)
            rest = rest[whole:]
    yield from _from(rest, commit)


def _from(items: bytes, commit: int) -> Iterator[bytes]:
    at = behind_commit(items, commit)
    if at < len(items):
        yield items[at:] if at else items
