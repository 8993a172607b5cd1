"""What a backup says of itself: `manifest.json` beside its files, written last.

A directory without one is no backup. `docs/format.md` tells the layout of the files.

# If you change it, raise FORMAT, keep the old reader, add a fixture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from engine.errors import StoreCorrupt, StoreTooNew
from engine.files import write_durably
from minoots.wire.times import format_instant

FORMAT = 1
MANIFEST = "manifest.json"
LOG_FILE = "log.items"
TABLES_FILE = "tables.items"
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)  # what decoding raises
DIRECTORY_MODE = 0o700
FILE_MODE = 0o600

Progress = Callable[[str, int], None]  # told what is done with files, and how many bytes of it


class LogPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part of the log that is in LOG_FILE. chain_before: the hash chain where it begins, in
    hex; "" where that was trimmed. chain: at its end."""

    bytes: int
    sha256: str
    first_seq: int
    last_seq: int
    first_commit: int
    last_commit: int
    events: int
    chain_before: str
    chain: str


class TablesPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is in TABLES_FILE: rows that were read while the tables went from `commit` (whose last
    event is `seq`) to `through_commit`."""

    bytes: int
    sha256: str
    timers: int
    done: int
    notes: int
    seq: int
    commit: int
    through_seq: int
    through_commit: int
    done_below: int
    rebuilt_from: int
    rebuild_to: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One backup; an increment has no tables."""

    format: int
    program: str
    node_id: str
    epoch: int
    made_at: str
    log: LogPart
    tables: TablesPart | None


class _Format(msgspec.Struct):
    format: int


_read = msgspec.json.Decoder(Manifest)
_format = msgspec.json.Decoder(_Format)


def made_at(utc_ns: int) -> str:
    """When, as the contract writes instants."""
    return format_instant(utc_ns)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a backup. Raises StoreCorrupt, StoreTooNew."""
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except OSError as error:
        raise StoreCorrupt(f"{folder} is no backup: {path.name}: {error.strerror}") from error
    try:
        version = _format.decode(text).format
        if version > FORMAT:
            raise StoreTooNew(
                f"{folder} has backup format {version}, newer than {FORMAT}; upgrade minoots"
            )
        return _read.decode(text)
    except UNREADABLE as error:
        raise StoreCorrupt(f"{path} cannot be read: {error}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make a backup of the files in `folder`, which are on disk."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    write_durably(folder / MANIFEST, text)
