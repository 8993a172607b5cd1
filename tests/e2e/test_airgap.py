"""Two nodes that never see a network: by the commands of docs/operating.md, files and a killed
process now and then."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.e2e.harness import Node, Raw
from tests.e2e.load import until
from tests.e2e.test_backup_hot import minoots, schedule

COMMANDS = 4_000
EAGER = {"MINOOTS__LOG__SLICE_DELAY": "50ms"}


def said(*words: object) -> str:
    """Run a verb that prints text."""
    command = [sys.executable, "-m", "edgenode", *map(str, words)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def introduce(one: Path, other: Path, *flags: str) -> None:
    """`other` trusts `one`."""
    key = one.with_suffix(".pub")
    if not key.exists():
        key.write_text(said("keys", "new", "--data", one))
    said("keys", "trust", key, "--data", other, *flags)


def listed(raw: Raw) -> list[Any]:
    found, cursor = [], None
    while True:
        page = raw.ask(
            "timer.list", {"limit": 1000, "cursor": cursor} if cursor else {"limit": 1000}
        )
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def pictured(data: Path, node: str) -> Any:
    """The timers in a picture."""
    return json.loads(said("--data", data, "--picture", node, "--json", "list", "--all"))["items"]


def orders(path: Path, count: int) -> Path:
    lines = [
        json.dumps(
            {
                "op": "timer.schedule",
                "body": {"name": f"c{n}", "schedule": {"kind": "after", "duration": "1h"}},
            }
        )
        for n in range(count)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_two_nodes_keep_each_others_picture(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    with Node(one, env=EAGER).start() as a, Node(other, env=EAGER).start() as b:
        introduce(one, other, "--may-command")
        introduce(other, one)
        with Raw(a.doors) as raw:
            schedule(raw, "far", 2_000, 3_600_000)
            schedule(raw, "soon", 100, 100)
            first = minoots(
                "bundle", "export", tmp_path / "1", "--data", one, "--to", b.node_id, "--json"
            )
            assert first["sealed"]["to"]
            raw.ask("timer.cancel", {"name": "far.3"})
            until(lambda: raw.ask("stats")["fires"]["total"] == 100)
            raw.ask("timer.cancel_many", {"filter": {"name_prefix": "far.19"}})
            minoots("bundle", "export", tmp_path / "2", "--data", one, "--to", b.node_id, "--json")
            schedule(raw, "late", 5, 3_600_000)
            want = orders(tmp_path / "orders", 3)
            minoots(
                *("bundle", "export", tmp_path / "3", "--data", one, "--to", b.node_id),
                *("--commands", want, "--valid-for", "1d", "--json"),
            )
            timers = listed(raw)
        refused = minoots("bundle", "import", tmp_path / "2", "--data", other, code=1)
        assert "there is no picture of" in refused
        paths = [tmp_path / name for name in "321"]
        took = said("bundle", "import", *paths, "--data", other, "--json").splitlines()
        assert [json.loads(line)["number"] for line in took] == [1, 2, 3]
        assert json.loads(took[2])["orders"] == 3
        again = said("bundle", "import", *paths, "--data", other)
        assert again.count("holds nothing that is new here") == 3
        seen = pictured(other, a.node_id)
        assert [(t["id"], t["name"], t["due"]) for t in seen] == [
            (t["id"], t["name"], t["due"]) for t in timers
        ]
        log = said("--data", other, "--picture", a.node_id, "--json", "log").splitlines()
        kinds = Counter(json.loads(line)["type"].split(".")[-2] for line in log)
        assert kinds["expired"] == 100
        assert kinds["cancelled"] >= 100
        with Raw(b.doors) as raw:
            assert [t["name"] for t in listed(raw)] == ["c0", "c1", "c2"]
        # ... and back, by which the first learns what became of its commands
        minoots("bundle", "export", tmp_path / "b1", "--data", other, "--to", a.node_id, "--json")
        said("bundle", "import", tmp_path / "b1", "--data", one)
        assert [t["name"] for t in pictured(one, b.node_id)] == ["c0", "c1", "c2"]
        [sent] = minoots("bundle", "list", "--data", one, "--json")["sent"]
        assert (sent["acknowledged"], sent["orders"], sent["waiting"]) == (3, 3, 0)
    for data, node in ((other, a.node_id), (one, b.node_id)):
        minoots("verify", "--data", data / "bundles/pictures" / node / "store", "--json")


def test_a_picture_takes_the_place_of_a_node_that_is_gone(tmp_path: Path) -> None:
    one, other, new = tmp_path / "one", tmp_path / "other", tmp_path / "new"
    with Node(one, env=EAGER).start() as a, Node(other).start() as b:
        introduce(one, other)
        introduce(other, one)
        with Raw(a.doors) as raw:
            schedule(raw, "far", 50, 3_600_000)
            timers = listed(raw)
        said("bundle", "export", tmp_path / "1", "--data", one, "--to", b.node_id)
        said("bundle", "import", tmp_path / "1", "--data", other)
    store = other / "bundles/pictures" / a.node_id / "store"
    minoots("backup", tmp_path / "backup", "--data", store, "--json")
    minoots("restore", tmp_path / "backup", "--data", new, "--json")
    with Node(new).start() as again, Raw(again.doors) as raw:
        assert raw.ask("hello")["epoch"] == 2
        assert [t["id"] for t in listed(raw)] == [t["id"] for t in timers]


def test_an_import_that_is_killed_does_everything_once(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    rng = random.Random(5)
    with Node(one, env=EAGER).start() as a, Node(other).start() as b:
        introduce(one, other, "--may-command")
        introduce(other, one)
        with Raw(a.doors) as raw:
            schedule(raw, "far", 3_000, 3_600_000)
            path, to = tmp_path / "1", b.node_id
            want = orders(tmp_path / "orders", COMMANDS)
            said("bundle", "export", path, "--data", one, "--to", to, "--commands", want)
            timers = listed(raw)
        command = [sys.executable, "-m", "edgenode", "bundle", "import", path, "--data", other]
        kills, began_s = 0, time.monotonic()
        while time.monotonic() - began_s < 60:
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
                try:
                    code = child.wait(rng.uniform(0.3, 0.6) + kills * 0.03)
                    break
                except subprocess.TimeoutExpired:
                    child.send_signal(signal.SIGKILL)
                    kills += 1
        assert code == 0
        assert kills > 2, "it was to be killed"
        with Raw(b.doors) as raw:
            names = Counter(t["name"] for t in listed(raw))
        assert names == {f"c{n}": 1 for n in range(COMMANDS)}
        seen = pictured(other, a.node_id)
        assert [t["id"] for t in seen] == [t["id"] for t in timers]
    minoots("verify", "--data", other / "bundles/pictures" / a.node_id / "store", "--json")
