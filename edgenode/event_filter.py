"""Which events a reader of the log asks for: checked, and as what `_match.select` takes."""

from __future__ import annotations

from typing import NamedTuple

from edgenode._match import select
from edgenode.definitions import label_needle
from edgenode.encode import KIND_NAMES
from minoots.wire.bodies import EventFilter
from minoots.wire.frames import short_type
from minoots.wire.problems import refusal

_KINDS = {name: kind for kind, name in KIND_NAMES.items()}
_ALL = (1 << 64) - 1


class Match(NamedTuple):
    """A checked filter. kinds_low, kinds_high: a bit for each kind below 64, and from 64 on."""

    kinds_low: int = _ALL
    kinds_high: int = _ALL
    needles: tuple[bytes, ...] = ()
    prefix: bytes = b""

    def among(self, page: list[bytes], begin: int = 0) -> list[int]:
        """The places in `page`, from `begin` on, of the records that pass. 20 to 60 ns each."""
        return select(page, begin, *self)

    def passes(self, record: bytes) -> bool:
        """Whether one record does."""
        return bool(select([record], 0, *self))


def read_match(asked: EventFilter, tenant: str) -> Match:
    """Check the filter of a client of `tenant`. Raises Refused."""
    if asked.tenant not in ("", tenant):
        raise refusal(
            "forbidden",
            f"filter.tenant is {asked.tenant[:80]!r}; this client reads those of {tenant!r}",
            pointer="/filter/tenant",
        )
    low = high = _ALL
    if asked.types:
        bits = sum(1 << kind for kind in _kinds(asked.types))
        low, high = bits & _ALL, bits >> 64
    needles = tuple(label_needle(key, value) for key, value in asked.labels.items())
    return Match(low, high, needles, asked.name_prefix.encode("utf-8", "surrogatepass"))


def _kinds(types: list[str]) -> frozenset[int]:
    found = set()
    for type in types:
        name = short_type(type)
        if name not in _KINDS:
            raise refusal(
                "validation",
                f"type {type[:60]!r} is unknown; known: {', '.join(sorted(_KINDS))}",
                pointer="/filter/types",
            )
        found.add(_KINDS[name])
    return frozenset(found)
