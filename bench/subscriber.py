"""A subscriber that is precise about when it hears, and a bare publisher to hold it against.

    python -m bench.subscriber listen ENDPOINT            told NAME COUNT QUIET_MS PATH by lines
    python -m bench.subscriber publish ENDPOINT RATE      told COUNT by lines

The subscriber is a process of its own under SCHED_FIFO where permitted, as is its libzmq thread. It
waits in a blocking receive and reads the clock as soon as that returns; what came is looked at
afterwards. For each event four int64 go to PATH: heard, fired, due (ns since the epoch), seq.

The bare publisher is PUB/SUB and nothing else: plain pyzmq, events of the same size and form, the
instant of the send in the place of `fired`, the same policy. It waits for nothing but its rate.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from array import array
from calendar import timegm
from functools import lru_cache
from pathlib import Path
from struct import Struct
from typing import Any

import zmq

from bench.children import claim_realtime, say

NS = 1_000_000_000
PRIORITY = 50  # below whatever keeps time
EXPIRED = b"t/default/e/timer.expired/"
HEARTBEAT = b"t/default/~/hb"
HELLO_MS = 10_000  # a publisher greets newcomers at once
HEARD, FIRED, DUE, SEQ = range(4)  # columns of what is heard
STAMP = Struct(">4q")
BARE = "bare"  # the timers' name of the bare publisher
EVENT_BYTES = 620  # of an expiration of a small timer, about


def listener(context: zmq.Context[Any], endpoint: str) -> zmq.Socket[bytes]:
    """A socket that has heard its publisher, and now hears expirations alone."""
    socket: zmq.Socket[bytes] = context.socket(zmq.SUB)
    socket.linger = 0
    socket.rcvhwm = 0
    socket.rcvtimeo = HELLO_MS
    socket.subscribe(EXPIRED)
    socket.subscribe(HEARTBEAT)
    socket.connect(endpoint)
    while socket.recv_multipart()[0] != HEARTBEAT:
        pass
    socket.unsubscribe(HEARTBEAT)
    return socket


def hear(socket: zmq.Socket[bytes], name: str, count: int, quiet_ms: int) -> array[int]:
    """Until `count` expirations of timers called `name` came, or none for `quiet_ms`: rows."""
    start = EXPIRED + name.encode() + b"/"
    came: list[tuple[int, bytes, bytes]] = []
    socket.rcvtimeo = quiet_ms
    receive, clock_ns = socket.recv_multipart, time.time_ns
    while len(came) < count:
        try:
            topic, stamp, body = receive()
        except zmq.Again:
            break
        now_ns = clock_ns()
        if topic.startswith(start):
            came.append((now_ns, stamp, body))
    rows = array("q")
    for now_ns, stamp, body in came:
        seq, fired_ns, _, _ = STAMP.unpack(stamp)
        rows.extend((now_ns, fired_ns, due_ns(body), seq))
    return rows


def due_ns(body: bytes) -> int:
    """`data.due` of an event's JSON, in ns since the epoch."""
    at = body.index(b'"due":"') + 7
    return whole_s(body[at : at + 19]) * NS + int(body[at + 20 : at + 29])


@lru_cache(maxsize=64)
def whole_s(text: bytes) -> int:
    """The second of an instant."""
    return timegm(time.strptime(text.decode(), "%Y-%m-%dT%H:%M:%S"))


def bare_body(now_ns: int) -> bytes:
    """An event as long as one of ours, due now."""
    seconds, ns = divmod(now_ns, NS)
    due = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{ns:09}Z"
    text = json.dumps({"specversion": "1.0", "data": {"due": due}}, separators=(",", ":"))
    return text.encode().ljust(EVENT_BYTES)


def publish(socket: zmq.Socket[bytes], count: int, rate: int) -> None:
    """`count` bare events, evenly spread."""
    topic = EXPIRED + BARE.encode() + b"/tmr_00000000000000000000000000"
    body = bare_body(time.time_ns())
    begin_ns = time.monotonic_ns()
    for k in range(count):
        wait_ns = begin_ns + (k + 1) * NS // rate - time.monotonic_ns()
        if wait_ns > 0:
            time.sleep(wait_ns / NS)
        stamp = STAMP.pack(k + 1, time.time_ns(), k + 1, k + 1)
        socket.send_multipart((topic, stamp, body))


def serve_listener(context: zmq.Context[Any], endpoint: str, policy: str) -> None:
    """Hear what each line asks for."""
    socket = listener(context, endpoint)
    say(json.dumps({"policy": policy}))
    gc.freeze()
    gc.disable()
    for line in sys.stdin:
        name, count, quiet_ms, path = line.split()
        found = hear(socket, name, int(count), int(quiet_ms))
        Path(path).write_bytes(found.tobytes())
        say(json.dumps({"heard": len(found) // 4}))


def serve_publisher(context: zmq.Context[Any], endpoint: str, rate: int) -> None:
    """Say where it is bound, greet one subscriber, and publish what each line asks for."""
    socket: zmq.Socket[bytes] = context.socket(zmq.XPUB)
    socket.linger = 0
    socket.sndhwm = 0
    socket.rcvtimeo = HELLO_MS
    socket.bind(endpoint)
    say(socket.getsockopt_string(zmq.LAST_ENDPOINT))
    while socket.recv() != b"\1" + HEARTBEAT:
        pass
    socket.send_multipart((HEARTBEAT, b"", b"{}"))
    for line in sys.stdin:
        publish(socket, int(line), rate)


def main() -> None:
    """One process; it ends when its stdin does."""
    kind, endpoint, *rest = sys.argv[1:]
    policy = claim_realtime(PRIORITY)
    context: zmq.Context[Any] = zmq.Context()
    try:
        if kind == "listen":
            serve_listener(context, endpoint, policy)
        else:
            serve_publisher(context, endpoint, int(rest[0]))
    finally:
        context.destroy(linger=0)
        if endpoint.startswith("ipc://") and kind == "publish":
            Path(endpoint.removeprefix("ipc://")).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
