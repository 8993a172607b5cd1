"""Keys: one live timer for each, whatever crashes, whatever the tables hold already."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sim.driver import Driver

HOUR = {"kind": "after", "duration": "1h"}


@pytest.fixture
def node() -> Driver:
    return Driver()


def keyed(node: Driver, duration: str, how: str | None = None, **more: Any) -> dict[str, Any]:
    members = {"key": more.pop("key", "cart-7"), **more}
    if how is not None:
        members["on_conflict"] = how
    return node.after(duration, members.pop("name", "t"), **members)


def expired(node: Driver, seconds: float) -> list[tuple[str, int, float]]:
    return node.pass_(seconds)


def catch_up(node: Driver) -> None:
    """Let the tables take in all that was decided."""
    node.ask("timer.list")


def test_a_key_is_held_at_once_behind_the_tables_and_after_a_restart(node: Driver) -> None:
    first = keyed(node, "1h")
    assert first["key"] == "cart-7"
    assert "conflict" not in first
    for prepare in (lambda: None, lambda: catch_up(node), node.node.restart):
        prepare()
        problem = node.refused(
            "timer.schedule", {"schedule": HOUR, "key": "cart-7", "on_conflict": "reject"}
        )
        assert problem["code"] == "already_exists"
        assert first["id"] in problem["detail"]
    assert node.refused("timer.schedule", {"schedule": HOUR, "key": "cart-7"})["code"] == (
        "already_exists"
    )
    assert keyed(node, "1h", key="cart-8")["id"] != first["id"]


def test_keep_leaves_the_timer_as_it_is(node: Driver) -> None:
    first = keyed(node, "1h", payload=1)
    second = keyed(node, "2h", "keep", payload=2, name="other")
    assert second == {**first, "state": "armed", "conflict": "kept"}
    assert node.ask("stats")["timers"]["pending"] == 1


def test_replace_takes_the_new_definition_with_the_same_id(node: Driver) -> None:
    first = keyed(node, "1h", payload=1, labels={"a": "1"})
    second = keyed(node, "5s", "replace", payload=2, name="other", labels={"b": "2"})
    assert (second["id"], second["revision"]) == (first["id"], 2)
    assert (second["conflict"], second["payload"], second["name"]) == ("replaced", 2, "other")
    assert second["labels"] == {"b": "2"}
    catch_up(node)
    assert node.ask("timer.get", {"name": "other"})["id"] == first["id"]
    assert node.refused("timer.get", {"name": "t"})["code"] == "not_found"
    events = node.ask("timer.history", {"id": first["id"]})["events"]
    assert [e["type"].split(".")[-2] for e in events] == ["scheduled", "rescheduled"]
    assert node.pass_(7200) == [("other", 1, 5.0)]


@pytest.mark.parametrize(
    ("how", "duration", "word", "fires"),
    [
        ("earliest", "5s", "replaced", 5.0),
        ("earliest", "20s", "kept", 10.0),
        ("latest", "5s", "kept", 10.0),
        ("latest", "20s", "replaced", 20.0),
        ("extend", "5s", "kept", 10.0),
        ("extend", "20s", "extended", 20.0),
    ],
)
def test_which_due_stays(node: Driver, how: str, duration: str, word: str, fires: float) -> None:
    first = keyed(node, "10s", payload="old")
    second = keyed(node, duration, how, payload="new")
    assert (second["id"], second["conflict"]) == (first["id"], word)
    assert second["payload"] == ("new" if word == "replaced" else "old")
    assert node.pass_(60) == [("t", 1, fires)]


def test_debounce_only_moves_the_deadline(node: Driver) -> None:
    """Ten requests, a second apart, of a deadline 5 s ahead: one fire, 5 s after the last."""
    for _ in range(10):
        view = keyed(node, "5s", "extend", payload="first")
        assert node.pass_(1) == []
    assert view["revision"] == 10
    assert node.pass_(60) == [("t", 1, 14.0)]


def test_a_key_is_free_when_its_timer_has_ended(node: Driver) -> None:
    ids = [keyed(node, "1s")["id"]]
    assert len(node.pass_(2)) == 1
    ids.append(keyed(node, "1h")["id"])
    node.ask("timer.cancel", {"id": ids[-1]})
    ids.append(keyed(node, "1h")["id"])
    node.ask("timer.trigger", {"id": ids[-1]})
    ids.append(keyed(node, "1h")["id"])
    assert len(set(ids)) == 4, "a dedupe key would come twice"
    assert node.refused("timer.schedule", {"schedule": HOUR, "key": "cart-7"})["code"] == (
        "already_exists"
    )


def test_a_key_taken_again_is_not_forgotten_when_the_tables_follow(node: Driver) -> None:
    """The tables reach the end of the first timer, and not yet the second one's beginning."""
    first = keyed(node, "1h")
    node.ask("timer.cancel", {"id": first["id"]})
    catch_up(node)
    node.node.tables.hold()
    second = keyed(node, "10d")
    ledger = node.node._loop.recovered.ledger
    ledger.tables_moved(node.node.tables.applied().commit)
    problem = node.refused("timer.schedule", {"schedule": HOUR, "key": "cart-7"})
    assert second["id"] in problem["detail"]


def test_an_ended_timers_key_is_no_note_after_a_day(node: Driver) -> None:
    keyed(node, "1s")
    keyed(node, "10d", key="stays")
    node.pass_(3 * 86_400)
    notes = node.ask("stats")["tables"]["notes"]
    node.pass_(86_400)
    assert node.ask("stats")["tables"]["notes"] == notes == 3  # `stays`, the clock, what is held
    assert node.refused("timer.schedule", {"schedule": HOUR, "key": "stays"})["code"] == (
        "already_exists"
    )


def test_a_recurring_timer_that_is_replaced_goes_on_counting(node: Driver) -> None:
    every = {"kind": "every", "interval": "1s"}
    node.schedule(key="k", schedule=every, max_occurrences=3)
    assert [n for _, n, _ in node.pass_(2)] == [1, 2]
    view = node.schedule(
        key="k", schedule={"kind": "every", "interval": "10s"}, max_occurrences=2,
        on_conflict="replace",
    )  # fmt: skip
    assert (view["occurrence"], view["max_occurrences"], view["conflict"]) == (3, 4, "replaced")
    assert [n for _, n, _ in node.pass_(60)] == [3, 4]
    assert "conflict" not in node.schedule(key="k", schedule=every)


def test_a_paused_timer_that_is_replaced_stays_paused(node: Driver) -> None:
    first = keyed(node, "10s")
    node.ask("timer.pause", {"id": first["id"]})
    assert keyed(node, "20s", "replace")["remaining"] == "20s"
    assert node.pass_(60) == []
    node.ask("timer.resume", {"id": first["id"]})
    assert node.pass_(60) == [("t", 1, 80.0)]


def test_the_wall_clock_and_the_steady_one_are_compared(node: Driver) -> None:
    node.schedule(key="k", schedule={"kind": "at", "instant": "2027-01-15T08:00:10Z"})
    view = node.after("20s", key="k", on_conflict="extend")
    assert (view["conflict"], view["due"]) == ("extended", "2027-01-15T08:00:20.000000000Z")
    assert view["schedule"]["kind"] == "at"
    view = node.after("5s", key="k", on_conflict="earliest")
    assert (view["conflict"], view["schedule"]["kind"]) == ("replaced", "after")
    assert node.pass_(60) == [("t", 1, 5.0)]


@pytest.mark.parametrize("catching_up", [False, True])
def test_idempotency_answers_a_conflict_as_it_was(node: Driver, catching_up: bool) -> None:
    keyed(node, "1h")
    body = {"schedule": HOUR, "key": "cart-7", "on_conflict": "replace", "payload": "conflict"}
    done = [node.ask("timer.schedule", body, idem="a")]
    body["on_conflict"] = "keep"
    done.append(node.ask("timer.schedule", body, idem="b"))
    if catching_up:
        catch_up(node)
    node.node.restart()
    body["on_conflict"] = "replace"
    assert node.ask("timer.schedule", body, idem="a") == {**done[0], "replayed": True}
    body["on_conflict"] = "keep"
    assert node.ask("timer.schedule", body, idem="b") == {**done[1], "replayed": True}
    assert done[1]["revision"] == 2


def test_many_take_each_its_own_verdict(node: Driver) -> None:
    keyed(node, "1h", payload="old")
    timers = [
        {"schedule": HOUR, "name": "plain"},
        {"schedule": HOUR, "key": "cart-7"},
        {"schedule": HOUR, "key": "cart-7", "on_conflict": "keep"},
        {"schedule": HOUR, "key": "new"},
        {"schedule": HOUR, "key": "new", "on_conflict": "replace", "payload": 1.50},
        {"schedule": HOUR, "name": "also plain"},
        {"schedule": HOUR, "on_conflict": "keep"},
    ]
    results = node.ask("timer.schedule_many", {"timers": timers}, idem="m")["results"]
    words = [r["problem"]["code"] if "problem" in r else r.get("conflict") for r in results]
    assert words == [None, "already_exists", "kept", None, "replaced", None, "validation"]
    assert results[3]["id"] == results[4]["id"]
    node.node.restart()
    again = node.ask("timer.schedule_many", {"timers": timers}, idem="m")
    assert again == {"results": results, "replayed": True}


@pytest.mark.parametrize("second", [{"key": "held"}, {"key": "new", "on_conflict": "replace"}])
def test_atomic_many_leaves_nothing_behind(node: Driver, second: dict[str, str]) -> None:
    node.after("1h", key="held")
    timers = [{"schedule": HOUR, "key": "new"}, {"schedule": HOUR, **second}]
    problem = node.refused("timer.schedule_many", {"timers": timers, "atomic": True})
    assert problem["errors"][0]["pointer"] == "/timers/1/key"
    assert node.ask("stats")["timers"]["pending"] == 1
    node.after("1h", key="new")


@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({"key": ""}, "/key"),
        ({"key": "x" * 129}, "/key"),
        ({"key": "a\nb"}, "/key"),
        ({"key": 7}, "/key"),
        ({"key": "k", "on_conflict": "nope"}, "/on_conflict"),
        ({"on_conflict": "keep"}, "/on_conflict"),
    ],
)
def test_bad_keys_are_refused(node: Driver, members: dict[str, Any], pointer: str) -> None:
    problem = node.refused("timer.schedule", {"schedule": HOUR, **members})
    assert (problem["code"], problem["errors"][0]["pointer"]) == ("validation", pointer)


def test_a_replacement_that_cannot_be_leaves_the_timer(node: Driver) -> None:
    first = keyed(node, "1h", expires_at="2027-01-15T10:00:00Z")
    problem = node.refused(
        "timer.schedule",
        {
            "schedule": {"kind": "after", "duration": "3h"},
            "key": "cart-7",
            "on_conflict": "extend",
        },
    )
    assert problem["code"] == "no_future_occurrence"
    assert node.ask("timer.get", {"id": first["id"]})["revision"] == 1


@pytest.mark.parametrize("landed", [0, 1])
@pytest.mark.parametrize("how", ["replace", "extend"])
def test_a_crash_leaves_the_old_or_the_new(node: Driver, how: str, landed: int) -> None:
    """The commit that replaces is under way: it is there whole, or not at all."""
    first = keyed(node, "10s", payload="old")
    node.node.log.hold()
    node.node.start_request(
        node.frames(
            "timer.schedule",
            {
                "name": "t",
                "schedule": {"kind": "after", "duration": "20s"},
                "key": "cart-7",
                "on_conflict": how,
                "payload": "new",
            },
        )
    )
    node.node.restart(landed)
    view = node.ask("timer.get", {"id": first["id"]})
    assert view["revision"] == 1 + landed
    assert view["payload"] == ("new" if landed and how == "replace" else "old")
    problem = node.refused("timer.schedule", {"schedule": HOUR, "key": "cart-7"})
    assert first["id"] in problem["detail"]
    assert node.pass_(60) == [("t", 1, 20.0 if landed else 10.0)]


@pytest.mark.parametrize("landed", [0, 1])
def test_a_crash_leaves_timer_and_key_or_neither(node: Driver, landed: int) -> None:
    node.node.log.hold()
    node.node.start_request(node.frames("timer.schedule", {"schedule": HOUR, "key": "cart-7"}))
    node.node.restart(landed)
    assert node.ask("stats")["timers"]["pending"] == landed
    kind, _ = node.send("timer.schedule", {"schedule": HOUR, "key": "cart-7"})
    assert kind == ("E" if landed else "R")


def test_a_key_names_its_timer(node: Driver) -> None:
    first = keyed(node, "1h")
    assert node.ask("timer.get", {"key": "cart-7"})["id"] == first["id"]
    assert node.ask("timer.extend", {"key": "cart-7", "by": "1h"})["revision"] == 2
    assert node.ask("timer.reschedule", {"key": "cart-7", "schedule": HOUR})["revision"] == 3
    assert len(node.ask("timer.next", {"key": "cart-7"})["dues"]) == 1
    node.ask("timer.cancel", {"key": "cart-7"})
    assert node.refused("timer.cancel", {"key": "cart-7"})["code"] == "not_found"
    problem = node.refused("timer.get", {"key": "cart-7", "name": "t"})
    assert problem["code"] == "validation"
