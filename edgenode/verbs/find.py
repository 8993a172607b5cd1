"""Finding timers: one by id or name, or many by filter."""

from __future__ import annotations

from collections.abc import Generator

from edgenode.definitions import label_needle
from edgenode.ledger import Ledger, Timer
from engine.record import name_hash, unpack_blob
from engine.store import Filter
from engine.timer import TERMINAL, State
from minoots.wire import bodies
from minoots.wire.problems import refusal
from minoots.wire.times import parse_id, parse_instant

_STATES = {
    "scheduled": (State.SCHEDULED,),
    "armed": (State.SCHEDULED,),
    "paused": (State.PAUSED,),
}


SCAN_BUDGET = 20_000  # rows looked at in one step


def unpack_id(row: bytes) -> bytes:
    """The id of a row of the tables."""
    return row[8:24]


def read_id(text: str, pointer: str = "/id") -> bytes:
    """A timer id. Raises Refused."""
    try:
        return parse_id(text)
    except ValueError as error:
        raise refusal("validation", str(error), pointer=pointer) from None


Asked = bodies.Target | bodies.Reschedule | bodies.Extend | bodies.Next


def find(ledger: Ledger, asked: Asked) -> Generator[int, None, Timer]:
    """The timer with this id, or the one that has not ended with this name or key. Raises
    Refused."""
    if (asked.id is None) + (asked.name is None) + (asked.key is None) != 2:
        raise refusal("validation", "give either id, name or key", pointer="/id")
    if asked.id is not None:
        timer = ledger.load(read_id(asked.id))
        if timer is None:
            raise refusal(
                "not_found", f"there is no timer {asked.id}, or it ended before retention"
            )
        return timer
    if asked.key is not None:
        timer = ledger.holder(asked.key)
        if timer is None:
            raise refusal("not_found", f"no timer that has not ended has key {asked.key[:80]!r}")
        return timer
    assert asked.name is not None
    return (yield from _by_name(ledger, asked.name))


def _by_name(ledger: Ledger, name: str) -> Generator[int, None, Timer]:
    yield ledger.next_seq - 1  # the names are in the tables only
    raw = name.encode("utf-8", "surrogatepass")
    found = []
    for id in ledger.tables.named(name_hash(raw)):
        timer = ledger.load(id)
        if (
            timer is not None
            and timer.image.state not in TERMINAL
            and unpack_blob(timer.blob).name == raw
        ):
            found.append(timer)
    if not found:
        raise refusal("not_found", f"no timer that has not ended is named {name[:80]!r}")
    if len(found) > 1:
        raise refusal(
            "validation",
            f"{len(found)} timers are named {name[:80]!r}; give an id",
            pointer="/name",
        )
    return found[0]


def read_filter(asked: bodies.TimerFilter, ledger: Ledger) -> Filter:
    """A filter of a request as the tables take it. Raises Refused."""
    if len(asked.labels) > bodies.FILTER_LABELS_MAX:
        raise refusal(
            "too_large",
            f"a filter has {len(asked.labels)} labels; the limit is {bodies.FILTER_LABELS_MAX}",
            pointer="/filter/labels",
        )
    states: set[int] = set()
    due_from_ns = _instant(asked.due_from, "/filter/due_from")
    due_to_ns = _instant(asked.due_to, "/filter/due_to")
    for name in asked.state:
        if name not in _STATES:
            raise refusal(
                "validation",
                f"state {name!r}: only timers that have not ended are listed (scheduled, armed, "
                "paused); find others by timer.get, timer.history or stream.replay",
                pointer="/filter/state",
            )
        states.update(_STATES[name])
    if asked.state == ["armed"]:
        armed_to_ns = ledger.horizon_ns + ledger.now.shift_ns
        due_to_ns = min(due_to_ns, armed_to_ns) if due_to_ns else armed_to_ns
        due_from_ns = max(due_from_ns, _held_to(ledger))
    return Filter(
        states=tuple(sorted(states)),
        labels=tuple(label_needle(key, value) for key, value in asked.labels.items()),
        name_prefix=asked.name_prefix.encode("utf-8", "surrogatepass"),
        due_from_ns=due_from_ns,
        due_to_ns=due_to_ns,
        scale_shift_ns=ledger.now.shift_ns,
    )


def _held_to(ledger: Ledger) -> int:
    """UTC before which all is held; 0 where nothing is."""
    steady_ns, wall_ns = ledger.held.before_ns
    return min(steady_ns + ledger.now.shift_ns, wall_ns) if steady_ns else 0


def _instant(text: str | None, pointer: str) -> int:
    if text is None:
        return 0
    try:
        return parse_instant(text)
    except ValueError as error:
        raise refusal("validation", str(error), pointer=pointer) from None
