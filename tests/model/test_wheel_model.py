"""The wheel against a sorted list.

The list holds (due_tick, order armed, handle); whatever the wheel does must be what the list says.
Due times crowd around the borders of slots, windows and levels, where a wheel goes wrong.
"""

from __future__ import annotations

import array
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from sortedcontainers import SortedList

from engine._wheel import Wheel
from engine.errors import WheelFull

TICK_MAX = (1 << 64) - 1
CAPACITY = 1500
WIDTHS = [1 << 11, 1 << 22, 1 << 31]  # of a slot of level 1, of level 2, of a window of the top

near_borders = st.builds(
    lambda width, count, shift: count * width + shift,
    st.sampled_from(WIDTHS),
    st.integers(0, 5),
    st.integers(-2, 2),
)
spans = st.one_of(
    st.integers(-20, 20),
    st.integers(0, 5000),
    near_borders,
    st.sampled_from([1 << 33, 1 << 40, 1 << 63]),
    st.integers(0, 1 << 34),
)


class WheelMachine(RuleBasedStateMachine):
    """One wheel, one list, one clock."""

    @initialize(start=st.sampled_from([0, 1, 2047, (1 << 22) - 1, (1 << 31) - 3000, 1 << 40]))
    def begin(self, start: int) -> None:
        self.now = start
        self.wheel = Wheel(CAPACITY, start)
        self.model: SortedList[tuple[int, int, int]] = SortedList()
        self.armed: dict[int, tuple[int, int, int]] = {}
        self.stale: list[int] = []
        self.order = 0

    def note(self, due_tick: int, handle: int) -> None:
        assert handle not in self.armed
        assert handle & 0xFFFFFFFF < CAPACITY
        self.armed[handle] = (due_tick, self.order, handle)
        self.model.add(self.armed[handle])
        self.order += 1

    def tick(self, span: int, align: int) -> int:
        """A due tick `span` from now, or from the border of a slot just before."""
        return min(max(0, (self.now >> align << align) + span), TICK_MAX)

    @rule(span=spans, align=st.sampled_from([0, 0, 11, 22, 31]))
    def arm(self, span: int, align: int) -> None:
        due_tick = self.tick(span, align)
        if len(self.armed) < CAPACITY:
            self.note(due_tick, self.wheel.arm(due_tick))
            return
        with pytest.raises(WheelFull):
            self.wheel.arm(due_tick)

    @rule(span=spans, align=st.sampled_from([0, 11, 22]), count=st.sampled_from([1, 30, 300, 700]))
    def arm_many(self, span: int, align: int, count: int) -> None:
        """Half of them due at the same tick."""
        due_ticks = [self.tick(span + (i if i % 2 else 0), align) for i in range(count)]
        handles = array.array("Q", bytes(8 * count))
        if len(self.armed) + count > CAPACITY:
            with pytest.raises(WheelFull):
                self.wheel.arm_many(array.array("Q", due_ticks), handles)
            return
        assert self.wheel.arm_many(array.array("Q", due_ticks), handles) == count
        for due_tick, handle in zip(due_ticks, handles, strict=True):
            self.note(due_tick, handle)

    @precondition(lambda self: self.armed)
    @rule(seed=st.integers(0, 1 << 16), share=st.sampled_from([0.01, 0.2, 0.9, 1.0]))
    def disarm(self, seed: int, share: float) -> None:
        rng = random.Random(seed)
        chosen = rng.sample(list(self.armed), max(1, int(len(self.armed) * share)))
        for handle in chosen:
            assert self.wheel.is_armed(handle)
            assert self.wheel.due_tick(handle) == self.armed[handle][0]
            self.model.remove(self.armed.pop(handle))
        single = chosen[: len(chosen) // 2]
        assert all(self.wheel.disarm(handle) for handle in single)
        rest = array.array("Q", chosen[len(single) :] + single)
        assert self.wheel.disarm_many(rest) == len(chosen) - len(single)
        self.stale += chosen

    @precondition(lambda self: self.stale)
    @rule(seed=st.integers(0, 1 << 16))
    def use_stale(self, seed: int) -> None:
        handle = random.Random(seed).choice(self.stale)
        assert not self.wheel.is_armed(handle)
        assert not self.wheel.disarm(handle)
        with pytest.raises(LookupError):
            self.wheel.due_tick(handle)

    @rule(span=spans, room=st.sampled_from([1, 2, 31, 1000]), parts=st.integers(1, 400))
    def advance(self, span: int, room: int, parts: int) -> None:
        """Up to `parts` calls; what is left over is left for another rule to meet."""
        self.step(min(self.now + max(0, span), TICK_MAX), room, parts)

    @rule()
    def sleep(self) -> None:
        """Do as an idle owner does."""
        tick = self.wheel.next_tick()
        if tick is not None:
            self.step(tick, 1000, 1)

    def step(self, now: int, room: int, parts: int) -> None:
        self.now = now
        out = array.array("Q", bytes(8 * room))
        for _ in range(parts):
            count = self.wheel.advance(now, out)
            for handle in out[:count]:
                due_tick, _, expected = self.model.pop(0)
                assert (handle, due_tick <= now) == (expected, True)
                del self.armed[handle]
                self.stale.append(handle)
            if count < room:
                assert not self.model or self.model[0][0] > now
                return

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "wheel"):
            return
        self.wheel._check()
        assert len(self.wheel) == len(self.armed)
        assert self.wheel.now_tick == self.now
        few = len(self.model) + self.wheel.stats()["dead"] < 256  # before dead ones are dropped
        tick = self.wheel.next_tick()
        if not self.model:
            assert tick is None
            return
        exact = max(self.model[0][0], self.now)
        assert tick is not None
        assert self.now <= tick <= exact
        if few:
            assert tick == exact


TestWheelModel = WheelMachine.TestCase
TestWheelModel.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


# --- a workload nothing was tuned on --------------------------------------------------------------


def held_out(rng: random.Random, now: int) -> int:
    """Heavy-tailed, or clustered on a few instants, or just beyond a border of the wheel's own."""
    kind = rng.random()
    if kind < 0.5:
        return now + min(int(rng.paretovariate(0.6)), 86_400_000)
    if kind < 0.8:
        return (now // 60_000 + rng.randrange(1, 90)) * 60_000
    width = rng.choice(WIDTHS[:2])
    return (now // width + rng.randrange(1, 4)) * width + rng.choice([-1, 0, 1, width - 1])


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_day_nobody_tuned_for(seed: int) -> None:
    rng = random.Random(seed)
    wheel = Wheel(20_000)
    model: SortedList[tuple[int, int, int]] = SortedList()
    armed: dict[int, tuple[int, int, int]] = {}
    out = array.array("Q", bytes(8 * 512))
    now, order, late = 0, 0, 0
    while now < 86_400_000:
        for _ in range(rng.choice([0, 1, 30, 300])):
            due_tick = held_out(rng, now)
            handle = wheel.arm(due_tick)
            armed[handle] = (due_tick, order, handle)
            model.add(armed[handle])
            order += 1
        for _ in range(rng.choice([0, 10, 100])):
            if armed:
                handle = next(iter(armed)) if rng.random() < 0.5 else next(reversed(armed))
                model.remove(armed.pop(handle))
                assert wheel.disarm(handle)
        tick = wheel.next_tick()
        now += rng.choice([1, 7, 1000, 2048, 60_000, 600_000, (tick or now) - now])
        while True:
            count = wheel.advance(now, out)
            for handle in out[:count]:
                due_tick, _, expected = model.pop(0)
                late += due_tick > now or handle != expected
                del armed[handle]
            if count < len(out):
                break
        assert not model or model[0][0] > now
    assert late == 0
    wheel._check()
