"""How fast are bundles written and taken in? `minoots bench exchange`

    python -m bench.exchange [--small]

A node with a million pending timers sends all of it, encrypted; then a quarter as many timers are
made and as many cancelled, and what is new is sent. Both are taken in at another site. Records are
events of the log, and with a picture that is begun the rows of its tables.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.node import NS, ask, doors_of
from bench.recovery import EAGER, fill, node, settle
from bench.report import machine
from bench.verb import command, text_of


def introduce(one: Path, other: Path) -> None:
    """Have `other` trust `one`."""
    key = one.with_suffix(".pub")
    key.write_text(text_of("keys", "new", "--data", str(one)))
    text_of("keys", "trust", str(key), "--data", str(other))


def send(folder: Path, target: Path, to: str) -> dict[str, Any]:
    """Write a bundle; how long that took."""
    took_s, head = command("bundle", "export", str(target), "--data", str(folder), "--to", to)
    rows = head["tables"]["timers"] + head["tables"]["notes"] if head["tables"] else 0
    records = head["log"]["events"] + rows
    return {"seconds": took_s, "mb": target.stat().st_size / 1e6, "records": records}


def take_in(folder: Path, source: Path, records: int) -> dict[str, Any]:
    """Take a bundle in; how fast."""
    took_s, found = command("bundle", "import", str(source), "--data", str(folder))
    assert found["events"] > 0, "there was nothing in it"
    return {"seconds": took_s, "records_per_second": round(records / took_s)}


def run(small: bool = False) -> dict[str, Any]:
    """Every figure; `small` in some seconds."""
    count = 2_000 if small else 1_000_000
    result: dict[str, Any] = {"machine": machine(), "small": small, "timers": count}
    with tempfile.TemporaryDirectory(prefix="minoots-bench-") as temporary:
        folder, site = Path(temporary) / "data", Path(temporary) / "site"
        site.mkdir()
        (site / "node.id").write_text("site\n")
        with node(folder, EAGER):
            fill(folder, count)
            settle(folder)
            introduce(folder, site)
            introduce(site, folder)
            for name in ("whole", "increment"):
                if name == "increment":
                    change(folder, count // 4)
                    settle(folder)
                bundle = Path(temporary) / f"{name}.bundle"
                result[f"{name} sent"] = sent = send(folder, bundle, "site")
                result[f"{name} taken in"] = took = take_in(site, bundle, sent["records"])
                print(f"  {name}: {sent}, {took}", flush=True)
    return result


def change(folder: Path, count: int) -> None:
    """Make timers, and cancel as many of the older ones."""
    fill(folder, count)
    control = doors_of(folder)["control"]
    began_ns = time.monotonic_ns()
    left = count
    while left:
        page = ask(control, "timer.list", {"limit": min(left, 1_000)})["items"]
        ids = [timer["id"] for timer in page]
        left -= ask(control, "timer.cancel_many", {"ids": ids})["count"]
        assert time.monotonic_ns() - began_ns < 600 * NS, "cancelling takes too long"


if __name__ == "__main__":
    run("--small" in sys.argv)
