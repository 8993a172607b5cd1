"""Every system call of the commit path fails, once and for ever: a named refusal or a named exit,
and never a wrong answer. And what else a process can lose: descriptors, a writable disk, its file.

The whole table takes minutes: `make resources` (MINOOTS_RESOURCES=all); the suite runs a few rows.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zmq

from tests.e2e.harness import Node, Raw
from tests.e2e.load import replay, until
from tests.e2e.test_resources import failing, mount_small, skip
from tests.proof.ledger import SCHEDULED

ALL = os.environ.get("MINOOTS_RESOURCES") == "all"
SLICES = {"MINOOTS__LOG__SLICE_DELAY": "20ms"}  # so that the tables' commits fail too
REFUSALS = {"read_only", "storage_full"}
ASKS = 40


class Row(NamedTuple):
    """One row of the table. how: what strace injects. harmless: nobody need notice."""

    call: str
    how: str
    once: bool
    harmless: bool = False

    @property
    def says(self) -> str:
        """In words, for the test's name."""
        return f"{self.call}-{self.how.replace('=', '-')}-{'once' if self.once else 'for-ever'}"


# lseek and writev are how LMDB writes several pages; the meta page goes by pwrite64.
FAULTS = {
    "pwrite64": ("error=EIO", "error=ENOSPC", "error=EDQUOT", "error=EROFS", "retval=512"),
    "writev": ("error=EIO", "error=ENOSPC", "retval=512"),
    "lseek": ("error=EIO",),
    "fdatasync": ("error=EIO", "error=ENOSPC", "error=EDQUOT"),
}
HARMLESS = {
    "madvise": ("error=EINVAL", "error=ENOMEM"),
    "getrandom": ("error=EINTR",),
    "adjtimex": ("error=EPERM",),  # as containers do
}
TABLE = [
    Row(call, how, once, faults is HARMLESS)
    for faults in (FAULTS, HARMLESS)
    for call, ways in faults.items()
    for how in ways
    for once in (True, False)
    if (call, once) != ("getrandom", False)
]
FEW = {"pwrite64-retval-512-once", "fdatasync-error-ENOSPC-for-ever"}
ROWS = [row for row in TABLE if ALL or row.says in FEW]


class Asker:
    """Makes timers with keys, and keeps what it was told; asks again for what nobody knows of."""

    def __init__(self) -> None:
        self.made: dict[str, str] = {}  # name -> id
        self.asked: set[str] = set()
        self.codes: set[str] = set()
        self._number = 0

    def ask(self, raw: Raw, count: int) -> None:
        """That many requests, one after the other; the process may end meanwhile."""
        for _ in range(count):
            name = f"n{self._number}"
            self._number += 1
            self.asked.add(name)
            self._once(raw, name)

    def again(self, raw: Raw) -> None:
        """Ask with the same keys for what has no answer yet."""
        for name in sorted(self.asked - set(self.made)):
            until(lambda name=name: self._once(raw, name))

    def _once(self, raw: Raw, name: str) -> bool:
        body = {
            "name": name,
            "schedule": {"kind": "after", "duration": "1h"},
            "payload": "x" * 9_000,
        }
        kind, reply = raw.send("timer.schedule", body, idem=name, timeout=5)
        if kind == "R":
            assert self.made.setdefault(name, reply["id"]) == reply["id"], "done twice"
            return True
        self.codes.add(reply["code"])
        return False

    def check(self, raw: Raw) -> None:
        """All that was acknowledged is in the log, once; and reads say so."""
        events = replay(raw, 0)
        names = [e["data"]["name"] for e in events if e["type"] == SCHEDULED]
        assert sorted(names) == sorted(self.made), "lost, doubled, or done though refused"
        for name, id in list(self.made.items())[::9]:
            assert raw.ask("timer.get", {"id": id})["name"] == name


def ended(node: Node) -> int | None:
    """The exit code, if the process has ended."""
    assert node.process is not None
    with suppress(subprocess.TimeoutExpired):
        return node.process.wait(0.1)
    return None


def verify(folder: Path) -> str:
    """What `minoots verify` says of a stopped node's files."""
    command = [sys.executable, "-m", "edgenode", "verify", "--data", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.says)
def test_a_call_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Row) -> None:
    if not shutil.which("strace"):
        skip(capsys, "strace is not installed")
    asker = Asker()
    how = row.how + (":when=2" if row.once else "")
    with Node(tmp_path / "data", env=SLICES) as node:
        with Raw(node.doors) as raw:
            asker.ask(raw, 5)
            try:
                with failing(node, row.call, how):
                    with suppress(TimeoutError):
                        asker.ask(raw, ASKS)
                    gone = ended(node)
            except PermissionError as refused:
                skip(capsys, f"strace may not attach: {refused}")
            if gone is None:
                until(lambda: raw.ask("health")["status"] == "ok")
                asker.again(raw)
                asker.check(raw)
        if gone is None:
            assert node.stop() == 0
        else:
            assert gone == 1, f"it ended with {gone}\n{node.log()[-2_000:]}"
            assert "error cannot_serve" in node.log(), "it ended without a word"
        assert asker.codes <= REFUSALS, asker.codes
        if row.harmless:
            assert gone is None
            assert not asker.codes
        else:
            assert asker.codes or gone is not None, "nothing came of it: the row tests nothing"
        node.start()
        with Raw(node.doors) as raw:
            asker.again(raw)
            asker.check(raw)
        assert node.stop() == 0
    assert "agree" in verify(node.folder)


# ------------------------------------------------------------------------------- descriptors


def test_no_descriptors_are_left(tmp_path: Path) -> None:
    """A newcomer is not let in; who is connected notices nothing, and newcomers come later."""
    asker = Asker()
    with Node(tmp_path / "data", env=SLICES) as node, Raw(node.doors) as raw:
        asker.ask(raw, 5)
        assert node.process is not None
        used = len(os.listdir(f"/proc/{node.process.pid}/fd"))
        soft, hard = resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, (used, hard))
        with zmq.Context() as context, context.socket(zmq.DEALER) as late:
            late.linger = 0
            late.connect(node.doors["control"])
            late.send_multipart([b"MZP1", b"Q", b"1", b'{"op":"hello"}', b"{}"])
            slowest_s = 0.0
            for _ in range(ASKS):
                began_s = time.monotonic()
                asker.ask(raw, 1)
                slowest_s = max(slowest_s, time.monotonic() - began_s)
            assert not late.poll(100), "there was room for a newcomer"
            resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
            assert late.poll(10_000), "the newcomer was never let in"
        print(f"slowest request without descriptors: {slowest_s * 1000:.0f} ms")
        assert not asker.codes
        assert slowest_s < 2.0
        asker.check(raw)
        assert node.stop() == 0


# ------------------------------------------------------------------------------- the disk itself


def test_a_disk_that_turns_read_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a file system does that has met an error: here the limit of what may be written is one."""
    why = mount_small(tmp_path / "disk")
    if why:
        skip(capsys, f"a small file system cannot be mounted: {why}")
    disk = tmp_path / "disk"
    try:
        node = Node(disk / "data", env=SLICES)
        node.log_path = tmp_path / "node.log"
        asker = Asker()
        with node.start(), Raw(node.doors) as raw:
            asker.ask(raw, 5)
            node.kill()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        node.start(wait=False)
        assert node.process is not None
        assert node.process.wait(20) == 1
        said = node.log().splitlines()[-1]
        assert "error cannot_serve" in said
        assert "read-only" in said.lower(), said
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        with node.start(), Raw(node.doors) as raw:
            asker.check(raw)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("which", ["log", "tables"])
def test_a_file_that_is_cut_short_beneath_the_node(tmp_path: Path, which: str) -> None:
    """The node is ended by name or refuses; what is left of the file is never served as whole."""
    asker = Asker()
    with Node(tmp_path / "data", env=SLICES) as node:
        with Raw(node.doors) as raw:
            asker.ask(raw, ASKS)
            time.sleep(0.2)  # the tables have them
            path = node.folder / which / "data.mdb"
            # The log's file goes on behind what is in it: half of what is used is cut off.
            used = raw.ask("stats")[which]["bytes"]
            os.truncate(path, used // 2 // 4_096 * 4_096)
            wrong: list[Any] = []
            for name, id in asker.made.items():
                with suppress(TimeoutError):
                    kind, reply = raw.send("timer.get", {"id": id}, timeout=0.5)
                    if kind == "R" and reply["name"] != name:
                        wrong.append(reply)
                if ended(node) is not None:
                    break
            assert not wrong
            with suppress(TimeoutError):
                raw.send("timer.schedule", {"name": "x", "schedule": {"kind": "x"}}, timeout=0.5)
        code = ended(node)
        if code is not None:
            assert code in (1, -signal.SIGBUS), code
            assert "cannot_serve" in node.log() or "Bus error" in node.log(), node.log()[-900:]
        node.kill()
        _check_cut(node)


def _check_cut(node: Node) -> None:
    """It does not start on such files, and says which."""
    before = len(node.log())
    node.start(wait=False)
    assert node.process is not None
    try:
        code = node.process.wait(10)
    except subprocess.TimeoutExpired:
        raise AssertionError("it started on half a file") from None
    said = node.log()[before:]
    assert code in (1, -signal.SIGBUS), said
    assert "cannot_serve" in said or "Bus error" in said, said
