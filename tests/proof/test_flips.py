"""The reading that bit flips rest on: it finds nothing where nothing is, and what is planted."""

from __future__ import annotations

from pathlib import Path

from tests.proof import flips
from tests.proof.flips import LONG_H, Bench, make


def test_an_undamaged_store_is_read_without_a_fault(tmp_path: Path) -> None:
    for hours in (LONG_H, 4):
        store = make(tmp_path / f"{hours}", 7, 60, hours)
        reading = Bench(tmp_path / f"bench{hours}", store).read()
        assert reading is not None
        assert reading.wrong == flips._errors(reading) == []
        assert store.whole == (hours == LONG_H)


def test_a_changed_event_with_a_good_checksum_is_found() -> None:
    assert "event" in flips.planted(5)
