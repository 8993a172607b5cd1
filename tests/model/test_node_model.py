"""A whole node against a dict: any mixture of verbs, time and kill -9, step by step.

The oracle knows when each timer must fire next and nothing else. After each stretch of time the
expirations that left must be exactly the oracle's, at their instants; after a crash one that had no
receipt yet may come again, with the same seq and dedupe key. After an outage each timer does as its
misfire policy says.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.sim.driver import SECOND, START, Driver

MS = 1_000_000
durations = st.one_of(
    st.integers(1, 40),  # inside the lead and just beyond it
    st.integers(1, 5_000),
    st.integers(1, 400_000),  # beyond the first windows of the wheel
    st.integers(80_000_000, 90_000_000),  # about the horizon, a day
)


@dataclass
class Expected:
    """due_ns: UTC of the next fire. interval_ns: 0 for a one-shot. left_ns: while paused. policy:
    what becomes of missed fires."""

    due_ns: int
    interval_ns: int = 0
    occurrence: int = 1
    left_ns: int = 0
    paused: bool = False
    policy: str = "fire_once"


POLICIES = st.sampled_from(["fire_once", "skip", "escalate"])
CATCHUP_MAX = 100  # the default of max_catchup
CATCHUP_NS = 1_500 * MS  # the time that takes at the least


class NodeMachine(RuleBasedStateMachine):
    """Verbs, time and crashes in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver()
        self.live: dict[str, Expected] = {}
        self.ended: list[str] = []
        self.fired: dict[tuple[str, int], bytes] = {}
        self.crashed = False
        self.holders: dict[str, str] = {}  # of keys, by id; also of those that have ended

    @property
    def now_ns(self) -> int:
        return self.driver.node.now_ns

    def _committed(self, id: str) -> bool:
        """Whether the next fire may be committed already, so that it can't be taken back."""
        expected = self.live[id]
        return not expected.paused and expected.due_ns - self.now_ns <= 2 * MS

    @rule(ms=durations, policy=POLICIES)
    def after(self, ms: int, policy: str) -> None:
        view = self.driver.after(f"{ms}ms", payload=ms, misfire={"policy": policy})
        self.live[view["id"]] = Expected(self.now_ns + ms * MS, policy=policy)

    @rule(ms=st.integers(10, 100_000), policy=st.one_of(POLICIES, st.just("fire_all")))
    def every(self, ms: int, policy: str) -> None:
        view = self.driver.every(f"{ms}ms", misfire={"policy": policy})
        self.live[view["id"]] = Expected(self.now_ns + ms * MS, ms * MS, policy=policy)

    @rule(
        ms=durations,
        key=st.sampled_from("abc"),
        how=st.sampled_from(["reject", "replace", "keep", "earliest", "latest", "extend"]),
    )
    def keyed(self, ms: int, key: str, how: str) -> None:
        held = self.live.get(self.holders.get(key, ""))
        if held is not None and self._committed(self.holders[key]):
            return
        body = {
            "schedule": {"kind": "after", "duration": f"{ms}ms"},
            "key": key,
            "on_conflict": how,
        }
        kind, reply = self.driver.send("timer.schedule", body)
        due_ns = self.now_ns + ms * MS
        if held is None:
            assert kind == "R"
            assert "conflict" not in reply
            self.holders[key] = reply["id"]
            self.live[reply["id"]] = Expected(due_ns)
            return
        if how == "reject":
            assert (kind, reply["code"]) == ("E", "already_exists")
            return
        assert (kind, reply["id"]) == ("R", self.holders[key])
        later_ns = due_ns - held.due_ns
        word = {"replace": "replaced", "extend": "extended"}.get(how, "replaced")
        if not (
            how == "replace"
            or (how == "earliest" and later_ns < 0)
            or (how in ("latest", "extend") and later_ns > 0)
        ):
            word = "kept"
        assert reply["conflict"] == word
        if word == "replaced":
            held.due_ns, held.left_ns = due_ns, ms * MS
        elif word == "extended":
            held.due_ns, held.left_ns = due_ns, held.left_ns + later_ns

    @precondition(lambda self: self.live and not any(map(self._committed, self.live)))
    @rule(ms=st.integers(-1_000_000, 1_000_000).filter(bool))
    def shift_all(self, ms: int) -> None:
        by = f"{'-' if ms < 0 else ''}{abs(ms)}ms"
        reply = self.driver.ask("timer.shift_many", {"filter": {}, "by": by})
        assert reply == {"count": len(self.live)}
        for expected in self.live.values():
            expected.due_ns += ms * MS
            expected.left_ns = max(expected.left_ns + ms * MS, 1)
            if expected.due_ns < self.now_ns and not expected.paused:
                past_ns = expected.due_ns - self.now_ns
                expected.due_ns = self.now_ns
                if expected.interval_ns:
                    expected.due_ns += past_ns % expected.interval_ns
        found = self._take(self.driver.node.advance(0))
        assert sorted(found) == sorted(self._until(self.now_ns))

    def _pick(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.live)))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        id = self._pick(data)
        if self._committed(id) and self.live[id].interval_ns:
            return
        kind, reply = self.driver.send("timer.cancel", {"id": id})
        if kind == "E":  # inside the lead it may be too late
            assert (reply["code"], self._committed(id)) == ("already_terminal", True)
            return
        del self.live[id]
        self.ended.append(id)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), ms=st.integers(0, 1_000_000))
    def extend(self, data: st.DataObject, ms: int) -> None:
        id = self._pick(data)
        if self._committed(id):
            return
        self.driver.ask("timer.extend", {"id": id, "by": f"{ms}ms"})
        self.live[id].due_ns += ms * MS
        self.live[id].left_ns += ms * MS

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        id = self._pick(data)
        expected = self.live[id]
        if self._committed(id) or expected.paused:
            return
        self.driver.ask("timer.pause", {"id": id})
        expected.paused, expected.left_ns = True, expected.due_ns - self.now_ns

    @precondition(lambda self: any(e.paused for e in self.live.values()))
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        paused = sorted(id for id, expected in self.live.items() if expected.paused)
        id = data.draw(st.sampled_from(paused))
        expected = self.live[id]
        self.driver.ask("timer.resume", {"id": id})
        expected.paused = False
        if not expected.interval_ns:
            expected.due_ns = self.now_ns + expected.left_ns
        while expected.due_ns <= self.now_ns:
            expected.due_ns += expected.interval_ns

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def get(self, data: st.DataObject) -> None:
        id = self._pick(data)
        if self._committed(id):
            return
        view = self.driver.ask("timer.get", {"id": id})
        expected = self.live[id]
        assert view["occurrence"] == expected.occurrence
        assert (view["state"] == "paused") == expected.paused

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def get_ended(self, data: st.DataObject) -> None:
        view = self.driver.ask("timer.get", {"id": data.draw(st.sampled_from(self.ended))})
        assert view["state"] in ("cancelled", "completed", "firing")

    @rule()
    def list_all(self) -> None:
        items = self.driver.ask("timer.list", {"limit": 1000})["items"]
        sure = {id for id in self.live if not self._committed(id)}
        assert sure <= {view["id"] for view in items} <= set(self.live)

    @rule(ms=st.one_of(st.integers(0, 50), durations))
    def advance(self, ms: int) -> None:
        shortest = min((e.interval_ns for e in self.live.values() if e.interval_ns), default=0)
        if shortest and ms * MS // shortest > 200:
            ms = 200 * shortest // MS  # not a million fires a step
        end_ns = self.now_ns + ms * MS
        found = self._take(self.driver.node.advance(ms * MS))
        wanted = self._until(end_ns)
        assert sorted(found) == sorted(wanted)

    def _until(self, end_ns: int) -> list[tuple[int, str, int]]:
        """What must have left by `end_ns`: (fired, id, occurrence)."""
        wanted = []
        for id, expected in list(self.live.items()):
            while not expected.paused and expected.due_ns <= end_ns:
                wanted.append((expected.due_ns, id, expected.occurrence))
                if not expected.interval_ns:
                    del self.live[id]
                    self.ended.append(id)
                    break
                expected.occurrence += 1
                expected.due_ns += expected.interval_ns
        return wanted

    def _take(self, frames: list[list[bytes]]) -> list[tuple[int, str, int]]:
        found = []
        for topic, stamp, body in frames:
            if b"/e/timer.expired/" not in topic:
                continue
            data = orjson.loads(body)["data"]
            key = (data["timer_id"], data["occurrence"])
            if key in self.fired:
                assert self.crashed, f"{key} fired twice"
                assert self.fired[key] == stamp[:8], "again, but with another seq"
                continue
            self.fired[key] = stamp[:8]
            found.append((int.from_bytes(stamp[8:16], "big"), *key))
        return found

    @rule()
    def crash(self) -> None:
        """Kill -9 and a start on what was durable: what is inside the lead may be released now."""
        self.crashed = True
        self.driver.node.restart()
        assert self._take(self.driver.node.advance(0)) == self._until(self.now_ns)

    @precondition(lambda self: not any(self._committed(id) for id in self.live))
    @rule(ms=st.one_of(st.integers(1, 3_000), durations))
    def outage(self, ms: int) -> None:
        """Killed, and nobody there for a while; what was missed then does as its policy says."""
        self.crashed = True
        self.driver.node.clock.advance(ms * MS)
        wanted = self._missed()
        self.driver.node.restart()
        end_ns = self.now_ns + CATCHUP_NS
        found = self._take(self.driver.node.advance(CATCHUP_NS))
        wanted |= {(id, number) for _, id, number in self._until(end_ns)}
        assert sorted((id, number) for _, id, number in found) == sorted(wanted)

    def _missed(self) -> set[tuple[str, int]]:
        """Which of the fires that were due before now are made after all; the others are over."""
        made = set()
        for id, expected in list(self.live.items()):
            if expected.paused or expected.due_ns >= self.now_ns:
                continue
            if not expected.interval_ns:
                made |= {(id, 1)} if expected.policy != "skip" else set()
                del self.live[id]
                self.ended.append(id)
                continue
            late = range(expected.occurrence, expected.occurrence + self._behind(expected))
            if expected.policy == "fire_all":
                made |= {(id, number) for number in late[-CATCHUP_MAX:]}
            elif expected.policy != "skip":
                made.add((id, late[0]))
            expected.occurrence += len(late)
            expected.due_ns += len(late) * expected.interval_ns
        return made

    def _behind(self, expected: Expected) -> int:
        """How many dues of a grid one decision now is about. One that is due just now was not
        missed, so it is not skipped."""
        late_ns = self.now_ns - expected.due_ns
        if expected.policy == "skip":
            return -(-late_ns // expected.interval_ns)
        return late_ns // expected.interval_ns + 1

    @invariant()
    def nothing_is_early(self) -> None:
        assert self.now_ns >= START
        for expected in self.live.values():
            assert expected.paused or expected.due_ns > self.now_ns - SECOND


TestNode = NodeMachine.TestCase
TestNode.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
