"""What `minoots explain` and `minoots forecast` say; pure."""

from __future__ import annotations

from typing import Any

import pytest

from edgenode.encode import KIND_NAMES, REASON_NAMES
from minoots.cli.explain import EVENTS, REASONS, STATES, story
from minoots.cli.forecast import bar, width_for
from minoots.event import Event
from minoots.wire.bodies import StateName, TimerView
from minoots.wire.definition import After, At
from minoots.wire.times import SECOND, parse_duration, parse_instant

NOW = parse_instant("2027-01-15T08:00:00Z")
STATE_NAMES = StateName.__args__  # type: ignore[attr-defined]


def view(state: str, **more: Any) -> TimerView:
    return TimerView(
        id="tmr_x", state=state, occurrence=2, revision=1, created_at="",
        schedule=more.pop("schedule", After("1h")), **more,
    )  # fmt: skip


def event(type: str, **more: Any) -> Event:
    members: dict[str, Any] = dict.fromkeys(Event.__dataclass_fields__)
    members |= {"type": type, "time": "2027-01-15T07:00:00Z", "occurrence": 1, "due_ns": NOW}
    return Event(**members | more)


def next_of(shown: TimerView, dues: list[int], **more: Any) -> list[str]:
    return story(shown, [], dues, now_ns=NOW, **{"held": False, **more}).next


def test_there_are_words_for_all_that_can_be() -> None:
    assert set(REASONS) == set(REASON_NAMES.values())
    assert set(STATES) == set(STATE_NAMES)
    assert set(EVENTS) <= set(KIND_NAMES.values())


def test_what_happened() -> None:
    told = story(
        view("completed", state_reason="max_occurrences"),
        [
            event("timer.scheduled"),
            event("timer.expired", fired_ns=NOW + 1500, lateness_us=1_500, misfire=True),
            event("timer.skipped"),
        ],
        [],
        now_ns=NOW,
        held=False,
    )
    assert told.happened == [
        ("2027-01-15T07:00:00Z", "made, due 2027-01-15T08:00:00Z"),
        (
            "2027-01-15T08:00:00.0000015Z",
            "fired, occurrence 1, +1.5ms after its due; a misfire: the node was down or behind at "
            "its due",
        ),
        ("2027-01-15T07:00:00Z", "skipped"),
    ]
    assert told.why == [
        "completed: it has fired for the last time",
        "max_occurrences: it has fired as often as max_occurrences allows",
    ]
    assert told.next == ["nothing: it has ended"]


def test_what_is_next() -> None:
    dues = [NOW + 240 * SECOND, NOW + 300 * SECOND, NOW + 360 * SECOND, NOW + 420 * SECOND]
    assert next_of(view("armed"), dues) == [
        "occurrence 2 is due 2027-01-15T08:04:00Z  in 4m",
        "occurrence 3 is due 2027-01-15T08:05:00Z  in 5m",
        "occurrence 4 is due 2027-01-15T08:06:00Z  in 6m",
        "and so on",
    ]
    assert next_of(view("paused", remaining="5m"), []) == [
        "5m are left; let it go on with: minoots resume tmr_x"
    ]
    assert next_of(view("cancelled", key="k"), []) == ["nothing: it has ended; its key 'k' is free"]
    assert "the node is behind" in next_of(view("armed"), [NOW - 1])[0]
    wall = view("armed", schedule=At("2027-01-15T08:00:00Z"))
    assert "minoots clock --accept" in next_of(wall, [NOW - 1], held=True)[0]
    assert "behind" in next_of(view("armed"), [NOW - 1], held=True)[0]


@pytest.mark.parametrize(
    ("count", "text"), [(0, ""), (1, "▏"), (50, "████"), (100, "████████"), (99, "████████")]
)
def test_bars(count: int, text: str) -> None:
    assert bar(count, 100, 8) == text
    assert bar(0, 0, 8) == ""


@pytest.mark.parametrize(
    ("length", "width"), [("1s", "1s"), ("1m", "1s"), ("1h", "1m"), ("1d", "30m"), ("520w", "7d")]
)
def test_the_width_of_a_bin(length: str, width: str) -> None:
    assert width_for(parse_duration(length)) == width
