"""What becomes of a definition whose key is held by a timer that has not ended.

Decided first, written then, so that an atomic request can refuse before anything is written; what
is decided holds until the request is done, as nothing else is decided meanwhile.
"""

from __future__ import annotations

from typing import NamedTuple

from edgenode.definitions import Plan, plan
from edgenode.ledger import Ledger, Timer
from edgenode.verbs.change import Moved, due_utc, placed, reschedule_as, shifted
from engine.record import Scale
from minoots.wire.definition import Definition
from minoots.wire.problems import refusal
from minoots.wire.times import format_id


class Verdict(NamedTuple):
    """What is to be done with the holder of the key: `kept`, `replaced` or `extended`. to: what it
    is moved to; None: nothing changes."""

    word: str
    timer: Timer
    to: Moved | None


def judge(ledger: Ledger, made: Plan) -> Verdict | None:
    """What `on_conflict` says; None: nobody has the key. Raises Refused."""
    asked = made.keyed
    assert asked is not None
    assert asked.key is not None
    holder = ledger.holder(asked.key)
    if holder is None:
        ledger.admit_note()
        return None
    how = asked.on_conflict or "reject"
    if how == "reject":
        raise refusal(
            "already_exists",
            f"key {asked.key!r} is held by timer {format_id(holder.image.id)}; take another key, "
            "cancel that timer, or say what to do (on_conflict)",
            pointer="/key",
        )
    shift_ns = ledger.now.shift_ns if made.scale == Scale.STEADY else 0
    later_ns = made.first.due_ns + shift_ns - due_utc(ledger, holder)
    if how == "extend" and later_ns > 0:
        return Verdict("extended", holder, shifted(ledger, holder, later_ns, "/schedule"))
    if (
        how == "replace"
        or (how == "earliest" and later_ns < 0)
        or (how == "latest" and later_ns > 0)
    ):
        return Verdict("replaced", holder, _replaced(ledger, made, asked, holder))
    return Verdict("kept", holder, None)


def _replaced(ledger: Ledger, made: Plan, asked: Definition, holder: Timer) -> Moved:
    """The new definition; the occurrences go on, so that no dedupe key comes twice."""
    again = plan(
        asked,
        ledger.now,
        ledger.config.limits,
        number=holder.image.occurrence,
        choose=lambda *_: made.spread_ns,
    )
    to = placed(ledger, holder, again.blob, again.scale, again.first)
    to.after["name_hash"] = again.name_hash
    return to


def carry_out(ledger: Ledger, verdict: Verdict) -> bytes:
    """Write it; the view of the holder after it, with `conflict`."""
    timer = verdict.timer
    if verdict.to is not None:
        timer = reschedule_as(ledger, timer, verdict.to)
    return b'%b,"conflict":"%b"}' % (ledger.view(timer)[:-1], verdict.word.encode())
