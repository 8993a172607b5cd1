"""What happens when a timer is due: one event that says so, and its next occurrence or its end.

Where it is late its misfire policy says what happens (`misfire.py`): it fires, or what is too old
is skipped and it is due again with what is not.
"""

from __future__ import annotations

from edgenode import misfire
from edgenode._expire import expire
from edgenode.definitions import budget_of, replace_rule, slim
from edgenode.ledger import TICK_NS, Ledger, Timer
from edgenode.misfire import Policy, Verdict
from edgenode.turns import Awaited
from engine import schedule as rules
from engine.clock import tick_at_or_after
from engine.record import FLAG_MISFIRE, FLAG_SLIM, Image, Kind, Scale, rule_of
from engine.schedule import Occurrence, Rule
from engine.timer import Reason, State


def fire_due(ledger: Ledger, id: bytes, wheel_tick: int) -> Kind | None:
    """Decide about a timer that the wheel, at `wheel_tick`, has handed over. What was written:
    EXPIRED, SKIPPED, or ESCALATED for that and EXPIRED; None if there was nothing to write.

    The wheel may hand over a timer that was moved or ended meanwhile: then its image says so.
    """
    if _expire_plain(ledger, id, wheel_tick):
        return Kind.EXPIRED
    timer = ledger.load(id)
    if timer is None or timer.image.state != State.SCHEDULED:
        return None
    image = timer.image
    if ledger.is_held(image):
        ledger.turned_away.add(id)
        return None
    deadline_ns = ledger.deadline_ns(image)
    due_tick = tick_at_or_after(deadline_ns, TICK_NS)
    if image.scale == Scale.WALL and ledger.wall_held:
        return None  # armed again when the clock is agreed on
    if due_tick > wheel_tick:
        ledger.hot.arm(id, due_tick)
        return None
    rule = rules.unpack_rule(rule_of(timer.blob))
    policy = misfire.policy_of(timer.blob)
    verdict = _judge(ledger, image, rule, policy)
    if verdict.skip_to:
        skip(ledger, timer, rule, policy, verdict.skip_to, verdict.reason)
        return Kind.SKIPPED
    escalates = verdict.missed and policy.name == "escalate"
    if escalates:
        timer = _escalate(ledger, timer, rule, policy)
    timer = _expire(ledger, timer, rule, verdict.missed, policy.fires_all)
    if policy.fires_all and timer.image.state == State.SCHEDULED:
        _pace(ledger, timer, rule, policy, wheel_tick)
    return Kind.ESCALATED if escalates else Kind.EXPIRED


def _judge(ledger: Ledger, image: Image, rule: Rule, policy: Policy) -> Verdict:
    now = ledger.now
    wall = image.scale == Scale.WALL
    return misfire.judge(
        policy,
        rule,
        Occurrence(image.occurrence, image.due_ns),
        now_ns=now.utc_ns if wall else now.steady_ns,
        misfire_after_ns=ledger.config.engine.misfire_after,
        serving_since_ns=ledger.serving_since_ns + (now.shift_ns if wall else 0),
    )


def skip(
    ledger: Ledger, timer: Timer, rule: Rule, policy: Policy, skip_to: int, reason: str
) -> Timer:
    """Write `skipped` for the occurrences before `skip_to`: the timer is due again with that one,
    or it has ended."""
    image, now = timer.image, ledger.now
    shift_ns = now.shift_ns if image.scale == Scale.STEADY else 0
    due = Occurrence(image.occurrence, image.due_ns)
    coming = rules.numbered(rule, due, skip_to, now_ns=now.steady_ns, shift_ns=shift_ns)
    last = misfire.last_before(rule, due, skip_to, shift_ns)
    after = _after(rule, Occurrence(last, due.due_ns), coming)
    if coming is None and not rule.recurring:
        after["reason"] = int(Reason.MISFIRE)
    lateness_ns = now.utc_ns - image.due_ns - shift_ns
    return ledger.change(
        Kind.SKIPPED,
        timer,
        blob=slim(timer.blob, misfire.details(policy, reason, due, last, lateness_ns)),
        flags=FLAG_SLIM | FLAG_MISFIRE,
        told_due_ns=image.due_ns + shift_ns,
        told_occurrence=due.number,
        **after,
    )


def skip_missed(ledger: Ledger, timer: Timer) -> Timer:
    """Write `skipped` for all of a timer that is due by now, because an operator says so."""
    image, now = timer.image, ledger.now
    rule = rules.unpack_rule(rule_of(timer.blob))
    due = Occurrence(image.occurrence, image.due_ns)
    now_ns = now.utc_ns if image.scale == Scale.WALL else now.steady_ns
    skip_to = max(misfire.first_at(rule, due, now_ns + 1), due.number + 1)
    return skip(ledger, timer, rule, misfire.policy_of(timer.blob), skip_to, "operator")


def _escalate(ledger: Ledger, timer: Timer, rule: Rule, policy: Policy) -> Timer:
    """Write `escalated` before the fire that stands for all that were missed."""
    image, now = timer.image, ledger.now
    shift_ns = now.shift_ns if image.scale == Scale.STEADY else 0
    due = Occurrence(image.occurrence, image.due_ns)
    coming = misfire.first_at(rule, due, now.utc_ns - shift_ns + 1)
    last = misfire.last_before(rule, due, coming, shift_ns)
    lateness_ns = now.utc_ns - image.due_ns - shift_ns
    return ledger.change(
        Kind.ESCALATED,
        timer,
        blob=slim(timer.blob, misfire.details(policy, "policy", due, last, lateness_ns)),
        flags=FLAG_SLIM | FLAG_MISFIRE,
        told_due_ns=image.due_ns + shift_ns,
    )


def _pace(ledger: Ledger, timer: Timer, rule: Rule, policy: Policy, wheel_tick: int) -> None:
    """Have the wheel hand over the next fire of a catch-up no sooner than its rate says.

    Counted from where the wheel is, which is ahead of now by the lead.
    """
    deadline_ns = ledger.deadline_ns(timer.image)
    if deadline_ns <= ledger.now.steady_ns:
        tick = wheel_tick + tick_at_or_after(misfire.pace_ns(policy, rule), TICK_NS)
        ledger.hot.arm(timer.image.id, tick)


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
        ledger.held.before_ns if not ledger.let_go else ledger.held_before(id),
    )
    if done is None:
        return False
    due_ns, wall, goes_on = done
    ledger.live_count -= not goes_on
    ledger.expect_receipt(seq, Awaited(id, due_ns, wall))
    return True


def _expire(ledger: Ledger, timer: Timer, rule: Rule, missed: bool, fires_all: bool) -> Timer:
    image, now = timer.image, ledger.now
    shift_ns = now.shift_ns if image.scale == Scale.STEADY else 0
    fired = Occurrence(image.occurrence, image.due_ns)
    # As if it were on time, where nothing may be passed over.
    now_ns = min(now.steady_ns, fired.due_ns) if fires_all else now.steady_ns
    coming = rules.following(rule, fired, now_ns=now_ns, shift_ns=shift_ns)
    seq = ledger.next_seq
    timer = ledger.change(
        Kind.EXPIRED,
        timer,
        blob=timer.blob,
        flags=FLAG_MISFIRE if missed else 0,
        told_due_ns=image.due_ns + shift_ns,
        told_occurrence=fired.number,
        **_after(rule, fired, coming),
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


def _after(rule: Rule, done: Occurrence, coming: Occurrence | None) -> dict[str, int]:
    """What changes in the image once the occurrence `done` is fired or skipped."""
    if coming is None:
        return {"state": int(State.COMPLETED), "reason": int(_why_ended(rule, done))}
    return {
        "due_ns": coming.due_ns,
        "occurrence": coming.number,
        "reason": int(Reason.NONE),
    }


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
