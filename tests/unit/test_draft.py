"""Definitions read in C against msgspec, `definitions.plan` and `pack_event`, byte by byte."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgenode._draft import ManyDrafts, draft, write
from edgenode._encode import Encoder
from edgenode._plain import is_plain_json
from edgenode._times import duration_of, instant_of
from edgenode.config import LimitsSection
from edgenode.verbs import create
from edgenode.virtual import VirtualNode
from engine._hot import HotSet
from engine._wheel import Wheel
from engine.clock import Now
from minoots.wire.times import format_instant, parse_duration, parse_instant
from tests.unit import slow_draft

UTC_NS = 1_800_000_000_000_000_000
NOW = Now(UTC_NS - 5, UTC_NS, 5)
LIMITS = LimitsSection()
FIRST_ID = bytes(range(13)) + b"\x10\x00\xfe"

durations = st.one_of(
    st.sampled_from(["0s", "15m", "1h30m", "2w", "1.5s", "PT15M", "P1W", "P1DT0.25S", "36525d"]),
    st.from_regex(r"\A([0-9]{1,4}(\.[0-9]{1,9})?(ns|us|ms|s|m|h|d|w)){1,3}\Z"),
    st.from_regex(r"\AP([0-9]W)?([0-9]D)?(T([0-9]H)?([0-9]M)?([0-9][.,][0-9]{1,9}S)?)?\Z"),
)
instants = st.one_of(
    st.integers(UTC_NS - 2 * 10**9, UTC_NS + 10**18).map(format_instant),
    st.from_regex(
        r"\A20[0-9]{2}-[01][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-5][0-9]:[0-6][0-9]"
        r"(\.[0-9]{1,9})?([Zz]|[+-][012][0-9]:[0-6][0-9])\Z"
    ),
)
texts = st.text(max_size=12)
payloads: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
schedules: st.SearchStrategy[dict[str, Any]] = st.one_of(
    durations.map(lambda text: {"kind": "after", "duration": text}),
    instants.map(lambda text: {"instant": text, "kind": "at"}),
    st.just({"kind": "every", "interval": "5s"}),
    st.dictionaries(st.sampled_from(["kind", "duration", "x"]), texts | st.just("after")),
)
labels = st.dictionaries(texts | st.sampled_from(["a", "aa", "b"]), texts, max_size=4)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Definitions, most of them plain, as JSON in one of its spellings."""
    members: dict[str, Any] = {"schedule": draw(schedules)}
    for name, values in (("name", texts), ("labels", labels), ("payload", payloads)):
        if draw(st.booleans()):
            members[name] = draw(values)
    if draw(st.integers(0, 9)) == 0:
        members[draw(st.sampled_from(["max_occurrences", "misfire", "naem"]))] = 3
    order = draw(st.permutations(sorted(members)))
    text = json.dumps(
        {name: members[name] for name in order},
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 1])),
    )
    return text.encode("utf-8", "replace")


def finished(made: bytes, seq: int = 7) -> bytes:
    """A draft, written at NOW as the timer FIRST_ID."""
    events: list[bytes] = []
    hot, encoder = HotSet(Wheel(capacity=1024, now_tick=0)), Encoder("n", "default", 1)
    ids = [FIRST_ID]
    write([made], 0, 1, lambda n: ids[n - 1], events, seq, NOW, 0, 1 << 20, hot, encoder, [])
    return events[0]


def is_taken_alike(body: bytes) -> bool:
    """Whether C takes it; what it takes must give the oracle's record."""
    made = draft(body, NOW, LIMITS)
    if made is None:
        return False
    assert finished(made) == slow_draft.record(body, NOW, LIMITS, FIRST_ID, 7)
    return True


@given(bodies())
@settings(max_examples=600)
def test_a_draft_is_the_record_of_the_oracle(body: bytes) -> None:
    is_taken_alike(body)


@given(bodies(), st.randoms(use_true_random=False))
@settings(max_examples=600)
def test_what_is_damaged_is_not_taken_otherwise(body: bytes, chance: random.Random) -> None:
    damaged = bytearray(body)
    for _ in range(chance.randrange(1, 3)):
        at = chance.randrange(len(damaged))
        byte = chance.choice(b'"\\{}[],:0123456789.eE+-tfn \n\x00\x1f\x7fPTZmsuaw')
        if chance.randrange(2):
            damaged[at] = byte
        elif chance.randrange(2):
            damaged.insert(at, byte)
        else:
            del damaged[at]
    try:
        damaged.decode()
    except UnicodeDecodeError:
        return  # `call.read` lets nothing such through
    is_taken_alike(bytes(damaged))


@pytest.mark.parametrize(
    "body",
    [
        b'{"schedule":{"kind":"after","duration":"15m"}}',
        b' {"name" : "tea", "labels": {}, "schedule":{"duration":"PT15M","kind":"after"} }\n',
        b'{"labels":{"b":"2","a":"1","aa":""},"schedule":{"kind":"at",'
        b'"instant":"2027-01-15T09:00:00+01:00"},"payload":{"a":[1,-2.5e10,true,null,"\\n"]}}',
        b'{"payload":{"\\u00e9":"\\u0000\\uFFfd"},"schedule":{"kind":"after","duration":"1s"}}',
        '{"name":"Öl prüfen \u2028","schedule":{"kind":"after","duration":"1s"}}'.encode(),
        b'{"schedule":{"kind":"after","duration":"36525d"},"payload":'
        + b"[" * 60
        + b"]" * 60
        + b"}",
    ],
)
def test_the_plain_case_is_taken(body: bytes) -> None:
    refused_too = "\u2028" in body.decode()
    assert is_taken_alike(body) is not refused_too


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"name":"x"}',
        b'{"schedule":{"kind":"after","duration":"15m"}} x',
        b'{"schedule":{"kind":"after","duration":"15m"},}',
        b'{"schedule":{"kind":"after","duration":"15m","kind":"after"}}',
        b'{"schedule":{"kind":"after","duration":"36526d"}}',
        b'{"schedule":{"kind":"at","instant":"2027-01-15T07:59:58Z"}}',
        b'{"schedule":{"kind":"every","interval":"15m"}}',
        b'{"name":"a","name":"b","schedule":{"kind":"after","duration":"15m"}}',
        b'{"name":"a\\tb","schedule":{"kind":"after","duration":"15m"}}',
        b'{"name":"a\x7f","schedule":{"kind":"after","duration":"15m"}}',
        b'{"name":"' + b"a" * 256 + b'","schedule":{"kind":"after","duration":"15m"}}',
        b'{"labels":{"a":"1","a":"1"},"schedule":{"kind":"after","duration":"15m"}}',
        b'{"labels":{"":"1"},"schedule":{"kind":"after","duration":"15m"}}',
        b'{"labels":{"a":"' + b"v" * 256 + b'"},"schedule":{"kind":"after","duration":"15m"}}',
        b'{"payload":01,"schedule":{"kind":"after","duration":"15m"}}',
        b'{"payload":1e999,"schedule":{"kind":"after","duration":"15m"}}',
        b'{"payload":"\\ud800","schedule":{"kind":"after","duration":"15m"}}',
        b'{"payload":"\\ud83d\\ude00","schedule":{"kind":"after","duration":"15m"}}',
        b'{"payload":"\\u00g0","schedule":{"kind":"after","duration":"15m"}}',
        b'{"payload":"\\u00"}',
        b'{"payload":"' + b"p" * 65_536 + b'","schedule":{"kind":"after","duration":"15m"}}',
    ],
)
def test_the_rest_is_left_to_others(body: bytes) -> None:
    assert draft(body, NOW, LIMITS) is None


@given(durations | texts)
@example("999999999999999999w")
@example("PT")
@example("P1DT")
@example("P1D1W")
@settings(max_examples=500)
def test_durations_are_read_alike(text: str) -> None:
    try:
        expected = parse_duration(text)
    except ValueError:
        expected = -1
    assert duration_of(text.encode("utf-8", "replace")) == expected


@given(instants | texts)
@example("2200-01-01T00:00:00Z")
@example("2200-01-01T00:00:00.000000001Z")
@example("1970-01-01T00:00:00+00:01")
@example("2100-02-29T00:00:00Z")
@settings(max_examples=800)
def test_instants_are_read_alike_or_left_alone(text: str) -> None:
    got = instant_of(text.encode("utf-8", "replace"))
    try:
        expected = parse_instant(text)
    except ValueError:
        expected = -1
    # Leap seconds, and offsets of more than 59 minutes, are left to Python.
    assert got == expected or (got == -1 and ":6" in text)


@given(payloads.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=300)
def test_plain_json_is_json(text: bytes) -> None:
    for cut in (text, text[:-1], text + b"]"):
        if is_plain_json(cut):
            orjson.loads(cut)
            msgspec.json.decode(cut)


def replies(node: VirtualNode, body: bytes) -> tuple[list[list[bytes]], list[bytes]]:
    answers = node.request([b"MZP1", b"Q", b"c", b'{"op":"timer.schedule_many"}', body])
    return answers, node.log.events(1, 10_000, 1 << 30)


@given(
    st.lists(bodies(), max_size=5),
    st.sampled_from(
        [
            '{{"timers":[{0}]}}',
            ' {{ "atomic" : true, "timers" : [ {0} ] }} ',
            '{{"timers":[{0}],"atomic":false}}',
            '{{"timers":[{0}],"atomic":1}}',
            '{{"timers":[{0}]}} x',
            '{{"timers":[{0},]}}',
            '{{"atomic":true}}',
            '{{"atomic":false,"timers":[{0}],"atomic":true}}',
        ]
    ),
)
@settings(max_examples=150, deadline=None)
def test_many_are_answered_and_written_alike(definitions: list[bytes], form: str) -> None:
    body = form.format(b" , ".join(definitions).decode()).encode()
    fast, slow = VirtualNode(), VirtualNode()
    found = replies(fast, body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(create, "_plan_drafts", lambda *_: None)
        assert found == replies(slow, body)


def test_all_of_a_plain_request_is_drafted_and_none_beyond_the_limit() -> None:
    one = b'{"schedule":{"kind":"after","duration":"15m"}}'
    many = ManyDrafts(b'{"timers":[' + b",".join([one] * 1000) + b"]}", NOW, LIMITS)
    taken = [many.take(700) or [], many.take(700) or []]
    assert [len(part) for part in taken] == [700, 300]
    assert (many.ended, many.atomic) == (True, False)
    assert all(type(item) is bytes for part in taken for item in part)
    many = ManyDrafts(b'{"timers":[' + b",".join([one] * 1001) + b"]}", NOW, LIMITS)
    assert many.take(2000) is None


def test_drafts_in_a_row_count_their_ids_up() -> None:
    made = [draft(b'{"schedule":{"kind":"after","duration":"1s"}}', NOW, LIMITS) for _ in range(3)]
    hot, encoder = HotSet(Wheel(capacity=1024, now_tick=0)), Encoder("n", "default", 1)
    events: list[bytes] = []
    views: list[bytes] = []
    row: list[object] = [made[0], made[1], None, made[2]]
    horizon_ns = NOW.steady_ns + 10**10
    args = (events, 41, NOW, horizon_ns, 1 << 20, hot, encoder, views)
    assert write(row, 0, 4, lambda n: FIRST_ID, *args) == 2
    assert write(row, 2, 4, lambda n: FIRST_ID, *args) == 0
    assert [event[40:56] for event in events] == [FIRST_ID, FIRST_ID[:-1] + b"\xff"]
    assert (len(views), hot.newer_count, hot.armed_count) == (2, 2, 2)
    assert hot.get(events[1][40:56]) == (42, NOW.steady_ns + 10**9, 0, True)
