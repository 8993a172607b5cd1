"""How long from the start of the process until it serves, after kill -9, and what takes how long?

    python -m bench.recovery [--small] [--large]

A node with 1,000 to 1,000,000 (`--large`: 10,000,000) pending timers is killed and started again:
with its tables caught up, with the files' pages out of the page cache, and with up to 100,000
events that the tables do not hold yet. Phases are taken from what the node itself leaves: the
lock's mtime (the store is about to be opened), its log lines, the mtime of minoots.json.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from bench import children, load
from bench.node import NS, ask, cpu_s, doors_of, rss_mb
from bench.report import machine
from minoots.cli.demo import ephemeral_node

BATCH = 500
BEHIND_MAX = 100_000
SETTLE_S = 120.0
IMPORTS = "python and imports"  # the phase before the store is opened
# The tables stay behind for as long as the bench needs them to.
LAZY = '[log]\nslice_delay = "1m"\nslice_max = 1048576\n'
# Nobody waits five seconds for the last slice of a small trial.
EAGER = '[log]\nslice_delay = "100ms"\n'


@contextmanager
def node(folder: Path, settings: str = "") -> Iterator[Any]:
    """A node on `folder`, killed at the end; `settings` are TOML."""
    (folder / "minoots.json").unlink(missing_ok=True)
    config = folder.with_suffix(".toml")
    config.write_text(settings)
    with ephemeral_node(folder, "--json", "--config", str(config)) as process:
        yield process
        process.kill()
        process.wait()


def fill(folder: Path, count: int, payload_bytes: int = 0, batch: int = BATCH) -> dict[str, Any]:
    """Make `count` timers that are due in days, through the node's control door."""
    control = doors_of(folder)["control"]
    client = load.spawn("far", control, count, 8, batch, payload_bytes)
    children.begin(client)
    began_ns = time.monotonic_ns()
    made = children.result_of(client)
    assert made["refused"] == 0, f"{made['refused']} requests were refused"
    return made | {"began_ns": began_ns}


def settle(folder: Path) -> dict[str, Any]:
    """Wait until the tables have caught up; the node's stats then."""
    until_s = time.monotonic() + SETTLE_S
    while time.monotonic() < until_s:
        stats: dict[str, Any] = ask(doors_of(folder)["control"], "stats")
        if stats["tables"]["behind"] == 0:
            return stats
        time.sleep(0.05)
    raise TimeoutError(f"the tables are {stats['tables']['behind']} events behind")


def forget_pages(folder: Path) -> None:
    """Have the system drop the files' pages from its cache, as after a reboot."""
    for path in folder.rglob("data.mdb"):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def restart(folder: Path, settings: str = "") -> dict[str, Any]:
    """Start the node on what a killed one has left; its phases in ms, and what it holds then."""
    began_ns = time.time_ns()
    with node(folder, settings) as process:
        ask(doors_of(folder)["control"], "hello")
        answered_ns = time.time_ns()
        cpu = cpu_s(process.pid)
        rss = rss_mb(process.pid)
        facts = line_of(folder, "recovered")
        opened_ns = (folder / "lock").stat().st_mtime_ns
        served_ns = (folder / "minoots.json").stat().st_mtime_ns
    recovered_ns = time_of(facts)
    took_ns = facts["took_ms"] * 1_000_000
    phases = {
        IMPORTS: opened_ns - began_ns,
        "store and doors": recovered_ns - took_ns - opened_ns,
        "recovery": took_ns,
        "first commit": served_ns - recovered_ns,
    }
    return {
        "serving_ms": (served_ns - began_ns) / 1e6,
        "hello_ms": (answered_ns - began_ns) / 1e6,
        "phases_ms": {name: max(ns, 0) / 1e6 for name, ns in phases.items()},
        "cpu_s": cpu,
        "rss_mb": rss,
        "pending": facts["pending"],
        "armed": facts["armed"],
    }


def line_of(folder: Path, event: str) -> dict[str, Any]:
    """The newest line of the node's log that tells of `event`."""
    lines = folder.with_suffix(".log").read_text().splitlines()
    found = [json.loads(line) for line in lines if f'"event":"{event}"' in line]
    assert found, f"the node did not tell {event}:\n" + "\n".join(lines)
    line: dict[str, Any] = found[-1]
    return line


def time_of(line: dict[str, Any]) -> int:
    """When a line of the log was written, in ns; it is told in ms."""
    moment = datetime.fromisoformat(line["time"])
    return round(moment.timestamp() * 1_000) * (NS // 1_000)


def medians(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Of equal structures, number by number; the first one's where they are no numbers."""
    merged: dict[str, Any] = {}
    for name, first in found[0].items():
        values = [one[name] for one in found]
        if isinstance(first, dict):
            merged[name] = medians(values)
        else:
            merged[name] = round(statistics.median(values), 3)
    return merged


def at_size(folder: Path, count: int, rounds: int, settings: str) -> dict[str, Any]:
    """Fill up to `count`, then restart in each of the three ways."""
    with node(folder, settings):
        missing = count - ask(doors_of(folder)["control"], "stats")["timers"]["pending"]
        fill(folder, missing)
        settle(folder)
    found = {"caught up": medians([restart(folder) for _ in range(rounds)])}
    forget_pages(folder)
    found["out of the page cache"] = restart(folder)
    behind = min(BEHIND_MAX, count) - min(BEHIND_MAX, count) % BATCH
    with node(folder, LAZY):
        fill(folder, behind)
        left = ask(doors_of(folder)["control"], "stats")["tables"]["behind"]
    found[f"{behind} behind"] = restart(folder) | {"behind": left}
    with node(folder, settings):
        settle(folder)
    return found


def run(small: bool = False, large: bool = False) -> dict[str, Any]:
    """Every size; `small` ends within seconds."""
    sizes = [1_000] if small else [1_000, 10_000, 100_000, 1_000_000] + [10_000_000] * large
    result: dict[str, Any] = {"machine": machine(), "small": small, "sizes": {}}
    with tempfile.TemporaryDirectory(prefix="minoots-bench-") as temporary:
        folder = Path(temporary) / "data"
        for count in sizes:
            found = at_size(folder, count, 1 if small else 3, EAGER if small else "")
            result["sizes"][str(count)] = found
            for how, case in found.items():
                print(f"  {count:,}, {how}: {line(case)}", flush=True)
    return result


def line(case: dict[str, Any]) -> str:
    """One restart in a line."""
    phases = ", ".join(f"{name} {ms:,.0f}" for name, ms in case["phases_ms"].items())
    return (
        f"serving after {case['serving_ms']:,.0f} ms ({phases}); RSS {case['rss_mb']['all']:.0f} MB"
        f", {case['armed']:,} of {case['pending']:,} armed"
    )


def plot(result: dict[str, Any], path: Path) -> None:
    """Time to serving by number of timers, and the phases of the largest."""
    from bench.plot import bars

    about = result["machine"]
    note = f"{about['cpu']}, {about['cores']} cores, {about['date']}, commit {about['commit']}"
    serving = {
        f"{int(count):,}, {how}": case["serving_ms"]
        for count, found in result["sizes"].items()
        for how, case in found.items()
    }
    largest = list(result["sizes"].values())[-1]["caught up"]["phases_ms"]
    panels = [
        ("From process start to serving, after kill -9", "ms", serving),
        ("The largest, caught up, by phase", "ms", largest),
    ]
    bars(path, panels, note)


if __name__ == "__main__":
    print(json.dumps(run("--small" in sys.argv, "--large" in sys.argv), indent=1))
