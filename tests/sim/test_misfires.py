"""What becomes of timers that were due while nobody served: each misfire policy, on a node."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest

from tests.sim.driver import SECOND, Driver, fires

AT = "2027-01-15T08:"  # the virtual node starts at 08:00:00
HOUR = 3600 * SECOND


@pytest.fixture
def node() -> Driver:
    return Driver()


def down(node: Driver, seconds: float) -> None:
    """Killed, and started again after a while."""
    node.node.clock.advance(round(seconds * SECOND))
    node.node.restart()


def live_of(frames: list[list[bytes]]) -> list[dict[str, Any]]:
    return [orjson.loads(body) for _, _, body in frames if _is_timer(body)]


def _is_timer(body: bytes) -> bool:
    return b'"type":"io.minoots.timer.' in body


def events(node: Driver, *types: str) -> list[dict[str, Any]]:
    """The log's events of these types, all of them replayed."""
    asked = {"from": {}, "filter": {"types": [f"timer.{name}" for name in types]}, "limit": 1000}
    return list(node.ask("stream.replay", asked)["events"])


def fired_and_skipped(node: Driver) -> list[tuple[str, int, int]]:
    """(what, first occurrence, last) of each event that ends occurrences, in the log's order."""
    found = []
    for event in events(node, "expired", "skipped"):
        data, word = event["data"], event["type"].split(".")[3]
        found.append((word, data["occurrence"], data.get("last_occurrence", data["occurrence"])))
    return found


# ------------------------------------------------------------------------------- skip


def test_a_missed_one_shot_with_skip_is_not_made_and_is_told(node: Driver) -> None:
    made = node.after("10m", "tea", misfire={"policy": "skip"}, payload={"n": 1})
    assert made["misfire"] == {"policy": "skip"}
    down(node, 3 * 3600)
    told = live_of(node.node.advance(0))
    assert [event["type"] for event in told] == ["io.minoots.timer.skipped.v1"]
    data = told[0]["data"]
    assert data == {
        "timer_id": made["id"],
        "occurrence": 1,
        "due": AT + "10:00.000000000Z",
        "misfire": True,
        "state": "completed",
        "state_reason": "misfire",
        "name": "tea",
        "labels": {},
        "policy": "skip",
        "reason": "policy",
        "lateness_us": (3 * 3600 - 600) * 1_000_000,
        "count": 1,
        "last_occurrence": 1,
    }
    assert told[0]["dedupekey"] == f"default/{made['id']}/1"
    assert node.pass_(1e5) == []
    view = node.ask("timer.get", {"id": made["id"]})
    assert (view["state"], view["state_reason"]) == ("completed", "misfire")
    assert view["payload"] == {"n": 1}
    fires_ = node.ask("stats")["fires"]
    assert (fires_["total"], fires_["skipped"], fires_["escalated"]) == (0, 1, 0)


def test_skip_lets_a_recurring_timer_go_on_at_its_next_due(node: Driver) -> None:
    node.every("60s", "m", misfire={"policy": "skip"})
    assert node.pass_(61) == [("m", 1, 60.0)]
    down(node, 1000)  # 1061: dues 120 to 1020 are missed, 2 to 17
    assert node.pass_(100) == [("m", 18, 1080.0), ("m", 19, 1140.0)]
    assert fired_and_skipped(node) == [
        ("expired", 1, 1),
        ("skipped", 2, 17),
        ("expired", 18, 18),
        ("expired", 19, 19),
    ]


def test_within_its_grace_nothing_is_missed_not_even_over_a_restart(node: Driver) -> None:
    node.after("60s", "short", misfire={"policy": "skip", "grace": "5m"})
    node.after("60s", "long", misfire={"policy": "skip", "grace": "2m"})
    node.after("60s", "plain", misfire={"policy": "skip"})
    down(node, 60 + 180)
    told = live_of(node.node.advance(0))
    assert sorted(
        (event["data"]["name"], event["type"].split(".")[3], event["data"]["misfire"])
        for event in told
    ) == [("long", "skipped", True), ("plain", "skipped", True), ("short", "expired", False)]


def test_skip_leaves_those_of_a_grid_that_are_within_their_grace(node: Driver) -> None:
    node.every("1h", "hourly", misfire={"policy": "skip", "grace": "10m"})
    node.node.clock.advance(3 * HOUR + 5 * 60 * SECOND)  # the third is late by five minutes
    assert fires(node.node.advance(0)) == [("hourly", 3, 3 * 3600 + 300.0)]
    assert fired_and_skipped(node) == [("skipped", 1, 2), ("expired", 3, 3)]


def test_the_last_ones_that_are_skipped_end_a_timer(node: Driver) -> None:
    most = node.every("60s", "most", max_occurrences=3, misfire={"policy": "skip"})
    until = node.every("60s", "until", expires_at=AT + "02:30Z", misfire={"policy": "skip"})
    down(node, 1000)
    node.node.advance(0)
    for made, reason in ((most, "max_occurrences"), (until, "expires_at")):
        view = node.ask("timer.get", {"id": made["id"]})
        assert (view["state"], view["state_reason"]) == ("completed", reason)
    assert sorted(fired_and_skipped(node)) == [("skipped", 1, 2), ("skipped", 1, 3)]
    assert node.ask("stats")["timers"]["pending"] == 0


def test_a_fixed_delay_timer_goes_on_an_interval_after_it_was_skipped(node: Driver) -> None:
    node.every("60s", "m", mode="fixed_delay", misfire={"policy": "skip"})
    down(node, 1000)
    assert node.pass_(100) == [("m", 2, 1060.0)]


def test_at_that_was_jumped_over_is_missed_too(node: Driver) -> None:
    node.schedule(
        "at", schedule={"kind": "at", "instant": AT + "10:00Z"}, misfire={"policy": "skip"}
    )
    node.node.step_utc(1200 * SECOND)
    assert fires(node.node.advance(HOUR)) == []
    assert fired_and_skipped(node) == [("skipped", 1, 1)]


# ------------------------------------------------------------------------------- fire_all


def test_fire_all_makes_each_missed_fire_in_order_with_its_own_due(node: Driver) -> None:
    made = node.every("60s", "m", misfire={"policy": "fire_all"})
    node.pass_(60)
    down(node, 300)  # 360: 120 to 360 are overdue, the last of them just now
    node.node.advance(SECOND)
    told = events(node, "expired")
    assert [(e["data"]["occurrence"], e["data"]["due"], e["dedupekey"]) for e in told] == [
        (k, f"{AT}0{k}:00.000000000Z", f"default/{made['id']}/{k}") for k in range(1, 7)
    ]
    assert [e["data"]["misfire"] for e in told] == [False, True, True, True, True, False]
    assert node.pass_(60) == [("m", 7, 420.0)]


def test_fire_all_of_more_than_max_catchup_tells_the_older_ones_once(node: Driver) -> None:
    node.every("1s", "m", misfire={"policy": "fire_all", "max_catchup": 5})
    down(node, 7200)
    node.node.advance(SECOND // 2)
    assert fired_and_skipped(node) == [
        ("skipped", 1, 7195),
        *(("expired", k, k) for k in range(7196, 7201)),
    ]
    (told,) = events(node, "skipped")
    assert (told["data"]["reason"], told["data"]["count"]) == ("max_catchup", 7195)


def test_a_catch_up_keeps_its_rate_and_holds_nothing_else_up(node: Driver) -> None:
    node.every("10m", "slow", misfire={"policy": "fire_all", "catchup_rate": 0.5})
    node.every("10m", "fast", misfire={"policy": "fire_all"})
    down(node, 3600)
    node.after("3s", "other")
    found = node.pass_(30)
    slow = [at - 3600 for name, _, at in found if name == "slow"]
    assert len(slow) == 6
    assert slow[0] == 0
    gaps = [after - before for before, after in itertools.pairwise(slow)]
    assert min(gaps) >= 2
    assert max(gaps) < 2.1
    fast = [at - 3600 for name, _, at in found if name == "fast"]
    assert len(fast) == 6
    assert fast[-1] < 0.1
    assert ("other", 1, 3603.0) in found


def test_fire_all_passes_over_nothing_that_is_within_its_grace_either(node: Driver) -> None:
    node.every("100ms", "m", max_occurrences=9, misfire={"policy": "fire_all"})
    node.node.clock.advance(SECOND // 2)  # nobody ran the node meanwhile
    node.pass_(1)
    told = events(node, "expired")
    assert [e["data"]["occurrence"] for e in told] == list(range(1, 10))
    assert not any(e["data"]["misfire"] for e in told)


def test_a_catch_up_is_whole_wherever_the_node_is_killed() -> None:
    """Kill it after each step, before and after the commit, and after the release."""
    for landed in (0, 1):
        for kill_at in range(14):
            node = Driver()
            node.every("60s", "m", misfire={"policy": "fire_all", "catchup_rate": 10})
            down(node, 490)  # eight are overdue
            seen = _seqs(node.node.live())
            for step in range(40):
                if step == kill_at:
                    node.node.log.hold()
                seen |= _seqs(node.node.advance(SECOND // 20))
                if step == kill_at:
                    node.node.log.crash(landed)
                    node.node.restart()
            told = events(node, "expired")
            where = f"kill_at={kill_at} landed={landed}"
            assert [e["data"]["occurrence"] for e in told] == list(range(1, 9)), where
            for k, event in enumerate(told, 1):
                assert event["data"]["due"] == f"{AT}0{k}:00.000000000Z", where
            assert seen <= {int(e["sequence"]) for e in told}, where


def _seqs(frames: list[list[bytes]]) -> set[int]:
    return {
        int.from_bytes(stamp[:8], "big")
        for topic, stamp, _ in frames
        if b"/e/timer.expired/" in topic
    }


@pytest.mark.parametrize("landed", [0, 1])
def test_what_is_told_of_a_missed_fire_is_told_once(landed: int) -> None:
    """Killed before the commit of it, and after."""
    node = Driver()
    node.every("60s", "skip", misfire={"policy": "skip"})
    node.every("60s", "escalate", misfire={"policy": "escalate"})
    down_ns = 490 * SECOND
    node.node.clock.advance(down_ns)
    node.node.log.hold()
    node.node._loop.step()
    node.node.log.crash(landed)
    node.node.restart()
    node.node.advance(SECOND)
    told = [
        (e["type"].split(".")[3], e["data"]["name"], e["data"]["occurrence"]) for e in events(node)
    ]
    assert told.count(("escalated", "escalate", 1)) == 1
    assert told.index(("escalated", "escalate", 1)) + 1 == told.index(("expired", "escalate", 1))
    assert sorted(told) == [
        ("escalated", "escalate", 1),
        ("expired", "escalate", 1),
        ("scheduled", "escalate", 1),
        ("scheduled", "skip", 1),
        ("skipped", "skip", 1),
    ]


def test_an_unreleased_fire_of_a_catch_up_is_due_when_it_was(node: Driver) -> None:
    """Committed and not released when UTC is set: its due on the steady scale is found again."""
    node.every("60s", "m", misfire={"policy": "fire_all"})
    down(node, 190)
    node.node.log.hold()
    node.node._loop.step()
    node.node.log.crash(landed=1)
    node.node.clock.step_utc(1800 * SECOND)
    node.node.restart()
    ledger = node.node._loop.recovered.ledger
    node.node.advance(SECOND)
    first = events(node, "expired")[0]["data"]
    assert (first["occurrence"], first["lateness_us"]) == (1, 130 * 1_000_000)
    assert ledger.unreleased == {}


# ------------------------------------------------------------------------------- escalate


def test_escalate_tells_somebody_first_and_then_fires_once(node: Driver) -> None:
    made = node.every("60s", "m", misfire={"policy": "escalate"})
    down(node, 490)
    told = live_of(node.node.advance(0))
    assert [event["type"].split(".")[3] for event in told] == ["escalated", "expired"]
    data = told[0]["data"]
    assert (data["occurrence"], data["count"], data["last_occurrence"]) == (1, 8, 8)
    assert (data["lateness_us"], data["policy"], data["misfire"]) == (430_000_000, "escalate", True)
    assert data["state"] == "scheduled"
    assert told[1]["data"]["occurrence"] == 1
    assert node.pass_(60) == [("m", 9, 540.0)]
    assert node.ask("stats")["fires"]["escalated"] == 1
    assert node.ask("timer.get", {"id": made["id"]})["revision"] == 4
    assert [
        e["type"].split(".")[3] for e in node.ask("timer.history", {"id": made["id"]})["events"]
    ] == [
        "scheduled",
        "escalated",
        "expired",
        "expired",
    ]


def test_on_time_no_policy_makes_a_difference(node: Driver) -> None:
    for policy in ("fire_once", "fire_all", "skip", "escalate"):
        node.every("10s", policy, misfire={"policy": policy}, max_occurrences=4)
    found = node.pass_(100)
    assert len(found) == 16
    assert all(at == 10.0 * k for _, k, at in found)
    assert node.ask("stats")["fires"]["misfires"] == 0


# ------------------------------------------------------------------------------- max_lateness


def test_later_than_max_lateness_is_skipped_whatever_the_policy(node: Driver) -> None:
    for policy in ("fire_once", "escalate"):
        node.after("60s", policy, misfire={"policy": policy, "max_lateness": "10m"})
    node.after("55m", "recent", misfire={"policy": "fire_once", "max_lateness": "10m"})
    down(node, 3600)
    told = live_of(node.node.advance(0))
    assert sorted((e["data"]["name"], e["type"].split(".")[3]) for e in told) == [
        ("escalate", "skipped"),
        ("fire_once", "skipped"),
        ("recent", "expired"),
    ]
    assert {e["data"].get("reason") for e in told} == {"max_lateness", None}


def test_max_lateness_of_a_grid_skips_those_that_are_too_late(node: Driver) -> None:
    node.every("1h", "once", misfire={"policy": "fire_once", "max_lateness": "90m"})
    node.every("1h", "all", misfire={"policy": "fire_all", "max_lateness": "90m"})
    down(node, 5 * 3600 + 600)
    node.node.advance(SECOND)
    assert sorted(fired_and_skipped(node)) == [
        ("expired", 4, 4),  # once: for the fourth and the fifth
        ("expired", 4, 4),
        ("expired", 5, 5),
        ("skipped", 1, 3),
        ("skipped", 1, 3),
    ]


# ------------------------------------------------------------------------------- with other verbs


def test_a_paused_timer_misses_nothing(node: Driver) -> None:
    one = node.after("60s", "one", misfire={"policy": "skip"})
    grid = node.every("60s", "grid", misfire={"policy": "fire_all"})
    for made in (one, grid):
        node.ask("timer.pause", {"id": made["id"]})
    down(node, 3600)
    for made in (one, grid):
        node.ask("timer.resume", {"id": made["id"]})
    assert node.pass_(60) == [("one", 1, 3660.0), ("grid", 1, 3660.0)]
    assert events(node, "skipped") == []


def test_pausing_gives_up_the_rest_of_a_catch_up(node: Driver) -> None:
    made = node.every("10m", "m", misfire={"policy": "fire_all", "catchup_rate": 1})
    down(node, 3600)
    assert [k for _, k, _ in node.pass_(1.5)] == [1, 2]
    node.ask("timer.pause", {"id": made["id"]})
    node.pass_(60)
    node.ask("timer.resume", {"id": made["id"]})
    assert node.pass_(600) == [("m", 3, 4200.0)]


def test_a_trigger_amid_a_catch_up_takes_a_number_of_its_own(node: Driver) -> None:
    made = node.every("10m", "m", misfire={"policy": "fire_all", "catchup_rate": 1})
    down(node, 1800)
    assert [k for _, k, _ in node.pass_(0.5)] == [1]
    node.ask("timer.trigger", {"id": made["id"]})
    node.pass_(10)
    told = [(e["data"]["occurrence"], e["data"]["due"][14:19]) for e in events(node, "expired")]
    assert told == [(1, "10:00"), (2, "30:00"), (3, "20:00"), (4, "30:00")]


def test_extend_and_reschedule_make_a_missed_fire_one_that_is_to_come(node: Driver) -> None:
    late = node.every("10m", "late", misfire={"policy": "fire_all", "catchup_rate": 0.2})
    other = node.every("10m", "other", misfire={"policy": "fire_all", "catchup_rate": 0.2})
    down(node, 1800)
    node.pass_(1)
    node.ask("timer.extend", {"id": late["id"], "by": "1h"})
    body = {"id": other["id"], "schedule": {"kind": "every", "interval": "7m"}}
    node.ask("timer.reschedule", body)
    found = node.pass_(4000)
    assert [(k, at) for n, k, at in found if n == "late"] == [(2, 4800.0), (3, 5400.0)]
    assert next(k for n, k, _ in found if n == "other") == 2
    assert events(node, "skipped") == []


def test_a_reschedule_that_the_policy_does_not_go_with_is_refused(node: Driver) -> None:
    made = node.every("60s", misfire={"policy": "fire_all", "catchup_rate": 1})
    for schedule, pointer in (
        ({"kind": "after", "duration": "5s"}, "/misfire/policy"),
        ({"kind": "every", "interval": "1s"}, "/misfire/catchup_rate"),
    ):
        body = {"id": made["id"], "schedule": schedule}
        problem = node.refused("timer.reschedule", body)
        assert problem["code"] == "validation"
        assert problem["errors"][0]["pointer"] == pointer
    assert node.ask("timer.get", {"id": made["id"]})["revision"] == 1


def test_a_policy_survives_restarts_and_trimming_to_the_tables(node: Driver) -> None:
    policy = {
        "policy": "fire_all",
        "grace": "5s",
        "max_lateness": "2h",
        "max_catchup": 7,
        "catchup_rate": 2.5,
    }
    made = node.every("60s", misfire=policy)
    assert made["misfire"] == policy
    node.pass_(6 * 3600)  # the tables have followed
    node.node.restart()
    assert node.ask("timer.get", {"id": made["id"]})["misfire"] == policy
    node.ask("timer.extend", {"id": made["id"], "by": "1s"})
    assert node.ask("timer.get", {"id": made["id"]})["misfire"] == policy


@pytest.mark.parametrize(
    ("misfire", "pointer", "detail"),
    [
        ({"policy": "fire_all"}, "policy", "goes with every in fixed_rate"),
        ({"policy": "skip", "grace": "soon"}, "grace", "is 'soon'"),
        ({"grace": "1ms"}, "grace", "it must be 10ms or more"),
        ({"policy": "skip", "max_catchup": 3}, "max_catchup", "goes with policy fire_all"),
        ({"catchup_rate": 3}, "catchup_rate", "goes with policy fire_all"),
        ({"policy": "skip", "max_lateness": "1h"}, "max_lateness", "write it as grace"),
        ({"grace": "1h", "max_lateness": "1m"}, "max_lateness", "below the grace of '1h'"),
        ({"max_lateness": "0s"}, "max_lateness", "it must be 10ms or more"),
    ],
)
def test_what_makes_no_sense_is_refused(
    node: Driver, misfire: dict[str, Any], pointer: str, detail: str
) -> None:
    body = {"schedule": {"kind": "after", "duration": "1m"}, "misfire": misfire}
    problem = node.refused("timer.schedule", body)
    assert problem["code"] == "validation"
    assert problem["errors"][0]["pointer"] == f"/misfire/{pointer}"
    assert detail in problem["detail"]


@pytest.mark.parametrize(
    ("misfire", "pointer", "detail"),
    [
        ({"policy": "fire_all", "max_catchup": 0}, "max_catchup", "it must be 1 to 100000"),
        ({"policy": "fire_all", "catchup_rate": 0}, "catchup_rate", "0.2 to 1000 per second"),
        ({"policy": "fire_all", "catchup_rate": 1}, "catchup_rate", "would never catch up"),
    ],
)
def test_a_catch_up_that_makes_no_sense_is_refused(
    node: Driver, misfire: dict[str, Any], pointer: str, detail: str
) -> None:
    body = {"schedule": {"kind": "every", "interval": "500ms"}, "misfire": misfire}
    problem = node.refused("timer.schedule", body)
    assert problem["errors"][0]["pointer"] == f"/misfire/{pointer}"
    assert detail in problem["detail"]
    body["schedule"] = {"kind": "every", "interval": "5s", "mode": "fixed_delay"}
    body["misfire"] = {"policy": "fire_all"}
    assert "fixed_delay misses one fire" in node.refused("timer.schedule", body)["detail"]
