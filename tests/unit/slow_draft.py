"""The record of a new timer by way of objects: the oracle of `edgenode/_draft.pyx`."""

from __future__ import annotations

import msgspec

from edgenode.config import LimitsSection
from edgenode.definitions import DECODE_ERRORS, plan
from engine.clock import Now
from engine.record import Image, Kind, Scale, pack_event
from engine.timer import Reason, State
from minoots.wire.definition import Definition
from minoots.wire.problems import Refused

_definition = msgspec.json.Decoder(Definition)


def record(body: bytes, now: Now, limits: LimitsSection, id: bytes, seq: int) -> bytes | None:
    """The record of the definition `body`, written at `now`; None if it is refused."""
    try:
        made = plan(_definition.decode(body), now, limits)
    except (*DECODE_ERRORS, Refused):
        return None
    image = Image(
        id,
        seq,
        made.first.due_ns,
        now.utc_ns,
        0,
        made.name_hash,
        made.first.number,
        1,
        0,
        State.SCHEDULED,
        made.scale,
        Reason.NONE,
    )
    shift_ns = now.shift_ns if made.scale == Scale.STEADY else 0
    due_ns = made.first.due_ns + shift_ns
    return pack_event(
        seq, Kind.SCHEDULED, 0, now.utc_ns, 0, due_ns, image.occurrence, image, made.blob
    )
