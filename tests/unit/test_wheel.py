"""The wheel, case by case: order, limits, far and overdue, memory, and a check that can fail."""

from __future__ import annotations

import array
import random
from collections.abc import Callable, Iterable

import pytest

from engine._wheel import Wheel
from engine.errors import WheelFull
from tests.unit import _wheel_probe as probe

WINDOW = 2048
SLOT_1 = 1 << 11
SLOT_2 = 1 << 22
FAR = 1 << 31


def words(values: Iterable[int]) -> array.array[int]:
    return array.array("Q", values)


def room(count: int) -> array.array[int]:
    return words([0]) * count


def drain(wheel: Wheel, now_tick: int, count: int = 64) -> list[int]:
    """Advance until nothing more is due."""
    out = room(count)
    fired: list[int] = []
    while True:
        n = wheel.advance(now_tick, out)
        fired += out[:n]
        if n < count:
            return fired


def arm_all(wheel: Wheel, due_ticks: Iterable[int]) -> list[int]:
    return [wheel.arm(due_tick) for due_tick in due_ticks]


# --- handles --------------------------------------------------------------------------------------


def test_a_handle_is_generation_and_dense_index() -> None:
    wheel = Wheel(8)
    first, second = wheel.arm(10), wheel.arm(20)
    assert (first & 0xFFFFFFFF, second & 0xFFFFFFFF) == (0, 1)
    assert wheel.disarm(first)
    third = wheel.arm(30)
    assert third & 0xFFFFFFFF == 0
    assert third >> 32 > first >> 32


def test_a_stale_handle_is_refused() -> None:
    wheel = Wheel(8)
    handle = wheel.arm(10)
    assert wheel.disarm(handle)
    assert not wheel.disarm(handle)
    again = wheel.arm(10)
    assert not wheel.disarm(handle)
    assert wheel.is_armed(again)
    assert not wheel.is_armed(handle)
    with pytest.raises(LookupError, match=rf"handle {handle:#x} is not armed; it has fired"):
        wheel.due_tick(handle)


@pytest.mark.parametrize("handle", [0, 1, 7, 1 << 32, (1 << 64) - 1, (2 << 32) | 1, 0xFFFFFFFF])
def test_a_handle_never_given_is_refused(handle: int) -> None:
    wheel = Wheel(8)
    arm_all(wheel, [5, 6])
    wheel.disarm(wheel.arm(7))
    assert wheel.disarm(handle) is (handle == 1 << 32)
    wheel._check()


def test_a_handle_that_fired_is_stale() -> None:
    wheel = Wheel(8)
    handle = wheel.arm(3)
    assert drain(wheel, 3) == [handle]
    assert not wheel.disarm(handle)
    assert len(wheel) == 0


def test_old_handles_stay_stale_when_the_wheel_has_been_empty() -> None:
    wheel = Wheel(8)
    old = arm_all(wheel, [5] * 8)
    assert wheel.disarm_many(words(old)) == 8
    new = arm_all(wheel, [5] * 8)
    assert not set(old) & set(new)
    assert wheel.disarm_many(words(old)) == 0
    assert len(wheel) == 8


# --- order ----------------------------------------------------------------------------------------


def test_equal_due_ticks_come_out_first_armed_first() -> None:
    """Also when they were filed on different levels, at different times."""
    due = 3 * SLOT_2 + 5 * SLOT_1 + 77
    wheel = Wheel(1000)
    handles: list[int] = []
    for now in [0, SLOT_2, 2 * SLOT_2 + 1, 3 * SLOT_2 - 1, due - SLOT_1, due - 100, due - 1]:
        assert drain(wheel, now) == []
        handles += arm_all(wheel, [due] * 100)
    wheel._check()
    assert drain(wheel, due, count=7) == handles


@pytest.mark.parametrize("width", [SLOT_1, SLOT_2, FAR])
def test_what_arrives_during_a_cascade_queues_behind_it(width: int) -> None:
    """At first all wait above; then they are brought down a part at a time."""
    due = 2 * width + 5
    wheel = Wheel(20_000)
    handles = arm_all(wheel, [due] * 5000)
    for now in [
        *range(width - 1, width + 9),
        width + width // 2,
        *range(2 * width - 40, 2 * width),
    ]:
        assert drain(wheel, now) == []
        handles += arm_all(wheel, [due] * 20)
        wheel._check()
    assert drain(wheel, due) == handles


def test_overdue_timers_come_first_and_in_order() -> None:
    wheel = Wheel(100, now_tick=1000)
    due_ticks = [1000, 500, 999, 500, 0, 1001, 1000, 3]
    handles = arm_all(wheel, due_ticks)
    assert [wheel.due_tick(handle) for handle in handles] == due_ticks
    assert wheel.stats()["overdue"] == 5
    assert wheel.next_tick() == 1000
    wheel._check()
    assert wheel.disarm(handles[2])
    expected = [handles[i] for i in (4, 7, 1, 3, 0, 6)]
    assert drain(wheel, 1000, count=2) == expected
    assert drain(wheel, 1001) == [handles[5]]


def test_arming_between_two_parts_of_one_advance_keeps_the_order() -> None:
    wheel = Wheel(100)
    handles = arm_all(wheel, [10, 10, 10, 20])
    out = room(2)
    assert wheel.advance(50, out) == 2
    late, equal, between = wheel.arm(9), wheel.arm(10), wheel.arm(15)
    assert drain(wheel, 50) == [late, handles[2], equal, between, handles[3]]
    assert out[:2].tolist() == handles[:2]


# --- time -----------------------------------------------------------------------------------------


def test_time_never_goes_back() -> None:
    wheel = Wheel(8, now_tick=100)
    assert wheel.now_tick == 100
    drain(wheel, 200)
    with pytest.raises(ValueError, match=r"^now_tick is 199; the wheel is at 200 already$"):
        wheel.advance(199, room(1))
    assert wheel.now_tick == 200


def test_an_out_without_room_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^out has no room; give it room for one handle at least$"
    ):
        Wheel(8).advance(1, room(0))


@pytest.mark.parametrize(
    "due_tick",
    [
        *(WINDOW - 1, WINDOW, 2 * WINDOW, SLOT_2 - 1, SLOT_2, 2 * SLOT_2),
        *(FAR - 1, FAR, 2 * FAR, 2 * FAR + 1, 1 << 40, 1 << 63, (1 << 64) - 2, (1 << 64) - 1),
    ],
)
@pytest.mark.parametrize("start", [0, WINDOW - 1, SLOT_2 - 1, FAR - 1])
def test_never_early_and_never_late(due_tick: int, start: int) -> None:
    wheel = Wheel(8, now_tick=start)
    handle = wheel.arm(due_tick)
    assert wheel.due_tick(handle) == due_tick
    assert wheel.next_tick() == max(due_tick, start)
    if due_tick > start:
        assert drain(wheel, due_tick - 1) == []
        assert wheel.due_tick(handle) == due_tick
        wheel._check()
    assert drain(wheel, max(due_tick, start)) == [handle]
    wheel._check()


def test_far_timers_keep_order_and_can_be_disarmed() -> None:
    wheel = Wheel(1000)
    rng = random.Random(5)
    due_ticks = [rng.choice([1 << 33, (1 << 33) + 1, 1 << 34, 1 << 63]) for _ in range(500)]
    handles = arm_all(wheel, due_ticks)
    assert wheel.stats()["far"] == 500
    for handle in handles[::3]:
        assert wheel.disarm(handle)
    wheel._check()
    left = [(due, i, h) for i, (due, h) in enumerate(zip(due_ticks, handles, strict=True)) if i % 3]
    assert drain(wheel, 1 << 33) == [h for due, _, h in sorted(left) if due == 1 << 33]
    wheel._check()
    assert drain(wheel, 1 << 63) == [h for due, _, h in sorted(left) if due > 1 << 33]


def test_a_week_ahead_is_one_step() -> None:
    week = 7 * 86_400_000_000  # in microseconds: 6 * 10^11 ticks
    wheel = Wheel(4096)
    assert drain(wheel, week) == []
    rng = random.Random(2)
    due_ticks = [week + rng.randrange(1, week) for _ in range(3000)]
    handles = arm_all(wheel, due_ticks)
    order = [h for _, h in sorted(zip(due_ticks, handles, strict=True), key=lambda pair: pair[0])]
    assert drain(wheel, 2 * week) == order
    wheel._check()


def test_next_tick_is_exact_for_few_and_leads_to_the_timer_for_many() -> None:
    wheel = Wheel(10_000)
    assert wheel.next_tick() is None
    handles = arm_all(wheel, [5 * SLOT_1 + 9, 90 * SLOT_1])
    assert wheel.next_tick() == 5 * SLOT_1 + 9
    assert wheel.disarm(handles[0])
    assert wheel.next_tick() == 90 * SLOT_1
    arm_all(wheel, [70 * SLOT_1 + 1000] * 9000)
    fired, steps, out = 0, 0, room(10_000)
    while fired == 0:
        tick = wheel.next_tick()
        assert tick is not None
        assert tick <= 70 * SLOT_1 + 1000
        fired = wheel.advance(max(tick, wheel.now_tick + 1), out)
        steps += 1
    assert (fired, wheel.now_tick) == (9000, 70 * SLOT_1 + 1000)
    assert steps < 100
    assert wheel.stats()["moved_forced"] == 0


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [0, -1, (1 << 26) + 1])
def test_capacity_has_limits(capacity: int) -> None:
    message = rf"^capacity is {capacity}; the limits are 1 and 67108864$"
    with pytest.raises(ValueError, match=message):
        Wheel(capacity)


def test_a_full_wheel_says_so_and_stays_whole() -> None:
    wheel = Wheel(3)
    handles = arm_all(wheel, [5, 1 << 40, 0])
    with pytest.raises(WheelFull, match=r"^wheel holds 3 timers and cannot take 1 more; the limit"):
        wheel.arm(6)
    assert wheel.disarm(handles[1])
    with pytest.raises(WheelFull, match=r"cannot take 2 more; the limit is 3 \(capacity\)"):
        wheel.arm_many(words([7, 8]), room(2))
    wheel._check()
    assert len(wheel) == 2
    assert wheel.arm_many(words([7]), handle := room(1)) == 1
    assert wheel.due_tick(handle[0]) == 7


def test_churn_at_capacity_needs_no_index_above_it() -> None:
    wheel = Wheel(50)
    handles = arm_all(wheel, range(1000, 1050))
    for i in range(5000):
        assert wheel.disarm(handles[i % 50])
        handles[i % 50] = wheel.arm(1000 + i)
        assert handles[i % 50] & 0xFFFFFFFF < 50
    wheel._check()


def test_an_index_whose_tag_would_repeat_waits_for_a_sweep() -> None:
    """The entry of the first arm must not be taken for that of the 65,537th."""
    wheel = Wheel(2)
    keep = wheel.arm(1 << 21)
    old = wheel.arm(50_000)
    index = old & 0xFFFFFFFF
    assert wheel.disarm(old)
    probe.set_generation(wheel, index, (1 << 17) - 2)
    last = wheel.arm(60_000)
    assert last >> 32 == (1 << 17) - 1
    assert wheel.disarm(last)
    assert wheel.stats()["quarantined"] == 1
    wheel._check()
    new = wheel.arm(70_000)
    assert (new >> 32 == (1 << 17) + 1, new & 0xFFFFFFFF == index) == (True, True)
    assert wheel.stats()["dead"] == 0
    wheel._check()
    assert drain(wheel, 65_000) == []
    assert drain(wheel, 1 << 21) == [new, keep]


def test_a_generation_wraps() -> None:
    wheel = Wheel(2)
    keep = wheel.arm(9)
    probe.set_generation(wheel, wheel.arm(8) & 0xFFFFFFFF, (1 << 32) - 1)
    assert wheel.disarm(((1 << 32) - 1) << 32 | 1)
    new = wheel.arm(7)
    assert new >> 32 == 1
    wheel._check()
    assert drain(wheel, 10) == [new, keep]


@pytest.mark.parametrize(
    ("name", "value"), [("arm", -1), ("arm", 1 << 64), ("disarm", -1), ("due_tick", 1 << 64)]
)
def test_numbers_outside_64_bits_are_refused(name: str, value: int) -> None:
    with pytest.raises(OverflowError):
        getattr(Wheel(2), name)(value)


# --- in bulk --------------------------------------------------------------------------------------


def test_bulk_calls_agree_with_single_ones() -> None:
    rng = random.Random(9)
    due_ticks = words(rng.randrange(1 << rng.randrange(1, 40)) for _ in range(5000))
    one, many = Wheel(5000), Wheel(5000)
    handles = room(5000)
    assert many.arm_many(due_ticks, handles) == 5000
    assert arm_all(one, due_ticks) == handles.tolist()
    gone = words(rng.sample(handles.tolist(), 2000)) + words([0, handles[0] + (2 << 32)])
    assert many.disarm_many(gone) == 2000
    assert sum(one.disarm(handle) for handle in gone) == 2000
    assert drain(one, 1 << 40, 999) == drain(many, 1 << 40, 1)


def test_bulk_calls_take_any_buffer() -> None:
    numpy = pytest.importorskip("numpy")
    wheel = Wheel(8)
    handles = numpy.zeros(3, numpy.uint64)
    assert wheel.arm_many(numpy.array([3, 1, 2], numpy.uint64), handles) == 3
    frozen = handles[:1].copy()
    frozen.flags.writeable = False
    assert wheel.disarm_many(frozen) == 1
    buffer = bytearray(32)
    assert wheel.advance(5, memoryview(buffer).cast("Q")) == 2
    assert wheel.arm_many(words([]), room(0)) == wheel.disarm_many(words([])) == 0


def test_handles_must_have_room() -> None:
    with pytest.raises(ValueError, match=r"^handles has room for 1; due_ticks holds 2$"):
        Wheel(8).arm_many(words([1, 2]), room(1))


def test_the_c_methods_say_the_same() -> None:
    wheel = Wheel(8)
    said = probe.call_without_gil(wheel, 5000, 6000)
    assert said == (True, True, 5000, True, 2, 1, True, 5000, 1, True)


# --- memory ---------------------------------------------------------------------------------------


def test_an_empty_wheel_is_small() -> None:
    """It commits next to nothing; the slots are counted, but not touched."""
    assert Wheel().stats()["bytes_committed"] < 120_000


def churn(wheel: Wheel, handles: array.array[int], rounds: int, spread: int) -> None:
    rng = random.Random(3)
    new = room(1)
    for _ in range(rounds):
        at = rng.randrange(len(handles))
        assert wheel.disarm(handles[at])
        wheel.arm_many(words([wheel.now_tick + 1 + rng.randrange(spread)]), new)
        handles[at] = new[0]


@pytest.mark.parametrize("spread", [1, 3_600_000, 1 << 31])
def test_dead_entries_stay_below_the_live_ones(spread: int) -> None:
    """Also when all are in one slot, which is then swept piece by piece."""
    wheel = Wheel(30_000)
    handles = room(20_000)
    wheel.arm_many(words([spread // 2 + 1] * 20_000), handles)
    chunks = 0
    for _ in range(6):
        churn(wheel, handles, 10_000, spread)
        wheel._check()
        stats = wheel.stats()
        assert stats["dead"] <= stats["live"]
        chunks = max(chunks, stats["chunks"])
    assert wheel.stats()["swept"] > 0
    assert chunks < 2 * 20_000 // 31 + 5000
    rest = sorted((wheel.due_tick(handle), handle) for handle in handles)
    assert sorted(drain(wheel, spread + 1)) == sorted(handle for _, handle in rest)


def test_a_sweep_keeps_the_order() -> None:
    wheel = Wheel(30_000)
    due = 5 * SLOT_1
    handles = dict.fromkeys(arm_all(wheel, [due] * 12_000))
    rng = random.Random(8)
    for _ in range(15_000):
        victim = rng.choice(list(handles)[:3]) if rng.random() < 0.01 else next(iter(handles))
        del handles[victim]
        assert wheel.disarm(victim)
        handles[wheel.arm(due)] = None
    assert wheel.stats()["swept"] > 5000
    wheel._check()
    for now in range(due - WINDOW, due, 50):
        assert drain(wheel, now) == []
    wheel._check()
    assert drain(wheel, due) == list(handles)


def test_a_large_wheel_grows_by_large_steps() -> None:
    count = 1_000_000
    wheel = Wheel()
    handles = room(count)
    due_ticks = words(i * 7919 % 3_600_000 for i in range(count))
    wheel.arm_many(due_ticks, handles)
    assert wheel.stats()["bytes_committed"] < 20 * count
    wheel._check()
    assert wheel.disarm_many(handles[::2]) == count // 2
    assert len(drain(wheel, 3_600_000, 4096)) == count // 2
    wheel._check()


def test_disarming_all_frees_all() -> None:
    wheel = Wheel(30_000)
    handles = room(20_000)
    wheel.arm_many(words(i * 1000 for i in range(20_000)), handles)
    wheel.disarm_many(handles[:-1])
    assert wheel.stats()["dead"] > 0
    wheel.disarm(handles[-1])
    stats = wheel.stats()
    assert (stats["live"], stats["dead"], stats["chunks"], stats["indices"]) == (0, 0, 0, 0)
    wheel._check()


def test_advances_sweep_after_a_mass_disarm() -> None:
    wheel = Wheel(30_000)
    handles = room(20_000)
    wheel.arm_many(words([1 << 30] * 20_000), handles)
    wheel.disarm_many(handles[:-10])
    out = room(1)
    for now in range(100):
        wheel.advance(now, out)
    stats = wheel.stats()
    assert (stats["live"], stats["dead"] <= 1034) == (10, True)
    wheel._check()
    assert drain(wheel, 1 << 30) == handles[-10:].tolist()


# --- the parts, and the check ---------------------------------------------------------------------


def test_the_bitmap_finds_what_dumb_looping_finds() -> None:
    rng = random.Random(4)
    for size in (0, 1, 2, 40, 4000):
        occupied = set(rng.sample(range(4096), size))
        for number in (0, 1, 63, 64, 4095, rng.randrange(4096), 4096 * 7 + 4000):
            dumb = (n for n in range(number, number + 4096) if n % 4096 in occupied)
            assert probe.walk_bits(occupied, number) == next(dumb, None)


def built() -> Wheel:
    wheel = Wheel(1000)
    arm_all(wheel, [10] * 50 + [SLOT_1 * 9] * 50 + [SLOT_2 * 9] * 50 + [1 << 40, 1 << 41])
    wheel.disarm(wheel.arm(11))
    return wheel


def skip_cascade(wheel: Wheel, tick: int) -> None:
    drain(wheel, 20)
    probe.skip_cascade(wheel, tick)


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (probe.break_live, r"live timers found do not agree with live \(152\)"),
        (probe.break_dead, r"dead entries found do not agree with dead \(1\)"),
        (lambda wheel: probe.break_bit(wheel, 1), "bit and count of a slot of level 1"),
        (lambda wheel: probe.break_summary(wheel, 2), "summary has no bit for a slot"),
        (lambda wheel: probe.break_count(wheel, 0), "chain of chunks does not end at the tail"),
        (lambda wheel: probe.break_tail(wheel, 0), "chain of chunks does not end at the tail"),
        (lambda wheel: probe.break_entry(wheel, 0), "entry is in a wrong slot"),
        (lambda wheel: probe.break_entry(wheel, 1), "due tick is not its slot's"),
        (lambda wheel: probe.break_chain(wheel, 1), "chain of chunks is shorter than the count"),
        (probe.break_chunks, "chunks in slots and free ones do not add up"),
        (probe.break_free_index, "index is free twice, or live"),
        (probe.break_heap, "heap is out of order"),
        (probe.break_place, "record does not know its place in a heap"),
        (probe.break_cursor, "cursor is ahead of now"),
        (lambda wheel: skip_cascade(wheel, SLOT_1 * 9), "slot has not been moved down"),
        (lambda wheel: probe.set_generation(wheel, 150, 4), "heap holds a stale handle"),
    ],
)
def test_the_check_fails_on_a_broken_wheel(breaks: Callable[[Wheel], None], message: str) -> None:
    wheel = built()
    wheel._check()
    breaks(wheel)
    with pytest.raises(AssertionError, match=message):
        wheel._check()
