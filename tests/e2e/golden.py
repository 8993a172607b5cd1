"""Make a golden store: what a node of today leaves, for all later ones to open.

    python -m tests.e2e.golden tests/golden/format-1.tar.xz

Once for each format on disk, by the last program that wrote it; never again afterwards.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from tests.e2e.harness import Node, Raw
from tests.e2e.load import until

FAR = "2090-01-02T03:04:05.000000006Z"
KEPT = ("store/log/data.mdb", "store/tables/data.mdb", "store/node.id", "full", "later")


def tell_story(raw: Raw) -> None:
    """Timers of every kind and state, a consumer that holds messages, a key that was used."""

    def make(name: str, schedule: dict[str, Any], **more: Any) -> Any:
        header = {key: more.pop(key) for key in ("idem",) if key in more}
        return raw.ask("timer.schedule", {"name": name, "schedule": schedule, **more}, **header)

    at = {"kind": "at", "instant": FAR}
    for number in range(30):
        make(f"far.{number}", at, labels={"team": "ops"}, payload={"n": number})
    make("every", {"kind": "every", "interval": "20000h"})
    make("after", {"kind": "after", "duration": "500000h"}, idem="key-1")
    for name in ("paused", "cancelled", "moved", "fired", "soon"):
        make(name, {"kind": "after", "duration": "50ms"} if name in ("fired", "soon") else at)
    raw.ask("timer.pause", {"name": "paused"})
    raw.ask("timer.cancel", {"name": "cancelled"})
    moved = {"kind": "at", "instant": "2091-01-01T00:00:00Z"}
    raw.ask("timer.reschedule", {"name": "moved", "schedule": moved})
    raw.ask("consumer.create", {"name": "jobs", "filter": {"types": ["timer.expired"]}})
    until(lambda: raw.ask("stats")["fires"]["total"] == 2)
    body = {"name": "jobs", "batch": 1, "wait": "2s"}
    first = raw.ask("consumer.pull", body, door="stream")["messages"][0]
    raw.ask("consumer.ack", {"name": "jobs", "deliveries": [first["delivery"]]})


def make(path: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = folder / "store"
        with Node(data, env={"MINOOTS__LOG__SLICE_DELAY": "50ms"}).start() as node:
            with Raw(node.doors) as raw:
                for name in ("far.a", "far.b"):
                    at = {"kind": "at", "instant": FAR}
                    raw.ask("timer.schedule", {"name": name, "schedule": at})
                back_up(data, folder / "full")
                tell_story(raw)
                back_up(data, folder / "later", "--since", str(folder / "full"))
                until(lambda: raw.ask("stats")["tables"]["behind"] == 0)
            assert node.stop() == 0
        with tarfile.open(path, "w:xz", preset=9) as tar:
            for name in KEPT:
                tar.add(folder / name, name)


def back_up(data: Path, target: Path, *words: str) -> None:
    command = [sys.executable, "-m", "edgenode", "backup", str(target), "--data", str(data)]
    subprocess.run([*command, *words], check=True, capture_output=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
