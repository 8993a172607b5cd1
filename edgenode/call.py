"""One request, from frames to a call and from an answer back to frames. Pure.

A peer that sends what is not of the protocol gets a problem with its corr_id if one can be read.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import msgspec

from edgenode.definitions import DECODE_ERRORS, faults_of
from edgenode.principal import Principal
from engine.clock import Now
from minoots.wire.frames import (
    BODY_BYTES_MAX,
    CORR_BYTES_MAX,
    FINAL,
    FRAMES_MAX,
    HEADER_BYTES_MAX,
    IDEM_BYTES_MAX,
    MAGIC,
    PARTIAL,
    PROBLEM,
    QUERY,
    Header,
)
from minoots.wire.problems import Refused, refusal
from minoots.wire.times import parse_instant

_header = msgspec.json.Decoder(Header)
encode = msgspec.json.Encoder().encode
_T = TypeVar("_T")

Frames = tuple[bytes, ...]

SINGLE = "timer.schedule"

# Headers that say nothing but their op are the same again and again; nobody changes one.
_usual: dict[bytes, Header] = {}
singles: set[bytes] = set()  # those of them that say timer.schedule
USUAL_MAX = 64
USUAL_BYTES_MAX = 128


class Progress(NamedTuple):
    """How far a bulk change is: the timers up to the id `after` are done."""

    after: bytes
    changed: int
    skipped: int


class Call(msgspec.Struct, gc=False):
    """A request as a verb sees it. door: the index of the door it came in by. peer: who asked, the
    first frame of the answer. key: what its idempotency key is kept under, once that is asked.
    progress: of the same request before a crash."""

    door: int
    peer: bytes
    corr: bytes
    header: Header
    body: bytes
    principal: Principal
    now: Now
    key: bytes = b""
    progress: Progress | None = None

    def read(self, decoder: msgspec.json.Decoder[_T]) -> _T:
        """The body, decoded and checked. Raises Refused."""
        try:
            return decoder.decode(self.body or b"{}")
        except DECODE_ERRORS as error:
            raise faults_of(error) from None


class Answer(msgspec.Struct, gc=False):
    """Frames to send by a door, once what they say is durable."""

    door: int
    frames: Frames


def read(door: int, frames: Frames, principal: Principal, now: Now) -> Call:
    """Frames [peer, "MZP1", "Q", corr, header, body, blob...] as a call. Raises Refused."""
    try:
        peer, magic, kind, corr, raw, body = frames
    except ValueError:
        _check_number(frames)
        peer, magic, kind, corr, raw, body = frames[:6]
    if magic != MAGIC:
        raise _not_ours(magic)
    if kind != QUERY:
        raise refusal("bad_frame", f"kind is {kind[:8]!r}; a request's kind is {QUERY!r}")
    if len(corr) > CORR_BYTES_MAX:
        raise refusal("bad_frame", f"corr_id is {len(corr)} bytes; the limit is {CORR_BYTES_MAX}")
    if len(raw) > HEADER_BYTES_MAX:
        raise refusal(
            "too_large", f"the header is {len(raw)} bytes; the limit is {HEADER_BYTES_MAX}"
        )
    if len(body) > BODY_BYTES_MAX:
        raise refusal("too_large", f"the body is {len(body)} bytes; the limit is {BODY_BYTES_MAX}")
    if not raw.isascii():
        _check_utf8("header", raw)
    if not body.isascii():
        _check_utf8("body", body)
    header = _usual.get(raw)
    if header is None:
        header = _read_header(raw)
    if header.deadline is not None:
        _check_deadline(header.deadline, now)
    return Call(door, peer, corr, header, body, principal, now)


def _check_number(frames: Frames) -> None:
    if len(frames) < 2 or frames[1] != MAGIC:
        raise _not_ours(frames[1] if len(frames) > 1 else b"")
    if not 6 <= len(frames) <= 1 + FRAMES_MAX:
        raise refusal("bad_frame", f"there are {len(frames) - 1} frames; send 5 to {FRAMES_MAX}")


def _not_ours(magic: bytes) -> Refused:
    code = "unsupported_version" if magic[:8].startswith(b"MZP") else "bad_frame"
    return refusal(code, f"the first frame is {magic[:8]!r}; this node speaks {MAGIC!r}")


def _read_header(raw: bytes) -> Header:
    try:
        header = _header.decode(raw)
    except DECODE_ERRORS as error:
        found = faults_of(error)
        raise refusal(found.code, f"header: {found.detail}", errors=found.errors) from None
    if header.idem is not None and not 1 <= len(header.idem.encode()) <= IDEM_BYTES_MAX:
        raise refusal(
            "validation",
            f"idem is {len(header.idem.encode())} bytes; it must have 1 to {IDEM_BYTES_MAX}",
        )
    if len(raw) <= USUAL_BYTES_MAX and header == Header(header.op):
        _keep(raw, header)
    return header


def _keep(raw: bytes, header: Header) -> None:
    """Remember a header. When there is no room all are forgotten: what is unusual stays out no
    longer than that."""
    if len(_usual) >= USUAL_MAX:
        _usual.clear()
        singles.clear()
    _usual[raw] = header
    if header.op == SINGLE:
        singles.add(raw)


def _check_utf8(what: str, text: bytes) -> None:
    # What is kept as raw JSON is copied into events: it must be text for every reader.
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refusal("bad_json", f"the {what} is not UTF-8 at byte {error.start}") from None


def _check_deadline(text: str, now: Now) -> None:
    try:
        deadline_ns = parse_instant(text)
    except ValueError as error:
        raise refusal("validation", f"deadline: {error}") from None
    if deadline_ns < now.utc_ns:
        raise refusal("deadline_exceeded", f"the request's deadline was {text}; nothing was done")


def corr_of(frames: Frames) -> bytes:
    """The corr_id of a request that may be malformed; b"" if there is none."""
    return frames[3][:CORR_BYTES_MAX] if len(frames) > 3 else b""


def final(call: Call, body: bytes) -> Answer:
    """The reply to a call."""
    return Answer(call.door, (call.peer, MAGIC, FINAL, call.corr, b"{}", body))


def partial(call: Call, body: bytes) -> Answer:
    """A part of the reply to a call; more follows."""
    return Answer(call.door, (call.peer, MAGIC, PARTIAL, call.corr, b"{}", body))


def problem(door: int, peer: bytes, corr: bytes, refused: Refused) -> Answer:
    """The problem as an answer."""
    return Answer(door, (peer, MAGIC, PROBLEM, corr, b"{}", problem_json(refused)))


def problem_json(refused: Refused) -> bytes:
    """The problem's JSON."""
    return encode(refused.problem)
