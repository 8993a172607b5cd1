"""What the shim wrote down, and what a disk may hold at each moment of it.

A write is *durable* once it was its own sync (O_DSYNC) and has returned, or a sync of its file that
began after its end has returned. Until then it is *pending*: after a power cut each of its sectors
may be there or not, in any order. What is durable is there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

WRITE, WRITTEN, SYNC, SYNCED, TRUNCATE, MARK = range(1, 7)
LOG, TABLES = 0, 1
_RECORD = struct.Struct("<BBBxIQQ")


class Record(NamedTuple):
    """One record of the shim; see shim.c."""

    what: int
    file: int
    durable: bool
    id: int
    at: int
    size: int
    data: bytes


class Write(NamedTuple):
    """A write that is not durable yet."""

    id: int
    at: int
    data: bytes


def read(path: Path) -> Iterator[Record]:
    """The records, in order; the last one may be cut short, if the process was killed."""
    raw = path.read_bytes()
    at = 0
    while at + _RECORD.size <= len(raw):
        what, file, durable, id, where, size = _RECORD.unpack_from(raw, at)
        at += _RECORD.size
        data = b""
        if what == WRITE:
            data = raw[at : at + size]
            at += size
            if len(data) < size:
                return
        yield Record(what, file - 1, bool(durable), id, where, size, data)


@dataclass(slots=True)
class File:
    """A file as the disk has it for sure, and what is pending, in order."""

    base: bytearray = field(default_factory=bytearray)
    pending: list[Write] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)  # of the pending writes: they have returned
    syncs: dict[int, set[int]] = field(default_factory=dict)  # sync -> the writes that it covers
    _snapshot: bytes | None = None

    def snapshot(self) -> bytes:
        """What is durable; the same object until that changes."""
        if self._snapshot is None:
            self._snapshot = bytes(self.base)
        return self._snapshot

    def take(self, record: Record) -> bool:
        """Go on by one record; whether what may be on the disk has changed."""
        if record.what == WRITE:
            self.pending.append(Write(record.id, record.at, record.data))
            return True
        if record.what == WRITTEN:
            self.ended.add(record.id)
            return record.durable and self._settle({record.id})
        if record.what == SYNC:
            self.syncs[record.id] = set(self.ended)
            return False
        if record.what == SYNCED:
            return self._settle(self.syncs.pop(record.id))
        raise AssertionError(f"the store truncated its file: {record}")

    def _settle(self, ids: set[int]) -> bool:
        """These writes are durable. Of an earlier one that is not, what they cover stays theirs."""
        settled = [write for write in self.pending if write.id in ids]
        for write in settled:
            apply(self.base, write.at, write.data)
            self._snapshot = None
        self.pending = [write for write in self.pending if write.id not in ids]
        self.ended -= ids
        return bool(settled)


def apply(image: bytearray, at: int, data: bytes) -> None:
    """Write into an image, which grows by zeros as a file does."""
    if len(image) < at + len(data):
        image.extend(bytes(at + len(data) - len(image)))
    image[at : at + len(data)] = data
