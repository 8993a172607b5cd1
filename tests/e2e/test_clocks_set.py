"""Clocks that really are set: a node under libfaketime, in a time namespace, and after another."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minoots.wire.times import format_instant
from tests.e2e.harness import Node, Raw, ns_of

FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
NS = 1_000_000_000
YEAR_S = 365 * 86_400


def until(true: Callable[[], Any], seconds: float = 8.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)
    return found


class Faked(Node):
    """A node whose UTC is what a file says: libfaketime adds it to the clock at each reading."""

    def __init__(self, folder: Path) -> None:
        assert FAKETIME is not None
        self.offset = folder.with_suffix(".offset")
        self.offset.write_text("+0")
        env = {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(self.offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # nor BOOTTIME: nothing but UTC is set
        }
        super().__init__(folder, env=env)

    def set_utc(self, seconds: int) -> None:
        """How far UTC is ahead of the machine's, from now on."""
        fresh = self.offset.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}")
        fresh.replace(self.offset)


def faked(folder: Path) -> Faked:
    if FAKETIME is None:
        pytest.skip("libfaketime is not installed (Debian: faketime)")
    return Faked(folder)


def names(client: Raw, *types: str) -> list[str]:
    return [event["data"]["name"] for event in client.replay_all(types)]


def findings(client: Raw) -> list[tuple[str, Any]]:
    events = client.replay_all()
    return [
        (event["type"].split(".")[3], event["data"])
        for event in events
        if event["type"].split(".")[3].startswith(("clock", "suspended"))
    ]


def at(client: Raw, seconds: float, name: str) -> None:
    instant = format_instant(time.time_ns() + round(seconds * NS))
    body = {"name": name, "schedule": {"kind": "at", "instant": instant}}
    client.ask("timer.schedule", body)


@pytest.mark.parametrize("hours", [1, -1])
def test_utc_is_set_by_an_hour_while_the_node_runs(tmp_path: Path, hours: int) -> None:
    with faked(tmp_path / "node") as node, Raw(node.doors) as client:
        # hold_above is an hour: a little less is believed.
        at(client, 1_800, "wall")
        client.after("2s", "steady")
        node.set_utc(hours * 3_590)
        kind, data = until(lambda: findings(client))[0]
        assert kind == "clock_stepped"
        assert abs(data["by_ns"] - hours * 3_590 * NS) < NS
        until(lambda: "steady" in names(client, "timer.expired"))
        fired = names(client, "timer.expired")
        assert fired == (["wall", "steady"] if hours > 0 else ["steady"])
        stats = client.ask("stats")
        assert stats["fires"]["misfires"] == (hours > 0)
        late = stats["lateness_us"]["max"]
        assert (late > 1_000_000) == (hours > 0), "the steady one is punctual on its own clock"


def test_a_clock_set_ten_years_ahead_is_held_until_an_operator_agrees(tmp_path: Path) -> None:
    with faked(tmp_path / "node") as node, Raw(node.doors) as client:
        at(client, 2, "wall")
        client.after("2s", "steady")
        node.set_utc(10 * YEAR_S)
        kind, data = until(lambda: findings(client))[0]
        assert kind == "clock_held"
        assert abs(data["by_ns"] - 10 * YEAR_S * NS) < NS
        until(lambda: "steady" in names(client, "timer.expired"))
        time.sleep(0.5)
        assert names(client, "timer.expired") == ["steady"]
        node.kill()
        node.start()
        with Raw(node.doors) as again:
            assert again.ask("stats")["clock"]["held"]
            time.sleep(0.5)
            assert names(again, "timer.expired") == ["steady"]
            assert again.ask("time.accept") == {"accepted": True}
            until(lambda: "wall" in names(again, "timer.expired"))
            assert [kind for kind, _ in findings(again)][-2:] == ["clock_released", "clock_stepped"]


def test_a_node_that_wakes_up_an_hour_later_by_boottime_fires_what_was_due(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed (Debian: util-linux)")
    shift = ["unshare", "--time", "--boottime", "3600", "--monotonic", "0", "--fork"]
    allowed = subprocess.run([*shift, "true"], check=False, capture_output=True)
    if allowed.returncode:
        pytest.skip(f"a time namespace is refused: {allowed.stderr.decode().strip()}")
    node = Node(tmp_path / "node")
    with node, Raw(node.doors) as client:
        client.after("30m", "tea")
        client.after("2h", "later")
        assert node.stop() == 0
    doors = [f"--{door}=tcp://127.0.0.1:0" for door in ("control", "stream", "events")]
    command = [*shift, "--kill-child", *_run(tmp_path / "node"), *doors]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        ready = tmp_path / "node" / "minoots.json"
        until(ready.exists, 20)
        with Raw(json.loads(ready.read_bytes())["doors"]) as client:
            until(lambda: names(client, "timer.expired") == ["tea"])
            (event,) = client.replay_all(("timer.expired",))
            assert event["data"]["misfire"] is True
            # UTC was not set: to the node an hour has passed in which UTC stood still.
            kind, data = findings(client)[-1]
            assert kind in ("clock_stepped", "clock_held")
            assert abs(data["by_ns"] + 3_600 * NS) < 60 * NS
    finally:
        process.kill()  # and its child with it
        process.wait(20)


def _run(folder: Path) -> list[str]:
    return [sys.executable, "-m", "edgenode", "run", "--data", str(folder)]


def test_a_node_follows_another_one_s_clock(tmp_path: Path) -> None:
    with faked(tmp_path / "ahead") as ahead, Raw(ahead.doors) as asked:
        ahead.set_utc(40)
        until(lambda: findings(asked))
        env = {
            "MINOOTS__CLOCK__REFERENCE": ahead.doors["control"],
            "MINOOTS__CLOCK__POLL": "1s",
        }
        with Node(tmp_path / "node", env=env) as node, Raw(node.doors) as client:
            clock = until(lambda: _following(client))
            assert clock["reference"] == ahead.doors["control"]
            assert abs(clock["correction_us"] - 40_000_000) < 200_000
            assert clock["error_us"] < 500_000
            sync = client.ask("time.sync", {"t0": 0})
            assert abs(sync["t1"] - time.time_ns() - 40 * NS) < NS
            assert sync["clock_error_us"] == pytest.approx(clock["error_us"], rel=5)
            # A wall-clock timer fires by the clock that is followed.
            instant = format_instant(time.time_ns() + 41 * NS)
            body = {"name": "wall", "schedule": {"kind": "at", "instant": instant}}
            made = client.ask("timer.schedule", body)
            until(lambda: names(client, "timer.expired") == ["wall"], 4)
            assert ns_of(made["due"]) - time.time_ns() > 35 * NS


def _following(client: Raw) -> Any:
    clock = client.ask("stats")["clock"]
    return clock if clock["state"] == "following" and clock["correction_us"] else None
