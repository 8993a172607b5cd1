"""Herd shaping: the due moves later inside its window, as the mode says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from minoots.wire.times import parse_instant
from tests.sim.driver import SECOND, START, Driver


@pytest.fixture
def node() -> Driver:
    return Driver()


def herd(count: int, window: str, mode: str, **more: Any) -> dict[str, Any]:
    schedule = more.pop("schedule", {"kind": "after", "duration": "10m"})
    timers = [
        {"name": f"n{k}", "schedule": schedule, "spread": {"window": window, "mode": mode}, **more}
        for k in range(count)
    ]
    return {"timers": timers}


def dues(results: list[dict[str, Any]]) -> list[float]:
    """Seconds from START."""
    return [(parse_instant(view["due"]) - START) / SECOND for view in results]


@pytest.mark.parametrize("mode", ["random", "hashed", "emptiest"])
def test_a_herd_is_spread_over_its_window(node: Driver, mode: str) -> None:
    results = node.ask("timer.schedule_many", herd(640, "64s", mode))["results"]
    found = dues(results)
    assert min(found) >= 600
    assert max(found) < 664
    assert results[0]["spread"] == {"window": "64s", "mode": mode}
    heaviest = max(Counter(int(due) for due in found).values())
    assert heaviest <= (10 if mode == "emptiest" else 30)
    fired = node.pass_(700)
    assert sorted(at for _, _, at in fired) == pytest.approx(sorted(found))


def test_random_is_the_nodes_own_and_hashed_follows_from_the_name() -> None:
    random = [dues(Driver(seed).ask("timer.schedule_many", herd(9, "1h", "random"))["results"])
              for seed in (1, 1, 2)]  # fmt: skip
    assert random[0] == random[1] != random[2]
    hashed = [dues(Driver(seed).ask("timer.schedule_many", herd(9, "1h", "hashed"))["results"])
              for seed in (1, 2)]  # fmt: skip
    assert hashed[0] == hashed[1]
    by_key = Driver().after("10m", name="n0", key="k", spread={"window": "1h", "mode": "hashed"})
    assert dues([by_key]) != hashed[0][:1]
    again = Driver().after("10m", name="x", key="k", spread={"window": "1h", "mode": "hashed"})
    assert dues([by_key]) == dues([again])


def test_emptiest_goes_where_the_fewest_are_due(node: Driver) -> None:
    """Both scales, in the tables and newer than they: all but the seconds 20 to 30 are taken."""
    busy = [{"schedule": {"kind": "after", "duration": f"{600 + s}s"}}
            for s in range(64) if not 20 <= s < 30]  # fmt: skip
    node.ask("timer.schedule_many", {"timers": busy})
    node.ask("timer.list")
    wall = [{"schedule": {"kind": "at", "instant": f"2027-01-15T08:10:{20 + s}Z"}}
            for s in range(5)]  # fmt: skip
    node.ask("timer.schedule_many", {"timers": wall})
    results = node.ask("timer.schedule_many", herd(5, "64s", "emptiest"))["results"]
    assert dues(results) == [625, 626, 627, 628, 629]
    one = node.after("10m", spread={"window": "64s", "mode": "emptiest"})
    assert dues([one]) == [600.5], "every slot has one: the first, between"


def test_emptiest_is_the_same_when_asked_again_and_after_a_restart() -> None:
    def story(restart: bool) -> list[float]:
        node = Driver()
        node.ask("timer.schedule_many", herd(100, "64s", "emptiest"))
        if restart:
            node.node.restart()
        return dues(node.ask("timer.schedule_many", herd(100, "64s", "emptiest"))["results"])

    first = story(restart=False)
    assert first == story(restart=False)
    seconds = Counter(int(due) for due in story(restart=True))
    assert seconds == Counter(int(due) for due in first)


def test_counts_are_taken_anew(node: Driver) -> None:
    node.ask("timer.schedule_many", herd(64, "64s", "emptiest"))
    node.ask("timer.cancel_many", {"filter": {"name_prefix": "n7"}})
    at = {"kind": "at", "instant": "2027-01-15T08:10:00Z"}
    spread = {"window": "64s", "mode": "emptiest"}
    assert int(dues([node.schedule(schedule=at, spread=spread)])[0]) == 600
    node.pass_(6)
    assert int(dues([node.schedule(schedule=at, spread=spread)])[0]) == 607


def test_a_recurring_timer_is_moved_once_with_its_grid(node: Driver) -> None:
    view = node.every("60s", spread={"window": "30s", "mode": "hashed"})
    offset = dues([view])[0] - 60
    assert 0 < offset < 30
    assert [at for _, _, at in node.pass_(210)] == pytest.approx(
        [60 + offset, 120 + offset, 180 + offset]
    )


def test_reschedule_spreads_again_as_the_definition_says(node: Driver) -> None:
    view = node.after("10m", spread={"window": "1h", "mode": "hashed"})
    offset = dues([view])[0] - 600
    schedule = {"kind": "after", "duration": "20m"}
    moved = node.ask("timer.reschedule", {"id": view["id"], "schedule": schedule})
    assert dues([moved]) == pytest.approx([1200 + offset])


def test_the_window_ends_where_the_timer_expires(node: Driver) -> None:
    for seed in range(20):
        view = node.after(
            "10m",
            name=str(seed),
            expires_at="2027-01-15T08:10:01Z",
            spread={"window": "1h", "mode": "hashed"},
        )
        assert 600 <= dues([view])[0] < 601


def test_an_idempotent_repeat_draws_no_second_time(node: Driver) -> None:
    body = {
        "schedule": {"kind": "after", "duration": "1h"},
        "spread": {"window": "1h", "mode": "random"},
    }
    first = node.ask("timer.schedule", body, idem="a")
    node.node.restart()
    assert node.ask("timer.schedule", body, idem="a")["due"] == first["due"]


@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({"spread": {"window": "1h", "mode": "nope"}}, "/spread/mode"),
        ({"spread": {"window": "soon"}}, "/spread/window"),
        ({"spread": {"window": "31d"}}, "/spread/window"),
        ({"spread": {"window": "0s"}}, "/spread/window"),
        ({"spread": {"window": "1h", "mode": "hashed"}, "name": ""}, "/spread/mode"),
        (
            {"spread": {"window": "2m"}, "schedule": {"kind": "every", "interval": "1m"}},
            "/spread/window",
        ),
    ],
)
def test_bad_spreads_are_refused(node: Driver, members: dict[str, Any], pointer: str) -> None:
    body = {"name": "t", "schedule": {"kind": "after", "duration": "1h"}, **members}
    problem = node.refused("timer.schedule", body)
    assert (problem["code"], problem["errors"][0]["pointer"]) == ("validation", pointer)
    assert node.ask("stats")["timers"]["pending"] == 0
