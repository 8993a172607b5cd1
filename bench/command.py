"""`minoots bench WHAT`: run a bench, print it, write its JSON and its plot."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from bench import plot, report

ALL = ("wheel", "store", "turn", "node")


def run(what: str, *, small: bool, out: Path | None) -> dict[str, Any]:
    """Run one bench or all; results go to `out`, by default bench/results unless small."""
    if out is None and not small:
        out = report.ROOT / "bench" / "results"
    found: dict[str, Any] = {}
    for name in ALL if what == "all" else (what,):
        print(f"{name}:", flush=True)
        found[name] = importlib.import_module(f"bench.{name}").run(small)
        if out is not None:
            report.write(found[name], out, name)
            plot.draw(name, found[name], out / f"{name}.svg")
            print(f"  written to {out}")
        else:
            print(json.dumps(found[name], indent=1))
    return found
