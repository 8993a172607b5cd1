"""Bulk verbs: what they change, what they say, and that a crash changes nothing twice."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from minoots.wire.times import parse_instant
from tests.sim.driver import SECOND, START, Driver

MANY = 1_300  # more than one commit takes
SLICES = 6  # commits that they are changed in


@pytest.fixture
def node() -> Driver:
    return Driver()


def fill(node: Driver, count: int, **more: Any) -> list[str]:
    ids: list[str] = []
    for start in range(0, count, 1000):
        timers = [
            {
                "name": f"n{k:04}",
                "labels": {"odd": str(k % 2)},
                "schedule": {"kind": "after", "duration": f"{3600 + k}s"},
                **more,
            }
            for k in range(start, min(start + 1000, count))
        ]
        results = node.ask("timer.schedule_many", {"timers": timers})["results"]
        ids += [view["id"] for view in results]
    return ids


def told(node: Driver) -> list[dict[str, Any]]:
    """The data of each `node.bulk` event."""
    page = node.ask("stream.replay", {"filter": {"types": ["node.bulk"]}, "limit": 1000})
    return [event["data"] for event in page["events"]]


def dues(node: Driver, ids: list[str]) -> list[float]:
    found = [node.ask("timer.get", {"id": id})["due"] for id in ids]
    return [(parse_instant(due) - START) / SECOND for due in found]


def test_pause_and_resume(node: Driver) -> None:
    ids = fill(node, 10)
    odd = {"filter": {"labels": {"odd": "1"}}}
    assert node.ask("timer.pause_many", odd) == {"count": 5}
    assert node.ask("timer.pause_many", odd) == {"count": 0}
    assert node.ask("timer.pause_many", {"ids": ids[:2] * 2}) == {"count": 1}
    node.pass_(10)
    assert node.ask("timer.resume_many", {"filter": {}}) == {"count": 6}
    assert dues(node, ids[:3]) == [3610, 3611, 3602]
    assert told(node) == [
        {"verb": "timer.pause_many", **odd, "count": 5, "skipped": 0},
        {"verb": "timer.pause_many", "ids": 4, "count": 1, "skipped": 0},
        {"verb": "timer.resume_many", "filter": {}, "count": 6, "skipped": 0},
    ]


def test_resume_skips_what_has_expired(node: Driver) -> None:
    node.after("5s", name="late", expires_at="2027-01-15T08:00:06Z")
    node.after("5s", name="fine")
    assert node.ask("timer.pause_many", {"filter": {}}) == {"count": 2}
    node.pass_(10)
    assert node.ask("timer.resume_many", {"filter": {}}) == {"count": 1, "skipped": 1}
    assert node.ask("timer.get", {"name": "late"})["state"] == "paused"
    assert node.pass_(10) == [("fine", 1, 15.0)]


def test_shift_later_and_earlier(node: Driver) -> None:
    ids = fill(node, 4)
    node.ask("timer.pause", {"id": ids[0]})
    assert node.ask("timer.shift_many", {"by": "10m", "filter": {}}) == {"count": 4}
    assert dues(node, ids) == [4200, 4201, 4202, 4203]
    assert node.ask("timer.get", {"id": ids[0]})["remaining"] == "1h10m"
    assert node.ask("timer.shift_many", {"by": "-20m", "ids": [*ids, ids[1]]}) == {"count": 4}
    assert dues(node, ids) == [3000, 3001, 3002, 3003]
    assert node.ask("timer.shift_many", {"by": "0s", "filter": {}}) == {"count": 0}


def test_what_would_be_due_in_the_past_fires_now_or_at_its_next_point(node: Driver) -> None:
    node.after("1h", name="once")
    node.schedule("wall", schedule={"kind": "at", "instant": "2027-01-15T09:00:00Z"})
    node.every("40s", name="grid", max_occurrences=2)
    node.pass_(1)
    assert node.ask("timer.shift_many", {"by": "-2h", "filter": {}}) == {"count": 3}
    fired = node.pass_(100)
    # 40 s - 2 h is a point of the grid: 0 s is one too, and 40 s the first from 1 s on.
    assert fired == [("once", 1, 1.0), ("wall", 1, 1.0), ("grid", 1, 40.0), ("grid", 2, 80.0)]


def test_a_paused_timer_that_is_shifted_before_all_time_goes_on_at_once(node: Driver) -> None:
    node.after("10s", name="once")
    node.every("40s", name="grid", max_occurrences=1)
    node.ask("timer.pause_many", {"filter": {}})
    back = {"by": "-36525d", "filter": {}}
    assert [node.ask("timer.shift_many", back)["count"] for _ in range(3)] == [2, 2, 2]
    assert node.ask("timer.get", {"name": "once"})["remaining"] == "1ns"
    node.pass_(1)
    assert node.ask("timer.resume_many", {"filter": {}}) == {"count": 2}
    assert [(name, round(at)) for name, _, at in node.pass_(50)] == [("once", 1), ("grid", 40)]


def test_shift_skips_what_a_limit_forbids(node: Driver) -> None:
    node.after("1h", name="ends", expires_at="2027-01-15T09:30:00Z")
    node.after("1h", name="free")
    shift = {"by": "1h", "filter": {"name_prefix": ""}}
    assert node.ask("timer.shift_many", shift) == {"count": 1, "skipped": 1}
    assert told(node) == [{"verb": "timer.shift_many", "count": 1, "skipped": 1, "by": "1h",
                           "filter": {}}]  # fmt: skip


def test_relabel(node: Driver) -> None:
    ids = fill(node, 4, payload={"x": 1})
    body = {"set": {"team": "ops", "a": "1"}, "remove": ["odd"], "filter": {"labels": {"odd": "1"}}}
    assert node.ask("timer.relabel_many", body) == {"count": 2}
    view = node.ask("timer.get", {"id": ids[1]})
    assert (view["labels"], view["payload"]) == ({"a": "1", "team": "ops"}, {"x": 1})
    again = {"set": {"a": "1"}, "filter": {"labels": {"a": "1"}}}
    assert node.ask("timer.relabel_many", again) == {"count": 0}
    found = node.ask("timer.list", {"filter": {"labels": {"team": "ops"}}})["items"]
    assert [item["id"] for item in found] == ids[1::2]
    last = node.ask("timer.history", {"id": ids[1], "limit": 1})["events"][0]
    assert last["type"] == "io.minoots.timer.relabelled.v1"
    assert last["data"]["labels"] == {"a": "1", "team": "ops"}
    node.node.restart()
    assert [name for name, _, _ in node.pass_(4000)] == ["n0000", "n0001", "n0002", "n0003"]
    full = {f"k{k}": "v" for k in range(31)}
    node.after("1h", labels={"full": "1", "more": "2"})
    assert node.ask("timer.relabel_many", {"set": full, "filter": {}}) == {"count": 0, "skipped": 1}


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume", "shift", "relabel"])
def test_a_dry_run_counts_and_changes_nothing(node: Driver, verb: str) -> None:
    ids = fill(node, 30)
    if verb == "resume":
        node.ask("timer.pause_many", {"filter": {}})
    seq = node.ask("stats")["log"]["seq"]
    more: dict[str, Any] = {"shift": {"by": "1h"}, "relabel": {"set": {"a": "b"}}}.get(verb, {})
    body = {"filter": {"labels": {"odd": "0"}}, "dry_run": True, **more}
    reply = node.ask(f"timer.{verb}_many", body)
    assert (reply["count"], [v["id"] for v in reply["sample"]]) == (15, ids[0:20:2])
    by_ids = node.ask(f"timer.{verb}_many", {"ids": ids[:3], "dry_run": True, **more})
    assert by_ids["count"] == 3
    assert node.ask("stats")["log"]["seq"] == seq
    del body["dry_run"]
    assert node.ask(f"timer.{verb}_many", body) == {"count": 15}


def commits_of(node: Driver, op: str, body: dict[str, Any]) -> int:
    before = node.ask("stats")["log"]["commits"]
    node.ask(op, body)
    return int(node.ask("stats")["log"]["commits"] - before)


def test_a_thousand_are_one_commit(node: Driver) -> None:
    fill(node, 1_000)
    assert commits_of(node, "timer.shift_many", {"by": "1h", "filter": {}}) == 1
    fill(node, 1)
    assert commits_of(node, "timer.shift_many", {"by": "1h", "filter": {}}) == 4


@pytest.mark.parametrize("commits", range(SLICES + 2))
@pytest.mark.parametrize(("verb", "more"), [("shift", {"by": "1h"}), ("cancel", {}), ("pause", {})])
def test_a_repeat_after_a_crash_goes_on_and_tells_the_total(
    node: Driver, verb: str, more: dict[str, Any], commits: int
) -> None:
    """Killed when so many of its commits are durable, at any of them."""
    ids = fill(node, MANY)
    node.ask("timer.list")
    body = {"filter": {"name_prefix": "n"}, **more}
    node.node.log.hold()
    node.node.start_request(node.frames(f"timer.{verb}_many", body, idem="k"))
    for _ in range(commits):
        for _ in range(20):  # the commit before has ended, so each slice is one of its own
            if not node.node.log.under_way_count:
                node.node.step()
        node.node.log.let_go(1)
    node.node.restart()
    reply = node.ask(f"timer.{verb}_many", body, idem="k")
    assert reply.pop("replayed", False) == (commits >= SLICES)
    assert reply == {"count": MANY}
    views = [node.ask("timer.get", {"id": id}) for id in ids[::13]]
    assert {view["revision"] for view in views} == {2}
    (data,) = told(node)
    assert data["count"] == MANY
    assert node.ask(f"timer.{verb}_many", body, idem="k") == {"count": MANY, "replayed": True}


def test_others_are_answered_while_many_are_changed(node: Driver) -> None:
    fill(node, MANY)
    node.node.start_request(node.frames("timer.pause_many", {"filter": {}}))
    ((_, kind, _, _, body),) = node.node.request(node.frames("health"))
    assert (kind, orjson.loads(body)["status"]) == (b"R", "ok")
    assert node.refused("timer.get", {"name": "none"})["code"] == "not_found"


@pytest.mark.parametrize(
    ("verb", "body", "code", "pointer"),
    [
        ("pause", {}, "validation", "/filter"),
        ("pause", {"ids": [], "filter": {}}, "validation", "/filter"),
        ("pause", {"ids": ["x"]}, "validation", "/ids/0"),
        ("resume", {"ids": ["x"] * 1001}, "too_large", "/ids"),
        ("shift", {"filter": {}}, "validation", ""),
        ("shift", {"filter": {}, "by": "--1h"}, "validation", "/by"),
        ("relabel", {"filter": {}}, "validation", "/set"),
        ("relabel", {"filter": {}, "set": {"": "x"}}, "validation", "/set"),
        ("relabel", {"filter": {}, "set": {"a": "x"}, "remove": ["a"]}, "validation", "/remove"),
        ("cancel", {"filter": {"name_prefix": "x" * 17_000}}, "too_large", "/filter"),
        (
            "cancel",
            {"filter": {"labels": {str(k): "" for k in range(17)}}},
            "too_large",
            "/filter/labels",
        ),
    ],
)
def test_bad_requests_change_nothing(
    node: Driver, verb: str, body: dict[str, Any], code: str, pointer: str
) -> None:
    fill(node, 1)
    problem = node.refused(f"timer.{verb}_many", body)
    found = problem["errors"][0]["pointer"] if problem.get("errors") else ""
    assert (problem["code"], found) == (code, pointer)
    assert told(node) == []
