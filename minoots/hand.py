"""What one worker has in hand: messages that a consumer delivered to it and that are not settled.

Pure: it is given the time, and says how many more to ask for, which message comes next, and which
deliveries need `consumer.progress` so that they do not come again while they are worked on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from minoots.consumer_verbs import Delivered
from minoots.wire.bodies import PAGE_MAX

PROGRESS_SHARE = 1 / 3  # of what an acknowledgement may take: then it is asked for anew
PREFETCH_MAX = 65_536


@dataclass(slots=True, eq=False)
class InHand:
    """A message that is not settled. renewed_s: since when its acknowledgement is waited for.
    given_s: when it was given to be worked on, None while it waits here. lost: it was delivered
    again since, or settled."""

    delivered: Delivered
    renewed_s: float
    given_s: float | None = None
    lost: bool = False


class Hand:
    """Up to `prefetch` messages, in the order in which they came.

    waits_s: what an acknowledgement may take after the first, second ... delivery. max_deliver: of
    the consumer, 0 for no limit. keep_s: how long one is kept by progress while it is worked on.
    Raises ValueError.
    """

    def __init__(
        self, prefetch: int, waits_s: tuple[float, ...], *, max_deliver: int, keep_s: float
    ) -> None:
        if not 1 <= prefetch <= PREFETCH_MAX:
            raise ValueError(f"prefetch is {prefetch}; the range is 1 to {PREFETCH_MAX}")
        self._prefetch = prefetch
        self._waits_s = waits_s
        self._max_deliver = max_deliver
        self._keep_s = keep_s
        self._held: dict[str, InHand] = {}
        self._buffer: deque[InHand] = deque()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def wanted(self) -> int:
        """How many messages to ask for now: few requests for many, but none of them late."""
        credit = self._prefetch - len(self._held)
        if self._buffer and credit * 2 < self._prefetch:
            return 0
        return max(0, min(credit, PAGE_MAX))

    @property
    def tick_s(self) -> float:
        """How often to look at `due`."""
        return min(max(min(self._waits_s) * PROGRESS_SHARE / 2, 0.002), 5.0)

    def wait_s(self, attempt: int) -> float:
        """What the acknowledgement of a delivery with this number, from 1, may take."""
        return self._waits_s[min(attempt, len(self._waits_s)) - 1]

    def is_last(self, delivered: Delivered) -> bool:
        """Whether it will be dead-lettered rather than delivered again."""
        return 0 < self._max_deliver <= delivered.attempt

    def take(self, messages: Iterable[Delivered], now_s: float) -> None:
        """Hold what a pull brought."""
        for one in messages:
            held = InHand(one, now_s)
            self._held[one.delivery] = held
            self._buffer.append(held)

    def give(self, now_s: float) -> InHand | None:
        """The next message to be worked on, if there is one."""
        while self._buffer:
            held = self._buffer.popleft()
            if not held.lost:
                held.given_s = now_s
                return held
        return None

    def let_go(self, delivery: str) -> bool:
        """It is settled, or no business of ours any more; whether it was held."""
        return self._held.pop(delivery, None) is not None

    def lose(self, deliveries: Iterable[str]) -> None:
        """These were delivered again since: who has them now will settle them."""
        for delivery in deliveries:
            held = self._held.pop(delivery, None)
            if held is not None:
                held.lost = True

    def due(self, now_s: float) -> list[str]:
        """Deliveries to ask progress for now. One that is worked on for longer than `keep_s` is
        kept no more: it comes again, and is no longer counted here."""
        found = []
        for delivery, held in list(self._held.items()):
            if held.given_s is not None and now_s - held.given_s > self._keep_s:
                del self._held[delivery]
            elif now_s - held.renewed_s >= self.wait_s(held.delivered.attempt) * PROGRESS_SHARE:
                held.renewed_s = now_s
                found.append(delivery)
        return found

    def give_back(self) -> list[str]:
        """Let go of what is not worked on yet, so that others get it; the deliveries.

        Not those that would be dead-lettered by that: they are still to be worked on.
        """
        back = [held for held in self._buffer if not held.lost and not self.is_last(held.delivered)]
        gone = {held.delivered.delivery for held in back}
        self._buffer = deque(held for held in self._buffer if held.delivered.delivery not in gone)
        for delivery in gone:
            del self._held[delivery]
        return [held.delivered.delivery for held in back]

    def rest(self) -> tuple[list[str], list[str]]:
        """Let go of everything: deliveries that waited here, and those that were worked on."""
        waited = [key for key, held in self._held.items() if held.given_s is None]
        worked = [key for key, held in self._held.items() if held.given_s is not None]
        self._held.clear()
        self._buffer.clear()
        return waited, worked
