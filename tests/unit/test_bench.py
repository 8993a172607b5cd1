"""The benches at their smallest, so that they do not rot."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench import binary, coefficients, command, recovery
from bench.load import definition
from bench.report import ROOT, percentiles
from bench.summary import reduced
from edgenode.sizing import Coefficients


def numbers(result: Any) -> int:
    """How many figures a result holds."""
    if isinstance(result, dict):
        return sum(numbers(value) for value in result.values())
    return isinstance(result, int | float) and not isinstance(result, bool)


@pytest.mark.parametrize("name", [*command.ALL, "shaping"])
def test_a_bench_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = importlib.import_module(f"bench.{name}").run(True)
    assert numbers(result) >= 3
    assert result["machine"]
    if name == "growth":
        known = msgspec.convert(result["sizing"], Coefficients)
        assert known.timers == 1_000
        assert known.points[0].tables_bytes > 200  # a row, its due and its name


def test_the_bench_of_the_binary_runs() -> None:
    """On whatever is built; at least the program of this environment."""
    found = binary.run(True)
    assert found["forms"]["venv"]["ready_ms"] > found["forms"]["venv"]["help_ms"] / 2 > 0
    assert found["forms"]["venv"]["rss_mb"] > 10


def test_a_goal_of_the_binary_is_met_or_missed() -> None:
    said = binary.goals({"folder": {"mb": 65.0, "rss_mb": 70.1}})
    assert said["folder: mb <= 65"] == "met (65.0)"
    assert said["folder: rss_mb <= 70"] == "missed (70.1)"
    assert said["one file: mb <= 20"] == "not built (None)"


def test_the_micro_benches_run() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "bench/micro", "--benchmark-disable"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout


def test_a_summary_keeps_one_line_an_operation() -> None:
    stats = {"min": 1e-6, "median": 2e-6, "iqr": 1e-7, "rounds": 9, "data": [1e-6] * 9}
    found = reduced({"benchmarks": [{"name": "test_hot_get", "stats": stats}]})
    assert found["ns"] == {"hot_get": {"min": 1000.0, "median": 2000.0, "iqr": 100.0, "rounds": 9}}
    assert found["machine"]["python"]


def test_medians_go_number_by_number() -> None:
    found = [{"a": {"b": 1}, "c": 5}, {"a": {"b": 9}, "c": 5}, {"a": {"b": 2}, "c": 6}]
    assert recovery.medians(found) == {"a": {"b": 2}, "c": 5}


def test_a_result_of_growth_gives_the_coefficients(tmp_path: Path) -> None:
    """Nothing of a bench elsewhere touches what the package brings."""
    before = (ROOT / "edgenode/sizing.json").read_bytes()
    coefficients.write({"timers": 1}, tmp_path)
    assert (ROOT / "edgenode/sizing.json").read_bytes() == before


def test_percentiles() -> None:
    assert percentiles(range(101)) == {"p50": 50, "p99": 99, "p999": 100, "max": 100}
    assert percentiles([])["max"] == 0


def test_a_start_is_compared_without_the_imports() -> None:
    base = {"phases_ms": {recovery.IMPORTS: 400.0, "recovery": 5.0, "first commit": 10.0}}
    slow = {"phases_ms": {recovery.IMPORTS: 900.0, "recovery": 45.0, "first commit": 20.0}}
    assert coefficients.slower_s(slow, base) == 0.05
    assert coefficients.slower_s(base, slow) == 0


def test_points_are_moved_by_what_the_largest_node_shows() -> None:
    points = [
        {"payload_bytes": 0, "log_bytes": 200.0, "tables_bytes": 400.0},
        {"payload_bytes": 1_000, "log_bytes": 1_200.0, "tables_bytes": 1_400.0},
    ]
    payload_bytes = len(json.dumps(definition(0)["payload"]))
    filled = {
        "timers": 10,
        "log_bytes": 10 * (200 + payload_bytes + 1),
        "tables_bytes": 10 * (400 + payload_bytes - 70),
    }
    assert coefficients.shifted(points, filled) == [
        {"payload_bytes": 0, "log_bytes": 201.0, "tables_bytes": 330.0},
        {"payload_bytes": 1_000, "log_bytes": 1_201.0, "tables_bytes": 1_330.0},
    ]
