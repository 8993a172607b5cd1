"""The checker itself: each fault is planted once, and must be found; a good run has none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from minoots.wire.times import format_instant
from tests.proof.ledger import CANCELLED, EXPIRED, SCHEDULED, OutsideLedger

MS = 1_000_000
T0 = 1_800_000_000_000_000_000
END = T0 + 10_000 * MS


def event(seq: int, type: str, id: str, occurrence: int, **data: Any) -> Any:
    """A CloudEvent as a replay has it; instants are ms after T0."""
    for name in ("due", "fired"):
        if name in data:
            data[name] = format_instant(T0 + data[name] * MS)
    return {
        "sequence": f"{seq:020}",
        "type": type,
        "tenant": "default",
        "subject": id,
        "dedupekey": f"default/{id}/{occurrence}",
        "data": {"timer_id": id, "occurrence": occurrence, "name": NAMES[id], **data},
    }


NAMES = {"once": "a.0", "gone": "b.0", "grid": "c.0", "twin": "a.0", "ghost": "z.0"}


def _definition(id: str, kind: str, **schedule: str) -> Any:
    return {"name": NAMES[id], "schedule": {"kind": kind, **schedule}}


class Run:
    """A small good run: a one-shot that fired, one that was cancelled, and a grid of three."""

    def __init__(self) -> None:
        self.until_ns = END
        self.answers: dict[str, tuple[str, Any]] = {}
        self.head = 9
        self.tenant = "default"
        self.outages = [(150, 170), (180, 250), (290, 450)]
        self.effects = [("mail", 4, "a"), ("mail", 4, "a"), ("sms", 4, "b"), ("mail", 5, "c")]
        self.events = [
            event(1, SCHEDULED, "once", 1, due=100),
            event(2, SCHEDULED, "gone", 1, due=200),
            event(3, SCHEDULED, "grid", 1, due=100),
            event(4, EXPIRED, "once", 1, due=100, fired=100),
            event(5, EXPIRED, "grid", 1, due=100, fired=100),
            event(6, CANCELLED, "gone", 1, due=200),
            event(7, EXPIRED, "grid", 2, due=200, fired=450),
            event(8, EXPIRED, "grid", 4, due=400, fired=450),
            event(9, CANCELLED, "grid", 5, due=500),
        ]
        self.lives = [self._live(4), self._live(5), self._live(7)]
        asks: list[tuple[str, str, Any]] = [
            ("a", "timer.schedule", _definition("once", "after", duration="99ms")),
            ("b", "timer.schedule", _definition("gone", "after", duration="1ms")),
            ("c", "timer.schedule", _definition("grid", "every", interval="100ms")),
            ("d", "timer.cancel", {"id": "gone"}),
            ("e", "timer.cancel", {"id": "grid"}),
        ]
        self.asks = asks
        for key, id, due in (("a", "once", 100), ("b", "gone", 200), ("c", "grid", 100)):
            self.answers[key] = "R", {"id": id, "due": format_instant(T0 + due * MS)}
        self.answers["d"] = "R", {"id": "gone"}
        self.answers["e"] = "R", {"id": "grid"}

    def _live(self, seq: int) -> tuple[bytes, Any, int]:
        """The live frame of an event, and when it came."""
        live = copy.deepcopy(self.events[seq - 1])
        fired = T0 + int(live["data"].pop("fired")[20:23]) * MS
        return seq.to_bytes(8, "big") + fired.to_bytes(8, "big") + bytes(16), live, fired + MS

    def faults(self) -> list[str]:
        """What the ledger finds in it."""
        ledger = OutsideLedger(late_ns_max=50 * MS)
        for from_ms, to_ms in self.outages:
            ledger.outage(T0 + from_ms * MS, T0 + to_ms * MS)
        for worker, seq, done in self.effects:
            ledger.effect(worker, self.events[seq - 1], done)
        for key, op, body in self.asks:
            ledger.ask(key, op, body, T0, self.tenant)
        for key, (kind, reply) in self.answers.items():
            ledger.answer(key, kind, reply)
        for stamp, live, came_ns in self.lives:
            ledger.live(stamp, live, came_ns)
        ledger.stands_at(self.head)
        ledger.replay(copy.deepcopy(self.events))
        ledger.replay(self.events)
        return ledger.faults(self.until_ns)

    def drop(self, seq: int) -> None:
        """Take an event out of the log as if it had never been, and number the rest anew."""
        del self.events[seq - 1]
        self.lives = [live for live in self.lives if int(live[1]["sequence"]) < seq]
        for number, one in enumerate(self.events, 1):
            one["sequence"] = f"{number:020}"
        self.head = len(self.events)

    def add(self, type: str, id: str, occurrence: int, **data: Any) -> None:
        """One more event at the log's end."""
        self.events.append(event(len(self.events) + 1, type, id, occurrence, **data))


def test_a_good_run_has_no_fault() -> None:
    assert Run().faults() == []


def lose_a_creation(run: Run) -> None:
    run.drop(1)


def lose_a_fire(run: Run) -> None:
    run.drop(4)


def lose_the_last_occurrence(run: Run) -> None:
    run.drop(9)
    del run.answers["e"]


def lose_an_occurrence_between(run: Run) -> None:
    run.events[6]["data"]["fired"] = run.events[6]["data"]["due"]


def lose_the_first_occurrence(run: Run) -> None:
    run.drop(5)


def leave_the_grid(run: Run) -> None:
    run.events[7]["data"]["due"] = format_instant(T0 + 401 * MS)


def lose_a_cancel(run: Run) -> None:
    run.drop(6)


def lose_a_receipt(run: Run) -> None:
    del run.events[3]["data"]["fired"]


def lose_what_was_seen_live(run: Run) -> None:
    run.lives[0][1].update(type=SCHEDULED, subject="other")


def lose_a_creation_seen_live(run: Run) -> None:
    stamp, live, came_ns = run.lives[0]
    live.update(type=SCHEDULED)
    run.lives[0] = (99).to_bytes(8, "big") + stamp[8:], live, came_ns


def fire_before_the_due(run: Run) -> None:
    run.events[3]["data"]["fired"] = format_instant(T0 + 99 * MS)


def stamp_before_the_due(run: Run) -> None:
    stamp, live, came_ns = run.lives[0]
    run.lives[0] = stamp[:8] + (T0 + 99 * MS).to_bytes(8, "big") + stamp[16:], live, came_ns


def come_before_the_due(run: Run) -> None:
    run.lives[0] = *run.lives[0][:2], T0 + 99 * MS


def make_it_due_too_soon(run: Run) -> None:
    run.answers["a"] = "R", {"id": "once", "due": format_instant(T0 + 98 * MS)}


def give_one_key_two_numbers(run: Run) -> None:
    run.add(EXPIRED, "once", 1, due=100, fired=200)


def give_one_occurrence_two_keys(run: Run) -> None:
    run.events[3]["dedupekey"] = "default/once/2"


def send_one_key_under_another_number(run: Run) -> None:
    stamp, live, came_ns = run.lives[0]
    run.lives[0] = (5).to_bytes(8, "big") + stamp[8:], live, came_ns


def do_one_request_twice(run: Run) -> None:
    run.add(SCHEDULED, "twin", 1, due=100)


def fire_what_nobody_asked_for(run: Run) -> None:
    run.add(EXPIRED, "ghost", 1, due=100, fired=100)


def do_what_was_refused(run: Run) -> None:
    run.answers["a"] = "E", {"retryable": False}


def send_what_is_not_in_the_log(run: Run) -> None:
    stamp, live, came_ns = run.lives[0]
    run.lives[0] = (99).to_bytes(8, "big") + stamp[8:], live, came_ns


def fire_after_a_cancel(run: Run) -> None:
    run.add(EXPIRED, "grid", 5, due=500, fired=500)


def fire_though_cancelled(run: Run) -> None:
    run.answers["d"] = "R", {"id": "once"}


def skip_a_number(run: Run) -> None:
    del run.events[5]


def repeat_a_number(run: Run) -> None:
    run.events.insert(5, run.events[4])


def go_back(run: Run) -> None:
    run.head = 10


def change_after_a_cancel(run: Run) -> None:
    run.add("io.minoots.timer.paused.v1", "gone", 1, due=200)


def be_late(run: Run) -> None:
    run.events[3]["data"]["fired"] = format_instant(T0 + 201 * MS)  # 20 + 21 ms of it away


def be_late_after_an_outage(run: Run) -> None:
    run.outages[2] = (290, 399)


def have_one_effect_twice(run: Run) -> None:
    run.effects.append(("mail", 4, "d"))


def show_it_to_another(run: Run) -> None:
    run.events[3]["tenant"] = "other"


def make_it_for_another(run: Run) -> None:
    run.tenant = "other"


PLANTED: list[tuple[str, Callable[[Run], None]]] = [
    *(("LOST", plant) for plant in (lose_a_creation, lose_a_fire, lose_the_last_occurrence)),
    *(("LOST", plant) for plant in (lose_an_occurrence_between, lose_the_first_occurrence)),
    *(("LOST", plant) for plant in (leave_the_grid, lose_a_cancel, lose_a_receipt)),
    *(("LOST", plant) for plant in (lose_what_was_seen_live, lose_a_creation_seen_live)),
    *(("EARLY", plant) for plant in (fire_before_the_due, stamp_before_the_due)),
    *(("EARLY", plant) for plant in (come_before_the_due, make_it_due_too_soon)),
    *(("DUPLICATE", plant) for plant in (give_one_key_two_numbers, give_one_occurrence_two_keys)),
    *(("DUPLICATE", plant) for plant in (send_one_key_under_another_number, do_one_request_twice)),
    *(("GHOST", plant) for plant in (fire_what_nobody_asked_for, do_what_was_refused)),
    *(("GHOST", plant) for plant in (send_what_is_not_in_the_log,)),
    *(("ZOMBIE", plant) for plant in (fire_after_a_cancel, fire_though_cancelled)),
    *(("ZOMBIE", plant) for plant in (change_after_a_cancel,)),
    *(("LATE", plant) for plant in (be_late, be_late_after_an_outage)),
    *(("DUPLICATE", plant) for plant in (have_one_effect_twice,)),
    *(("TENANT", plant) for plant in (show_it_to_another, make_it_for_another)),
    *(("ORDER", plant) for plant in (skip_a_number, repeat_a_number, go_back)),
]


@pytest.mark.parametrize(("what", "plant"), PLANTED, ids=[p.__name__ for _, p in PLANTED])
def test_a_planted_fault_is_found(what: str, plant: Callable[[Run], None]) -> None:
    run = Run()
    plant(run)
    assert what in {fault.split()[0] for fault in run.faults()}, run.faults()


def test_other_timers_for_the_same_key_are_a_duplicate() -> None:
    ledger = OutsideLedger()
    ledger.ask("a", "timer.schedule", {}, T0)
    ledger.answer("a", "R", {"id": "one"})
    ledger.answer("a", "R", {"id": "one", "replayed": True})
    assert ledger._faults == []
    ledger.answer("a", "R", {"id": "two"})
    assert "answered with other timers" in ledger._faults[0]


def test_a_log_that_goes_back_or_changes_is_found() -> None:
    ledger = OutsideLedger()
    ledger.stands_at(5)
    ledger.stands_at(4)
    ledger.replay([event(1, SCHEDULED, "once", 1, due=100)])
    ledger.replay([event(1, SCHEDULED, "gone", 1, due=100)])
    assert [fault.split()[0] for fault in ledger._faults] == ["ORDER", "ORDER"]
