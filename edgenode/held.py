"""What is held: timers that were overdue when the node started, and what was ordered about them.

A timer is held while its due lies before a bound that stands for the instant of that start, on its
own scale. So the whole set is one note in the store, of any size, and a client that moves a timer
beyond the bound has taken it out. Pure.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from engine.record import FOR_EVER_NS, Note, unpack_note
from minoots.wire.bodies import TimerFilter

HELD_KEY = b"\x00minoots.overdue"  # no digest of a client's key: those are random
NOTHING = (0, 0)

Word = Literal["fire", "skip"]


class Order(msgspec.Struct, omit_defaults=True):
    """What is to be done with those that match, fires a second (0: as they can), and how many they
    were when it was given."""

    word: Word
    filter: TimerFilter
    rate: float = 0.0
    count: int = 0


class Held(msgspec.Struct, omit_defaults=True):
    """The bounds by scale (steady, wall; 0: nothing is held), why, since when, and the orders that
    are not done. epoch: of the log at the last start. count: held at that start; fired, skipped:
    since then."""

    epoch: int = 0
    before_ns: tuple[int, int] = NOTHING
    why: str = ""
    since_ns: int = 0
    count: int = 0
    fired: int = 0
    skipped: int = 0
    orders: list[Order] = []

    @property
    def is_on(self) -> bool:
        """Whether anything may be held."""
        return self.before_ns != NOTHING

    def end(self) -> None:
        """Nothing is held any more."""
        self.before_ns, self.why, self.count = NOTHING, "", 0
        self.orders = []

    def note(self) -> Note:
        """For the store."""
        return Note(HELD_KEY, bytes(16), FOR_EVER_NS, 0, 0, _encode(self))


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Held).decode


def held_of(data: bytes | None) -> Held:
    """What the newest note says; nothing is held without one. Raises StoreCorrupt."""
    return Held() if data is None else _decode(unpack_note(data).reply)
