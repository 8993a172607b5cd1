"""A node over its sockets, driven by frames written from the contract alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Node, Raw, ns_of


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Node(tmp_path_factory.mktemp("node") / "data") as running:
        yield running


@pytest.fixture
def raw(node: Node) -> Iterator[Raw]:
    with Raw(node.doors) as client:
        yield client


def test_hello_tells_the_doors(node: Node, raw: Raw) -> None:
    hello = raw.ask("hello")
    assert hello["doors"] == node.doors
    assert hello["protocol"] == [1]
    assert raw.ask("hello", door="stream")["node_id"] == hello["node_id"]


def test_a_timer_from_socket_to_log_to_wheel_and_back(raw: Raw) -> None:
    feed = raw.subscribe()
    made = raw.after("300ms", "tea/é", payload={"say": "ready"}, labels={"team": "ops"})
    seen = {}
    until = time.monotonic() + 5
    while "timer.expired" not in seen and time.monotonic() < until:
        if feed.poll(100):
            topic, stamp, body = feed.recv_multipart()
            level = topic.split(b"/")
            if level[2] == b"e":
                assert level[4:] == [b"tea%2F%C3%A9", made["id"].encode()]
                seen[level[3].decode()] = (stamp, json.loads(body))
    stamp, event = seen["timer.expired"]
    seq, fired, ordinal, of_type = (
        int.from_bytes(stamp[at : at + 8], "big") for at in range(0, 32, 8)
    )
    assert (event["specversion"], event["type"]) == ("1.0", "io.minoots.timer.expired.v1")
    assert event["subject"] == made["id"]
    assert event["dedupekey"] == f"default/{made['id']}/1"
    assert int(event["sequence"]) == seq
    assert event["data"]["payload"] == {"say": "ready"}
    assert event["data"]["due"] == made["due"]
    assert 0 <= fired - ns_of(made["due"]) < 1_000_000_000
    assert ordinal > of_type >= 1
    assert fired - ns_of(made["created_at"]) >= 300_000_000


def test_replay_shows_the_receipt(raw: Raw) -> None:
    made = raw.after("50ms")
    time.sleep(0.3)
    events = [e for e in raw.replay_all() if e.get("subject") == made["id"]]
    assert [e["type"].split(".")[3] for e in events] == ["scheduled", "expired"]
    data = events[1]["data"]
    assert ns_of(data["fired"]) >= ns_of(data["due"])
    assert data["lateness_us"] == (ns_of(data["fired"]) - ns_of(data["due"])) // 1000


def test_every_verb_answers(raw: Raw) -> None:
    made = raw.after("1h", "verbs")
    every = {"kind": "every", "interval": "1h"}
    assert raw.ask("timer.get", {"id": made["id"]})["state"] in ("scheduled", "armed")
    assert raw.ask("timer.pause", {"id": made["id"]})["state"] == "paused"
    assert raw.ask("timer.resume", {"id": made["id"]})["revision"] == 3
    assert raw.ask("timer.extend", {"id": made["id"], "by": "1m"})["revision"] == 4
    assert raw.ask("timer.reschedule", {"id": made["id"], "schedule": every})["revision"] == 5
    assert raw.ask("timer.trigger", {"id": made["id"]})["occurrence"] == 2
    assert len(raw.ask("timer.next", {"id": made["id"], "count": 3})["dues"]) == 3
    assert raw.ask("timer.get", {"name": "verbs"})["id"] == made["id"]
    listed = raw.ask("timer.list", {"filter": {"name_prefix": "verb"}}, door="stream")
    assert [t["id"] for t in listed["items"]] == [made["id"]]
    assert raw.ask("stream.snapshot", door="stream")["as_of"]["epoch"] == 1
    assert raw.ask("timer.cancel", {"id": made["id"]})["state"] == "cancelled"
    history = raw.ask("timer.history", {"id": made["id"]}, door="stream")["events"]
    assert [e["type"].split(".")[3] for e in history] == [
        *("scheduled", "paused", "resumed", "rescheduled", "rescheduled", "expired", "cancelled")
    ]
    timers = [{"schedule": every}] * 3
    results = raw.ask("timer.schedule_many", {"timers": timers})["results"]
    ids = [view["id"] for view in results]
    assert raw.ask("timer.cancel_many", {"ids": ids}) == {"count": 3}
    assert raw.ask("health")["status"] == "ok"
    assert raw.ask("time.sync", {"t0": 1})["t0"] == 1
    assert "Target" in raw.ask("schema.get", {"op": "timer.get"})["$defs"]
    assert raw.ask("stats")["timers"]["pending"] >= 0


def test_the_same_key_over_the_wire(raw: Raw) -> None:
    first = raw.after("1h", "once", idem="wire-1")
    again = raw.after("1h", "once", idem="wire-1")
    assert again == {**first, "replayed": True}
    raw.ask("timer.cancel", {"id": first["id"]})


def test_garbage_hurts_nobody(raw: Raw) -> None:
    for frames in (
        [b""],
        [b"GET / HTTP/1.1"],
        [b"MZP1"] * 8,
        [b"MZP1", b"Q", b"x", b"\xff\xfe", b"{}"],
        [b"MZP1", b"Q", b"x", b'{"op":"timer.schedule"}', b"\x00" * 100_000],
        [b"MZP1", b"Q", b"x", b'{"op":"timer.schedule"}', b"{}"] + [b"blob"] * 50,
    ):
        raw.control.send_multipart(frames)
        kind, _, problem = raw.take()
        assert kind == "E"
        assert problem["code"] in ("bad_frame", "bad_json", "validation")
    assert raw.ask("health")["status"] == "ok"


def test_live_ordinals_have_no_gap(raw: Raw) -> None:
    feed = raw.subscribe()
    timers = [
        {"name": f"n{k}", "schedule": {"kind": "after", "duration": f"{k % 50 + 1}ms"}}
        for k in range(500)
    ]
    raw.ask("timer.schedule_many", {"timers": timers})
    ordinals, by_type = [], {b"timer.scheduled": [], b"timer.expired": []}
    until = time.monotonic() + 10
    while len(by_type[b"timer.expired"]) < 500 and time.monotonic() < until:
        if feed.poll(100):
            topic, stamp, _ = feed.recv_multipart()
            if b"/e/" in topic:
                ordinals.append(int.from_bytes(stamp[16:24], "big"))
                by_type[topic.split(b"/")[3]].append(int.from_bytes(stamp[24:32], "big"))
    for numbers in (ordinals, *by_type.values()):
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert len(ordinals) == 1000


def test_the_heartbeat_says_what_has_left(raw: Raw) -> None:
    feed = raw.subscribe()
    beat = {}
    until = time.monotonic() + 5
    seq = raw.ask("stats")["log"]["seq"]
    while time.monotonic() < until and beat.get("floor", -1) < seq:
        topic, _, body = feed.recv_multipart()
        if topic.endswith(b"~/hb"):
            beat = json.loads(body)
    assert set(beat) >= {"epoch", "boot", "floor", "ordinals", "now", "clock_error_us"}
    assert beat["floor"] >= seq


def test_files_are_private(node: Node, tmp_path: Path) -> None:
    assert node.folder.stat().st_mode & 0o777 == 0o700
    assert (node.folder / "minoots.json").stat().st_mode & 0o777 == 0o600
    for path in node.folder.rglob("*.mdb"):
        assert path.stat().st_mode & 0o077 == 0, path
