"""CHAIN and ORDER in the files of a node that is stopped, read without any of its code.

Written from `engine/_record.pxd` and the chain's definition, by py-lmdb and hashlib alone: what the
node's own `verify` and this agree on is not one program's opinion.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path

import lmdb

# checksum, version, first seq, instant, floor, chain, events, receipts, notes, bytes of the notes
_SEAL = struct.Struct("<IB3xQqQ32sIIII")
_RECEIPT_BYTES = 16


def chain_faults(data_dir: Path) -> Iterator[str]:
    """What does not agree in the log of `data_dir`: numbers, or the hash chain."""
    environment = lmdb.open(str(data_dir / "log"), max_dbs=8, readonly=True, lock=False)
    try:
        tables = [environment.open_db(name, create=False) for name in (b"commits", b"events")]
        with environment.begin() as txn:
            seals = [(int.from_bytes(key, "big"), data) for key, data in txn.cursor(tables[0])]
            events = {int.from_bytes(key, "big"): data for key, data in txn.cursor(tables[1])}
            yield from _faults(seals, events)
    finally:
        environment.close()


def _faults(seals: list[tuple[int, bytes]], events: dict[int, bytes]) -> Iterator[str]:
    if not seals:
        return
    first_kept = min(events, default=0)
    if list(events) != list(range(first_kept, first_kept + len(events))):
        yield f"ORDER the log's events from {first_kept} on have a gap"
    chain = bytes(32) if seals[0][0] == 1 else b""
    number, goes_on = seals[0][0] - 1, 0
    for commit, data in seals:
        _, _, first, _, _, stored, count, receipts, _, _ = _SEAL.unpack_from(data)
        if commit != number + 1 or (goes_on and first != goes_on):
            yield f"ORDER commit {commit} begins at {first}; commit {number} ended at {goes_on - 1}"
        trimmed = first < first_kept
        if chain and not trimmed:
            body = [events.get(seq, b"") for seq in range(first, first + count)]
            at = _SEAL.size + receipts * _RECEIPT_BYTES
            notes = _notes(data[at:])
            text = b"%d %d %d %d\n" % (first, count, receipts * _RECEIPT_BYTES, len(notes))
            parts = b"".join((chain, text, *body, data[_SEAL.size : at], notes))
            if hashlib.sha256(parts).digest() != stored:
                yield f"CHAIN commit {commit} does not agree with the hash chain"
        chain, number, goes_on = stored, commit, first + count
    if events and goes_on - 1 != max(events):
        yield f"CHAIN the last seal ends at {goes_on - 1}, the events at {max(events)}"


def _notes(data: bytes) -> bytes:
    """The notes of a seal without the lengths before each."""
    notes, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        notes.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return b"".join(notes)
