"""The bytes of the log and of the tables: one event, one timer image, one idempotency note.

Every event record of a timer carries the timer's whole image *after* it (72 bytes), and the
definition (the blob) only when the definition is new or changed. So the row of a timer is the image
of its newest record and the blob of the newest record that has one: the tables thread folds records
into rows with two copies, and whoever reads a timer's past walks `prev_seq` back.

    event   = EventHead  [Image  [blob]]        key: seq, 8 bytes big-endian
    row     = RowHead Image blob                key: timer id, 16 bytes
    note    = NoteHead reply                    key: sha256(tenant, idempotency key)[:16]

Integers are little-endian, instants are ns since the epoch. All of it is fixed-width, because C
reads it too (`_tables.pyx`); `tests/unit/test_record.py` compares both views.

# If you change a layout here, raise RECORD_VERSION, keep the old reader, add a fixture.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

from engine.errors import StoreCorrupt, StoreTooNew

RECORD_VERSION = 1

# crc32, version, kind, flags, at_ns, prev_seq, due_ns, occurrence, reserved
EVENT_HEAD = struct.Struct("<IBBHqQqII")
# id, seq, due_ns, created_ns, left_ns, name_hash, occurrence, revision, tenant, state, scale,
# reason, reserved
IMAGE = struct.Struct("<16sQqqqQIIHBBBxxx")
# crc32, version, reserved
ROW_HEAD = struct.Struct("<IB3x")
# crc32, version, reserved, key, body hash, at_ns, first_seq, count, reply length
NOTE_HEAD = struct.Struct("<IB3x16s16sqQII")
# lengths: rule, name, labels, schedule, payload, rest
BLOB_HEAD = struct.Struct("<HHHxxIII")

EVENT_HEAD_BYTES = EVENT_HEAD.size  # 40
IMAGE_BYTES = IMAGE.size  # 72
ROW_HEAD_BYTES = ROW_HEAD.size  # 8
IMAGE_END = EVENT_HEAD_BYTES + IMAGE_BYTES  # where an event's blob begins

FLAG_IMAGE = 1  # a timer image follows the head
FLAG_BLOB = 2  # a definition follows the image
FLAG_MISFIRE = 4  # it fired late because the node was down or overloaded
FLAG_SLIM = 8  # what follows the image is only rule, name and labels, to show: never fold it

# crc32, version, seq, commit, live_count, notes_count, done_below, rebuilt_from, rebuild_to, swept
STANDING = struct.Struct("<IIQQQQQQQ16s")

ROW_SEED = 0x4D494E4F  # a row's checksum starts here, an event's at its seq: neither passes as the
NOTE_SEED = 0x4E4F5445  # other, nor at another place
FOR_EVER_NS = 1 << 62  # `at_ns` of a note that does not grow old
META_SEED = 0x4D455441


class Kind(IntEnum):
    """What an event says; the CloudEvents type is in `minoots.wire`."""

    SCHEDULED = 1
    EXPIRED = 2
    LATE = 3
    COMPLETED = 4
    FAILED = 5
    CANCELLED = 6
    PAUSED = 7
    RESUMED = 8
    RESCHEDULED = 9
    SKIPPED = 10
    ESCALATED = 11
    ERROR = 12
    RELABELLED = 13
    NODE_STARTED = 64
    NODE_STOPPED = 65
    CLOCK_STEPPED = 66
    CLOCK_HELD = 67
    CLOCK_RELEASED = 68
    CLOCK_SLEWED = 69
    SUSPENDED = 70
    OVERDUE_HELD = 71
    OVERDUE_ORDERED = 72
    OVERDUE_RELEASED = 73
    BULK = 74
    CONSUMER_CREATED = 80
    CONSUMER_DELETED = 81
    DEAD_LETTERED = 82


class Scale(IntEnum):
    """The timescale that a due instant stands on."""

    STEADY = 0  # nothing steps it: after, every
    WALL = 1  # UTC: at


class Image(NamedTuple):
    """A timer as one event left it. `due_ns` is 0 unless it is scheduled; `left_ns` is the time
    that was left when it was paused; `occurrence` is the one that comes next."""

    id: bytes
    seq: int
    due_ns: int
    created_ns: int
    left_ns: int
    name_hash: int
    occurrence: int
    revision: int
    tenant: int
    state: int
    scale: int
    reason: int


class Event(NamedTuple):
    """One decoded event record; `due_ns` and `occurrence` are those that the event speaks of."""

    seq: int
    kind: int
    flags: int
    at_ns: int
    prev_seq: int
    due_ns: int
    occurrence: int
    image: Image | None
    blob: bytes


class Blob(NamedTuple):
    """A timer's definition, in the bytes that the client sent; `rule` is packed by `schedule`."""

    rule: bytes
    name: bytes
    labels: bytes
    schedule: bytes
    payload: bytes
    rest: bytes


class Note(NamedTuple):
    """What an idempotency key did: `events_count` events from `first_seq`; the reply if kept.

    at_ns: on the steady scale."""

    key: bytes
    body_hash: bytes
    at_ns: int
    first_seq: int
    events_count: int
    reply: bytes


class Standing(NamedTuple):
    """How far the tables have followed the log, and what they hold; see `_fold.pxd`."""

    seq: int
    commit: int
    live_count: int
    notes_count: int
    done_below: int
    rebuilt_from: int
    rebuild_to: int
    swept: bytes


NO_STANDING = Standing(0, 0, 0, 0, 1, 0, 0, bytes(16))  # of tables that were never written

_crc32 = zlib.crc32
_event_pack = EVENT_HEAD.pack
_image_pack = IMAGE.pack
_u32 = struct.Struct("<I").pack


def pack_event(
    seq: int,
    kind: int,
    flags: int,
    at_ns: int,
    prev_seq: int,
    due_ns: int,
    occurrence: int,
    image: Image | None,
    blob: bytes = b"",
) -> bytes:
    """Encode one event; FLAG_IMAGE and FLAG_BLOB are set from what is given. 0.9 us.

    A blob given with FLAG_SLIM does not set FLAG_BLOB: it names the timer, it does not define it.
    """
    if image is not None:
        flags |= FLAG_IMAGE if flags & FLAG_SLIM or not blob else FLAG_IMAGE | FLAG_BLOB
        head = _event_pack(0, RECORD_VERSION, kind, flags, at_ns, prev_seq, due_ns, occurrence, 0)
        body = b"".join((head[4:], _image_pack(*image), blob))
    else:
        flags |= FLAG_BLOB
        head = _event_pack(0, RECORD_VERSION, kind, flags, at_ns, prev_seq, due_ns, occurrence, 0)
        body = head[4:] + blob
    return _u32(_crc32(body, seq & 0xFFFFFFFF)) + body


def check_event(seq: int, data: bytes) -> None:
    """Raise StoreCorrupt unless `data` is the whole record that was stored at `seq`."""
    if len(data) < EVENT_HEAD_BYTES:
        raise StoreCorrupt(f"event {seq} is {len(data)} bytes; a record has {EVENT_HEAD_BYTES}")
    if int.from_bytes(data[:4], "little") != _crc32(memoryview(data)[4:], seq & 0xFFFFFFFF):
        raise StoreCorrupt(f"event {seq} does not agree with its checksum; restore from a backup")
    if data[4] > RECORD_VERSION:
        raise StoreTooNew(
            f"record version {data[4]} is newer than {RECORD_VERSION}; upgrade minoots"
        )


def unpack_event(seq: int, data: bytes) -> Event:
    """Decode and check one event. Raises StoreCorrupt, StoreTooNew."""
    check_event(seq, data)
    _, _, kind, flags, at_ns, prev_seq, due_ns, occurrence, _ = EVENT_HEAD.unpack_from(data)
    image = None
    at = EVENT_HEAD_BYTES
    if flags & FLAG_IMAGE:
        if len(data) < IMAGE_END:
            raise StoreCorrupt(f"event {seq} is cut short inside its image")
        image = Image._make(IMAGE.unpack_from(data, at))
        at = IMAGE_END
        if image.seq != seq:
            raise StoreCorrupt(f"event {seq} carries the number {image.seq}")
    return Event(seq, kind, flags, at_ns, prev_seq, due_ns, occurrence, image, data[at:])


def pack_row(image: Image, blob: bytes) -> bytes:
    """Encode the row that the tables keep for a live timer."""
    body = b"".join((ROW_HEAD.pack(0, RECORD_VERSION)[4:], _image_pack(*image), blob))
    return _u32(_crc32(body, ROW_SEED)) + body


def unpack_row(key: bytes, data: bytes) -> tuple[Image, bytes]:
    """Decode and check one row: its image and its blob. Raises StoreCorrupt, StoreTooNew."""
    if len(data) < ROW_HEAD_BYTES + IMAGE_BYTES + BLOB_HEAD.size:
        raise StoreCorrupt(f"the row of timer {key.hex()} is cut short at {len(data)} bytes")
    if int.from_bytes(data[:4], "little") != _crc32(memoryview(data)[4:], ROW_SEED):
        raise StoreCorrupt(f"the row of timer {key.hex()} does not agree with its checksum")
    if data[4] > RECORD_VERSION:
        raise StoreTooNew(f"row version {data[4]} is newer than {RECORD_VERSION}; upgrade minoots")
    image = Image._make(IMAGE.unpack_from(data, ROW_HEAD_BYTES))
    if image.id != key:
        raise StoreCorrupt(f"the row of timer {key.hex()} carries the id {image.id.hex()}")
    return image, data[ROW_HEAD_BYTES + IMAGE_BYTES :]


def pack_blob(
    rule: bytes, name: bytes, labels: bytes, schedule: bytes, payload: bytes, rest: bytes
) -> bytes:
    """Encode a definition. `labels` is compact JSON with sorted keys, so C can filter by it."""
    head = BLOB_HEAD.pack(len(rule), len(name), len(labels), len(schedule), len(payload), len(rest))
    return b"".join((head, rule, name, labels, schedule, payload, rest))


def unpack_blob(blob: bytes) -> Blob:
    """Decode a definition. Raises StoreCorrupt when its lengths do not add up."""
    if len(blob) < BLOB_HEAD.size:
        raise StoreCorrupt(
            f"a definition is {len(blob)} bytes; its head alone has {BLOB_HEAD.size}"
        )
    lengths = BLOB_HEAD.unpack_from(blob)
    at = BLOB_HEAD.size
    parts = []
    for length in lengths:
        parts.append(blob[at : at + length])
        at += length
    if at != len(blob):
        raise StoreCorrupt(f"a definition of {len(blob)} bytes holds parts of {at}")
    return Blob._make(parts)


def rule_of(blob: bytes) -> bytes:
    """The rule of a definition alone: most have none. 0.1 us."""
    size = blob[0] | blob[1] << 8
    return blob[BLOB_HEAD.size : BLOB_HEAD.size + size] if size else b""


def pack_note(note: Note) -> bytes:
    """Encode an idempotency note."""
    head = NOTE_HEAD.pack(
        0,
        RECORD_VERSION,
        note.key,
        note.body_hash,
        note.at_ns,
        note.first_seq,
        note.events_count,
        len(note.reply),
    )
    body = head[4:] + note.reply
    return _u32(_crc32(body, NOTE_SEED)) + body


def unpack_note(data: bytes) -> Note:
    """Decode and check an idempotency note. Raises StoreCorrupt."""
    if len(data) < NOTE_HEAD.size or int.from_bytes(data[:4], "little") != _crc32(
        memoryview(data)[4:], NOTE_SEED
    ):
        raise StoreCorrupt("an idempotency note does not agree with its checksum")
    _, _, key, body_hash, at_ns, first_seq, count, length = NOTE_HEAD.unpack_from(data)
    reply = data[NOTE_HEAD.size :]
    if len(reply) != length:
        raise StoreCorrupt(f"an idempotency note holds {len(reply)} of {length} bytes")
    return Note(key, body_hash, at_ns, first_seq, count, reply)


def pack_standing(standing: Standing) -> bytes:
    """Encode the tables' position, as `meta` holds it under b"standing"."""
    body = STANDING.pack(0, RECORD_VERSION, *standing)[4:]
    return _u32(_crc32(body, META_SEED)) + body


def unpack_standing(data: bytes) -> Standing:
    """Decode and check the tables' position. Raises StoreCorrupt."""
    right = len(data) == STANDING.size
    if not right or int.from_bytes(data[:4], "little") != _crc32(memoryview(data)[4:], META_SEED):
        raise StoreCorrupt("the tables' position does not agree with its checksum")
    return Standing._make(STANDING.unpack(data)[2:])


def name_hash(name: bytes, tenant: int = 0) -> int:
    """The 64-bit hash that the names index is keyed by; 0 is kept for no name."""
    if not name:
        return 0
    digest = hashlib.blake2b(name, digest_size=8, salt=tenant.to_bytes(2, "little")).digest()
    return int.from_bytes(digest, "little") or 1


def chain_hash(
    previous: bytes, first_seq: int, events: list[bytes], receipts: bytes, notes: bytes
) -> bytes:
    """The log's hash after a commit: SHA-256 over the hash before it and all that it stores.

    receipts: packed `(seq, fired_ns)` pairs. 0.2 us an event.
    """
    digest = hashlib.sha256(previous)
    digest.update(b"%d %d %d %d\n" % (first_seq, len(events), len(receipts), len(notes)))
    digest.update(b"".join(events))
    digest.update(receipts)
    digest.update(notes)
    return digest.digest()
