"""docs/evidence.md, made from the results of the runs that are kept in `results/`.

python -m tests.proof.evidence     write the page anew
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.report import ROOT, machine
from tests.proof.outcome import Outcome

RESULTS = Path(__file__).with_name("results")
PAGE = ROOT / "docs" / "evidence.md"
HEAD = """\
# Evidence

What was done to break the store and the node, and what came of it. Written by `make proof` from
`tests/proof/results/`, one row for each run; what a row counts is what its command did, at the
commit that it names. Each run plants a bug first and has to catch it. A fault is anything that was
acknowledged and lost, invented, early, fired after its cancel, out of order, or a wrong answer.
What each part does, its module in `tests/proof/` tells at its top.
"""


def keep(seed: int, command: str, outcomes: list[Outcome]) -> Path:
    """Write the results of a run down; where."""
    now = datetime.now(UTC)
    found = {
        "machine": machine(),
        "at": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seed": seed,
        "command": command,
        "parts": [asdict(outcome) for outcome in outcomes],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{now.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    return path


def write() -> None:
    """Write the page."""
    PAGE.write_text(page())


def page() -> str:
    """The page's text, from all results."""
    runs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    rows: dict[str, list[tuple[Any, Any]]] = {}
    for run in runs:
        for part in run["parts"]:
            rows.setdefault(part["name"], []).append((run, part))
    text = [HEAD]
    for name, found in rows.items():
        text += [f"## {name[0].upper()}{name[1:]}", "", *_table(found), ""]
    text += ["## Machines", "", *_machines(runs), ""]
    return "\n".join(text).rstrip() + "\n"


def _table(found: list[tuple[Any, Any]]) -> list[str]:
    """A row for each run that was not skipped, one for all of them, and what cannot be counted."""
    names = list(dict.fromkeys(name for _, part in found for name in part["counts"]))
    done = [(run, part) for run, part in found if not part["skipped"]]
    lines = [f"| date | commit | {' | '.join(names)} | faults | repeat |"]
    lines.append("|---" * (len(names) + 4) + "|")
    for run, part in done:
        counts = [_number(part["counts"].get(name, 0)) for name in names]
        cells = [run["at"][:10], run["machine"]["commit"], *counts, str(len(part["faults"]))]
        lines.append(f"| {' | '.join(cells)} | `{part['command']}` |")
    if len(done) > 1:
        faults = sum(len(part["faults"]) for _, part in done)
        cells = ["**all**", "", *(_number(_all(name, done)) for name in names), str(faults)]
        lines.append(f"| {' | '.join(cells)} | |")
    lines.append("")
    if done:
        lines.append(f"Planted and caught, in the last run: {done[-1][1]['planted']}.")
    lines += [f"Fault: {fault}" for _, part in found for fault in part["faults"][:3]]
    return lines + [
        f"Skipped on {run['at'][:10]}: {part['skipped']}" for run, part in found if part["skipped"]
    ]


def _all(name: str, done: list[tuple[Any, Any]]) -> float:
    """The sum over the runs, or the largest where a sum says nothing."""
    values = [part["counts"].get(name, 0) for _, part in done]
    return float(max(values) if name.startswith("latest") else sum(values))


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _machines(runs: list[Any]) -> list[str]:
    """The different ones."""
    seen = {
        f"{run['machine']['cores']} cores, {run['machine']['cpu'] or 'unknown processor'}, Linux "
        f"{run['machine']['kernel']}, Python {run['machine']['python']}": None
        for run in runs
    }
    return [f"- {text}" for text in seen]


if __name__ == "__main__":
    write()
