"""timeline.bins against what really fires."""

from __future__ import annotations

from collections import Counter
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgenode.forecast import Grid, add_dues
from engine import schedule as rules
from engine.schedule import Occurrence, Rule
from minoots.wire.times import format_instant
from tests.sim.driver import SECOND, START, Driver


@pytest.fixture
def node() -> Driver:
    return Driver()


def at(seconds: float) -> str:
    return format_instant(START + round(seconds * SECOND))


def bins(node: Driver, to: float, bin: str, **more: Any) -> dict[str, Any]:
    return node.ask("timeline.bins", {"to": at(to), "bin": bin, **more})


def fill(node: Driver) -> None:
    for k in range(40):
        node.after(f"{k * 7}s", labels={"team": "ab"[k % 2]})
    node.every("3s", labels={"team": "b"})
    node.every("500ms", max_occurrences=100)
    node.every("10s", expires_at=at(65))
    node.every("7s", mode="fixed_delay", labels={"team": "c"})
    node.every("1m", anchor=at(25))
    node.schedule(schedule={"kind": "at", "instant": at(59.5)})
    paused = node.after("30s")
    node.ask("timer.pause", {"id": paused["id"]})
    node.ask("timer.cancel", {"id": node.after("31s")["id"]})


@pytest.mark.parametrize("width", [1, 10, 60])
def test_it_says_what_then_fires(node: Driver, width: int) -> None:
    fill(node)
    node.pass_(4)  # some are in the tables, some have fired
    node.ask("timer.list")
    node.after("90s", name="newest")
    told = bins(node, 124, f"{width}s", **{"from": at(4)})
    fired = Counter(int(fired_s - 4) // width for _, _, fired_s in node.pass_(120) if fired_s < 124)
    assert told["bins"] == [fired[k] for k in range(120 // width)]
    assert told["total"] == sum(fired.values()) > 100
    assert (told["from"], told["to"]) == (at(4), at(124))
    assert told["bin"] == {1: "1s", 10: "10s", 60: "1m"}[width]


def test_by_label(node: Driver) -> None:
    fill(node)
    told = bins(node, 60, "minute", by="team")
    assert [(g["value"], g["total"]) for g in told["groups"]] == [
        (None, 107), ("b", 23), ("c", 8), ("a", 4)]  # fmt: skip
    assert sum(g["total"] for g in told["groups"]) == told["total"]
    assert "others" not in told
    only = bins(node, 60, "minute", filter={"labels": {"team": "b"}})
    assert only["total"] == 23
    assert bins(node, 60, "minute", filter={"state": ["paused"]})["total"] == 0


def test_values_beyond_those_that_are_kept_apart_are_others(node: Driver) -> None:
    for k in range(40):
        node.after("30s", labels={"k": str(k)})
    told = bins(node, 60, "minute", by="k")
    assert (len(told["groups"]), told["others"]["total"], told["total"]) == (32, 8, 40)


def test_a_change_while_it_counts_is_seen(node: Driver) -> None:
    """The last timer moves away between two slices of the scan; the tables still have it there."""
    ids = [node.after("30s")["id"] for _ in range(300)]
    node.ask("timer.list")
    asked = node.frames("timeline.bins", {"to": at(60)})
    node.node.start_request(asked)
    answers = node.node.request(node.frames("timer.extend", {"id": ids[-1], "by": "1h"}))
    while not any(answer[2] == asked[2] for answer in answers):
        answers += node.node.request(node.frames("health"))
    (body,) = [answer[4] for answer in answers if answer[2] == asked[2]]
    assert orjson.loads(body)["total"] == 299


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"to": "soon"}, "/to"),
        ({"to": at(-1)}, "/to"),
        ({"to": at(10), "from": at(10)}, "/to"),
        ({"to": at(10), "from": "x"}, "/from"),
        ({"to": at(10), "bin": "x"}, "/bin"),
        ({"to": at(10), "bin": "0s"}, "/bin"),
        ({"to": at(10_001), "bin": "second"}, "/bin"),
    ],
)
def test_bad_requests(node: Driver, body: dict[str, Any], pointer: str) -> None:
    problem = node.refused("timeline.bins", body)
    assert (problem["code"], problem["errors"][0]["pointer"]) == ("validation", pointer)


def test_a_year_of_milliseconds_is_reckoned_not_counted(node: Driver) -> None:
    node.every("10ms")
    told = bins(node, 365 * 86_400, "day")
    assert told["bins"][1:] == [8_640_000] * 364


@given(
    st.integers(-300, 300),
    st.integers(1, 90),
    st.integers(1, 60),
    st.integers(0, 20),
    st.integers(0, 400),
    st.integers(1, 300),
)
@settings(max_examples=400)
def test_reckoned_as_counted(
    due: int, interval: int, width: int, most: int, expires: int, to: int
) -> None:
    """Against each occurrence in turn; times are ns, the grid begins at 1000."""
    grid = Grid(1000, 1000 + to, width)
    expires_ns = 1000 + expires if expires else 0
    rule = Rule(True, rules.FIXED_RATE, most and most + 4, 5, interval, 1000 + due, expires_ns)
    counts = [0] * grid.bins_count
    add_dues(counts, grid, rule, Occurrence(5, 990 + due), 10)
    slow = [0] * grid.bins_count
    for k in range(1000):
        due_ns = 1000 + due + k * interval
        allowed = (not most or k < most) and (not expires_ns or due_ns < expires_ns)
        if allowed and 1000 <= due_ns < grid.to_ns:
            slow[(due_ns - 1000) // width] += 1
    assert counts == slow
