"""What does the store cost: durable creates, slices behind them, recovery, scans?

Records of 300 bytes, ids that grow with time, on the file system of the temporary directory;
commits are timed from `submit` to the eventfd. The log alone is run beside each figure with tables
behind, since the disk has bad spells of its own: look at the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import plot as plots
from bench import report
from engine._log import LmdbLog
from engine._tables import LmdbTables
from engine.files import close_store, open_store
from engine.record import Image, Kind, chain_hash, name_hash, pack_blob, pack_event
from engine.store import CHAIN_START, Batch, Filter

SECOND_NS = 10**9
BLOB = pack_blob(
    b"rule", b"report", b'{"env":"prod","team":"ops"}', b"s" * 40, b"p" * 70, b"r" * 22
)
NAME = name_hash(b"report")
BEHIND_MAX = 500_000  # entries; a node that is further behind slows its creates


@dataclass
class Store:
    """A store in a directory of its own, and what was written to it so far."""

    path: Path
    log: LmdbLog
    tables: LmdbTables
    started: dict[int, int] = field(default_factory=dict)
    commit_us: list[float] = field(default_factory=list)
    seen: int = 0

    def submit(self, batch: Batch) -> None:
        """Hand over a commit, waiting until there is room; note when each becomes durable."""
        while not self.log.ready():
            self.wait()
        number = self.log.submit(batch)
        self.started[number] = time.perf_counter_ns()
        self.look()

    def wait(self) -> None:
        wait_for(self.log.fileno())
        self.look()

    def look(self) -> None:
        durable, now = self.log.durable(), time.perf_counter_ns()
        for number in range(self.seen + 1, durable + 1):
            self.commit_us.append((now - self.started.pop(number)) / 1000)
        self.seen = durable

    def finish(self) -> None:
        while self.started:
            self.wait()

    def follow(self, *, now: bool = False) -> int:
        """Let the tables follow what is durable; how many entries they are behind."""
        state = self.log.state()
        self.tables.follow(state.last_seq, state.commit, now=now)
        return state.last_seq - self.tables.applied().seq

    def catch_up(self) -> None:
        while self.follow(now=True):
            wait_for(self.tables.fileno())


def wait_for(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll(1000)


@contextmanager
def store() -> Iterator[Store]:
    path = Path(tempfile.mkdtemp(prefix="bench-store-"))
    log, tables = open_store(path)
    try:
        yield Store(path, log, tables)
    finally:
        close_store(path, log, tables)
        shutil.rmtree(path)


def records(first: int, count: int) -> list[bytes]:
    """`scheduled` events of new timers, due over the next 24 hours."""
    return [
        pack_event(seq, Kind.SCHEDULED, 0, seq, 0, due, 1, image_of(seq, seq, due, 1), BLOB)
        for seq in range(first, first + count)
        for due in [SECOND_NS + seq * 7_919_000_000 % (86_400 * SECOND_NS)]
    ]


def image_of(number: int, seq: int, due_ns: int, state: int) -> Image:
    """The timer `number` as the event `seq` leaves it; every sixteenth has a name."""
    hashed = NAME if number % 16 == 0 else 0
    return Image(number.to_bytes(16, "big"), seq, due_ns, 1, 0, hashed, 1, 1, 0, state, 0, 0)


def batches(count: int, size: int) -> list[Batch]:
    """`count` creates in batches of `size`, chained."""
    made = records(1, count)
    found = []
    chain = CHAIN_START
    for at in range(0, count, size):
        events = made[at : at + size]
        chain = chain_hash(chain, at + 1, events, b"", b"")
        found.append(Batch(at + 1, 1, events=events, chain=chain))
    return found


def creates(size: int, count: int, *, behind: bool) -> dict[str, float]:
    """`count` creates in commits of `size`, as fast as they go; with tables behind, until those
    have caught up."""
    with store() as running:
        work = batches(count, size)
        began = time.perf_counter()
        for batch in work:
            running.submit(batch)
            if behind and running.follow() > BEHIND_MAX:
                wait_for(running.tables.fileno())
        running.finish()
        logged = time.perf_counter() - began
        if behind:
            running.catch_up()
        took = time.perf_counter() - began
        found = {"per_s": count / logged, "caught_up_per_s": count / took}
        return found | prefixed("commit_us_", report.percentiles(running.commit_us))


def prefixed(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {prefix + name: value for name, value in values.items()}


def paced(rate: int, seconds: float, size: int, *, behind: bool) -> dict[str, float]:
    """`rate` creates a second, and what the two threads' CPU comes to in per cent of a core."""
    with store() as running:
        work = batches(int(rate * seconds), size)
        before = cpu_seconds()
        lag_max = 0
        began = time.perf_counter()
        for i, batch in enumerate(work):
            while (left := began + i * size / rate - time.perf_counter()) > 0:
                time.sleep(min(left, 0.001))
                running.look()
            running.submit(batch)
            if behind:
                lag_max = max(lag_max, running.follow())
        running.finish()
        took = time.perf_counter() - began
        used = {name: value - before.get(name, 0) for name, value in cpu_seconds().items()}
        if behind:
            running.catch_up()
        return {
            "per_s": rate * seconds / took,
            "behind_max": lag_max,
            "log_cpu_percent": 100 * used["log"] / took,
            "tables_cpu_percent": 100 * used["tables"] / took,
        } | prefixed("commit_us_", report.percentiles(running.commit_us))


def cpu_seconds() -> dict[str, float]:
    """What the store's threads have used, by their names."""
    found = {}
    for thread in threading.enumerate():
        if thread.name in ("log", "tables"):
            path = Path(f"/proc/self/task/{thread.native_id}/schedstat")
            found[thread.name] = int(path.read_text().split()[0]) / SECOND_NS
    return found


def slices(count: int) -> dict[str, float]:
    """Events a second that the tables take in, once the log has them all."""
    with store() as running:
        for batch in batches(count, 8192):
            running.submit(batch)
        running.finish()
        began = time.perf_counter()
        running.catch_up()
        return {"events_per_s": count / (time.perf_counter() - began)}


def finishes(count: int) -> dict[str, float]:
    """Events a second that the tables take in when they finish timers at random among `count`."""
    with store() as running:
        work = batches(count, 8192)
        for batch in work:
            running.submit(batch)
        running.finish()
        running.catch_up()
        ended = min(count, 131_072)
        # A step that shares no factor with the count visits timers far apart, none of them twice.
        numbers = [1 + (i * 7_368_787) % count for i in range(ended)]
        chain = work[-1].chain
        for at in range(0, ended, 1024):
            first = count + 1 + at
            events = [
                pack_event(seq, Kind.EXPIRED, 0, seq, number, seq, 1, image_of(number, seq, 0, 3))
                for seq, number in enumerate(numbers[at : at + 1024], first)
            ]
            chain = chain_hash(chain, first, events, b"", b"")
            running.submit(Batch(first, 1, events=events, chain=chain))
        running.finish()
        before, began = anonymous_mb(), time.perf_counter()
        running.catch_up()
        took = time.perf_counter() - began
        assert running.tables.applied().live_count == count - ended
        return {"events_per_s": ended / took, "memory_grown_mb": anonymous_mb() - before}


def anonymous_mb() -> float:
    """Resident memory of this process that is not a file's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def disk(count: int) -> dict[str, float]:
    """What one fdatasync of 4 KiB costs now, without LMDB: by it all the rest is to be judged."""
    found = []
    with tempfile.TemporaryFile() as file:
        for _ in range(count):
            began = time.perf_counter_ns()
            os.write(file.fileno(), bytes(4096))
            os.fdatasync(file.fileno())
            found.append((time.perf_counter_ns() - began) / 1000)
    return prefixed("sync_us_", report.percentiles(found))


def reading(count: int) -> dict[str, float]:
    """Recovery of the last 100,000 events, and scans of `count` timers."""
    with store() as running:
        for batch in batches(count, 8192):
            running.submit(batch)
        running.finish()
        running.catch_up()
        close_store(running.path, running.log, running.tables)
        began = time.perf_counter()
        running.log, running.tables = open_store(running.path)
        opened = time.perf_counter() - began
        last = running.log.state().last_seq
        read = running.log.events(max(1, last - 99_999), 100_000, 1 << 40)
        recovered = time.perf_counter() - began
        assert len(read) == min(count, 100_000)
        size = running.log.state().bytes_used + running.tables.applied().bytes_used
        return {
            "open_ms": opened * 1000,
            "recovery_100k_ms": recovered * 1000,
            "bytes_a_timer": size / count,
            "scan_rows_per_s": scanning(running, count, Filter(states=(2,))),
            "scan_labels_rows_per_s": scanning(
                running, count, Filter(labels=(b'"team":"dev"', b'"env":"prod"'))
            ),
            "due_entries_per_s": opening(running, count),
            "row_ns": finding(running),
        }


def scanning(running: Store, count: int, filter: Filter) -> float:
    """Rows a second, warm: the best of three passes over all of them, none of which pass."""
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        rows, after = running.tables.scan(filter, b"", 100, 1 << 40)
        assert (rows, after) == ([], b"")
        best = max(best, count / (time.perf_counter() - began))
    return best


def opening(running: Store, count: int) -> float:
    """Entries a second of the due index, all hours at once."""
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        ids, _ = running.tables.due(0, 0, 1 << 62)[:2]
        assert len(ids) == 16 * count
        best = max(best, count / (time.perf_counter() - began))
    return best


def finding(running: Store) -> float:
    """Nanoseconds for the row of one timer by its id, warm: the best of three passes."""
    ids = running.tables.due(0, 0, 1 << 62)[0][: 16 * 20_000]
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter_ns()
        for at in range(0, len(ids), 16):
            assert running.tables.row(ids[at : at + 16]) is not None
        best = min(best, (time.perf_counter_ns() - began) / (len(ids) // 16))
    return best


def run(small: bool) -> dict[str, Any]:
    """All cases; `small` shows within a second that they still run."""
    count = 4_096 if small else 400_000
    result: dict[str, Any] = {"machine": report.machine(), "small": small}
    result["disk before"] = disk(5 if small else 300)
    for size in (64, 1024) if small else (64, 256, 1024, 8192):
        total = min(count, size * 400)
        for behind in (False, True):
            name = f"{'tables behind' if behind else 'log only'}, batch {size}"
            result[name] = creates(size, total, behind=behind)
    if not small:
        result["tables behind, 1M, batch 1024"] = creates(1024, 1_000_000, behind=True)
    for behind in (False, True):
        name = f"75k/s, batch 512, {'tables behind' if behind else 'log only'}"
        result[name] = paced(75_000, 0.05 if small else 10, 512, behind=behind)
    for total in (1_000,) if small else (1_000, 100_000, 1_000_000):
        result[f"slices, {total}"] = slices(total)
        result[f"finishes at random, {total}"] = finishes(total)
        result[f"reading, {total}"] = reading(total)
    result["disk after"] = disk(5 if small else 300)
    return result


def plot(result: dict[str, Any], path: Path) -> None:
    """Creates a second by case."""
    machine = result["machine"]
    note = f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}, {machine['commit']}"
    values = {name: case["per_s"] for name, case in result.items() if "batch" in name}
    plots.bars(path, [("Durable creates, without a node", "timers/s", values)], note)


def show(result: dict[str, Any]) -> None:
    print(*(f"{name}={value}" for name, value in result["machine"].items()))
    for name, case in result.items():
        if isinstance(case, dict) and name != "machine":
            print(f"{name}:", *(f"{what}={value:,.0f}" for what, value in case.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    result = run(options.small)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        plot(result, options.plot)


if __name__ == "__main__":
    main()
