"""Two bugs that the fuzzers have to find, or what they say of the others is worth nothing."""

from __future__ import annotations

from tests.fuzz._planted import beyond


def python(data: bytes) -> None:
    """Stumbles over one value in 2^32, which only somebody who sees its branches comes upon."""
    if data[:1] == b"M" and data[1:2] == b"Z" and data[2:3] == b"P" and data[3:4] == b"9":
        raise IndexError("the planted bug")


def native(data: bytes) -> None:
    """Reads one byte beyond its buffer, without a word, where the same is true."""
    beyond(data)
