"""Herd shaping: where in its window a spread timer is due."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from typing import TypeVar

from edgenode.ledger import Ledger
from edgenode.spreading import Choose

T = TypeVar("T")

LOOKS_MAX = 3  # at the counts: time goes on while they are taken, and the window with it


def chooser(ledger: Ledger) -> Choose:
    """What `definitions.plan` spreads by."""

    def choose(mode: str, text: str, due_utc_ns: int, window_ns: int) -> int:
        if mode == "emptiest":
            return ledger.occupancy.place(due_utc_ns, window_ns, ledger.now.steady_ns)
        if mode == "hashed":
            return hashed(text, window_ns)
        return ledger.random_bits(64) * window_ns >> 64

    return choose


def hashed(text: str, window_ns: int) -> int:
    """A place in the window that follows from the text alone."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") * window_ns >> 64


def once_counted(ledger: Ledger, decide: Callable[[], T]) -> Generator[int, None, T]:
    """What `decide` says once the counts that it asks for are there; it writes nothing."""
    occupancy = ledger.occupancy
    occupancy.begin()
    made = decide()
    for _ in range(LOOKS_MAX):
        missing = list(occupancy.missing)
        if not missing:
            break
        occupancy.undo()
        yield from occupancy.take(ledger, missing)
        occupancy.begin()
        made = decide()
    return made
