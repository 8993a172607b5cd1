"""Workers of a durable consumer: raw frames, one socket each, in a process of their own.

python -m bench.workers drain STREAM BATCH DEPTH WANTED NAME...    prints one JSON line
python -m bench.workers follow STREAM BATCH SECONDS NAME           the same: from fire to worker

`drain`: one worker for each NAME (a name twice: two workers share it), each with DEPTH pulls under
way; ends when WANTED messages are acknowledged, by all of them together.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import orjson
import zmq

from bench.children import ready, say
from bench.load import NS, dealer
from bench.report import percentiles
from minoots.wire.times import parse_instant

PULL, ACK = b'{"op":"consumer.pull"}', b'{"op":"consumer.ack"}'
IDLE_S = 10.0  # without a reply for so long a worker gives up


class Worker:
    """One socket that pulls, and acknowledges what came."""

    def __init__(self, context: zmq.Context[Any], stream: str, name: str, batch: int) -> None:
        self.socket = dealer(context, stream)
        self._name = name
        self._pull = json.dumps({"name": name, "batch": batch, "wait": "5s"}).encode()
        self.took = self.acked = self.again = 0

    def pull(self) -> None:
        """Ask for a batch."""
        self.socket.send_multipart((b"MZP1", b"Q", b"p", PULL, self._pull))

    def hear(self) -> list[dict[str, Any]]:
        """Take one reply; the messages in it, whose acknowledgement is under way then."""
        _, kind, corr, _, body = self.socket.recv_multipart()
        assert kind == b"R", body
        reply = orjson.loads(body)
        if corr == b"a":
            self.acked += reply["count"]
            return []
        messages: list[dict[str, Any]] = reply["messages"]
        self.pull()
        if messages:
            self.took += len(messages)
            self.again += sum(message["attempt"] > 1 for message in messages)
            asked = {"name": self._name, "deliveries": [one["delivery"] for one in messages]}
            self.socket.send_multipart((b"MZP1", b"Q", b"a", ACK, orjson.dumps(asked)))
        return messages


def drain(stream: str, batch: int, depth: int, wanted: int, names: list[str]) -> dict[str, Any]:
    """See the module."""
    context: zmq.Context[Any] = zmq.Context()
    workers = [Worker(context, stream, name, batch) for name in names]
    poller = zmq.Poller()
    by_socket = {worker.socket: worker for worker in workers}
    for worker in workers:
        poller.register(worker.socket, zmq.POLLIN)
    ready()
    began_ns = time.monotonic_ns()
    for worker in workers:
        for _ in range(depth):
            worker.pull()
    while sum(worker.acked for worker in workers) < wanted:
        came = poller.poll(int(IDLE_S * 1_000))
        assert came, f"no reply in {IDLE_S} s"
        for socket, _ in came:
            by_socket[socket].hear()
    seconds = (time.monotonic_ns() - began_ns) / NS
    acked = sum(worker.acked for worker in workers)
    context.destroy(linger=0)
    return {
        "acked": acked,
        "again": sum(worker.again for worker in workers),
        "seconds": round(seconds, 3),
        "per_second": round(acked / seconds),
    }


def follow(stream: str, batch: int, seconds: int, name: str) -> dict[str, Any]:
    """From the instant of a fire to a worker that waits, in ms."""
    context: zmq.Context[Any] = zmq.Context()
    worker = Worker(context, stream, name, batch)
    ready()
    worker.pull()
    until_s, took = time.monotonic() + seconds, []
    while time.monotonic() < until_s:
        if not worker.socket.poll(100):
            continue
        messages = worker.hear()
        now_ns = time.time_ns()
        took += [(now_ns - parse_instant(m["event"]["data"]["fired"])) / 1e6 for m in messages]
    context.destroy(linger=0)
    return {"heard": len(took), "after_fire_ms": percentiles(took)}


def main() -> None:
    """One process."""
    kind, stream, *rest = sys.argv[1:]
    if kind == "drain":
        batch, depth, wanted = map(int, rest[:3])
        found = drain(stream, batch, depth, wanted, rest[3:])
    else:
        found = follow(stream, int(rest[0]), int(rest[1]), rest[2])
    say(json.dumps(found))


if __name__ == "__main__":
    main()
