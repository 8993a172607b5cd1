"""timer.schedule and timer.schedule_many."""

from __future__ import annotations

import msgspec
import orjson

from edgenode._draft import ManyDrafts, draft
from edgenode.call import Call, problem_json
from edgenode.definitions import DECODE_ERRORS, Plan, faults_of, plan
from edgenode.ledger import Ledger
from engine.record import EVENT_HEAD_BYTES, Image, Scale, unpack_event
from engine.timer import Reason, State
from minoots.wire.bodies import SCHEDULE_MANY_MAX, ScheduleMany, ScheduleManyRaw
from minoots.wire.definition import Definition
from minoots.wire.problems import Refused, refusal

_definition = msgspec.json.Decoder(Definition)
_many = msgspec.json.Decoder(ScheduleMany)
_many_raw = msgspec.json.Decoder(ScheduleManyRaw)

SLICE = 64  # items between two looks at the clock

Planned = bytes | Plan | Refused  # bytes: a draft


def schedule(ledger: Ledger, call: Call) -> bytes:
    """`timer.schedule`: one timer. 2 us, or 12 where its definition is not plain."""
    plain = draft(call.body, call.now, ledger.config.limits)
    if plain is not None:
        ledger.admit_create(1)
        views: list[bytes] = []
        ledger.create_drafts([plain], 0, 1, views)
        return views[0]
    asked = call.read(_definition)
    ledger.admit_create(1)
    made = plan(asked, call.now, ledger.config.limits)
    return _create(ledger, call, made)


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
    return ledger.encoder.view(data, EVENT_HEAD_BYTES, now.shift_ns)


def schedule_many(ledger: Ledger, call: Call) -> bytes:
    """`timer.schedule_many`: one transaction, each item by itself or (atomic) all or none.

    Everything is checked before anything is written, so an atomic request leaves nothing behind.
    """
    plans, atomic = _plan_drafts(ledger, call) or _plan_many(ledger, call)
    if atomic:
        _refuse_any(plans)
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
        if isinstance(made, Refused):
            results.append(b'{"problem":' + problem_json(made) + b"}")
        else:
            results.append(_create(ledger, call, made))
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
        return plan(asked, call.now, ledger.config.limits)
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


def keep_of_many(body: bytes) -> bytes:
    """What must be kept of a schedule_many reply besides its events: where its problems were."""
    if b'{"problem":' not in body:
        return b""
    results = orjson.loads(body)["results"]
    kept = {str(at): item["problem"] for at, item in enumerate(results) if "problem" in item}
    return orjson.dumps({"size": len(results), "problems": kept}) if kept else b""


def reply_of_many(ledger: Ledger, first_seq: int, records: list[bytes], kept: bytes) -> bytes:
    """The reply that `timer.schedule_many` gave when it wrote `records`, from `first_seq` on."""
    views = iter([reply_of_one(ledger, seq, data) for seq, data in enumerate(records, first_seq)])
    if not kept:
        return b'{"results":[' + b",".join(views) + b"]}"
    memory = orjson.loads(kept)
    problems = memory["problems"]
    results = []
    for at in range(memory["size"]):
        found = problems.get(str(at))
        results.append(next(views) if found is None else b'{"problem":%b}' % orjson.dumps(found))
    return b'{"results":[' + b",".join(results) + b"]}"
