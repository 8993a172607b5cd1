"""What people write, made into what the contract says."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minoots import arguments
from minoots.connect import Doors, default_data_dir, doors_of, locator
from minoots.event import Stamp, read_event
from minoots.watch import interest_of, start_of
from minoots.wire import bodies
from minoots.wire.bodies import Cursor, ReplayFrom, TimerFilter
from minoots.wire.definition import After, At, Every
from minoots.wire.problems import ProtocolError, Unreachable
from minoots.wire.times import parse_duration, parse_instant


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        ("15m", "15m"),
        ("PT15M", "PT15M"),
        (90, "1m30s"),
        (0, "0s"),
        (0.25, "250ms"),
        (1e-9, "1ns"),
        (timedelta(days=1, microseconds=5), "1d5us"),
    ],
)
def test_durations(given_: Any, text: str) -> None:
    assert arguments.duration_text(given_) == text


@pytest.mark.parametrize(
    ("given_", "error"),
    [
        ("soon", "write ISO 8601"),
        (-1, "must not be negative"),
        (float("nan"), "finite"),
        (float("inf"), "finite"),
        (timedelta(days=-1), "negative"),
        (True, "is a bool"),
        (None, "is a NoneType"),
        (10**12, "hundred years"),
    ],
)
def test_durations_that_make_no_sense(given_: Any, error: str) -> None:
    with pytest.raises((ValueError, TypeError), match=error):
        arguments.duration_text(given_)


@given(st.timedeltas(timedelta(0), timedelta(days=36_000)))
def test_timedeltas_are_exact(length: timedelta) -> None:
    text = arguments.duration_text(length)
    assert parse_duration(text) == length // timedelta(microseconds=1) * 1_000


def test_instants() -> None:
    east = timezone(timedelta(hours=2))
    moment = datetime(2026, 11, 22, 11, 0, 0, 5, tzinfo=east)
    assert arguments.instant_text(moment) == "2026-11-22T09:00:00.000005000Z"
    assert arguments.instant_text("2026-11-22T09:00:00+01:00") == "2026-11-22T09:00:00+01:00"
    with pytest.raises(ValueError, match="naive datetime 2026-11-22T09:00:00; give it a zone"):
        arguments.instant_text(datetime(2026, 11, 22, 9))
    with pytest.raises(ValueError, match="an offset is required"):
        arguments.instant_text("2026-11-22 09:00:00")
    with pytest.raises(TypeError, match="is a int"):
        arguments.instant_text(5)  # type: ignore[arg-type]


def test_one_schedule_must_be_given() -> None:
    assert arguments.schedule_of(after=5) == After("5s")
    assert arguments.schedule_of(at="2026-11-22T09:00:00Z") == At("2026-11-22T09:00:00Z")
    assert arguments.schedule_of(every="5m", mode="fixed_delay") == Every("5m", None, "fixed_delay")
    assert arguments.schedule_of(schedule={"kind": "after", "duration": "1s"}) == After("1s")
    with pytest.raises(ValueError, match="given by nothing"):
        arguments.schedule_of()
    with pytest.raises(ValueError, match="given by after and every"):
        arguments.schedule_of(after=1, every=1)
    with pytest.raises(ValueError, match="mode and anchor go with every, not with at"):
        arguments.schedule_of(at="2026-11-22T09:00:00Z", mode="fixed_rate")
    with pytest.raises(ValueError, match="not of the contract"):
        arguments.schedule_of(schedule={"kind": "whenever"})


def test_definitions() -> None:
    made = arguments.definition(
        "tea",
        every=60,
        anchor=datetime(2026, 1, 1, tzinfo=UTC),
        payload={"a": [1, None]},
        labels={"k": "v"},
        max_occurrences=3,
        misfire={"policy": "skip"},
    )
    assert msgspec.to_builtins(made.schedule)["anchor"] == "2026-01-01T00:00:00.000000000Z"
    assert bytes(made.payload) == b'{"a":[1,null]}'
    assert made.misfire is not None
    assert made.misfire.policy == "skip"
    assert arguments.definition_of({"name": "x", "after": 1}).name == "x"
    assert arguments.definition_of(made) is made
    with pytest.raises(ValueError, match="not of the contract"):
        arguments.definition("x", after=1, labels={"a": 1})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="unknown field `colour`"):
        arguments.definition("x", after=1, colour="red")
    with pytest.raises(TypeError, match="is a int"):
        arguments.definition_of(5)  # type: ignore[arg-type]


def test_targets() -> None:
    assert arguments.target("tmr_x").id == "tmr_x"
    assert arguments.target("tea").name == "tea"
    with pytest.raises(ValueError, match="empty"):
        arguments.target("")
    with pytest.raises(TypeError, match="is a int"):
        arguments.target(5)  # type: ignore[arg-type]


def test_filters_and_what_would_cancel_everything() -> None:
    wanted = arguments.timer_filter({"due_to": datetime(2026, 1, 1, tzinfo=UTC)}, name_prefix="a")
    assert wanted == TimerFilter(name_prefix="a", due_to="2026-01-01T00:00:00.000000000Z")
    with pytest.raises(ValueError, match="not of the contract"):
        arguments.timer_filter({"colour": "red"})
    with pytest.raises(ValueError, match="filter is empty"):
        arguments.many("cancel", {}, None)
    with pytest.raises(ValueError, match="either a filter or ids"):
        arguments.many("cancel", None, None)
    op = "timer.cancel_many"
    every = bodies.ChangeMany(filter=TimerFilter())
    assert arguments.many("cancel", {"name_prefix": ""}, None) == (op, every)
    assert arguments.many("cancel", None, ["tmr_1"]) == (op, bodies.ChangeMany(ids=["tmr_1"]))


def test_chunks() -> None:
    chunks = list(arguments.chunks_of(({"after": 1} for _ in range(5)), 2))
    assert [len(chunk) for chunk in chunks] == [2, 2, 1]
    with pytest.raises(ValueError, match="1 to 1000"):
        list(arguments.chunks_of([], 1_001))
    with pytest.raises(ValueError, match="one transaction takes 1000"):
        arguments.check_atomic(1_001)
    assert [arguments.chunk_key("k", at) for at in range(2)] == ["k", "k#1"]
    assert arguments.chunk_key(None, 3) is None


def test_where_a_watch_begins() -> None:
    assert start_of("now") is None
    assert start_of("start") == ReplayFrom()
    assert start_of((2, 7)) == start_of(Cursor(epoch=2, seq=7)) == ReplayFrom(epoch=2, seq=7)
    moment = start_of(datetime(2026, 1, 1, tzinfo=UTC))
    assert moment == ReplayFrom(time="2026-01-01T00:00:00.000000000Z")
    with pytest.raises(ValueError, match="RFC 3339"):
        start_of("yesterday")
    wanted = interest_of(
        tenant="default",
        filter={"types": ["io.minoots.timer.late.v1"], "labels": {"a": "b"}},
        types=["expired", "timer.expired"],
        name=None,
        labels={"c": "d"},
    )
    assert wanted.types == ("timer.expired", "timer.late")
    assert wanted.labels == {"a": "b", "c": "d"}


# ------------------------------------------------------------------------------ finding a node


def test_a_node_is_found_by_its_file(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=re.escape(f"minoots run --data {tmp_path}")):
        locator(None, tmp_path)()
    file = tmp_path / "minoots.json"
    file.write_text("{")
    with pytest.raises(Unreachable, match="not a node's file"):
        locator(None, tmp_path)()
    file.write_text('{"doors":{}}')
    with pytest.raises(Unreachable, match="names no control door"):
        locator(None, tmp_path)()
    file.write_text('{"pid":4194304999,"doors":{"control":"tcp://127.0.0.1:1"}}')
    with pytest.raises(Unreachable, match="no longer runs"):
        locator(None, tmp_path)()
    file.write_text('{"pid":0,"doors":{"control":"ipc:///x","stream":"ipc:///y"}}')
    assert locator(None, tmp_path)() == Doors("ipc:///x", "ipc:///y")
    assert locator("tcp://a:1", tmp_path)() == Doors("tcp://a:1")
    with pytest.raises(ValueError, match="write an endpoint"):
        locator("localhost", None)


def test_the_directory_is_told_or_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINOOTS_DATA", "/somewhere")
    assert default_data_dir() == Path("/somewhere")
    monkeypatch.delenv("MINOOTS_DATA")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_data_dir() == Path("/var/lib/minoots")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_data_dir() == Path("/state/minoots")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_data_dir() == Path("/home/me/.local/state/minoots")


def test_doors_told_by_a_node_elsewhere_are_seen_from_here() -> None:
    told = {"control": "tcp://0.0.0.0:1", "stream": "tcp://127.0.0.1:2", "events": "tcp://b:3"}
    far = doors_of(told, "tcp://far:1")
    assert far == Doors("tcp://far:1", "tcp://far:2", "tcp://b:3")
    near = doors_of({"stream": "tcp://*:2", "events": "ipc:///e"}, "tcp://127.0.0.1:1")
    assert near == Doors("tcp://127.0.0.1:1", "tcp://127.0.0.1:2", "ipc:///e")


# -------------------------------------------------------------------------------------- events


def test_a_live_event_takes_its_lateness_from_the_stamp() -> None:
    raw = (
        b'{"id":"1-9","type":"io.minoots.timer.expired.v1","time":"2026-01-01T00:00:00Z",'
        b'"sequence":"00000000000000000009","epoch":1,"dedupekey":"default/tmr_1/2",'
        b'"data":{"timer_id":"tmr_1","occurrence":2,"due":"2026-01-01T00:00:00.000000500Z"}}'
    )
    due_ns = parse_instant("2026-01-01T00:00:00.000000500Z")
    event = read_event(raw, Stamp(9, due_ns + 85_999, 1, 1))
    assert (event.type, event.seq, event.lateness_us) == ("timer.expired", 9, 85)
    assert event.due == datetime(2026, 1, 1, tzinfo=UTC)
    assert event.due_ns == due_ns
    assert event.fired is not None
    assert event.cloud_event()["data"]["lateness_us"] == 85
    assert read_event(raw).fired is None
    assert read_event(raw, Stamp(9, due_ns - 5, 1, 1)).lateness_us == 0
    assert Stamp.read(Stamp(9, 8, 7, 6).pack()) == Stamp(9, 8, 7, 6)


def test_events_about_the_node_keep_their_own_data() -> None:
    raw = (
        b'{"id":"1-1","type":"io.minoots.node.started.v1","time":"2026-01-01T00:00:00Z",'
        b'"sequence":"1","epoch":1,"data":{"state":{"boot":7}}}'
    )
    event = read_event(raw)
    assert (event.type, event.timer_id, event.state) == ("node.started", "", "")
    assert event.data == {"state": {"boot": 7}}
    with pytest.raises(ProtocolError):
        read_event(b"{}")
    with pytest.raises(ProtocolError):
        Stamp.read(b"short")


def test_many_says_what_goes_with_which_verb() -> None:
    op, body = arguments.many("shift", {"name_prefix": "a"}, None, by=timedelta(minutes=-10))
    assert (op, body) == (
        "timer.shift_many",
        bodies.ShiftMany(by="-10m", filter=bodies.TimerFilter(name_prefix="a")),
    )
    assert arguments.many("shift", None, ["x"], by=90)[1].by == "1m30s"  # type: ignore[union-attr]
    assert arguments.many("pause", None, ["x"], dry_run=True) == (
        "timer.pause_many",
        bodies.ChangeMany(ids=["x"], dry_run=True),
    )
    for verb, which, ids, more, fault in [
        ("stop", None, [], {}, "verb is 'stop'"),
        ("pause", None, None, {}, "either a filter or ids"),
        ("pause", {}, None, {}, "filter is empty"),
        ("pause", None, [], {"by": 1}, "shift takes by"),
        ("shift", None, [], {}, "shift takes by"),
        ("shift", None, [], {"by": "--1h"}, "duration is '-1h'"),
        ("relabel", None, [], {}, "relabel takes set or remove"),
    ]:
        with pytest.raises(ValueError, match=fault):
            arguments.many(verb, which, ids, **more)
