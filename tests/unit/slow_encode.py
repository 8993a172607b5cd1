"""The JSON of views and events in plain Python: the oracle of `edgenode/_encode.pyx`."""

from __future__ import annotations

from urllib.parse import quote

import orjson

from edgenode.encode import KIND_NAMES, REASON_NAMES, STATE_NAMES, Identity
from engine.record import FLAG_IMAGE, FLAG_MISFIRE, Blob, Event, Image, Kind, Scale, unpack_blob
from minoots.wire.frames import long_type
from minoots.wire.times import format_duration, format_id, format_instant

_TYPES = {kind: long_type(name) for kind, name in KIND_NAMES.items()}
_TOLD = frozenset({Kind.SKIPPED, Kind.ESCALATED})
_FIRES = frozenset({Kind.EXPIRED, Kind.LATE}) | _TOLD
NO_BLOB = Blob(b"", b"", b"{}", b"null", b"null", b"")


def text_json(raw: bytes) -> bytes:
    """A JSON string of UTF-8 text."""
    return orjson.dumps(raw.decode("utf-8", "replace"))


def view(
    image: Image, blob: Blob, *, tenant: str, shift_ns: int, position: str = "", id_text: str = ""
) -> bytes:
    """A timer view. position: `armed` or `firing` where that is what the timer is now."""
    state = position or STATE_NAMES[image.state]
    due = ""
    if image.due_ns:
        due_ns = image.due_ns + (shift_ns if image.scale == Scale.STEADY else 0)
        due = f'"due":"{format_instant(due_ns)}",'
    remaining = ""
    if image.left_ns:
        remaining = f'"remaining":"{format_duration(image.left_ns)}",'
    rest = blob.rest[1:-1].decode() + "," if blob.rest else ""
    head = (
        f'{{"id":"{id_text or format_id(image.id)}","tenant":"{tenant}","state":"{state}",'
        f'"state_reason":"{REASON_NAMES[image.reason]}","occurrence":{image.occurrence},'
        f'{due}{remaining}{rest}"revision":{image.revision},'
        f'"created_at":"{format_instant(image.created_ns)}","name":'
    )
    return b"".join(
        (
            head.encode(),
            text_json(blob.name) if blob.name else b'""',
            b',"labels":',
            blob.labels,
            b',"schedule":',
            blob.schedule,
            b',"payload":',
            blob.payload,
            b"}",
        )
    )


def event(
    identity: Identity, record: Event, *, fired_ns: int | None = None, attempt: int = 1
) -> bytes:
    """One CloudEvent. fired_ns: the receipt's, once it is in; a live frame has it in its stamp."""
    if not record.flags & FLAG_IMAGE:
        return _node_event(identity, record)
    image = record.image
    assert image is not None
    blob = unpack_blob(record.blob) if record.blob else NO_BLOB
    id_text = format_id(image.id)
    due = fired = ""
    if record.due_ns:
        due = f'"due":"{format_instant(record.due_ns)}",'
    if fired_ns is not None:
        lateness_us = max(fired_ns - record.due_ns, 0) // 1_000
        fired = f'"fired":"{format_instant(fired_ns)}","lateness_us":{lateness_us},'
    misfire = ""
    time_ns = record.at_ns
    if record.kind in _FIRES:
        misfire = '"misfire":true,' if record.flags & FLAG_MISFIRE else '"misfire":false,'
        time_ns = max(time_ns, record.due_ns)
    head = (
        f'{_head(identity, record, time_ns)}"subject":"{id_text}",'
        f'"dedupekey":"{identity.tenant}/{id_text}/{record.occurrence}","attempt":{attempt},'
        f'"data":{{"timer_id":"{id_text}","occurrence":{record.occurrence},{due}{fired}{misfire}'
        f'"state":"{STATE_NAMES[image.state]}","state_reason":"{REASON_NAMES[image.reason]}",'
        f'"name":'
    )
    tail = [head.encode(), text_json(blob.name), b',"labels":', blob.labels]
    if blob.payload:
        tail += (b',"payload":', blob.payload)
    if record.kind in _TOLD and blob.rest:
        tail += (b",", blob.rest[1:-1])
    tail.append(b"}}")
    return b"".join(tail)


def _head(identity: Identity, record: Event, time_ns: int) -> str:
    return (
        f'{{"specversion":"1.0","id":"{identity.epoch}-{record.seq}",'
        f'"source":"minoots://{identity.node_id}/{identity.tenant}",'
        f'"type":"{_TYPES[record.kind]}","time":"{format_instant(time_ns)}",'
        f'"datacontenttype":"application/json","sequence":"{record.seq:020}",'
        f'"epoch":{identity.epoch},"tenant":"{identity.tenant}",'
    )


def _node_event(identity: Identity, record: Event) -> bytes:
    return (_head(identity, record, record.at_ns) + '"data":').encode() + record.blob + b"}"


def topic(identity: Identity, record: Event) -> bytes:
    """The topic of an event."""
    start = f"t/{identity.tenant}/e/{KIND_NAMES[record.kind]}/"
    if record.image is None:
        return f"{start}/".encode()
    blob = unpack_blob(record.blob) if record.blob else NO_BLOB
    return f"{start}{quote(blob.name.decode(), safe='')}/{format_id(record.image.id)}".encode()
