"""BullMQ: delayed jobs on Redis. Creates call BullMQ's own script over the raw protocol.

What is sent is what its Node client sends: EVALSHA of addDelayedJob with keys, packed arguments,
the job's data and packed options. The worker is BullMQ's own.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from subprocess import Popen

import msgspec

from bench.peers.peer import Absent, Timer, body_of, free_port, spawn
from bench.peers.redis import IN_FLIGHT, PIPELINE, Redis, command, due_ms
from bench.peers.wire import Line, Lines, Stream, chunks, pump, resp

PREFIX = "bull:timers:"
MODULES_VARIABLE = "MINOOTS_BULLMQ"
PACKAGES = ("bullmq", "ioredis")  # its client of Redis is a package apart since version 6
KEYS = ("marker", "meta", "id", "delayed", "completed", "events")  # of addDelayedJob-6
CONCURRENCY = 100
INSTALL_S = 120
MS = 1_000_000

SCRIPT_JS = """
const { addDelayedJob } = require(process.argv[1] + '/bullmq/dist/cjs/scripts/addDelayedJob-6.js');
process.stdout.write(addDelayedJob.content);
"""
WORKER_JS = """
const [modules, port, path, concurrency] = process.argv.slice(1);
const { Worker } = require(modules + '/bullmq');
const fs = require('fs');
const ledger = fs.openSync(path, 'a');
const worker = new Worker('timers', async job => {
  const now = BigInt(Math.round((performance.timeOrigin + performance.now()) * 1e6));
  fs.writeSync(ledger, `${job.data.payload.k} ${now}\\n`);
}, { connection: { host: '127.0.0.1', port: +port, maxRetriesPerRequest: null },
     concurrency: +concurrency });
worker.on('error', error => console.error(error.message));
worker.on('failed', (job, error) => console.error(error.message));
"""


def add_delayed(sha: bytes, timer: Timer, now_ns: int) -> bytes:
    """EVALSHA of addDelayedJob for one timer; the delay is rounded up to whole ms."""
    now_ms = now_ns // MS
    delay_ms = max(due_ms(timer.due_ns) - now_ms, 1)
    name = f"invoice-{timer.key % 1000}"
    arguments = [PREFIX, "", name, now_ms, None, None, None, None, None, None]
    keys = [f"{PREFIX}{key}".encode() for key in KEYS]
    packed = [
        msgspec.msgpack.encode(arguments),
        body_of(timer),
        msgspec.msgpack.encode({"delay": delay_ms, "attempts": 0}),
    ]
    return command(b"EVALSHA", sha, b"%d" % len(keys), *keys, *packed)


@dataclass
class Bullmq:
    """A Redis of its own, and workers on Node."""

    name: str = "BullMQ"
    ack: str = "<= 1 s behind"
    creates_only: bool = False
    victims: tuple[str, ...] = ("store", "worker")
    port: int = field(default_factory=free_port)
    _installed: tempfile.TemporaryDirectory[str] | None = None
    _redis: Redis | None = None
    _sha: bytes = b""

    def start(self, folder: Path) -> None:
        """redis-server with appendfsync everysec, as BullMQ's manual asks, and the script."""
        modules = self._modules()
        redis = Redis("", "", "everysec", port=self.port)
        redis.start(folder)
        self._redis = redis
        script = subprocess.run(
            ["node", "-e", SCRIPT_JS, modules], capture_output=True, check=True
        ).stdout
        line = Line(self.port, resp, 10)
        line.send(command(b"SCRIPT", b"LOAD", script))
        self._sha = line.next()
        line.close()

    def _modules(self) -> str:
        """A node_modules folder with bullmq: the given one, or a temporary one of npm's."""
        if which("node") is None:
            raise Absent("install the Debian packages nodejs and npm")
        given = os.environ.get(MODULES_VARIABLE)
        if given is None and self._installed is None:
            if which("npm") is None:
                raise Absent(f"install npm, or name a node_modules with bullmq: {MODULES_VARIABLE}")
            self._installed = tempfile.TemporaryDirectory(prefix="minoots-bullmq-")
            words = ["npm", "install", "--no-audit", "--no-fund", "--prefix", self._installed.name]
            try:
                subprocess.run(
                    [*words, *PACKAGES], check=True, capture_output=True, timeout=INSTALL_S
                )
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                raise Absent(f"npm install {' '.join(PACKAGES)} failed: {error}") from error
        folder = Path(given) if given else Path(self._installed.name if self._installed else "")
        for modules in (folder, folder / "node_modules"):
            if all((modules / package).is_dir() for package in PACKAGES):
                return str(modules)
        raise Absent(f"no {' and '.join(PACKAGES)} in {folder}; npm install them there")

    def create(self, timers: Sequence[Timer]) -> float:
        """Pipelines of 500 jobs, 8 in flight, one connection."""
        now_ns = time.time_ns()
        runs = list(chunks(timers, PIPELINE))
        requests = [
            b"".join(add_delayed(self._sha, timer, now_ns) for timer in chunk) for chunk in runs
        ]
        answers = [2 * len(run) for run in runs]  # a job's id is a bulk string: two lines
        stream = Stream(self.port, Lines([b"$", *(b"%d" % digit for digit in range(10))]))
        return pump([stream], requests, answers=answers, in_flight=IN_FLIGHT)

    def work(self, ledger: Path) -> Popen[bytes]:
        """BullMQ's worker."""
        words = [self._modules(), str(self.port), str(ledger), str(CONCURRENCY)]
        return spawn(["node", "-e", WORKER_JS, *words], ledger.with_suffix(".log"))

    def servers(self) -> list[Popen[bytes]]:
        """Its Redis."""
        return self._redis.servers() if self._redis else []

    def stop(self) -> None:
        """kill -9."""
        if self._redis is not None:
            self._redis.stop()
