"""The regime itself: every part of it once, in small; the page that it writes; what runs it."""

from __future__ import annotations

import os
import signal

import pytest

from tests.proof import evidence, run
from tests.proof.outcome import Outcome
from tests.proof.pool import Board
from tests.proof.pool import run as run_pool


@pytest.mark.parametrize("entry", run.PARTS, ids=[entry.name for entry in run.PARTS])
def test_a_part_in_small(entry: run.Entry, capsys: pytest.CaptureFixture[str]) -> None:
    """Each plants its bug, catches it, and finds nothing else."""
    with capsys.disabled():
        outcome = run.go(entry, 20261, run.SMALL_PART_S)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert outcome.planted
    assert not outcome.faults
    assert sum(outcome.counts.values()) > 0
    assert str(outcome.seed) in outcome.command


def test_the_page_is_what_the_results_say() -> None:
    assert evidence.PAGE.read_text() == evidence.page(), "python -m tests.proof.evidence"


def test_a_fault_ends_the_run_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(seed: int, seconds: float) -> Outcome:
        return Outcome("bad", seed, "again", {"tries": 1}, "planted", ["LOST it"])

    monkeypatch.setattr(run, "PARTS", [run.Entry("bad", 1, bad)])
    assert run.main(["--small"]) == 1


def test_a_worker_that_is_ended_goes_on_behind_what_ended_it() -> None:
    def work(_: int, board: Board) -> None:
        for number in range(board["at"] + 1, 11):
            board["at"] = number
            if number in (3, 7):
                os.kill(os.getpid(), signal.SIGBUS if number == 3 else signal.SIGALRM)
            board["good"] += 1

    boards = [Board("good"), Board("good")]
    run_pool(work, boards)
    for board in boards:
        assert (board["at"], board["good"], board["died"], board["hung"]) == (10, 8, 1, 1)
        assert board.note == "number 3 ended the process: SIGBUS"


def test_a_worker_that_fails_fails_the_run() -> None:
    def work(_: int, board: Board) -> None:
        raise ValueError("a fault of the work")

    with pytest.raises(AssertionError, match="a fault of the work"):
        run_pool(work, [Board()])
