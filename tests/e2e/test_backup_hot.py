"""A node that fires is backed up, killed and restored elsewhere: the procedures of
docs/operating.md, by the commands that it names."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.e2e.harness import Node, Raw, ns_of
from tests.e2e.load import until

ROOT = Path(__file__).resolve().parent.parent.parent
SOON, FAR = 300, 3_000
EVERY_MS = 10


def minoots(*words: object, code: int = 0) -> Any:
    """Run a verb; its JSON, or what it says on stderr if it is to fail."""
    command = [sys.executable, "-m", "edgenode", *map(str, words)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stderr if code else json.loads(ran.stdout)


def schedule(raw: Raw, prefix: str, count: int, first_ms: int) -> list[Any]:
    found = []
    for at in range(0, count, 500):
        timers = [
            {
                "name": f"{prefix}.{n}",
                "schedule": {"kind": "after", "duration": f"{first_ms + n * EVERY_MS}ms"},
            }
            for n in range(at, min(at + 500, count))
        ]
        found += raw.ask("timer.schedule_many", {"timers": timers})["results"]
    return found


def test_a_firing_node_is_backed_up_and_restored(tmp_path: Path) -> None:
    data, full, later, new = (tmp_path / name for name in ("data", "full", "later", "new"))
    eager = Node(data, env={"MINOOTS__LOG__SLICE_DELAY": "50ms"})
    with eager.start() as node, Raw(node.doors) as raw:
        schedule(raw, "far", FAR, 3_600_000)
        soon = schedule(raw, "soon", SOON, 500)
        raw.ask("consumer.create", {"name": "jobs", "filter": {"types": ["timer.expired"]}})
        until(lambda: raw.ask("stats")["fires"]["total"] > 20)
        made = minoots("backup", full, "--data", data, "--json")
        assert raw.ask("stats")["fires"]["total"] < SOON, "it was to be made while timers fire"
        assert made["tables"]["timers"] > FAR
        assert made["tables"]["done"] > 0
        lost = raw.ask(
            "timer.schedule", {"name": "x", "schedule": {"kind": "after", "duration": "1h"}}
        )
        raw.ask("timer.cancel", {"name": "far.7"})
        until(lambda: raw.ask("stats")["fires"]["total"] == SOON)
        pulled = raw.ask("consumer.pull", {"name": "jobs", "batch": 50}, door="stream")["messages"]
        raw.ask("consumer.ack", {"name": "jobs", "deliveries": [m["delivery"] for m in pulled]})
        increment = minoots("backup", later, "--since", full, "--data", data, "--json")
        assert increment["log"]["first_seq"] == made["log"]["last_seq"] + 1
        assert minoots("verify", "--data", data, code=1).startswith("minoots: store is locked by")
        assert minoots("verify", "--from-backup", full, "--from-backup", later, "--json")
        node.kill()
    verified = minoots("verify", "--data", data, "--json")
    assert verified["receipts"] == SOON
    assert verified["consumers"] == 1
    apart = ROOT / "packaging/verify/minoots_verify.py"
    subprocess.run([sys.executable, "-I", apart, data], check=True, cwd="/")
    found = minoots("restore", full, later, "--data", new, "--json")
    assert found["epoch"] == 2
    assert found["timers"] == FAR
    assert found["overdue"] == 0
    with Node(new) as node, Raw(node.doors) as raw:
        hello = raw.ask("hello")
        assert (hello["epoch"], hello["node_id"]) == (2, made["node_id"])
        assert raw.ask("timer.get", {"id": lost["id"]})["state"] == "scheduled"
        assert raw.ask("timer.get", {"name": "far.8"})["state"] == "scheduled"
        kind, problem = raw.send("stream.replay", {"from": {"epoch": 1, "seq": 1}}, door="stream")
        assert (kind, problem["code"]) == ("E", "epoch_changed")
        info = raw.ask("consumer.info", {"name": "jobs"}, door="stream")
        assert info["acked"] == len(pulled) == 50
        raw.after("50ms", "again")
        until(lambda: raw.ask("stats")["fires"]["total"] == 1)  # and none of the old ones
        assert node.stop() == 0
    assert len({view["id"] for view in soon}) == SOON
    assert minoots("verify", "--data", new, "--json")["epoch"] == 2


def test_what_was_not_backed_up_as_fired_fires_again(tmp_path: Path) -> None:
    """An older backup: its timers are overdue, and are told to be."""
    data, full, new = (tmp_path / name for name in ("data", "full", "new"))
    with Node(data) as node, Raw(node.doors) as raw:
        views = schedule(raw, "soon", 100, 1_500)
        minoots("backup", full, "--data", data, "--json")
        assert time.time_ns() < ns_of(views[0]["due"]), "it was to be made before they fire"
        until(lambda: raw.ask("stats")["fires"]["total"] == 100)
        assert node.stop() == 0
    found = minoots("restore", full, "--data", new, "--json")
    assert found["overdue"] == 100
    assert abs(found["since_ns"] - ns_of(views[0]["due"])) < 10**9
    with Node(new) as node, Raw(node.doors) as raw:
        assert raw.ask("health")["status"] == "holding"
        assert raw.ask("overdue.report")["count_at_start"] == 100
        minoots("overdue", "fire", "--yes", "--data", new, "--json")
        until(lambda: raw.ask("stats")["fires"]["total"] == 100)


def test_a_backup_that_is_killed_keeps_no_page_of_the_store(tmp_path: Path) -> None:
    """Its place among LMDB's readers is freed, so that pages are used again."""
    data = tmp_path / "data"
    with Node(data) as node, Raw(node.doors) as raw:
        schedule(raw, "far", 2_000, 3_600_000)
        stuck = (
            "import sys, time\nfrom pathlib import Path\nimport lmdb\n"
            "env = lmdb.open(sys.argv[1], readonly=True, map_size=1 << 40)\n"
            "txn = env.begin()\nprint('reading', flush=True)\ntime.sleep(60)\n"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", stuck, str(data / "log")], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"reading\n"
        assert readers(data / "log") == {node.process.pid, child.pid}  # type: ignore[union-attr]
        child.send_signal(signal.SIGKILL)
        child.communicate()
        until(lambda: readers(data / "log") == {node.process.pid})  # type: ignore[union-attr]


def readers(environment: Path) -> set[int]:
    """The processes that have a place among the readers of an environment."""
    words = (
        "import sys, lmdb\n"
        "print(lmdb.open(sys.argv[1], readonly=True, map_size=1 << 40).readers())\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", words, str(environment)], capture_output=True, text=True, check=True
    )
    lines = [line.split() for line in ran.stdout.splitlines()]
    return {int(line[0]) for line in lines if line and line[0].isdigit()}


def test_a_full_disk_leaves_no_half_backup(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Node(data) as node, Raw(node.doors) as raw:
        schedule(raw, "far", 2_000, 3_600_000)
        limited = (
            "import resource, signal, sys\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
            "from edgenode.__main__ import main\nmain()\n"
        )
        words = [sys.executable, "-c", limited, "backup", str(tmp_path / "b"), "--data", str(data)]
        ran = subprocess.run(words, capture_output=True, text=True, check=False)
        assert ran.returncode == 1
        assert ran.stderr.startswith(f"minoots: {tmp_path / 'b'}: File too large")
        assert not (tmp_path / "b").exists()
        raw.after("20ms", "still")
        until(lambda: raw.ask("stats")["fires"]["total"] == 1)
        assert node.stop() == 0
    shutil.rmtree(data)
