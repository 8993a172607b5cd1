"""timer.schedule and timer.schedule_many."""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from edgenode._draft import ManyDrafts, draft
from edgenode.call import Call, problem_json
from edgenode.definitions import DECODE_ERRORS, Plan, faults_of, plan
from edgenode.ledger import Ledger
from edgenode.verbs import conflict, spread
from engine.record import EVENT_HEAD_BYTES, Image, Kind, Scale, unpack_event
from engine.timer import Reason, State
from minoots.wire.bodies import SCHEDULE_MANY_MAX, ScheduleMany, ScheduleManyRaw
from minoots.wire.definition import Definition
from minoots.wire.problems import Refused, refusal

_definition = msgspec.json.Decoder(Definition)
_many = msgspec.json.Decoder(ScheduleMany)
_many_raw = msgspec.json.Decoder(ScheduleManyRaw)

SLICE = 64  # items between two looks at the clock

Planned = bytes | Plan | Refused  # bytes: a draft
Steps = Generator[int, None, bytes]


def schedule(ledger: Ledger, call: Call) -> bytes | Steps:
    """`timer.schedule`: one timer. 2 us, or 12 where its definition is not plain."""
    plain = draft(call.body, call.now, ledger.config.limits)
    if plain is not None:
        ledger.admit_create(1)
        views: list[bytes] = []
        ledger.create_drafts([plain], 0, 1, views)
        return views[0]
    asked = call.read(_definition)
    if asked.spread is not None:
        return _schedule_spread(ledger, call, asked)
    ledger.admit_create(1)
    made = plan(asked, call.now, ledger.config.limits)
    return _make(ledger, call, made)


def _schedule_spread(ledger: Ledger, call: Call, asked: Definition) -> Steps:
    choose = spread.chooser(ledger)
    made = yield from spread.once_counted(
        ledger, lambda: plan(asked, call.now, ledger.config.limits, choose=choose)
    )
    ledger.admit_create(1)
    return _make(ledger, call, made)


def _make(ledger: Ledger, call: Call, made: Plan) -> bytes:
    """A new timer, or what its key says of the one that there is. Raises Refused."""
    verdict = conflict.judge(ledger, made) if made.keyed is not None else None
    return _create(ledger, call, made) if verdict is None else conflict.carry_out(ledger, verdict)


def _create(ledger: Ledger, call: Call, made: Plan) -> bytes:
    id = ledger.new_id()
    now, first = call.now, made.first
    image = Image(
        id,
        ledger.next_seq,
        first.due_ns,
        now.utc_ns,
        0,
        made.name_hash,
        first.number,
        1,
        0,
        State.SCHEDULED,
        made.scale,
        Reason.NONE,
    )
    shift_ns = now.shift_ns if made.scale == Scale.STEADY else 0
    data = ledger.create(image, made.blob, first.due_ns + shift_ns)
    if made.keyed is not None and made.keyed.key is not None:
        ledger.hold_key(made.keyed.key, id)
    return ledger.encoder.view(data, EVENT_HEAD_BYTES, now.shift_ns)


def schedule_many(ledger: Ledger, call: Call) -> bytes | Steps:
    """`timer.schedule_many`: one transaction, each item by itself or (atomic) all or none.

    Everything is checked before anything is written, so an atomic request leaves nothing behind.
    """
    ledger.occupancy.begin()
    plans, atomic = _plan_all(ledger, call)
    if ledger.occupancy.missing:
        return _schedule_many_spread(ledger, call)
    return _write_many(ledger, call, plans, atomic=atomic)


def _schedule_many_spread(ledger: Ledger, call: Call) -> Steps:
    ledger.occupancy.undo()
    plans, atomic = yield from spread.once_counted(ledger, lambda: _plan_all(ledger, call))
    return _write_many(ledger, call, plans, atomic=atomic)


def _plan_all(ledger: Ledger, call: Call) -> tuple[list[Planned], bool]:
    return _plan_drafts(ledger, call) or _plan_many(ledger, call)


def _write_many(ledger: Ledger, call: Call, plans: list[Planned], *, atomic: bool) -> bytes:
    if atomic:
        _refuse_any(_judged(ledger, plans))
    results: list[bytes] = []
    for start in range(0, len(plans), SLICE):
        if start:
            ledger.breathe()
        _write_slice(ledger, call, plans, start, min(start + SLICE, len(plans)), results)
    return b'{"results":[' + b",".join(results) + b"]}"


def _write_slice(
    ledger: Ledger, call: Call, plans: list[Planned], at: int, end: int, results: list[bytes]
) -> None:
    while at < end:
        made = plans[at]
        if isinstance(made, bytes):
            at += ledger.create_drafts(plans, at, end, results)
            continue
        try:
            if isinstance(made, Refused):
                raise made
            results.append(_make(ledger, call, made))
        except Refused as refused:
            results.append(b'{"problem":' + problem_json(refused) + b"}")
        at += 1


def _plan_drafts(ledger: Ledger, call: Call) -> tuple[list[Planned], bool] | None:
    """Check a body that is plain; None if it is not, and `_plan_many` has to."""
    many = ManyDrafts(call.body, call.now, ledger.config.limits)
    plans: list[Planned] = []
    while not many.ended:
        if plans:
            ledger.breathe()
        taken = many.take(SLICE)
        if taken is None:
            return None
        plans += [
            item if isinstance(item, bytes) else _plan(ledger, call, _read_definition(item))
            for item in taken
        ]
    ledger.admit_create(len(plans))
    return plans, many.atomic


def _plan_many(ledger: Ledger, call: Call) -> tuple[list[Planned], bool]:
    definitions, atomic = _read_many(call)
    ledger.admit_create(len(definitions))
    plans: list[Planned] = []
    for at, asked in enumerate(definitions):
        if at % SLICE == SLICE - 1:
            ledger.breathe()
        plans.append(_plan(ledger, call, asked))
    return plans, atomic


def _plan(ledger: Ledger, call: Call, asked: Definition | Refused) -> Plan | Refused:
    if isinstance(asked, Refused):
        return asked
    try:
        return plan(asked, call.now, ledger.config.limits, choose=spread.chooser(ledger))
    except Refused as refused:
        return refused


def _read_many(call: Call) -> tuple[list[Definition] | list[Definition | Refused], bool]:
    try:
        request = _many.decode(call.body)
    except DECODE_ERRORS:
        return _read_each(call)
    _check_size(len(request.timers))
    return request.timers, request.atomic


def _read_each(call: Call) -> tuple[list[Definition | Refused], bool]:
    """Something in the body is wrong: decode item by item, so that each gets its own problem."""
    request = call.read(_many_raw)
    _check_size(len(request.timers))
    return [_read_definition(raw) for raw in request.timers], request.atomic


def _read_definition(raw: msgspec.Raw) -> Definition | Refused:
    try:
        return _definition.decode(raw)
    except DECODE_ERRORS as error:
        return faults_of(error)


def _check_size(number: int) -> None:
    if not 1 <= number <= SCHEDULE_MANY_MAX:
        raise refusal(
            "too_large" if number else "validation",
            f"there are {number} timers; send 1 to {SCHEDULE_MANY_MAX} a request",
            pointer="/timers",
        )


def _judged(ledger: Ledger, plans: list[Planned]) -> list[Planned]:
    """The plans, and refusals of those that their keys forbid: all before the first is written."""
    seen: set[str] = set()
    judged: list[Planned] = []
    for made in plans:
        if isinstance(made, Plan) and made.keyed is not None:
            keyed = made.keyed
            assert keyed.key is not None
            try:
                if keyed.key in seen:
                    raise refusal(
                        "validation",
                        f"key {keyed.key!r} is given twice; an atomic request takes a key once",
                        pointer="/key",
                    )
                seen.add(keyed.key)
                conflict.judge(ledger, made)
            except Refused as refused:
                made = refused
        judged.append(made)
    return judged


def _refuse_any(plans: list[Planned]) -> None:
    errors = []
    first = None
    for at, made in enumerate(plans):
        if isinstance(made, Refused):
            first = first or made
            for fault in made.errors:
                pointer = f"/timers/{at}{fault.pointer}"
                errors.append(msgspec.structs.replace(fault, pointer=pointer))
    if first is not None:
        detail = f"nothing was scheduled, for the request is atomic: {first.detail}"
        raise refusal(first.code, detail, errors=errors)


# --------------------------------------------------------------- the same reply again, from the log


def reply_of_one(ledger: Ledger, seq: int, data: bytes) -> bytes:
    """The reply that `timer.schedule` gave when it wrote the record at `seq`."""
    record = unpack_event(seq, data)
    assert record.image is not None
    shift_ns = record.due_ns - record.image.due_ns if record.image.scale == Scale.STEADY else 0
    return ledger.encoder.view(data, EVENT_HEAD_BYTES, shift_ns)


def keep_of_one(body: bytes) -> bytes:
    """What must be kept of a schedule reply besides its event: one that tells of a conflict, whole,
    as no event of its own stands for it."""
    if b'"conflict":' in body and _outcome(body).conflict is not None:
        return body
    return b""


class _Outcome(msgspec.Struct):
    problem: msgspec.Raw = msgspec.Raw(b"")
    conflict: str | None = None


class _Results(msgspec.Struct):
    results: list[msgspec.Raw]


class _Kept(msgspec.Struct, omit_defaults=True):
    """What is kept of a reply: how many results there were; those at the places (decimal) that no
    `scheduled` event stands for. problems: earlier versions kept the problems of those alone."""

    size: int
    others: dict[str, msgspec.Raw] = {}
    problems: dict[str, msgspec.Raw] = {}


_outcome = msgspec.json.Decoder(_Outcome).decode
_results = msgspec.json.Decoder(_Results).decode
_kept = msgspec.json.Decoder(_Kept).decode


def keep_of_many(body: bytes) -> bytes:
    """What must be kept of a schedule_many reply besides its events: problems and conflicts."""
    if b'{"problem":' not in body and b'"conflict":' not in body:
        return b""
    others = {}
    results = _results(body).results
    for at, item in enumerate(results):
        outcome = _outcome(item)
        if bytes(outcome.problem) or outcome.conflict is not None:
            others[str(at)] = item
    return msgspec.json.encode(_Kept(len(results), others)) if others else b""


def reply_of_many(ledger: Ledger, first_seq: int, records: list[bytes], kept: bytes) -> bytes:
    """The reply that `timer.schedule_many` gave when it wrote `records`, from `first_seq` on."""
    views = iter(
        [
            reply_of_one(ledger, seq, data)
            for seq, data in enumerate(records, first_seq)
            if data[5] == Kind.SCHEDULED
        ]
    )
    if not kept:
        return b'{"results":[' + b",".join(views) + b"]}"
    memory = _kept(kept)
    results = []
    for at in map(str, range(memory.size)):
        if at in memory.problems:
            results.append(b'{"problem":%b}' % bytes(memory.problems[at]))
        else:
            results.append(bytes(memory.others[at]) if at in memory.others else next(views))
    return b'{"results":[' + b",".join(results) + b"]}"
