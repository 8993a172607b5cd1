"""Bad company: peers that stall, crowd, or say what is no protocol. Nobody else may notice."""

from __future__ import annotations

import json
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq

from minoots.wire.frames import BODY_BYTES_MAX
from tests.e2e.harness import Node, Raw

STALLED = """
import json, sys, zmq
context = zmq.Context()
sub = context.socket(zmq.SUB)
sub.rcvhwm = 100
sub.subscribe(b"t/default/")
sub.connect(sys.argv[1])
sub.recv_multipart()
print("ready", flush=True)
sys.stdin.readline()
ordinals = []
total = 0
while sub.poll(1500):
    topic, stamp, body = sub.recv_multipart()
    if topic.endswith(b"/~/hb"):
        if total == json.loads(body)["total"] and ordinals:
            break
        total = json.loads(body)["total"]
    else:
        ordinals.append(int.from_bytes(stamp[16:24], "big"))
print(json.dumps({"ordinals": ordinals, "total": total}))
context.destroy(linger=0)
"""


def test_a_stalled_subscriber(tmp_path: Path) -> None:
    """It is stopped while 70,000 events go by. The others miss nothing; it can see what it lost."""
    with Node(tmp_path / "data") as node, Raw(node.doors) as raw:
        stalled = subprocess.Popen(
            [sys.executable, "-c", STALLED, node.doors["events"]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert stalled.stdin is not None
        assert stalled.stdout is not None
        try:
            assert stalled.stdout.readline() == "ready\n"
            feed = raw.subscribe()
            stalled.send_signal(signal.SIGSTOP)
            slowest_s = _flood(raw, feed, 35_000)
            stalled.send_signal(signal.SIGCONT)
            heard = json.loads(stalled.communicate("go\n", timeout=30)[0])
        finally:
            stalled.kill()
            stalled.wait()
        print(f"slowest request beside a stalled subscriber: {slowest_s * 1000:.0f} ms")
        assert slowest_s < 2.0
        ordinals = heard["ordinals"]
        assert ordinals == sorted(set(ordinals)), "out of order, or twice"
        lost = heard["total"] - len(ordinals)
        print(f"it heard {len(ordinals)} of {heard['total']} events and can see that")
        assert lost > 0, "the flood was too small to lose anything"
        assert len(raw.replay_all()) >= heard["total"]  # the log has them all


def _flood(raw: Raw, feed: zmq.Socket[bytes], count: int) -> float:
    """Schedule and fire `count` timers; the healthy subscriber hears each. Slowest request (s)."""
    ordinals: list[int] = []
    slowest_s, payload = 0.0, "x" * 400

    def hear(wait_ms: int) -> bool:
        if not feed.poll(wait_ms):
            return False
        topic, stamp, _ = feed.recv_multipart()
        if b"/e/" in topic:
            ordinals.append(int.from_bytes(stamp[16:24], "big"))
        return True

    for at in range(0, count, 1_000):
        timers = [
            {"name": f"n{n}", "schedule": {"kind": "after", "duration": "1ms"}, "payload": payload}
            for n in range(at, at + 1_000)
        ]
        began_s = time.monotonic()
        raw.ask("timer.schedule_many", {"timers": timers})
        raw.ask("health")
        slowest_s = max(slowest_s, time.monotonic() - began_s)
        while hear(0):
            pass
    end_s = time.monotonic() + 20
    while len(ordinals) < 2 * count and time.monotonic() < end_s:
        hear(100)
    assert ordinals == list(range(ordinals[0], ordinals[0] + 2 * count)), (
        "the healthy one lost some"
    )
    return slowest_s


def test_fifty_clients_at_once(tmp_path: Path) -> None:
    """Each asks its own mixture on both doors, and gets exactly its own replies."""
    with Node(tmp_path / "data") as node:
        context = zmq.Context[zmq.Socket[bytes]]()
        try:
            clients = [Client(context, node.doors, number) for number in range(50)]
            for step in range(12):
                for client in clients:
                    client.ask(step)
            end_s = time.monotonic() + 20
            while any(client.waiting for client in clients):
                assert time.monotonic() < end_s, [len(c.waiting) for c in clients]
                for client in clients:
                    client.take()
            time.sleep(0.05)
            for client in clients:
                client.take()  # a reply that is not its own fails here
        finally:
            context.destroy(linger=0)


class Client:
    """One of many: it knows what each of its requests must be answered with."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], doors: dict[str, str], number: int
    ) -> None:
        self.number = number
        self.waiting: dict[bytes, Callable[[str, Any], None]] = {}
        self.sockets = [context.socket(zmq.DEALER), context.socket(zmq.DEALER)]
        for one, door in zip(self.sockets, ("control", "stream"), strict=True):
            one.connect(doors[door])

    def ask(self, step: int) -> None:
        """One request; the corr_id is the same for all clients, so that a mix-up would show."""
        name = f"c{self.number}-{step}"
        hour = {"kind": "after", "duration": "1h"}
        kinds: list[tuple[str, Any, Callable[[str, Any], bool]]] = [
            (
                "timer.schedule",
                {"name": name, "schedule": hour},
                lambda kind, reply: kind == "R" and reply["name"] == name,
            ),
            (
                "timer.schedule_many",
                {"timers": [{"name": f"{name}.{n}", "schedule": hour} for n in range(5)]},
                lambda kind, reply: (
                    [view["name"] for view in reply["results"]] == [f"{name}.{n}" for n in range(5)]
                ),
            ),
            (
                "timer.get",
                {"name": f"{name} is not there"},
                lambda kind, reply: reply["code"] == "not_found" and name in reply["detail"],
            ),
            (
                "time.sync",
                {"t0": self.number * 1_000 + step},
                lambda kind, reply: reply["t0"] == self.number * 1_000 + step,
            ),
            (
                "timer.cancel",
                {"id": "tmr_nonsense", "name": None},
                lambda kind, reply: kind == "E",
            ),
            (
                "timer.list",
                {"filter": {"name_prefix": f"c{self.number}-"}},
                lambda kind, reply: all(
                    view["name"].startswith(f"c{self.number}-") for view in reply["items"]
                ),
            ),
        ]
        op, body, good = kinds[(self.number + step) % len(kinds)]
        corr = b"corr-%d" % step
        self.waiting[corr] = lambda kind, reply: _must(good(kind, reply), op, reply)
        bulk = op in ("timer.list", "timer.schedule_many")
        header = json.dumps({"op": op}).encode()
        frames = [b"MZP1", b"Q", corr, header, json.dumps(body).encode()]
        self.sockets[bulk].send_multipart(frames)

    def take(self) -> None:
        """Take what has come; each reply must be one that is waited for."""
        for one in self.sockets:
            while one.poll(0):
                _, kind, corr, _, body = one.recv_multipart()
                self.waiting.pop(corr)(kind.decode(), json.loads(body))


def _must(good: bool, op: str, reply: Any) -> None:
    assert good, f"{op}: {str(reply)[:300]}"


def greeting() -> bytes:
    """A ZMTP 3.1 greeting, mechanism NULL."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)


def ready() -> bytes:
    """The READY command of a DEALER."""
    body = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    return b"\x04" + bytes([len(body)]) + body


def test_bad_manners(tmp_path: Path) -> None:
    """Half-open connections, garbage and oversized frames: a client beside them notices nothing."""
    draw = random.Random(7)
    rude = [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff",
        greeting()[:40],
        greeting(),
        greeting() + b"\x04\xff" + bytes(255),
        greeting() + ready() + b"\x02" + struct.pack(">Q", 1 << 60) + b"x" * 1_000,
        greeting() + ready() + b"\x00\x05ab",
        greeting() + ready() + b"\x01\x00" * 5_000,
        *(draw.randbytes(draw.randrange(1, 4_000)) for _ in range(20)),
        *(greeting() + ready() + draw.randbytes(2_000) for _ in range(20)),
    ]
    with Node(tmp_path / "data") as node, Raw(node.doors) as raw:
        feed = raw.subscribe()
        kept: list[socket.socket] = []
        slowest_s = 0.0
        for at, words in enumerate(rude):
            for door in ("control", "stream", "events"):
                kept.append(_say(node.doors[door], words, cut=at % 3 == 0))
            began_s = time.monotonic()
            made = raw.after("1ms", f"n{at}")
            assert made["name"] == f"n{at}"
            slowest_s = max(slowest_s, time.monotonic() - began_s)
        _oversized(raw, node.doors["control"])
        heard: set[str] = set()
        end_s = time.monotonic() + 10
        while len(heard) < len(rude) and time.monotonic() < end_s:
            if feed.poll(100):
                topic, _, body = feed.recv_multipart()
                if b"/e/timer.expired/" in topic:
                    heard.add(json.loads(body)["data"]["name"])
        assert heard == {f"n{at}" for at in range(len(rude))}
        print(f"slowest request beside {len(kept)} rude connections: {slowest_s * 1000:.0f} ms")
        assert slowest_s < 1.0
        for one in kept:
            one.close()
        assert node.stop() == 0
        assert "Traceback" not in node.log()


def _say(endpoint: str, words: bytes, *, cut: bool) -> socket.socket:
    """Connect, say it, and either hang on or reset the connection."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    one = socket.create_connection((host, int(port)), timeout=5)
    with suppress(OSError):
        one.sendall(words)
    if cut:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()
    return one


def _oversized(raw: Raw, endpoint: str) -> None:
    """A body above every limit costs its sender the connection; just above, a problem."""
    big = raw.context.socket(zmq.DEALER)
    big.linger = 0
    big.connect(endpoint)
    try:
        big.send_multipart(
            [b"MZP1", b"Q", b"1", b'{"op":"timer.schedule"}', b"x" * (BODY_BYTES_MAX + (2 << 20))]
        )
        assert not big.poll(300)
        assert raw.ask("health")["status"] == "ok"
    finally:
        big.close(linger=0)
