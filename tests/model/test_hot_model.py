"""The hot set against two dicts: what is newer, and what is armed."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine._hot import HotSet
from engine._wheel import Wheel

IDS = [bytes([n]) * 16 for n in range(24)]
TICK_NS = 1_000_000

ids = st.sampled_from(IDS)
scales = st.integers(0, 1)
dues_ns = st.integers(1, 40 * TICK_NS)
shifts_ns = st.integers(-3 * TICK_NS, 3 * TICK_NS)


def tick_of(due_ns: int, shift_ns: int) -> int:
    return max(0, -(-(due_ns + shift_ns) // TICK_NS))


class HotMachine(RuleBasedStateMachine):
    """`known` maps an id to [seq, due_ns, scale], `armed` to its due tick."""

    @initialize()
    def start(self) -> None:
        self.hot = HotSet(Wheel(64))
        self.known: dict[bytes, list[int]] = {}
        self.armed: dict[bytes, int] = {}
        self.now_tick = 0
        self.seq = 0
        self.applied_seq = 0

    def drop_idle(self) -> None:
        for id in [id for id, row in self.known.items() if not row[0] and id not in self.armed]:
            del self.known[id]

    @rule(id=ids, due_ns=st.one_of(st.just(0), dues_ns), scale=scales)
    def note(self, id: bytes, due_ns: int, scale: int) -> None:
        self.seq += 1
        self.hot.note(id, self.seq, due_ns, scale)
        self.known[id] = [self.seq, due_ns, scale]

    @rule(id=ids, ahead=st.integers(0, 40))
    def arm(self, id: bytes, ahead: int) -> None:
        self.hot.arm(id, self.now_tick + ahead)
        self.armed[id] = self.now_tick + ahead
        self.known.setdefault(id, [0, 0, 0])

    @rule(id=ids)
    def disarm(self, id: bytes) -> None:
        assert self.hot.disarm(id) == (id in self.armed)
        self.armed.pop(id, None)
        self.drop_idle()

    @rule(ticks=st.integers(0, 12), limit=st.integers(0, 9))
    def advance(self, ticks: int, limit: int) -> None:
        self.now_tick += ticks
        fired = self.hot.advance(self.now_tick, limit)
        due = [id for id, tick in self.armed.items() if tick <= self.now_tick]
        assert len(fired) == min(limit, len(due))
        assert len(set(fired)) == len(fired)
        ticks_fired = [self.armed[id] for id in fired]
        assert ticks_fired == sorted(ticks_fired)
        left = [self.armed[id] for id in due if id not in fired]
        assert not left or not fired or max(ticks_fired) <= min(left)
        for id in fired:
            del self.armed[id]
        self.drop_idle()

    @rule(rows=st.lists(st.tuples(ids, dues_ns), max_size=24), scale=scales, shift_ns=shifts_ns)
    def load(self, rows: list[tuple[bytes, int]], scale: int, shift_ns: int) -> None:
        expected = 0
        for id, due_ns in rows:
            if id in self.armed or self.known.get(id, [0])[0]:
                continue
            expected += 1
            self.known[id] = [0, due_ns, scale]
            self.armed[id] = tick_of(due_ns, shift_ns)
        loaded = self.hot.load(
            b"".join(id for id, _ in rows),
            b"".join(due_ns.to_bytes(8, "little") for _, due_ns in rows),
            scale,
            shift_ns,
            TICK_NS,
        )
        assert loaded == expected

    @rule(from_ns=dues_ns, span_ns=dues_ns, scale=scales, shift_ns=shifts_ns)
    def load_newer(self, from_ns: int, span_ns: int, scale: int, shift_ns: int) -> None:
        expected = 0
        for id, (seq, due_ns, of) in self.known.items():
            inside = due_ns and from_ns <= due_ns < from_ns + span_ns
            if seq and of == scale and inside and id not in self.armed:
                expected += 1
                self.armed[id] = tick_of(due_ns, shift_ns)
        to_ns = from_ns + span_ns
        assert self.hot.load_newer(from_ns, to_ns, scale, shift_ns, TICK_NS) == expected

    @rule(scale=scales)
    def disarm_scale(self, scale: int) -> None:
        gone = [id for id in self.armed if self.known[id][2] == scale]
        assert self.hot.disarm_scale(scale) == len(gone)
        for id in gone:
            del self.armed[id]
        self.drop_idle()

    @rule(ahead=st.integers(-5, 45))
    def disarm_beyond(self, ahead: int) -> None:
        due_tick = max(0, self.now_tick + ahead)
        gone = [id for id, tick in self.armed.items() if tick > due_tick]
        assert self.hot.disarm_beyond(due_tick) == len(gone)
        for id in gone:
            del self.armed[id]
        self.drop_idle()

    @rule(back=st.integers(0, 8), budget=st.integers(0, 30))
    def sweep(self, back: int, budget: int) -> None:
        self.applied_seq = max(self.applied_seq, self.seq - back)
        swept_seq = self.hot.sweep(self.applied_seq, budget)
        assert swept_seq <= self.applied_seq
        for id, row in self.known.items():
            seq = (self.hot.get(id) or (0,))[0]
            assert seq in (0, row[0])
            if not seq:
                # Forgotten: the tables had it.
                assert row[0] <= self.applied_seq
                row[0] = 0
            else:
                assert seq > swept_seq
        self.drop_idle()

    @rule()
    def sweep_all(self) -> None:
        """With budget enough, two rounds at most forget all that the tables have."""
        self.applied_seq = self.seq
        self.hot.sweep(self.applied_seq, 1000)
        assert self.hot.sweep(self.applied_seq, 1000) == self.seq
        assert self.hot.newer_count == 0
        for row in self.known.values():
            row[0] = 0
        self.drop_idle()

    @rule()
    def clear(self) -> None:
        self.hot.clear()
        self.known.clear()
        self.armed.clear()

    @invariant()
    def agrees(self) -> None:
        self.hot._check()
        for id in IDS:
            row = self.known.get(id)
            expected = (*row, id in self.armed) if row else None
            assert self.hot.get(id) == expected
        assert len(self.hot) == len(self.known)
        assert self.hot.armed_count == len(self.armed)
        assert self.hot.newer_count == sum(1 for row in self.known.values() if row[0])
        if not self.armed:
            assert self.hot.next_tick() is None


TestHot = HotMachine.TestCase
TestHot.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
