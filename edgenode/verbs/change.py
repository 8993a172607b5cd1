"""The verbs that change timers: cancel, reschedule, extend, pause, resume, trigger."""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

import msgspec

from edgenode import fire, misfire
from edgenode.call import Call
from edgenode.definitions import (
    Timing,
    key_of,
    limits_of,
    replace_rule,
    spread_out,
    time_of,
)
from edgenode.ledger import Ledger, Timer
from edgenode.spreading import spread_of
from edgenode.verbs import spread
from edgenode.verbs.find import Asked, find
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

Steps = Generator[int, None, bytes]


def _open(ledger: Ledger, call: Call, asked: Asked) -> Generator[int, None, Timer]:
    """The timer that a change is for: it has not ended, and has the revision asked for."""
    timer = yield from find(ledger, asked)
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


def due_utc(ledger: Ledger, timer: Timer) -> int:
    """Its next due in UTC; 0 for none."""
    image = timer.image
    if not image.due_ns:
        return 0
    return image.due_ns + (ledger.now.shift_ns if image.scale == Scale.STEADY else 0)


def cancel(ledger: Ledger, call: Call) -> Steps:
    """`timer.cancel`: it will not fire again."""
    asked = call.read(_target)
    timer = yield from _open(ledger, call, asked)
    return ledger.view(cancelled(ledger, timer))


def cancelled(ledger: Ledger, timer: Timer) -> Timer:
    """Write `cancelled`."""
    return ledger.change(
        Kind.CANCELLED,
        timer,
        told_due_ns=due_utc(ledger, timer),
        state=int(State.CANCELLED),
        reason=int(Reason.BY_CLIENT),
        left_ns=0,
    )


def reschedule(ledger: Ledger, call: Call) -> Steps:
    """`timer.reschedule`: another schedule from now on; the occurrence number goes on."""
    asked = call.read(_reschedule)
    timer = yield from _open(ledger, call, asked)
    timing = yield from spread.once_counted(
        ledger, lambda: _rescheduled(ledger, call, timer, asked)
    )
    misfire.check_rule(misfire.policy_of(timer.blob), timing.rule)
    blob = replace_rule(timer.blob, timing.rule, asked.schedule)
    to = placed(ledger, timer, blob, timing.scale, timing.first)
    return ledger.view(reschedule_as(ledger, timer, to))


def extend(ledger: Ledger, call: Call) -> Steps:
    """`timer.extend`: the next due, and those after it, `by` later."""
    asked = call.read(_extend)
    try:
        by_ns = parse_duration(asked.by)
    except ValueError as error:
        raise refusal("validation", f"by: {error}", pointer="/by") from None
    timer = yield from _open(ledger, call, asked)
    return ledger.view(reschedule_as(ledger, timer, shifted(ledger, timer, by_ns, "/by")))


def _rescheduled(ledger: Ledger, call: Call, timer: Timer, asked: bodies.Reschedule) -> Timing:
    """Its new schedule, under the limits that it has, spread as it is. Raises Refused."""
    parts = unpack_blob(timer.blob)
    most, expires_at = limits_of(parts)
    timing = time_of(
        asked.schedule,
        call.now,
        ledger.config.limits,
        max_occurrences=most,
        expires_at=expires_at,
        number=timer.image.occurrence,
    )
    wanted = spread_of(parts)
    if wanted is None:
        return timing
    text = key_of(timer.blob) or parts.name.decode("utf-8", "surrogatepass")
    return spread_out(wanted, text, timing, call.now.shift_ns, spread.chooser(ledger))[0]


class Moved(NamedTuple):
    """What a timer is rescheduled to. blob: b"" where its definition stays."""

    blob: bytes
    due_utc_ns: int
    after: dict[str, int]


def reschedule_as(ledger: Ledger, timer: Timer, to: Moved) -> Timer:
    """Write `rescheduled`."""
    return ledger.change(
        Kind.RESCHEDULED, timer, blob=to.blob, told_due_ns=to.due_utc_ns, **to.after
    )


def shifted(ledger: Ledger, timer: Timer, by_ns: int, pointer: str) -> Moved:
    """The next due, and those after it, `by_ns` later, or earlier if that is negative. What would
    be due in the past is due now; of a grid, its next point. Raises Refused."""
    image, now = timer.image, ledger.now
    steady = image.scale == Scale.STEADY
    shift_ns = now.shift_ns if steady else 0
    now_ns = now.steady_ns if steady else now.utc_ns
    rule = rules.unpack_rule(rule_of(timer.blob))
    due_ns = image.due_ns + by_ns
    if by_ns < 0 and due_ns < now_ns and image.state != State.PAUSED:
        due_ns = now_ns
        if rule.recurring and rule.mode == rules.FIXED_RATE:
            due_ns += (image.due_ns + by_ns - now_ns) % rule.interval_ns
    elif due_ns < 1:  # one that is paused; 0 would say that there is no due
        due_ns = 1 + ((due_ns - 1) % rule.interval_ns if rule.recurring else 0)
    coming = Occurrence(image.occurrence, due_ns)
    if rules.allowed(rule, coming, shift_ns=shift_ns) is None:
        raise refusal("no_future_occurrence", "expires_at forbids it", pointer=pointer)
    if due_ns + shift_ns > now.utc_ns + ledger.config.limits.due_max:
        raise refusal("beyond_horizon", "due would be too far ahead (due_max)", pointer=pointer)
    blob = b""
    if rule.recurring:
        blob = replace_rule(timer.blob, rules.shifted(rule, by_ns))
        if due_ns != image.due_ns + by_ns:
            blob = replace_rule(timer.blob, rules.regrid(rule, coming))
    after = {"due_ns": due_ns}
    if image.state == State.PAUSED:
        after["left_ns"] = max(image.left_ns + by_ns, 1)
    return Moved(blob, due_ns + shift_ns, after)


def placed(ledger: Ledger, timer: Timer, blob: bytes, scale: int, first: Occurrence) -> Moved:
    """Another definition, due first at `first`; a paused timer stays paused."""
    now = ledger.now
    steady = scale == Scale.STEADY
    after = {"scale": scale, "occurrence": first.number, "due_ns": first.due_ns}
    if timer.image.state == State.PAUSED:
        now_ns = now.steady_ns if steady else now.utc_ns
        after["left_ns"] = max(first.due_ns - now_ns, 1)
    return Moved(blob, first.due_ns + (now.shift_ns if steady else 0), after)


def pause(ledger: Ledger, call: Call) -> Steps:
    """`timer.pause`: not due until it is resumed. Pausing what is paused changes nothing."""
    asked = call.read(_target)
    timer = yield from _open(ledger, call, asked)
    if timer.image.state == State.PAUSED:
        return ledger.view(timer)
    return ledger.view(paused(ledger, timer))


def paused(ledger: Ledger, timer: Timer) -> Timer:
    """Write `paused` for one that is scheduled."""
    left_ns = max(ledger.deadline_ns(timer.image) - ledger.now.steady_ns, 1)
    return ledger.change(
        Kind.PAUSED,
        timer,
        told_due_ns=due_utc(ledger, timer),
        state=int(State.PAUSED),
        reason=int(Reason.BY_CLIENT),
        left_ns=left_ns,
    )


def resume(ledger: Ledger, call: Call) -> Steps:
    """`timer.resume`: go on. `after` and fixed-delay timers are due when the time that was left
    has passed; fixed-rate ones at their next grid point; `at` at its instant, or at once if that
    has passed. Resuming what is not paused changes nothing."""
    asked = call.read(_target)
    timer = yield from _open(ledger, call, asked)
    if timer.image.state != State.PAUSED:
        return ledger.view(timer)
    return ledger.view(resumed(ledger, timer))


def resumed(ledger: Ledger, timer: Timer) -> Timer:
    """Write `resumed` for one that is paused. Raises Refused."""
    image, now = timer.image, ledger.now
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
    return ledger.change(
        Kind.RESUMED,
        timer,
        blob=blob,
        told_due_ns=due_ns + shift_ns,
        state=int(State.SCHEDULED),
        reason=int(Reason.BY_CLIENT),
        due_ns=due_ns,
        left_ns=0,
    )


def trigger(ledger: Ledger, call: Call) -> Steps:
    """`timer.trigger`: fire now. A one-shot is completed by it."""
    asked = call.read(_target)
    timer = yield from _open(ledger, call, asked)
    return ledger.view(fire.trigger(ledger, timer))
