"""How many timers are due in each slot of a window: where a herd finds room.

A slot is a 64th of the window, on a grid of UTC, so that windows of one length share their counts.
They are taken from the due index, 64 slots at once (a chunk), when they are first asked for; what
is placed by them counts at once, everything else when the counts are taken anew, KEPT_NS later. So
a create that spreads nothing pays nothing, and CHUNKS_MAX bounds the memory (some 300 KB).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.record import Scale

if TYPE_CHECKING:
    from edgenode.ledger import Ledger

SLOTS = 64
KEPT_NS = 5_000_000_000
CHUNKS_MAX = 512
PAGE_ENTRIES = 8_192  # of the due index, looked at in one go: about 2 ms
PLACE_BITS = 16

Place = tuple[int, int]  # the width of a slot (ns), and the number of a chunk


@dataclass(slots=True)
class _Chunk:
    """taken_ns: steady, when it was counted."""

    taken_ns: int
    counts: list[int] = field(default_factory=lambda: [0] * SLOTS)


class Occupancy:
    """The counts that are known. One thread.

    missing: chunks that were asked for in vain since `begin`.
    """

    def __init__(self) -> None:
        self.missing: dict[Place, None] = {}
        self._chunks: OrderedDict[Place, _Chunk] = OrderedDict()
        self._placed: list[tuple[_Chunk, int]] = []

    def begin(self) -> None:
        """A new request: what was placed so far stays."""
        self.missing.clear()
        self._placed.clear()

    def undo(self) -> None:
        """Nothing came of what was placed since `begin`."""
        for chunk, slot in self._placed:
            chunk.counts[slot] -= 1
        self.begin()

    def place(self, due_ns: int, window_ns: int, now_ns: int) -> int:
        """How much later than `due_ns` (UTC) there is most room: in the first of the slots of the
        window with the fewest timers; in it, between those. now_ns: steady. 10 us."""
        width_ns = window_ns // SLOTS
        if width_ns == 0:
            return 0
        first = -(-due_ns // width_ns)
        last = (due_ns + window_ns) // width_ns - 1
        best, found, fewest = first, None, -1
        for at in range(first // SLOTS, last // SLOTS + 1):
            chunk = self._chunk((width_ns, at), now_ns)
            base = at * SLOTS
            for slot in range(max(first, base), min(last, base + SLOTS - 1) + 1):
                count = chunk.counts[slot - base] if chunk is not None else 0
                if fewest < 0 or count < fewest:
                    best, found, fewest = slot, chunk, count
        if found is not None:
            found.counts[best % SLOTS] += 1
            self._placed.append((found, best % SLOTS))
        return best * width_ns + _between(max(fewest, 0), width_ns) - due_ns

    def _chunk(self, place: Place, now_ns: int) -> _Chunk | None:
        chunk = self._chunks.get(place)
        if chunk is None or now_ns - chunk.taken_ns > KEPT_NS:
            self.missing[place] = None
            return None
        self._chunks.move_to_end(place)
        return chunk

    def take(self, ledger: Ledger, missing: list[Place]) -> Generator[int, None, None]:
        """Count these chunks, a page of the due index at a time."""
        yield ledger.next_seq - 1  # the index must hold all that was asked before
        for width_ns, at in missing:
            chunk = _Chunk(ledger.now.steady_ns)
            for scale in Scale:
                yield from _count(ledger, chunk.counts, scale, at * SLOTS * width_ns, width_ns)
            self._chunks[width_ns, at] = chunk
            if len(self._chunks) > CHUNKS_MAX:
                self._chunks.popitem(last=False)


def _count(
    ledger: Ledger, counts: list[int], scale: Scale, from_ns: int, width_ns: int
) -> Generator[int, None, None]:
    shift_ns = ledger.now.shift_ns if scale == Scale.STEADY else 0
    from_ns -= shift_ns
    after = b""
    while True:
        _, dues, after = ledger.tables.due(
            scale, from_ns, from_ns + SLOTS * width_ns, after, PAGE_ENTRIES
        )
        for due_ns in memoryview(dues).cast("q"):
            counts[(due_ns - from_ns) // width_ns] += 1
        if not after:
            return
        yield 0


def _between(count: int, width_ns: int) -> int:
    """The place of the count-th timer in a slot: halves, quarters, eighths (van der Corput)."""
    turned = int(f"{count % (1 << PLACE_BITS):0{PLACE_BITS}b}"[::-1], 2)
    return turned * width_ns >> PLACE_BITS
