"""Redis as a timer store: a sorted set by due time, definitions beside it, a worker that polls.

The worker reads what is due, does the work, and only then removes it: one worker, so that a crash
repeats timers and loses none. That is the kindest recipe for Redis; popping first would lose them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from subprocess import Popen
from typing import Any

from bench.peers.peer import (
    Absent,
    Ledger,
    Timer,
    body_of,
    end,
    free_port,
    key_of,
    spawn,
    spawn_worker,
    wait_for_port,
)
from bench.peers.wire import Line, Lines, Stream, chunks, pump, resp

PIPELINE = 500
IN_FLIGHT = 8
POLL_S = 0.010
DUE_MAX = 500  # what the worker takes at once
MS = 1_000_000


def command(*words: bytes) -> bytes:
    """A command in Redis' framing."""
    parts = [b"*%d\r\n" % len(words)]
    parts += (b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
    return b"".join(parts)


def due_ms(due_ns: int) -> int:
    """In whole ms, rounded up: late, never early."""
    return -(-due_ns // MS)


def one_by_one(timers: Sequence[Timer]) -> tuple[bytes, int]:
    """ZADD and SET of each timer: a request and how many answers it gets."""
    parts = []
    for timer in timers:
        key = b"%d" % timer.key
        parts.append(command(b"ZADD", b"due", b"%d" % due_ms(timer.due_ns), key))
        parts.append(command(b"SET", b"t:" + key, body_of(timer)))
    return b"".join(parts), 2 * len(timers)


def at_once(timers: Sequence[Timer]) -> tuple[bytes, int]:
    """One ZADD and one MSET of all timers."""
    scores: list[bytes] = []
    values: list[bytes] = []
    for timer in timers:
        key = b"%d" % timer.key
        scores += (b"%d" % due_ms(timer.due_ns), key)
        values += (b"t:" + key, body_of(timer))
    return command(b"ZADD", b"due", *scores) + command(b"MSET", *values), 2


@dataclass
class Redis:
    """A server of its own with an append-only file."""

    name: str
    ack: str
    fsync: str  # appendfsync: always, everysec
    variadic: bool = False  # ZADD and MSET of a whole pipeline
    creates_only: bool = False
    victims: tuple[str, ...] = ("store", "worker")
    port: int = field(default_factory=free_port)
    _server: Popen[bytes] | None = None

    def start(self, folder: Path) -> None:
        """redis-server, AOF only."""
        if which("redis-server") is None:
            raise Absent("install the Debian package redis-server")
        log = folder / "redis.log"
        arguments = {
            "--port": str(self.port),
            "--bind": "127.0.0.1",
            "--dir": str(folder),
            "--save": "",
            "--appendonly": "yes",
            "--appendfsync": self.fsync,
        }
        words = [word for pair in arguments.items() for word in pair]
        self._server = spawn(["redis-server", *words], log)
        wait_for_port(self._server, self.port, log)
        self._wait_loaded()

    def _wait_loaded(self) -> None:
        # It accepts while it still reads its file, and answers -LOADING.
        line = Line(self.port, resp, 60)
        while True:
            line.send(command(b"PING"))
            if line.next() == b"PONG":
                break
            time.sleep(0.01)
        line.close()

    def create(self, timers: Sequence[Timer]) -> float:
        """Pipelines of 500 timers, 8 in flight, one connection."""
        encode = at_once if self.variadic else one_by_one
        found = [encode(chunk) for chunk in chunks(timers, PIPELINE)]
        stream = Stream(self.port, Lines([b":", b"+OK"]))
        return pump(
            [stream],
            [request for request, _ in found],
            answers=[answers for _, answers in found],
            in_flight=IN_FLIGHT,
        )

    def work(self, ledger: Path) -> Popen[bytes]:
        """The polling worker."""
        return spawn_worker("redis", self.port, ledger)

    def servers(self) -> list[Popen[bytes]]:
        """One process."""
        return [self._server] if self._server else []

    def stop(self) -> None:
        """kill -9."""
        end(*self.servers())
        self._server = None


def work(port: int, ledger: Ledger) -> None:
    """Poll each 10 ms; at once again while there is more."""
    line: Line[Any] = Line(port, resp, 30)
    while True:
        now_ms = b"%d" % (time.time_ns() // MS)
        bounds = (b"-inf", now_ms, b"LIMIT", b"0", b"%d" % DUE_MAX)
        line.send(command(b"ZRANGEBYSCORE", b"due", *bounds))
        due = line.next()
        if not isinstance(due, list):
            raise ConnectionError(str(due))  # still loading
        if due:
            names = [b"t:" + key for key in due]
            line.send(command(b"MGET", *names))
            ledger.write(key_of(body) for body in line.next() if body is not None)
            line.send(command(b"ZREM", b"due", *due), command(b"UNLINK", *names))
            line.next()
            line.next()
        if len(due) < DUE_MAX:
            time.sleep(POLL_S)
