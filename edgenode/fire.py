"""What happens when a timer is due: one event that says so, and its next occurrence or its end."""

from __future__ import annotations

from edgenode._expire import expire
from edgenode.definitions import budget_of, replace_rule
from edgenode.ledger import TICK_NS, Awaited, Ledger, Timer
from engine import schedule as rules
from engine.clock import tick_at_or_after
from engine.record import FLAG_MISFIRE, Image, Kind, Scale, rule_of
from engine.schedule import Occurrence, Rule
from engine.timer import Reason, State


def fire_due(ledger: Ledger, id: bytes, wheel_tick: int) -> bool:
    """Write `expired` for a timer that the wheel, at `wheel_tick`, has handed over; whether there
    was one to write.

    The wheel may hand over a timer that was moved or ended meanwhile: then its image says so.
    """
    if _expire_plain(ledger, id, wheel_tick):
        return True
    timer = ledger.load(id)
    if timer is None or timer.image.state != State.SCHEDULED:
        return False
    image, now = timer.image, ledger.now
    deadline_ns = ledger.deadline_ns(image)
    due_tick = tick_at_or_after(deadline_ns, TICK_NS)
    if image.scale == Scale.WALL and ledger.wall_held:
        return False  # armed again when the clock is agreed on
    if due_tick > wheel_tick:
        ledger.hot.arm(id, due_tick)
        return False
    late = now.steady_ns - deadline_ns > ledger.config.engine.misfire_after
    missed = deadline_ns < ledger.serving_since_ns
    rule = rules.unpack_rule(rule_of(timer.blob))
    _expire(ledger, timer, rule, FLAG_MISFIRE if late or missed else 0)
    return True


def _expire_plain(ledger: Ledger, id: bytes, wheel_tick: int) -> bool:
    """The same in C, for a timer whose newest record or row tells all; False: nothing was done."""
    entry = ledger.hot.get(id)
    stored_seq = entry[0] if entry is not None else 0
    stored = ledger.record(stored_seq) if stored_seq else ledger.tables.row(id)
    if stored is None:
        return False
    seq = ledger.next_seq
    done = expire(
        ledger.hot,
        id,
        stored,
        stored_seq,
        ledger.events,
        seq,
        ledger.now,
        wheel_tick,
        TICK_NS,
        ledger.config.engine.misfire_after,
        ledger.serving_since_ns,
        ledger.horizon_ns,
        ledger.wall_held,
    )
    if done is None:
        return False
    due_ns, wall, goes_on = done
    ledger.live_count -= not goes_on
    ledger.expect_receipt(seq, Awaited(id, due_ns, wall))
    return True


def _expire(ledger: Ledger, timer: Timer, rule: Rule, flags: int) -> Timer:
    image, now = timer.image, ledger.now
    shift_ns = now.shift_ns if image.scale == Scale.STEADY else 0
    fired = Occurrence(image.occurrence, image.due_ns)
    coming = rules.following(rule, fired, now_ns=now.steady_ns, shift_ns=shift_ns)
    seq = ledger.next_seq
    if coming is None:
        after = {"state": int(State.COMPLETED), "reason": int(_why_ended(rule, fired))}
    else:
        after = {"due_ns": coming.due_ns, "occurrence": coming.number, "reason": int(Reason.NONE)}
    timer = ledger.change(
        Kind.EXPIRED,
        timer,
        blob=timer.blob,
        flags=flags,
        told_due_ns=image.due_ns + shift_ns,
        told_occurrence=fired.number,
        **after,
    )
    budget_ns = budget_of(timer.blob)
    wall = image.scale == Scale.WALL
    ledger.expect_receipt(seq, Awaited(image.id, image.due_ns, wall, budget_ns))
    return timer


def tell_late(ledger: Ledger, seq: int, awaited: Awaited, fired_ns: int) -> None:
    """Write `late` for the expiry at `seq`, which left at `fired_ns` (UTC), beyond its budget."""
    fire, timer = ledger.event(seq), ledger.load(awaited.id)
    if fire is None or timer is None:
        return  # its end is forgotten: nobody could look it up
    ledger.change(
        Kind.LATE,
        timer,
        at_ns=fired_ns,
        told_due_ns=fire.due_ns,
        told_occurrence=fire.occurrence,
    )


def _why_ended(rule: Rule, fired: Occurrence) -> Reason:
    if not rule.recurring:
        return Reason.NONE
    if rule.max_occurrences and fired.number >= rule.max_occurrences:
        return Reason.MAX_OCCURRENCES
    return Reason.EXPIRES_AT


def trigger(ledger: Ledger, timer: Timer) -> Timer:
    """Fire a timer now, by a client's wish: it takes the number of the occurrence that comes next.

    A one-shot is completed by it; a recurring one keeps its dues, numbered one higher, and a paused
    one stays paused.
    """
    image, now = timer.image, ledger.now
    rule = rules.unpack_rule(rule_of(timer.blob))
    seq, blob = ledger.next_seq, timer.blob
    after = {"reason": int(Reason.TRIGGERED)}
    coming = None
    if rule.recurring:
        coming = Occurrence(image.occurrence + 1, image.due_ns)
        shift_ns = now.shift_ns if image.scale == Scale.STEADY else 0
        coming = rules.allowed(rule, coming, shift_ns=shift_ns)
    if coming is None:
        after |= {"state": int(State.COMPLETED), "due_ns": _due_now(image, ledger), "left_ns": 0}
    else:
        after["occurrence"] = coming.number
        blob = replace_rule(blob, rules.regrid(rule, coming))
    timer = ledger.change(
        Kind.EXPIRED,
        timer,
        blob=blob,
        told_due_ns=now.utc_ns,
        told_occurrence=image.occurrence,
        **after,
    )
    ledger.expect_receipt(seq, Awaited(image.id, now.steady_ns, False))
    return timer


def _due_now(image: Image, ledger: Ledger) -> int:
    return ledger.now.steady_ns if image.scale == Scale.STEADY else ledger.now.utc_ns
