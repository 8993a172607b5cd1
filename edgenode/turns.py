"""Turns that are closed: what is to be committed, what may leave then, and what waits to fire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from edgenode.call import Answer
from engine.store import Batch


class Awaited(NamedTuple):
    """An expiry that has yet to leave. due_ns: on the steady scale, or UTC if it is `wall`."""

    id: bytes
    due_ns: int
    wall: bool
    budget_ns: int = 0  # lateness above this becomes an event; 0: none does


@dataclass(slots=True)
class Outcome:
    """A closed turn: what to commit (None: nothing), and what may leave once that is durable.

    opened_ns, fires_since_ns: when its first request and its first fire were decided; 0: none was.
    """

    batch: Batch | None
    answers: list[Answer]
    opened_ns: int
    fires_since_ns: int


class UnderWay(NamedTuple):
    """A turn that was submitted, or that waits for the one before it."""

    commit: int
    outcome: Outcome
    submitted_ns: int
