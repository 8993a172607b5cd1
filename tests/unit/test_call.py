"""Frames as calls: what is wrong with a request is said, the first fault first."""

from __future__ import annotations

import pytest

from edgenode import call
from edgenode.call import Call
from edgenode.principal import LOCAL
from engine.clock import Now
from minoots.wire.frames import Header
from minoots.wire.problems import Refused

NOW = Now(1_800_000_000_000_000_000, 1_800_000_000_000_000_000, 0)
HEADER = b'{"op":"timer.get"}'


def read(*frames: bytes) -> Call:
    return call.read(1, (b"peer", *frames), LOCAL, NOW)


@pytest.mark.parametrize("blobs", [(), (b"x",), (b"x", b"y", b"z")])
def test_a_request_becomes_a_call(blobs: tuple[bytes, ...]) -> None:
    for _ in range(2):  # the second time by the header that was kept
        made = read(b"MZP1", b"Q", b"c", HEADER, b"{}", *blobs)
        assert made == Call(1, b"peer", b"c", Header("timer.get"), b"{}", LOCAL, NOW)


@pytest.mark.parametrize(
    ("frames", "code", "detail"),
    [
        ((), "bad_frame", "the first frame is b''; this node speaks b'MZP1'"),
        ((b"MZP2",), "unsupported_version", "the first frame is b'MZP2'; "),
        ((b"GET / HTTP", *[b""] * 4), "bad_frame", "the first frame is b'GET / HT'; "),
        ((b"MZP1", b"Q", b"c", HEADER), "bad_frame", "there are 4 frames; send 5 to 8"),
        ((b"MZP1", b"Q", b"c", HEADER, *[b"{}"] * 5), "bad_frame", "there are 9 frames; "),
        ((b"MZP1", b"R", b"c", HEADER, b"{}"), "bad_frame", "kind is b'R'; "),
        ((b"MZP1", b"Q", b"c" * 65, HEADER, b"{}"), "bad_frame", "corr_id is 65 bytes; "),
        ((b"MZP1", b"Q", b"c", b" " * 4097, b"\xff"), "too_large", "the header is 4097 bytes; "),
        ((b"MZP1", b"Q", b"c", b"\xff", b"\xff"), "bad_json", "the header is not UTF-8 at byte 0"),
        ((b"MZP1", b"Q", b"c", b"no", b"{\xff"), "bad_json", "the body is not UTF-8 at byte 1"),
        ((b"MZP1", b"Q", b"c", b"no", b"{}"), "bad_json", "header: the body is not JSON: "),
        ((b"MZP1", b"Q", b"c", b"{}", b"{}"), "validation", "header: "),
        (
            (b"MZP1", b"Q", b"c", b'{"op":"x","idem":""}', b"{}"),
            "validation",
            "idem is 0 bytes; it must have 1 to 255",
        ),
        (
            (b"MZP1", b"Q", b"c", b'{"op":"x","deadline":"2027-01-15T07:59:59Z"}', b"{}"),
            "deadline_exceeded",
            "the request's deadline was 2027-01-15T07:59:59Z; nothing was done",
        ),
    ],
)
def test_what_is_wrong_is_said(frames: tuple[bytes, ...], code: str, detail: str) -> None:
    with pytest.raises(Refused) as caught:
        read(*frames)
    assert caught.value.code == code
    assert caught.value.detail.startswith(detail)


def test_only_short_headers_that_say_no_more_than_their_op_are_kept() -> None:
    kept = dict(call._usual)
    for raw in (
        b'{"op":"a","idem":"k"}',
        b'{"op":"a","deadline":"2030-01-01T00:00:00Z"}',
        b'{"op":"a","if_match":0}',
        b'{"op":"a","traceparent":""}',
        b'{"op":"a"}' + b" " * 200,
    ):
        assert read(b"MZP1", b"Q", b"c", raw, b"{}").header.op == "a"
    assert call._usual == kept
    for k in range(2 * call.USUAL_MAX):
        read(b"MZP1", b"Q", b"c", b'{"op":"a%d"}' % k, b"{}")
        assert b'{"op":"a%d"}' % k in call._usual
        assert len(call._usual) <= call.USUAL_MAX
