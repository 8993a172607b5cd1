"""Fires written in C against `fire.fire_due` in Python: the same log, byte by byte."""

from __future__ import annotations

import json
import zlib
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgenode import fire
from edgenode._expire import expire
from edgenode.virtual import START_NS, VirtualNode
from engine._hot import HotSet
from engine._wheel import Wheel
from engine.clock import Now
from engine.record import Image, Kind, pack_blob, pack_event, pack_row, unpack_event
from engine.schedule import ONE_SHOT, pack_rule
from engine.timer import Reason, State
from minoots.wire.times import format_instant

TICK_NS = 1 << 20
NOW = Now(START_NS, START_NS + 7, 7)
ID = bytes(range(16))

instants = st.integers(-1, 40).map(lambda s: format_instant(START_NS + s * 10**9))
schedules = st.one_of(
    st.sampled_from(["0s", "10ms", "1s", "7s"]).map(lambda t: {"kind": "after", "duration": t}),
    instants.map(lambda t: {"kind": "at", "instant": t}),
    st.fixed_dictionaries(
        {"kind": st.just("every"), "interval": st.sampled_from(["10ms", "700ms", "3s"])},
        optional={"anchor": instants, "mode": st.sampled_from(["fixed_rate", "fixed_delay"])},
    ),
)
definitions = st.fixed_dictionaries(
    {"schedule": schedules},
    optional={
        "name": st.just("tea"),
        "max_occurrences": st.integers(1, 4),
        "expires_at": instants,
        "misfire": st.fixed_dictionaries(
            {"policy": st.sampled_from(["fire_once", "fire_all", "skip", "escalate"])},
            optional={"grace": st.sampled_from(["10ms", "2s", "1h"])},
        ),
    },
)
steps = st.lists(
    st.one_of(
        definitions.map(lambda made: ("timer.schedule", made)),
        st.sampled_from(["timer.pause", "timer.resume", "timer.trigger"]).map(lambda op: (op, {})),
        schedules.map(lambda made: ("timer.reschedule", {"schedule": made})),
        st.integers(1, 9 * 10**9).map(lambda ns: ("advance", ns)),
        st.integers(1, 9).map(lambda s: ("sleep", s * 10**9)),
        st.sampled_from([5 * 10**9, -(10**9)]).map(lambda ns: ("step", ns)),
        st.sampled_from([("restart", 0), ("follow", 0)]),
    ),
    max_size=14,
)


def run(script: list[tuple[str, Any]]) -> tuple[list[bytes], list[list[bytes]]]:
    """The log that a script leaves, and what was published."""
    node = VirtualNode()
    told: list[list[bytes]] = []
    id = ""
    for step, given_ in script:
        if step == "advance":
            told += node.advance(given_)
        elif step == "sleep":  # the node does not run meanwhile: what is due is late
            node.clock.advance(given_)
        elif step == "step":
            node.step_utc(given_)
        elif step == "restart":
            node.restart()
        elif step == "follow":
            seq = node._loop.recovered.ledger.settled_seq
            node.tables.follow(seq, node._loop.settled_commit, now=True)
            node.advance(1)
        elif step == "timer.schedule" or id:
            body = json.dumps(given_ if step == "timer.schedule" else {"id": id} | given_)
            header = b'{"op":"%b"}' % step.encode()
            answer = node.request([b"MZP1", b"Q", b"c", header, body.encode()])[0]
            id = orjson.loads(answer[4]).get("id", id)
    told += node.advance(5 * 10**9)
    return node.log.events(1, 1 << 20, 1 << 30), told


@given(steps)
@settings(max_examples=250, deadline=None)
def test_the_log_is_that_of_the_oracle(script: list[tuple[str, Any]]) -> None:
    found = run(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fire, "_expire_plain", lambda *_: False)
        assert found == run(script)


@pytest.mark.parametrize("schedule", [{"kind": "after", "duration": "1s"}, {"kind": "at"}])
@pytest.mark.parametrize("followed", [False, True])
def test_the_plain_case_is_fired_in_c(
    schedule: dict[str, str], followed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if schedule["kind"] == "at":
        schedule = schedule | {"instant": format_instant(START_NS + 10**9)}

    def never(*_: object) -> None:
        raise AssertionError("a plain fire went through Python")

    monkeypatch.setattr(fire, "_expire", never)
    steps: list[tuple[str, Any]] = [("timer.schedule", {"schedule": schedule})]
    if followed:
        steps.append(("follow", 0))
    log, told = run([*steps, ("advance", 2 * 10**9)])
    assert log[-1][5] == Kind.EXPIRED
    assert orjson.loads(told[-1][2])["data"]["state"] == "completed"


def image(**members: int) -> Image:
    made = Image(ID, 5, START_NS, START_NS - 9, 0, 1, 1, 1, 0, State.SCHEDULED, 0, Reason.BY_CLIENT)
    return made._replace(**members)  # type: ignore[arg-type]


def fired(
    stored: bytes,
    stored_seq: int,
    id: bytes = ID,
    *,
    held: bool = False,
    before_ns: tuple[int, int] = (0, 0),
) -> list[bytes]:
    events: list[bytes] = []
    hot = HotSet(Wheel(capacity=1024, now_tick=0))
    tick, end_ns = -(-START_NS // TICK_NS), START_NS + 10**10
    done = expire(
        *(hot, id, stored, stored_seq, events, 9, NOW, tick, TICK_NS, 10**9, 0, end_ns, held),
        before_ns,
    )
    assert (done is not None, len(hot)) == (len(events) == 1, len(events))
    return events


BLOB = pack_blob(b"", b"tea", b"{}", b'{"kind":"after"}', b"null", b"")


def test_a_row_and_a_record_give_the_same_but_for_nothing() -> None:
    record = pack_event(5, Kind.RESUMED, 0, 1, 2, 3, 1, image(), BLOB)
    made = fired(record, 5)
    assert made == fired(pack_row(image(), BLOB), 0)
    after = unpack_event(9, made[0])
    assert after.image == image(seq=9, revision=2, state=State.COMPLETED, reason=Reason.NONE)
    assert (after.prev_seq, after.due_ns, after.at_ns) == (5, START_NS + 7, NOW.utc_ns)
    assert after.blob == BLOB


def test_a_budget_of_lateness_and_a_clock_in_doubt_are_for_python() -> None:
    rest = b'{"expires_at":"2030-01-01T00:00:00Z","lateness_budget":"5ms"}'
    strict = pack_blob(b"", b"tea", b"{}", b'{"kind":"after"}', b"null", rest)
    assert fired(pack_row(image(), strict), 0) == []
    wall = image(scale=1, due_ns=START_NS - 10**9)
    assert len(fired(pack_row(wall, BLOB), 0)) == 1
    assert fired(pack_row(wall, BLOB), 0, held=True) == []
    assert len(fired(pack_row(image(), BLOB), 0, held=True)) == 1


def test_a_misfire_policy_is_for_python_where_it_is_late() -> None:
    rest = b'{"expires_at":"2030-01-01T00:00:00Z","misfire":{"policy":"skip"}}'
    policed = pack_blob(b"", b"tea", b"{}", b'{"kind":"after"}', b"null", rest)
    assert len(fired(pack_row(image(), policed), 0)) == 1
    assert len(fired(pack_row(image(due_ns=START_NS - 1), BLOB), 0)) == 1
    assert fired(pack_row(image(due_ns=START_NS - 1), policed), 0) == []


def test_what_is_held_is_left_alone() -> None:
    for scale in (0, 1):
        row = pack_row(image(scale=scale), BLOB)
        other = (0, START_NS + 1) if scale == 0 else (START_NS + 1, 0)
        assert len(fired(row, 0, before_ns=other)) == 1
        assert len(fired(row, 0, before_ns=(START_NS, START_NS))) == 1
        assert fired(row, 0, before_ns=(START_NS + 1, START_NS + 1)) == []


def test_what_is_damaged_is_left_alone() -> None:
    for stored, seq in (
        (pack_event(5, 1, 0, 1, 0, 3, 1, image(), BLOB), 5),
        (pack_row(image(), BLOB), 0),
    ):
        for at in range(len(stored)):
            damaged = bytearray(stored)
            damaged[at] ^= 1 << at % 8
            assert fired(bytes(damaged), seq) == [], at
            assert fired(stored[:at], seq) == [], at
        assert fired(stored, 6 if seq else 5) == []
        assert fired(stored, seq, b"x" * 16) == []


@pytest.mark.parametrize(
    "members",
    [
        {"state": State.PAUSED},
        {"state": State.COMPLETED},
        {"revision": 2**32 - 1},
        {"due_ns": START_NS + TICK_NS},
        {"due_ns": 0},
    ],
)
def test_what_is_not_plainly_due_is_left_alone(members: dict[str, int]) -> None:
    assert fired(pack_row(image(**members), BLOB), 0) == []


@pytest.mark.parametrize(
    ("blob", "seq"),
    [
        (pack_blob(b"rule", b"", b"{}", b"{}", b"null", b""), 0),
        (pack_blob(pack_rule(ONE_SHOT._replace(recurring=True)), b"", b"", b"", b"", b""), 0),
        (BLOB + b"x", 0),
        (b"", 5),
    ],
)
def test_what_has_no_rule_that_adds_up_is_left_alone(blob: bytes, seq: int) -> None:
    stored = pack_event(5, 1, 0, 1, 0, 3, 1, image(), blob) if seq else pack_row(image(), blob)
    assert fired(stored, seq) == []


def test_a_record_of_a_later_version_is_left_alone() -> None:
    stored = bytearray(pack_event(5, 1, 0, 1, 0, 3, 1, image(), BLOB))
    stored[4] = 9
    stored[:4] = zlib.crc32(stored[4:], 5).to_bytes(4, "little")
    assert fired(bytes(stored), 5) == []
