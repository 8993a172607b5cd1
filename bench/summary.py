"""Reduce pytest-benchmark's JSON, which keeps every round, to one line an operation.

python -m bench.summary FROM TO
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.report import machine


def reduced(found: dict[str, Any]) -> dict[str, Any]:
    """ns of a call: the fastest, the median, the spread between quartiles; and how many rounds."""
    return {
        "machine": machine(),
        "ns": {
            bench["name"].removeprefix("test_"): {
                "min": round(bench["stats"]["min"] * 1e9, 1),
                "median": round(bench["stats"]["median"] * 1e9, 1),
                "iqr": round(bench["stats"]["iqr"] * 1e9, 1),
                "rounds": bench["stats"]["rounds"],
            }
            for bench in found["benchmarks"]
        },
    }


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(json.dumps(reduced(json.loads(source.read_text())), indent=1) + "\n")
