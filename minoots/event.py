"""Events as a program reads them: one frozen value for live frames and for replayed JSON alike.

A live frame says in its stamp when the event left; a replayed one says so in its data. `Event`
hides the difference, and keeps the JSON as it came in `raw`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from minoots.wire.bodies import EventData
from minoots.wire.frames import STAMP_BYTES, short_type
from minoots.wire.problems import ProtocolError
from minoots.wire.times import US, format_instant, parse_instant

_STAMP = struct.Struct(">4q")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Envelope(msgspec.Struct):
    """The members of a CloudEvent that an Event is made of; the others stay in `raw`."""

    id: str
    type: str
    time: str
    sequence: str
    epoch: int
    dedupekey: str = ""
    attempt: int = 1
    data: msgspec.Raw = msgspec.Raw(b"null")


_envelope = msgspec.json.Decoder(_Envelope)
_event_data = msgspec.json.Decoder(EventData)
_anything = msgspec.json.Decoder()


def as_datetime(at_ns: int) -> datetime:
    """An aware UTC datetime; what is below a microsecond is cut off."""
    return _EPOCH + timedelta(microseconds=at_ns // US)


@dataclass(frozen=True, slots=True)
class Stamp:
    """The second frame of a live event: four integers that show a loss before parsing.

    fired_ns is 0 where nothing fired; the ordinals count from 1 at each start of the node.
    """

    seq: int
    fired_ns: int
    ordinal: int
    ordinal_of_type: int

    @staticmethod
    def read(frame: bytes) -> Stamp:
        """Decode 32 bytes; raises ProtocolError on any other length."""
        if len(frame) != STAMP_BYTES:
            raise ProtocolError(f"stamp is {len(frame)} bytes; a live event has {STAMP_BYTES}")
        return Stamp(*_STAMP.unpack(frame))

    def pack(self) -> bytes:
        """The 32 bytes of this stamp."""
        return _STAMP.pack(self.seq, self.fired_ns, self.ordinal, self.ordinal_of_type)


@dataclass(frozen=True, slots=True)
class Event:
    """One decision of the node about a timer.

    type: short, `timer.expired`; `snapshot` for a timer that a watch found at its start.
    (epoch, seq): its place in the log. due_ns, fired_ns: ns since the epoch, None where there is
    none; on replay `fired_ns` is None until the node has its receipt. lateness_us: fired - due,
    never negative. dedupe_key: the same at every redelivery. raw: the CloudEvent's JSON.
    """

    type: str
    seq: int
    epoch: int
    id: str
    time: str
    timer_id: str
    name: str
    labels: dict[str, str]
    occurrence: int
    due_ns: int | None
    fired_ns: int | None
    lateness_us: int | None
    misfire: bool
    state: str
    payload: Any
    dedupe_key: str
    attempt: int
    raw: bytes = field(repr=False)

    @property
    def due(self) -> datetime | None:
        """The due instant as an aware datetime (microseconds); `due_ns` is exact."""
        return None if self.due_ns is None else as_datetime(self.due_ns)

    @property
    def fired(self) -> datetime | None:
        """The instant at which it left the node, as an aware datetime."""
        return None if self.fired_ns is None else as_datetime(self.fired_ns)

    @property
    def data(self) -> Any:
        """The event's whole `data`, decoded at each call: for types with members of their own."""
        return _anything.decode(_envelope.decode(self.raw).data)

    def cloud_event(self) -> dict[str, Any]:
        """The CloudEvent as a dict, with `fired` and `lateness_us` also where a stamp told them."""
        event: dict[str, Any] = _anything.decode(self.raw)
        if self.fired_ns is not None and isinstance(event.get("data"), dict):
            event["data"]["fired"] = format_instant(self.fired_ns)
            event["data"]["lateness_us"] = self.lateness_us
        return event


def read_event(raw: bytes, stamp: Stamp | None = None) -> Event:
    """An Event of a CloudEvent's JSON; `stamp` is that of a live frame. Raises ProtocolError."""
    try:
        envelope = _envelope.decode(raw)
        seq = int(envelope.sequence)
        data = _read_data(envelope.data)
        due_ns = parse_instant(data.due) if data.due else None
        fired_ns = parse_instant(data.fired) if data.fired else None
    except (msgspec.MsgspecError, ValueError) as error:
        raise ProtocolError(f"event cannot be read: {error}") from error
    lateness_us = data.lateness_us
    if stamp is not None and stamp.fired_ns:
        fired_ns = stamp.fired_ns
        if due_ns is not None:
            lateness_us = max(0, fired_ns - due_ns) // US
    return Event(
        type=short_type(envelope.type),
        seq=seq,
        epoch=envelope.epoch,
        id=envelope.id,
        time=envelope.time,
        timer_id=data.timer_id,
        name=data.name,
        labels=data.labels,
        occurrence=data.occurrence,
        due_ns=due_ns,
        fired_ns=fired_ns,
        lateness_us=lateness_us,
        misfire=data.misfire,
        state=data.state,
        payload=data.payload,
        dedupe_key=envelope.dedupekey,
        attempt=envelope.attempt,
        raw=bytes(raw),
    )


def _read_data(raw: msgspec.Raw) -> EventData:
    # Events about the node have a data of another shape; they are shown by `Event.data`.
    try:
        return _event_data.decode(raw)
    except msgspec.ValidationError:
        return EventData()
