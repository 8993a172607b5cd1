"""The book of bundles: what was sent to whom, and how far each chain that came has been taken in.

`bundles/book.json`, rewritten as a whole and durably; `bundles/lock` keeps two processes from
writing it at the same time.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edgenode.bundles.keys import FOLDER, BundleError
from edgenode.bundles.orders import Order
from edgenode.manifest import DIRECTORY_MODE, FILE_MODE, UNREADABLE, LogPart
from engine.files import write_durably

FORMAT = 1
BOOK_FILE, LOCK_FILE = "book.json", "lock"
SENT_KEPT = 256  # bundles of a chain that are remembered: those that --since may name
IDS_KEPT = 64  # ids of the bundles of a chain that came: to tell a repetition from a forgery
REFUSED_KEPT = 100


class Sent(msgspec.Struct, frozen=True):
    """One that was sent. log: where the log ended that had been sent until then, null if none
    was. orders: commands of the chain that were given until then."""

    number: int
    id: str
    made_at: str
    epoch: int
    log: LogPart | None
    orders: int


class Outgoing(msgspec.Struct):
    """A chain of bundles of ours. to: a node, "" for all. acknowledged: the newest of them that
    the other side has said it has; orders: its commands from number `orders_first` on, which the
    other side has not said are done; refused: numbers of those that were."""

    to: str
    chain: str
    sent: list[Sent] = []
    acknowledged: int = 0
    orders_first: int = 0
    orders: list[Order] = []
    refused: list[int] = []

    @property
    def orders_end(self) -> int:
        """The number of the next command."""
        return self.orders_first + len(self.orders)


class UnderWay(msgspec.Struct, frozen=True):
    """Commands that are being carried out: those from `first` on may have been. since_ns: UTC."""

    first: int
    since_ns: int


class Incoming(msgspec.Struct):
    """A chain of bundles of another node: the newest that was taken in, the newest ids by number,
    and the commands that are done: all below `orders`."""

    node: str
    to: str
    chain: str
    number: int = 0
    made_at: str = ""
    ids: dict[int, str] = {}
    orders: int = 0
    refused: list[int] = []
    under_way: UnderWay | None = None


class Seen(msgspec.Struct):
    """The picture of a node: what it is of, and the events [from, to] that it lacks."""

    made_at: str
    gaps: list[tuple[int, int]] = []


class Book(msgspec.Struct):
    """All that is remembered of bundles: chains of ours by recipient, chains of others by name,
    pictures by node."""

    format: int = FORMAT
    outgoing: dict[str, Outgoing] = {}
    incoming: dict[str, Incoming] = {}
    pictures: dict[str, Seen] = {}


class _Format(msgspec.Struct):
    format: int = FORMAT


_book = msgspec.json.Decoder(Book)
_format = msgspec.json.Decoder(_Format)


@contextmanager
def book_of(data_dir: Path) -> Iterator[Pages]:
    """The book, for this process alone. Raises BundleError, OSError."""
    folder = data_dir / FOLDER
    folder.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
    fd = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield Pages(folder)
    except BlockingIOError:
        raise BundleError("another process is writing or taking in bundles here; wait") from None
    finally:
        os.close(fd)


def read_book(data_dir: Path) -> Book:
    """The book as it stands, to look at. Raises BundleError."""
    return _read(data_dir / FOLDER / BOOK_FILE)


def _read(path: Path) -> Book:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return Book()
    try:
        if (later := _format.decode(text).format) > FORMAT:
            raise BundleError(f"{path} has format {later}, newer than {FORMAT}; upgrade minoots")
        return _book.decode(text)
    except UNREADABLE as error:
        raise BundleError(
            f"{path} cannot be read: {error}; put back a copy of it, or remove it: chains begin "
            "anew then"
        ) from error


class Pages:
    """The book, open to be written in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / BOOK_FILE
        self.book = _read(self._path)

    def outgoing(self, to: str) -> Outgoing:
        """The chain to a recipient; a new one if there is none."""
        found = self.book.outgoing.get(to)
        if found is None:
            found = self.book.outgoing[to] = Outgoing(to, os.urandom(16).hex())
        return found

    def save(self) -> None:
        """Have it on disk."""
        for chain in self.book.outgoing.values():
            del chain.sent[:-SENT_KEPT]
        for came in self.book.incoming.values():
            for number in sorted(came.ids)[:-IDS_KEPT]:
                del came.ids[number]
            del came.refused[:-REFUSED_KEPT]
        write_durably(self._path, msgspec.json.format(msgspec.json.encode(self.book), indent=1))
