"""Clocks that are set, that sleep, that a reference puts right: what fires when, what is told."""

from __future__ import annotations

from typing import Any

import pytest

from edgenode.config import ClockSection, Config, EngineSection
from edgenode.virtual import DAY_NS, START_NS, VirtualNode
from engine.drift import Sample
from minoots.wire.times import format_instant
from tests.sim.driver import SECOND, START, Driver

HOUR = 3_600 * SECOND
YEAR = 365 * 86_400 * SECOND
MS = 1_000_000


def at(seconds: float, name: str, driver: Driver, **more: Any) -> dict[str, Any]:
    instant = format_instant(START + round(seconds * SECOND))
    return driver.schedule(name, schedule={"kind": "at", "instant": instant}, **more)


def told(driver: Driver, since: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """The node's own events in the log: (short type, data)."""
    page = driver.ask("stream.replay", {"from": {"epoch": 1, "seq": since}, "limit": 1000})
    return [
        (event["type"].removeprefix("io.minoots.node.").removesuffix(".v1"), event["data"])
        for event in page["events"]
        if event["type"].startswith("io.minoots.node.")
    ]


def kinds(driver: Driver) -> list[str]:
    return [kind for kind, _ in told(driver)]


# ------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("by", [HOUR, -HOUR])
def test_an_hour_is_a_step_and_the_wall_clock_s_timers_move(by: int) -> None:
    driver = Driver()
    at(7_200, "wall", driver)
    driver.after("7200s", "steady")
    driver.node.step_utc(by)
    assert ("clock_stepped", {"by_ns": by}) in told(driver)
    early, late = sorted([7_200, 7_200 - by // SECOND])
    first = "wall" if by > 0 else "steady"
    assert [name for name, *_ in driver.pass_(early - 1)] == []
    assert [name for name, *_ in driver.pass_(2)] == [first]
    last = "steady" if by > 0 else "wall"
    assert [name for name, *_ in driver.pass_(late - early)] == [last]
    assert len(driver.ask("timer.list")["items"]) == 0


def test_ten_years_are_held_and_nothing_of_the_wall_clock_fires() -> None:
    driver = Driver()
    for k in range(5):
        at(60 + k * 86_400 * 300, f"wall-{k}", driver)
    driver.after("90s", "steady")
    driver.node.step_utc(10 * YEAR)
    assert [name for name, *_ in driver.pass_(120)] == ["steady"]
    kind, data = told(driver)[-1]
    assert kind == "clock_held"
    assert data["by_ns"] == 10 * YEAR
    assert data["claimed"].startswith("2037-01-12")
    assert data["believed"].startswith("2027-01-15")
    clock = driver.ask("stats")["clock"]
    assert (clock["held"], clock["held_by_ns"]) == (True, 10 * YEAR)
    # What is asked for meanwhile is kept, and held too.
    at(130, "new", driver)
    assert driver.pass_(60) == []
    assert kinds(driver).count("clock_held") == 1


def test_held_timers_go_on_once_the_clock_is_set_back() -> None:
    driver = Driver()
    at(60, "wall", driver)
    at(300, "later", driver)
    driver.node.step_utc(10 * YEAR)
    assert driver.pass_(120) == []
    driver.node.step_utc(-10 * YEAR)
    assert [name for name, *_ in driver.pass_(1)] == ["wall"]
    assert told(driver)[-1] == ("clock_released", {"by": "clock"})
    assert driver.pass_(178) == []
    assert [name for name, *_ in driver.pass_(3)] == ["later"]


def test_an_operator_agrees_and_all_that_was_jumped_over_fires_flagged() -> None:
    driver = Driver()
    at(60, "wall", driver)
    at(11 * 365 * 86_400, "in eleven years", driver)
    driver.node.step_utc(10 * YEAR)
    assert driver.pass_(120) == []
    assert driver.ask("time.accept") == {"accepted": True}
    live = driver.node.advance(SECOND)
    (late,) = [body for topic, _, body in live if b"/e/timer.expired/" in topic]
    assert b'"misfire":true' in late
    assert kinds(driver)[-2:] == ["clock_released", "clock_stepped"]
    assert driver.ask("time.accept") == {"accepted": False}
    assert [item["name"] for item in driver.ask("timer.list")["items"]] == ["in eleven years"]


def test_a_restart_does_not_end_a_hold() -> None:
    driver = Driver()
    at(60, "wall", driver)
    driver.node.step_utc(10 * YEAR)
    driver.node.restart()
    driver.node.live()
    assert driver.pass_(120) == []
    assert driver.ask("stats")["clock"]["held"]
    driver.node.restart()  # its instant, by the clock that was believed, has passed by now
    assert driver.pass_(1) == []
    driver.ask("time.accept")
    assert [name for name, *_ in driver.pass_(1)] == ["wall"]
    driver.node.restart()
    assert not driver.ask("stats")["clock"]["held"]


def test_a_reboot_with_a_clock_that_lost_its_battery_is_held() -> None:
    driver = Driver()
    at(600, "wall", driver)
    driver.after("300s", "steady")
    driver.node.clock.step_utc(-20 * YEAR)
    driver.node.clock.new_boot()
    driver.node.restart()
    driver.node.live()
    assert [name for name, *_ in driver.pass_(301)] == ["steady"]
    assert driver.ask("stats")["clock"]["held"]


# ------------------------------------------------------------------------------------- the lead


def committed(driver: Driver, seconds: float) -> None:
    """Go to the middle of the lead before an instant, and commit what is due at it."""
    driver.node.advance(round(seconds * SECOND) - MS)
    for _ in range(3):
        driver.node._loop.step()


def test_a_step_inside_the_lead_moves_what_is_committed() -> None:
    driver = Driver()
    made = at(10, "wall", driver)
    driver.after("10s", "steady")
    committed(driver, 10)
    assert driver.ask("timer.get", {"id": made["id"]})["state"] == "firing"
    driver.node.step_utc(-60 * SECOND)
    assert [name for name, *_ in driver.pass_(1)] == ["steady"]
    assert driver.pass_(58) == []
    (wall,) = driver.pass_(2)
    assert wall == ("wall", 1, 10.0)


def test_a_steady_timer_keeps_its_instant_and_its_lateness_over_a_step_in_the_lead() -> None:
    for by in (HOUR // 2, -HOUR // 2):
        driver = Driver()
        driver.after("10s", "steady")
        committed(driver, 10)
        driver.node.step_utc(by)
        driver.node.live()
        assert [name for name, *_ in driver.pass_(0.0009)] == []
        assert [name for name, *_ in driver.pass_(0.0002)] == ["steady"]
        assert driver.ask("stats")["lateness_us"]["max"] == 0


@pytest.mark.parametrize("by", [HOUR // 2, -HOUR // 2])
@pytest.mark.parametrize("kind", ["after", "fixed_rate", "fixed_delay", "last"])
def test_a_crash_and_a_step_inside_the_lead_lose_nothing_and_fire_on_the_instant(
    by: int, kind: str
) -> None:
    driver = Driver()
    if kind == "after":
        driver.after("10s", "steady")
    elif kind == "last":
        driver.every("5s", "steady", max_occurrences=2)
    else:
        driver.every("5s", "steady", mode=kind)
    committed(driver, 10)
    driver.node.clock.step_utc(by)
    driver.node.restart()
    driver.node.live()
    assert driver.pass_(0.0009) == []
    assert [name for name, *_ in driver.pass_(0.0002)] == ["steady"]
    assert driver.ask("stats")["lateness_us"]["max"] == 0


def test_changes_inside_the_lead_are_answered_that_it_is_too_late() -> None:
    driver = Driver()
    made = driver.after("10s", "t")
    again = driver.every("10s", "r")
    committed(driver, 10)
    for op, more in (
        ("timer.cancel", {}),
        ("timer.pause", {}),
        ("timer.extend", {"by": "1s"}),
        ("timer.reschedule", {"schedule": {"kind": "after", "duration": "1s"}}),
    ):
        problem = driver.refused(op, {"id": made["id"], **more})
        assert problem["code"] == "already_terminal"
        assert "its expiration is committed" in problem["detail"]
    # Of a recurring timer the next occurrence can still be taken back.
    assert driver.ask("timer.cancel", {"id": again["id"]})["state"] == "cancelled"
    assert sorted(name for name, *_ in driver.pass_(20)) == ["r", "t"]
    assert driver.ask("stats")["lead_us"] == 2_000


# ------------------------------------------------------------------------------------- sleep


def test_a_suspend_is_told_and_what_was_due_meanwhile_fires_late() -> None:
    driver = Driver()
    driver.after("100s", "tea")
    driver.every("60s", "minute")
    driver.pass_(30)
    driver.node.clock.suspend(600 * SECOND)
    driver.node._loop.times.clock = 0
    live = driver.node.advance(SECOND)
    late = [body for topic, _, body in live if b"/e/timer.expired/" in topic]
    assert sorted(b'"name":"tea"' in body for body in late) == [False, True]
    assert all(b'"misfire":true' in body for body in late)
    assert ("suspended", {"for_ns": 600 * SECOND}) in told(driver)


# ------------------------------------------------------------------------------------- drift


def test_every_is_exact_after_a_million_periods() -> None:
    from engine import schedule as rules

    rule, coming = rules.every(333_333_333, anchor_ns=None, mode=rules.FIXED_RATE, now_ns=START_NS)
    found: Any = coming
    for _ in range(1_000_000):
        # Each is decided up to a lead before it is due, or late.
        late_ns = (found.number * 7_919) % 40_000_000 - 20_000_000
        found = rules.following(rule, found, now_ns=found.due_ns + late_ns, shift_ns=0)
    assert found.number == 1_000_001
    assert found.due_ns == START_NS + 1_000_001 * 333_333_333


def test_every_is_exact_through_a_node_that_is_restarted() -> None:
    driver = Driver()
    driver.every("7s", "t")
    fired = []
    for _ in range(40):
        fired += driver.pass_(101.3)  # no restart comes at a fire, which would leave twice
        driver.node.restart()
    assert [(number, when) for _, number, when in fired] == [
        (n, 7.0 * n) for n in range(1, len(fired) + 1)
    ]
    assert len(fired) == 40 * 1013 // 70


class Peer:
    """A reference that has another idea of UTC: off by `off_ns`, which grows by `ppb`."""

    name = "peer"
    corrects = True

    def __init__(self, node: VirtualNode, off_ns: int = 0, ppb: int = 0) -> None:
        self.node = node
        self.off_ns = off_ns
        self.ppb = ppb
        self.silent = False
        self._found: list[Sample] = []

    def true_ns(self) -> int:
        passed_ns = self.node.clock.steady_boot_ns()
        return START_NS + passed_ns + self.off_ns + passed_ns * self.ppb // 1_000_000_000

    def ask(self) -> None:
        if not self.silent:
            steady_ns = self.node._loop.recovered.timescale.now(self.node.clock).steady_ns
            self._found.append(Sample(steady_ns, self.true_ns() - steady_ns, 200_000, 0))

    def samples(self) -> list[Sample]:
        found, self._found = self._found, []
        return found


def with_peer(**how: int) -> tuple[Driver, Peer]:
    driver = Driver()
    config = Config(engine=EngineSection(horizon=DAY_NS), clock=ClockSection(poll=16 * SECOND))
    driver.node = VirtualNode(config=config, clock_pace_ns=SECOND)
    peer = Peer(driver.node, **how)
    driver.node.reference = peer
    driver.node.restart()
    return driver, peer


def test_a_node_follows_its_reference_by_slewing_and_says_how_sure_it_is() -> None:
    driver, peer = with_peer(off_ns=50 * MS, ppb=30_000)
    driver.pass_(600)
    clock = driver.ask("stats")["clock"]
    off_ns = driver.ask("time.sync")["t2"] - peer.true_ns()
    assert clock["state"] == "following"
    assert abs(off_ns) <= clock["error_us"] * 1_000
    assert abs(off_ns) < 2 * MS
    assert abs(clock["rate_ppb"] - 30_000) < 500
    slews = [data["by_ns"] for kind, data in told(driver) if kind == "clock_slewed"]
    assert slews
    assert all(0 < by <= 11 * MS for by in slews)
    assert "clock_stepped" not in kinds(driver)


def test_without_its_reference_the_bound_grows_and_holds() -> None:
    driver, peer = with_peer(off_ns=0, ppb=20_000)
    driver.pass_(1_800)
    before = driver.ask("stats")["clock"]["error_us"]
    peer.silent = True
    driver.pass_(4 * 3_600)
    clock = driver.ask("stats")["clock"]
    off_ns = driver.ask("time.sync")["t2"] - peer.true_ns()
    assert clock["state"] == "holdover"
    assert clock["error_us"] > before + 100_000
    assert abs(off_ns) <= clock["error_us"] * 1_000
    assert abs(off_ns) < 20 * MS, "the rate that was learned is used on"


def test_a_clock_set_far_ahead_does_not_shake_a_node_with_a_reference() -> None:
    driver, peer = with_peer()
    at(300, "wall", driver)
    driver.pass_(100)
    driver.node.step_utc(10 * YEAR)
    assert driver.pass_(199) == []
    (wall,) = driver.pass_(2)
    assert abs(wall[2] - 300) < 0.01
    assert not driver.ask("stats")["clock"]["held"]
    assert abs(driver.ask("time.sync")["t2"] - peer.true_ns()) < 5 * MS


def test_a_reference_that_is_far_off_at_first_is_agreed_with() -> None:
    driver, peer = with_peer(off_ns=30 * YEAR)
    driver.pass_(60)
    assert told(driver)[-2:] == [
        ("clock_released", {"by": "reference"}),
        ("clock_stepped", {"by_ns": told(driver)[-1][1]["by_ns"]}),
    ]
    assert abs(driver.ask("time.sync")["t2"] - peer.true_ns()) < 5 * MS


def test_a_smeared_leap_second_is_followed_without_a_step() -> None:
    driver, peer = with_peer()
    driver.pass_(1_200)
    peer.off_ns = -driver.node.clock.steady_boot_ns() * 11_574 // 1_000_000_000
    peer.ppb = 11_574
    driver.pass_(6 * 3_600)
    off_ns = driver.ask("time.sync")["t2"] - peer.true_ns()
    assert abs(off_ns) < 3 * MS
    assert "clock_stepped" not in kinds(driver)
