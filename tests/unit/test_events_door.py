"""The events door: what is counted, what is wanted, what is sent."""

from __future__ import annotations

import json
import struct

import pytest

from edgenode.doors import events
from edgenode.doors.events import EventsDoor

Frames = tuple[bytes, ...]


class FakeOutlet:
    """Stands for the socket: subscriptions from a list, messages into one."""

    def __init__(self, *subscriptions: bytes) -> None:
        self.inbox: list[Frames] = [(b"\1" + prefix,) for prefix in subscriptions]
        self.sent: list[Frames] = []
        self.dropped_full = 0

    def drain(self, limit: int, frames_max: int = 12) -> list[Frames]:
        came, self.inbox = self.inbox[:limit], self.inbox[limit:]
        return came

    def send(self, messages: list[Frames]) -> int:
        self.sent.extend(messages)
        return len(messages)


def stamps(outlet: FakeOutlet) -> list[tuple[int, ...]]:
    return [struct.unpack(">4q", frames[1]) for frames in outlet.sent]


def test_every_event_carries_its_numbers() -> None:
    outlet = FakeOutlet()
    door = EventsDoor(outlet)
    door.publish("default", "timer.scheduled", b"t/a", 11, 0, b"{}")
    door.publish("default", "timer.expired", b"t/b", 12, 99, b"{}")
    door.publish("other", "timer.expired", b"t/c", 13, 98, b"{}")
    assert outlet.sent == []
    door.flush()
    assert [frames[0] for frames in outlet.sent] == [b"t/a", b"t/b", b"t/c"]
    assert stamps(outlet) == [(11, 0, 1, 1), (12, 99, 2, 1), (13, 98, 1, 1)]


def test_what_nobody_wanted_is_counted_all_the_same() -> None:
    outlet = FakeOutlet()
    door = EventsDoor(outlet)
    door.publish("default", "timer.expired", b"", 1, 5, None)
    door.publish("default", "timer.scheduled", b"", 2, 0, None)
    door.publish("default", "timer.expired", b"t/x", 3, 6, b"{}")
    door.flush()
    assert stamps(outlet) == [(3, 6, 3, 2)]


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
    outlet = FakeOutlet()
    door = EventsDoor(outlet)
    assert not door.wanted(b"t/default/e/timer.expired/")
    outlet.inbox = [(b"\1" + subscribed,)]
    door.take_subscriptions()
    assert door.wanted(b"t/default/e/timer.expired/") is wanted
    outlet.inbox = [(b"\0" + subscribed,)]
    door.take_subscriptions()
    assert not door.wanted(b"t/default/e/timer.expired/")
    assert door.subscriptions_count == 0


def test_subscriptions_from_before_count_and_noise_does_not() -> None:
    outlet = FakeOutlet(b"t/default/")
    outlet.inbox += [(b"",), (b"\2t/other/",), (b"hello", b"\1t/other/"), (b"\0t/never/",)]
    door = EventsDoor(outlet)
    assert door.wanted(b"t/default/e/")
    assert not door.wanted(b"t/other/")
    assert door.subscriptions_count == 1


def test_a_subscription_that_is_not_admitted_counts_for_nothing() -> None:
    outlet = FakeOutlet(b"t/default/", b"t/other/")
    door = EventsDoor(outlet, admit=lambda prefix: prefix.startswith(b"t/default/"))
    assert door.wanted(b"t/default/e/")
    assert not door.wanted(b"t/other/e/")


def test_too_many_subscriptions_want_everything_until_they_are_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "SUBSCRIPTIONS_MAX", 2)
    outlet = FakeOutlet(b"a", b"b", b"c", b"d")
    door = EventsDoor(outlet)
    assert door.wanted(b"z")
    assert door.subscriptions_count == 4
    outlet.inbox = [(b"\0c",), (b"\0d",)]
    door.take_subscriptions()
    assert not door.wanted(b"z")
    assert door.wanted(b"b")


def test_answers_that_are_remembered_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "WANTED_MAX", 3)
    door = EventsDoor(FakeOutlet(b"7"))
    assert [door.wanted(b"%d" % n) for n in range(10)] == [n == 7 for n in range(10)]


def test_a_long_queue_is_sent_without_a_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "QUEUE_MAX", 3)
    outlet = FakeOutlet()
    door = EventsDoor(outlet)
    for seq in range(1, 5):
        door.publish("default", "timer.expired", b"t", seq, 0, b"{}")
    assert [stamp[0] for stamp in stamps(outlet)] == [1, 2, 3]
    door.flush()
    assert [stamp[0] for stamp in stamps(outlet)] == [1, 2, 3, 4]


def test_a_heartbeat_says_how_far_everything_is() -> None:
    outlet = FakeOutlet()
    door = EventsDoor(outlet, boot="b1")
    for type in ("timer.expired", "timer.expired", "timer.scheduled"):
        door.publish("default", type, b"", 1, 0, None)
    door.heartbeat("default", epoch=3, floor=17, now_ns=1_800_000_000_000_000_001)
    door.heartbeat("other", epoch=3, floor=17, now_ns=0, clock_error_us=4)
    door.flush()
    first, second = outlet.sent
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
