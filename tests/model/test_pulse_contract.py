"""The pulse, real and virtual: nothing early, nothing lost, each thing once, in its order."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from edgenode.virtual import VirtualPulse
from engine._pulse import Pulse
from engine._wait import Waiter, boottime_ns
from engine.clock import VirtualClock
from engine.pulse import COUNTERS_ROW, SLOTS, Left, Release

MS = 1_000_000
UTC0 = 1_800_000_000_000_000_000
WAIT_NS = 10_000 * MS


class Flushing:
    """Has each thing that is handed over be seen at once."""

    def __init__(self, pulse: Any) -> None:
        self.inner = pulse

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if name not in ("send", "hold", "beat", "tally"):
            return found

        def call(*what: Any) -> Any:
            done = found(*what)
            self.inner.flush()
            return done

        return call


class Real:
    """The pulse over a socket, and a subscriber that hears everything."""

    def __init__(self, **how: Any) -> None:
        self.context = zmq.Context[zmq.Socket[bytes]]()
        self.socket = self.context.socket(zmq.XPUB)
        self.socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self.socket.setsockopt(zmq.XPUB_NODROP, 1)
        self.socket.setsockopt(zmq.SNDHWM, how.pop("hwm", 0))
        self.socket.bind("inproc://pulse")
        told = {"spin_max_ns": 150_000, "spin_percent": 5, "realtime": "auto"} | how
        self.pulse: Any = Flushing(Pulse(self.socket, **told))
        self.ear = self.context.socket(zmq.SUB)
        self.ear.rcvhwm = 0
        self.ear.subscribe(b"")
        self.ear.connect("inproc://pulse")
        until(lambda: self.pulse.subscriptions() == [b"\1"])

    def now_ns(self) -> int:
        return boottime_ns()

    def reach(self, boot_ns: int) -> None:
        Waiter([]).wait(boot_ns)

    def heard(self, count: int) -> list[tuple[bytes, ...]]:
        came: list[tuple[bytes, ...]] = []
        while len(came) < count and self.ear.poll(2_000):
            came.append(tuple(self.ear.recv_multipart()))
        assert not self.ear.poll(5), "more came than was sent"
        return came

    def close(self) -> None:
        self.pulse.close()
        self.context.destroy(linger=0)


class Virtual:
    """The pulse of the virtual node."""

    def __init__(self, **how: Any) -> None:
        self.clock = VirtualClock(boot_ns=1_000 * MS)
        self.pulse: Any = VirtualPulse(self.clock, how.get("room", SLOTS))

    def now_ns(self) -> int:
        return self.clock.steady_boot_ns()

    def reach(self, boot_ns: int) -> None:
        # What is due leaves on its instant, as far as this clock can tell.
        while (next_ns := self.pulse.next_ns) is not None and next_ns <= boot_ns:
            self.clock.advance(max(next_ns - self.now_ns(), 0))
            self.pulse.run()
        self.clock.advance(max(boot_ns - self.now_ns(), 0))
        self.pulse.run()

    def heard(self, count: int) -> list[tuple[bytes, ...]]:
        sent, self.pulse.sent = self.pulse.sent, []
        return sent

    def close(self) -> None:
        pass


def until(true: Callable[[], bool]) -> None:
    end_ns = boottime_ns() + WAIT_NS
    while not true():
        assert boottime_ns() < end_ns, "it did not come true"
        time.sleep(0.001)


@pytest.fixture(params=[Real, Virtual])
def edge(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = request.param()
    yield made
    made.close()


def release(seq: int, due_ns: int, *, wall: bool = False, body: bytes | None = b"{}") -> Release:
    return (due_ns, seq, UTC0 + due_ns, wall, False, b"t/%d" % seq, body)


def take_all(edge: Any, count: int) -> list[Left]:
    left: list[Left] = []

    def came() -> bool:
        left.extend(edge.pulse.take())
        return len(left) >= count

    until(came)
    return left


def stamps(frames: list[tuple[bytes, ...]]) -> list[tuple[int, ...]]:
    return [struct.unpack(">4q", each[1]) for each in frames]


def test_expiries_leave_by_their_dues_and_never_early(edge: Any) -> None:
    now_ns = edge.now_ns()
    dues = {seq: now_ns + random.Random(seq).randrange(60) * MS for seq in range(1, 201)}
    for seq, due_ns in dues.items():
        assert edge.pulse.hold(release(seq, due_ns), 1)
    assert edge.pulse.held_count == 200
    edge.reach(now_ns + 70 * MS)
    left = take_all(edge, 200)
    assert edge.pulse.held_count == 0
    # What was due when it came may leave before an earlier one that comes later.
    coming = [seq for seq, *_ in left if dues[seq] > now_ns + 10 * MS]
    assert coming == sorted(coming, key=lambda seq: (dues[seq], seq))
    assert sorted(seq for seq, *_ in left) == sorted(dues)
    for seq, fired_ns, late_ns, misfire in left:
        assert late_ns >= 0
        assert fired_ns == UTC0 + dues[seq] + late_ns
        assert not misfire
    heard = stamps(edge.heard(200))
    assert [(seq, fired) for seq, fired, *_ in heard] == [(seq, at) for seq, at, *_ in left]
    assert [numbers[2:] for numbers in heard] == [(n, n) for n in range(1, 201)]


def test_numbers_are_those_of_tenant_and_type(edge: Any) -> None:
    assert edge.pulse.send(1, 1, b"a", b"x")
    assert edge.pulse.tally(2, 3)
    assert edge.pulse.send(3, COUNTERS_ROW + 1, b"c", b"x")
    assert edge.pulse.send(4, 2, b"d", b"x")
    assert edge.pulse.beat(b"hb", b"{}")
    frames = edge.heard(4)
    assert [each[0] for each in frames] == [b"a", b"c", b"d", b"hb"]
    assert stamps(frames) == [(1, 0, 1, 1), (3, 0, 1, 1), (4, 0, 5, 4), (0, 0, 0, 0)]
    assert edge.pulse.counts(0)[:3] == [5, 1, 4]
    assert edge.pulse.counts(COUNTERS_ROW)[:2] == [1, 1]


def test_what_nobody_wants_comes_back_all_the_same(edge: Any) -> None:
    edge.pulse.hold(release(1, edge.now_ns(), body=None), 1)
    edge.reach(edge.now_ns() + MS)
    assert [left[0] for left in take_all(edge, 1)] == [1]
    assert edge.heard(0) == []


def test_the_wall_clock_moves_its_own_and_no_other(edge: Any) -> None:
    now_ns = edge.now_ns()
    edge.pulse.hold(release(1, now_ns + 40 * MS, wall=True), 1)
    edge.pulse.hold(release(2, now_ns + 60 * MS), 1)
    edge.pulse.hold(release(3, now_ns + 3_600_000 * MS, wall=True), 1)
    edge.pulse.move(60 * MS)
    edge.reach(now_ns + 70 * MS)
    assert [left[0] for left in take_all(edge, 1)] == [2]
    edge.pulse.move(-3_600_000 * MS)
    edge.reach(now_ns + 130 * MS)
    assert [left[0] for left in take_all(edge, 2)] == [1, 3]


def test_cleared_expiries_never_leave_and_the_others_have(edge: Any) -> None:
    now_ns = edge.now_ns()
    edge.pulse.hold(release(1, now_ns), 1)
    for seq in range(2, 50):
        edge.pulse.hold(release(seq, now_ns + 100 * MS), 1)
    edge.reach(now_ns + 5 * MS)
    edge.pulse.clear()
    assert [left[0] for left in edge.pulse.take()] == [1]
    assert edge.pulse.held_count == 0
    edge.reach(now_ns + 120 * MS)
    assert edge.pulse.take() == []
    assert [stamp[0] for stamp in stamps(edge.heard(1))] == [1]


def test_without_room_it_says_so_and_has_room_again(edge: Any) -> None:
    far_ns = edge.now_ns() + 3_600_000 * MS
    held = 0
    while edge.pulse.hold(release(held + 1, far_ns, wall=True, body=None), 1):
        held += 1
    assert SLOTS - 1 <= held <= SLOTS
    edge.pulse.clear()
    assert edge.pulse.held_count == 0
    assert edge.pulse.hold(release(1, far_ns), 1)


def test_a_closed_pulse_has_sent_what_was_to_leave_at_once() -> None:
    real = Real()
    for seq in range(1_000):
        assert real.pulse.send(seq, 1, b"t", b"x" * 100)
    real.pulse.hold(release(1, real.now_ns() + 3_600_000 * MS), 2)
    real.pulse.close()
    assert [stamp[0] for stamp in stamps(real.heard(1_000))] == list(range(1_000))
    with pytest.raises(ValueError, match="closed"):
        real.pulse.send(1, 1, b"t", b"x")
    real.close()


def test_spinning_is_bounded_by_its_share() -> None:
    real = Real(spin_percent=1, realtime="off")
    try:
        began_ns = real.now_ns()
        for at in range(400):
            real.pulse.hold(release(at + 1, began_ns + at * MS, body=None), 1)
        real.reach(began_ns + 420 * MS)
        assert len(take_all(real, 400)) == 400
        stats = real.pulse.stats()
        assert stats["policy"] == "other"
        # A spin may begin with the last of the credit: at most 150 us beyond it, once.
        assert stats["spin_us"] <= 4_200 + 300 + stats["reach_us"]
    finally:
        real.close()


def test_a_subscriber_that_stalls_is_left_out_and_the_others_hear_all() -> None:
    real = Real(hwm=100)
    try:
        for number in (1, 2):  # a second one is noticed as well
            stalled = real.context.socket(zmq.SUB)
            stalled.rcvhwm = 1
            stalled.subscribe(b"")
            stalled.connect("inproc://pulse")
            until(lambda: len(real.pulse.subscriptions()) == 1)
            for seq in range(3_000):
                until(lambda seq=seq: real.pulse.send(seq, 1, b"t", bytes(100)))  # type: ignore[misc]
                if seq % 50 == 49:
                    assert [s[0] for s in stamps(real.heard(50))] == list(range(seq - 49, seq + 1))
            assert real.pulse.stats()["dropped_full"] >= number
            stalled.close()
    finally:
        real.close()


def test_what_is_not_flushed_waits_for_company() -> None:
    real = Real()
    try:
        for seq in range(63):
            real.pulse.inner.send(seq, 1, b"t", b"x")
        assert not real.ear.poll(50)
        real.pulse.inner.send(63, 1, b"t", b"x")
        assert len(real.heard(64)) == 64
    finally:
        real.close()
