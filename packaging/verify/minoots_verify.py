#!/usr/bin/env python3
"""Verify the store or a backup of a MINOOTS node, without any code of the node.

    python3 minoots_verify.py DATA_DIR            (the node is stopped; needs the lmdb module)
    python3 minoots_verify.py --from-backup DIR [INCREMENT]...         (nothing but Python)

Written from docs/format.md alone, for those who want a second opinion: it shares no line with what
wrote the files. It reads everything, writes nothing, and ends at the first difference with exit
code 1. Some 60,000 events a second, and 300 bytes of memory a timer of the log.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

EVENT, SEAL, TIMER, DONE, NOTE = 1, 2, 3, 4, 5
SEEDS = {
    "row": 0x4D494E4F, "note": 0x4E4F5445, "seal": 0x5345414C, "receipt": 0x52435054,
    "due": 0x44554520, "done": 0x444F4E45, "name": 0x4E414D45, "meta": 0x4D455441,
}  # fmt: skip
EVENT_HEAD = struct.Struct("<IBBHqQqII")
IMAGE = struct.Struct("<16sQqqqQIIHBBBxxx")
SEAL_HEAD = struct.Struct("<IB3xQqQ32sIIII")
NOTE_HEAD = struct.Struct("<IB3x16s16sqQII")
STANDING = struct.Struct("<IIQQQQQQQ16s")
ITEM = struct.Struct("<BBHI")
HOUR_NS = 3_600_000_000_000
KEPT_NS = 1 << 61
SCHEDULED, PAUSED, COMPLETED, FAILED, CANCELLED = 1, 2, 3, 4, 5
EXPIRED, LATE = 2, 3
# kind of event -> state before (0: none) -> states after
MOVES = {
    1: {0: {SCHEDULED}},
    EXPIRED: {SCHEDULED: {SCHEDULED, COMPLETED}, PAUSED: {PAUSED, COMPLETED}},
    LATE: {state: {state} for state in range(1, 6)},
    5: {SCHEDULED: {FAILED}},
    6: {SCHEDULED: {CANCELLED}, PAUSED: {CANCELLED}},
    7: {SCHEDULED: {PAUSED}},
    8: {PAUSED: {SCHEDULED}},
    9: {SCHEDULED: {SCHEDULED}, PAUSED: {PAUSED}},
    10: {SCHEDULED: {SCHEDULED, COMPLETED}},
    11: {SCHEDULED: {SCHEDULED}},
    13: {SCHEDULED: {SCHEDULED}, PAUSED: {PAUSED}},
}


class Wrong(Exception):
    """What does not agree, and where."""


def need(right: bool, what: str) -> None:
    if not right:
        raise Wrong(what)


def crc_is(data: bytes, seed: int, what: str) -> None:
    """The first four bytes are the CRC-32 of the rest, begun from `seed`."""
    need(len(data) >= 8, f"{what} is cut short")
    said = int.from_bytes(data[:4], "little")
    need(zlib.crc32(data[4:], seed) == said, f"{what} does not agree with its checksum")


def cell(key: bytes, data: bytes, seed: str, what: str) -> int:
    """The number in a cell of 12 bytes."""
    right = len(data) == 12 and zlib.crc32(data[4:], zlib.crc32(key, SEEDS[seed])) == (
        int.from_bytes(data[:4], "little")
    )
    need(right, f"{what} does not agree with its checksum")
    return int.from_bytes(data[4:], "little")


class Log:
    """The log as it is replayed, event by event."""

    def __init__(self, first_seq: int) -> None:
        self.first_seq, self.next_seq, self.commit = first_seq, 0, 0
        self.chain: bytes | None = bytes(32)
        self.timers: dict[bytes, tuple[int, int, bytes, int | None]] = {}
        self.notes: dict[bytes, tuple[int, int, int]] = {}
        self.receipts: dict[int, int] = {}
        self.waiting: dict[int, None] = {}
        self.events = self.floor = 0
        self.seal = b""
        self.open_at = 0
        self.body: list[bytes] = []

    def begin(self, number: int, data: bytes) -> None:
        """A seal: what the commit's events must come to."""
        self.end()
        need(not self.commit or number == self.commit + 1, f"commit {self.commit + 1} is missing")
        crc_is(data, zlib.crc32(struct.pack("<Q", number), SEEDS["seal"]), f"seal {number}")
        _, version, first, _, _, _, _, receipts, _, notes = SEAL_HEAD.unpack_from(data)
        need(version == 1, f"seal {number} has version {version}; this program knows 1")
        need(len(data) == 80 + 16 * receipts + notes, f"seal {number} does not add up")
        need(not self.next_seq or first == self.next_seq, f"seal {number} begins at {first}")
        if not self.commit and number != 1:
            self.chain = None
        self.commit, self.seal, self.body = number, data, []
        self.open_at = max(first, min(self.first_seq, self.end_of(data)))
        self.next_seq = self.open_at

    def end_of(self, seal: bytes) -> int:
        head = SEAL_HEAD.unpack_from(seal)
        return int(head[2] + head[6])

    def event(self, seq: int, data: bytes) -> None:
        need(seq == self.next_seq < self.end_of(self.seal), f"event {self.next_seq} is missing")
        crc_is(data, seq & 0xFFFFFFFF, f"event {seq}")
        _, version, kind, flags, _, prev_seq, _, _, _ = EVENT_HEAD.unpack_from(data)
        need(version == 1, f"event {seq} has version {version}; this program knows 1")
        if flags & 1:
            self.image(seq, kind, flags, prev_seq, data)
        self.body.append(data)
        self.next_seq, self.events = seq + 1, self.events + 1

    def image(self, seq: int, kind: int, flags: int, prev_seq: int, data: bytes) -> None:
        image = data[40:112]
        id, own_seq, *_, state, _, _ = IMAGE.unpack(image)
        need(own_seq == seq, f"event {seq} carries the number {own_seq}")
        last, before, _, blob = self.timers.get(id, (0, 0, b"", None))
        known = last or prev_seq < self.first_seq
        need(last == prev_seq or (not last and known), f"event {seq}: before it is {last}")
        after = MOVES.get(kind, {})
        if last or not prev_seq:
            right = state in after.get(before, ())
        else:
            right = any(state in states for states in after.values())
        need(right, f"event {seq} of kind {kind} is no move from state {before} to {state}")
        if flags & 2:
            blob = zlib.crc32(data[112:])
        self.timers[id] = (seq, state, image, blob)
        if kind == EXPIRED:
            self.waiting[seq] = None

    def end(self) -> None:
        """The last commit is whole, and agrees with the hash chain."""
        if not self.seal:
            return
        need(self.next_seq == self.end_of(self.seal), f"event {self.next_seq} is missing")
        head = SEAL_HEAD.unpack_from(self.seal)
        first, floor, chain, count, receipts_count = head[2], head[4], head[5], head[6], head[7]
        at = 80 + 16 * receipts_count
        receipts, notes = self.seal[80:at], list(self.split_notes(at, head[8]))
        if self.chain is not None and self.open_at == first:
            text = b"%d %d %d %d\n" % (first, count, len(receipts), sum(map(len, notes)))
            digest = hashlib.sha256(self.chain + text + b"".join(self.body) + receipts)
            digest.update(b"".join(notes))
            need(digest.digest() == chain, f"commit {self.commit}: the hash chain differs")
        self.chain, self.seal = chain, b""
        for seq, fired_ns in struct.iter_unpack("<Qq", receipts):
            if seq >= self.first_seq:
                need(
                    seq in self.waiting or seq in self.receipts,
                    f"commit {self.commit}: event {seq} waits for no receipt",
                )
                self.waiting.pop(seq, None)
                self.receipts[seq] = fired_ns
        need(floor >= self.floor, f"commit {self.commit}: the floor goes back to {floor}")
        self.floor = floor
        oldest = next(iter(self.waiting), floor + 1)
        need(oldest > floor, f"commit {self.commit}: event {oldest} has no receipt")

    def split_notes(self, at: int, count: int) -> Iterator[bytes]:
        for _ in range(count):
            size = int.from_bytes(self.seal[at : at + 4], "little")
            note = self.seal[at + 4 : at + 4 + size]
            crc_is(note, SEEDS["note"], f"a note of commit {self.commit}")
            head = NOTE_HEAD.unpack_from(note)
            self.notes[head[2]] = (head[0], head[4], self.commit)
            at += 4 + size
            yield note
        need(at == len(self.seal), f"the notes of commit {self.commit} do not add up")


class Tables:
    """Rows, held against the log as far as the tables follow it."""

    def __init__(self, log: Log, applied_seq: int, *, moving: bool) -> None:
        self.log, self.applied_seq, self.moving = log, applied_seq, moving
        self.rows: dict[bytes, bytes] = {}  # id -> image
        self.done: set[bytes] = set()
        self.notes: set[bytes] = set()

    def timer(self, id: bytes, data: bytes) -> None:
        what = f"the row of timer {id.hex()}"
        crc_is(data, SEEDS["row"], what)
        image = data[8:80]
        need(image[:16] == id, f"{what} is of another timer")
        seq = IMAGE.unpack(image)[1]
        need(seq <= self.applied_seq, f"{what} is of event {seq}, past {self.applied_seq}")
        self.rows[id] = image
        known = self.log.timers.get(id)
        if known is None:
            need(seq < self.log.first_seq, f"{what} is of event {seq}, which is not its")
        elif seq == known[0]:
            need(known[1] in (SCHEDULED, PAUSED), f"{what}: it ended at event {seq}")
            need(image == known[2], f"{what} is not what event {seq} says")
            same = known[3] is None or known[3] == zlib.crc32(data[80:])
            need(same, f"{what} holds another definition")
        else:
            need(self.moving, f"{what} is of event {seq}; its newest is {known[0]}")

    def finished(self, id: bytes, data: bytes) -> None:
        what = f"the finished timer {id.hex()}"
        seq = cell(id, data, "done", what)
        self.done.add(id)
        known = self.log.timers.get(id)
        if known is None:
            need(seq < self.log.first_seq, f"{what} has event {seq}, which is not its")
        else:
            need(known[1] >= COMPLETED, f"{what} has not ended")
            need(self.moving or known[0] == seq, f"{what} has event {seq}, not {known[0]}")

    def note(self, key: bytes, data: bytes) -> None:
        what = f"the note {key.hex()}"
        crc_is(data, SEEDS["note"], what)
        need(data[8:24] == key, f"{what} has another key")
        self.notes.add(key)
        known = self.log.notes.get(key)
        if known is not None and not self.moving:
            same = known[0] == int.from_bytes(data[:4], "little")
            need(same, f"{what} is not what commit {known[2]} says")

    def finish(self, done_below: int, rebuilt: bool) -> None:
        """Nothing is missing."""
        for id, (seq, state, _, blob) in self.log.timers.items():
            if state >= COMPLETED:
                there = id in self.done or seq < done_below
            else:
                there = id in self.rows or (rebuilt and blob is None)
            need(there, f"timer {id.hex()} of event {seq} is missing from the tables")
        for key, (_, at_ns, commit) in self.log.notes.items():
            there = key in self.notes or at_ns < KEPT_NS
            need(there, f"the note {key.hex()} of commit {commit} is missing")


def stamp(data: bytes | None, what: str) -> int:
    """The epoch in a format stamp."""
    need(data is not None and len(data) == 16, f"{what} has no format stamp")
    assert data is not None
    crc, version, epoch = struct.unpack("<IIQ", data)
    right = zlib.crc32(bytes(4) + data[4:]) == crc
    need(right, f"the format stamp of {what} does not agree with its checksum")
    need(version == 1, f"{what} has format {version}; this program knows 1")
    return int(epoch)


def verify_store(folder: Path) -> str:
    import lmdb

    def opened(name: str) -> lmdb.Environment:
        return lmdb.open(
            str(folder / name), readonly=True, max_dbs=8, lock=False, create=False, map_size=1 << 40
        )

    logs, tables = opened("log"), opened("tables")
    databases = {
        name: (where, where.open_db(name.encode(), create=False))
        for where, names in (
            (logs, ("meta", "events", "receipts", "commits")),
            (tables, ("timers", "due", "names", "done", "notes")),
        )
        for name in names
    }
    meta = tables.open_db(b"meta", create=False)

    def each(name: str) -> Iterator[tuple[bytes, bytes]]:
        where, database = databases[name]
        with where.begin(db=database) as txn:
            yield from txn.cursor()

    with logs.begin(db=databases["meta"][1]) as txn:
        epoch = stamp(txn.get(b"format"), "the log")
    with tables.begin(db=meta) as txn:
        stamp(txn.get(b"format"), "the tables")
        standing = txn.get(b"standing") or STANDING.pack(0, 1, 0, 0, 0, 0, 1, 0, 0, bytes(16))
    if standing[:4] != bytes(4):
        crc_is(standing, SEEDS["meta"], "the position of the tables")
    _, _, seq, commit, live, notes, done_below, rebuilt_from, _, _ = STANDING.unpack(standing)
    events = each("events")
    ahead = next(events, None)
    log = Log(int.from_bytes(ahead[0], "big") if ahead else 1)
    compared = commit == 0

    def compare() -> None:
        log.end()
        held = Tables(log, seq, moving=False)
        for name, take in (("timers", held.timer), ("done", held.finished), ("notes", held.note)):
            for key, data in each(name):
                take(key, data)
        counts = (len(held.rows), len(held.notes))
        need(counts == (live, notes), f"the tables hold {counts}; they should hold {live, notes}")
        held.finish(done_below, rebuilt_from > 0)
        check_indexes(held, dict(each("due")), dict(each("names")))

    for key, data in each("commits"):
        number = int.from_bytes(key, "big")
        log.begin(number, data)
        while ahead is not None and int.from_bytes(ahead[0], "big") < log.end_of(data):
            log.event(int.from_bytes(ahead[0], "big"), ahead[1])
            ahead = next(events, None)
        if number == commit:
            compare()
            compared = True
    log.end()
    need(ahead is None, "the log holds events of no commit")
    need(compared, f"the tables stand at commit {commit}, which the log does not hold")
    check_receipts(log, dict(each("receipts")))
    return f"{log.events} events, {log.commit} commits, {live} timers agree; epoch {epoch}"


def check_receipts(log: Log, kept: dict[bytes, bytes]) -> None:
    """The head of the receipts may be trimmed ahead of that of the events."""
    oldest = int.from_bytes(min(kept), "big") if kept else 1 << 64
    held = {}
    for key, data in kept.items():
        seq = int.from_bytes(key, "big")
        value = cell(key, data, "receipt", f"the receipt of event {seq}")
        if seq >= log.first_seq:
            held[seq] = value - (value >> 63 << 64)
    told = {seq: fired_ns for seq, fired_ns in log.receipts.items() if seq >= oldest}
    for seq in sorted(held.keys() | told.keys()):
        need(held.get(seq) == told.get(seq), f"the receipt of event {seq} differs from its seal's")


def check_indexes(held: Tables, due: dict[bytes, bytes], names: dict[bytes, bytes]) -> None:
    wanted_due, wanted_names = {}, set()
    for id, image in held.rows.items():
        _, _, due_ns, _, _, name_hash, _, _, _, state, scale, _ = IMAGE.unpack(image)
        if state == SCHEDULED and due_ns:
            hour = max(due_ns, 0) // HOUR_NS
            wanted_due[struct.pack(">BI", scale, hour) + id] = due_ns
        if name_hash:
            wanted_names.add(struct.pack(">Q", name_hash) + id)
    for key, data in due.items():
        value = cell(key, data, "due", f"the due row {key.hex()}")
        need(wanted_due.get(key) == value, f"the due row {key.hex()} is of no timer")
    for key, data in names.items():
        right = zlib.crc32(key, SEEDS["name"]) == int.from_bytes(data, "little")
        need(right, f"the name row {key.hex()} does not agree with its checksum")
        need(key in wanted_names, f"the name row {key.hex()} is of no timer")
    need(len(due) == len(wanted_due), "a due row is missing")
    need(len(names) == len(wanted_names), "a name row is missing")


def items(path: Path, sha256: str) -> Iterator[tuple[int, bytes, bytes]]:
    """The items of a file of a backup: table, key, value."""
    data = path.read_bytes()
    need(hashlib.sha256(data).hexdigest() == sha256, f"{path}: the SHA-256 differs")
    at = 0
    while at < len(data):
        need(at + 8 <= len(data), f"{path} is cut short")
        table, key_bytes, reserved, size = ITEM.unpack_from(data, at)
        end = at + 8 + key_bytes + size
        need(reserved == 0 and end <= len(data), f"{path} is cut short")
        yield table, data[at + 8 : at + 8 + key_bytes], data[at + 8 + key_bytes : end]
        at = end


def verify_backup(folders: list[Path]) -> str:
    log = None
    rows = 0
    for folder in folders:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        need(manifest["format"] == 1, f"{folder} has format {manifest['format']}; not 1")
        part, tables = manifest["log"], manifest["tables"]
        if log is None:
            need(tables is not None, f"{folder} is an increment; name the full backup first")
            log = Log(part["first_seq"])
        for table, key, data in items(folder / "log.items", part["sha256"]):
            number = int.from_bytes(key, "big")
            need(table in (EVENT, SEAL), f"{folder}: no item of a log")
            (log.event if table == EVENT else log.begin)(number, data)
        log.end()
        need((log.chain or bytes(32)).hex() == part["chain"], f"{folder}: another chain at the end")
        if tables is not None:
            held = Tables(log, tables["through_seq"], moving=True)
            takes = {TIMER: held.timer, DONE: held.finished, NOTE: held.note}
            for table, key, data in items(folder / "tables.items", tables["sha256"]):
                need(table in takes, f"{folder}: no item of the tables")
                takes[table](key, data)
                rows += 1
    assert log is not None
    return f"{log.events} events, {log.commit} commits, {rows} rows agree"


def main(words: list[str]) -> int:
    try:
        if len(words) > 1 and words[0] == "--from-backup":
            print(verify_backup([Path(word) for word in words[1:]]))
        elif len(words) == 1 and not words[0].startswith("-"):
            print(verify_store(Path(words[0])))
        else:
            print(__doc__, file=sys.stderr)
            return 2
    except (Wrong, OSError) as error:
        print(f"minoots_verify: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
