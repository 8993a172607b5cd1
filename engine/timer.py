"""The states of a timer instance and the moves between them, as one table.

`armed` and `firing` are positions that follow from the due instant and the log: views show them,
the log does not store them, so they are no rows here.
"""

from __future__ import annotations

from enum import IntEnum

from engine.record import Kind


class State(IntEnum):
    """A timer's state as the log stores it."""

    SCHEDULED = 1
    PAUSED = 2
    COMPLETED = 3
    FAILED = 4
    CANCELLED = 5


class Reason(IntEnum):
    """Why it is in its state: the contract's `state_reason`."""

    NONE = 0
    BY_CLIENT = 1
    TRIGGERED = 2
    MAX_OCCURRENCES = 3
    EXPIRES_AT = 4
    MISFIRE = 5


TERMINAL = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})

# (state before, event) -> the states it may lead to. `expired` and `skipped` lead on to the next
# occurrence of a recurring timer, or to its completion; `escalated` goes before an `expired`.
MOVES: dict[tuple[State | None, Kind], frozenset[State]] = {
    (None, Kind.SCHEDULED): frozenset({State.SCHEDULED}),
    (State.SCHEDULED, Kind.EXPIRED): frozenset({State.SCHEDULED, State.COMPLETED}),
    (State.SCHEDULED, Kind.SKIPPED): frozenset({State.SCHEDULED, State.COMPLETED}),
    (State.SCHEDULED, Kind.ESCALATED): frozenset({State.SCHEDULED}),
    (State.SCHEDULED, Kind.CANCELLED): frozenset({State.CANCELLED}),
    (State.SCHEDULED, Kind.RESCHEDULED): frozenset({State.SCHEDULED}),
    (State.SCHEDULED, Kind.RELABELLED): frozenset({State.SCHEDULED}),
    (State.SCHEDULED, Kind.PAUSED): frozenset({State.PAUSED}),
    (State.SCHEDULED, Kind.FAILED): frozenset({State.FAILED}),
    (State.PAUSED, Kind.RESUMED): frozenset({State.SCHEDULED}),
    (State.PAUSED, Kind.EXPIRED): frozenset({State.PAUSED, State.COMPLETED}),
    (State.PAUSED, Kind.RESCHEDULED): frozenset({State.PAUSED}),
    (State.PAUSED, Kind.RELABELLED): frozenset({State.PAUSED}),
    (State.PAUSED, Kind.CANCELLED): frozenset({State.CANCELLED}),
} | {(state, Kind.LATE): frozenset({state}) for state in State}  # told of a fire, changes nothing


_NOWHERE: frozenset[State] = frozenset()


def may(before: int | None, kind: Kind, after: int) -> bool:
    """Whether `kind` may lead from the state `before` to `after`. 0.2 us."""
    return after in MOVES.get((before, kind), _NOWHERE)  # type: ignore[arg-type]
