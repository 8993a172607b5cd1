"""The compiled node, both forms: no Python, no environment, kill -9, SIGTERM, no orphan.

Skipped where they are not built (`make binary`).
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from minoots.cli import cli
from tests.e2e.harness import Node, Raw, ns_of

DIST = Path(__file__).resolve().parent.parent.parent / "dist"
FORMS = {"folder": DIST / "minoots.dist" / "minoots", "one file": DIST / "minoots"}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    path = FORMS[request.param]
    if not path.exists():
        pytest.skip(f"{path.relative_to(DIST.parent)} is not built: run `make binary`")
    return str(request.param)


@pytest.fixture
def program(form: str) -> str:
    return str(FORMS[form])


def run(program: str, *words: str, code: int = 0, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run it with an environment that has nothing of ours, no PATH and no HOME."""
    env = {"LANG": "C.UTF-8"} | more.pop("env", {})
    ran = subprocess.run(
        [program, *words], capture_output=True, text=True, timeout=60, env=env, check=False, **more
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran


def test_it_says_what_it_was_built_from(program: str, form: str) -> None:
    found = json.loads(run(program, "version", "--json").stdout)
    assert found["form"] == form
    assert found["commit"][:12].isalnum()
    assert found["built"].endswith("Z")
    assert found["minoots"] in run(program, "version").stdout


def test_every_verb_is_there(program: str) -> None:
    shown = run(program, "--help").stdout
    for name in cli.commands:
        assert name in shown
    for name in ("run", "demo", "doctor", "check-config", "verify", "reindex", "sizing"):
        assert run(program, name, "--help").stdout.startswith(f"Usage: minoots {name}")


def test_nothing_is_lost_over_kill_9(program: str, tmp_path: Path) -> None:
    with Node(tmp_path / "data", program=[program]) as node:
        with Raw(node.doors) as raw:
            raw.subscribe()
            made = [raw.after("1500ms", f"n{k}")["id"] for k in range(50)]
        serving = json.loads((node.folder / "minoots.json").read_bytes())["pid"]
        os.kill(serving, signal.SIGKILL)
        node.process.wait(20)
        node.start()
        with Raw(node.doors) as raw:
            time.sleep(2)
            fired = [e for e in raw.replay_all() if e["type"].endswith(".expired.v1")]
        assert sorted(e["subject"] for e in fired) == sorted(made)
        assert all(ns_of(e["data"]["fired"]) >= ns_of(e["data"]["due"]) for e in fired)
        assert node.stop() == 0


def test_sigterm_stops_it_and_leaves_nothing(program: str, tmp_path: Path) -> None:
    with Node(tmp_path / "data", program=[program], env={"TMPDIR": str(tmp_path)}) as node:
        with Raw(node.doors) as raw:
            raw.after("1h")
        serving = json.loads((node.folder / "minoots.json").read_bytes())["pid"]
        assert node.stop() == 0
        assert "info stopped" in node.log()
        assert not Path(f"/proc/{serving}").exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "data.log"]


def test_no_orphan_when_killed(program: str, tmp_path: Path) -> None:
    """Of one file, the part that unpacks is killed; the node must notice and go."""
    with Node(tmp_path / "data", program=[program], env={"TMPDIR": str(tmp_path)}) as node:
        serving = json.loads((node.folder / "minoots.json").read_bytes())["pid"]
        node.kill()
        until = time.monotonic() + 10
        while _runs(serving) and time.monotonic() < until:
            time.sleep(0.05)
        assert not _runs(serving)
        node.start()
        assert node.stop() == 0


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def test_the_demonstration_starts_a_node_of_the_same_program(program: str, tmp_path: Path) -> None:
    shown = run(program, "demo", "--seconds", "2", env={"TMPDIR": str(tmp_path)}).stdout
    assert "12 fired, 0 early, 0 lost" in shown
    assert not list(tmp_path.iterdir())


def test_verbs_that_need_a_node(program: str, tmp_path: Path) -> None:
    with Node(tmp_path / "data", program=[program]) as node:
        env = {"MINOOTS_DATA": str(node.folder)}
        made = json.loads(run(program, "schedule", "tea", "--in", "1h", "--json", env=env).stdout)
        at = ("--at", "2031-07-01 09:00", "--tz", "Europe/Vienna")
        zoned = json.loads(run(program, "schedule", "noon", *at, "--json", env=env).stdout)
        assert zoned["due"].startswith("2031-07-01T07:00:00")
        assert made["id"] in run(program, "list", "--json", env=env).stdout
        for verb in ("hello", "stats", "health", "schema", "ping", "time-sync", "log"):
            assert run(program, verb, "--json", env=env).stdout
        refused = run(program, "get", "nobody", env=env, code=1)
        assert "not_found" in refused.stderr
        node.stop()
        assert "agree" in run(program, "verify", env=env).stdout
        run(program, "reindex", env=env)


LOOKS = (
    *(
        "list",
        "log",
        "stats",
        "health",
        "hello",
        "ping",
        "time-sync",
        "clock",
        "overdue",
        "forecast",
    ),
    *("get tea", "history ID", "next tea", "explain ID", "top --once", "consumer list"),
    *("consumer info jobs", "dlq list jobs", "doctor", "list --help"),
)


@pytest.mark.parametrize("terminal", [False, True])
def test_verbs_print_for_people(program: str, tmp_path: Path, terminal: bool) -> None:
    """Not JSON: what tables and colours need must be inside as well."""
    with Node(tmp_path / "data", program=[program]) as node:
        env = {"MINOOTS_DATA": str(node.folder), "LANG": "C.UTF-8", "TERM": "xterm"}
        made = json.loads(run(program, "schedule", "tea", "--in", "1h", "--json", env=env).stdout)
        run(program, "consumer", "create", "jobs", env=env)
        for verb in LOOKS:
            words = [program, *verb.replace("ID", made["id"]).split()]
            code, shown = on_terminal(words, env) if terminal else piped(words, env)
            assert code == 0, f"{verb}: {shown}"
            assert shown.strip() or verb.startswith("dlq"), verb  # none: nothing on stdout
            assert "Traceback" not in shown, verb


def test_a_worker_runs_commands(program: str, tmp_path: Path) -> None:
    with Node(tmp_path / "data", program=[program]) as node:
        env = {"MINOOTS_DATA": str(node.folder), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
        run(program, "consumer", "create", "jobs", env=env)
        run(program, "schedule", "tea", "--in", "100ms", env=env)
        told = tmp_path / "told"
        words = [
            program,
            "work",
            "jobs",
            "--",
            "sh",
            "-c",
            f"cat > {told}.new; mv {told}.new {told}",
        ]
        with subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True) as worker:
            until = time.monotonic() + 20
            while not told.exists() and worker.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
            worker.terminate()
            _, said = worker.communicate(timeout=20)
        assert told.exists(), said
        assert "tea" in told.read_text()
        assert worker.returncode == 0, said


def piped(words: list[str], env: dict[str, str]) -> tuple[int, str]:
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60, env=env, check=False)
    return ran.returncode, ran.stdout + (ran.stderr if ran.returncode else "")


def on_terminal(words: list[str], env: dict[str, str]) -> tuple[int, str]:
    ours, theirs = pty.openpty()
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as child:
        os.close(theirs)
        found = []
        with suppress(OSError):  # EIO: it has ended
            while data := os.read(ours, 65_536):
                found.append(data)
        os.close(ours)
    return child.returncode, b"".join(found).decode(errors="replace")


def test_it_exchanges_bundles(program: str, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    with Node(one, program=[program]).start() as a, Node(other, program=[program]).start() as b:
        for data, peer in ((one, other), (other, one)):
            key = data.with_suffix(".pub")
            key.write_text(run(program, "keys", "new", "--data", str(data)).stdout)
            run(program, "keys", "trust", str(key), "--data", str(peer), "--may-command")
        run(program, "--data", str(one), "schedule", "tea", "--in", "1h")
        orders = tmp_path / "orders"
        orders.write_text(
            '{"op":"timer.schedule","body":{"name":"far","schedule":{"kind":"after","duration":"1h"}}}'
        )
        path, to = str(tmp_path / "1"), b.node_id
        export = ("bundle", "export", path, "--data", str(one), "--to", to)
        run(program, *export, "--commands", str(orders))
        run(program, "bundle", "import", path, "--data", str(other))
        shown = run(program, "--data", str(other), "--picture", a.node_id, "list").stdout
        assert "tea" in shown
        assert "far" in run(program, "--data", str(other), "list").stdout


def test_verbs_that_need_none(program: str, tmp_path: Path) -> None:
    file = tmp_path / "minoots.toml"
    file.write_text(run(program, "check-config", "--example").stdout)
    assert "good" in run(program, "check-config", "--config", str(file)).stdout
    file.write_text("[log]\nretention = 3\n")
    assert "write a duration" in run(program, "check-config", "--config", str(file), code=78).stderr
    assert "memory" in run(program, "sizing", "--timers", "1M").stdout
    assert "complete" in run(program, "completion", "bash").stdout
    found = json.loads(
        run(program, "doctor", "--json", "--data", str(tmp_path / "d")).stdout or "{}"
    )
    levels = {finding["check"]: finding["level"] for finding in found["findings"]}
    assert levels["time zones"] == "ok"
    assert "no binary holds them" in run(program, "bench", "wheel", code=1).stderr
