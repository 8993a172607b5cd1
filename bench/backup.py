"""How long does a hot backup take, and are fires later beside it?

    python -m bench.backup [--small]

A node with a million pending timers. Spells in which timers fire evenly, by turns alone and beside
`minoots backup`, over and over in one spell; lateness is that of the stamp at the door. Then verify
and restore of what is there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.node import ask, doors_of, lateness
from bench.recovery import EAGER, fill, node, settle
from bench.report import machine
from bench.verb import MINOOTS, command

RATE = 500
SPELLS = 3


def beside(folder: Path, seconds: int) -> dict[str, Any]:
    """Fires, with a backup under way all the while."""
    words = [*MINOOTS, "backup", "--data", str(folder), "--json"]
    loop = (
        "import subprocess, sys, time\n"
        f"until = time.monotonic() + {seconds + 2}\n"
        "made = 0\n"
        "while time.monotonic() < until:\n"
        "    words = [*sys.argv[2:], f'{sys.argv[1]}{made}']\n"
        "    subprocess.run(words, check=True, capture_output=True)\n"
        "    made += 1\n"
        "print(made)\n"
    )
    target = str(folder.with_name("again"))
    with subprocess.Popen(
        [sys.executable, "-c", loop, target, *words], stdout=subprocess.PIPE, text=True
    ) as child:
        found = lateness(doors_of(folder), RATE, seconds)
        made, _ = child.communicate()
        assert child.returncode == 0, "a backup failed"
    for path in folder.parent.glob("again*"):
        shutil.rmtree(path)
    return found | {"backups": int(made)}


def run(small: bool = False) -> dict[str, Any]:
    """Every figure; `small` in some seconds."""
    count, seconds = (2_000, 1) if small else (1_000_000, 10)
    result: dict[str, Any] = {"machine": machine(), "small": small, "timers": count}
    with tempfile.TemporaryDirectory(prefix="minoots-bench-") as temporary:
        folder, target = Path(temporary) / "data", Path(temporary) / "full"
        with node(folder, EAGER):
            fill(folder, count)
            settle(folder)
            files = {p: p.stat().st_size for p in folder.rglob("data.mdb")}
            took_s, made = command("backup", str(target), "--data", str(folder))
            result["backup"] = {
                "seconds": took_s,
                "mb": (made["log"]["bytes"] + made["tables"]["bytes"]) / 1e6,
                "store_mb": sum(files.values()) / 1e6,
                "grown_mb": sum(p.stat().st_size - size for p, size in files.items()) / 1e6,
            }
            print(f"  backup: {result['backup']}", flush=True)
            for spell in range(1 if small else SPELLS):
                for name in ("alone", "beside"):
                    doors = doors_of(folder)
                    found = (
                        lateness(doors, RATE, seconds)
                        if name == "alone"
                        else beside(folder, seconds)
                    )
                    result[f"{name} {spell + 1}"] = found
                    print(f"  {name}: {found}", flush=True)
            words = ("--since", str(target), "--data", str(folder))
            took_s, made = command("backup", str(target.with_name("increment")), *words)
            result["increment"] = {"seconds": took_s, "events": made["log"]["events"]}
            result["late"] = ask(doors_of(folder)["control"], "stats")["fires"]["late"]
        result |= offline(folder, target)
    return result


def offline(folder: Path, target: Path) -> dict[str, Any]:
    """Verify and restore, the node being gone."""
    took_s, found = command("verify", "--data", str(folder))
    records = found["events"] + found["rows"]
    verified = {"seconds": took_s, "records_per_second": round(records / took_s)}
    took_s, _ = command("verify", "--from-backup", str(target))
    checked = {"seconds": took_s}
    again = folder.with_name("restored")
    took_s, found = command(
        "restore", str(target), str(target.with_name("increment")), "--data", str(again)
    )
    restored = {"seconds": took_s, "timers": found["timers"]}
    shutil.rmtree(again)
    print(f"  verify: {verified}, from backup: {checked}, restore: {restored}", flush=True)
    return {"verify": verified, "verify from backup": checked, "restore": restored}


if __name__ == "__main__":
    run("--small" in sys.argv)
