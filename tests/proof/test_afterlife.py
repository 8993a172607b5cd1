"""The life after a power cut: a good one has no fault, and what is lost or doubled is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine.record import IMAGE, ROW_HEAD_BYTES
from tests.proof import afterlife, recorder, truth

STEPS = 30


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording")
    recorder.record(3, STEPS, folder, lambda what, number: None)
    return folder


def live_on(made: Path, spoil: str, tmp_path: Path) -> list[str]:
    """The faults of a life on a copy of the store, held against a truth that is spoilt."""
    shutil.copytree(made / "store", tmp_path / "store")
    batches = recorder.load(made).batches
    told = truth.history(batches)
    at = told.standings[-1]
    id, row = next(iter(at.rows.items()))
    if spoil == "lost":  # a timer that the store does not have
        image = IMAGE.unpack_from(row, ROW_HEAD_BYTES)
        other = bytes(16)
        at.rows[other] = truth.pack_row(truth.Image._make((other, *image[1:])), row[80:])
    if spoil == "zombie":  # one that it has and should not
        del at.rows[id]
    if spoil == "unreleased":
        at.unreleased.append(1)
    return afterlife.faults(tmp_path / "store", told, batches[-1].at_ns)


def test_a_good_life_has_no_fault(made: Path, tmp_path: Path) -> None:
    assert live_on(made, "", tmp_path) == []


@pytest.mark.parametrize(
    ("spoil", "finds"),
    [("lost", "LOST"), ("zombie", "ZOMBIE"), ("unreleased", "event 1 left 0 times, should 1")],
)
def test_what_is_wrong_is_told(made: Path, spoil: str, finds: str, tmp_path: Path) -> None:
    found = live_on(made, spoil, tmp_path)
    assert len(found) == 1
    assert finds in found[0]
