"""How does everything grow, from a thousand to a million timers (`--large`: ten million)?

    python -m bench.growth [--small] [--large]

The wheel against an eager list wheel, the store without a node (to a million: its records are made
beforehand), and a whole node that is filled further and further: fill rate, memory, disk, latency
of `timer.get` and `timer.list`, lateness of 1,000 fires/s beside what is pending, restart after
kill -9. What the node showed becomes the coefficients of `minoots sizing` (bench/coefficients.py).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import zmq

from bench import coefficients, load, store, wheel
from bench.node import NS, ask, cpu_s, doors_of, lateness, rss_mb
from bench.recovery import EAGER, fill, medians, node, restart, settle
from bench.report import machine, percentiles

SIZES = (1_000, 10_000, 100_000, 1_000_000)
LARGE = 10_000_000
STORE_MAX = 1_000_000
ROUNDS = 3
GETS = 400
LISTS = 40


def of_wheel(count: int, rounds: int) -> dict[str, float]:
    """ns an operation and bytes a timer, of the wheel and of the eager list wheel."""
    found: dict[str, float] = {}
    for name in ("wheel", wheel.EAGER):
        seen = [wheel.bulk_round(wheel.BULK[name], count, turn) for turn in range(rounds)]
        of = wheel.medians(seen)
        for what in ("schedule", "cancel", "expire, 1 s steps", "bytes, fresh"):
            found[f"{name}: {what}"] = round(of[what], 2)
    return found


def of_store(count: int) -> dict[str, float]:
    """Durable creates with the tables behind, slices, recovery and scans, without a node."""
    made = store.creates(1024, count, behind=True)
    read = store.reading(count)
    return {
        "creates_per_s": round(made["caught_up_per_s"]),
        "slices_per_s": round(store.slices(count)["events_per_s"]),
        "bytes_a_timer": round(read["bytes_a_timer"]),
        "open_ms": round(read["open_ms"], 2),
        "scan_rows_per_s": round(read["scan_rows_per_s"]),
        "due_entries_per_s": round(read["due_entries_per_s"]),
    }


def of_node(folder: Path, count: int, ids: list[str], small: bool) -> dict[str, Any]:
    """Fill the node in `folder` up to `count`; what that took and what it is like then."""
    with node(folder, EAGER if small else "") as process:
        control = doors_of(folder)["control"]
        empty = ask(control, "stats")
        before = empty["timers"]["pending"]
        used_s = cpu_s(process.pid)
        made = fill(folder, count - before)
        stats = settle(folder)
        seconds = (time.monotonic_ns() - made["began_ns"]) / NS
        ids += made["ids"]
        found = {
            "fill_per_s": round(made["per_second"]),
            "caught_up_per_s": round((count - before) / seconds),
            "fill_cpu_us": round((cpu_s(process.pid) - used_s) / (count - before) * 1e6, 1),
            "fill_latency_ms": made["latency_ms"],
            "rss_mb": rss_mb(process.pid),
            "disk": disk_of(folder, stats),
            "filled": {
                "timers": count - before,
                "log_bytes": stats["log"]["bytes"] - empty["log"]["bytes"],
                "tables_bytes": stats["tables"]["bytes"] - empty["tables"]["bytes"],
            },
            "get_ms": asked(control, "timer.get", [{"id": id} for id in spread(ids, GETS)]),
            "list_ms": asked(control, "timer.list", [{"limit": 100}] * LISTS),
            "list_none_ms": asked(control, "timer.list", [{"filter": {"name_prefix": "none"}}]),
            "pending": ask(control, "stats")["timers"]["pending"],
        }
        rate, seconds_late = (100, 1) if small else (1_000, 5)
        log_bytes = ask(control, "stats")["log"]["bytes"]
        found["lateness"] = lateness(doors_of(folder), rate, seconds_late)
        after = settle(folder)
        fires = {
            "count": rate * seconds_late,
            "log_bytes": after["log"]["bytes"] - log_bytes,
            "tables_bytes": after["tables"]["bytes"] - stats["tables"]["bytes"],
        }
    again = [restart(folder) for _ in range(1 if small else ROUNDS)]
    return found | {"fires": fires, "restart": medians(again)}


def disk_of(folder: Path, stats: dict[str, Any]) -> dict[str, int]:
    """Bytes of both files, and of their pages in use."""
    return {
        "log_file": (folder / "log/data.mdb").stat().st_blocks * 512,
        "tables_file": (folder / "tables/data.mdb").stat().st_blocks * 512,
        "log_used": stats["log"]["bytes"],
        "tables_used": stats["tables"]["bytes"],
    }


def spread(ids: list[str], count: int) -> list[str]:
    """At most `count` of them, evenly, in an order that jumps about."""
    chosen = ids[:: -(-len(ids) // count)]
    return [chosen[i * 7_919 % len(chosen)] for i in range(len(chosen))]


def asked(control: str, op: str, bodies: list[Any]) -> dict[str, float]:
    """Latency of these requests, one at a time."""
    context: zmq.Context[Any] = zmq.Context()
    socket = load.dealer(context, control)
    header = json.dumps({"op": op}).encode()
    took = []
    for body in bodies:
        frames = (b"MZP1", b"Q", b"g", header, json.dumps(body).encode())
        began_ns = time.monotonic_ns()
        socket.send_multipart(frames)
        reply = socket.recv_multipart()
        took.append((time.monotonic_ns() - began_ns) / 1e6)
        assert reply[1] == b"R", reply[4]
    context.destroy(linger=0)
    return {name: round(ms, 3) for name, ms in percentiles(took).items()}


def run(small: bool = False, large: bool = False) -> dict[str, Any]:
    """Every size; `small` ends within seconds."""
    sizes = [1_000] if small else [*SIZES, *([LARGE] if large else [])]
    result: dict[str, Any] = {"machine": machine(), "small": small, "sizes": {}}
    ids: list[str] = []
    with tempfile.TemporaryDirectory(prefix="minoots-bench-") as temporary:
        folder = Path(temporary) / "data"
        for count in sizes:
            found: dict[str, Any] = {"wheel": of_wheel(count, 1 if small else ROUNDS)}
            if count <= STORE_MAX:
                found["store"] = of_store(count)
            found["node"] = of_node(folder, count, ids, small)
            result["sizes"][str(count)] = found
            print("\n".join(row(count, found)), flush=True)
    result["sizing"] = coefficients.measure(result, small)
    return result


def row(count: int, found: dict[str, Any]) -> list[str]:
    """One size in a few lines."""
    of, disk = found["node"], found["node"]["disk"]
    files = (disk["log_file"] + disk["tables_file"]) / count
    late = of["lateness"]["subscriber_us"]
    lines = [
        f"  {count:,} timers",
        "    wheel: " + ", ".join(f"{name} {value}" for name, value in found["wheel"].items()),
        f"    node: filled at {of['fill_per_s']:,}/s, with tables {of['caught_up_per_s']:,}/s; RSS "
        f"{of['rss_mb']['all']:.0f} MB, restarted {of['restart']['rss_mb']['all']:.0f} MB in "
        f"{of['restart']['serving_ms']:,.0f} ms; {files:,.0f} bytes of file a timer",
        f"    get p50 {of['get_ms']['p50']} p99 {of['get_ms']['p99']} ms, list of 100 p50 "
        f"{of['list_ms']['p50']} ms, scan {of['list_none_ms']['max']:,.0f} ms; lateness p50 "
        f"{late['p50']:,.0f} p99 {late['p99']:,.0f} us, {of['lateness']['early']} early",
    ]
    if "store" in found:
        facts = ", ".join(f"{name} {value:,}" for name, value in found["store"].items())
        lines.insert(2, f"    store: {facts}")
    return lines


def plot(result: dict[str, Any], path: Path) -> None:
    """Four panels by the number of timers, both axes logarithmic."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "minoots"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), sharex=True)
    for axis, (title, unit, series) in zip(axes.flat, curves(result), strict=True):
        for name, values in series.items():
            axis.loglog(list(values), list(values.values()), marker="o", label=name)
        axis.set_title(title, fontsize=11)
        axis.set_ylabel(unit)
        axis.grid(True, which="both", alpha=0.2)
        axis.legend(fontsize=7)
    for axis in axes[1]:
        axis.set_xlabel("pending timers")
    about = result["machine"]
    note = f"{about['cpu']}, {about['cores']} cores, {about['date']}, commit {about['commit']}"
    figure.suptitle(note, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def curves(result: dict[str, Any]) -> list[tuple[str, str, dict[str, dict[int, float]]]]:
    """(title, unit, name -> size -> value) of each panel; a value of 0 has no place on it."""
    sizes = {int(count): found for count, found in result["sizes"].items()}

    def series(value: Any) -> dict[int, float]:
        found = {count: value(at) for count, at in sizes.items()}
        return {count: number for count, number in found.items() if number}

    def disk(at: dict[str, Any], which: str) -> float:
        return float(at["node"]["disk"][which] / at["node"]["pending"])

    wheels = {
        name: series(lambda at, name=name: at["wheel"][name])
        for name in next(iter(sizes.values()))["wheel"]
        if "bytes" not in name
    }
    rates = {
        "node, acknowledged": series(lambda at: at["node"]["fill_per_s"]),
        "node, tables caught up": series(lambda at: at["node"]["caught_up_per_s"]),
        "store alone, caught up": series(lambda at: at.get("store", {}).get("creates_per_s")),
    }
    times = {
        "timer.get p50": series(lambda at: at["node"]["get_ms"]["p50"]),
        "timer.list of 100 p50": series(lambda at: at["node"]["list_ms"]["p50"]),
        "scan of all": series(lambda at: at["node"]["list_none_ms"]["max"]),
        "lateness p99": series(lambda at: at["node"]["lateness"]["subscriber_us"]["p99"] / 1e3),
        "restart to serving": series(lambda at: at["node"]["restart"]["serving_ms"]),
    }
    room = {
        "RSS filled, MB": series(lambda at: at["node"]["rss_mb"]["all"]),
        "RSS restarted, MB": series(lambda at: at["node"]["restart"]["rss_mb"]["all"]),
        "log file, bytes a timer": series(lambda at: disk(at, "log_file")),
        "tables file, bytes a timer": series(lambda at: disk(at, "tables_file")),
    }
    return [
        ("The wheel", "ns", wheels),
        ("Creating", "timers/s", rates),
        ("Waiting", "ms", times),
        ("Room", "MB, bytes", room),
    ]


if __name__ == "__main__":
    print(json.dumps(run("--small" in sys.argv, "--large" in sys.argv), indent=1))
