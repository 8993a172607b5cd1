"""The benches at their smallest, so that they do not rot."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from bench.report import percentiles


def numbers(result: Any) -> int:
    """How many figures a result holds."""
    if isinstance(result, dict):
        return sum(numbers(value) for value in result.values())
    return isinstance(result, int | float) and not isinstance(result, bool)


@pytest.mark.parametrize("name", ["wheel", "store", "turn", "node", "jitter"])
def test_a_bench_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = importlib.import_module(f"bench.{name}").run(True)
    assert numbers(result) >= 3
    assert result["machine"]


def test_percentiles() -> None:
    assert percentiles(range(101)) == {"p50": 50, "p99": 99, "p999": 100, "max": 100}
    assert percentiles([])["max"] == 0
