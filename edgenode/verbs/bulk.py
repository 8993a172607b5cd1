"""The verbs that change many timers: cancel, pause, resume, shift and relabel, each `_many`.

Up to BULK_ATOMIC_MAX timers are one commit. More are changed as the scan meets them, in the order
of their ids, some in each commit, and other requests go on in between; how far it came stands in
the note of the idempotency key, in the same commits, so a repeat after a crash goes on and no timer
is changed twice. At the end one event of the node tells what was done.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import orjson

from edgenode.call import Call, Progress
from edgenode.definitions import pack_labels
from edgenode.idempotency import keep_progress
from edgenode.ledger import Ledger, Timer
from edgenode.verbs import change
from edgenode.verbs.find import SCAN_BUDGET, read_filter, read_id, unpack_id
from engine.filters import passes
from engine.record import Kind, pack_blob, unpack_blob
from engine.store import Filter
from engine.timer import State
from minoots.wire import bodies
from minoots.wire.problems import Refused, refusal
from minoots.wire.times import parse_duration

_change_many = msgspec.json.Decoder(bodies.ChangeMany)
_shift_many = msgspec.json.Decoder(bodies.ShiftMany)
_relabel_many = msgspec.json.Decoder(bodies.RelabelMany)
_encode = msgspec.json.Encoder().encode

Steps = Generator[int, None, bytes]
Asked = bodies.ChangeMany | bodies.ShiftMany | bodies.RelabelMany

STEP_TIMERS = 256  # of a filter, that are decided before others go on: some 3 ms
BREATH_TIMERS = 64  # ... between two looks at the clock
SAMPLE_MAX = 10

_ANY = (int(State.SCHEDULED), int(State.PAUSED))


class Deed(NamedTuple):
    """What is done to each timer in one of `states`; False: it is so already. Raises Refused, and
    has then changed nothing: the timer is skipped."""

    states: tuple[int, ...]
    do: Callable[[Ledger, Timer], bool]


def cancel_many(ledger: Ledger, call: Call) -> Steps:
    """`timer.cancel_many`: they will not fire again."""

    def do(ledger: Ledger, timer: Timer) -> bool:
        change.cancelled(ledger, timer)
        return True

    return _run(ledger, call, call.read(_change_many), Deed(_ANY, do))


def pause_many(ledger: Ledger, call: Call) -> Steps:
    """`timer.pause_many`: not due until they are resumed."""

    def do(ledger: Ledger, timer: Timer) -> bool:
        change.paused(ledger, timer)
        return True

    return _run(ledger, call, call.read(_change_many), Deed((int(State.SCHEDULED),), do))


def resume_many(ledger: Ledger, call: Call) -> Steps:
    """`timer.resume_many`: those that are paused go on."""

    def do(ledger: Ledger, timer: Timer) -> bool:
        change.resumed(ledger, timer)
        return True

    return _run(ledger, call, call.read(_change_many), Deed((int(State.PAUSED),), do))


def shift_many(ledger: Ledger, call: Call) -> Steps:
    """`timer.shift_many`: the dues move, later or earlier."""
    asked = call.read(_shift_many)
    try:
        by_ns = parse_duration(asked.by.removeprefix("-"))
    except ValueError as error:
        raise refusal("validation", f"by: {error}", pointer="/by") from None
    if asked.by.startswith("-"):
        by_ns = -by_ns

    def do(ledger: Ledger, timer: Timer) -> bool:
        if by_ns:
            change.reschedule_as(ledger, timer, change.shifted(ledger, timer, by_ns, "/by"))
        return by_ns != 0

    return _run(ledger, call, asked, Deed(_ANY, do))


def relabel_many(ledger: Ledger, call: Call) -> Steps:
    """`timer.relabel_many`: labels are set and taken away."""
    asked = call.read(_relabel_many)
    limits = ledger.config.limits
    pack_labels(asked.set, limits, "/set")
    if not asked.set and not asked.remove:
        raise refusal("validation", "there is nothing to set or remove", pointer="/set")
    both = sorted(asked.set.keys() & set(asked.remove))
    if both:
        raise refusal("validation", f"{both[0]!r} is set and removed", pointer="/remove")

    def do(ledger: Ledger, timer: Timer) -> bool:
        parts = unpack_blob(timer.blob)
        before: dict[str, str] = orjson.loads(parts.labels)
        kept = {key: value for key, value in before.items() if key not in asked.remove}
        labels = pack_labels(kept | asked.set, limits)
        if labels == parts.labels:
            return False
        blob = pack_blob(*parts._replace(labels=labels))
        told_ns = change.due_utc(ledger, timer)
        ledger.change(Kind.RELABELLED, timer, blob=blob, told_due_ns=told_ns)
        return True

    return _run(ledger, call, asked, Deed(_ANY, do))


# ------------------------------------------------------------------------------------------- which


def _run(ledger: Ledger, call: Call, asked: Asked, deed: Deed) -> Steps:
    if (asked.ids is None) == (asked.filter is None):
        raise refusal("validation", "give either ids or filter", pointer="/filter")
    tally = Tally()
    if asked.filter is None:
        assert asked.ids is not None
        ids = _read_ids(asked.ids)
        if asked.dry_run:
            _preview(ledger, ids, deed, Filter(), tally)
            return tally.preview()
        _change_each(ledger, ids, deed, Filter(), tally)
        return _finish(ledger, call, asked, tally)
    if len(_encode(asked.filter)) > bodies.FILTER_BYTES_MAX:
        raise refusal(
            "too_large",
            f"the filter is {len(_encode(asked.filter))} bytes; the limit is "
            f"{bodies.FILTER_BYTES_MAX}",
            pointer="/filter",
        )
    wanted = read_filter(asked.filter, ledger)
    yield ledger.next_seq - 1  # the tables must hold all that was asked before
    if asked.dry_run:
        yield from _preview_found(ledger, deed, wanted, tally)
        return tally.preview()
    if call.progress is None:
        ids, is_all = yield from _gather(ledger, deed, wanted)
        if is_all:
            _change_each(ledger, ids, deed, wanted, tally)
            return _finish(ledger, call, asked, tally)
    yield from _change_found(ledger, call, deed, wanted, tally)
    return _finish(ledger, call, asked, tally)


def _read_ids(texts: list[str]) -> list[bytes]:
    if len(texts) > bodies.SCHEDULE_MANY_MAX:
        raise refusal(
            "too_large",
            f"there are {len(texts)} ids; the limit is {bodies.SCHEDULE_MANY_MAX}",
            pointer="/ids",
        )
    return list(dict.fromkeys(read_id(text, f"/ids/{at}") for at, text in enumerate(texts)))


@dataclass(slots=True)
class Tally:
    """What was done so far. sample: views, of a dry run."""

    count: int = 0
    skipped: int = 0
    sample: list[bytes] | None = None

    def preview(self) -> bytes:
        """The reply of a dry run."""
        return b'{"count":%d,"sample":[%b]}' % (self.count, b",".join(self.sample or ()))


def _scan(ledger: Ledger, deed: Deed, wanted: Filter, after: bytes) -> tuple[list[bytes], bytes]:
    """The ids of some timers that it may be about, and where to go on."""
    states = tuple(s for s in deed.states if not wanted.states or s in wanted.states)
    if not states:
        return [], b""
    rows, after = ledger.tables.scan(
        wanted._replace(states=states), after, STEP_TIMERS, SCAN_BUDGET
    )
    return [unpack_id(row) for row in rows], after


def _gather(
    ledger: Ledger, deed: Deed, wanted: Filter
) -> Generator[int, None, tuple[list[bytes], bool]]:
    """The ids of those that are found, if they are no more than one commit takes."""
    found: list[bytes] = []
    after = b""
    while len(found) <= bodies.BULK_ATOMIC_MAX:
        ids, after = _scan(ledger, deed, wanted, after)
        found += ids
        if not after:
            return found, len(found) <= bodies.BULK_ATOMIC_MAX
        yield 0
    return [], False


def _change_found(
    ledger: Ledger, call: Call, deed: Deed, wanted: Filter, tally: Tally
) -> Generator[int, None, None]:
    after = b""
    if call.progress is not None:
        after, tally.count, tally.skipped = call.progress
    while True:
        while len(ledger.events) >= ledger.config.limits.turn_events_max:
            yield 0  # the commit before must end first
        ids, after = _scan(ledger, deed, wanted, after)
        _change_each(ledger, ids, deed, wanted, tally)
        if not after:
            return
        keep_progress(ledger, call, Progress(after, tally.count, tally.skipped))
        yield 0


# ------------------------------------------------------------------------------------------- what


def _of(ledger: Ledger, id: bytes, deed: Deed, wanted: Filter) -> Timer | None:
    """The timer as it is now, if the deed is for it: the tables may have told of an older one."""
    timer = ledger.load(id)
    if timer is None or timer.image.state not in deed.states:
        return None
    return timer if passes(wanted, timer.image, timer.blob) else None


def _change_each(
    ledger: Ledger, ids: list[bytes], deed: Deed, wanted: Filter, tally: Tally
) -> None:
    for at, id in enumerate(ids, 1):
        if at % BREATH_TIMERS == 0:
            ledger.breathe()
        timer = _of(ledger, id, deed, wanted)
        if timer is None:
            continue
        try:
            tally.count += deed.do(ledger, timer)
        except Refused:
            tally.skipped += 1


def _preview(ledger: Ledger, ids: list[bytes], deed: Deed, wanted: Filter, tally: Tally) -> None:
    sample = tally.sample = tally.sample if tally.sample is not None else []
    for id in ids:
        timer = _of(ledger, id, deed, wanted)
        if timer is not None:
            tally.count += 1
            if len(sample) < SAMPLE_MAX:
                sample.append(ledger.view(timer))


def _preview_found(
    ledger: Ledger, deed: Deed, wanted: Filter, tally: Tally
) -> Generator[int, None, None]:
    after = b""
    while True:
        ids, after = _scan(ledger, deed, wanted, after)
        _preview(ledger, ids, deed, wanted, tally)
        if not after:
            return
        yield 0


def _finish(ledger: Ledger, call: Call, asked: Asked, tally: Tally) -> bytes:
    """Tell what was done, if anything was; and the reply."""
    if tally.count:
        told: dict[str, Any] = {"verb": call.header.op}
        told |= msgspec.to_builtins(asked)
        if asked.ids is not None:
            told["ids"] = len(asked.ids)
        told |= {"count": tally.count, "skipped": tally.skipped}
        ledger.tell(Kind.BULK, orjson.dumps(told))
    if tally.skipped:
        return b'{"count":%d,"skipped":%d}' % (tally.count, tally.skipped)
    return b'{"count":%d}' % tally.count
