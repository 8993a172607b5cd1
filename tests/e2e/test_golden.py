"""Stores and backups of every format that was ever written: all of them open, for ever.

`golden.py` made them, each by the last program that wrote its format.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from engine._follow import FORMAT_VERSION as TABLES_FORMAT

from engine._log import FORMAT_VERSION as LOG_FORMAT
from engine.record import RECORD_VERSION
from tests.e2e.golden import FAR
from tests.e2e.harness import Node, Raw

ROOT = Path(__file__).resolve().parent.parent.parent
GOLDEN = sorted((ROOT / "tests/golden").glob("format-*.tar.xz"))


def unpacked(path: Path, folder: Path) -> Path:
    with tarfile.open(path) as tar:
        tar.extractall(folder, filter="data")
    return folder


def minoots(*words: object) -> str:
    command = [sys.executable, "-m", "edgenode", *map(str, words)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_there_is_one_of_every_format() -> None:
    newest = max(LOG_FORMAT, TABLES_FORMAT, RECORD_VERSION)
    assert [path.name for path in GOLDEN] == [f"format-{n}.tar.xz" for n in range(1, newest + 1)]
    assert sum(path.stat().st_size for path in GOLDEN) < 200_000


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
@pytest.mark.parametrize("restored", [False, True])
def test_a_golden_store_opens(tmp_path: Path, path: Path, restored: bool) -> None:
    folder = unpacked(path, tmp_path)
    data = folder / "store"
    if restored:
        minoots("verify", "--from-backup", folder / "full", "--from-backup", folder / "later")
        data = folder / "new"
        minoots("restore", folder / "full", folder / "later", "--data", data)
    assert " agree " in minoots("verify", "--data", data)
    subprocess.run(
        [sys.executable, "-I", ROOT / "packaging/verify/minoots_verify.py", data], check=True
    )
    with Node(data) as node, Raw(node.doors) as raw:
        assert raw.ask("hello")["epoch"] == (2 if restored else 1)
        assert raw.ask("stats")["timers"]["pending"] == 36
        far = raw.ask("timer.get", {"name": "far.7"})
        assert (far["due"], far["payload"], far["labels"]) == (FAR, {"n": 7}, {"team": "ops"})
        assert raw.ask("timer.get", {"name": "moved"})["due"] == "2091-01-01T00:00:00.000000000Z"
        assert raw.ask("timer.get", {"name": "paused"})["state"] == "paused"
        assert raw.ask("timer.get", {"name": "every"})["schedule"]["interval"]
        held = raw.ask("consumer.info", {"name": "jobs"}, door="stream")
        assert held["acked"] == 1
        pulled = raw.ask("consumer.pull", {"name": "jobs", "batch": 5}, door="stream")["messages"]
        assert len(pulled) == 1
        raw.after("20ms", "goes.on")
        assert node.stop() == 0
    assert " agree " in minoots("verify", "--data", data)
    assert "bytes now; verified" in minoots("compact", "--data", data)
    assert "36 timers" in minoots("reindex", "--data", data)
    assert " agree " in minoots("verify", "--data", data)
