"""Time zones come from the system, from the package, or from one file; all of them say the same."""

from __future__ import annotations

import hashlib
import sys
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import pytest

from minoots.wire import zones

PACKAGE = Path(str(files("tzdata")))
SUMMER = datetime(2027, 7, 1, 12, tzinfo=UTC)


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Neither the system nor the package has zones; where a packed file is looked for."""
    monkeypatch.setattr(zones, "TZPATH", ())
    monkeypatch.setattr(zones, "files", lambda package: tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tzdata"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tzdata", None)
    before = zoneinfo.TZPATH
    zoneinfo.reset_tzpath(())
    zoneinfo.ZoneInfo.clear_cache()
    zones._packed.cache_clear()
    yield tmp_path
    zoneinfo.reset_tzpath(before)
    zoneinfo.ZoneInfo.clear_cache()
    zones._packed.cache_clear()


def test_they_are_found_and_have_a_release() -> None:
    assert zones.zone("Europe/Berlin").utcoffset(SUMMER.replace(tzinfo=None)).seconds == 7_200  # type: ignore[union-attr]
    assert zones.release()


@pytest.mark.parametrize("name", ["", "Nowhere/None", "../../etc/passwd", "Europe", "UTC\0", "é"])
def test_what_is_none_is_told(name: str) -> None:
    with pytest.raises(zoneinfo.ZoneInfoNotFoundError):
        zones.zone(name)


def test_without_any_there_are_none(nothing: Path) -> None:
    assert zones.release() == ""  # there is no package at all
    with pytest.raises(zoneinfo.ZoneInfoNotFoundError):
        zones.zone("Europe/Berlin")


def test_the_packed_ones_are_those_of_the_package(nothing: Path) -> None:
    assert zones.pack(PACKAGE, nothing / zones.PACKED) > 590
    zone = zones.zone("America/New_York")
    assert zone.key == "America/New_York"
    assert SUMMER.astimezone(zone).isoformat() == "2027-07-01T08:00:00-04:00"
    assert zones.zone("America/New_York") is zone
    with pytest.raises(zoneinfo.ZoneInfoNotFoundError):
        zones.zone("Nowhere/None")


def test_they_are_packed_the_same_each_time(tmp_path: Path) -> None:
    sums = set()
    for name in "ab":
        zones.pack(PACKAGE, tmp_path / name)
        sums.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(sums) == 1
