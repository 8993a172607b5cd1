"""On the instant: late events, herds, no room, overload: nothing lost, order kept, all told."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from edgenode.config import Config, EngineSection, LimitsSection
from edgenode.principal import LOCAL
from edgenode.virtual import DAY_NS, VirtualNode
from tests.sim.driver import SECOND, Driver, fires

MS = 1_000_000


def timers(count: int, first_ms: int, step_ms: int = 0) -> list[dict[str, Any]]:
    """Named by their number, due `first_ms` and then each `step_ms` after the one before."""
    dues = [first_ms + k * step_ms for k in range(count)]
    return [
        {"name": f"{k}", "schedule": {"kind": "after", "duration": f"{due}ms"}}
        for k, due in enumerate(dues)
    ]


def late_by(driver: Driver, ns: int) -> list[list[bytes]]:
    """Have the node do nothing for a while, as on a machine that is overloaded."""
    driver.node.clock.advance(ns)
    return driver.node.advance(SECOND)


def late_events(live: list[list[bytes]]) -> list[dict[str, Any]]:
    return [orjson.loads(body) for topic, _, body in live if b"/e/timer.late/" in topic]


def history(driver: Driver, id: str) -> list[str]:
    events = driver.ask("timer.history", {"id": id})["events"]
    return [event["type"].split(".")[3] for event in events]


def test_what_is_later_than_its_budget_is_told_and_counted() -> None:
    driver = Driver()
    made = driver.after("10s", "strict", lateness_budget="5ms")
    driver.after("10s", "easy", lateness_budget="1h")
    driver.after("10s", "any")
    (event,) = late_events(late_by(driver, 11 * SECOND))
    assert event["subject"] == made["id"]
    assert event["type"] == "io.minoots.timer.late.v1"
    data = event["data"]
    assert data["lateness_us"] == 1_000_000
    assert data["due"] == made["due"]
    assert data["fired"] == event["time"] == "2027-01-15T08:00:11.000000000Z"
    assert data["state"] == "completed"
    assert event["dedupekey"] == f"default/{made['id']}/1"
    assert driver.ask("stats")["fires"]["over_budget"] == {"default": 1}
    assert history(driver, made["id"]) == ["scheduled", "expired", "late"]
    assert driver.ask("timer.get", {"id": made["id"]})["lateness_budget"] == "5ms"


def test_late_events_of_a_recurring_timer_change_nothing_of_it() -> None:
    driver = Driver()
    made = driver.every("10s", "r", lateness_budget="1ms")
    (event,) = late_events(late_by(driver, 10 * SECOND + 2 * MS))
    assert event["data"]["lateness_us"] == 2_000
    view = driver.ask("timer.get", {"id": made["id"]})
    assert (view["revision"], view["occurrence"], view["state"]) == (2, 2, "armed")
    assert [round(when, 3) for _, _, when in driver.pass_(19.5)] == [20.0, 30.0]
    driver.ask("timer.cancel", {"id": made["id"]}, if_match=view["revision"] + 2)
    assert driver.ask("stats")["fires"]["over_budget"] == {"default": 1}


def test_a_late_event_survives_the_tables_and_a_restart() -> None:
    driver = Driver()
    made = driver.after("10s", "strict", lateness_budget="1us")
    driver.node._follow(1 << 62)
    late_by(driver, 11 * SECOND)
    for _ in range(2):
        driver.node._follow(1 << 62)
        driver.node.restart()
        assert history(driver, made["id"]) == ["scheduled", "expired", "late"]
        assert driver.ask("stats")["timers"]["pending"] == 0


@pytest.mark.parametrize(
    ("text", "says"), [("soon", "duration is 'soon'"), ("10ns", "the range is 1us to 4w2d")]
)
def test_an_impossible_budget_is_refused(text: str, says: str) -> None:
    schedule = {"kind": "after", "duration": "1s"}
    body = {"schedule": schedule, "lateness_budget": text}
    problem = Driver().refused("timer.schedule", body)
    assert problem["code"] == "validation"
    assert says in problem["detail"]
    assert problem["errors"][0]["pointer"] == "/lateness_budget"


def begins_early_ns(driver: Driver, cost_ns: int) -> int:
    """How long before the first due the node begins to decide, if a fire costs so much."""
    node = driver.node._loop.node
    node.fire_cost_ns = cost_ns
    tick, begin_ns = node.ledger.hot.next_tick(), node.next_fire_ns()
    assert tick is not None
    assert begin_ns is not None
    return tick * (1 << 20) - begin_ns


def test_a_herd_is_begun_earlier_by_what_it_takes() -> None:
    driver = Driver()
    for _ in range(3):
        driver.ask("timer.schedule_many", {"timers": timers(1_000, 3_000)})
    assert begins_early_ns(driver, 20_000) == 2 * MS + 3_000 * 20_000
    assert begins_early_ns(driver, 900_000) == 2_000 * MS  # herd_max
    assert len(driver.pass_(4)) == 3_000


def test_spread_evenly_nothing_is_begun_earlier() -> None:
    driver = Driver()
    driver.ask("timer.schedule_many", {"timers": timers(1_000, 1_000, 5)})
    assert begins_early_ns(driver, 100_000) == 2 * MS + 100_000


def test_without_room_in_the_pulse_fires_wait_and_none_is_lost() -> None:
    driver = Driver()
    driver.node.pulse._room = 10
    driver.ask("timer.schedule_many", {"timers": timers(100, 5_000)})
    fired = driver.pass_(6)
    assert sorted(int(name) for name, *_ in fired) == list(range(100))
    assert driver.ask("stats")["fires"]["total"] == 100


def test_creates_are_slowed_before_fires_are() -> None:
    driver = Driver()
    engine = EngineSection(horizon=DAY_NS, overload_after=MS)
    driver.node = VirtualNode(config=Config(engine=engine, limits=LimitsSection(inbox_max=16)))
    for _ in range(2):
        driver.ask("timer.schedule_many", {"timers": timers(600, 5_000)})
    driver.node.clock.advance(6 * SECOND)  # more is due than one pass decides, and late already
    loop, doors = driver.node._loop, driver.node._doors
    loop.step()
    assert loop.node.fires_behind
    body = b'{"name":"new","schedule":{"kind":"after","duration":"1h"}}'
    for k in range(20):
        frames = (b"peer", b"MZP1", b"Q", b"%d" % k, b'{"op":"timer.schedule"}', body)
        loop.node.accept(0, frames, LOCAL)
    refused = [each for each in loop.recovered.ledger.answers if each.frames[2] == b"E"]
    assert len(refused) == 4
    problem = orjson.loads(refused[0].frames[5])
    assert (problem["code"], problem["retry_after_ms"]) == ("overloaded", 1_000)
    assert "for fires that are behind" in problem["detail"]
    assert len(fires(driver.node.advance(SECOND))) == 1_200
    # Those that waited were decided once the fires were through.
    assert [frames[1] for frames in doors.outbox].count(b"R") == 16
    doors.outbox.clear()
    assert driver.ask("stats")["timers"]["pending"] == 16


def test_order_is_kept_while_it_is_behind() -> None:
    driver = Driver()
    driver.ask("timer.schedule_many", {"timers": timers(900, 5_000, -2)})
    driver.node.clock.advance(6 * SECOND)
    names = [int(name) for name, *_ in fires(driver.node.advance(SECOND))]
    assert names == list(range(899, -1, -1))
