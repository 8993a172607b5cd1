"""Wake-ups of a process of its own: what the machine can do, and what a usual program gets.

    python -m bench.wakeups own COUNT PATH       a loop in C, SCHED_FIFO where permitted
    python -m bench.wakeups asyncio COUNT PATH   call_at on an event loop, as any program does it
    python -m bench.wakeups busy                 keeps one core busy until a line comes on stdin

About a thousand wake-ups a second, at random intervals; the lateness of each (int64, ns) goes to
PATH, and a JSON line says under which policy.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from array import array
from itertools import accumulate
from pathlib import Path

from bench._floor import prepare, wakes
from bench.children import claim_realtime, ready, say, told_to_stop

PRIORITY = 80
GAP_NS = (500_000, 1_500_000)
BUSY_S = 300.0  # a busy process ends by itself


def gaps(count: int) -> array[int]:
    """Random intervals (ns), the same in each run: nothing can learn a period."""
    rng = random.Random(7)
    return array("q", [rng.randint(*GAP_NS) for _ in range(count)])


def own(count: int) -> tuple[array[int], str]:
    """The loop in C."""
    late = array("q", bytes(8 * count))
    locked = prepare()
    policy = claim_realtime(PRIORITY)
    wakes(gaps(count), late)
    return late, policy + (", locked" if locked else "")


async def call_at(count: int) -> array[int]:
    """`count` callbacks on the running event loop, all asked for ahead."""
    loop = asyncio.get_running_loop()
    late = array("q", bytes(8 * count))
    ended = asyncio.Event()
    left = count

    def fired(k: int, due_s: float) -> None:
        nonlocal left
        late[k] = round((loop.time() - due_s) * 1e9)
        left -= 1
        if not left:
            ended.set()

    begin_s = loop.time() + 0.05
    for k, after_ns in enumerate(accumulate(gaps(count))):
        due_s = begin_s + after_ns / 1e9
        loop.call_at(due_s, fired, k, due_s)
    await ended.wait()
    return late


def burn(seconds: float) -> None:
    """Keep one core busy until a line comes on stdin, or `seconds` are over."""
    until_ns = time.monotonic_ns() + int(seconds * 1e9)
    while time.monotonic_ns() < until_ns and not told_to_stop():
        sum(range(100_000))


def main() -> None:
    """One process."""
    if sys.argv[1] == "busy":
        ready()
        burn(BUSY_S)
        return
    kind, count, path = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    late, policy = own(count) if kind == "own" else (asyncio.run(call_at(count)), "other")
    path.write_bytes(late.tobytes())
    say(json.dumps({"policy": policy}))


if __name__ == "__main__":
    main()
