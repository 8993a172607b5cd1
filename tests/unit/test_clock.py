"""The steady timescale: over steps of UTC, restarts and reboots."""

from __future__ import annotations

import pytest

from engine.clock import (
    STEP_NS_MIN,
    Anchor,
    Clock,
    OsClock,
    Step,
    Timescale,
    VirtualClock,
    tick_at_or_after,
    tick_floor,
)

S = 1_000_000_000
MS = 1_000_000
UTC_NS = 1_800_000_000 * S


def virtual() -> VirtualClock:
    return VirtualClock(UTC_NS, boot_ns=77 * S)


def test_a_fresh_scale_is_utc() -> None:
    clock = virtual()
    scale = Timescale.fresh(clock)
    assert scale.now(clock) == (UTC_NS, UTC_NS, 0)
    clock.advance(5 * S)
    assert scale.now(clock) == (UTC_NS + 5 * S, UTC_NS + 5 * S, 0)
    assert scale.boot_ns(UTC_NS + 6 * S) == clock.steady_boot_ns() + S


@pytest.mark.parametrize("step_ns", [3600 * S, -3600 * S, STEP_NS_MIN + 1, -STEP_NS_MIN - 1])
def test_a_step_moves_utc_and_not_steady(step_ns: int) -> None:
    clock = virtual()
    scale = Timescale.fresh(clock)
    clock.advance(S)
    clock.step_utc(step_ns)
    assert scale.now(clock).shift_ns == 0
    assert scale.read(clock) == Step(0, step_ns)
    assert scale.read(clock) is None
    assert scale.now(clock) == (UTC_NS + S, UTC_NS + S + step_ns, step_ns)


def test_small_moves_are_ignored_until_they_add_up() -> None:
    clock = virtual()
    scale = Timescale.fresh(clock)
    for _ in range(2):
        clock.step_utc(STEP_NS_MIN // 2)
        assert scale.read(clock) is None
    assert scale.shift_ns == 0
    clock.step_utc(1)
    assert scale.read(clock) == Step(0, STEP_NS_MIN + 1)


def test_a_restart_in_the_same_boot_goes_on_by_boottime() -> None:
    clock = virtual()
    saved = Timescale.fresh(clock).anchor(clock)
    clock.advance(30 * S)
    scale = Timescale.resume(saved, clock)
    assert scale.resumed is None
    assert scale.now(clock) == (UTC_NS + 30 * S, UTC_NS + 30 * S, 0)


@pytest.mark.parametrize("step_ns", [600 * S, -600 * S])
def test_a_step_while_the_node_was_down_is_told(step_ns: int) -> None:
    clock = virtual()
    before = Timescale.fresh(clock)
    clock.step_utc(7 * S)
    before.read(clock)
    saved = before.anchor(clock)
    clock.advance(30 * S)
    clock.step_utc(step_ns)
    scale = Timescale.resume(saved, clock)
    assert scale.resumed == Step(7 * S, 7 * S + step_ns)
    assert scale.now(clock).steady_ns == UTC_NS + 30 * S
    assert scale.now(clock).utc_ns == clock.utc_ns()


def test_a_reboot_goes_on_by_utc() -> None:
    clock = virtual()
    before = Timescale.fresh(clock)
    clock.step_utc(-50 * S)
    before.read(clock)
    saved = before.anchor(clock)
    clock.new_boot(down_ns=90 * S)
    scale = Timescale.resume(saved, clock)
    assert scale.resumed is None
    assert scale.now(clock) == (UTC_NS + 90 * S, UTC_NS + 40 * S, -50 * S)


def test_a_reboot_with_a_clock_that_went_back_never_takes_steady_back() -> None:
    clock = virtual()
    saved = Timescale.fresh(clock).anchor(clock)
    clock.new_boot(down_ns=90 * S)
    clock.step_utc(-UTC_NS)  # a board without a battery: 1970
    scale = Timescale.resume(saved, clock)
    assert scale.now(clock).steady_ns == saved.steady_ns
    assert scale.now(clock).utc_ns == 90 * S
    assert scale.resumed == Step(0, 90 * S - UTC_NS)


def test_a_snapshot_put_back_keeps_its_boot_id_and_steady_does_not_go_back() -> None:
    clock = virtual()
    saved = Timescale.fresh(clock).anchor(clock)
    back = VirtualClock(UTC_NS + 1000 * S, boot_ns=5 * S)
    assert back.boot_id == saved.boot_id
    assert Timescale.resume(saved, back).now(back).steady_ns == UTC_NS + 1000 * S


def test_steady_never_decreases_whatever_happens() -> None:
    clock = virtual()
    scale = Timescale.fresh(clock)
    last_ns = scale.now(clock).steady_ns
    steps_ns = [5, -900, 0, 40_000, -40_000, 10**7, -(10**7), 3]
    for n in range(200):
        step_ns = steps_ns[n * 7 % len(steps_ns)] * MS
        clock.step_utc(step_ns)
        if n % 3 == 0:
            scale.read(clock)
        if n % 5 == 0:
            saved = scale.anchor(clock)
            clock.step_utc(-step_ns)
            if n % 2:
                clock.new_boot(down_ns=n * MS)
            scale = Timescale.resume(saved, clock)
        clock.advance(n % 4)
        now_ns = scale.now(clock).steady_ns
        assert now_ns >= last_ns
        last_ns = now_ns


class Interrupted:
    """A machine whose thread is put aside for 2 s inside the first two samples."""

    boot_id = "one"

    def __init__(self) -> None:
        self.reads = 0
        self.boot = 10 * S

    def steady_boot_ns(self) -> int:
        self.reads += 1
        self.boot += 2 * S if self.reads in (2, 4) else 0
        return self.boot

    def utc_ns(self) -> int:
        return UTC_NS + self.boot


def test_the_tightest_sample_counts() -> None:
    clock: Clock = Interrupted()
    scale = Timescale.fresh(clock)
    assert scale.now(clock).steady_ns == clock.utc_ns()


def test_the_real_clock() -> None:
    clock: Clock = OsClock()
    scale = Timescale.fresh(clock)
    assert len(clock.boot_id) == 36
    assert scale.read(clock) is None
    now = scale.now(clock)
    assert abs(now.utc_ns - clock.utc_ns()) < 100 * MS
    again = Timescale.resume(scale.anchor(clock), clock)
    assert again.resumed is None
    assert again.now(clock).steady_ns > now.steady_ns


def test_an_anchor_is_plain_numbers() -> None:
    clock = virtual()
    assert Timescale.fresh(clock).anchor(clock) == Anchor("virtual-1", 77 * S, UTC_NS, UTC_NS)


def test_time_does_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="time can't pass by -1 ns"):
        virtual().advance(-1)


def test_deadlines_round_up_and_now_rounds_down() -> None:
    assert [tick_at_or_after(ns, 10) for ns in (0, 1, 10, 11, -1)] == [0, 1, 1, 2, 0]
    assert [tick_floor(ns, 10) for ns in (0, 9, 10, 19, -1)] == [0, 0, 1, 1, -1]
