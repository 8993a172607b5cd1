"""The doors as real sockets: where they may be, what they bear, what they refuse."""

from __future__ import annotations

import os
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import zmq

from edgenode.call import Answer
from edgenode.config import EngineSection
from edgenode.doors import zeromq
from edgenode.doors.endpoint import refused as refused_endpoint
from edgenode.doors.zeromq import DoorError, Doors, open_doors
from edgenode.principal import LOCAL

Socket = zmq.Socket[bytes]
ANY = "tcp://127.0.0.1:0"
WAIT_S = 5.0
REQUEST = [b"MZP1", b"Q", b"c1", b'{"op":"hello"}', b"{}"]


@dataclass
class Where:
    control: str = ANY
    stream: str = ANY
    events: str = ANY


@dataclass
class Limits:
    connections_max: int = 64


class Peers:
    """Client sockets, closed at the end of a test."""

    def __init__(self) -> None:
        self.context: zmq.Context[Socket] = zmq.Context(io_threads=1)
        self.opened: list[Socket] = []

    def connect(self, kind: int, endpoint: str, hwm: int = 100_000) -> Socket:
        peer = self.context.socket(kind)
        peer.linger = 0
        peer.rcvhwm = hwm
        peer.ipv6 = "[" in endpoint
        peer.connect(endpoint)
        self.opened.append(peer)
        return peer


@pytest.fixture
def peers() -> Iterator[Peers]:
    peers = Peers()
    yield peers
    peers.context.destroy(linger=0)


@pytest.fixture
def doors() -> Iterator[Doors]:
    doors = open_doors(Where(), Limits(), EngineSection())
    yield doors
    doors.close()


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def drain(doors: Doors, count: int) -> list[tuple[int, tuple[bytes, ...]]]:
    came: list[tuple[int, tuple[bytes, ...]]] = []

    def enough() -> bool:
        for door, frames, principal in doors.drain(100):
            assert principal == LOCAL
            came.append((door, frames))
        return len(came) >= count

    until(enough)
    return came


def subscribe(peers: Peers, doors: Doors, prefix: bytes, hwm: int = 100_000) -> Socket:
    """A subscriber whose subscription has arrived."""
    peer = peers.connect(zmq.SUB, doors.endpoints["events"], hwm)
    peer.subscribe(prefix)

    def heard() -> bool:
        doors.events.take_subscriptions()
        doors.events.heartbeat("probe", epoch=1, floor=0, now_ns=0)
        return peer.poll(1) != 0

    peer.subscribe(b"t/probe/")
    until(heard)
    while peer.poll(5):
        peer.recv_multipart()
    peer.unsubscribe(b"t/probe/")

    def probe_gone() -> bool:
        doors.events.take_subscriptions()
        return not doors.events.wanted(b"t/probe/~/") or prefix in b"t/probe/"

    until(probe_gone)
    return peer


# ------------------------------------------------------------------------------------- where


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:*",
        "tcp://127.8.9.1:*",
        "tcp://[::1]:0",
        "tcp://[::1]:*",
    ],
)
def test_loopback_is_served_and_the_real_port_is_told(endpoint: str, peers: Peers) -> None:
    doors = open_doors(Where(control=endpoint), Limits(), EngineSection())
    try:
        host, port = doors.endpoints["control"].rsplit(":", 1)
        assert host == endpoint.rsplit(":", 1)[0]
        assert int(port) > 1023
        peers.connect(zmq.DEALER, doors.endpoints["control"]).send_multipart(REQUEST)
        assert drain(doors, 1)[0][1][1:] == tuple(REQUEST)
    finally:
        doors.close()


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://0.0.0.0:7410",
        "tcp://*:7410",
        "tcp://192.168.1.5:7410",
        "tcp://[::]:7410",
        "tcp://[fe80::1]:7410",
        "tcp://[::ffff:10.0.0.1]:7410",
        "tcp://lo:7410",
        "tcp://localhost:7410",
        "tcp://127.0.0.1.example.com:7410",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:-1",
        "tcp://127.0.0.256:1",
        "tcp://127.0.0.1:7410 ",
        "tcp://127.0.0.1:7410\n",
        "ipc://",
        "ipc://*",
        "ipc://@hidden",
        "inproc://doors",
        "udp://127.0.0.1:7410",
        "127.0.0.1:7410",
        "",
    ],
)
def test_anything_else_is_refused_with_the_value_and_the_reason(endpoint: str) -> None:
    with pytest.raises(DoorError) as refused:
        open_doors(Where(stream=endpoint), Limits(), EngineSection())
    assert str(refused.value) == (
        f"stream is {endpoint!r}; only loopback (tcp://127.0.0.1:PORT, tcp://[::1]:PORT) and ipc "
        "(ipc://PATH) are served until keys are configured"
    )


def test_a_port_that_is_taken_names_itself_and_leaves_nothing_open(doors: Doors) -> None:
    taken = doors.endpoints["stream"]
    with pytest.raises(DoorError, match="address already in use; is another node running"):
        open_doors(Where(events=taken), Limits(), EngineSection())


def test_ipc_files_are_private_and_go_with_the_doors(tmp_path: Path, peers: Peers) -> None:
    where = Where(*(f"ipc://{tmp_path}/{name}" for name in zeromq.DOORS))
    before = os.umask(0)
    try:
        doors = open_doors(where, Limits(), EngineSection())
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert doors.endpoints == dict(zip(zeromq.DOORS, vars(where).values(), strict=True))
    for name in zeromq.DOORS:
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    peers.connect(zmq.DEALER, where.control).send_multipart(REQUEST)
    assert drain(doors, 1)[0][0] == 0
    doors.close()
    assert list(tmp_path.iterdir()) == []


def test_a_stale_ipc_file_makes_way_and_a_live_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "control"
    where = Where(control=f"ipc://{path}")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    open_doors(where, Limits(), EngineSection()).close()
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(path))
        alive.listen(1)
        with pytest.raises(DoorError, match=r"control can't listen on ipc://.*already in use"):
            open_doors(where, Limits(), EngineSection())
        assert path.exists()


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "control"
    path.write_text("precious")
    with pytest.raises(DoorError, match="a file that is no socket; move it away"):
        open_doors(Where(control=f"ipc://{path}"), Limits(), EngineSection())
    assert path.read_text() == "precious"


def test_another_node_s_ipc_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "control"
    doors = open_doors(Where(control=f"ipc://{path}"), Limits(), EngineSection())
    path.unlink()
    path.write_text("another's")
    doors.close()
    assert path.read_text() == "another's"


def test_a_long_or_impossible_ipc_path_is_named(tmp_path: Path) -> None:
    told = refused_endpoint("control", "ipc:///" + "x" * 199)
    assert "a path of 200 bytes; the limit is 107" in told
    with pytest.raises(DoorError, match=r"can't listen on ipc://.*: no such file or directory"):
        open_doors(Where(control=f"ipc://{tmp_path}/missing/control"), Limits(), EngineSection())


def test_as_many_files_may_be_open_as_the_system_lets_us() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    try:
        open_doors(Where(), Limits(), EngineSection()).close()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_connections_than_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    with pytest.raises(DoorError, match="4000 connections need 4256 open files; the limit is 4096"):
        open_doors(Where(), Limits(connections_max=4000), EngineSection())


# ------------------------------------------------------------------------------------- requests


def test_requests_come_with_their_door_and_answers_go_back_by_it(
    doors: Doors, peers: Peers
) -> None:
    control = peers.connect(zmq.DEALER, doors.endpoints["control"])
    stream = peers.connect(zmq.DEALER, doors.endpoints["stream"])
    control.send_multipart(REQUEST)
    stream.send_multipart(REQUEST)
    came = drain(doors, 2)
    assert sorted(door for door, _ in came) == [0, 1]
    doors.send([Answer(door, (frames[0], b"to %d" % door)) for door, frames in came])
    assert control.recv_multipart() == [b"to 0"]
    assert stream.recv_multipart() == [b"to 1"]
    doors.send([Answer(0, (b"nobody", b"x"))])
    assert doors.dropped() == {"replies_full": 0, "replies_gone": 1, "subscribers_stalled": 0}


def test_one_frame_too_many_is_kept_so_that_it_can_be_answered(doors: Doors, peers: Peers) -> None:
    control = peers.connect(zmq.DEALER, doors.endpoints["control"])
    control.send_multipart([b"x"] * 50)
    assert len(drain(doors, 1)[0][1]) == zeromq.FRAMES_KEPT


def test_pending_sees_what_the_descriptors_may_not_say_again(doors: Doors, peers: Peers) -> None:
    assert not doors.pending()
    control = peers.connect(zmq.DEALER, doors.endpoints["control"])
    for _ in range(3):
        control.send_multipart(REQUEST)
    until(doors.pending)
    while len(doors.drain(1)) == 1:
        pass
    until(lambda: not doors.pending() or not doors.drain(10))
    assert len(doors.fds) == 3


def test_an_oversized_frame_ends_its_sender_s_connection_and_no_other(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zeromq, "REQUEST_FRAME_BYTES_MAX", 10_000)
    doors = open_doors(Where(), Limits(), EngineSection())
    try:
        good = peers.connect(zmq.DEALER, doors.endpoints["control"])
        bad = peers.connect(zmq.DEALER, doors.endpoints["control"])
        monitor = bad.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        good.send_multipart(REQUEST)
        bad.send_multipart(REQUEST)
        known = [frames[0] for _, frames in drain(doors, 2)]
        bad.send_multipart([*REQUEST[:4], bytes(10_001)])
        assert monitor.poll(5000), "the sender was not cut off"
        good.send_multipart([*REQUEST[:4], bytes(10_000)])
        [(_, frames)] = drain(doors, 1)
        assert frames[0] in known
        assert len(frames[5]) == 10_000
        doors.send([Answer(0, (frames[0], b"still here"))])
        assert good.recv_multipart() == [b"still here"]
        bad.disable_monitor()
        monitor.close()
    finally:
        doors.close()


def test_a_peer_cannot_take_over_another_s_name(doors: Doors, peers: Peers) -> None:
    first = peers.connect(zmq.DEALER, ANY.replace(":0", ":1"))
    thief = peers.connect(zmq.DEALER, ANY.replace(":0", ":1"))
    for peer in (first, thief):
        peer.routing_id = b"alice"
    first.connect(doors.endpoints["control"])
    first.send_multipart(REQUEST)
    first.send_multipart(REQUEST)
    assert b"alice" in [frames[0] for _, frames in drain(doors, 1)]
    thief.connect(doors.endpoints["control"])
    time.sleep(0.02)
    doors.send([Answer(0, (b"alice", b"secret"))])
    assert first.recv_multipart() == [b"secret"]
    assert not thief.poll(10)


# ------------------------------------------------------------------------------------- events


def publish(doors: Doors, count: int, size: int = 100, type: str = "timer.expired") -> None:
    for seq in range(count):
        topic = f"t/default/e/{type}/n/tmr_{seq}".encode()
        doors.events.publish("default", type, topic, seq, bytes(size))
    doors.events.flush()


def ordinals(peer: Socket, wait_ms: int = 20) -> list[tuple[int, ...]]:
    """The two ordinals of every event that came."""
    came = []
    while peer.poll(wait_ms):
        came.append(struct.unpack(">4q", peer.recv_multipart()[1])[2:])
    return came


def test_subscribers_are_known_and_hear_what_they_asked_for(doors: Doors, peers: Peers) -> None:
    assert not doors.events.wanted(b"t/default/e/timer.expired/")
    expired = subscribe(peers, doors, b"t/default/e/timer.expired/")
    assert doors.events.wanted(b"t/default/e/timer.expired/")
    assert not doors.events.wanted(b"t/default/e/timer.scheduled/")
    publish(doors, 3)
    publish(doors, 2, type="timer.scheduled")
    publish(doors, 1)
    assert ordinals(expired) == [(1, 1), (2, 2), (3, 3), (6, 4)]
    expired.close()

    def gone() -> bool:
        doors.drain(1)
        return not doors.events.wanted(b"t/default/e/timer.expired/")

    until(gone)


def test_a_subscriber_that_repeats_itself_and_vanishes_leaves_nothing(
    doors: Doors, peers: Peers
) -> None:
    other = subscribe(peers, doors, b"t/default/")
    raw = peers.connect(zmq.XSUB, doors.endpoints["events"])
    for _ in range(5):
        raw.send(b"\1t/default/")
    raw.send(b"\1t/raw/")
    raw.send(b"not a subscription")

    def count() -> int:
        doors.drain(1)
        return doors.events.subscriptions_count

    until(lambda: count() == 2)
    raw.close()
    until(lambda: count() == 1)
    assert doors.events.wanted(b"t/default/"), "the other one is still there"
    other.close()
    until(lambda: count() == 0)


def test_a_stalled_subscriber_costs_the_others_nothing_and_sees_its_loss(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zeromq, "EVENTS_MAX", 200)
    doors = open_doors(Where(), Limits(), EngineSection())
    try:
        stalled = subscribe(peers, doors, b"t/default/e/", hwm=1)
        quick = subscribe(peers, doors, b"t/default/e/")
        heard: list[tuple[int, ...]] = []
        rounds = 0
        while doors.pulse.stats()["dropped_full"] == 0 or rounds % 50:
            publish(doors, 20, size=20_000)
            rounds += 1
            while len(heard) < rounds * 20:
                assert quick.poll(2000)
                heard.append(struct.unpack(">4q", quick.recv_multipart()[1])[2:])
        assert heard == [(n, n) for n in range(1, rounds * 20 + 1)]
        assert doors.dropped()["subscribers_stalled"] == 1
        # It wakes up: first what was under way, then a gap, then the present.
        last = ordinals(stalled)[-1][0]
        assert last < rounds * 20
        publish(doors, 1)
        assert ordinals(stalled) == [(rounds * 20 + 1,) * 2]
    finally:
        doors.close()


def test_a_subscription_of_absurd_size_ends_its_connection(doors: Doors, peers: Peers) -> None:
    good = subscribe(peers, doors, b"t/default/")
    bad = peers.connect(zmq.XSUB, doors.endpoints["events"])
    monitor = bad.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    bad.send(b"\1" + bytes(zeromq.SUBSCRIPTION_BYTES_MAX))
    assert monitor.poll(5000), "the sender was not cut off"
    bad.disable_monitor()
    monitor.close()
    publish(doors, 2)
    assert ordinals(good) == [(1, 1), (2, 2)]
    assert doors.events.subscriptions_count == 1


def test_a_heartbeat_goes_out_by_the_doors(doors: Doors, peers: Peers) -> None:
    peer = subscribe(peers, doors, b"t/default/~/")
    doors.heartbeat("default", 1, 9, 1_800_000_000_000_000_000, None)
    topic, stamp, body = peer.recv_multipart()
    assert (topic, stamp) == (b"t/default/~/hb", bytes(32))
    assert b'"floor":9' in body
