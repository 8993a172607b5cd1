"""The verbs that change timers: cancel, reschedule, extend, pause, resume, trigger."""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from edgenode import fire, misfire
from edgenode.call import Call
from edgenode.definitions import limits_of, replace_rule, time_of
from edgenode.ledger import Ledger, Timer
from edgenode.verbs.find import find, read_filter, read_id
from engine import schedule as rules
from engine.record import Kind, Scale, rule_of, unpack_blob
from engine.schedule import Occurrence
from engine.timer import TERMINAL, Reason, State
from minoots.wire import bodies
from minoots.wire.problems import refusal
from minoots.wire.times import format_id, parse_duration

_target = msgspec.json.Decoder(bodies.Target)
_reschedule = msgspec.json.Decoder(bodies.Reschedule)
_extend = msgspec.json.Decoder(bodies.Extend)
_cancel_many = msgspec.json.Decoder(bodies.CancelMany)

Steps = Generator[int, None, bytes]

SCAN_LIMIT = 256  # timers of a filter that are decided before others go on
SCAN_BUDGET = 20_000  # rows looked at in one step


def _open(
    ledger: Ledger, call: Call, id: str | None, name: str | None
) -> Generator[int, None, Timer]:
    """The timer that a change is for: it has not ended, and has the revision asked for."""
    timer = yield from find(ledger, id, name)
    if timer.image.state in TERMINAL:
        word = "its expiration is committed" if ledger.position(timer.image) else "it has ended"
        raise refusal(
            "already_terminal",
            f"timer {format_id(timer.image.id)} is {State(timer.image.state).name.lower()}; {word}",
        )
    wanted = call.header.if_match
    if wanted is not None and wanted != timer.image.revision:
        raise refusal(
            "revision_conflict",
            f"timer {format_id(timer.image.id)} has revision {timer.image.revision}; "
            f"if_match asks for {wanted}; read it again",
        )
    return timer


def _due_utc(ledger: Ledger, timer: Timer) -> int:
    image = timer.image
    if not image.due_ns:
        return 0
    return image.due_ns + (ledger.now.shift_ns if image.scale == Scale.STEADY else 0)


def cancel(ledger: Ledger, call: Call) -> Steps:
    """`timer.cancel`: it will not fire again."""
    asked = call.read(_target)
    timer = yield from _open(ledger, call, asked.id, asked.name)
    return ledger.view(_cancel(ledger, timer))


def _cancel(ledger: Ledger, timer: Timer) -> Timer:
    return ledger.change(
        Kind.CANCELLED,
        timer,
        told_due_ns=_due_utc(ledger, timer),
        state=int(State.CANCELLED),
        reason=int(Reason.BY_CLIENT),
        left_ns=0,
    )


def cancel_many(ledger: Ledger, call: Call) -> Steps:
    """`timer.cancel_many`: by ids, in one transaction, or by filter, in slices.

    Those that are unknown or have ended are not counted and are no error.
    """
    asked = call.read(_cancel_many)
    if (asked.ids is None) == (asked.filter is None):
        raise refusal("validation", "give either ids or filter", pointer="/filter")
    count = 0
    if asked.ids is not None:
        if len(asked.ids) > bodies.SCHEDULE_MANY_MAX:
            raise refusal(
                "too_large",
                f"there are {len(asked.ids)} ids; the limit is {bodies.SCHEDULE_MANY_MAX}",
                pointer="/ids",
            )
        wanted = [read_id(text, f"/ids/{at}") for at, text in enumerate(asked.ids)]
        count = _cancel_each(ledger, wanted)
    else:
        assert asked.filter is not None
        wanted_filter = read_filter(asked.filter, ledger)
        yield ledger.next_seq - 1  # the tables must hold all that was asked before
        after = b""
        while True:
            rows, after = ledger.tables.scan(wanted_filter, after, SCAN_LIMIT, SCAN_BUDGET)
            count += _cancel_each(ledger, [unpack_id(row) for row in rows])
            if not after:
                break
            yield 0
    return b'{"count":%d}' % count


def unpack_id(row: bytes) -> bytes:
    """The id of a row of the tables."""
    return row[8:24]


def _cancel_each(ledger: Ledger, ids: list[bytes]) -> int:
    count = 0
    for id in ids:
        timer = ledger.load(id)
        if timer is not None and timer.image.state not in TERMINAL:
            _cancel(ledger, timer)
            count += 1
    return count


def reschedule(ledger: Ledger, call: Call) -> Steps:
    """`timer.reschedule`: another schedule from now on; the occurrence number goes on."""
    asked = call.read(_reschedule)
    timer = yield from _open(ledger, call, asked.id, asked.name)
    most, expires_at = limits_of(unpack_blob(timer.blob))
    timing = time_of(
        asked.schedule,
        call.now,
        ledger.config.limits,
        max_occurrences=most,
        expires_at=expires_at,
        number=timer.image.occurrence,
    )
    misfire.check_rule(misfire.policy_of(timer.blob), timing.rule)
    blob = replace_rule(timer.blob, timing.rule, asked.schedule)
    after = {"scale": timing.scale, "occurrence": timing.first.number}
    paused = timer.image.state == State.PAUSED
    shift_ns = call.now.shift_ns if timing.scale == Scale.STEADY else 0
    if paused:
        now_ns = call.now.steady_ns if timing.scale == Scale.STEADY else call.now.utc_ns
        after |= {"due_ns": timing.first.due_ns, "left_ns": max(timing.first.due_ns - now_ns, 1)}
    else:
        after["due_ns"] = timing.first.due_ns
    due_utc_ns = timing.first.due_ns + shift_ns
    timer = ledger.change(Kind.RESCHEDULED, timer, blob=blob, told_due_ns=due_utc_ns, **after)
    return ledger.view(timer)


def extend(ledger: Ledger, call: Call) -> Steps:
    """`timer.extend`: the next due, and those after it, `by` later."""
    asked = call.read(_extend)
    try:
        by_ns = parse_duration(asked.by)
    except ValueError as error:
        raise refusal("validation", f"by: {error}", pointer="/by") from None
    timer = yield from _open(ledger, call, asked.id, asked.name)
    image = timer.image
    rule = rules.unpack_rule(rule_of(timer.blob))
    coming = Occurrence(image.occurrence, image.due_ns + by_ns)
    shift_ns = call.now.shift_ns if image.scale == Scale.STEADY else 0
    if rules.allowed(rule, coming, shift_ns=shift_ns) is None:
        raise refusal("no_future_occurrence", "expires_at forbids it", pointer="/by")
    if coming.due_ns + shift_ns > call.now.utc_ns + ledger.config.limits.due_max:
        raise refusal("beyond_horizon", "due would be too far ahead (due_max)", pointer="/by")
    blob = replace_rule(timer.blob, rules.shifted(rule, by_ns)) if rule.recurring else b""
    after = {"due_ns": coming.due_ns}
    if image.state == State.PAUSED:
        after["left_ns"] = image.left_ns + by_ns
    due_utc_ns = coming.due_ns + shift_ns
    timer = ledger.change(Kind.RESCHEDULED, timer, blob=blob, told_due_ns=due_utc_ns, **after)
    return ledger.view(timer)


def pause(ledger: Ledger, call: Call) -> Steps:
    """`timer.pause`: not due until it is resumed. Pausing what is paused changes nothing."""
    asked = call.read(_target)
    timer = yield from _open(ledger, call, asked.id, asked.name)
    if timer.image.state == State.PAUSED:
        return ledger.view(timer)
    left_ns = max(ledger.deadline_ns(timer.image) - call.now.steady_ns, 1)
    timer = ledger.change(
        Kind.PAUSED,
        timer,
        told_due_ns=_due_utc(ledger, timer),
        state=int(State.PAUSED),
        reason=int(Reason.BY_CLIENT),
        left_ns=left_ns,
    )
    return ledger.view(timer)


def resume(ledger: Ledger, call: Call) -> Steps:
    """`timer.resume`: go on. `after` and fixed-delay timers are due when the time that was left
    has passed; fixed-rate ones at their next grid point; `at` at its instant, or at once if that
    has passed. Resuming what is not paused changes nothing."""
    asked = call.read(_target)
    timer = yield from _open(ledger, call, asked.id, asked.name)
    if timer.image.state != State.PAUSED:
        return ledger.view(timer)
    image, now = timer.image, call.now
    rule = rules.unpack_rule(rule_of(timer.blob))
    blob = b""
    if image.scale == Scale.WALL:
        due_ns = image.due_ns
    elif rule.recurring and rule.mode == rules.FIXED_RATE:
        steps = max(0, (now.steady_ns - image.due_ns) // rule.interval_ns + 1)
        due_ns = image.due_ns + steps * rule.interval_ns
    else:
        due_ns = now.steady_ns + image.left_ns
    shift_ns = now.shift_ns if image.scale == Scale.STEADY else 0
    coming = Occurrence(image.occurrence, due_ns)
    if rule.recurring:
        blob = replace_rule(timer.blob, rules.regrid(rule, coming))
    if rules.allowed(rule, coming, shift_ns=shift_ns) is None:
        raise refusal("no_future_occurrence", "expires_at has passed; cancel it or reschedule it")
    timer = ledger.change(
        Kind.RESUMED,
        timer,
        blob=blob,
        told_due_ns=due_ns + shift_ns,
        state=int(State.SCHEDULED),
        reason=int(Reason.BY_CLIENT),
        due_ns=due_ns,
        left_ns=0,
    )
    return ledger.view(timer)


def trigger(ledger: Ledger, call: Call) -> Steps:
    """`timer.trigger`: fire now. A one-shot is completed by it."""
    asked = call.read(_target)
    timer = yield from _open(ledger, call, asked.id, asked.name)
    return ledger.view(fire.trigger(ledger, timer))
