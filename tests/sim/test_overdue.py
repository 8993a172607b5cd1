"""What was overdue at a start is held, reported, and worked off by order: on a whole node."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from edgenode.config import Config, EngineSection, OverdueSection
from edgenode.virtual import DAY_NS, VirtualNode
from tests.sim.driver import SECOND, Driver, fires

HOUR_S = 3600


def driver(hold_above: int = 3, policy: str = "hold") -> Driver:
    made = Driver()
    config = Config(
        engine=EngineSection(horizon=DAY_NS),
        overdue=OverdueSection(hold_above=hold_above, policy=policy),
    )
    made.node = VirtualNode(config=config)
    return made


def down(node: Driver, seconds: float) -> list[list[bytes]]:
    """Killed, and started again after a while; what left live since."""
    node.node.clock.advance(round(seconds * SECOND))
    node.node.restart()
    return node.node.advance(0)


def settle(node: Driver, seconds: float = 20.0) -> list[tuple[str, int]]:
    """Let orders be carried out; (name, occurrence) of what fires."""
    return [(name, k) for name, k, _ in node.pass_(seconds)]


def report(node: Driver, **body: Any) -> dict[str, Any]:
    return node.ask("overdue.report", body)


def tenant(node: Driver, **body: Any) -> dict[str, Any]:
    found: dict[str, Any] = report(node, **body)["tenants"]["default"]
    return found


def kinds(node: Driver) -> list[str]:
    """The log's events by name."""
    events = node.ask("stream.replay", {"from": {}, "limit": 1000})["events"]
    return [event["type"].removeprefix("io.minoots.").removesuffix(".v1") for event in events]


@pytest.fixture
def held() -> Driver:
    """Five one-shots, due after 1 to 5 hours, were overdue at the start at 6 hours."""
    node = driver()
    for hour in range(1, 6):
        node.after(f"{hour}h", f"t{hour}", labels={"even": str(hour % 2 == 0)})
    assert fires(down(node, 6 * HOUR_S)) == []
    return node


# ------------------------------------------------------------------------------- held


def test_up_to_the_limit_nothing_is_held() -> None:
    node = driver(hold_above=5)
    for hour in range(1, 6):
        node.after(f"{hour}h", f"t{hour}")
    assert len(fires(down(node, 6 * HOUR_S))) == 5
    assert report(node)["held"] is False
    assert node.ask("health")["status"] == "ok"


def test_what_is_overdue_is_held_and_all_else_goes_on(held: Driver) -> None:
    assert held.node._loop.recovered.ledger.turned_away == set()  # the wheel has none of them
    assert held.pass_(HOUR_S) == []
    view = held.ask("timer.extend", {"name": "t5", "by": "1s"})  # still before the start
    assert view["state"] == "scheduled"
    held.after("10s", "new")
    armed = held.ask("timer.list", {"filter": {"state": ["armed"]}})["items"]
    assert [item["name"] for item in armed] == ["new"]
    held.every("20s", "grid", max_occurrences=2)
    assert held.pass_(60) == [
        ("new", 1, 7 * HOUR_S + 10.0),
        *(("grid", k, 7 * HOUR_S + 20.0 * k) for k in (1, 2)),
    ]
    assert tenant(held)["count"] == 5


def test_what_comes_due_after_the_start_is_not_held() -> None:
    node = driver()
    for hour in range(1, 9):
        node.after(f"{hour}h", f"t{hour}")
    down(node, 5.5 * HOUR_S)
    assert settle(node, 3 * HOUR_S) == [("t6", 1), ("t7", 1), ("t8", 1)]


def test_the_report_counts_by_age_and_shows_the_oldest(held: Driver) -> None:
    found = report(held, sample=2)
    assert (found["held"], found["count_at_start"], found["since"]) == (
        True,
        5,
        "2027-01-15T14:00:00.000000000Z",
    )
    assert found["why"] == (
        "5 timers came due while no node served; the limit is 3 (overdue.hold_above)"
    )
    facts = found["tenants"]["default"]
    assert (facts["count"], facts["oldest"], facts["newest"]) == (
        5,
        "2027-01-15T09:00:00.000000000Z",
        "2027-01-15T13:00:00.000000000Z",
    )
    assert [(age["older_than"], age["count"]) for age in facts["ages"]] == [("10m", 1), ("1h", 4)]
    assert [timer["name"] for timer in facts["sample"]] == ["t1", "t2"]
    for age in facts["ages"]:  # an age's instants find just what it counts
        bounds = {"due_from": age["due_from"], "due_to": age["due_to"]}
        assert tenant(held, filter=bounds)["count"] == age["count"]
    assert tenant(held, older_than="150m")["count"] == 3
    assert tenant(held, filter={"labels": {"even": "True"}})["count"] == 2
    assert tenant(held, filter={"name_prefix": "t4"})["count"] == 1


def test_stats_health_and_the_log_say_so(held: Driver) -> None:
    health = held.ask("health")
    assert health["status"] == "holding"
    assert "5 timers came due" in health["reason"]
    assert held.ask("stats")["overdue"] == {
        "held": True,
        "why": "5 timers came due while no node served; the limit is 3 (overdue.hold_above)",
        "since": "2027-01-15T14:00:00.000000000Z",
        "count_at_start": 5,
        "fired": 0,
        "skipped": 0,
    }
    assert kinds(held)[-1] == "node.overdue_held"
    events = held.ask("stream.replay", {"from": {}})["events"]
    assert events[-1]["data"]["count"] == 5
    assert [age["count"] for age in events[-1]["data"]["ages"]] == [1, 4]
    view = held.ask("timer.get", {"name": "t1"})
    assert (view["state"], view["due"]) == ("scheduled", "2027-01-15T09:00:00.000000000Z")


def test_what_is_held_is_held_by_the_next_start_too(held: Driver) -> None:
    held.after("1h", "since")
    for _ in range(3):
        live = down(held, HOUR_S)
    assert fires(live) == []
    found = report(held)
    assert (found["since"], found["tenants"]["default"]["count"]) == (
        "2027-01-15T14:00:00.000000000Z",
        5,
    )
    # what came due between was below the limit, so it was fired
    assert kinds(held).count("timer.expired") == 1


def test_more_that_came_due_before_the_next_start_is_held_as_well(held: Driver) -> None:
    for k in range(4):
        held.after("1h", f"more{k}")
    down(held, 2 * HOUR_S)
    assert tenant(held)["count"] == 9
    assert report(held)["why"].startswith("4 timers")


def test_a_client_takes_a_timer_out(held: Driver) -> None:
    held.ask("timer.cancel", {"name": "t1"})
    held.ask("timer.trigger", {"name": "t2"})
    body = {"name": "t3", "schedule": {"kind": "after", "duration": "5s"}}
    held.ask("timer.reschedule", body)
    held.ask("timer.extend", {"name": "t4", "by": "3h"})
    assert tenant(held)["count"] == 1
    assert settle(held, 2 * HOUR_S) == [("t2", 1), ("t3", 1), ("t4", 1)]
    held.ask("timer.pause", {"name": "t5"})
    assert tenant(held)["count"] == 0
    held.ask("timer.resume", {"name": "t5"})
    assert settle(held, 1) == [("t5", 1)]


# ------------------------------------------------------------------------------- a restored log


def test_a_restored_log_holds_any_overdue_timer() -> None:
    node = driver(hold_above=1000)
    node.after("1h", "old")
    node.after("3h", "coming")
    node.node.log._epoch = 2  # what a restore does
    assert fires(down(node, 2 * HOUR_S)) == []
    assert report(node)["why"] == "the log was restored: its epoch is 2 now"
    assert settle(node, 2 * HOUR_S) == [("coming", 1)]
    down(node, 1)  # the same epoch again: held from then, and nothing new
    assert tenant(node)["count"] == 1
    assert node.ask("overdue.fire")["count"] == 1
    assert settle(node) == [("old", 1)]
    assert report(node)["held"] is False


def test_a_restored_log_with_nothing_overdue_holds_nothing() -> None:
    node = driver()
    node.after("3h", "coming")
    node.node.log._epoch = 2
    down(node, HOUR_S)
    assert report(node)["held"] is False


# ------------------------------------------------------------------------------- orders


def test_fire_lets_all_go_late_and_flagged(held: Driver) -> None:
    assert held.ask("overdue.fire", {"dry_run": True}) == {"count": 5}
    assert settle(held) == []
    assert held.ask("overdue.fire") == {"count": 5}
    assert sorted(settle(held)) == [(f"t{k}", 1) for k in range(1, 6)]
    events = held.ask("stream.replay", {"from": {}, "limit": 1000})["events"]
    expired = [e["data"] for e in events if e["type"] == "io.minoots.timer.expired.v1"]
    assert all(data["misfire"] and data["lateness_us"] >= 3_600_000_000 for data in expired)
    assert [kind for kind in kinds(held) if kind.startswith("node.overdue")] == [
        "node.overdue_held",
        "node.overdue_ordered",
        "node.overdue_released",
    ]
    assert events[-1]["data"] == {"fired": 5, "skipped": 0}
    assert (report(held)["held"], held.ask("health")["status"]) == (False, "ok")
    down(held, 60)
    assert report(held)["held"] is False


def test_skip_ends_one_shots_and_lets_grids_go_on() -> None:
    node = driver(hold_above=0)
    made = node.after("1h", "one")
    node.every("1h", "grid")
    down(node, 5.5 * HOUR_S)
    assert node.ask("overdue.skip") == {"count": 2}
    assert settle(node, HOUR_S) == [("grid", 6)]
    view = node.ask("timer.get", {"id": made["id"]})
    assert (view["state"], view["state_reason"]) == ("completed", "misfire")
    events = node.ask("stream.replay", {"from": {}, "limit": 1000})["events"]
    skipped = [e["data"] for e in events if e["type"] == "io.minoots.timer.skipped.v1"]
    assert sorted((d["name"], d["count"], d["reason"]) for d in skipped) == [
        ("grid", 5, "operator"),
        ("one", 1, "operator"),
    ]
    assert report(node)["held"] is False


def test_each_does_as_its_own_policy_says_when_it_is_let_go() -> None:
    node = driver(hold_above=0)
    for policy in ("skip", "escalate"):
        node.after("1h", policy, misfire={"policy": policy})
    node.every("1h", "all", misfire={"policy": "fire_all"})
    down(node, 3.5 * HOUR_S)
    assert settle(node) == []
    assert node.ask("overdue.fire") == {"count": 3}
    assert settle(node) == [("escalate", 1), ("all", 1), ("all", 2), ("all", 3)]
    assert kinds(node).count("timer.skipped") == 1
    assert kinds(node).count("timer.escalated") == 1
    assert report(node)["held"] is False
    assert settle(node, HOUR_S) == [("all", 4)]


def test_orders_by_age_and_filter_leave_the_rest(held: Driver) -> None:
    assert held.ask("overdue.skip", {"older_than": "4h"}) == {"count": 1}
    assert held.ask("overdue.fire", {"filter": {"labels": {"even": "True"}}}) == {"count": 2}
    assert sorted(settle(held)) == [("t2", 1), ("t4", 1)]
    found = report(held)
    assert (found["fired"], found["skipped"]) == (2, 1)
    assert [timer["name"] for timer in found["tenants"]["default"]["sample"]] == ["t3", "t5"]
    assert held.ask("overdue.fire") == {"count": 2}
    assert sorted(settle(held)) == [("t3", 1), ("t5", 1)]
    assert report(held)["held"] is False


def test_the_hold_ends_with_its_last_timer(held: Driver) -> None:
    held.ask("overdue.fire", {"older_than": "2h30m"})
    settle(held)
    held.ask("overdue.skip", {"filter": {"name_prefix": "t"}})
    settle(held)
    assert report(held)["held"] is False


def test_an_order_keeps_its_rate(held: Driver) -> None:
    held.ask("overdue.fire", {"rate": 0.5})
    began = 6 * HOUR_S
    held.after("3s", "other")
    found = held.pass_(30)
    assert [round(at - began) for name, _, at in found if name != "other"] == [0, 2, 4, 6, 8]
    assert ("other", 1, began + 3.0) in found


def test_an_order_goes_on_after_a_kill(held: Driver) -> None:
    held.ask("overdue.fire", {"rate": 0.5})
    before = [name for name, _, _ in held.pass_(3)]
    assert len(before) == 2
    after = [name for name, _, _ in fires(down(held, 0))]
    after += [name for name, _ in settle(held)]
    assert sorted({*before, *after}) == ["t1", "t2", "t3", "t4", "t5"]
    assert report(held)["held"] is False


def test_many_are_worked_off_a_few_at_a_time() -> None:
    node = driver(hold_above=100)
    for at in range(0, 3000, 1000):
        timers = [
            {"name": f"n{k}", "schedule": {"kind": "after", "duration": f"{k + 1}s"}}
            for k in range(at, at + 1000)
        ]
        node.ask("timer.schedule_many", {"timers": timers})
    down(node, 2 * HOUR_S)
    assert tenant(node)["count"] == 3000
    assert node.ask("overdue.fire") == {"count": 3000}
    assert sorted(settle(node)) == sorted((f"n{k}", 1) for k in range(3000))
    assert report(node)["held"] is False


def test_a_catch_up_that_was_let_go_goes_on_after_a_kill() -> None:
    node = driver(hold_above=0)
    node.every("1h", "all", misfire={"policy": "fire_all", "catchup_rate": 0.5})
    node.after("1h", "other")
    down(node, 5.5 * HOUR_S)
    node.ask("overdue.fire", {"filter": {"name_prefix": "all"}})
    first = settle(node, 3)
    assert first == [("all", 1), ("all", 2)]
    again = [(name, k) for name, k, _ in fires(down(node, 0))] + settle(node)
    assert sorted({*first, *again}) == [("all", k) for k in range(1, 6)]
    assert report(node)["orders"] == []
    assert tenant(node)["count"] == 1


@pytest.mark.parametrize("steps", range(12))
def test_what_comes_in_amid_a_look_is_not_lost(steps: int) -> None:
    """Resumed at a due before the start, at each moment until the hold has ended."""
    node = driver(hold_above=0)
    node.after("1h", "t")
    at = {"kind": "at", "instant": "2027-01-15T09:00:00Z"}
    node.schedule("at", schedule=at)
    node.ask("timer.pause", {"name": "at"})
    down(node, 2 * HOUR_S)
    node.ask("overdue.fire")
    for _ in range(steps):
        node.node._loop.step()
    node.ask("timer.resume", {"name": "at"})
    found = settle(node)
    assert found.count(("at", 1)) == 1
    assert report(node)["held"] is False


def test_the_same_key_orders_once(held: Driver) -> None:
    first = held.ask("overdue.fire", {"older_than": "3h"}, idem="k")
    settle(held)
    again = held.ask("overdue.fire", {"older_than": "3h"}, idem="k")
    assert again == first | {"replayed": True}


@pytest.mark.parametrize(
    ("op", "body", "detail"),
    [
        ("overdue.fire", {"rate": 0}, "rate is 0; it must be 0.1 to 100000 per second"),
        ("overdue.skip", {"older_than": "old"}, "older_than"),
        ("overdue.skip", {"filter": {"state": ["paused"]}}, "all that is held is scheduled"),
        ("overdue.fire", {"filter": {"due_to": "noon"}}, "noon"),
        ("overdue.report", {"sample": 101}, "it must be 0 to 100"),
    ],
)
def test_what_makes_no_sense_is_refused(
    held: Driver, op: str, body: dict[str, Any], detail: str
) -> None:
    problem = held.refused(op, body)
    assert problem["code"] == "validation"
    assert detail in problem["detail"]
    assert tenant(held)["count"] == 5


# ------------------------------------------------------------------------------- configured


def test_policy_fire_never_holds() -> None:
    node = driver(policy="fire")
    for k in range(9):
        node.after("1h", f"t{k}")
    node.node.log._epoch = 2
    assert len(fires(down(node, 2 * HOUR_S))) == 9


def test_a_policy_that_is_changed_holds_for_what_is_held() -> None:
    for policy, kind in (("skip", "timer.skipped"), ("fire", "timer.expired")):
        node = driver()
        for k in range(9):
            node.after("1h", f"t{k}")
        down(node, 2 * HOUR_S)
        node.node._config = driver(policy=policy).node._config
        live = down(node, 60)
        settle(node)
        assert (len(fires(live)) > 0) == (policy == "fire")
        assert kinds(node).count(kind) == 9
        assert report(node)["held"] is False


def test_policy_skip_skips_what_would_be_held() -> None:
    node = driver(policy="skip")
    for k in range(9):
        node.after("1h", f"t{k}")
    node.after("3h", "coming")
    down(node, 2 * HOUR_S)
    assert settle(node, 2 * HOUR_S) == [("coming", 1)]
    assert kinds(node).count("timer.skipped") == 9
    assert report(node)["held"] is False


# ------------------------------------------------------------------------------- clocks


def test_a_clock_in_doubt_is_in_the_report_and_its_timers_wait() -> None:
    node = driver(hold_above=0)
    node.schedule("at", schedule={"kind": "at", "instant": "2027-01-15T09:00:00Z"})
    node.schedule("far", schedule={"kind": "at", "instant": "2027-01-17T09:00:00Z"})
    node.after("1h", "after")
    down(node, 2 * HOUR_S)
    node.node.step_utc(4 * 86_400 * SECOND)
    found = report(node)
    assert found["clock"] == {
        "held": True,
        "held_by_ns": 4 * 86_400 * SECOND,
        "due_if_accepted": 1,
    }
    assert node.ask("overdue.fire") == {"count": 2}
    assert settle(node) == [("after", 1)]
    assert report(node)["held"] is True
    node.ask("time.accept")
    assert sorted(settle(node)) == [("at", 1), ("far", 1)]
    assert report(node)["held"] is False


def test_a_wall_clock_that_is_set_does_not_add_to_what_is_held() -> None:
    node = driver(hold_above=0)
    node.schedule("at", schedule={"kind": "at", "instant": "2027-01-15T10:20:00Z"})
    node.after("1h", "after")
    down(node, 2 * HOUR_S)
    node.node.step_utc(1800 * SECOND)
    assert settle(node, 1) == [("at", 1)]
    assert tenant(node)["count"] == 1


def test_the_note_is_read_as_it_was_written(held: Driver) -> None:
    held.ask("overdue.fire", {"rate": 0.1, "filter": {"name_prefix": "t5"}})
    (order,) = report(held)["orders"]
    assert order == {"word": "fire", "filter": {"name_prefix": "t5"}, "rate": 0.1, "count": 1}
    data = held.ask("stream.replay", {"from": {}, "filter": {"types": ["node.overdue_ordered"]}})
    assert orjson.dumps(data["events"][0]["data"]) == orjson.dumps(order)
