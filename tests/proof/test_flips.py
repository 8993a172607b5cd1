"""Bit flips where LMDB has no checksum and ours does not reach: the pages above the rows."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proof import flips
from tests.proof.flips import LONG_H, Bench, make
from tests.proof.pool import Board, limit, run
from tests.proof.powercut import NAMES, PAGE

FLIPS = 400
BRANCH = 1  # the flag of a page that holds keys and page numbers, no rows
PAGE_HEAD = struct.Struct("<QHHHH")  # number, pad, flags, lower, upper


def borders(data: bytes) -> Iterator[int]:
    """The offsets of the bytes of the keys in all branch pages."""
    for start in range(0, len(data), PAGE):
        number, _, flags, lower, _ = PAGE_HEAD.unpack_from(data, start)
        if flags != BRANCH or number != start // PAGE:
            continue
        for at in range(18, lower, 2):  # the first node has no key
            (node,) = struct.unpack_from("<H", data, start + at)
            (size,) = struct.unpack_from("<H", data, start + node + 6)
            yield from range(start + node + 8, start + node + 8 + size)


@pytest.mark.parametrize("file", [0, 1], ids=NAMES)
def test_no_damaged_border_is_missed(tmp_path: Path, file: int) -> None:
    """A search that a damaged border leads into the wrong page finds that out there."""
    store = make(tmp_path / "made", 11, 60, LONG_H)
    bits = [8 * at + bit for at in list(borders(store.files[file]))[::3] for bit in (0, 5, 7)]

    def work(i: int, board: Board) -> None:
        bench = Bench(tmp_path / f"bench{board['at']}", store)
        for number, bit in enumerate(bits[board["at"] :], board["at"] + 1):
            board["at"] = number
            limit()
            bench.flip(file, bit)
            reading = bench.read()
            bench.flip(file, bit)
            board["harmful"] += reading is None or bool(flips._errors(reading))
            if reading is not None and reading.wrong:
                board["wrong"] += 1
                board.say(f"bit {bit}: {reading.wrong[:3]}")

    board = Board("harmful", "wrong")
    run(work, [board])
    assert board["wrong"] == 0, board.note
    assert board["at"] == len(bits) > 20
    assert board["harmful"] > 5, "no border that is in use was hit"


@pytest.mark.parametrize("file", [0, 1], ids=NAMES)
def test_nothing_that_leads_to_records_is_damaged_unnoticed(tmp_path: Path, file: int) -> None:
    """Heads of the file, lists of nodes, page numbers, free pages: what hides records, or shows old
    ones, is found when the store is opened or when a page is read."""
    store = make(tmp_path / "made", 5, 60, LONG_H)
    draw = random.Random(file)
    bits = [8 * draw.choice(store.paths[file]) + draw.randrange(8) for _ in range(FLIPS)]

    def work(i: int, board: Board) -> None:
        bench = Bench(tmp_path / f"bench{board['at']}", store)
        for number, bit in enumerate(bits[board["at"] :], board["at"] + 1):
            board["at"] = number
            limit()
            bench.flip(file, bit)
            reading = bench.read()
            bench.flip(file, bit)
            board["found"] += reading is None or bool(flips._errors(reading))
            if reading is not None and reading.wrong:
                board["wrong"] += 1
                board.say(f"bit {bit}: {reading.wrong[:3]}", over=True)

    board = Board("found", "wrong")
    run(work, [board])
    assert board["wrong"] == 0, board.note
    assert board["at"] == FLIPS
    assert board["found"] > FLIPS // 2


def test_an_undamaged_store_is_read_without_a_fault(tmp_path: Path) -> None:
    for hours in (LONG_H, 4):
        store = make(tmp_path / f"{hours}", 7, 60, hours)
        reading = Bench(tmp_path / f"bench{hours}", store).read()
        assert reading is not None
        assert reading.wrong == flips._errors(reading) == []
        assert store.whole == (hours == LONG_H)


def test_a_changed_event_with_a_good_checksum_is_found() -> None:
    assert "event" in flips.planted(5)
