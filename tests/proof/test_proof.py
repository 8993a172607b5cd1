"""The regime itself: every part of it once, in small; the page that it writes; what runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("entry", run.PARTS, ids=[entry.name for entry in run.PARTS])
def test_a_part_is_a_program_too(entry: run.Entry) -> None:
    """The command that repeats it, as docs/evidence.md has it."""
    words = ["--seed", "20262", "--seconds", f"{run.SMALL_PART_S:.0f}"]
    ran = subprocess.run(
        [sys.executable, "-m", entry.part.__module__, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "planted and caught" in ran.stdout or "skipped" in ran.stdout


def test_the_page_is_what_the_results_say() -> None:
    assert evidence.PAGE.read_text() == evidence.page(), "python -m tests.proof.evidence"


def test_the_page_has_a_row_for_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    first = Outcome("cuts", 7, "again 7", {"cuts": 1500.0, "latest fire ms": 3}, "a lie")
    second = Outcome("cuts", 8, "again 8", {"cuts": 20, "latest fire ms": 2}, "a lie", ["LOST it"])
    for outcome in (first, second, Outcome("fuzz", 9, "", skipped="there is no fuzzer")):
        found = json.loads(evidence.keep(outcome.seed, "make proof", [outcome]).read_text())
        found["at"], found["machine"]["commit"] = "2026-01-02T03:04:05Z", "abc"
        (tmp_path / f"{outcome.seed}.json").write_text(json.dumps(found))
        for path in tmp_path.glob("2*.json"):
            path.unlink()
    text = evidence.page()
    assert "| 2026-01-02 | abc | 1,500 | 3 | 0 | `again 7` |" in text
    assert "| 2026-01-02 | abc | 20 | 2 | 1 | `again 8` |" in text
    assert "| **all** |  | 1,520 | 3 | 1 | |" in text
    assert "Fault: LOST it" in text
    assert "Skipped on 2026-01-02: there is no fuzzer" in text


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
