"""What a node does with what a power cut left it: it goes on for 22 days, and everything fires.

The comparison of rows says that a timer is there; this says that it fires, once, and that nothing
else does. Expirations that were committed and had not left must leave, with the same seq.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from edgenode.virtual import DAY_NS
from engine.files import close_store, open_store
from engine.record import Event, Kind, rule_of, unpack_event, unpack_row
from engine.timer import State
from tests.e2e.harness import ns_of
from tests.proof.recorder import StoredNode, config
from tests.proof.truth import EVERYTHING, History, Standing

DAYS = 22  # more than the longest timer of a recording has left
LONG_H = 1 << 20  # of retention: nothing is trimmed any more


def faults(path: Path, told: History, now_ns: int) -> list[str]:
    """What goes wrong in a life that begins on the store in `path`, which is written to."""
    log, tables = open_store(path)
    at = told.standings[log.state().commit]
    close_store(path, log, tables)
    node = StoredNode(path, 1, lambda what, number: None, config(LONG_H), now_ns)
    try:
        live = node.live() + node.advance(DAYS * DAY_NS)
        end_ns = node.now_ns
        records = node.log.events(at.last_seq + 1, EVERYTHING, EVERYTHING)
    finally:
        node.close()
    events = [unpack_event(seq, data) for seq, data in enumerate(records, at.last_seq + 1)]
    fires = [event for event in events if event.kind == Kind.EXPIRED]
    due = [fire.seq for fire in fires if fire.due_ns <= end_ns]  # the last may be committed ahead
    return [*_fires(at, fires), *_released([*at.unreleased, *due], live)]


def _fires(at: Standing, fires: list[Event]) -> Iterator[str]:
    """Every timer that lives fires, as often as it should, and no other one."""
    of: dict[bytes, list[int]] = {}
    for fire in fires:
        assert fire.image is not None
        of.setdefault(fire.image.id, []).append(fire.occurrence)
    for id, row in at.rows.items():
        image, blob = unpack_row(id, row)
        occurrences = of.pop(id, [])
        if len(set(occurrences)) != len(occurrences):
            yield f"DUPLICATE {id.hex()} fired as {occurrences}"
        if image.state != State.SCHEDULED:
            if occurrences:
                yield f"ZOMBIE {id.hex()} is paused and fired"
        elif not occurrences:
            yield f"LOST {id.hex()} is scheduled and did not fire in {DAYS} days"
        elif not rule_of(blob) and len(occurrences) > 1:
            yield f"DUPLICATE {id.hex()} fires once, and fired as {occurrences}"
    for id in of:
        yield f"ZOMBIE {id.hex()} does not live and fired"


def _released(due: list[int], live: list[list[bytes]]) -> Iterator[str]:
    """What was committed and is due leaves once, not before its due."""
    left: Counter[int] = Counter()
    for topic, stamp, body in live:
        if b"/e/timer.expired/" in topic:
            seq, fired_ns = (int.from_bytes(stamp[i : i + 8], "big") for i in (0, 8))
            left[seq] += 1
            data: Any = orjson.loads(body)["data"]
            if fired_ns < ns_of(data["due"]):
                yield f"EARLY event {seq} left before its due"
    wanted = Counter(due)
    for seq in (wanted - left) | (left - wanted):
        yield f"LOST or DUPLICATE: event {seq} left {left[seq]} times, should {wanted[seq]}"
