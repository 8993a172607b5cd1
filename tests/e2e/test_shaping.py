"""Keys, spreads, bulk changes and forecasts on a real node, its real tables, and kill -9."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from minoots.cli import cli
from minoots.wire.times import parse_instant
from tests.e2e.harness import Node, Raw
from tests.e2e.test_restart import fill

MANY = 20_000


def keyed(raw: Raw, how: str, **more: Any) -> tuple[str, Any]:
    schedule = {"kind": "after", "duration": more.pop("duration", "1h")}
    return raw.send(
        "timer.schedule", {"schedule": schedule, "key": "cart-7", "on_conflict": how, **more}
    )


@pytest.mark.parametrize("caught_up", [False, True])
def test_a_key_survives_kill_9(tmp_path: Path, caught_up: bool) -> None:
    with Node(tmp_path / "data") as node:
        with Raw(node.doors) as raw:
            _, ended = keyed(raw, "reject")
            raw.ask("timer.cancel", {"id": ended["id"]})
            _, first = keyed(raw, "reject")
            for at in range(1, 6):
                kind, view = keyed(raw, "extend", duration=f"{60 + at}m")
                assert (kind, view["id"], view["revision"]) == ("R", first["id"], 1 + at)
            if caught_up:
                raw.ask("timer.list", door="stream")
        node.kill()
        node.start()
        with Raw(node.doors) as raw:
            kind, problem = keyed(raw, "reject")
            assert (kind, problem["code"]) == ("E", "already_exists")
            assert first["id"] in problem["detail"]
            raw.ask("timer.list", door="stream")
            kind, view = keyed(raw, "replace", payload="new")
            assert (view["id"], view["conflict"], view["due"]) > (first["id"], "", first["due"])
            raw.ask("timer.trigger", {"key": "cart-7"})
            kind, view = keyed(raw, "reject")
            assert kind == "R"
            assert view["id"] != first["id"]


@pytest.mark.parametrize("wait_s", [0.02, 0.1, 0.2])
def test_a_bulk_change_goes_on_after_kill_9(tmp_path: Path, wait_s: float) -> None:
    shift = {"by": "1h", "filter": {"name_prefix": "far."}}
    with Node(tmp_path / "data") as node:
        with Raw(node.doors) as raw:
            fill(raw, MANY)
            raw.ask("timer.list", door="stream")
            raw.post("timer.shift_many", shift, idem="k")
            time.sleep(wait_s)
        node.kill()
        node.start()
        with Raw(node.doors) as raw:
            moved = sum(1 for event in raw.replay_all(("timer.rescheduled",)))
            print(f"{moved} of {MANY} were moved when it was killed")
            done = raw.ask("timer.shift_many", shift, idem="k", timeout=60)
            assert done["count"] == MANY
            moved_ids = Counter(e["subject"] for e in raw.replay_all(("timer.rescheduled",)))
            assert (len(moved_ids), set(moved_ids.values())) == (MANY, {1})
            (event,) = raw.replay_all(("node.bulk",))
            assert event["data"]["count"] == MANY


def test_a_herd_is_spread_and_forecast(tmp_path: Path) -> None:
    with Node(tmp_path / "data") as node, Raw(node.doors) as raw:
        fill(raw, 2_000)
        spread = {"window": "64s", "mode": "emptiest"}
        timers = [
            {"name": "herd", "labels": {"of": "herd"}, "spread": spread,
             "schedule": {"kind": "after", "duration": "10m"}}
            for _ in range(640)
        ]  # fmt: skip
        views = raw.ask("timer.schedule_many", {"timers": timers}, timeout=30)["results"]
        seconds = Counter(parse_instant(view["due"]) // 1_000_000_000 for view in views)
        assert max(seconds.values()) <= 12
        runner = CliRunner(env={"MINOOTS_DATA": str(node.folder), "COLUMNS": "80"})
        shown = runner.invoke(cli, ["forecast", "--to", "3h", "--by", "of", "--json"])
        told = json.loads(shown.stdout)
        assert (told["total"], told["bin"]) == (2_640, "5m")
        assert [(g.get("value"), g["total"]) for g in told["groups"]] == [
            (None, 2_000), ("herd", 640)]  # fmt: skip
        shown = runner.invoke(cli, ["forecast", "--to", "3h", "--by", "of"])
        assert shown.stdout.splitlines()[-1].startswith("2640 fires, at most ")
        told = json.loads(runner.invoke(cli, ["explain", views[0]["id"], "--json"]).stdout)
        assert told["why"] == ["scheduled: it waits for its due"] or told["why"][0][:5] == "armed"
        assert told["next"][-1] == "spread: up to 64s later, emptiest"
