"""Keys, spreads, bulk changes and a forecast on a node that holds many timers.

    python -m bench.shaping [--small]

Every figure is of one client on the same machine. Beside a change of all timers, and beside a
forecast, another client asks for something small, again and again: that is what others feel.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from bench import load
from bench.children import begin, result_of
from bench.node import NS, ask, doors_of
from bench.report import machine
from minoots.cli.demo import ephemeral_node
from minoots.wire.times import format_instant

BATCH = 500
HERD_SPREAD = {"window": "5m", "mode": "emptiest"}


def timed_s(run: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that something takes, and what it gives."""
    began_ns = time.monotonic_ns()
    found = run()
    return (time.monotonic_ns() - began_ns) / NS, found


def creates(endpoint: str, requests: int) -> dict[str, int]:
    """Timers a second through schedule_many, 8 requests in flight, by what they ask for."""
    cases: dict[str, Callable[[int], dict[str, Any]]] = {
        "plain": lambda k: {},
        "new keys": lambda k: {"key": f"key-{k}"},
        "the same keys, extend": lambda k: {"key": f"key-{k}", "on_conflict": "extend"},
        "hashed": lambda k: {"spread": {"window": "5m", "mode": "hashed"}},
        "emptiest": lambda k: {"spread": HERD_SPREAD},
    }
    context: zmq.Context[Any] = zmq.Context()
    socket = load.dealer(context, endpoint)
    found = {}
    for name, more in cases.items():
        bodies = [
            json.dumps(
                {"timers": [load.definition(k) | more(k) for k in range(at, at + BATCH)]}
            ).encode()
            for at in range(0, BATCH * requests, BATCH)
        ]
        took = load.pump(socket, "timer.schedule_many", bodies, requests, 8)
        assert not took["refused"], f"{name}: {took['refused']} requests were refused"
        found[name] = round(requests * BATCH / took["seconds"])
        print(f"  creates a second, {name}: {found[name]:,}", flush=True)
    context.destroy(linger=0)
    return found


def beside(endpoint: str, op: str, body: dict[str, Any], looks: int) -> dict[str, Any]:
    """How long a request over all timers takes, and a small one of another client beside it."""
    client = load.spawn("lone", endpoint, looks)
    begin(client)
    seconds, reply = timed_s(lambda: ask(endpoint, op, body))
    found = {
        "seconds": round(seconds, 2),
        "timers": reply.get("count", reply.get("total")),
        "lone_latency_ms": result_of(client)["latency_ms"],
    }
    print(f"  {op}: {found}", flush=True)
    return found


def run(small: bool = False) -> dict[str, Any]:
    """Every case; `small` in some seconds, to see that it runs."""
    count, looks = (3_000, 5) if small else (200_000, 200)
    result: dict[str, Any] = {"machine": machine(), "small": small, "timers": count}
    with tempfile.TemporaryDirectory(prefix="minoots-bench-") as temporary:
        folder = Path(temporary) / "data"
        with ephemeral_node(folder):
            control = doors_of(folder)["control"]
            result["creates"] = creates(control, 2 if small else 40)
            client = load.spawn("many", control, count, 8, BATCH)
            begin(client)
            result_of(client)
            every = {"filter": {"name_prefix": ""}}
            to = {"to": format_instant(time.time_ns() + 7 * 3600 * NS)}
            result["forecast"] = beside(control, "timeline.bins", to, looks)
            dry = every | {"by": "1h", "dry_run": True}
            result["dry run"] = beside(control, "timer.shift_many", dry, looks)
            result["shift"] = beside(control, "timer.shift_many", every | {"by": "1h"}, looks)
    return result


if __name__ == "__main__":
    print(json.dumps(run("--small" in sys.argv), indent=1))
