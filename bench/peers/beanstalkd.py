"""beanstalkd: delayed jobs with a binlog. Its delays are whole seconds, so they are rounded up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from subprocess import Popen

from bench.peers.peer import (
    NS,
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
from bench.peers.wire import Line, Lines, Stream, beanstalk, chunks, pump

PIPELINE = 500
IN_FLIGHT = 8
TTR_S = 60  # how long a worker may hold a job


def put(timer: Timer, now_ns: int) -> bytes:
    """`put` of a timer, its delay counted from now and rounded up."""
    delay_s = max(-(-(timer.due_ns - now_ns) // NS), 0)
    body = body_of(timer)
    return b"put 0 %d %d %d\r\n%s\r\n" % (delay_s, TTR_S, len(body), body)


@dataclass
class Beanstalkd:
    """A server of its own with a binlog."""

    name: str
    ack: str
    fsync_ms: int | None  # -f; None: its default, 50
    creates_only: bool = False
    victims: tuple[str, ...] = ("store", "worker")
    port: int = field(default_factory=free_port)
    _server: Popen[bytes] | None = None

    def start(self, folder: Path) -> None:
        """beanstalkd over its binlog."""
        if which("beanstalkd") is None:
            raise Absent("install the Debian package beanstalkd")
        log = folder.with_suffix(".log")
        flags = [] if self.fsync_ms is None else ["-f", str(self.fsync_ms)]
        where = ["-l", "127.0.0.1", "-p", str(self.port), "-b", str(folder)]
        self._server = spawn(["beanstalkd", *where, *flags], log)
        wait_for_port(self._server, self.port, log)

    def create(self, timers: Sequence[Timer]) -> float:
        """Pipelines of 500 puts, 8 in flight, one connection."""
        # Delays count from when a put arrives, so encoding late enough matters more than encoding
        # before the clock starts: a put that waits in a pipeline is due later by that.
        now_ns = time.time_ns()
        requests = [
            b"".join(put(timer, now_ns) for timer in chunk) for chunk in chunks(timers, PIPELINE)
        ]
        answers = [len(chunk) for chunk in chunks(timers, PIPELINE)]
        stream = Stream(self.port, Lines([b"INSERTED"]))
        return pump([stream], requests, answers=answers, in_flight=IN_FLIGHT)

    def work(self, ledger: Path) -> Popen[bytes]:
        """A worker that reserves, works, deletes."""
        return spawn_worker("beanstalkd", self.port, ledger)

    def servers(self) -> list[Popen[bytes]]:
        """One process."""
        return [self._server] if self._server else []

    def stop(self) -> None:
        """kill -9."""
        end(*self.servers())
        self._server = None


def work(port: int, ledger: Ledger) -> None:
    """Reserve, write, delete; the next reserve travels with the delete."""
    line = Line(port, beanstalk, 120)
    line.send(b"reserve\r\n")
    while True:
        reply = line.next()
        if reply.words[0] == b"RESERVED":
            ledger.write([key_of(reply.body)])
            line.send(b"delete %s\r\nreserve\r\n" % reply.words[1])
