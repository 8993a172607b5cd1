"""What timers do, on a whole node in virtual time."""

from __future__ import annotations

import pytest

from edgenode.config import Config, EngineSection
from edgenode.virtual import VirtualNode
from tests.sim.driver import SECOND, Driver, fires

AT = "2027-01-15T08:"  # the virtual node starts at 08:00:00


@pytest.fixture
def node() -> Driver:
    return Driver()


def test_after_fires_once_at_its_instant(node: Driver) -> None:
    made = node.after("90s", "tea", payload={"say": "ready"}, labels={"team": "ops"})
    assert made["due"] == AT + "01:30.000000000Z"
    assert node.pass_(89.999) == []
    assert node.pass_(0.001) == [("tea", 1, 90.0)]
    assert node.pass_(1e6) == []
    ended = node.ask("timer.get", {"id": made["id"]})
    assert (ended["state"], ended["payload"]) == ("completed", {"say": "ready"})


def test_at_fires_at_the_wall_clock(node: Driver) -> None:
    node.schedule("standup", schedule={"kind": "at", "instant": AT + "10:00.25Z"})
    assert node.pass_(3600) == [("standup", 1, 600.25)]


def test_at_moves_with_the_wall_clock_and_after_does_not(node: Driver) -> None:
    node.schedule("at", schedule={"kind": "at", "instant": AT + "10:00Z"})
    node.after("10m", "after")
    node.node.step_utc(300 * SECOND)
    live = node.node.advance(299 * SECOND)
    assert fires(live) == []
    assert fires(node.node.advance(SECOND)) == [("at", 1, 600.0)]
    # five minutes later by the clock that nothing steps, fifteen past by the one that was set
    assert node.pass_(299) == []
    assert node.pass_(1) == [("after", 1, 900.0)]


def test_a_step_of_the_wall_clock_is_an_event(node: Driver) -> None:
    node.node.step_utc(-3600 * SECOND)
    events = node.ask("stream.replay", {"from": {}})["events"]
    assert [e["data"] for e in events if "clock_stepped" in e["type"]] == [
        {"by_ns": -3600 * SECOND}
    ]


def test_every_is_exact_after_many_periods(node: Driver) -> None:
    node.every("7s", "beat", max_occurrences=5000)
    found = node.pass_(7 * 5000 + 100)
    assert found == [("beat", k, 7.0 * k) for k in range(1, 5001)]


def test_every_begins_at_an_anchor_ahead(node: Driver) -> None:
    node.every("1h", "hourly", anchor=AT + "30:00Z")
    assert node.pass_(3 * 3600) == [("hourly", k, 1800.0 + 3600 * (k - 1)) for k in (1, 2, 3)]


def test_every_keeps_to_the_grid_of_an_anchor_past(node: Driver) -> None:
    node.every("1h", "hourly", anchor="2020-01-01T00:10:00Z")
    assert node.pass_(2 * 3600) == [("hourly", 1, 600.0), ("hourly", 2, 4200.0)]


def test_every_fixed_delay_goes_on_from_the_fire(node: Driver) -> None:
    node.every("10s", "poll", mode="fixed_delay", max_occurrences=3)
    assert node.pass_(100) == [("poll", 1, 10.0), ("poll", 2, 20.0), ("poll", 3, 30.0)]


def test_every_ends_at_expires_at(node: Driver) -> None:
    made = node.every("60s", "m", expires_at=AT + "03:00Z")
    assert node.pass_(600) == [("m", 1, 60.0), ("m", 2, 120.0)]
    view = node.ask("timer.get", {"id": made["id"]})
    assert (view["state"], view["state_reason"]) == ("completed", "expires_at")


def test_missed_occurrences_fire_once_flagged(node: Driver) -> None:
    node.every("60s", "m")
    node.pass_(60)
    node.node.clock.advance(1000 * SECOND)  # nobody ran the node meanwhile
    live = node.node.advance(0)
    assert [(n, k) for n, k, _ in fires(live)] == [("m", 2)]
    assert b'"misfire":true' in live[-1][2]
    assert node.pass_(20) == [("m", 18, 1080.0)]


def test_cancelled_never_fires(node: Driver) -> None:
    made = node.after("60s")
    view = node.ask("timer.cancel", {"id": made["id"]})
    assert (view["state"], view["revision"]) == ("cancelled", 2)
    assert node.pass_(3600) == []
    assert node.refused("timer.cancel", {"id": made["id"]})["code"] == "already_terminal"


def test_reschedule_replaces_the_schedule(node: Driver) -> None:
    made = node.after("60s")
    body = {"id": made["id"], "schedule": {"kind": "every", "interval": "20s"}}
    view = node.ask("timer.reschedule", body)
    assert view["due"] == AT + "00:20.000000000Z"
    assert node.pass_(65) == [("t", 1, 20.0), ("t", 2, 40.0), ("t", 3, 60.0)]


def test_reschedule_never_repeats_an_occurrence(node: Driver) -> None:
    made = node.every("10s")
    assert node.pass_(25) == [("t", 1, 10.0), ("t", 2, 20.0)]
    body = {"id": made["id"], "schedule": {"kind": "every", "interval": "1m"}}
    node.ask("timer.reschedule", body)
    assert node.pass_(130) == [("t", 3, 85.0), ("t", 4, 145.0)]


def test_extend_moves_the_due_and_the_grid(node: Driver) -> None:
    one, many = node.after("60s", "one"), node.every("60s", "many", max_occurrences=2)
    node.ask("timer.extend", {"id": one["id"], "by": "5s"})
    node.ask("timer.extend", {"id": many["id"], "by": "1s"})
    assert node.pass_(200) == [("many", 1, 61.0), ("one", 1, 65.0), ("many", 2, 121.0)]


def test_pause_keeps_the_time_that_was_left(node: Driver) -> None:
    made = node.after("60s")
    node.pass_(20)
    view = node.ask("timer.pause", {"id": made["id"]})
    assert (view["state"], view["remaining"]) == ("paused", "40s")
    assert node.pass_(1000) == []
    node.ask("timer.resume", {"id": made["id"]})
    assert node.pass_(100) == [("t", 1, 1060.0)]


def test_resume_puts_a_fixed_rate_timer_back_on_its_grid(node: Driver) -> None:
    made = node.every("60s")
    node.pass_(60)
    node.ask("timer.pause", {"id": made["id"]})
    node.pass_(200)
    node.ask("timer.resume", {"id": made["id"]})
    assert node.pass_(101) == [("t", 2, 300.0), ("t", 3, 360.0)]


def test_pausing_twice_and_resuming_twice_change_nothing(node: Driver) -> None:
    made = node.after("60s")
    assert node.ask("timer.resume", {"id": made["id"]})["revision"] == 1
    node.ask("timer.pause", {"id": made["id"]})
    assert node.ask("timer.pause", {"id": made["id"]})["revision"] == 2


def test_trigger_fires_now_and_keeps_the_grid(node: Driver) -> None:
    one, many = node.after("1h", "one"), node.every("60s", "many", max_occurrences=3)
    node.pass_(30)
    node.ask("timer.trigger", {"id": one["id"]})
    node.ask("timer.trigger", {"id": many["id"]})
    assert node.pass_(300) == [
        ("one", 1, 30.0),
        ("many", 1, 30.0),
        ("many", 2, 60.0),
        ("many", 3, 120.0),
    ]
    assert node.ask("timer.get", {"id": one["id"]})["state_reason"] == "triggered"


def test_restart_keeps_what_was_acknowledged(node: Driver) -> None:
    made = [node.after(f"{k}m", f"t{k}") for k in range(1, 20)]
    node.pass_(5 * 60 + 1)
    node.node.restart()
    for view in made[5:]:
        assert node.ask("timer.get", {"id": view["id"]})["state"] in ("scheduled", "armed")
    assert node.pass_(3600) == [(f"t{k}", 1, 60.0 * k) for k in range(6, 20)]


def test_due_while_down_fires_at_once_late_and_flagged(node: Driver) -> None:
    made = node.after("60s")
    node.node.clock.advance(300 * SECOND)
    node.node.restart()
    live = node.node.advance(0)
    assert [(n, k) for n, k, _ in fires(live)] == [("t", 1)]
    assert b'"misfire":true' in live[-1][2]
    assert made["id"].encode() in live[-1][2]


def test_committed_but_not_released_is_released_with_its_seq(node: Driver) -> None:
    node.after("60s")
    node.node.advance(60 * SECOND - 1_000_000)  # inside the lead: committed, not yet released
    before = node.ask("stats")["log"]
    node.node.restart()
    assert node.pass_(0.01) == [("t", 1, 60.0)]
    events = node.ask("stream.replay", {"from": {}})["events"]
    expired = [e for e in events if e["type"] == "io.minoots.timer.expired.v1"]
    assert len(expired) == 1
    assert int(expired[0]["sequence"]) == before["seq"]


def test_cancel_inside_the_lead_is_too_late(node: Driver) -> None:
    made = node.after("60s")
    node.node.advance(60 * SECOND - 1_000_000)
    assert node.ask("timer.get", {"id": made["id"]})["state"] == "firing"
    assert node.refused("timer.cancel", {"id": made["id"]})["code"] == "already_terminal"
    assert node.pass_(1) == [("t", 1, 60.0)]


def test_an_expiration_is_not_shown_before_its_instant(node: Driver) -> None:
    made = node.after("60s")
    node.node.advance(60 * SECOND - 1_000_000)
    replayed = node.ask("stream.replay", {"from": {}})
    assert [e["type"] for e in replayed["events"]] == ["io.minoots.timer.scheduled.v1"]
    assert replayed["end"] is True
    history = node.ask("timer.history", {"id": made["id"]})["events"]
    assert len(history) == 1


def test_a_year_of_a_daily_timer(node: Driver) -> None:
    node.every("1d", "daily")
    found = node.pass_(365 * 86_400)
    assert found == [("daily", k, 86_400.0 * k) for k in range(1, 366)]


def test_a_lead_that_shrinks_does_not_hold_the_wheel(node: Driver) -> None:
    loop = node.node._loop
    node.after("50ms")
    for lead_ns in (40_000_000, 2_000_000, 20_000_000, 2_000_000):
        loop.node.lead_ns = lead_ns
        node.node.advance(1_000_000)
    assert node.pass_(1) == [("t", 1, 0.05)]


def test_a_step_while_nobody_watched_is_told_at_the_start(node: Driver) -> None:
    node.schedule("at", schedule={"kind": "at", "instant": AT + "10:00Z"})
    node.node.clock.step_utc(300 * SECOND)
    node.node.restart()
    assert node.pass_(300) == [("at", 1, 600.0)]
    events = node.ask("stream.replay", {"from": {}})["events"]
    assert [e["data"] for e in events if "clock_stepped" in e["type"]] == [{"by_ns": 300 * SECOND}]


def test_after_a_restart_what_is_armed_is_on_the_wheel_and_not_in_its_heap_for_far_timers() -> None:
    driver = Driver()
    for k in range(100):
        driver.after(f"{k + 1}m")
    driver.node.restart()
    wheel = driver.node._loop.recovered.ledger.hot.wheel.stats()
    assert (wheel["live"], wheel["far"]) == (100, 0)


def test_what_the_tables_take_over_while_a_stretch_is_read_is_armed() -> None:
    """A stretch is read page by page. What was not in the tables at its first page is in the hot
    set at its last, though the tables have caught up with it in between."""
    config = Config(engine=EngineSection(horizon=10 * SECOND))
    driver = Driver()
    driver.node = node = VirtualNode(config=config)
    driver.after("10500ms", "beyond")
    node.clock.advance(2 * SECOND)
    loop = node._loop
    loop.step()
    assert loop.recovered.horizon.is_opening
    node.tables.follow(loop.recovered.ledger.settled_seq, loop.settled_commit, now=True)
    loop.step()
    loop.step()
    assert not loop.recovered.horizon.is_opening
    assert driver.pass_(10) == [("beyond", 1, 10.5)]
