"""The coefficients of `minoots sizing`, from what bench/growth.py saw and a few trials more.

They are written to bench/results/sizing.json and, so that they come with the package, to
edgenode/sizing.json: `write`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.load import definition
from bench.node import ask, doors_of
from bench.recovery import BATCH, BEHIND_MAX, EAGER, IMPORTS, LAZY, fill, node, restart, settle
from bench.report import ROOT
from edgenode.sizing import FILE, Point, interpolated

PAYLOADS = (2, 200, 1_000, 2_000, 4_000, 16_000, 65_536)
TRIAL_TIMERS = 40_000
TRIAL_BYTES = 64 << 20  # of payload, at most, in a trial
ARMED = 100_000
ARMED_S = 290  # ahead: inside the horizon's five minutes, and long enough for a restart
FIRED_PAYLOAD_BYTES = 7  # of `bench.node.at_timer`
MB = 1 << 20
FILES = ("log", "tables")


def measure(grown: dict[str, Any], small: bool) -> dict[str, Any]:
    """See `edgenode.sizing.Coefficients`."""
    with tempfile.TemporaryDirectory(prefix="minoots-bench-") as temporary:
        folder = Path(temporary)
        payloads = (2, 1_000) if small else PAYLOADS
        points = of_payloads(folder / "payloads", payloads, 500 if small else TRIAL_TIMERS)
        base = grown["sizes"][min(grown["sizes"], key=int)]["node"]["restart"]
        armed = of_armed(folder / "armed", base, 500 if small else ARMED)
        behind_s = of_behind(folder / "behind", base, 500 if small else BEHIND_MAX)
    count = max(int(size) for size in grown["sizes"])
    largest = grown["sizes"][str(count)]["node"]
    disk, fires = largest["disk"], largest["fires"]
    full_mb = largest["rss_mb"]["anonymous"] - base["rss_mb"]["anonymous"]
    return {
        "machine": grown["machine"],
        "timers": count,
        "points": shifted(points, largest["filled"]),
        "log_slack": round(disk["log_file"] / disk["log_used"], 3),
        "tables_slack": round(disk["tables_file"] / disk["tables_used"], 3),
        "fired_log_bytes": round(fires["log_bytes"] / fires["count"], 1),
        "fired_tables_bytes": round(max(fires["tables_bytes"], 0) / fires["count"], 1),
        "fired_payload_bytes": FIRED_PAYLOAD_BYTES,
        "base_rss_bytes": round(base["rss_mb"]["all"] * MB),
        "full_rss_bytes": round(max(full_mb, 0) * MB),
        "armed_bytes": armed["bytes"],
        "start_s": round(base["serving_ms"] / 1e3, 3),
        "start_timer_s": each(slower_s(largest["restart"], base), count),
        "start_behind_s": behind_s,
        "start_armed_s": armed["start_s"],
        "fill_per_s": largest["caught_up_per_s"],
    }


def of_payloads(folder: Path, payloads: Sequence[int], most: int) -> list[dict[str, float]]:
    """Bytes in use for each timer, by the size of its payload."""
    points = []
    with node(folder, EAGER):
        before = settle(folder)
        for payload_bytes in payloads:
            count = min(most, TRIAL_BYTES // payload_bytes)
            batch = max(min(BATCH, MB // payload_bytes), 1)
            fill(folder, max(count - count % batch, batch), payload_bytes, batch)
            after = settle(folder)
            made = after["timers"]["pending"] - before["timers"]["pending"]
            grown = {name: after[name]["bytes"] - before[name]["bytes"] for name in FILES}
            sizes = {f"{name}_bytes": round(grown[name] / made, 1) for name in FILES}
            points.append({"payload_bytes": payload_bytes} | sizes)
            before = after
    return points


def of_armed(folder: Path, base: dict[str, Any], count: int) -> dict[str, float]:
    """Memory and start-up time for each timer inside the horizon, seen after a restart."""
    with node(folder, EAGER):
        control = doors_of(folder)["control"]
        timer = {"name": "armed", "schedule": {"kind": "after", "duration": f"{ARMED_S}s"}}
        for _ in range(0, count, BATCH):
            ask(control, "timer.schedule_many", {"timers": [timer] * BATCH})
        settle(folder)
    again = restart(folder)
    assert again["armed"] == count, f"{again['armed']} of {count} are armed"
    grown_mb = again["rss_mb"]["anonymous"] - base["rss_mb"]["anonymous"]
    return {
        "bytes": round(max(grown_mb, 0) * MB / count, 1),
        "start_s": each(slower_s(again, base), count),
    }


def of_behind(folder: Path, base: dict[str, Any], count: int) -> float:
    """Seconds that a start takes longer for each event that the tables do not hold yet."""
    with node(folder, LAZY):
        fill(folder, count)
    return each(slower_s(restart(folder), base), count)


def each(seconds: float, count: int) -> float:
    """Of one of them, with the figures that such a measurement has."""
    return float(f"{seconds / count:.3g}")


def slower_s(case: dict[str, Any], base: dict[str, Any]) -> float:
    """By how much a start took longer, without Python's own part: that only adds noise."""

    def own_ms(of: dict[str, Any]) -> float:
        return float(sum(ms for phase, ms in of["phases_ms"].items() if phase != IMPORTS))

    return round(max(own_ms(case) - own_ms(base), 0) / 1e3, 4)


def shifted(points: list[dict[str, float]], filled: dict[str, int]) -> list[Any]:
    """The points moved by what the largest fill shows for its own payload: index pages are the
    fuller, the more timers there are."""
    payload_bytes = len(json.dumps(definition(0)["payload"]))
    known = interpolated(msgspec.convert(points, list[Point]), payload_bytes)
    log_by = filled["log_bytes"] / filled["timers"] - known.log_bytes
    tables_by = filled["tables_bytes"] / filled["timers"] - known.tables_bytes
    return [
        {
            "payload_bytes": point["payload_bytes"],
            "log_bytes": round(point["log_bytes"] + log_by, 1),
            "tables_bytes": round(point["tables_bytes"] + tables_by, 1),
        }
        for point in points
    ]


def write(found: dict[str, Any], out: Path) -> list[Path]:
    """Write sizing.json into `out`; and into the package, if `out` is where results are kept."""
    paths = [out / FILE]
    if out.resolve() == ROOT / "bench" / "results":
        paths.append(ROOT / "edgenode" / FILE)
    for path in paths:
        path.write_text(json.dumps(found, indent=1) + "\n")
    return paths
