"""Bad company, measured: how long a well-behaved client waits beside each kind of it, and alone.

The client asks one thing after the other, and hears timers that are due meanwhile. What bad company
may cost it is a bound, and the figures are printed (`pytest -s`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import zmq

from minoots.wire.frames import BODY_BYTES_MAX
from tests.e2e.harness import Node, Raw, ns_of
from tests.e2e.load import until
from tests.e2e.test_peers import STALLED, greeting, ready

ASKS = int(os.environ.get("MINOOTS_ASKS", "150"))
IDLE = 1_000
HALF_OPEN = 200
P99_S_MAX = 0.25  # on a machine that others use too; alone it is some ms
MAX_S_MAX = 1.0


class Waits(NamedTuple):
    """What the client waited for its answers, and what its timers were late, in seconds."""

    p50: float
    p99: float
    most: float
    late_most: float

    @property
    def says(self) -> str:
        """In ms."""
        p50, p99, most, late = (f"{1000 * value:.1f}" for value in self)
        return f"p50 {p50} p99 {p99} max {most} ms; latest timer {late} ms"


def behave(raw: Raw, feed: zmq.Socket[bytes], prefix: str) -> Waits:
    """Ask and listen; every answer and every event must come."""
    waited: list[float] = []
    late: list[float] = []
    names = {f"{prefix}{n}" for n in range(ASKS)}
    for name in sorted(names):
        began_s = time.monotonic()
        assert raw.after("5ms", name, payload={"x": name})["name"] == name
        waited.append(time.monotonic() - began_s)
    end_s = time.monotonic() + 10
    heard: set[str] = set()
    while heard != names and time.monotonic() < end_s:
        if feed.poll(100):
            topic, stamp, body = feed.recv_multipart()
            if b"/e/timer.expired/" in topic:
                data = json.loads(body)["data"]
                heard.add(data["name"])
                late.append((int.from_bytes(stamp[8:16], "big") - ns_of(data["due"])) / 1e9)
                assert late[-1] >= 0
    assert heard == names, f"{len(names - heard)} timers were not heard"
    waited.sort()
    return Waits(waited[len(waited) // 2], waited[len(waited) * 99 // 100], waited[-1], max(late))


def connect(endpoint: str) -> socket.socket:
    """A raw TCP connection to a door."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)


# ------------------------------------------------------------------------------- the company


@contextmanager
def nobody(doors: dict[str, str]) -> Iterator[None]:
    yield


@contextmanager
def idle_connections(doors: dict[str, str]) -> Iterator[None]:
    """A thousand that connect and say nothing, as many at each door."""
    with ExitStack() as stack:
        for number in range(IDLE):
            door = ("control", "stream", "events")[number % 3]
            stack.enter_context(connect(doors[door]))
        yield


@contextmanager
def half_open(doors: dict[str, str]) -> Iterator[None]:
    """Peers that shake hands, ask much, and never read; then peers that vanish without a FIN."""
    words = greeting() + ready()
    with ExitStack() as stack:
        for number in range(HALF_OPEN):
            one = stack.enter_context(connect(doors["control" if number % 2 else "stream"]))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
            one.sendall(words[: 64 if number % 4 == 0 else None] + _asks(number % 4 * 20))
        yield


def _asks(count: int) -> bytes:
    """Requests as ZMTP: five frames each."""
    frames = (b"MZP1", b"Q", b"1", b'{"op":"schema.get"}', b"{}")
    more = b"".join(bytes([at < 4, len(frame)]) + frame for at, frame in enumerate(frames))
    return more * count


@contextmanager
def oversized(doors: dict[str, str]) -> Iterator[None]:
    """Peers that keep sending bodies above every limit, and connect again."""
    sender = subprocess.Popen([sys.executable, "-c", OVERSIZED, doors["control"]])
    try:
        time.sleep(0.3)
        yield
        assert sender.poll() is None
    finally:
        sender.kill()
        sender.wait()


OVERSIZED = f"""
import sys, zmq
context = zmq.Context()
body = b"x" * ({BODY_BYTES_MAX} + (2 << 20))
while True:
    one = context.socket(zmq.DEALER)
    one.linger = 0
    one.connect(sys.argv[1])
    one.send_multipart([b"MZP1", b"Q", b"1", b'{{"op":"timer.schedule"}}', body])
    one.poll(200)
    one.close()
"""


@contextmanager
def stalled_subscribers(doors: dict[str, str]) -> Iterator[None]:
    """Subscribers that are stopped while everything goes by."""
    with ExitStack() as stack:
        for _ in range(3):
            one = subprocess.Popen(
                [sys.executable, "-c", STALLED, doors["events"]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(one.wait)
            stack.callback(one.kill)
            assert one.stdout is not None
            assert one.stdin is not None
            stack.callback(one.stdout.close)
            stack.callback(one.stdin.close)
            assert one.stdout.readline() == "ready\n"
            one.send_signal(signal.SIGSTOP)
        yield


COMPANY: dict[str, Callable[[dict[str, str]], object]] = {
    "idle": idle_connections,
    "half-open": half_open,
    "oversized": oversized,
    "stalled": stalled_subscribers,
}


@pytest.mark.parametrize("kind", COMPANY)
def test_a_good_client_beside(tmp_path: Path, kind: str) -> None:
    with Node(tmp_path / "data") as node, Raw(node.doors) as raw:
        feed = raw.subscribe()
        alone = behave(raw, feed, "alone")
        with COMPANY[kind](node.doors):  # type: ignore[attr-defined]
            beside = behave(raw, feed, "beside")
            until(lambda: raw.ask("health")["status"] == "ok")
        after = behave(raw, feed, "after")
        print(
            f"\nalone            {alone.says}"
            f"\nbeside {kind:9} {beside.says}"
            f"\nafter            {after.says}"
        )
        assert beside.p99 < P99_S_MAX
        assert beside.most < MAX_S_MAX
        assert after.p99 < P99_S_MAX
        assert beside.late_most < MAX_S_MAX
        assert node.stop() == 0
        assert "Traceback" not in node.log()


def test_the_bound_can_fail(tmp_path: Path) -> None:
    """Beside a node that is stopped for longer than the bound, the figures say so."""
    with Node(tmp_path / "data") as node, Raw(node.doors) as raw:
        feed = raw.subscribe()
        assert node.process is not None
        node.process.send_signal(signal.SIGSTOP)
        pid = node.process.pid
        waker = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import os,time; time.sleep(1.2); os.kill({pid}, {signal.SIGCONT})",
            ]
        )
        try:
            assert behave(raw, feed, "stopped").most > MAX_S_MAX
        finally:
            waker.wait()
