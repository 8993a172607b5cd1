"""The process: start, stop, refusals, exit codes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from edgenode.process import Watchdog
from tests.e2e.harness import Node, Raw, ns_of


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgenode", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **(env or {})},
        check=False,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_0(tmp_path: Path, number: int) -> None:
    with Node(tmp_path / "data") as node, Raw(node.doors) as raw:
        made = raw.after("1h")
        assert node.process is not None
        node.process.send_signal(number)
        assert node.process.wait(20) == 0
        assert not (node.folder / "minoots.json").exists()
        assert "info stopped" in node.log()
        node.start()
        with Raw(node.doors) as again:
            assert again.ask("timer.get", {"id": made["id"]})["id"] == made["id"]


def test_a_second_node_on_the_directory_is_refused(tmp_path: Path) -> None:
    with Node(tmp_path / "data") as node:
        assert node.process is not None
        doors = [f"--{d}=tcp://127.0.0.1:0" for d in ("control", "stream", "events")]
        second = run("run", "--data", str(node.folder), *doors)
        assert second.returncode == 1
        assert f"locked by pid {node.process.pid}" in second.stderr


@pytest.mark.parametrize(
    "endpoint", ["tcp://0.0.0.0:7410", "tcp://*:7410", "tcp://192.0.2.1:7410", "udp://x", "7410"]
)
def test_other_addresses_than_loopback_are_refused(tmp_path: Path, endpoint: str) -> None:
    done = run("run", "--data", str(tmp_path / "data"), f"--control={endpoint}")
    assert done.returncode == 78
    assert not (tmp_path / "data").exists()
    assert endpoint in done.stderr
    assert "loopback" in done.stderr


def test_every_fault_of_the_configuration_is_told(tmp_path: Path) -> None:
    file = tmp_path / "minoots.toml"
    file.write_text(
        '[doors]\ncontorl = "x"\n[log]\nretention = 5\n[engine]\nhorizon = "1ms"\n'
        '[limits]\ninbox_max = "12"\n[nope]\nx = 1\n'
    )
    done = run("check-config", "--config", str(file), env={"MINOOTS__LIMITS__DRAIN_MAX": "abc"})
    assert done.returncode == 78
    for said in (
        "doors.contorl: no such key",
        "log.retention: is 5; write a duration",
        "engine.horizon: is '1ms'; the range is 10s to 1d",
        "limits.inbox_max: is '12'; write a whole number",
        "[nope] is not a section",
        "MINOOTS__LIMITS__DRAIN_MAX: is 'abc'; write a whole number",
    ):
        assert said in done.stderr, done.stderr


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    file = tmp_path / "minoots.toml"
    file.write_text('[node]\nid = "from-file"\n')
    env = {"MINOOTS__NODE__ID": "from-env"}
    with Node(tmp_path / "data", "--config", str(file), env=env) as node, Raw(node.doors) as raw:
        assert raw.ask("hello")["node_id"] == "from-env"


def test_json_log_lines(tmp_path: Path) -> None:
    import json

    with Node(tmp_path / "data", "--json") as node:
        node.stop()
        events = [json.loads(line)["event"] for line in node.log().splitlines()]
    assert events[0] in ("pulse", "pulse_refused")
    assert events[1] == "recovered"
    assert events[-1] == "stopped"


def test_a_service_manager_is_told(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        with Node(tmp_path / "data", env={"NOTIFY_SOCKET": str(path)}) as node:
            assert node.process is not None
            ready = manager.recv(4096).decode()
            assert "READY=1" in ready
            assert f"MAINPID={node.process.pid}" in ready
            node.stop()
            assert manager.recv(4096) == b"STOPPING=1"


def test_the_watchdog_is_fed_while_the_loop_goes_round(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    env = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "2000000"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        with Node(tmp_path / "data", env=env) as node:
            assert node.process is not None
            assert b"READY=1" in manager.recv(4096)
            manager.settimeout(2.5)  # it goes round once a second when nothing happens
            for _ in range(3):
                assert manager.recv(4096) == b"WATCHDOG=1"
            node.process.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
            manager.setblocking(False)
            with suppress(BlockingIOError):
                while manager.recv(4096):
                    pass
            manager.settimeout(2.5)
            with pytest.raises(TimeoutError):
                manager.recv(4096)
            node.process.send_signal(signal.SIGCONT)
            manager.settimeout(20)
            assert manager.recv(4096) == b"WATCHDOG=1"
            assert node.stop() == 0


@pytest.mark.parametrize(
    ("environ", "every_ns"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "30000000"}, 15_000_000_000),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15_000_000_000),
        ({"WATCHDOG_USEC": "soon"}, 0),
    ],
)
def test_the_watchdog_is_fed_only_if_asked(environ: dict[str, str], every_ns: int) -> None:
    assert Watchdog.of(environ).every_ns == every_ns


def test_ipc_doors_are_private(tmp_path: Path) -> None:
    doors = {d: f"ipc://{tmp_path}/{d}.sock" for d in ("control", "stream", "events")}
    flags = [f"--{door}={endpoint}" for door, endpoint in doors.items()]
    with Node(tmp_path / "data", *flags) as node, Raw(node.doors) as raw:
        assert raw.ask("hello")["doors"] == doors
        for name in doors:
            assert (tmp_path / f"{name}.sock").stat().st_mode & 0o777 == 0o600


def test_verify_and_reindex_on_a_stopped_node(tmp_path: Path) -> None:
    with Node(tmp_path / "data") as node, Raw(node.doors) as raw:
        for k in range(20):
            raw.after("1h", f"n{k}")
        running = run("verify", "--data", str(node.folder))
        assert running.returncode == 1
        assert "locked by pid" in running.stderr
        node.stop()
    verified = run("verify", "--data", str(node.folder))
    assert verified.returncode == 0, verified.stderr
    assert "agree" in verified.stdout
    for flags in ((), ("--tables",)):
        again = run("reindex", "--data", str(node.folder), *flags)
        assert again.returncode == 0, again.stderr
        assert "reindexed 20 timers" in again.stdout
    with Node(tmp_path / "data") as node, Raw(node.doors) as raw:
        assert raw.ask("stats")["timers"]["pending"] == 20
        assert raw.ask("timer.get", {"name": "n7"})["name"] == "n7"


def test_a_stop_waits_for_what_is_committed_ahead(tmp_path: Path) -> None:
    env = {"MINOOTS__ENGINE__LEAD_MIN": "1s", "MINOOTS__ENGINE__LEAD_MAX": "1s"}
    with Node(tmp_path / "data", env=env) as node, Raw(node.doors) as raw:
        made = raw.after("500ms")
        while raw.ask("timer.get", {"id": made["id"]})["state"] != "firing":
            pass
        assert node.stop() == 0
        stopped_ns = time.time_ns()
        node.start()
        with Raw(node.doors) as again:
            (expired,) = again.replay_all(("timer.expired",))
    # It left before the process ended, and its receipt was committed.
    assert ns_of(made["due"]) <= ns_of(expired["data"]["fired"]) <= stopped_ns
