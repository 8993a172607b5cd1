"""What deciding costs, in thread CPU time of a virtual node: without disk and sockets.

python -m bench.turn [--small]
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from bench.load import definition
from bench.report import machine
from edgenode.principal import LOCAL
from edgenode.virtual import VirtualNode

BATCH = 500
ROW = 50  # requests that came together
HEADER = b'{"op":"%b"}'


def frames(op: bytes, body: bytes) -> list[bytes]:
    """A request without its peer."""
    return [b"MZP1", b"Q", b"c", HEADER % op, body]


def timed(count: int, run: Any) -> float:
    """Thread CPU us of one of `count` things that `run()` does."""
    began = time.thread_time_ns()
    run()
    return (time.thread_time_ns() - began) / 1e3 / count


def one_round(requests: int, singles: int) -> dict[str, float]:
    """us a timer of schedule_many, a timer.schedule by itself and in a row, an expiration with its
    event."""
    node = VirtualNode()
    loop = node._loop
    timers = [definition(k) for k in range(BATCH)]
    for timer in timers:
        timer["schedule"]["duration"] = "60s"
    many = frames(b"timer.schedule_many", json.dumps({"timers": timers}).encode())
    single = (b"peer", *frames(b"timer.schedule", json.dumps(definition(0)).encode()))

    def decide() -> None:
        for _ in range(singles):
            loop._tick()
            loop.node.accept(0, single, LOCAL)

    def decide_rows() -> None:
        came = [(0, single, LOCAL)] * ROW
        for _ in range(singles // ROW):
            loop._tick()
            assert loop.node.accept_singles(came, 0) == ROW

    found = {
        "many_us": timed(BATCH * requests, lambda: [node.request(many) for _ in range(requests)]),
        "single_us": timed(singles, decide),
        "in_a_row_us": timed(singles // ROW * ROW, decide_rows),
    }
    loop.step()
    node.live()
    node.clock.advance(59_990_000_000)
    loop.step()
    node._follow_ns = 1 << 62  # a real node's tables follow on a thread of their own
    live: list[list[bytes]] = []
    found["fire_us"] = timed(
        BATCH * requests, lambda: live.extend(node.live() + node.advance(20_000_000))
    )
    assert len(live) >= BATCH * requests - 512, "the timers did not fire"
    return found


def run(small: bool = False) -> dict[str, Any]:
    """The medians of five rounds."""
    rounds = [
        one_round(2, 200) if small else one_round(20, 5_000) for _ in range(1 if small else 5)
    ]
    medians = {
        name: round(sorted(found[name] for found in rounds)[len(rounds) // 2], 2)
        for name in rounds[0]
    }
    return {"machine": machine(), "small": small} | medians


if __name__ == "__main__":
    print(json.dumps(run("--small" in sys.argv), indent=1))
