"""Frames of MZP/1: `[ "MZP1", kind, corr_id, header, body, blob... ]` (contract, section 4)."""

from __future__ import annotations

import msgspec

MAGIC = b"MZP1"
QUERY, FINAL, PARTIAL, PROBLEM = b"Q", b"R", b"P", b"E"

CORR_BYTES_MAX = 64
HEADER_BYTES_MAX = 4_096
BODY_BYTES_MAX = 80 * 1024 * 1024  # a thousand definitions with the largest payload, and room
IDEM_BYTES_MAX = 255
FRAMES_MAX = 8

STAMP_BYTES = 32


class Header(msgspec.Struct, omit_defaults=True):
    """A request's header; keys that are not known are ignored.

    op: the verb. idem: idempotency key, 1 to IDEM_BYTES_MAX bytes. deadline: RFC 3339; a request
    found later than that is not done. if_match: the revision that the timer must have.
    """

    op: str
    idem: str | None = None
    deadline: str | None = None
    traceparent: str | None = None
    if_match: int | None = None


EVENT_TYPE_PREFIX = "io.minoots."
EVENT_TYPE_SUFFIX = ".v1"


def short_type(type: str) -> str:
    """`timer.expired` for `io.minoots.timer.expired.v1`."""
    return type.removeprefix(EVENT_TYPE_PREFIX).removesuffix(EVENT_TYPE_SUFFIX)


def long_type(short: str) -> str:
    """`io.minoots.timer.expired.v1` for `timer.expired`."""
    return f"{EVENT_TYPE_PREFIX}{short}{EVENT_TYPE_SUFFIX}"
