"""MINOOTS through the same interface: raw frames pumped by bench/load.py, events from its doors.

Lateness and the herd are heard on the live feed, as a reader of the raw protocol hears them; a
kill is survived by `watch` of the SDK, which replays what the feed missed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import zmq

from bench import load
from bench.peers.peer import (
    Ledger,
    Refused,
    Timer,
    free_port,
    instant,
    key_of,
    spawn_worker,
)
from bench.peers.wire import chunks
from minoots.cli.demo import ephemeral_node

BATCH = 500
BATCHES_IN_FLIGHT = 8
SINGLES_IN_FLIGHT = 256
GATHER_MAX = 500  # events taken before a write


def definition_of(timer: Timer, relative: bool) -> dict[str, Any]:
    """What a client sends for a timer; the node adds the rest of the record.

    relative: six hours from now, whenever it is due, as bench/load.py asks for it.
    """
    found = load.definition(timer.key)
    if not relative:
        found["schedule"] = {"kind": "at", "instant": instant(timer.due_ns)}
    found["payload"]["k"] = timer.key
    return found


@dataclass
class Minoots:
    """A node of its own on free ports."""

    name: str
    single: bool = False  # one timer a request
    relative: bool = False  # `after` in place of `at`: cheaper to decide, for creates only
    ack: str = "fsync"
    creates_only: bool = False
    victims: tuple[str, ...] = ("store",)
    port: int = field(default_factory=free_port)
    _stream_port: int = field(default_factory=free_port)
    _events_port: int = field(default_factory=free_port)
    _folder: Path = Path()
    _node: Popen[bytes] | None = None
    _running: ExitStack = field(default_factory=ExitStack)

    def start(self, folder: Path) -> None:
        """A node; after a kill its door file is stale and must not be taken for a new one."""
        self._folder = folder / "data"
        (self._folder / "minoots.json").unlink(missing_ok=True)
        doors = (
            f"--control=tcp://127.0.0.1:{self.port}",
            f"--stream=tcp://127.0.0.1:{self._stream_port}",
            f"--events=tcp://127.0.0.1:{self._events_port}",
        )
        self._node = self._running.enter_context(ephemeral_node(self._folder, *doors))

    def create(self, timers: Sequence[Timer]) -> float:
        """`schedule_many` of 500, 8 in flight; or single requests, 256 in flight."""
        if self.single:
            op, in_flight = "timer.schedule", SINGLES_IN_FLIGHT
            bodies = [json.dumps(definition_of(one, self.relative)).encode() for one in timers]
        else:
            op, in_flight = "timer.schedule_many", BATCHES_IN_FLIGHT
            bodies = [
                json.dumps(
                    {"timers": [definition_of(one, self.relative) for one in chunk]}
                ).encode()
                for chunk in chunks(timers, BATCH)
            ]
        context: zmq.Context[Any] = zmq.Context()
        try:
            socket = load.dealer(context, f"tcp://127.0.0.1:{self.port}")
            socket.send_multipart((b"MZP1", b"Q", b"hello", b'{"op":"hello"}', b"{}"))
            socket.recv_multipart()
            result = load.pump(socket, op, bodies, len(bodies), in_flight)
        finally:
            context.destroy(linger=0)
        if result["refused"]:
            raise Refused(f"{result['refused']} of {len(bodies)} requests")
        seconds: float = result["seconds"]
        return seconds

    def work(self, ledger: Path) -> Popen[bytes]:
        """A reader of events: the live feed, or `watch` where the stage kills."""
        if "kill" in ledger.name:
            return spawn_worker("watcher", self.port, ledger)
        return spawn_worker("ours", self._events_port, ledger)

    def servers(self) -> list[Popen[bytes]]:
        """The node."""
        return [self._node] if self._node else []

    def stop(self) -> None:
        """kill -9."""
        for node in self.servers():
            node.kill()
        self._running.close()
        self._node = None


def work(port: int, ledger: Ledger) -> None:
    """Write each expiration of the live feed, as many at once as have come."""
    context: zmq.Context[Any] = zmq.Context()
    feed = context.socket(zmq.SUB)
    feed.rcvhwm = 0
    feed.subscribe(b"t/default/e/timer.expired/")
    feed.connect(f"tcp://127.0.0.1:{port}")
    while True:
        keys = [key_of(feed.recv_multipart()[2])]
        while len(keys) < GATHER_MAX and feed.poll(0):
            keys.append(key_of(feed.recv_multipart()[2]))
        ledger.write(keys)
