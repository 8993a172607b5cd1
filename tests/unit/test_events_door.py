"""The events door: what is counted, what is wanted, what is sent."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from edgenode.doors import events
from edgenode.doors.events import EventsDoor
from edgenode.virtual import VirtualPulse
from engine.clock import VirtualClock
from engine.pulse import Release

Frames = tuple[bytes, ...]


class FakePulse(VirtualPulse):
    """Subscriptions from a list; `room` for expiries and `full` for the rest."""

    def __init__(self, *subscriptions: bytes, room: int = 100) -> None:
        self.clock = VirtualClock(utc_ns=1_000, boot_ns=1_000)
        super().__init__(self.clock, room)
        self.inbox = [b"\1" + prefix for prefix in subscriptions]
        self.full = False

    def subscriptions(self) -> list[bytes]:
        came, self.inbox = self.inbox, []
        return came

    def send(self, seq: int, counter: int, topic: bytes, body: bytes) -> bool:
        return not self.full and super().send(seq, counter, topic, body)


def opened(pulse: FakePulse, **how: Any) -> EventsDoor:
    door = EventsDoor(pulse, **how)
    door.take_subscriptions()
    return door


def stamps(pulse: FakePulse) -> list[tuple[int, ...]]:
    return [struct.unpack(">4q", frames[1]) for frames in pulse.sent]


def release(seq: int, due_ns: int, *, wall: bool = False) -> Release:
    return (due_ns, seq, due_ns, wall, False, b"t/%d" % seq, b"{}")


def test_every_event_carries_its_numbers() -> None:
    pulse = FakePulse()
    door = EventsDoor(pulse)
    door.publish("default", "timer.scheduled", b"t/a", 11, b"{}")
    door.hold(door.counter("default", "timer.expired"), release(12, 1_500))
    door.hold(door.counter("other", "timer.expired"), release(13, 1_400))
    assert [frames[0] for frames in pulse.sent] == [b"t/a"]
    pulse.clock.advance(600)
    assert door.take() == [(13, 1_600, 200, False), (12, 1_600, 100, False)]
    assert stamps(pulse) == [(11, 0, 1, 1), (13, 1_600, 1, 1), (12, 1_600, 2, 1)]


def test_what_nobody_wanted_is_counted_all_the_same() -> None:
    pulse = FakePulse()
    door = EventsDoor(pulse)
    door.tally("default", "timer.expired", 1)
    door.tally("default", "timer.scheduled", 1)
    door.publish("default", "timer.expired", b"t/x", 3, b"{}")
    assert stamps(pulse) == [(3, 0, 3, 2)]


def test_without_room_events_wait_in_order_and_nothing_is_lost() -> None:
    pulse = FakePulse(room=1)
    door = EventsDoor(pulse)
    for seq in (1, 2):
        door.hold(door.counter("default", "timer.expired"), release(seq, 2_000))
    door.publish("default", "timer.scheduled", b"t/c", 3, b"{}")
    assert door.is_full
    assert door.held_count == 2
    assert pulse.sent == []
    pulse.clock.advance(1_000)
    assert [left[0] for left in door.take()] == [1]
    door.retry()
    assert not door.is_full
    assert [left[0] for left in door.take()] == [2]
    assert [stamp[0] for stamp in stamps(pulse)] == [1, 3, 2]
    assert door.held_count == 0


def test_those_that_wait_for_room_move_with_the_wall_clock_and_are_forgotten_too() -> None:
    pulse = FakePulse(room=1)
    door = EventsDoor(pulse)
    for seq in (1, 2, 3):
        door.hold(door.counter("default", "timer.expired"), release(seq, 2_000, wall=seq != 3))
    door.move(500)
    pulse.clock.advance(1_000)
    assert door.take() == []
    pulse.clock.advance(600)
    assert door.take() == [(1, 2_100, 100, False)]
    door.retry()
    assert door.take() == [(2, 2_100, 100, False)]
    door.clear()
    assert door.held_count == 0
    assert not door.is_full
    assert len(pulse.sent) == 2


@pytest.mark.parametrize(
    ("subscribed", "wanted"),
    [
        (b"", True),
        (b"t/", True),
        (b"t/default/e/timer.expired/", True),
        (b"t/default/e/timer.expired/backup/tmr_1", True),
        (b"t/default/e/timer.exp", True),
        (b"t/default/e/timer.scheduled/", False),
        (b"t/default/~/hb", False),
        (b"t/other/", False),
    ],
)
def test_wanted_looks_both_ways(subscribed: bytes, wanted: bool) -> None:
    pulse = FakePulse()
    door = EventsDoor(pulse)
    assert not door.wanted(b"t/default/e/timer.expired/")
    pulse.inbox = [b"\1" + subscribed]
    door.take_subscriptions()
    assert door.wanted(b"t/default/e/timer.expired/") is wanted
    pulse.inbox = [b"\0" + subscribed]
    door.take_subscriptions()
    assert not door.wanted(b"t/default/e/timer.expired/")
    assert door.subscriptions_count == 0


def test_subscriptions_from_before_count_and_noise_does_not() -> None:
    pulse = FakePulse(b"t/default/")
    pulse.inbox += [b"", b"\2t/other/", b"hello", b"\0t/never/"]
    door = opened(pulse)
    assert door.wanted(b"t/default/e/")
    assert not door.wanted(b"t/other/")
    assert door.subscriptions_count == 1


def test_a_subscription_that_is_not_admitted_counts_for_nothing() -> None:
    pulse = FakePulse(b"t/default/", b"t/other/")
    door = opened(pulse, admit=lambda prefix: prefix.startswith(b"t/default/"))
    assert door.wanted(b"t/default/e/")
    assert not door.wanted(b"t/other/e/")


def test_too_many_subscriptions_want_everything_until_they_are_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "SUBSCRIPTIONS_MAX", 2)
    pulse = FakePulse(b"a", b"b", b"c", b"d")
    door = opened(pulse)
    assert door.wanted(b"z")
    assert door.subscriptions_count == 4
    pulse.inbox = [b"\0c", b"\0d"]
    door.take_subscriptions()
    assert not door.wanted(b"z")
    assert door.wanted(b"b")


def test_answers_that_are_remembered_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "WANTED_MAX", 3)
    door = opened(FakePulse(b"7"))
    assert [door.wanted(b"%d" % n) for n in range(10)] == [n == 7 for n in range(10)]


def test_a_heartbeat_says_how_far_everything_is() -> None:
    pulse = FakePulse()
    door = EventsDoor(pulse, boot="b1")
    for type in ("timer.expired", "timer.expired", "timer.scheduled"):
        door.tally("default", type, 1)
    door.heartbeat("default", epoch=3, floor=17, now_ns=1_800_000_000_000_000_001)
    door.heartbeat("other", epoch=3, floor=17, now_ns=0, clock_error_us=4)
    first, second = pulse.sent
    assert first[:2] == (b"t/default/~/hb", bytes(32))
    assert json.loads(first[2]) == {
        "epoch": 3,
        "boot": "b1",
        "floor": 17,
        "total": 3,
        "ordinals": {"timer.expired": 2, "timer.scheduled": 1},
        "now": "2027-01-15T08:00:00.000000001Z",
        "clock_error_us": None,
    }
    assert json.loads(second[2])["total"] == 0
    assert json.loads(second[2])["clock_error_us"] == 4
