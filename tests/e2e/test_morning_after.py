"""The morning after: a real node was down for some seconds, and the command line decides."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.files import close_store, open_store
from tests.e2e.harness import Node, Raw

HOLD = {"MINOOTS__OVERDUE__HOLD_ABOVE": "5"}
WAIT_S = 20.0


def minoots(node: Node, *words: str, code: int = 0, stdin: Any = None) -> str:
    """What `minoots WORDS` prints."""
    command = [sys.executable, "-m", "edgenode", *words, "--data", str(node.folder)]
    done = subprocess.run(command, stdin=stdin, capture_output=True, timeout=30, check=False)
    assert done.returncode == code, (done.stdout, done.stderr)
    return (done.stdout + done.stderr).decode()


def until(found: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not found():
        assert time.monotonic() < end_s, "it did not come in time"
        time.sleep(0.02)


def names(raw: Raw, kind: str) -> list[str]:
    return sorted(event["data"]["name"] for event in raw.replay_all((kind,)))


def held(node: Node) -> int:
    report = json.loads(minoots(node, "overdue", "report", "--json"))
    return int(report["tenants"]["default"]["count"])


def fill(raw: Raw) -> None:
    """Twelve timers due in two seconds and later, and one that is far."""
    for k in range(12):
        raw.after(f"{2000 + 50 * k}ms", f"t{k:02}", labels={"team": "ops" if k % 2 else "dev"})
    raw.after("1h", "far")


def test_each_word_of_the_command_line(tmp_path: Path) -> None:
    node = Node(tmp_path / "data", env=HOLD)
    try:
        node.start()
        with Raw(node.doors) as raw:
            fill(raw)
        node.kill()
        time.sleep(3)
        node.start()
        _decide(node)
        assert "nothing is held" in minoots(node, "overdue")
        minoots(node, "health")
        assert node.stop() == 0
        assert " overdue_held why=" in node.log()
    finally:
        node.__exit__()


def _decide(node: Node) -> None:
    with Raw(node.doors) as raw:
        raw.after("50ms", "new")
        until(lambda: names(raw, "timer.expired") == ["new"])
        said = minoots(node, "overdue")
        assert "12 timers came due while no node served; the limit is 5" in said
        assert "t00" in said
        assert "holding" in minoots(node, "health", code=1)
        assert "would fire: 6 timers" in minoots(
            node, "overdue", "fire", "--label", "team=ops", "--dry-run"
        )
        refused = minoots(node, "overdue", "fire", code=2, stdin=subprocess.DEVNULL)
        assert "12 timers would fire; add --yes" in refused
        assert held(node) == 12
        fire = ("overdue", "fire", "--label", "team=ops", "--yes", "--rate", "100")
        assert "ordered to fire: 6 timers" in minoots(node, *fire)
        ops = [f"t{k:02}" for k in range(1, 12, 2)]
        until(lambda: names(raw, "timer.expired") == ["new", *ops])
        skip = ("overdue", "skip", "--name-prefix", "t0", "--older-than", "1ms", "--dry-run")
        assert "would skip: 5 timers" in minoots(node, *skip)
        minoots(node, "overdue", "skip", "--name-prefix", "t0", "--yes")
        until(lambda: names(raw, "timer.skipped") == [f"t{k:02}" for k in range(0, 10, 2)])
    node.kill()
    node.start()
    assert held(node) == 1
    assert "ordered to fire: 1 timer" in _ask(node, "fire\n")
    with Raw(node.doors) as raw:
        until(lambda: "t10" in names(raw, "timer.expired"))
        until(lambda: raw.ask("health")["status"] == "ok")
        assert names(raw, "timer.scheduled") == sorted(
            [*(f"t{k:02}" for k in range(12)), "far", "new"]
        )
        assert len(names(raw, "timer.expired")) == 8


def _ask(node: Node, answers: str) -> str:
    """`minoots overdue ask` on a terminal, with these answers typed."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answers.encode())
        return minoots(node, "overdue", "ask", stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_restored_log_is_held(tmp_path: Path) -> None:
    """The epoch is raised as a restore does it: any overdue timer is held, and does as its policy
    says when it is let go."""
    node = Node(tmp_path / "data")
    try:
        node.start()
        with Raw(node.doors) as raw:
            stale = ("schedule", "stale", "--in", "3s", "--misfire", "skip", "--grace", "10ms")
            assert "scheduled stale" in minoots(node, *stale)
            raw.after("300ms", "old")
            raw.after("10s", "coming")
            until(lambda: names(raw, "timer.expired") == ["old"])
            raw.after("2500ms", "old2")
        node.kill()
        log, tables = open_store(node.folder)
        log.raise_epoch()
        close_store(node.folder, log, tables)
        time.sleep(3.2)
        node.start()
        with Raw(node.doors) as raw:
            assert raw.ask("overdue.report")["why"] == "the log was restored: its epoch is 2 now"
            until(lambda: names(raw, "timer.expired") == ["coming", "old"])
            assert raw.ask("overdue.fire") == {"count": 2}
            until(lambda: names(raw, "timer.expired") == ["coming", "old", "old2"])
            assert names(raw, "timer.skipped") == ["stale"]
            until(lambda: raw.ask("health")["status"] == "ok")
        assert node.stop() == 0
    finally:
        node.__exit__()
