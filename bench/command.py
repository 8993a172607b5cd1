"""`minoots bench WHAT`: run a bench, print it, write its JSON, its plot and its page in words."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from bench import coefficients, plot, report

ALL = (  # not `peers`
    *("wheel", "store", "turn", "node", "jitter", "recovery", "growth", "consumers", "backup"),
    "exchange",
)
GROWING = ("wheel", "recovery", "growth")  # those that `--large` takes to ten million timers
README = report.ROOT / "bench" / "README.md"


def run(what: str, *, small: bool, out: Path | None, large: bool = False) -> dict[str, Any]:
    """Run one bench or all; results go to `out`, by default bench/results unless small."""
    kept = out is None and not small
    if kept:
        out = report.ROOT / "bench" / "results"
    found: dict[str, Any] = {}
    for name in ALL if what == "all" else (what,):
        print(f"{name}:", flush=True)
        bench = importlib.import_module(f"bench.{name}")
        found[name] = bench.run(small, large) if name in GROWING else bench.run(small)
        page = bench.verdict(found[name]) if hasattr(bench, "verdict") else ""
        if out is not None:
            report.write(found[name], out, name)
            if name == "growth":
                coefficients.write(found[name]["sizing"], out)
            plot.draw(name, found[name], out / f"{name}.svg")
            if page:
                (out / f"{name}.md").write_text(page)
                print(page)
            print(f"  written to {out}")
        else:
            print(page or json.dumps(found[name], indent=1))
        if hasattr(bench, "readme_table"):
            text = bench.readme_table(found[name])
            print(text)
            if kept:
                README.write_text(between(README.read_text(), name, text))
    return found


def between(page: str, name: str, text: str) -> str:
    """The page with what lies between `<!-- name -->` and `<!-- /name -->` replaced.

    Raises ValueError when it has no such markers.
    """
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.partition(opening)
    _, ended, after = rest.partition(closing)
    if not found or not ended:
        raise ValueError(f"bench/README.md has no {opening} ... {closing}")
    return f"{before}{opening}\n{text}\n{closing}{after}"
