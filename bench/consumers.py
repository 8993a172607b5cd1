"""How many events a second do durable consumers acknowledge, and how soon does one hear of a fire?

    python -m bench.consumers [--small]

A real node with a log full of events. `drain`: what is there already is pulled in batches and each
batch acknowledged, by one worker or several on one name; every pull and every acknowledgement is
answered after its fsync. `many`: a hundred consumers, each of which gets every event. `follow`: a
worker that waits while timers fire.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import children
from bench.node import ask, cpu_s, doors_of, rss_mb, schedule_evenly
from bench.recovery import EAGER, fill, node
from bench.report import machine

CREATED = {"filter": {"types": ["timer.scheduled"]}}
CASES = (  # workers, batch, pulls under way for each
    (1, 256, 1),
    (1, 256, 2),
    (1, 1_000, 2),
    (4, 256, 2),
    (4, 32, 2),
    (1, 1, 64),
)
MANY = 100


def drain(folder: Path, pid: int, workers: int, batch: int, depth: int, count: int) -> Any:
    """One case on a new consumer."""
    doors = doors_of(folder)
    name = f"w{workers}-b{batch}-d{depth}"
    most = max(1_000, workers * batch * depth)
    ask(doors["control"], "consumer.create", {"name": name, "max_ack_pending": most} | CREATED)
    words = ("drain", doors["stream"], str(batch), str(depth), str(count), *[name] * workers)
    child = children.start("bench.workers", *words)
    used_s, log_bytes = cpu_s(pid), ask(doors["control"], "stats")["log"]["bytes"]
    children.begin(child)
    found = children.result_of(child)
    log_bytes = ask(doors["control"], "stats")["log"]["bytes"] - log_bytes
    found["log_bytes_an_event"] = round(log_bytes / count, 1)
    found["node_cpu_us"] = round((cpu_s(pid) - used_s) / count * 1e6, 1)
    left = ask(doors["control"], "consumer.info", {"name": name})
    assert left["acked"] >= found["acked"], (left, found)
    ask(doors["control"], "consumer.delete", {"name": name})
    return found


def many(folder: Path, pid: int, consumers: int, count: int) -> Any:
    """Every one of `consumers` gets and acknowledges `count` events."""
    doors = doors_of(folder)
    names = [f"many-{k}" for k in range(consumers)]
    for name in names:
        ask(doors["control"], "consumer.create", {"name": name} | CREATED)
    wanted = str(consumers * count)
    child = children.start("bench.workers", "drain", doors["stream"], "256", "1", wanted, *names)
    children.begin(child)
    found = children.result_of(child)
    found["node_rss_mb"] = rss_mb(pid)["all"]
    return found | {"consumers": consumers}


def follow(folder: Path, rate: int, seconds: int) -> Any:
    """A worker that waits, while `rate` timers a second fire."""
    doors = doors_of(folder)
    asked = {"name": "follow", "deliver_policy": "new", "filter": {"types": ["timer.expired"]}}
    ask(doors["control"], "consumer.create", asked)
    child = children.start(
        "bench.workers", "follow", doors["stream"], "256", str(seconds + 3), "follow"
    )
    children.begin(child)
    schedule_evenly(doors, rate, seconds)
    return children.result_of(child)


def run(small: bool = False) -> dict[str, Any]:
    """Every case; `small` in some seconds."""
    count = 2_000 if small else 200_000
    result: dict[str, Any] = {"machine": machine(), "small": small, "drain": {}}
    with tempfile.TemporaryDirectory(prefix="minoots-bench-") as temporary:
        folder = Path(temporary) / "data"
        with node(folder, EAGER) as process:
            fill(folder, count)
            for workers, batch, depth in CASES:
                wanted = count if batch > 1 else count // 10
                case = f"{workers} workers, batches of {batch}, {depth} under way"
                found = drain(folder, process.pid, workers, batch, depth, wanted)
                result["drain"][case] = found
                print(f"  {case}: {found}", flush=True)
            for rate in (100, 1_000):
                found = follow(folder, rate, 1 if small else 10)
                ask(doors_of(folder)["control"], "consumer.delete", {"name": "follow"})
                result[f"follow {rate}/s"] = found
                print(f"  follow {rate}/s: {found}", flush=True)
        folder = Path(temporary) / "many"
        with node(folder, EAGER) as process:
            each = 200 if small else 10_000
            fill(folder, each)
            result["many"] = many(folder, process.pid, 10 if small else MANY, each)
            print(f"  many: {result['many']}", flush=True)
    return result


if __name__ == "__main__":
    run("--small" in sys.argv)
