"""Clients that load a node: raw frames, encoded before the clock starts, in processes of their own.

python -m bench.load KIND ENDPOINT COUNT IN_FLIGHT [BATCH [PAYLOAD]]    prints one JSON line
python -m bench.load paced ENDPOINT RATE                      until a line comes on stdin
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import zmq

from bench.children import ready, say, start, told_to_stop
from bench.report import percentiles
from edgenode.doors._mailbox import Mailbox

NS = 1_000_000_000
DURATION = "6h"  # nothing that is created here fires while it is measured
PACE_S = 0.001  # between two looks of a paced client
PACED_IN_FLIGHT = 2_000  # unanswered requests at which a paced client falls behind instead
PACED_S = 300.0  # a paced client ends by itself
FAR_STEPS = 30 * 96 - 24  # quarters of an hour in thirty days, but for the first six hours
KEPT_MAX = 512  # ids that a client of `create_far` remembers, evenly spread


def definition(k: int) -> dict[str, Any]:
    """About 300 bytes in the log, as a real timer has."""
    return {
        "name": f"invoice-{k % 1000}",
        "labels": {"team": "billing", "region": "eu-west"},
        "schedule": {"kind": "after", "duration": DURATION},
        "payload": {"invoice": 1_000_000 + k, "action": "remind", "attempt": 1},
    }


def dealer(context: zmq.Context[Any], endpoint: str) -> zmq.Socket[bytes]:
    """A socket without limits of its own."""
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.rcvtimeo = 60_000
    socket.sndhwm = socket.rcvhwm = 0
    socket.connect(endpoint)
    return socket


def pump(
    socket: zmq.Socket[bytes],
    op: str,
    bodies: list[bytes],
    count: int,
    in_flight: int,
    kept: list[bytes] | None = None,
    keep_each: int = 1,
) -> dict[str, Any]:
    """Send `count` requests with `in_flight` unanswered; rate per request and latency.

    By a mailbox, as pyzmq alone costs more than the node: 20 us a request and reply.

    kept: takes the body of every `keep_each`-th reply.
    """
    header = json.dumps({"op": op}).encode()
    mailbox = Mailbox(socket)
    sent_ns = [0] * count
    took: list[float] = []
    refused = sent = done = 0
    began_ns = time.monotonic_ns()
    while done < count:
        upto = min(count, done + in_flight)
        if sent < upto:
            sent_ns[sent:upto] = [time.monotonic_ns()] * (upto - sent)
            mailbox.send(
                [
                    (b"MZP1", b"Q", b"%d" % k, header, bodies[k % len(bodies)])
                    for k in range(sent, upto)
                ]
            )
            sent = upto
        came = mailbox.drain(in_flight)
        if not came:
            assert socket.poll(60_000), "no reply in 60 s"
            continue
        now_ns = time.monotonic_ns()
        for frames in came:
            took.append((now_ns - sent_ns[int(frames[2])]) / 1e6)
            refused += frames[1] != b"R"
            if kept is not None and done % keep_each == 0:
                kept.append(frames[4])
            done += 1
    seconds = (time.monotonic_ns() - began_ns) / NS
    return {"seconds": seconds, "refused": refused, "latency_ms": percentiles(took)}


def create_single(socket: zmq.Socket[bytes], count: int, in_flight: int) -> dict[str, Any]:
    """`timer.schedule`, one timer a request."""
    bodies = [json.dumps(definition(k)).encode() for k in range(min(count, 2_000))]
    result = pump(socket, "timer.schedule", bodies, count, in_flight)
    return result | {"per_second": count / result["seconds"]}


def create_many(
    socket: zmq.Socket[bytes], count: int, in_flight: int, batch: int
) -> dict[str, Any]:
    """`timer.schedule_many`, `batch` timers a request; `count` timers in all."""
    requests = max(count // batch, 1)
    bodies = [
        json.dumps({"timers": [definition(r * batch + k) for k in range(batch)]}).encode()
        for r in range(min(requests, 16))
    ]
    result = pump(socket, "timer.schedule_many", bodies, requests, in_flight)
    return result | {"per_second": requests * batch / result["seconds"]}


def far(k: int, payload_bytes: int = 0) -> dict[str, Any]:
    """The same, due at some quarter of an hour between six hours and thirty days from now."""
    # A prime step visits quarters far apart, as the dues of real timers are in no order.
    after_min = 6 * 60 + 15 * (k * 7_368_787 % FAR_STEPS)
    made = definition(k) | {"schedule": {"kind": "after", "duration": f"{after_min}m"}}
    if payload_bytes:
        made["payload"] = "p" * (payload_bytes - 2)
    return made


def create_far(
    socket: zmq.Socket[bytes], count: int, in_flight: int, batch: int, payload_bytes: int = 0
) -> dict[str, Any]:
    """As `create_many`, spread over thirty days: what a node full of pending timers holds.

    payload_bytes: of each timer's JSON, 0 for that of `definition`. ids: some of those made.
    """
    requests = max(count // batch, 1)
    bodies = [
        json.dumps({"timers": [far(r * batch + k, payload_bytes) for k in range(batch)]}).encode()
        for r in range(min(requests, 64))
    ]
    kept: list[bytes] = []
    keep_each = -(-requests // KEPT_MAX)
    result = pump(socket, "timer.schedule_many", bodies, requests, in_flight, kept, keep_each)
    ids = [json.loads(body)["results"][0]["id"] for body in kept]
    return result | {"per_second": requests * batch / result["seconds"], "ids": ids}


def lone(socket: zmq.Socket[bytes], count: int) -> dict[str, Any]:
    """One small request at a time, with pauses: what a user beside heavy load feels."""
    body = json.dumps(definition(0)).encode()
    header = b'{"op":"timer.schedule"}'
    took = []
    for k in range(count):
        began_ns = time.monotonic_ns()
        socket.send_multipart((b"MZP1", b"Q", b"%d" % k, header, body))
        socket.recv_multipart()
        took.append((time.monotonic_ns() - began_ns) / 1e6)
        time.sleep(0.005)
    return {"latency_ms": percentiles(took)}


def create_paced(socket: zmq.Socket[bytes], rate: int) -> dict[str, Any]:
    """`timer.schedule` at `rate` a second, one timer a request, until a line comes on stdin."""
    bodies = [json.dumps(definition(k)).encode() for k in range(2_000)]
    header = b'{"op":"timer.schedule"}'
    sent_ns: list[int] = []
    took: list[float] = []
    refused = 0
    began_ns = time.monotonic_ns()
    while time.monotonic_ns() < began_ns + PACED_S * NS and not told_to_stop():
        now_ns, sent = time.monotonic_ns(), len(sent_ns)
        owed = (now_ns - began_ns) * rate // NS - sent
        for k in range(sent, sent + min(owed, PACED_IN_FLIGHT - sent + len(took))):
            socket.send_multipart((b"MZP1", b"Q", b"%d" % k, header, bodies[k % len(bodies)]))
            sent_ns.append(now_ns)
        while socket.poll(0):
            frames = socket.recv_multipart()
            took.append((time.monotonic_ns() - sent_ns[int(frames[2])]) / 1e6)
            refused += frames[1] != b"R"
        time.sleep(PACE_S)
    seconds = (time.monotonic_ns() - began_ns) / NS
    return {
        "seconds": seconds,
        "per_second": (len(took) - refused) / seconds,
        "refused": refused,
        "latency_ms": percentiles(took),
    }


def spawn(kind: str, endpoint: str, *numbers: int) -> subprocess.Popen[str]:
    """Start a client process; it waits for a line on stdin before it begins."""
    return start("bench.load", kind, endpoint, *map(str, numbers))


def main() -> None:
    """One client process."""
    kind, endpoint, *rest = sys.argv[1:]
    numbers = [int(number) for number in rest]
    context: zmq.Context[Any] = zmq.Context()
    socket = dealer(context, endpoint)
    socket.send_multipart((b"MZP1", b"Q", b"hello", b'{"op":"hello"}', b"{}"))
    socket.recv_multipart()
    ready()
    run = {
        "single": create_single,
        "many": create_many,
        "far": create_far,
        "lone": lone,
        "paced": create_paced,
    }[kind]
    say(json.dumps(run(socket, *numbers)))  # type: ignore[operator]
    context.destroy(linger=0)


if __name__ == "__main__":
    main()
