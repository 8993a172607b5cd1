"""Every verb's replies and refusals, on a whole node in virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sim.driver import SECOND, Driver

EXPIRED = "io.minoots.timer.expired.v1"
AFTER = {"kind": "after", "duration": "1h"}


@pytest.fixture
def node() -> Driver:
    return Driver()


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([b"HTTP", b"Q", b"c", b"{}", b"{}"], "bad_frame"),
        ([b"MZP2", b"Q", b"c", b"{}", b"{}"], "unsupported_version"),
        ([b"MZP1", b"R", b"c", b"{}", b"{}"], "bad_frame"),
        ([b"MZP1", b"Q", b"c", b"{}"], "bad_frame"),
        ([b"MZP1", b"Q", b"c" * 65, b"{}", b"{}"], "bad_frame"),
        ([b"MZP1", b"Q", b"c", b"{", b"{}"], "bad_json"),
        ([b"MZP1", b"Q", b"c", b"[]", b"{}"], "validation"),
        ([b"MZP1", b"Q", b"c", b'{"op":7}', b"{}"], "validation"),
        ([b"MZP1", b"Q", b"c", b'{"op":"no.such"}', b"{}"], "unknown_op"),
        ([b"MZP1", b"Q", b"c", b'{"op":"hello","idem":""}', b"{}"], "validation"),
        ([b"MZP1", b"Q", b"c", b'{"op":"hello","deadline":"x"}', b"{}"], "validation"),
        (
            [b"MZP1", b"Q", b"c", b'{"op":"hello","deadline":"2020-01-01T00:00:00Z"}', b"{}"],
            "deadline_exceeded",
        ),
        ([b"MZP1", b"Q", b"c", b'{"op":"hello","\xff":1}', b"{}"], "bad_json"),
        ([b"MZP1", b"Q", b"c", b" " * 5000, b"{}"], "too_large"),
        ([b"MZP1", b"Q", b"c", b'{"op":"timer.get"}', b"\xff"], "bad_json"),
        ([b""], "bad_frame"),
        ([], "bad_frame"),
    ],
)
def test_bad_frames_get_a_problem_and_the_node_goes_on(
    node: Driver, frames: list[bytes], code: str
) -> None:
    import orjson

    ((_, kind, _, _, body),) = node.node.request(frames)
    assert (kind, orjson.loads(body)["code"]) == (b"E", code)
    assert node.ask("health")["status"] == "ok"


def definition(**members: Any) -> dict[str, Any]:
    return {"schedule": AFTER, **members}


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ({}, "validation", ""),
        ({"schedule": {"kind": "after"}}, "validation", "/schedule"),
        ({"schedule": {"kind": "after", "duration": 5}}, "validation", "/schedule/duration"),
        ({"schedule": {"kind": "after", "duration": "5"}}, "bad_schedule", "/schedule/duration"),
        ({"schedule": {"kind": "nope"}}, "bad_schedule", "/schedule/kind"),
        ({"schedule": {"kind": "cron", "expr": "* * * * *"}}, "bad_schedule", "/schedule/kind"),
        ({"schedule": {"kind": "at", "instant": "noon"}}, "bad_schedule", "/schedule/instant"),
        (
            {"schedule": {"kind": "at", "instant": "2020-01-01T00:00:00Z"}},
            "due_in_past",
            "/schedule/instant",
        ),
        (
            {"schedule": {"kind": "at", "instant": "2190-01-01T00:00:00Z"}},
            "beyond_horizon",
            "/schedule",
        ),
        ({"schedule": {"kind": "every", "interval": "1us"}}, "bad_schedule", "/schedule/interval"),
        (
            {"schedule": {"kind": "every", "interval": "1s", "mode": "x"}},
            "validation",
            "/schedule/mode",
        ),
        (definition(nmae="typo"), "validation", ""),
        (definition(name="x" * 256), "too_large", "/name"),
        (definition(name="a\nb"), "validation", "/name"),
        (definition(labels={"k": 1}), "validation", "/labels"),
        (definition(labels={"": "v"}), "validation", "/labels"),
        (definition(labels={"k": "v" * 256}), "too_large", "/labels"),
        (definition(labels={str(k): "v" for k in range(33)}), "too_large", "/labels"),
        (definition(payload="x" * 65_535), "too_large", "/payload"),
        (definition(max_occurrences=0), "validation", "/max_occurrences"),
        (definition(expires_at="2027-01-15T08:30:00Z"), "no_future_occurrence", "/expires_at"),
        (definition(action_bundle={}), "validation", "/action_bundle"),
        (definition(misfire={"policy": "fire_all"}), "validation", "/misfire/policy"),
    ],
)
def test_bad_definitions_name_the_member(
    node: Driver, body: dict[str, Any], code: str, pointer: str
) -> None:
    problem = node.refused("timer.schedule", body)
    assert problem["code"] == code, problem
    assert problem["errors"][0]["pointer"] == pointer, problem
    assert node.ask("stats")["timers"]["pending"] == 0


@pytest.mark.parametrize(
    "payload", [b'"\\ud800"', b"[" * 200 + b"]" * 200, b"[1,]", b'{"a":1,"a"', b'"\xff"']
)
def test_payloads_that_other_readers_stumble_over_are_refused(node: Driver, payload: bytes) -> None:
    body = b'{"schedule":{"kind":"after","duration":"1h"},"payload":' + payload + b"}"
    assert node.refused("timer.schedule", body)["code"] in ("bad_json", "validation", "too_large")


def test_a_payload_comes_back_byte_for_byte(node: Driver) -> None:
    payload = {"text": 'quote " backslash \\ é 時', "n": [1, 2.5, None, True], "deep": {"a": {}}}
    node.after("1s", payload=payload, labels={'k"ey': 'v"al\\ue'}, name='na"me/é')
    node.pass_(1)
    events = node.ask("stream.replay", {"filter": {"types": ["timer.expired"]}})["events"]
    assert events[0]["data"]["payload"] == payload
    assert events[0]["data"]["labels"] == {'k"ey': 'v"al\\ue'}
    assert events[0]["data"]["name"] == 'na"me/é'


# ------------------------------------------------------------------------------------ many


def test_schedule_many_gives_each_item_its_own_answer(node: Driver) -> None:
    timers = [definition(name="a"), definition(name=7), {"schedule": {"kind": "rrule"}}]
    results = node.ask("timer.schedule_many", {"timers": timers})["results"]
    assert results[0]["name"] == "a"
    assert results[1]["problem"]["errors"][0]["pointer"] == "/name"
    assert results[2]["problem"]["code"] == "validation"
    assert node.ask("stats")["timers"]["pending"] == 1


def test_atomic_schedule_many_leaves_nothing_behind(node: Driver) -> None:
    timers = [definition(name="a"), definition(payload="x" * 70_000)]
    problem = node.refused("timer.schedule_many", {"timers": timers, "atomic": True})
    assert problem["errors"][0]["pointer"] == "/timers/1/payload"
    assert node.ask("stats")["log"]["seq"] == 0
    assert node.ask("stats")["timers"]["pending"] == 0


@pytest.mark.parametrize("number", [0, 1001])
def test_schedule_many_has_a_size(node: Driver, number: int) -> None:
    body = {"timers": [definition()] * number}
    assert node.refused("timer.schedule_many", body)["errors"][0]["pointer"] == "/timers"


def test_cancel_many_by_ids_and_by_filter(node: Driver) -> None:
    ids = [node.after("1h", f"n{k}", labels={"odd": str(k % 2)})["id"] for k in range(10)]
    assert node.ask("timer.cancel_many", {"ids": [*ids[:3], ids[0]]}) == {"count": 3}
    assert node.ask("timer.cancel_many", {"filter": {"labels": {"odd": "1"}}}) == {"count": 4}
    assert node.ask("timer.cancel_many", {"filter": {}}) == {"count": 3}
    assert node.refused("timer.cancel_many", {})["code"] == "validation"
    assert node.pass_(7200) == []


# ------------------------------------------------------------------------------------ idempotency


def test_the_same_key_does_it_once(node: Driver) -> None:
    first = node.ask("timer.schedule", definition(name="a"), idem="k1")
    again = node.ask("timer.schedule", definition(name="a"), idem="k1")
    assert again == {**first, "replayed": True}
    node.node.restart()
    assert node.ask("timer.schedule", definition(name="a"), idem="k1")["id"] == first["id"]
    problem = node.refused("timer.schedule", definition(name="b"), idem="k1")
    assert problem["code"] == "idempotency_key_reused"
    assert node.ask("stats")["timers"]["pending"] == 1


def test_a_key_is_remembered_for_a_day(node: Driver) -> None:
    first = node.ask("timer.schedule", definition(), idem="k")
    node.pass_(86_000)
    again = node.refused("timer.schedule", definition(name="other"), idem="k")
    assert again["code"] == "idempotency_key_reused"
    node.pass_(500)
    assert node.ask("timer.schedule", definition(), idem="k")["id"] != first["id"]


@pytest.mark.parametrize("by_s", [40 * 86_400, -40 * 86_400])
def test_a_key_outlives_a_clock_that_is_set(node: Driver, by_s: int) -> None:
    first = node.ask("timer.schedule", definition(), idem="k")
    node.node.step_utc(by_s * SECOND)
    node.ask("time.accept")
    node.pass_(80_000)  # the tables hold the note, and have been asked to forget old ones
    assert node.ask("timer.schedule", definition(), idem="k") == {**first, "replayed": True}
    node.pass_(7_000)
    assert node.ask("timer.schedule", definition(), idem="k")["id"] != first["id"]


def test_schedule_many_is_replayed_with_its_problems(node: Driver) -> None:
    body = {"timers": [definition(name="a"), definition(name=7), definition(name="b")]}
    first = node.ask("timer.schedule_many", body, idem="m")
    assert node.ask("timer.schedule_many", body, idem="m") == {**first, "replayed": True}


def test_a_cancel_is_replayed_though_the_timer_has_ended(node: Driver) -> None:
    made = node.after("1h")
    first = node.ask("timer.cancel", {"id": made["id"]}, idem="c")
    assert node.ask("timer.cancel", {"id": made["id"]}, idem="c") == {**first, "replayed": True}


# ------------------------------------------------------------------------------------ finding


def test_a_name_finds_the_one_timer_that_has_not_ended(node: Driver) -> None:
    first = node.after("1h", "backup")
    assert node.ask("timer.get", {"name": "backup"})["id"] == first["id"]
    node.ask("timer.cancel", {"name": "backup"})
    assert node.refused("timer.get", {"name": "backup"})["code"] == "not_found"
    node.after("1h", "backup")
    node.after("1h", "backup")
    assert "2 timers" in node.refused("timer.get", {"name": "backup"})["detail"]
    assert node.refused("timer.get", {})["code"] == "validation"
    assert node.refused("timer.get", {"id": "tmr_x"})["errors"][0]["pointer"] == "/id"
    unknown = "tmr_01KAV9FT00F04S6R3TQZKF0000"
    assert node.refused("timer.get", {"id": unknown})["code"] == "not_found"


def test_if_match_guards_a_change(node: Driver) -> None:
    made = node.after("1h")
    problem = node.refused("timer.pause", {"id": made["id"]}, if_match=7)
    assert problem["code"] == "revision_conflict"
    assert node.ask("timer.pause", {"id": made["id"]}, if_match=1)["revision"] == 2


def all_pages(node: Driver, op: str, key: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    found, cursor = [], None
    while True:
        page = node.ask(op, {**body, **({"cursor": cursor} if cursor else {})})
        found += page[key]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def test_list_pages_and_filters(node: Driver) -> None:
    made = [
        node.after(f"{k + 1}h", f"{'ab'[k % 2]}{k}", labels={"k": str(k % 5)}) for k in range(25)
    ]
    listed = all_pages(node, "timer.list", "items", {"limit": 7})
    assert [t["id"] for t in listed] == [t["id"] for t in made]
    by = {"labels": {"k": "3"}, "name_prefix": "b"}
    assert [t["name"] for t in node.ask("timer.list", {"filter": by})["items"]] == [
        "b3",
        "b13",
        "b23",
    ]
    due = {"due_from": "2027-01-15T10:00:00Z", "due_to": "2027-01-15T12:00:00Z"}
    assert [t["name"] for t in node.ask("timer.list", {"filter": due})["items"]] == ["b1", "a2"]
    node.ask("timer.pause", {"id": made[4]["id"]})
    paused = node.ask("timer.list", {"filter": {"state": ["paused"]}})["items"]
    assert [t["name"] for t in paused] == ["a4"]
    assert node.refused("timer.list", {"filter": {"state": ["completed"]}})["code"] == "validation"
    assert node.refused("timer.list", {"limit": 0})["code"] == "validation"
    assert node.refused("timer.list", {"cursor": "AAAA"})["errors"][0]["pointer"] == "/cursor"


def test_snapshot_says_where_replay_goes_on(node: Driver) -> None:
    made = node.after("1h", "a")
    shot = node.ask("stream.snapshot")
    assert [t["id"] for t in shot["items"]] == [made["id"]]
    node.after("1h", "b")
    page = node.ask("stream.replay", {"from": shot["as_of"]})
    assert [e["data"]["name"] for e in page["events"]] == ["b"]


def test_a_snapshot_never_lies_ahead_of_what_has_left(node: Driver) -> None:
    node.after("10s", "committed ahead")
    node.after("1h", "stays")
    assert node.pass_(9.9985) == []
    snapshot = node.ask("stream.snapshot", {})
    assert [item["name"] for item in snapshot["items"]] == ["stays"]
    assert node.pass_(1) == [("committed ahead", 1, 10.0)]
    behind = node.ask("stream.replay", {"from": snapshot["as_of"]})["events"]
    assert [e["data"]["name"] for e in behind if e["type"] == EXPIRED] == ["committed ahead"]


def test_history_is_the_whole_life(node: Driver) -> None:
    made = node.every("60s", max_occurrences=9)
    node.pass_(200)
    node.ask("timer.pause", {"id": made["id"]})
    node.ask("timer.resume", {"id": made["id"]})
    node.ask("timer.cancel", {"id": made["id"]})
    node.ask("stream.snapshot")  # the tables hold it now
    events = all_events_of(node, made["id"], limit=2)
    assert [e["type"].split(".")[3] for e in events] == [
        *("scheduled", "expired", "expired", "expired", "paused", "resumed", "cancelled")
    ]
    assert [e["data"].get("lateness_us") for e in events if "expired" in e["type"]] == [0, 0, 0]
    other = node.after("1h")
    assert node.refused("timer.history", {"id": other["id"], "cursor": "1"})["code"] == "validation"


def all_events_of(node: Driver, id: str, limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        body = {"id": id, "limit": limit, **({"cursor": cursor} if cursor else {})}
        page = node.ask("timer.history", body)
        found = page["events"] + found
        cursor = page["next_cursor"]
        if cursor is None:
            return found


# ------------------------------------------------------------------------------------ replay


def test_replay_pages_filters_and_ends(node: Driver) -> None:
    for k in range(30):
        node.after(f"{k + 1}s", f"n{k}", labels={"p": str(k % 3)})
    node.pass_(100)
    place: dict[str, Any] = {}
    events = []
    while True:
        page = node.ask("stream.replay", {"from": place, "limit": 7})
        events += page["events"]
        place = page["next"]
        if page["end"]:
            break
    assert [int(e["sequence"]) for e in events] == list(range(1, 61))
    assert place == {"epoch": 1, "seq": 60}
    only = {"types": ["timer.expired"], "labels": {"p": "1"}, "name_prefix": "n1"}
    names = [e["data"]["name"] for e in node.ask("stream.replay", {"filter": only})["events"]]
    assert names == ["n1", "n10", "n13", "n16", "n19"]


@pytest.mark.parametrize("op", ["stream.replay", "timer.history"])
def test_what_was_told_of_a_fire_is_durable(node: Driver, op: str) -> None:
    """Its receipt waits for company; an answer that tells it does not leave before its commit."""
    made = node.after("10s")
    assert node.pass_(10) == [("t", 1, 10.0)]
    body = {"from": {}} if op == "stream.replay" else {"id": made["id"]}
    told = node.ask(op, body)["events"][-1]["data"]
    assert told["lateness_us"] == 0
    node.node.clock.advance(3 * SECOND)
    node.node.restart()
    node.pass_(1)
    fires = [e for e in node.ask(op, body)["events"] if e["type"] == EXPIRED]
    assert [e["data"] for e in fires] == [told]


def test_replay_refuses_cursors_of_another_log(node: Driver) -> None:
    node.after("1h")
    wrong = node.refused("stream.replay", {"from": {"epoch": 9, "seq": 0}})
    assert wrong["code"] == "epoch_changed"
    assert node.refused("stream.replay", {"from": {"seq": -1}})["code"] == "validation"
    assert node.refused("stream.replay", {"from": {"seq": 999}})["code"] == "validation"
    assert node.refused("stream.replay", {"from": {"epoch": 9}})["code"] == "epoch_changed"
    bad = node.refused("stream.replay", {"filter": {"types": ["nope"]}})
    assert bad["errors"][0]["pointer"] == "/filter/types"


def test_replay_from_a_time(node: Driver) -> None:
    node.after("10m", "a")
    node.pass_(600)
    page = node.ask("stream.replay", {"from": {"time": "2027-01-15T08:05:00Z"}})
    assert [e["type"].split(".")[3] for e in page["events"]] == ["expired"]


def test_events_older_than_retention_are_gone_and_said_so(node: Driver) -> None:
    node.every("1h", "hourly")
    keep = node.after("3000h", "far", payload={"kept": True})
    node.pass_(20 * 86_400)
    problem = node.refused("stream.replay", {"from": {"epoch": 1, "seq": 0}})
    assert problem["code"] == "out_of_retention"
    assert node.ask("stream.replay", {"from": {}})["events"]
    assert node.ask("timer.get", {"id": keep["id"]})["payload"] == {"kept": True}
    assert node.ask("timer.history", {"id": keep["id"]})["events"] == []
    node.node.restart()
    assert node.ask("timer.get", {"id": keep["id"]})["payload"] == {"kept": True}


# ------------------------------------------------------------------------------------ about


def test_next_tells_the_coming_dues(node: Driver) -> None:
    made = node.every("10m", max_occurrences=3)
    asked = node.ask("timer.next", {"id": made["id"], "count": 9})
    assert asked["occurrence"] == 1
    assert [d[11:16] for d in asked["dues"]] == ["08:10", "08:20", "08:30"]
    tried = node.ask("timer.next", {"schedule": {"kind": "after", "duration": "90m"}})
    assert [d[11:16] for d in tried["dues"]] == ["09:30"]
    assert node.ask("stats")["timers"]["pending"] == 1


def test_hello_stats_health_time_and_schema(node: Driver) -> None:
    hello = node.ask("hello")
    assert hello["protocol"] == [1]
    assert hello["limits"]["schedule_many_max"] == 1000
    stats = node.ask("stats")
    for member in ("timers", "fires", "log", "lateness_us", "lead_us", "turn_us"):
        assert member in stats
    assert node.ask("health")["status"] == "ok"
    sync = node.ask("time.sync", {"t0": 5})
    assert (sync["t0"], sync["t1"]) == (5, sync["t2"])
    schema = node.ask("schema.get")["ops"]
    assert "timer.schedule" in schema
    assert node.ask("schema.get", {"op": "timer.get"}) == schema["timer.get"]
    assert node.refused("schema.get", {"op": "x"})["code"] == "not_found"


def test_a_damaged_row_fails_its_request_and_not_the_node(node: Driver) -> None:
    made = node.after("2000h", "damaged")
    node.ask("timer.list")
    node.pass_(60)  # the hot set has let it go: it stands in the tables alone
    rows = node.node.tables._rows
    (id,) = rows
    rows[id] = rows[id][:-1] + b"!"
    for _ in range(2):  # the key of a request that failed is not held
        node.after("1h")  # the tables have to follow first, so the verb waits
        problem = node.refused("timer.cancel", {"name": "damaged"}, idem="k")
        assert problem["code"] == "internal"
    assert node.refused("timer.get", {"id": made["id"]})["code"] == "internal"
    assert node.ask("health")["status"] == "ok"
