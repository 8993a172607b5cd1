"""What a stop, a kill and a start again leave of timers: all of them, each due as it was."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.e2e.harness import Node, Raw, ns_of
from tests.e2e.load import Load, fires, listen, replay, until
from tests.proof.ledger import EXPIRED, SCHEDULED

MANY = 100_000
SOON = 200  # of these many are due soon after the restart
START_S_MAX = 15.0
WIDE_LEAD = {"MINOOTS__ENGINE__LEAD_MIN": "1s", "MINOOTS__ENGINE__LEAD_MAX": "2s"}


def fill(raw: Raw, count: int) -> None:
    """Make `count` timers due in an hour and later, several requests at a time."""
    waiting = 0
    for at in range(0, count, 1_000):
        timers = [
            {"name": f"far.{n}", "schedule": {"kind": "after", "duration": f"{3_600 + n}s"}}
            for n in range(at, min(at + 1_000, count))
        ]
        raw.post("timer.schedule_many", {"timers": timers})
        waiting += 1
        while waiting > 8 or (waiting and raw.control.poll(0)):
            assert raw.take()[0] == "R"
            waiting -= 1
    for _ in range(waiting):
        assert raw.take()[0] == "R"


def test_a_hundred_thousand_pending_survive_a_kill(tmp_path: Path) -> None:
    with Node(tmp_path / "data") as node:
        with Raw(node.doors) as raw:
            fill(raw, MANY)
            soon = [
                {"name": f"soon.{n}", "schedule": {"kind": "after", "duration": f"{2_500 + n}ms"}}
                for n in range(SOON)
            ]
            views = raw.ask("timer.schedule_many", {"timers": soon})["results"]
        node.kill()
        began_s = time.monotonic()
        node.start()
        took_s = time.monotonic() - began_s
        recovered = [line for line in node.log().splitlines() if " recovered " in line][-1]
        print(f"serving {took_s:.2f} s after the start; {recovered.partition(' info ')[2]}")
        assert took_s < START_S_MAX
        with Raw(node.doors) as raw:
            assert raw.ask("stats")["timers"]["pending"] >= MANY
            for n in (0, 1, MANY // 2, MANY - 1):
                assert raw.ask("timer.get", {"name": f"far.{n}"})["state"] == "scheduled"
            late = ns_of(views[-1]["due"]) - time.time_ns()
            time.sleep(max(late / 1e9, 0) + 0.1)
            fired = until(lambda: len(found := fires(raw)) == SOON and found)
            assert {event["subject"] for event in fired} == {view["id"] for view in views}
            due_of = {view["id"]: view["due"] for view in views}
            assert all(event["data"]["due"] == due_of[event["subject"]] for event in fired)
            assert all(ns_of(e["data"]["fired"]) >= ns_of(e["data"]["due"]) for e in fired)
            assert raw.ask("stats")["timers"]["pending"] == MANY


def test_what_was_due_while_down_fires_at_once_and_says_so(tmp_path: Path) -> None:
    with Node(tmp_path / "data") as node:
        with Raw(node.doors) as raw:
            missed = raw.after("150ms", "missed")
            every = raw.ask(
                "timer.schedule",
                {"name": "grid", "schedule": {"kind": "every", "interval": "100ms"}},
            )
        node.kill()
        time.sleep(max(ns_of(missed["due"]) - time.time_ns(), 0) / 1e9)
        started_ns = time.time_ns()
        node.start()
        with Raw(node.doors) as raw:
            mine = until(lambda: [e for e in fires(raw) if e["subject"] == missed["id"]])
            [event] = mine
            data = event["data"]
            assert event["dedupekey"] == f"default/{missed['id']}/1"
            assert data["due"] == missed["due"]
            assert data["misfire"] is True
            assert ns_of(data["fired"]) >= started_ns
            assert data["lateness_us"] == (ns_of(data["fired"]) - ns_of(data["due"])) // 1_000
            grid = until(
                lambda: (f := [e for e in fires(raw) if e["subject"] == every["id"]])[2:] and f
            )
            assert grid[0]["data"]["occurrence"] == 1
            assert grid[0]["data"]["misfire"] is True  # the missed ones fire once
            dues = [(e["data"]["occurrence"], ns_of(e["data"]["due"])) for e in grid]
            first = ns_of(every["due"])
            assert dues == [(n, first + (n - 1) * 100_000_000) for n, _ in dues], "off its grid"
            assert [e["data"]["misfire"] for e in grid[1:]] == [False] * len(grid[1:])


def test_committed_but_not_released_is_released_with_its_seq(tmp_path: Path) -> None:
    with Node(tmp_path / "data", env=WIDE_LEAD) as node:
        with Raw(node.doors) as raw:
            made = raw.after("2500ms", "inside")
            until(lambda: raw.ask("timer.get", {"id": made["id"]})["state"] == "firing")
            seq = raw.ask("stats")["log"]["seq"]
            assert fires(raw) == []  # it is in the log, and has not left
        node.kill()
        assert time.time_ns() < ns_of(made["due"]), "too late: it may have left"
        node.start()
        with Raw(node.doors) as raw:
            feed = listen(raw)
            [event] = until(lambda: fires(raw))
            assert int(event["sequence"]) == seq
            assert event["dedupekey"] == f"default/{made['id']}/1"
            assert ns_of(event["data"]["fired"]) >= ns_of(made["due"])
            live = []
            while feed.poll(50):
                topic, stamp, _ = feed.recv_multipart()
                if b"/e/timer.expired/" in topic:
                    live.append(int.from_bytes(stamp[:8], "big"))
            assert live in ([seq], []), "released twice"
            assert len([e for e in raw.replay_all() if e["type"] == EXPIRED]) == 1


def test_released_and_receipted_is_not_released_again(tmp_path: Path) -> None:
    with Node(tmp_path / "data") as node:
        with Raw(node.doors) as raw:
            raw.after("10ms")
            until(lambda: "fired" in fires(raw)[0]["data"] if fires(raw) else False)
            time.sleep(0.3)  # until the receipt is on disk
        node.kill()
        node.start()
        recovered = [line for line in node.log().splitlines() if " recovered " in line]
        assert " unreleased=0 " in recovered[-1]


def test_a_cancel_inside_the_lead_comes_too_late(tmp_path: Path) -> None:
    with Node(tmp_path / "data", env=WIDE_LEAD) as node, Raw(node.doors) as raw:
        made = raw.after("1300ms", "committed")
        until(lambda: raw.ask("timer.get", {"id": made["id"]})["state"] == "firing")
        for op in ("timer.cancel", "timer.pause", "timer.trigger"):
            kind, problem = raw.send(op, {"id": made["id"]})
            assert (kind, problem["code"]) == ("E", "already_terminal"), op
            assert "its expiration is committed" in problem["detail"]
        assert time.time_ns() < ns_of(made["due"])
        assert raw.ask("timer.cancel_many", {"ids": [made["id"]]}) == {"count": 0}
        [event] = until(lambda: fires(raw))
        assert event["subject"] == made["id"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sigterm_under_load_answers_what_it_did(tmp_path: Path, seed: int) -> None:
    load = Load(seed)
    with Node(tmp_path / "data") as node:
        with Raw(node.doors) as raw:
            feed = listen(raw)
            load.begin()
            load.busy(raw, feed, time.monotonic() + 0.3)
            assert node.process is not None
            node.process.send_signal(signal.SIGTERM)
            load.busy(raw, feed, time.monotonic() + 0.02)  # it goes on asking
            assert node.process.wait(20) == 0
            while raw.control.poll(20):
                load.take(raw, feed)
        assert "info stopped" in node.log()
        node.start()
        with Raw(node.doors) as raw:
            load.ledger.replay(replay(raw, 0))
        answered = {v["id"] for ask in load.ledger.asks.values() for v in ask.views() if "id" in v}
        made = {e["subject"] for e in load.ledger.events.values() if e["type"] == SCHEDULED}
        assert answered - made == set(), "acknowledged and lost"
        assert made - answered == set(), "done, and not answered before the node stopped"
        assert len(made) > 20
