"""When a timer is due next: pure, in integer nanoseconds on the timer's own scale.

A one-shot without limits needs no rule (b"" in its blob). A recurring timer's rule holds its
anchor: occurrence n of a fixed-rate timer is due at anchor + (n - first) * interval. No sum is
carried from one occurrence to the next, so the millionth is as exact as the first.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_RULE = struct.Struct("<BBxxIIqqq")

FIXED_RATE = 0
FIXED_DELAY = 1


class Rule(NamedTuple):
    """recurring: whether `first`, `interval_ns` and `anchor_ns` mean anything. mode: FIXED_RATE or
    FIXED_DELAY. max_occurrences, expires_ns: 0 for no limit; `expires_ns` is UTC. first: the number
    of the occurrence that is due at `anchor_ns`."""

    recurring: bool
    mode: int
    max_occurrences: int
    first: int
    interval_ns: int
    anchor_ns: int
    expires_ns: int


ONE_SHOT = Rule(False, FIXED_RATE, 0, 0, 0, 0, 0)


class Occurrence(NamedTuple):
    """One occurrence: its number, from 1, and its due on the timer's scale."""

    number: int
    due_ns: int


def pack_rule(rule: Rule) -> bytes:
    """The bytes for the blob; b"" for a one-shot without limits."""
    return b"" if rule == ONE_SHOT else _RULE.pack(*rule)


def unpack_rule(data: bytes) -> Rule:
    """The rule of a blob."""
    if not data:
        return ONE_SHOT
    recurring, *rest = _RULE.unpack(data)
    return Rule(bool(recurring), *rest)


def every(
    interval_ns: int,
    *,
    anchor_ns: int | None,
    mode: int,
    now_ns: int,
    number: int = 1,
    max_occurrences: int = 0,
    expires_ns: int = 0,
) -> tuple[Rule, Occurrence]:
    """A recurring rule and its first occurrence to come, which gets the number `number`.

    anchor_ns: a point of the grid; the first due is the anchor itself while it lies ahead,
    otherwise the first grid point after `now_ns`. None: the grid begins at now, so the first due is
    now + interval.
    """
    if anchor_ns is None:
        due_ns = now_ns + interval_ns
    elif anchor_ns > now_ns:
        due_ns = anchor_ns
    else:
        due_ns = anchor_ns + ((now_ns - anchor_ns) // interval_ns + 1) * interval_ns
    rule = Rule(True, mode, max_occurrences, number, interval_ns, due_ns, expires_ns)
    return rule, Occurrence(number, due_ns)


def following(rule: Rule, fired: Occurrence, *, now_ns: int, shift_ns: int) -> Occurrence | None:
    """The occurrence after `fired`; None if there is none.

    A fixed-rate timer that is behind skips to its first due after `now_ns`: missed occurrences
    fire once, as the one that is being fired. shift_ns: UTC minus the timer's scale, for expires.
    """
    if not rule.recurring:
        return None
    if rule.mode == FIXED_DELAY:
        number = fired.number + 1
        due_ns = max(fired.due_ns, now_ns) + rule.interval_ns
    else:
        behind = rule.first + (now_ns - rule.anchor_ns) // rule.interval_ns + 1
        number = max(fired.number + 1, behind)
        due_ns = rule.anchor_ns + (number - rule.first) * rule.interval_ns
    return allowed(rule, Occurrence(number, due_ns), shift_ns=shift_ns)


def numbered(
    rule: Rule, missed: Occurrence, number: int, *, now_ns: int, shift_ns: int
) -> Occurrence | None:
    """The occurrence `number`, where `missed` and those up to it are skipped; None if there is
    none."""
    if not rule.recurring:
        return None
    if rule.mode == FIXED_DELAY:
        return following(rule, missed, now_ns=now_ns, shift_ns=shift_ns)
    due_ns = rule.anchor_ns + (number - rule.first) * rule.interval_ns
    return allowed(rule, Occurrence(number, due_ns), shift_ns=shift_ns)


def allowed(rule: Rule, coming: Occurrence, *, shift_ns: int) -> Occurrence | None:
    """`coming`, or None if it lies beyond max_occurrences or expires_ns."""
    if rule.max_occurrences and coming.number > rule.max_occurrences:
        return None
    if rule.expires_ns and coming.due_ns + shift_ns >= rule.expires_ns:
        return None
    return coming


def shifted(rule: Rule, by_ns: int) -> Rule:
    """The same grid, `by_ns` later (negative: earlier)."""
    return rule._replace(anchor_ns=rule.anchor_ns + by_ns) if rule.recurring else rule


def regrid(rule: Rule, coming: Occurrence) -> Rule:
    """The rule with its grid moved so that `coming` lies on it."""
    if not rule.recurring:
        return rule
    return rule._replace(anchor_ns=coming.due_ns, first=coming.number)
