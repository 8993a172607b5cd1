"""The dead letters of one consumer: what was delivered too often, or given up.

Each has a copy of its event, since the log forgets what nobody waits for. The list of them is kept
in pieces of PIECE entries, so that one more costs one piece and one copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

PIECE = 128
REASON_CHARS_MAX = 200


class Dead(msgspec.Struct, array_like=True, gc=False):
    """One dead letter. Stored: members are only ever added at the end."""

    seq: int
    attempts: int
    reason: str
    at_ns: int


@dataclass(slots=True)
class DeadLetters:
    """See the module. changed: the pieces that are to be stored anew."""

    pieces: dict[int, dict[int, Dead]] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)
    _piece_of: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._piece_of)

    def add(self, dead: Dead) -> None:
        """Take one more; one with the same seq is replaced."""
        number = self._piece_of.get(dead.seq, -1)
        if number < 0:
            number = max(self.pieces, default=0)
            if len(self.pieces.get(number, ())) >= PIECE:
                number += 1
        self._keep(number, dead)
        self.changed.add(number)

    def restore(self, number: int, piece: list[Dead]) -> None:
        """Take a piece as it was stored."""
        for dead in piece:
            self._keep(number, dead)

    def _keep(self, number: int, dead: Dead) -> None:
        self.pieces.setdefault(number, {})[dead.seq] = dead
        self._piece_of[dead.seq] = number

    def get(self, seq: int) -> Dead | None:
        """The dead letter of an event."""
        number = self._piece_of.get(seq)
        return None if number is None else self.pieces[number][seq]

    def remove(self, seq: int) -> None:
        """Forget one."""
        number = self._piece_of.pop(seq)
        piece = self.pieces[number]
        del piece[seq]
        if not piece:
            del self.pieces[number]
        self.changed.add(number)

    def after(self, seq: int) -> Iterator[Dead]:
        """Those of later events, in order."""
        for found in sorted(at for at in self._piece_of if at > seq):
            yield self.pieces[self._piece_of[found]][found]
