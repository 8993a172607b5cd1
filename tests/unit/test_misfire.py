"""Misfire policies judged by arithmetic, against a walk over every occurrence."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgenode import misfire
from edgenode.misfire import DEFAULT, Policy
from engine.record import pack_blob
from engine.schedule import FIXED_DELAY, FIXED_RATE, ONE_SHOT, Occurrence, Rule
from minoots.wire import definition as wire
from minoots.wire.problems import Refused

GRID = Rule(True, FIXED_RATE, 0, 1, 1_000_000_000, 0, 0)

policies = st.builds(
    Policy,
    st.sampled_from(["fire_once", "fire_all", "skip", "escalate"]),
    st.one_of(st.just(-1), st.integers(0, 60)),
    st.one_of(st.just(0), st.integers(1, 90)),
    st.integers(1, 8),
)
rules = st.builds(
    Rule,
    st.just(True),
    st.just(FIXED_RATE),
    st.one_of(st.just(0), st.integers(1, 40)),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(-20, 20),
    st.one_of(st.just(0), st.integers(1, 200)),
)


def dues(rule: Rule, due: Occurrence, until_ns: int) -> list[Occurrence]:
    """The occurrences from `due` on that are due by `until_ns`, one by one."""
    found, number, at_ns = [], due.number, due.due_ns
    while at_ns <= until_ns:
        found.append(Occurrence(number, at_ns))
        number, at_ns = number + 1, at_ns + rule.interval_ns
    return found


@given(policies, rules, st.integers(0, 20), st.integers(-30, 150), st.integers(-30, 150))
@settings(max_examples=500)
def test_a_verdict_is_that_of_a_walk(
    policy: Policy, rule: Rule, steps: int, now_ns: int, since_ns: int
) -> None:
    due = Occurrence(rule.first + steps, rule.anchor_ns + steps * rule.interval_ns)
    since_ns = min(since_ns, now_ns)
    found = misfire.judge(
        policy, rule, due, now_ns=now_ns, misfire_after_ns=7, serving_since_ns=since_ns
    )

    def missed(one: Occurrence) -> bool:
        if policy.grace_ns >= 0:
            return now_ns - one.due_ns > policy.grace_ns
        return now_ns - one.due_ns > 7 or one.due_ns < since_ns

    late = dues(rule, due, now_ns)
    gone = [
        one.number
        for at, one in enumerate(late)
        if (policy.name == "skip" and missed(one))
        or (policy.max_lateness_ns and now_ns - one.due_ns > policy.max_lateness_ns)
        or (policy.name == "fire_all" and at < len(late) - policy.max_catchup)
    ]
    assert found.skip_to == (max(gone) + 1 if gone else 0)
    assert bool(found.reason) == bool(gone)
    assert found.missed == missed(due)


@given(rules, st.integers(0, 20), st.integers(1, 30), st.integers(-50, 50))
def test_the_last_that_is_skipped_exists(rule: Rule, steps: int, count: int, shift_ns: int) -> None:
    due = Occurrence(rule.first + steps, rule.anchor_ns + steps * rule.interval_ns)
    end_ns = due.due_ns + (count - 1) * rule.interval_ns
    there = [
        one.number
        for one in dues(rule, due, end_ns)
        if (not rule.max_occurrences or one.number <= rule.max_occurrences)
        and (not rule.expires_ns or one.due_ns + shift_ns < rule.expires_ns)
    ]
    last = misfire.last_before(rule, due, due.number + count, shift_ns)
    assert last == max(there, default=due.number)


@pytest.mark.parametrize("rule", [ONE_SHOT, GRID._replace(mode=FIXED_DELAY)])
def test_without_a_grid_one_occurrence_is_late_at_the_most(rule: Rule) -> None:
    due = Occurrence(3, 100)
    for policy, skip_to in ((Policy("skip"), 4), (Policy("fire_once", -1, 50), 4), (DEFAULT, 0)):
        found = misfire.judge(
            policy, rule, due, now_ns=10_000, misfire_after_ns=7, serving_since_ns=0
        )
        assert (found.skip_to, found.missed) == (skip_to, True)


def test_a_policy_is_read_as_it_was_stored() -> None:
    asked = wire.Misfire("fire_all", "5s", "1h30m", 9, 2.5)
    rest = orjson.dumps({"misfire": misfire.packed(asked, GRID)})
    blob = pack_blob(b"", b"", b"{}", b"{}", b"null", rest)
    assert misfire.policy_of(blob) == Policy("fire_all", 5 * 10**9, 5_400 * 10**9, 9, 2.5)
    for asked_ in (None, wire.Misfire()):
        assert misfire.packed(asked_, GRID) is None


def test_what_only_looks_like_a_policy_is_none() -> None:
    payload = b'{"misfire":{"policy":"skip"}}'
    for rest in (b"", b'{"max_occurrences":3}'):
        assert misfire.policy_of(pack_blob(b"", b"", b"{}", b"{}", payload, rest)) == DEFAULT


def test_the_default_rate_catches_up() -> None:
    for interval_ns in (10_000_000, 15_000_000, 10**9):
        pace_ns = misfire.pace_ns(Policy("fire_all"), GRID._replace(interval_ns=interval_ns))
        assert pace_ns < interval_ns
    assert misfire.pace_ns(Policy("fire_all", rate=2.5), GRID) == 400_000_000


def test_a_rate_below_what_waits_on_the_wheel_is_refused() -> None:
    with pytest.raises(Refused, match=r"catchup_rate is 0.1; it must be 0.2 to 1000 per second"):
        misfire.packed(wire.Misfire("fire_all", catchup_rate=0.1), GRID)
