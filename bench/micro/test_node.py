"""Views, events, instants, durations, and a request through the mailbox and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.samples import BLOB, NOW_NS, expired, image, scheduled
from edgenode._encode import Encoder
from edgenode.doors._mailbox import Mailbox
from engine.record import EVENT_HEAD_BYTES, pack_row
from minoots.wire.times import format_instant, parse_duration, parse_instant

ENCODER = Encoder("node-1", "default", 1)
REQUEST = (b"MZP1", b"Q", b"c1", b'{"op":"hello"}', b"{}")
MESSAGES = 100


def test_view_of_an_event(benchmark: BenchmarkFixture) -> None:
    view = benchmark(ENCODER.view, scheduled(7), EVENT_HEAD_BYTES, 0)
    assert b'"name":"invoice-17"' in view


def test_view_of_a_row(benchmark: BenchmarkFixture) -> None:
    view = benchmark(ENCODER.view, pack_row(image(7), BLOB), 8, 0)
    assert b'"name":"invoice-17"' in view


def test_event(benchmark: BenchmarkFixture) -> None:
    event = benchmark(ENCODER.event, 7, expired(7), NOW_NS + 50_000)
    assert b"io.minoots.timer.expired.v1" in event


def test_topic(benchmark: BenchmarkFixture) -> None:
    assert benchmark(ENCODER.topic, expired(7)).startswith(b"t/default/e/timer.expired/")


@pytest.mark.parametrize("text", ["15m", "PT1H30M", "1h30m15.5s"])
def test_parse_duration_not_seen_before(benchmark: BenchmarkFixture, text: str) -> None:
    benchmark(parse_duration.__wrapped__, text)


def test_parse_instant(benchmark: BenchmarkFixture) -> None:
    assert benchmark(parse_instant, format_instant(NOW_NS)) == NOW_NS


def test_format_instant(benchmark: BenchmarkFixture) -> None:
    benchmark(format_instant, NOW_NS)


@pytest.fixture
def pair() -> Iterator[tuple[Mailbox, zmq.Socket[bytes]]]:
    """A door's mailbox, and a client of it that has been heard once."""
    context: zmq.Context[Any] = zmq.Context()
    router, client = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    router.sndhwm = router.rcvhwm = client.sndhwm = client.rcvhwm = 0
    router.bind("inproc://micro")
    client.connect("inproc://micro")
    mailbox = Mailbox(router)
    client.send_multipart(REQUEST)
    while not mailbox.drain(1):
        pass
    yield mailbox, client
    context.destroy(linger=0)


def test_mailbox_round_trip_of_100(
    benchmark: BenchmarkFixture, pair: tuple[Mailbox, zmq.Socket[bytes]]
) -> None:
    mailbox, client = pair

    def there_and_back() -> None:
        for _ in range(MESSAGES):
            client.send_multipart(REQUEST)
        left = MESSAGES
        while left:
            came = mailbox.drain(MESSAGES)
            left -= len(came)
            mailbox.send(came)
        for _ in range(MESSAGES):
            client.recv_multipart()

    benchmark(there_and_back)
