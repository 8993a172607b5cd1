"""What all benches share: the machine, percentiles, JSON and a plot."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_NUMBERS = re.compile(r"\[[-\d.eE,\s]+\]")


def machine() -> dict[str, Any]:
    """What the figures were measured on, and when."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    ).stdout.strip()
    cpu = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": commit or "unknown",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p99, p999 and max; zeros for no values."""
    ranked = sorted(values)
    if not ranked:
        return {"p50": 0.0, "p99": 0.0, "p999": 0.0, "max": 0.0}
    last = len(ranked) - 1
    return {
        "p50": ranked[round(last * 0.5)],
        "p99": ranked[round(last * 0.99)],
        "p999": ranked[round(last * 0.999)],
        "max": ranked[-1],
    }


def write(result: dict[str, Any], out: Path, name: str) -> None:
    """Write NAME.json, lists of numbers on one line; a plot or a page in words goes beside it."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1)
    text = _NUMBERS.sub(lambda found: " ".join(found[0].split()), text)
    (out / f"{name}.json").write_text(text + "\n")
