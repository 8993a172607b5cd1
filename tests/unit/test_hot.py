"""The hot set: its edges, its growth, what it refuses; `model/test_hot_model.py` has the rest."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from engine._hot import HotSet
from engine._wheel import Wheel
from engine.errors import WheelFull

TICK_NS = 1_000_000


def id_of(n: int) -> bytes:
    return (n * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") + n.to_bytes(8, "big")


def packed(rows: list[tuple[bytes, int]]) -> tuple[bytes, bytes]:
    ids = b"".join(id for id, _ in rows)
    return ids, b"".join(due_ns.to_bytes(8, "little", signed=True) for _, due_ns in rows)


def make(capacity: int = 1 << 20) -> HotSet:
    return HotSet(Wheel(capacity))


def test_a_note_says_where_the_newest_record_is() -> None:
    hot = make()
    assert hot.get(id_of(1)) is None
    hot.note(id_of(1), 7, 500, 1)
    assert hot.get(id_of(1)) == (7, 500, 1, False)
    hot.note(id_of(1), 9, 0, 0)
    assert hot.get(id_of(1)) == (9, 0, 0, False)
    assert (len(hot), hot.newer_count, hot.armed_count) == (1, 1, 0)


def test_an_entry_is_gone_once_it_says_nothing() -> None:
    hot = make()
    hot.arm(id_of(1), 5)
    assert hot.get(id_of(1)) == (0, 0, 0, True)
    hot.note(id_of(1), 3, 5 * TICK_NS, 0)
    assert hot.sweep(3, 100) == 3
    assert hot.get(id_of(1)) == (0, 5 * TICK_NS, 0, True)
    assert hot.disarm(id_of(1))
    assert not hot.disarm(id_of(1))
    assert hot.get(id_of(1)) is None
    assert len(hot) == 0


def test_due_ids_come_in_order_and_in_portions() -> None:
    hot = make()
    for n in range(3000):
        hot.arm(id_of(n), 10 + (n * 7) % 500)
    assert hot.next_tick() == 10
    assert hot.advance(9, 10) == []
    fired = hot.advance(600, 1100)
    assert len(fired) == 1100
    hot._check()
    fired += hot.advance(600, 5000)
    assert [10 + (int.from_bytes(id[8:], "big") * 7) % 500 for id in fired] == sorted(
        10 + (n * 7) % 500 for n in range(3000)
    )
    assert hot.next_tick() is None
    assert len(hot) == 0


def test_arming_again_moves_a_timer() -> None:
    hot = make()
    hot.arm(id_of(1), 5)
    hot.arm(id_of(1), 50)
    assert hot.armed_count == 1
    assert hot.advance(49, 10) == []
    assert hot.advance(50, 10) == [id_of(1)]


def test_load_rounds_deadlines_up_and_lets_newer_records_rule() -> None:
    hot = make()
    hot.note(id_of(1), 4, 0, 0)
    hot.arm(id_of(2), 77)
    rows = [(id_of(n), 10 * TICK_NS + n) for n in range(4)]
    assert hot.load(*packed(rows), 0, 0, TICK_NS) == 2
    assert hot.get(id_of(3)) == (0, 10 * TICK_NS + 3, 0, True)
    assert hot.advance(10, 10) == [id_of(0)]
    assert hot.advance(11, 10) == [id_of(3)]
    assert hot.load(*packed([(id_of(9), 12 * TICK_NS)]), 1, -1, TICK_NS) == 1
    assert hot.load(*packed([(id_of(8), 12 * TICK_NS)]), 1, 1, TICK_NS) == 1
    assert hot.advance(12, 10) == [id_of(9)]
    assert hot.advance(13, 10) == [id_of(8)]


@pytest.mark.parametrize("shift_ns", [-(2**62), 2**62])
def test_load_bears_dues_at_the_end_of_time(shift_ns: int) -> None:
    hot = make()
    assert hot.load(*packed([(id_of(1), 2**63 - 1), (id_of(2), -(2**63))]), 0, 0, TICK_NS) == 2
    assert hot.load(*packed([(id_of(3), 2**63 - 1), (id_of(4), 1)]), 0, shift_ns, TICK_NS) == 2
    assert id_of(2) in hot.advance(1, 10)
    hot._check()


def test_load_newer_takes_its_window_and_scale() -> None:
    hot = make()
    for n, (due_ns, scale) in enumerate([(100, 0), (199, 0), (200, 0), (150, 1), (0, 0)]):
        hot.note(id_of(n), n + 1, due_ns, scale)
    assert hot.load_newer(100, 200, 0, 0, 1) == 2
    assert hot.load_newer(100, 200, 0, 0, 1) == 0
    assert hot.advance(1000, 10) == [id_of(0), id_of(1)]


def test_newer_due_tells_of_its_window_and_scale_and_arms_nothing() -> None:
    hot = make()
    for n, (due_ns, scale) in enumerate([(100, 0), (199, 0), (200, 0), (150, 1), (0, 0)]):
        hot.note(id_of(n), n + 1, due_ns, scale)
    hot.load(*packed([(id_of(9), 150)]), 0, 0, 1)  # the tables have it
    assert hot.newer_due(100, 200, 0) == [(id_of(0), 100), (id_of(1), 199)]
    assert hot.newer_due(0, 1 << 62, 1) == [(id_of(3), 150)]
    assert hot.armed_count == 1


def test_disarming_by_scale_and_by_tick() -> None:
    hot = make()
    hot.load(*packed([(id_of(n), 10 * n) for n in range(1, 5)]), 0, 0, 1)
    hot.load(*packed([(id_of(n), 10 * n) for n in range(5, 9)]), 1, 0, 1)
    hot.note(id_of(8), 3, 80, 1)
    assert hot.disarm_beyond(60) == 2
    assert hot.get(id_of(7)) is None
    assert hot.get(id_of(8)) == (3, 80, 1, False)
    assert hot.disarm_scale(1) == 2
    assert len(hot) == 5
    assert hot.advance(100, 10) == [id_of(n) for n in range(1, 5)]


def test_a_sweep_promises_only_what_a_whole_round_has_done() -> None:
    hot = make()
    for n in range(100):
        hot.note(id_of(n), n + 1, 0, 0)
    assert hot.sweep(50, 60) == 0
    assert hot.newer_count == 50
    assert hot.sweep(80, 60) == 50  # what was passed by then may still hold 51 to 60
    assert hot.sweep(80, 1000) == 80
    assert hot.newer_count == 20
    assert hot.sweep(80, 1000) == 80
    hot.note(id_of(1), 70, 0, 0)  # a record that came back with a restart
    assert hot.sweep(80, 0) == 69
    hot._check()


def test_clear_leaves_a_hot_set_as_new() -> None:
    hot = make()
    for n in range(5000):
        hot.note(id_of(n), n + 1, 0, 0)
        hot.arm(id_of(n), n)
    hot.sweep(10, 10)
    hot.clear()
    hot._check()
    assert (len(hot), hot.armed_count, hot.newer_count, hot.next_tick()) == (0, 0, 0, None)
    hot.note(id_of(3), 1, 0, 0)
    assert hot.get(id_of(3)) == (1, 0, 0, False)
    hot._check()


def test_a_full_wheel_refuses_and_nothing_is_half_done() -> None:
    hot = make(capacity=2)
    hot.arm(id_of(1), 5)
    hot.arm(id_of(2), 5)
    with pytest.raises(WheelFull, match="the wheel holds 2 timers"):
        hot.arm(id_of(3), 5)
    assert hot.get(id_of(3)) is None
    hot.note(id_of(4), 1, 5, 0)
    with pytest.raises(WheelFull):
        hot.load_newer(0, 10, 0, 0, 1)
    with pytest.raises(WheelFull):
        hot.load(*packed([(id_of(5), 5)]), 0, 0, 1)
    assert len(hot) == 3
    hot._check()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda hot: hot.note(b"short", 1, 0, 0), "an id is 5 bytes; a timer's has 16"),
        (lambda hot: hot.note(id_of(1), 0, 0, 0), "seq is 0"),
        (lambda hot: hot.load(bytes(16), bytes(7), 0, 0, 1), "16 bytes of ids do not go with 7"),
        (lambda hot: hot.load(bytes(17), bytes(8), 0, 0, 1), "17 bytes of ids do not go with 8"),
        (lambda hot: hot.load(b"", b"", 0, 0, 0), "a tick is at least 1 ns"),
        (lambda hot: hot.load_newer(0, 1, 0, 0, -1), "a tick is at least 1 ns"),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[HotSet], object], words: str) -> None:
    hot = make()
    with pytest.raises(ValueError, match=words):
        call(hot)
    assert len(hot) == 0


def test_it_wants_an_empty_wheel() -> None:
    used = make()
    used.arm(id_of(1), 5)
    with pytest.raises(ValueError, match="the wheel holds 1 timers"):
        HotSet(used.wheel)


def test_the_wheel_does_not_turn_back() -> None:
    hot = make()
    hot.advance(5, 1)
    with pytest.raises(ValueError, match="now_tick is 4; the wheel is at 5 already"):
        hot.advance(4, 1)


def test_growing_and_shrinking_keeps_every_entry() -> None:
    hot = make()
    for n in range(40_000):
        hot.note(id_of(n), n + 1, n, 0)
    hot._check()
    assert all(hot.get(id_of(n)) == (n + 1, n, 0, False) for n in range(0, 40_000, 7))
    hot.sweep(39_000, 1 << 20)
    hot._check()
    assert len(hot) == 1000
    for n in range(20_000):
        hot.note(id_of(n), 50_000 + n, n, 0)
    hot._check()
    assert len(hot) == 21_000


def test_no_call_stalls_while_it_grows() -> None:
    hot = make()
    notes_us = []
    for n in range(200_000):
        id = id_of(n)
        began = time.thread_time_ns()
        hot.note(id, n + 1, 1, 0)
        notes_us.append((time.thread_time_ns() - began) // 1000)
    assert max(notes_us) < 1000


def test_an_armed_timer_costs_60_bytes_at_most() -> None:
    hot = make()
    count = 1_000_000
    ids = random.Random(1).randbytes(16 * count)
    assert hot.load(ids, (5 * TICK_NS).to_bytes(8, "little") * count, 0, 0, TICK_NS) == count
    assert hot.bytes_committed / count <= 60
