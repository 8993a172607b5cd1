"""Counting instructions: what is read, what is a regression, and when it is skipped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench import instructions

CALLGRIND = "==12== \n==12== Events    : Ir\n==12== Collected : 1234567\n"
PERF = "some text\n987654,,instructions:u,1000,100.00,,\n"


def result(turn: float, tool: str = "callgrind", python: str = "3.11.7") -> dict[str, Any]:
    machine = {"python": python, "commit": "abc"}
    return {"machine": machine, "tool": tool, "per_operation": {"turn": turn, "wheel": 10.0}}


def test_what_the_tools_print_is_read() -> None:
    assert instructions.counted("callgrind", CALLGRIND) == 1_234_567
    assert instructions.counted("perf", PERF) == 987_654
    assert instructions.counted("perf", "<not supported>,,instructions:u,0,100.00,,\n") is None
    assert instructions.counted("callgrind", "valgrind: failed to start") is None


def test_more_than_the_tolerance_is_a_regression() -> None:
    known = result(1_000)
    assert instructions.regressions(result(1_099), known) == []
    assert instructions.regressions(result(500), known) == []
    (fault,) = instructions.regressions(result(1_200), known)
    assert "turn takes 1,200 instructions an operation, +20%; it took 1,000 at commit abc" in fault


def test_other_tools_and_pythons_are_not_compared() -> None:
    known = result(1_000)
    assert instructions.regressions(result(9_000, tool="perf"), known) == []
    assert instructions.regressions(result(9_000, python="3.12.0"), known) == []


def test_a_regression_is_told_by_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "instructions.json"
    monkeypatch.setattr(instructions, "tool", lambda: ("callgrind", ["valgrind"]))
    counts = {"floor": 1_000_000, "each": 500}

    def counted(name: str, command: list[str], work: str) -> tuple[int, int]:
        if work == "nothing":
            return counts["floor"], 1
        return counts["floor"] + 100 * counts["each"], 100

    monkeypatch.setattr(instructions, "instructions", counted)
    assert instructions.main([], file) == 0
    assert json.loads(file.read_text())["per_operation"]["turn"] == 500
    assert instructions.main([], file) == 0
    counts["each"] = 600
    assert instructions.main([], file) == 1
    assert "+20%" in capsys.readouterr().out
    assert instructions.main(["--write"], file) == 0
    assert instructions.main([], file) == 0


def test_it_is_skipped_with_a_reason_where_nothing_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert instructions.main([]) == 0
    assert capsys.readouterr().out == "skipped: neither valgrind nor perf is installed\n"


@pytest.mark.parametrize("work", list(instructions.WORK))
def test_each_workload_does_what_it_says(work: str) -> None:
    assert instructions.WORK[work]() >= 1
