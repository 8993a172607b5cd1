"""The watcher's order, against a model: whatever the feed loses, each event is shown once."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minoots import verbs
from minoots.event import Event, Stamp
from minoots.order import SILENCE_S, Ask, Interest, Listen, Reopen, WatchCore
from minoots.wire.bodies import Cursor, ReplayFrom
from minoots.wire.frames import long_type
from minoots.wire.problems import EpochChanged, OutOfRetention, Unreachable, refusal
from minoots.wire.times import format_instant

KINDS = ("timer.scheduled", "timer.expired", "timer.cancelled")
START_NS = 1_800_000_000_000_000_000


@dataclass
class Model:
    """A node's log, its feed, and the wire between, which loses what it is told to lose."""

    epoch: int = 1
    boot: int = 1
    log: list[str] = field(default_factory=list)  # the type of the event with seq n is log[n - 1]
    held: list[int] = field(default_factory=list)
    ordinals: dict[str, int] = field(default_factory=dict)
    wire: list[list[bytes]] = field(default_factory=list)
    left: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def floor(self) -> int:
        return min(self.held, default=len(self.log) + 1) - 1

    def body(self, seq: int) -> bytes:
        event = {
            "id": f"{self.epoch}-{seq}",
            "type": long_type(self.log[seq - 1]),
            "time": format_instant(START_NS + seq),
            "sequence": f"{seq:020}",
            "epoch": self.epoch,
            "data": {"timer_id": "tmr_1", "name": f"n{seq % 3}", "occurrence": 1},
        }
        return json.dumps(event).encode()

    def append(self, kind: str, *, hold: bool = False) -> None:
        self.log.append(kind)
        self.held.append(len(self.log))
        if not hold:
            self.release(len(self.log))

    def release(self, seq: int) -> None:
        self.held.remove(seq)
        kind = self.log[seq - 1]
        self.ordinals[kind] = self.ordinals.get(kind, 0) + 1
        self.ordinals[""] = self.ordinals.get("", 0) + 1
        stamp = Stamp(seq, 0, self.ordinals[""], self.ordinals[kind])
        self.left[self.epoch, seq] = len(self.left)
        topic = f"t/default/e/{kind}/n{seq % 3}/tmr_1".encode()
        self.wire.append([topic, stamp.pack(), self.body(seq)])

    def beat(self) -> None:
        counts = dict(self.ordinals)
        beat = {
            "epoch": self.epoch,
            "boot": f"b{self.boot}",
            "floor": self.floor,
            "total": counts.pop("", 0),
            "ordinals": counts,
            "now": format_instant(START_NS + len(self.log)),
        }
        self.wire.append([b"t/default/~/hb", bytes(32), json.dumps(beat).encode()])

    def restart(self) -> None:
        self.boot += 1
        self.ordinals.clear()
        for seq in list(self.held):
            self.release(seq)

    def restore(self, keep: int) -> None:
        """A backup of the log's first `keep` events is put in its place."""
        self.held.clear()
        del self.log[keep:]
        self.epoch += 1
        self.restart()

    def answer(self, ask: Ask, page: int = 3) -> Any:
        body = json.loads(ask.request.body)
        if ask.request.op == "stats":
            return {"log": {"epoch": self.epoch, "seq": len(self.log)}}
        if ask.request.op == "stream.snapshot":
            cursor = Cursor(epoch=self.epoch, seq=len(self.log))
            return verbs.SnapshotPage(items=[], next_cursor=None, as_of=cursor)
        start = body.get("from", {})
        if start.get("epoch", self.epoch) != self.epoch:
            raise refusal("epoch_changed", "restored")
        seq = start.get("seq", 0)
        if "time" in start:
            times = [format_instant(START_NS + at + 1) for at in range(len(self.log))]
            seq = sum(time < start["time"] for time in times)
        wanted = body.get("filter", {}).get("types", [])
        events: list[bytes] = []
        while seq < self.floor and len(events) < page:
            seq += 1
            if not wanted or self.log[seq - 1] in wanted:
                events.append(self.body(seq))
        found = b",".join(events)
        end = b"true" if seq >= self.floor else b"false"
        place = b'{"epoch":%d,"seq":%d}' % (self.epoch, seq)
        return ask.request.read(b'{"events":[%b],"next":%b,"end":%b}' % (found, place, end))


@dataclass
class Watcher:
    """A core and what it has shown, driven by hand."""

    core: WatchCore
    shown: list[Event] = field(default_factory=list)
    now_s: float = 0.0

    def take(self) -> None:
        self.shown.extend(self.core.ready)
        self.core.ready.clear()

    def turn(self, model: Model) -> bool:
        """Do what the core asks for; whether it asked for anything."""
        self.now_s += 1.0
        step = self.core.step(self.now_s)
        if isinstance(step, Ask):
            try:
                step.take(model.answer(step))
            except EpochChanged as error:
                self.core.failed(error, self.now_s)
        self.take()
        return isinstance(step, Ask)

    def hear(self, frames: list[bytes]) -> None:
        self.core.heard(frames)
        self.take()

    def calm(self, model: Model) -> None:
        """No more faults: everything leaves, arrives and is answered."""
        for seq in list(model.held):
            model.release(seq)
        for _ in range(3):
            model.beat()
            while model.wire:
                self.hear(model.wire.pop(0))
            for _ in range(200):
                if not self.turn(model):
                    break

    def keys(self) -> list[tuple[int, int]]:
        return [(event.epoch, event.seq) for event in self.shown]


FAULTY = ("deliver", "drop", "twice", "swap", "restart", "fail")
OPS = st.lists(
    st.tuples(
        st.sampled_from(
            ("append", "hold", "release", "beat", "turn", "deliver", "deliver", *FAULTY)
        ),
        st.integers(0, 7),
    ),
    max_size=120,
)


def act(op: str, pick: int, model: Model, watcher: Watcher) -> None:
    wire = model.wire
    if op in ("append", "hold"):
        model.append(KINDS[pick % 3], hold=op == "hold")
    elif op == "release" and model.held:
        model.release(model.held[pick % len(model.held)])
    elif op == "beat":
        model.beat()
    elif op == "turn":
        watcher.turn(model)
    elif op == "fail":
        watcher.core.failed(Unreachable("away"), watcher.now_s)
    elif op == "restart" and pick == 0:
        model.restart()
    elif op == "deliver" and wire:
        watcher.hear(wire.pop(0))
    elif op == "drop" and wire:
        wire.pop(pick % len(wire))
    elif op == "twice" and wire:
        wire.insert(0, wire[0])
    elif op == "swap" and len(wire) > 1:
        wire[0], wire[1] = wire[1], wire[0]


TYPES = st.sampled_from([(), ("timer.expired",), ("timer.expired", "timer.cancelled")])


@given(ops=OPS, types=TYPES, seq=st.integers(0, 4), small=st.booleans())
@settings(max_examples=600, deadline=None)
def test_each_event_after_a_cursor_is_shown_once(
    ops: list[tuple[str, int]], types: tuple[str, ...], seq: int, small: bool
) -> None:
    model = Model()
    for at in range(4):
        model.append(KINDS[at % 3])
    held_max, seen_max = (2, 3) if small else (100, 100)
    start = ReplayFrom(epoch=1, seq=seq)
    core = WatchCore(Interest(types=types), start, held_max=held_max, seen_max=seen_max)
    watcher = Watcher(core)
    for op, pick in ops:
        act(op, pick, model, watcher)
    watcher.calm(model)
    wanted = [(1, at) for at in range(seq + 1, len(model.log) + 1)]
    wanted = [key for key in wanted if not types or model.log[key[1] - 1] in types]
    assert sorted(watcher.keys()) == wanted
    assert core.cursor == Cursor(epoch=1, seq=len(model.log))
    assert core.seen_count == 0


@given(ops=OPS, types=TYPES)
@settings(max_examples=300, deadline=None)
def test_from_now_on_each_event_is_shown_once(
    ops: list[tuple[str, int]], types: tuple[str, ...]
) -> None:
    model = Model()
    for _ in range(3):
        model.append("timer.expired")
    model.append("timer.expired", hold=True)
    model.wire.clear()
    model.beat()
    watcher = Watcher(WatchCore(Interest(types=types), None))
    watcher.hear(model.wire.pop())
    assert watcher.core.live
    for op, pick in ops:
        act(op, pick, model, watcher)
    watcher.calm(model)
    wanted = [(1, at) for at in range(4, len(model.log) + 1)]
    wanted = [key for key in wanted if not types or model.log[key[1] - 1] in types]
    assert sorted(watcher.keys()) == wanted


@given(ops=OPS, keep=st.integers(0, 6), at=st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_a_restored_log_is_read_anew_and_nothing_of_it_is_missed(
    ops: list[tuple[str, int]], keep: int, at: int
) -> None:
    model = Model()
    for _ in range(4):
        model.append("timer.expired")
    watcher = Watcher(WatchCore(Interest(), ReplayFrom()))
    watcher.turn(model)
    for op, pick in ops[:at]:
        act(op, pick, model, watcher)
    model.restore(keep)
    for op, pick in ops[at:]:
        act(op, pick, model, watcher)
    watcher.calm(model)
    keys = watcher.keys()
    assert len(keys) == len(set(keys))
    new = sorted(key for key in keys if key[0] == 2)
    assert new == [(2, seq) for seq in range(1, len(model.log) + 1)]


LOSSES = st.lists(
    st.tuples(
        st.sampled_from(
            ("append", "append", "hold", "release", "beat", "turn", "deliver", "deliver", "drop")
        ),
        st.integers(0, 7),
    ),
    max_size=150,
)


@given(ops=LOSSES)
@settings(max_examples=400, deadline=None)
def test_what_left_earlier_and_stands_earlier_in_the_log_is_shown_earlier(
    ops: list[tuple[str, int]],
) -> None:
    model = Model()
    watcher = Watcher(WatchCore(Interest(), ReplayFrom()))
    for op, pick in ops:
        act(op, pick, model, watcher)
    watcher.calm(model)
    keys = watcher.keys()
    for at, later in enumerate(keys):
        for earlier in keys[:at]:
            both = later[1] < earlier[1] and model.left[later] < model.left[earlier]
            assert not both, f"{later} was shown after {earlier}"


def live(count: int = 0) -> tuple[Model, Watcher]:
    model = Model()
    for _ in range(count):
        model.append("timer.expired")
    model.wire.clear()
    model.beat()
    watcher = Watcher(WatchCore(Interest(), None))
    watcher.hear(model.wire.pop())
    return model, watcher


def test_a_jump_holds_what_is_live_until_the_loss_is_replayed() -> None:
    model, watcher = live()
    for _ in range(3):
        model.append("timer.expired")
    watcher.hear(model.wire[0])
    watcher.hear(model.wire[2])
    assert [event.seq for event in watcher.shown] == [1]
    while watcher.turn(model):
        pass
    assert [event.seq for event in watcher.shown] == [1, 2, 3]


def test_a_loss_at_the_end_is_noticed_by_the_next_heartbeat() -> None:
    model, watcher = live()
    model.append("timer.expired")
    model.wire.clear()
    model.beat()
    assert isinstance(watcher.core.step(0), Listen)
    watcher.hear(model.wire.pop())
    while watcher.turn(model):
        pass
    assert [event.seq for event in watcher.shown] == [1]


def test_a_replay_waits_for_what_is_committed_ahead_of_its_instant() -> None:
    model, watcher = live()
    model.append("timer.expired", hold=True)
    model.append("timer.scheduled")
    model.append("timer.scheduled")
    watcher.hear(model.wire[1])  # the first of the two is lost, and stands behind a held one
    for _ in range(5):
        watcher.turn(model)
    assert watcher.shown == []
    model.release(1)
    for _ in range(5):
        watcher.turn(model)
    assert [event.seq for event in watcher.shown] == [1, 2, 3]


def test_silence_asks_for_a_new_subscription() -> None:
    _, watcher = live()
    watcher.core.idle(SILENCE_S)
    assert isinstance(watcher.core.step(0), Reopen)
    assert isinstance(watcher.core.step(0), Listen)


def test_a_snapshot_replays_from_the_beats_floor_if_that_is_lower() -> None:
    model = Model()
    model.append("timer.scheduled")
    model.append("timer.expired", hold=True)
    model.wire.clear()
    watcher = Watcher(WatchCore(Interest(), None, snapshot=True))
    assert not watcher.turn(model)
    model.beat()
    watcher.hear(model.wire.pop())
    watcher.turn(model)
    watcher.calm(model)
    assert [event.seq for event in watcher.shown] == [2]


def test_a_cursor_of_another_epoch_and_a_log_that_is_too_short_are_told() -> None:
    model = Model(epoch=2)
    core = WatchCore(Interest(), ReplayFrom(epoch=1, seq=0))
    step = core.step(0)
    assert isinstance(step, Ask)
    with pytest.raises(EpochChanged) as told:
        model.answer(step)
    with pytest.raises(EpochChanged):
        core.failed(told.value, 0)
    gone = refusal("out_of_retention", "event 1 is gone")
    assert isinstance(gone, OutOfRetention)
    with pytest.raises(OutOfRetention):
        core.failed(gone, 0)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"t/default/e/x/n/i", b"short", b"{}"],
        [b"t/default/~/hb", bytes(32), b"{"],
        [b"t/default/~/hb", bytes(32), b'{"epoch":1,"boot":"b","floor":9,"total":9,"now":"noon"}'],
        [b"t/default/~/hb", bytes(32), b'{"epoch":1,"boot":"b","floor":9,"total":9,"now":1e18}'],
        [b"t/default/~/hb", bytes(32), b'{"epoch":1,"boot":"\xe5","floor":9,"total":9,"now":0}'],
        [b"\xff", bytes(32), b"null"],
        [b"t/default/e/x/n/i", bytes(32), b'{"sequence":"x"}'],
    ],
)
def test_frames_of_nothing_known_are_dropped(frames: list[bytes]) -> None:
    _, watcher = live()
    watcher.hear(frames)
    assert watcher.shown == []
    newcomer = WatchCore(Interest(), None)
    newcomer.heard(frames)
    assert not newcomer.live


def test_interest_sifts_by_name_prefix_and_labels() -> None:
    model, _ = live(1)
    event = (
        verbs.replay_page(ReplayFrom(), Interest().filter(), 1)
        .read(b'{"events":[%b],"next":{"epoch":1,"seq":1},"end":true}' % model.body(1))
        .events[0]
    )
    assert Interest(name="n1").wants(event)
    assert not Interest(name="n").wants(event)
    assert Interest(name_prefix="n").wants(event)
    assert not Interest(labels={"a": "b"}).wants(event)
    assert not Interest(types=("timer.cancelled",)).wants(event)
    assert Interest(name="n1").filter().name_prefix == "n1"
    assert Interest(types=("timer.expired",)).topics() == [
        b"t/default/~/hb",
        b"t/default/e/timer.expired/",
    ]
    assert msgspec.to_builtins(Interest().filter()) == {}


def healing(*, held_max: int = 100) -> tuple[Model, Watcher]:
    """A watcher that has noticed a loss and knows the head; 1 is shown, 2 was lost, 3 is held."""
    model = Model()
    watcher = Watcher(WatchCore(Interest(), ReplayFrom(epoch=1, seq=0), held_max=held_max))
    model.beat()
    watcher.hear(model.wire.pop())
    watcher.calm(model)
    for _ in range(3):
        model.append("timer.expired")
    watcher.hear(model.wire[0])
    watcher.hear(model.wire[2])
    model.wire.clear()
    watcher.now_s += 10
    step = watcher.core.step(watcher.now_s)
    assert isinstance(step, Ask)
    assert step.request.op == "stats"
    step.take(model.answer(step))
    return model, watcher


def test_a_loss_during_a_replay_makes_a_second_round() -> None:
    model, watcher = healing()
    for _ in range(2):
        model.append("timer.expired")
    watcher.hear(model.wire[1])
    model.wire.clear()
    watcher.calm(model)
    assert [event.seq for event in watcher.shown] == [1, 2, 3, 4, 5]


def test_more_than_can_be_held_makes_a_second_round() -> None:
    model, watcher = healing(held_max=2)
    for _ in range(4):
        model.append("timer.expired")
    while model.wire:
        watcher.hear(model.wire.pop(0))
    watcher.calm(model)
    assert [event.seq for event in watcher.shown] == [1, 2, 3, 4, 5, 6, 7]


def test_a_topic_without_a_type_is_dropped() -> None:
    model, _ = live(1)
    watcher = WatchCore(Interest(types=("timer.expired",)), None)
    watcher.heard([b"t/default", Stamp(1, 0, 1, 1).pack(), model.body(1)])
    assert not watcher.ready
