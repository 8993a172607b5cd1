"""A fuzzer of our own: it mutates what it has, and keeps what takes a way not taken before.

Where the extensions are built with `-fsanitize-coverage=trace-pc` it sees the branches of C; where
they are not it is blind and keeps its seeds. Python's branches are atheris's business.
"""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Callable, Iterator

SIZE_MAX = 4_096
KEPT_MAX = 2_000


def feedback() -> Callable[[], int] | None:
    """What tells of new ways through C, if that is loaded."""
    path = os.environ.get("MINOOTS_COVERAGE")
    if not path:
        return None
    asked = ctypes.CDLL(path).coverage_new
    asked.restype, asked.argtypes = ctypes.c_int, []
    return asked  # type: ignore[no-any-return]


class Mutator:
    """Makes inputs out of those that are kept."""

    def __init__(self, seeds: list[bytes], words: tuple[bytes, ...], seed: int) -> None:
        self.kept = [data[:SIZE_MAX] for data in seeds] or [b""]
        self._words = words or (b"\0", b"\xff")
        self._random = random.Random(seed)
        self._changes = (self._flip, self._put, self._insert, self._cut, self._word, self._twice)

    def keep(self, data: bytes) -> None:
        """It took a new way."""
        if len(self.kept) < KEPT_MAX:
            self.kept.append(data)

    def __iter__(self) -> Iterator[bytes]:
        yield from list(self.kept)
        draw = self._random
        while True:
            data = bytearray(draw.choice(self.kept))
            if draw.random() < 0.1:
                other = draw.choice(self.kept)
                data = (
                    data[: draw.randrange(len(data) + 1)] + other[draw.randrange(len(other) + 1) :]
                )
            for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
                draw.choice(self._changes)(data)
            yield bytes(data[:SIZE_MAX])

    def _at(self, data: bytearray) -> int:
        return self._random.randrange(len(data) + 1)

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)

    def _put(self, data: bytearray) -> None:
        if data:
            data[self._random.randrange(len(data))] = self._random.choice(
                b"\0\x01\x7f\x80\xff M0Z9P"
            )

    def _insert(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = self._random.randbytes(self._random.choice((1, 1, 2, 8)))

    def _cut(self, data: bytearray) -> None:
        at = self._at(data)
        del data[at : at + self._random.choice((1, 1, 4, 64))]

    def _word(self, data: bytearray) -> None:
        at, word = self._at(data), self._random.choice(self._words)
        over = len(word) if self._random.random() < 0.5 else 0
        data[at : at + over] = word

    def _twice(self, data: bytearray) -> None:
        at, size = self._at(data), self._random.choice((2, 16, 200))
        data[at:at] = data[at : at + size] * self._random.choice((1, 1, 4))
