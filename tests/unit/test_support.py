"""What goes to others: the support bundle; the manual page; `minoots top`."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fake_node import FakeNode

from edgenode import support
from edgenode.__main__ import cli
from edgenode.support import LEFT_OUT, shown
from engine.files import catch_up
from minoots.cli.top import page
from tests.unit.stored import opened

ROOT = Path(__file__).resolve().parent.parent.parent


def bundle(tmp_path: Path, *words: str) -> dict[str, str]:
    target = tmp_path / "b.tar.gz"
    config = tmp_path / "minoots.toml"
    config.write_text('[node]\nid = "edge-7"\n')
    words = ("support-bundle", str(target), "--config", str(config), *words)
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    assert target.stat().st_mode & 0o777 == 0o600
    with tarfile.open(target) as tar:
        members = {name.partition("/")[2]: tar.extractfile(name) for name in tar.getnames()}
        return {name: file.read().decode() for name, file in members.items() if file}


def test_a_bundle_tells_of_the_node_and_nothing_of_its_timers(tmp_path: Path) -> None:
    data, log = tmp_path / "data", tmp_path / "log.txt"
    with opened(data) as (written, tables, writer):
        writer.create(7)
        catch_up(written, tables)
    line = "2026-11-22T09:00:00.123Z info clock reference=tcp://me:hush@10.0.0.1:7410\n"
    log.write_text(line * 20_000)
    found = bundle(tmp_path, "--data", str(data), "--log", str(log))
    store = json.loads(found["store.json"])
    assert store["log"] == {"first_seq": 1, "last_seq": 7, "first_commit": 1, "last_commit": 1}
    assert store["tables"]["live_count"] == 7
    assert json.loads(found["files.json"])["log/data.mdb"]["bytes"] > 0
    assert json.loads(found["config.json"])["node.id"] == "edge-7"
    assert "findings" in json.loads(found["doctor.json"])
    assert "error" in json.loads(found["stats.json"])
    assert len(found["log.txt"]) < 1 << 20
    assert set(found["log.txt"].split("\n")) == {line.replace("me:hush@", "")[:-1], ""}
    assert not any("tea" in text.replace("steady", "") for text in found.values())


def test_a_bundle_without_a_node_says_so(tmp_path: Path) -> None:
    found = bundle(tmp_path, "--data", str(tmp_path / "none"))
    assert json.loads(found["store.json"])["error"].startswith("there is no store in")
    result = CliRunner().invoke(cli, ["support-bundle", str(tmp_path / "b.tar.gz")])
    assert result.exit_code == 1
    assert "File exists" in result.output


@pytest.mark.parametrize(
    ("name", "value", "seen"),
    [
        ("doors.secret_key", "abc", LEFT_OUT),
        ("doors.key", "abc", LEFT_OUT),
        ("uplink.token", "abc", LEFT_OUT),
        ("uplink.password", "", ""),
        ("clock.reference", "tcp://a:b@h:1", "tcp://h:1"),
        ("log.idem_keep", 5, 5),
        ("limits.keyspace", 5, 5),
    ],
)
def test_secrets_are_left_out(name: str, value: object, seen: object) -> None:
    assert shown(name, value) == seen


def test_a_log_is_cut_at_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "LOG_BYTES_MAX", 10)
    path = tmp_path / "log"
    path.write_text("first line\nsecond\n")
    assert support._tail(path) == "second\n"


def test_the_manual_page_tells_of_every_verb() -> None:
    made = subprocess.run(
        [sys.executable, "packaging/man.py"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    said = {line.split()[2] for line in made.splitlines() if line.startswith(".SS minoots ")}
    assert said == {name.replace("-", "\\-") for name in cli.commands}
    assert ".B \\-\\-from\\-backup DIR" in made
    assert made.count("\n.B \\-\\-control ENDPOINT") == 2  # once for all verbs, and that of run
    assert not [line for line in made.splitlines() if line.startswith("'")]


def figures(fires: int, seq: int) -> dict[str, Any]:
    return {
        "timers": {"pending": 1_000_000, "armed": 12},
        "fires": {"total": fires, "late": 3},
        "lateness_us": {"p50": 1, "p99": 90, "max": 4_000},
        "turn_us": {"p50": 200, "p99": 900},
        "lead_us": 2_500,
        "log": {"seq": seq, "epoch": 2},
    }


def test_a_page_of_top_tells_rates() -> None:
    first = page(figures(100, 1_000), None, 0)
    assert first.splitlines()[0] == "timers         1,000,000 pending           12 armed"
    assert first.count(" -") == 2
    second = page(figures(400, 7_000), figures(100, 1_000), 2.0)
    assert "150/s" in second.splitlines()[1]
    assert "3,000/s" in second.splitlines()[4]
    assert max(map(len, second.splitlines())) <= 80


def test_top_shows_a_page_of_a_node() -> None:
    node = FakeNode()
    node.verbs["stats"] = lambda *_: figures(5, 9)
    try:
        words = ["top", "--once", "--control", node.doors["control"]]
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 0, result.output
        assert result.output == page(figures(5, 9), None, 0) + "\n"
        told = CliRunner().invoke(cli, [*words, "--json"])
        assert json.loads(told.output) == figures(5, 9)
        assert CliRunner().invoke(cli, ["top", "--every", "0"]).exit_code == 2
    finally:
        node.close()
