"""What the micro benches work on: timers as a real one is, and its records."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.record import Image, Kind, name_hash, pack_blob, pack_event

HOUR_TICKS = 3_600_000
NAME = b"invoice-17"
BLOB = pack_blob(
    b"",
    NAME,
    b'{"region":"eu-west","team":"billing"}',
    b'{"kind":"after","duration":"6h"}',
    b'{"invoice":1000017,"action":"remind","attempt":1}',
    b"",
)
HASH = name_hash(NAME)
NOW_NS = 1_800_000_000_123_456_789


def id_of(number: int) -> bytes:
    """As a node makes them: they grow with time."""
    return (NOW_NS // 1_000_000).to_bytes(6, "big") + number.to_bytes(10, "big")


def image(seq: int, state: int = 1) -> Image:
    """A timer as an event leaves it."""
    return Image(id_of(seq), seq, NOW_NS + seq, NOW_NS, 0, HASH, 1, 1, 0, state, 0, 0)


def scheduled(seq: int) -> bytes:
    """The record that makes a timer."""
    return pack_event(seq, Kind.SCHEDULED, 0, NOW_NS, 0, NOW_NS + seq, 1, image(seq), BLOB)


def expired(seq: int) -> bytes:
    """The record of its fire."""
    return pack_event(seq, Kind.EXPIRED, 0, NOW_NS, seq, NOW_NS, 1, image(seq, 3), BLOB)


def due_ticks(count: int) -> NDArray[np.uint64]:
    """Spread over an hour, in no order."""
    rng = np.random.default_rng(1)
    return rng.integers(1, HOUR_TICKS, count).astype(np.uint64)
