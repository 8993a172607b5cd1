"""A virtual node with a short way to ask it things."""

from __future__ import annotations

import itertools
from typing import Any

import orjson

from edgenode.virtual import START_NS, VirtualNode

SECOND = 1_000_000_000
START = START_NS


class Driver:
    """`ask` gives the reply's body, `refused` the problem's; `fires` what left live."""

    def __init__(self, seed: int = 0) -> None:
        self.node = VirtualNode(seed=seed)
        self._corr = itertools.count(1)

    def send(self, op: str, body: Any = None, **header: Any) -> tuple[str, dict[str, Any]]:
        frames = self.frames(op, body, **header)
        ((magic, kind, echoed, _, reply),) = self.node.request(frames)
        assert (magic, echoed) == (b"MZP1", frames[2])
        return kind.decode(), orjson.loads(reply)

    def frames(self, op: str, body: Any = None, **header: Any) -> list[bytes]:
        corr = b"%d" % next(self._corr)
        raw = body if isinstance(body, bytes) else orjson.dumps(body or {})
        return [b"MZP1", b"Q", corr, orjson.dumps({"op": op, **header}), raw]

    def ask(self, op: str, body: Any = None, **header: Any) -> dict[str, Any]:
        kind, reply = self.send(op, body, **header)
        assert kind == "R", reply
        return reply

    def refused(self, op: str, body: Any = None, **header: Any) -> dict[str, Any]:
        kind, reply = self.send(op, body, **header)
        assert kind == "E", reply
        return reply

    def schedule(self, name: str = "t", **definition: Any) -> dict[str, Any]:
        return self.ask("timer.schedule", {"name": name, **definition})

    def after(self, duration: str, name: str = "t", **more: Any) -> dict[str, Any]:
        return self.schedule(name, schedule={"kind": "after", "duration": duration}, **more)

    def every(self, interval: str, name: str = "t", **more: Any) -> dict[str, Any]:
        mode = more.pop("mode", "fixed_rate")
        anchor = more.pop("anchor", None)
        schedule = {"kind": "every", "interval": interval, "mode": mode}
        if anchor:
            schedule["anchor"] = anchor
        return self.schedule(name, schedule=schedule, **more)

    def pass_(self, seconds: float) -> list[tuple[str, int, float]]:
        """Let time pass; (name, occurrence, seconds since START at which it fired) of each fire."""
        return fires(self.node.advance(round(seconds * SECOND)))


def fires(live: list[list[bytes]]) -> list[tuple[str, int, float]]:
    found = []
    for topic, stamp, body in live:
        if b"/e/timer.expired/" in topic:
            fired_ns = int.from_bytes(stamp[8:16], "big")
            data = orjson.loads(body)["data"]
            found.append((data["name"], data["occurrence"], (fired_ns - START) / SECOND))
    return found
