"""A disk that forgets: what was written and not synced is lost at a cut, or some of it, or a part.

Each file has what its readers see, what is durable, and between the two the changes since the last
sync, in order; each directory likewise its names. A cut keeps some of the changes:

    none      nothing that was not synced
    prefix    what came before a moment, over all files
    torn      the same, and the write at that moment up to a boundary of 512 or 4096 bytes
    some      any of the writes, in any files
    sectors   any of their sectors of 512 bytes

Names are kept up to a moment, as a journal has them, and a rename is one change. A sync of a file
is of its data and size, one of a directory of its names: the name of a new file is not synced with
it, which POSIX allows and ext4 does not do.

What is not modelled: a sync that fails and what it leaves, names out of order, a sector that is
half written, and mode and owner, which are durable at once. A rename from one directory into
another is refused; there are no links.
"""

from __future__ import annotations

import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

SECTOR = 512
PAGE = 4096
LAST_SHARE = 0.5  # of the cuts after which all names are there, or that tear the last change
KINDS = ("none", "prefix", "torn", "some", "sectors")


class Change(NamedTuple):
    """A write of `data` at `at`, or with None the size set to `at`. number: of all changes of the
    disk. durable: it is its own sync, and stays here for its place among the others."""

    number: int
    at: int
    data: bytes | None
    durable: bool = False


@dataclass(slots=True, eq=False)
class File:
    """mode: as stat has it. name: what it was made as."""

    name: str
    mode: int
    seen: bytearray = field(default_factory=bytearray)
    kept: bytearray = field(default_factory=bytearray)
    pending: list[Change] = field(default_factory=list)

    def change(self, change: Change) -> None:
        apply(self.seen, change)
        self.pending.append(change)

    def sync(self) -> None:
        for change in self.pending:
            apply(self.kept, change)
        self.pending.clear()


@dataclass(slots=True, eq=False)
class Directory:
    """seen, kept: its names. pending: the number of a change, and what it makes of which names."""

    mode: int
    seen: dict[str, Node] = field(default_factory=dict)
    kept: dict[str, Node] = field(default_factory=dict)
    pending: list[tuple[int, dict[str, Node | None]]] = field(default_factory=list)

    def change(self, number: int, names: dict[str, Node | None]) -> None:
        rename(self.seen, names)
        self.pending.append((number, names))

    def sync(self) -> None:
        for _, names in self.pending:
            rename(self.kept, names)
        self.pending.clear()


Node = File | Directory


def apply(held: bytearray, change: Change) -> None:
    """Do to the bytes what the change says; what lies between their end and it is zeros."""
    end = change.at if change.data is None else change.at + len(change.data)
    if len(held) < change.at:
        held.extend(bytes(change.at - len(held)))
    if change.data is None:
        del held[end:]
    else:
        held[change.at : end] = change.data


def rename(held: dict[str, Node], names: dict[str, Node | None]) -> None:
    for name, node in names.items():
        if node is None:
            held.pop(name, None)
        else:
            held[name] = node


@dataclass(slots=True)
class Loss:
    """What a cut did to the pending changes of one kind of file: how many there were, how many are
    lost, how many are there in part."""

    pending: int = 0
    lost: int = 0
    torn: int = 0


class Keep:
    """What a cut keeps, of changes with the numbers in `numbers`."""

    def __init__(self, kind: str, numbers: list[int], draw: random.Random) -> None:
        self.kind, self.draw = kind, draw
        self.share = draw.choice((0.1, 0.5, 0.9))
        self.step = draw.choice((SECTOR, PAGE))
        at = 0 if kind == "none" else draw.randint(0, len(numbers))
        if kind not in ("none", "prefix") and draw.random() < LAST_SHARE:
            at = len(numbers)
        # What is to be torn is a change that there is.
        at -= kind == "torn" and at == len(numbers) and at > 0
        self.before = numbers[at] if at < len(numbers) else 1 << 62

    def parts(self, change: Change) -> list[Change]:
        """What is kept of one."""
        if change.durable:
            return [change]
        if self.kind == "some" or (self.kind == "sectors" and change.data is None):
            return [change] if self.draw.random() < self.share else []
        if self.kind == "sectors":
            return [part for part in cut_up(change, SECTOR) if self.draw.random() < self.share]
        if self.kind == "torn" and change.number == self.before and change.data is not None:
            whole = cut_up(change, self.step)
            return whole[: self.draw.randrange(len(whole))]
        return [change] if change.number < self.before else []


def cut_up(change: Change, step: int) -> list[Change]:
    """A write in parts that cross no boundary."""
    assert change.data is not None
    found, at = [], 0
    while at < len(change.data):
        size = min(step - (change.at + at) % step, len(change.data) - at)
        data = change.data[at : at + size]
        found.append(Change(change.number, change.at + at, data))
        at += size
    return found


class Disk:
    """The files and directories, from `root` down."""

    def __init__(self) -> None:
        self.root = Directory(stat.S_IFDIR | 0o700)
        self.changes = 0

    def next(self) -> int:
        """The number of the next change."""
        self.changes += 1
        return self.changes

    def nodes(self) -> Iterator[Node]:
        """All that can be seen, and all that a cut may bring back."""
        found, todo = {id(self.root)}, [self.root]
        while todo:
            yield (node := todo.pop())
            if isinstance(node, Directory):
                changed = [new for _, names in node.pending for new in names.values()]
                for inner in (*node.seen.values(), *node.kept.values(), *changed):
                    if inner is not None and id(inner) not in found:
                        found.add(id(inner))
                        todo.append(inner)

    def cut(self, kind: str, draw: random.Random) -> dict[str, Loss]:
        """Lose what is not synced; what that was, by the names of files, and under "" the names."""
        nodes = list(self.nodes())
        numbers = [
            change.number
            for node in nodes
            if isinstance(node, File)
            for change in node.pending
            if not change.durable
        ]
        numbers += [
            number for node in nodes if isinstance(node, Directory) for number, _ in node.pending
        ]
        keep = Keep(kind, sorted(numbers), draw)
        losses: dict[str, Loss] = {}
        for node in nodes:
            if isinstance(node, File):
                _lose(node, keep, losses.setdefault(node.name, Loss()))
            else:
                _lose_names(node, keep, losses.setdefault("", Loss()))
        return losses


def _lose(file: File, keep: Keep, loss: Loss) -> None:
    for change in file.pending:
        parts = keep.parts(change)
        for part in parts:
            apply(file.kept, part)
        if not change.durable:
            whole = sum(len(part.data or b"") for part in parts) == len(change.data or b"")
            loss.pending += 1
            loss.lost += not parts
            loss.torn += bool(parts) and not whole
    file.pending.clear()
    file.seen = bytearray(file.kept)


def _lose_names(directory: Directory, keep: Keep, loss: Loss) -> None:
    for number, names in directory.pending:
        loss.pending += 1
        if number < keep.before:
            rename(directory.kept, names)
        else:
            loss.lost += 1
    directory.pending.clear()
    directory.seen = dict(directory.kept)
