"""What becomes of a fire that is late: a definition's misfire policy, checked, stored and judged.

A fire is *missed* when it is decided later after its due than the policy's grace allows. Without a
grace of its own that is `engine.misfire_after`, and whatever was due before the node began to serve
was missed. On time no policy makes a difference: `_expire.pyx` relies on that.

One decision is one event: either the occurrences that are too old are skipped, all that stand in a
row at once, and the timer is due again with the first that is not; or one occurrence fires. So each
step is committed by itself, and a start in between goes on from what the log says.

Pure. Instants are ns on the timer's own scale.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import orjson

from engine.record import unpack_blob
from engine.schedule import FIXED_RATE, Occurrence, Rule
from minoots.wire import definition as wire
from minoots.wire.problems import Refused, refusal
from minoots.wire.times import format_duration, parse_duration

SECOND_NS = 1_000_000_000
GRACE_NS_MIN = 10_000_000
CATCHUP_DEFAULT = 100
CATCHUP_MAX = 100_000
RATE_DEFAULT = 100  # per second
RATE_MIN = 0.2  # a paced timer waits on the wheel, inside the shortest horizon and its lead
RATE_MAX = 1_000.0
MARK = b'"misfire":'  # `_expire.pyx` looks for it too


class Policy(NamedTuple):
    """A stored policy. grace_ns: -1 for none of its own. max_lateness_ns: 0 for none. rate: fires
    per second of a catch-up, 0 for the default."""

    name: str = "fire_once"
    grace_ns: int = -1
    max_lateness_ns: int = 0
    max_catchup: int = CATCHUP_DEFAULT
    rate: float = 0.0

    @property
    def fires_all(self) -> bool:
        """Whether no occurrence is passed over."""
        return self.name == "fire_all"


DEFAULT = Policy()


class Verdict(NamedTuple):
    """skip_to: the number of the first occurrence that is not too old, 0 if none is; reason: why
    those before are. missed: whether the occurrence is late beyond its grace."""

    skip_to: int
    reason: str
    missed: bool


# ------------------------------------------------------------------------------- asked and stored


def packed(asked: wire.Misfire | None, rule: Rule) -> dict[str, object] | None:
    """The members to store of a policy that goes with `rule`; None for the default. Raises
    Refused."""
    if asked is None or asked == wire.Misfire():
        return None
    made: dict[str, object] = {"policy": asked.policy}
    for member in ("grace", "max_lateness"):
        text = getattr(asked, member)
        if text is not None:
            made[member] = format_duration(_span(member, text))
    if asked.max_catchup is not None:
        made["max_catchup"] = asked.max_catchup
    if asked.catchup_rate is not None:
        made["catchup_rate"] = asked.catchup_rate
    _check_members(asked)
    _check_spans(asked)
    check_rule(_policy(made), rule)
    return made


def _span(member: str, text: str) -> int:
    try:
        span_ns = parse_duration(text)
    except ValueError as error:
        raise _wrong(member, f"{member}: {error}") from None
    if span_ns < GRACE_NS_MIN:
        raise _wrong(
            member,
            f"{member} is {text!r}; it must be {format_duration(GRACE_NS_MIN)} or more, as no node "
            "decides without any delay",
        )
    return span_ns


def _wrong(member: str, detail: str) -> Refused:
    return refusal("validation", f"misfire: {detail}", pointer=f"/misfire/{member}")


def _check_members(asked: wire.Misfire) -> None:
    if asked.policy != "fire_all":
        for member in ("max_catchup", "catchup_rate"):
            if getattr(asked, member) is not None:
                raise _wrong(
                    member,
                    f"{member} goes with policy fire_all, not with {asked.policy}; leave it out",
                )
    if asked.max_catchup is not None and not 1 <= asked.max_catchup <= CATCHUP_MAX:
        raise _wrong(
            "max_catchup", f"max_catchup is {asked.max_catchup}; it must be 1 to {CATCHUP_MAX}"
        )
    if asked.catchup_rate is not None and not RATE_MIN <= asked.catchup_rate <= RATE_MAX:
        raise _wrong(
            "catchup_rate",
            f"catchup_rate is {asked.catchup_rate:g}; it must be {RATE_MIN:g} to {RATE_MAX:g} per "
            "second",
        )


def _check_spans(asked: wire.Misfire) -> None:
    if asked.max_lateness is None:
        return
    if asked.policy == "skip":
        raise _wrong(
            "max_lateness",
            "max_lateness says nothing with policy skip, which makes no fire later than grace; "
            "write it as grace",
        )
    if asked.grace is not None and parse_duration(asked.max_lateness) < parse_duration(asked.grace):
        raise _wrong(
            "max_lateness",
            f"max_lateness is {asked.max_lateness!r}, below the grace of {asked.grace!r}; a fire "
            "within its grace is not missed",
        )


def check_rule(policy: Policy, rule: Rule) -> None:
    """Refuse a policy that makes no sense with this rule."""
    if not policy.fires_all:
        return
    if not rule.recurring or rule.mode != FIXED_RATE:
        what = "a timer that fires once" if not rule.recurring else "fixed_delay"
        raise _wrong(
            "policy",
            f"policy fire_all goes with every in fixed_rate; {what} misses one fire at the most: "
            "take fire_once",
        )
    if policy.rate and policy.rate * rule.interval_ns <= SECOND_NS:
        raise _wrong(
            "catchup_rate",
            f"catchup_rate is {policy.rate:g} per second and the schedule makes "
            f"{SECOND_NS / rule.interval_ns:g}; it would never catch up: raise it",
        )


def policy_of(blob: bytes) -> Policy:
    """The policy of a stored definition. 0.2 us, unless there is one."""
    if MARK not in blob:
        return DEFAULT
    rest = unpack_blob(blob).rest
    made = orjson.loads(rest).get("misfire") if rest else None
    return DEFAULT if made is None else _policy(made)


def _policy(made: dict[str, object]) -> Policy:
    asked = msgspec.convert(made, wire.Misfire)
    return Policy(
        asked.policy,
        -1 if asked.grace is None else parse_duration(asked.grace),
        0 if asked.max_lateness is None else parse_duration(asked.max_lateness),
        asked.max_catchup or CATCHUP_DEFAULT,
        asked.catchup_rate or 0.0,
    )


# ------------------------------------------------------------------------------- judged


def judge(
    policy: Policy,
    rule: Rule,
    due: Occurrence,
    *,
    now_ns: int,
    misfire_after_ns: int,
    serving_since_ns: int,
) -> Verdict:
    """What is to become of a timer whose occurrence `due` is decided now."""
    if policy.grace_ns >= 0:
        missed_before_ns = now_ns - policy.grace_ns
    else:
        missed_before_ns = max(now_ns - misfire_after_ns, serving_since_ns)
    missed = due.due_ns < missed_before_ns
    bounds = []  # (the first number that is not too old, why)
    if policy.name == "skip":
        bounds.append((first_at(rule, due, missed_before_ns), "policy"))
    if policy.max_lateness_ns:
        late_ns = now_ns - policy.max_lateness_ns
        bounds.append((first_at(rule, due, late_ns), "max_lateness"))
    if policy.fires_all:
        newest = first_at(rule, due, now_ns + 1) - 1
        bounds.append((newest - policy.max_catchup + 1, "max_catchup"))
    skip_to, reason = max(bounds, default=(0, ""))
    return Verdict(skip_to, reason, missed) if skip_to > due.number else Verdict(0, "", missed)


def first_at(rule: Rule, due: Occurrence, at_ns: int) -> int:
    """The number of the first occurrence from `due` on that is due at `at_ns` or later. Only a grid
    has several behind: any other timer is followed by what is counted from now."""
    if due.due_ns >= at_ns:
        return due.number
    if not rule.recurring or rule.mode != FIXED_RATE:
        return due.number + 1
    return rule.first - (rule.anchor_ns - at_ns) // rule.interval_ns


def last_before(rule: Rule, due: Occurrence, number: int, shift_ns: int) -> int:
    """The number of the last occurrence from `due` on that lies before `number` and exists."""
    last = number - 1
    if rule.max_occurrences:
        last = min(last, rule.max_occurrences)
    if rule.expires_ns:
        last = min(last, first_at(rule, due, rule.expires_ns - shift_ns) - 1)
    return max(last, due.number)


def details(policy: Policy, reason: str, due: Occurrence, last: int, lateness_ns: int) -> bytes:
    """What an event says beside its timer: why, how late, and for which occurrences it stands."""
    return orjson.dumps(
        {
            "policy": policy.name,
            "reason": reason,
            "lateness_us": max(lateness_ns, 0) // 1_000,
            "count": last - due.number + 1,
            "last_occurrence": last,
        }
    )


def pace_ns(policy: Policy, rule: Rule) -> int:
    """The time between two fires of a catch-up: by default short enough to catch up."""
    if policy.rate:
        return round(SECOND_NS / policy.rate)
    return min(SECOND_NS // RATE_DEFAULT, rule.interval_ns // 2)
