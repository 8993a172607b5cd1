"""What does the wheel cost, and what do the usual structures cost for the same work?

Each structure arms, disarms, fires and churns the same timers, 1 ms ticks, due within an hour; the
structures take turns, and medians of thread CPU time are reported. Steps are timed one by one: a
step's figure is its best of the rounds, since a step disturbed by the machine is not disturbed
twice. `python -m bench.wheel --small` shows that all of this still runs.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import gc
import hashlib
import heapq
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sortedcontainers import SortedKeyList

from bench._anchors import Heap, ListWheel, run_steps, time_steps
from engine._wheel import Wheel

Words = NDArray[np.uint64]
HOUR = 3_600_000
DAY = 24 * HOUR
CHURN_BATCH = 64
SLOW_NS = 400  # steps faster than this are not noted one by one
EAGER = "list wheel 8x256"


class Queue(Protocol):
    """What is measured: the bulk calls of a Wheel."""

    def arm_many(self, due_ticks: Words, handles: Words) -> int: ...
    def disarm_many(self, handles: Words) -> int: ...
    def advance(self, now_tick: int, out: Words) -> int: ...


BULK: dict[str, Callable[[int], Queue]] = {
    "wheel": lambda count: Wheel(),
    EAGER: lambda count: ListWheel(count, 8),
    "list wheel 10x64": lambda count: ListWheel(count, 6),
    "binary heap": lambda count: Heap(count, 2),
    "4-heap": lambda count: Heap(count, 4),
}


def cpu_ns() -> int:
    return time.thread_time_ns()


def fire_all(queue: Queue, end: int, step: int) -> list[Words]:
    out = np.zeros(1 << 16, np.uint64)
    fired = []
    for now in range(0, end + step, step):
        while count := queue.advance(now, out):
            fired.append(out[:count].copy())
            if count < len(out):
                break
    return fired


# --- in bulk --------------------------------------------------------------------------------------


def bytes_of(queue: Queue) -> int:
    return queue.stats()["bytes_committed"] if isinstance(queue, Wheel) else queue.bytes_used()  # type: ignore[attr-defined]


def bulk_round(make: Callable[[int], Queue], count: int, seed: int) -> dict[str, float]:
    """Nanoseconds an operation, and bytes a timer, for one structure."""
    rng = np.random.default_rng(seed)
    due_ticks = rng.integers(1, HOUR, count).astype(np.uint64)
    handles = np.zeros(count, np.uint64)
    order = rng.permutation(count)
    queue = make(count)
    figures: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object], operations: int) -> None:
        start = cpu_ns()
        work()
        figures[name] = (cpu_ns() - start) / operations

    timed("schedule, fresh", lambda: queue.arm_many(due_ticks, handles), count)
    figures["bytes, fresh"] = bytes_of(queue) / count
    shuffled = handles[order]
    timed("cancel", lambda: queue.disarm_many(shuffled), count)
    timed("schedule", lambda: queue.arm_many(due_ticks, handles), count)
    batches = list(churn_batches(rng, handles, max(2 * count, 20_000)))
    timed("churn pair", lambda: churn(queue, handles, batches), sum(len(b[0]) for b in batches))
    figures["bytes, churned"] = bytes_of(queue) / count
    timed("expire, 1 s steps", lambda: fire_all(queue, HOUR, 1000), count)
    return figures


def churn_batches(
    rng: np.random.Generator, handles: Words, pairs: int
) -> Iterator[tuple[NDArray[np.int64], Words]]:
    size = min(CHURN_BATCH, len(handles))
    for _ in range(min(pairs, 4_000_000) // size):
        at = np.unique(rng.integers(0, len(handles), size))
        yield at, rng.integers(1, HOUR, len(at)).astype(np.uint64)


def churn(queue: Queue, handles: Words, batches: list[tuple[NDArray[np.int64], Words]]) -> None:
    new = np.zeros(CHURN_BATCH, np.uint64)
    for at, due_ticks in batches:
        queue.disarm_many(handles[at])
        queue.arm_many(due_ticks, new)
        handles[at] = new[: len(at)]


# --- step by step ---------------------------------------------------------------------------------


def hour_of_timers(rng: np.random.Generator, count: int) -> Words:
    return rng.integers(1, HOUR, count).astype(np.uint64)


def held_out(rng: np.random.Generator, count: int) -> Words:
    """Over a day: heavy-tailed, clustered on minutes, and on borders of every wheel here."""
    third = count // 3
    tail = np.minimum(rng.pareto(0.6, third) * 1000, DAY - 1)
    clusters = rng.integers(1, DAY // 60_000, third) * 60_000
    widths = rng.choice(np.array([1 << 6, 1 << 8, 1 << 11, 1 << 16, 1 << 22]), count - 2 * third)
    borders = rng.integers(1, DAY // widths) * widths + rng.integers(-1, 2, len(widths))
    return np.concatenate([tail, clusters, borders]).astype(np.uint64) + np.uint64(1)


def step_rounds(
    due_ticks: Words, steps: int, rounds: int, names: list[str]
) -> dict[str, dict[str, float]]:
    """Best time of each slow step over the rounds; then the worst step and the quantile."""
    out = np.zeros(1 << 20, np.uint64)
    handles = np.zeros(len(due_ticks), np.uint64)
    best: dict[str, dict[int, int]] = {}
    for _ in range(rounds):
        for name in names:
            queue = BULK[name](len(due_ticks))
            queue.arm_many(due_ticks, handles)
            slow = np.zeros((min(steps, 1 << 22), 2), np.uint64)
            noted = time_steps(queue, 1, steps, out, slow, SLOW_NS)
            seen = dict(slow[:noted].tolist())
            before = best.get(name, seen)
            best[name] = {tick: min(ns, seen[tick]) for tick, ns in before.items() if tick in seen}
    return {name: worst_of(sorted(of.values()), steps) for name, of in best.items()}


def worst_of(slow: list[int], steps: int) -> dict[str, float]:
    def rank(beyond: float) -> float:
        place = int(steps * beyond)
        return slow[-1 - place] if place < len(slow) else SLOW_NS

    return {"worst": rank(0), "p99.99": rank(1e-4), "p99.9": rank(1e-3)}


def sparse_round(name: str, count: int, steps: int, seed: int) -> float:
    """Nanoseconds a step of 1 ms when next to nothing is due."""
    rng = np.random.default_rng(seed)
    queue = BULK[name](count)
    queue.arm_many(hour_of_timers(rng, count), np.zeros(count, np.uint64))
    out = np.zeros(1024, np.uint64)
    start = cpu_ns()
    run_steps(queue, 1, steps, out)
    return (cpu_ns() - start) / steps


# --- one call at a time, from Python --------------------------------------------------------------


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is what we say."""

    now = 0.0

    def time(self) -> float:
        return self.now


def call_wheel(due_ticks: list[int], order: list[int]) -> tuple[int, int, int]:
    wheel = Wheel()
    arm, disarm = wheel.arm, wheel.disarm
    start = cpu_ns()
    handles = [arm(due_tick) for due_tick in due_ticks]
    armed = cpu_ns()
    for at in order:
        disarm(handles[at])
    disarmed = cpu_ns()
    wheel.arm_many(np.array(due_ticks, np.uint64), np.zeros(len(due_ticks), np.uint64))
    again = cpu_ns()
    fire_all(wheel, HOUR, 1000)
    return armed - start, disarmed - armed, cpu_ns() - again


def call_asyncio(due_ticks: list[int], order: list[int]) -> tuple[int, int, int]:
    loop = VirtualLoop()
    fired = [0]

    def fire() -> None:
        fired[0] += 1

    start = cpu_ns()
    handles = [loop.call_later(due_tick / 1000, fire) for due_tick in due_ticks]
    armed = cpu_ns()
    for at in order:
        handles[at].cancel()
    disarmed = cpu_ns()
    loop.close()
    loop = VirtualLoop()
    handles = [loop.call_later(due_tick / 1000, fire) for due_tick in due_ticks]
    again = cpu_ns()
    for now in range(0, HOUR + 1000, 1000):
        loop.now = now / 1000
        loop.call_soon(loop.stop)
        loop.run_forever()
    loop.close()
    return armed - start, disarmed - armed, cpu_ns() - again


def call_heapq(due_ticks: list[int], order: list[int]) -> tuple[int, int, int]:
    heap: list[tuple[int, int]] = []
    dead = bytearray(len(due_ticks))
    start = cpu_ns()
    for i, due_tick in enumerate(due_ticks):
        heapq.heappush(heap, (due_tick, i))
    armed = cpu_ns()
    for at in order:
        dead[at] = 1
    disarmed = cpu_ns()
    for now in range(0, HOUR + 1000, 1000):
        while heap and heap[0][0] <= now:
            heapq.heappop(heap)
    return armed - start, disarmed - armed, cpu_ns() - disarmed


def call_sorted(due_ticks: list[int], order: list[int]) -> tuple[int, int, int]:
    queue: SortedKeyList[tuple[int, int]] = SortedKeyList(key=lambda item: item[0])
    start = cpu_ns()
    items = list(enumerate(due_ticks))
    for i, due_tick in items:
        queue.add((due_tick, i))
    armed = cpu_ns()
    for at in order:
        queue.remove((due_ticks[at], at))
    disarmed = cpu_ns()
    queue.update((due_tick, i) for i, due_tick in items)
    again = cpu_ns()
    for now in range(0, HOUR + 1000, 1000):
        while queue and queue[0][0] <= now:
            queue.pop(0)
    return armed - start, disarmed - armed, cpu_ns() - again


CALLS = {
    "wheel": call_wheel,
    "asyncio": call_asyncio,
    "heapq, lazy": call_heapq,
    "SortedKeyList": call_sorted,
}


# --- all of it ------------------------------------------------------------------------------------


def order_hash(count: int) -> str:
    """Of the order in which the wheel fires; it must be the order by due tick, then by arming."""
    due_ticks = held_out(np.random.default_rng(7), count)
    wheel = Wheel()
    handles = np.zeros(count, np.uint64)
    wheel.arm_many(due_ticks, handles)
    fired = np.concatenate(fire_all(wheel, DAY + 2, 997)) & np.uint64(0xFFFFFFFF)
    expected = np.argsort(due_ticks, kind="stable").astype(np.uint64)
    if not np.array_equal(fired, expected):
        raise AssertionError("the wheel does not fire in the order of due ticks")
    return hashlib.sha256(fired.tobytes()).hexdigest()[:16]


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def measure_bulk(sizes: list[int], rounds: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for count in sizes:
        times = max(3, rounds if count < 10_000_000 else 3) if rounds > 1 else 1
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in BULK}
        for turn in range(times):
            for name, make in BULK.items():
                seen[name].append(bulk_round(make, count, turn))
        results[str(count)] = {name: medians(of) for name, of in seen.items()}
    return results


def measure_calls(count: int, rounds: int) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(1)
    due_ticks: list[int] = hour_of_timers(rng, count).tolist()
    order: list[int] = rng.permutation(count).tolist()
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in CALLS}
    for _ in range(rounds):
        for name, call in CALLS.items():
            gc.collect()
            figures = zip(("schedule", "cancel", "expire"), call(due_ticks, order), strict=True)
            seen[name].append({what: ns / count for what, ns in figures})
    return {name: medians(of) for name, of in seen.items()}


def measure_sparse(steps: int, rounds: int) -> dict[str, dict[str, float]]:
    results: dict[str, dict[str, float]] = {}
    for count in (10, 1000):
        seen: dict[str, list[float]] = {name: [] for name in BULK}
        for turn in range(rounds):
            for name in BULK:
                seen[name].append(sparse_round(name, count, steps, turn))
        results[str(count)] = {name: statistics.median(of) for name, of in seen.items()}
    return results


def commit_name() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def run(small: bool, large: bool = False) -> dict[str, Any]:
    """Measure; `small` in less than a second, `large` with ten million timers as well."""
    sizes = [1000] if small else [1000, 10_000, 100_000, 1_000_000] + [10_000_000] * large
    rounds = 1 if small else 5
    rng = np.random.default_rng(3)
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "commit": commit_name(),
        "date": datetime.date.today().isoformat(),
        "order": order_hash(3000 if small else 300_000),
        "bulk": measure_bulk(sizes, rounds),
        "calls": measure_calls(1000 if small else 200_000, 1 if small else 3),
        "sparse": measure_sparse(20_000 if small else 1_000_000, rounds),
    }
    steps = 20_000 if small else 200_000
    results["steps"] = {
        str(count): step_rounds(hour_of_timers(rng, count), steps, rounds, list(BULK))
        for count in sizes
        if small or count >= 100_000
    }
    day = held_out(rng, 1000 if small else 1_000_000)
    names = ["wheel", EAGER, "4-heap"]
    results["held out"] = step_rounds(day, 50_000 if small else DAY, 1 if small else 3, names)
    return results


# --- showing it -----------------------------------------------------------------------------------


def table(title: str, rows: dict[str, dict[str, float]]) -> list[str]:
    columns = list(next(iter(rows.values())))
    lines = ["", f"{title:24}" + "".join(f"{column:>19}" for column in columns)]
    for name, row in rows.items():
        lines.append(f"{name:24}" + "".join(f"{row[column]:19,.1f}" for column in columns))
    return lines


def report(results: dict[str, Any]) -> str:
    facts = ("machine", "python", "commit", "date", "order")
    lines = ["  ".join(f"{name} {results[name]}" for name in facts)]
    for count, rows in results["bulk"].items():
        lines += table(f"{int(count):,}: ns, bytes", rows)
        ratios = {name: rows["wheel"][name] / value for name, value in rows[EAGER].items() if value}
        lines += table("", {"wheel / " + EAGER: ratios})[2:]
    lines += table("per call: ns", results["calls"])
    for count, rows in results["steps"].items():
        lines += table(f"{int(count):,}: ns a 1 ms step", rows)
    lines += table("held-out day: ns a step", results["held out"])
    sparse = {f"{count} timers": row for count, row in results["sparse"].items()}
    return "\n".join(lines + table("sparse: ns a 1 ms step", sparse))


def plot(results: dict[str, Any], path: Path) -> None:
    """Four panels, time an operation against the number of timers."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "minoots"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), sharex=True)
    sizes = [int(count) for count in results["bulk"]]
    cases = ("schedule", "cancel", "churn pair", "expire, 1 s steps")
    for axis, case in zip(axes.flat, cases, strict=True):
        for name in BULK:
            values = [results["bulk"][str(count)][name][case] for count in sizes]
            axis.loglog(
                sizes, values, marker="o", linewidth=2 if name == "wheel" else 1, label=name
            )
        axis.set_title(case)
        axis.set_ylabel("ns")
        axis.grid(True, which="both", alpha=0.2)
    axes[1][0].set_xlabel("timers")
    axes[1][1].set_xlabel("timers")
    axes[0][0].legend(fontsize=8)
    figure.suptitle(f"commit {results['commit']}, {results['date']}, {results['machine']}")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="less than a second; proves it runs")
    parser.add_argument("--large", action="store_true", help="ten million timers as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture there")
    arguments = parser.parse_args()
    results = run(arguments.small, arguments.large)
    print(report(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
