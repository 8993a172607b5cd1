"""Whole messages through real sockets: inproc, tcp and ipc."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from edgenode.doors._mailbox import Mailbox

Socket = zmq.Socket[bytes]
WAIT_MS = 2000
REQUEST = (b"MZP1", b"Q", b"c1", b'{"op":"hello"}', b"{}")


class Sockets:
    """Opens sockets, and closes all of them at the end of a test."""

    def __init__(self) -> None:
        self.context: zmq.Context[Socket] = zmq.Context(io_threads=1)
        self.opened: list[Socket] = []

    def open(self, kind: int, hwm: int = 1000) -> Socket:
        socket = self.context.socket(kind)
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = hwm
        if kind == zmq.ROUTER:
            socket.router_mandatory = 1
        self.opened.append(socket)
        return socket


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    sockets = Sockets()
    yield sockets
    for socket in sockets.opened:
        socket.close()
    sockets.context.term()


def bind(socket: Socket, transport: str, folder: Path) -> str:
    where = {
        "inproc": "inproc://mailbox",
        "tcp": "tcp://127.0.0.1:*",
        "ipc": f"ipc://{folder}/mailbox",
    }
    socket.bind(where[transport])
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return endpoint.rstrip(b"\0").decode()


def drain(mailbox: Mailbox, count: int, **given: Any) -> list[tuple[bytes, ...]]:
    """All of `count` messages, waiting for those that are still on their way."""
    taken: list[tuple[bytes, ...]] = []
    while len(taken) < count:
        assert mailbox.socket.poll(WAIT_MS), f"{len(taken)} of {count} messages came"
        taken += mailbox.drain(count - len(taken), **given)
    return taken


@pytest.fixture(params=["inproc", "tcp", "ipc"])
def pair(
    request: pytest.FixtureRequest, sockets: Sockets, tmp_path: Path
) -> tuple[Mailbox, Mailbox]:
    """A router's mailbox and that of a dealer connected to it."""
    router, dealer = sockets.open(zmq.ROUTER), sockets.open(zmq.DEALER)
    dealer.connect(bind(router, request.param, tmp_path))
    return Mailbox(router), Mailbox(dealer)


def test_requests_and_replies_go_in_bulk_and_in_order(pair: tuple[Mailbox, Mailbox]) -> None:
    router, dealer = pair
    sent = [(*REQUEST[:2], str(n).encode(), *REQUEST[3:]) for n in range(500)]
    assert dealer.send(sent) == 500
    came = drain(router, 500)
    assert [frames[1:] for frames in came] == sent
    assert len({frames[0] for frames in came}) == 1
    assert router.drain(10) == []
    replies = [(frames[0], b"MZP1", b"R", frames[3], b"{}", b"{}") for frames in came]
    assert router.send(replies) == 500
    assert drain(dealer, 500) == [frames[1:] for frames in replies]
    assert (router.dropped_full, router.dropped_gone) == (0, 0)


def test_frames_of_every_size_arrive_as_they_were(pair: tuple[Mailbox, Mailbox]) -> None:
    router, dealer = pair
    frames = tuple(
        bytes([n % 256]) * size for n, size in enumerate((0, 1, 32, 33, 34, 8192, 10**6))
    )
    dealer.send([frames, (b"",)])
    came = drain(router, 2)
    assert came[0][1:] == frames
    assert came[1][1:] == (b"",)


def test_a_limit_leaves_the_rest_for_the_next_time(pair: tuple[Mailbox, Mailbox]) -> None:
    router, dealer = pair
    dealer.send([(b"%d" % n,) for n in range(10)])
    first = drain(router, 3)
    assert len(first) == 3
    assert [frames[1] for frames in first + drain(router, 7)] == [b"%d" % n for n in range(10)]
    assert router.drain(0) == []


def test_a_message_with_too_many_frames_is_cut_and_the_next_is_whole(
    pair: tuple[Mailbox, Mailbox],
) -> None:
    router, dealer = pair
    many = tuple(b"%d" % n for n in range(200))
    dealer.send([many, REQUEST])
    came = drain(router, 2, frames_max=6)
    assert came[0][1:] == many[:5]
    assert came[1][1:] == REQUEST
    with pytest.raises(ValueError, match="frames_max is 65; it is from 1 to 64"):
        router.drain(1, frames_max=65)


def test_an_answer_to_nobody_is_dropped_and_counted(pair: tuple[Mailbox, Mailbox]) -> None:
    router, dealer = pair
    dealer.send([REQUEST])
    peer = drain(router, 1)[0][0]
    answers = [(b"nobody", b"x", b"y"), (peer, b"for", b"you"), (b"nobody", b"x")]
    assert router.send(answers) == 1
    assert router.dropped_gone == 2
    assert drain(dealer, 1) == [(b"for", b"you")]


def test_an_answer_to_a_full_peer_is_dropped_whole_and_counted(
    sockets: Sockets,
) -> None:
    router, dealer = sockets.open(zmq.ROUTER, 5), sockets.open(zmq.DEALER, 5)
    router.bind("inproc://full")
    dealer.connect("inproc://full")
    mailbox, client = Mailbox(router), Mailbox(dealer)
    client.send([(b"hello",)])
    peer = drain(mailbox, 1)[0][0]
    went = mailbox.send([(peer, b"%d" % n, b"body", b"end") for n in range(100)])
    assert 0 < went < 100
    assert mailbox.dropped_full == 100 - went
    assert drain(client, went) == [(b"%d" % n, b"body", b"end") for n in range(went)]
    assert client.drain(10) == []
    assert mailbox.send([(peer, b"again")]) == 1
    assert drain(client, 1) == [(b"again",)]


def test_pending_and_fd_tell_of_what_is_there(pair: tuple[Mailbox, Mailbox]) -> None:
    router, dealer = pair
    assert not router.pending() & zmq.POLLIN
    assert dealer.pending() & zmq.POLLOUT
    dealer.send([REQUEST, REQUEST])
    while not router.pending() & zmq.POLLIN:
        assert select.select([router.fd], [], [], 2)[0]
    drain(router, 1)
    # The second one is there or on its way, and the descriptor need not say so again.
    end = time.monotonic() + WAIT_MS / 1000
    while not router.pending() & zmq.POLLIN:
        assert time.monotonic() < end
    drain(router, 1)
    assert not router.pending() & zmq.POLLIN


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([b"a", b"b"], "a message is a tuple of bytes"),
        ((), "and not empty"),
        ((b"a", "b"), "a frame is bytes; this is 'b'"),
        ((b"a", None), "a frame is bytes; this is None"),
    ],
)
def test_what_is_no_message_is_refused_before_any_frame_of_it(
    pair: tuple[Mailbox, Mailbox], wrong: Any, words: str
) -> None:
    router, dealer = pair
    with pytest.raises(TypeError, match=words):
        dealer.send([REQUEST, wrong, REQUEST])
    dealer.send([(b"next",)])
    assert [frames[1:] for frames in drain(router, 2)] == [REQUEST, (b"next",)]


def test_a_closed_socket_is_an_error(pair: tuple[Mailbox, Mailbox]) -> None:
    router, _ = pair
    router.socket.close()
    for call in (lambda: router.drain(1), lambda: router.send([REQUEST]), router.pending):
        with pytest.raises(zmq.ZMQError, match="non-socket"):
            call()
