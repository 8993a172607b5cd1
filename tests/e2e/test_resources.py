"""What runs out: the disk, the quota, the luck of a disk. What was acknowledged stays.

A full disk is made twice: by a limit on the size of files, which needs no privilege, and by a file
system of a few MB, which needs root. A failing disk is made by strace, where that is installed.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.e2e.harness import Node, Raw, ns_of
from tests.e2e.load import KILLS, SEED, Load, fires, replay, until
from tests.proof.ledger import SCHEDULED

DISK_BYTES = 20 << 20
BALLAST_BYTES = 13 << 20  # the tables need as much room again as the log
NO_GROWTH_BYTES = 8 << 10  # nothing can be written but LMDB's lock file and meta pages
INSIDE_BYTES = 512 << 10  # less than the log's file has, which goes on behind what is in it
ITEMS = 50  # timers of a request that fills the disk
OUTAGES = max(KILLS // 7, 2)
PAYLOAD = "x" * 4_000


def skip(capsys: pytest.CaptureFixture[str], reason: str) -> None:
    """Skip, and say why even where nobody asks for reasons."""
    with capsys.disabled():
        print(f"\nskipped: {reason}")
    pytest.skip(reason)


class Filler:
    """Makes timers until it is refused, and knows which were acknowledged."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw
        self.made: dict[str, str] = {}  # id -> name
        self.refused: list[str] = []  # names
        self._number = 0

    def once(self) -> Any:
        """One request; the problem if it was refused."""
        at, self._number = self._number, self._number + 1
        schedule = {"kind": "after", "duration": "1h"}
        names = [f"f{at}.{n}" for n in range(ITEMS)]
        timers = [{"name": name, "schedule": schedule, "payload": PAYLOAD} for name in names]
        kind, reply = self.raw.send("timer.schedule_many", {"timers": timers})
        if kind == "E":
            self.refused += names
            return reply
        self.made |= {view["id"]: view["name"] for view in reply["results"]}
        return None

    def fill(self, most: int = 400) -> Any:
        """Until there is no room; the problem that says so."""
        for _ in range(most):
            problem = self.once()
            if problem is not None:
                return problem
        raise AssertionError("it was never full")

    def resume(self, seconds: float = 10) -> None:
        """Until writes are taken again."""
        until(lambda: self.once() is None, seconds)

    def check(self, raw: Raw) -> None:
        """All that was acknowledged is in the log, and nothing of what was refused."""
        names = [e["data"]["name"] for e in raw.replay_all() if e["type"] == SCHEDULED]
        mine = [name for name in names if name.startswith("f")]
        assert sorted(mine) == sorted(self.made.values())
        assert len(self.made) >= ITEMS


def check_reads(raw: Raw, filler: Filler) -> None:
    """While there is no room: reads are answered, writes are refused, and the node says why."""
    health = until(lambda: (h := raw.ask("health"))["status"] == "read_only" and h)
    assert health["reason"]
    assert raw.ask("hello")["protocol"] == [1]
    for id, name in list(filler.made.items())[:: max(len(filler.made) // 10, 1)]:
        assert read(raw, "timer.get", {"id": id})["name"] == name
    assert read(raw, "stream.replay", {"from": {}, "limit": 10}, door="stream")["events"]
    first = next(iter(filler.made))
    kind, problem = raw.send("timer.cancel", {"id": first})
    assert (kind, problem["retryable"]) == ("E", True)


def read(raw: Raw, op: str, body: Any, door: str = "control") -> Any:
    """The reply to a read, which may meet the moment in which the store is opened anew."""
    answers: list[Any] = []

    def answered() -> bool:
        kind, reply = raw.send(op, body, door=door)
        answers.append(reply)
        return kind == "R"

    until(answered)
    return answers[-1]


def check_after(node: Node, filler: Filler) -> None:
    """Stopped and started again, all that was acknowledged is there; the chain agrees."""
    assert node.stop() == 0
    node.start()
    with Raw(node.doors) as raw:
        filler.check(raw)
        assert raw.ask("health")["status"] == "ok"
    node.stop()
    done = subprocess.run(
        [sys.executable, "-m", "edgenode", "verify", "--data", str(node.folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "agree" in done.stdout, done.stderr


# ------------------------------------------------------------------------------- no room


def mount_small(where: Path) -> str:
    """Mount a tmpfs of a few MB; why not, if that is refused."""
    if os.geteuid():
        return "that needs root"
    if not shutil.which("mount"):
        return "there is no mount(8)"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(where)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


def test_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = mount_small(tmp_path / "disk")
    if refused:
        skip(capsys, f"a small file system cannot be mounted: {refused}")
    try:
        _fill_and_make_room(tmp_path / "disk", tmp_path / "node.log")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=True)


def _fill_and_make_room(disk: Path, log: Path) -> None:
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(BALLAST_BYTES))
    node = Node(disk / "data")
    node.log_path = log
    with node.start(), Raw(node.doors) as raw:
        filler = Filler(raw)
        raw.after("1500ms", "due meanwhile")
        problem = filler.fill()
        assert (problem["code"], problem["status"]) == ("storage_full", 507)
        assert problem["retryable"]
        check_reads(raw, filler)
        ballast.unlink()
        filler.resume()
        assert raw.ask("health")["status"] == "ok"
        [fired] = until(lambda: fires(raw))
        assert fired["data"]["name"] == "due meanwhile"
        filler.check(raw)
        check_after(node, filler)


def limit_files(node: Node, size: int) -> None:
    """No file of the node may grow beyond `size` from now on."""
    assert node.process is not None
    _, hard = resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (size, hard))


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    with Node(tmp_path / "data") as node, Raw(node.doors) as raw:
        feed = raw.subscribe()
        filler = Filler(raw)
        assert filler.once() is None
        due = raw.after("1200ms", "due meanwhile")
        limit_files(node, NO_GROWTH_BYTES)
        problem = filler.fill()
        assert (problem["code"], problem["status"]) == ("storage_full", 507)
        check_reads(raw, filler)
        time.sleep(max(ns_of(due["due"]) - time.time_ns(), 0) / 1e9)
        heard = heartbeats(feed, 1.3)
        assert heard >= 1, "no heartbeat while there was no room"
        assert fires(raw) == []  # kept for later
        limit_files(node, resource.RLIM_INFINITY)
        filler.resume()
        [fired] = until(lambda: fires(raw))
        assert fired["dedupekey"] == f"default/{due['id']}/1"
        assert fired["data"]["misfire"] is True
        assert node.log().count("info serving") == 1
        filler.check(raw)
        assert [e["type"] for e in raw.replay_all()].count("io.minoots.node.started.v1") == 1
        check_after(node, filler)


def heartbeats(feed: zmq.Socket[bytes], seconds: float) -> int:
    """How many come from now on."""
    while feed.poll(0):
        feed.recv_multipart()
    heard, end_s = 0, time.monotonic() + seconds
    while (left := end_s - time.monotonic()) > 0:
        if feed.poll(int(left * 1000)):
            heard += feed.recv_multipart()[0].endswith(b"/~/hb")
    return heard


def test_all_that_waits_is_answered_when_there_is_no_room(tmp_path: Path) -> None:
    """Pipelined requests, with keys: each gets one answer, and a retry does it once."""
    with Node(tmp_path / "data") as node, Raw(node.doors) as raw:
        body = {"schedule": {"kind": "after", "duration": "1h"}, "payload": PAYLOAD}
        first = [
            raw.ask("timer.schedule", {"name": f"n{n}", **body}, idem=f"i{n}") for n in range(9)
        ]
        limit_files(node, INSIDE_BYTES)
        keys = {
            raw.post("timer.schedule", {"name": f"n{n}", **body}, idem=f"i{n}"): n
            for n in range(9, 800)
        }
        made = {n: view["id"] for n, view in enumerate(first)}
        again: set[int] = set()
        for _ in range(len(keys)):
            kind, corr, reply = raw.take()
            if kind == "R":
                made[keys[corr]] = reply["id"]
            else:
                # A write that is cut short in its middle is an EIO to LMDB, not a full disk.
                assert reply["code"] in ("storage_full", "read_only"), reply
                again.add(keys[corr])
        assert again
        assert not raw.control.poll(50), "a request was answered twice"
        limit_files(node, resource.RLIM_INFINITY)
        until(lambda: raw.ask("health")["status"] == "ok")
        replayed = 0
        for n in range(800):
            reply = raw.ask("timer.schedule", {"name": f"n{n}", **body}, idem=f"i{n}")
            assert made.get(n, reply["id"]) == reply["id"]
            replayed += "replayed" in reply
        assert replayed == len(made), "something that was refused had been done"
        names = [e["data"]["name"] for e in raw.replay_all() if e["type"] == SCHEDULED]
        assert sorted(names) == sorted(f"n{n}" for n in range(800))


@pytest.mark.timeout(120 + KILLS)
def test_failures_under_load(tmp_path: Path) -> None:
    """The store fails and is well again, over and over, beneath a busy client and a subscriber.

    The process lives on, so besides the log the live feed must be whole: each event once.
    """
    load = Load(SEED)
    print(f"MINOOTS_SEED={SEED}")
    with Node(tmp_path / "data") as node:
        with Raw(node.doors) as raw:
            feed = raw.subscribe()
            load.begin()
            for _ in range(OUTAGES):
                load.busy(raw, feed, time.monotonic() + load.random.uniform(0.2, 0.6))
                limit_files(node, NO_GROWTH_BYTES)
                load.busy(raw, feed, time.monotonic() + load.random.uniform(0.05, 0.4))
                limit_files(node, resource.RLIM_INFINITY)
                until(lambda: node.log().count("commit_failed") == node.log().count("resumed"))
            load.finish(raw, feed)
            load.cancel_grids()
            load.finish(raw, feed)
            until_ns = time.time_ns() + 1_500_000_000
            time.sleep(1.5 + 0.2)
            load.take(raw, feed)
        assert node.log().count("writes_resumed") >= OUTAGES
        assert node.stop() == 0
        node.start()
        with Raw(node.doors) as raw:
            load.catch_up(raw)
            load.ledger.replay(replay(raw, 0))
    assert load.ledger.faults(until_ns) == [], node.log()[-4_000:]
    lives = [live.seq for live in load.ledger.lives]
    assert len(lives) == len(set(lives)), "an event left twice"
    timers = (seq for seq, e in load.ledger.events.items() if ".timer." in e["type"])
    assert set(timers) == set(lives), "an event did not leave"


def test_a_start_without_room(tmp_path: Path) -> None:
    """With a store it serves reads until there is room; without one it ends, and says why."""
    with Node(tmp_path / "data") as node:
        with Raw(node.doors) as raw:
            made = raw.after("1h", "before")
        node.kill()
        node.start(wait=False)
        limit_files(node, NO_GROWTH_BYTES)  # long before it writes anything
        node.wait_ready()
        with Raw(node.doors) as raw:
            assert raw.ask("health")["status"] == "read_only"
            assert read(raw, "timer.get", {"id": made["id"]})["name"] == "before"
            assert raw.send("timer.cancel", {"id": made["id"]})[1]["code"] == "storage_full"
            limit_files(node, resource.RLIM_INFINITY)
            until(lambda: raw.ask("health")["status"] == "ok")
            raw.ask("timer.cancel", {"id": made["id"]})
            starts = [e for e in raw.replay_all() if e["type"] == "io.minoots.node.started.v1"]
            assert len(starts) == 2
    fresh = Node(tmp_path / "fresh").start(wait=False)
    with fresh:
        limit_files(fresh, 0)
        assert fresh.process is not None
        assert fresh.process.wait(20) == 1


def test_the_quota(tmp_path: Path) -> None:
    """log.bytes_max: creates are refused, and what was promised before still fires."""
    limits = {"MINOOTS__LOG__BYTES_MAX": str(16 << 20)}
    with Node(tmp_path / "data", env=limits) as node, Raw(node.doors) as raw:
        every = {"name": "grid", "schedule": {"kind": "every", "interval": "200ms"}}
        raw.ask("timer.schedule", every)
        filler = Filler(raw)
        problem = filler.fill(most=4_000)
        assert (problem["code"], problem["status"]) == ("storage_full", 507)
        assert "log.bytes_max" in problem["detail"]
        before = len(fires(raw))
        until(lambda: len(fires(raw)) >= before + 3)
        check_reads_at_quota(raw, filler)
        filler.check(raw)


def check_reads_at_quota(raw: Raw, filler: Filler) -> None:
    assert raw.ask("health")["status"] == "no_creates"
    first = next(iter(filler.made))
    assert raw.ask("timer.get", {"id": first})["state"] == "scheduled"
    assert raw.ask("timer.cancel", {"id": first})["state"] == "cancelled"  # makes room, in the end


# ------------------------------------------------------------------------------- a failing disk


@contextmanager
def failing(node: Node, call: str, how: str) -> Iterator[None]:
    """Every such system call of the node fails, until the end of the block. how: what strace is to
    inject, such as error=EIO, or error=EIO:when=2 for the second of a thread alone."""
    assert node.process is not None
    command = ["strace", "-f", "-qq", "-e", f"trace={call}", "-e", f"inject={call}:{how}"]
    log = node.folder.with_name("strace.log")
    strace = subprocess.Popen(
        [*command, "-o", str(log), "-p", str(node.process.pid)], stderr=subprocess.PIPE
    )
    status = Path(f"/proc/{node.process.pid}/status")
    try:
        until(
            lambda: f"TracerPid:\t{strace.pid}" in status.read_text() or strace.poll() is not None
        )
        if strace.poll() is not None:
            assert strace.stderr is not None
            raise PermissionError(strace.stderr.read().decode().strip())
        yield
    finally:
        strace.terminate()
        strace.wait(10)
        assert strace.stderr is not None
        strace.stderr.close()


@pytest.mark.parametrize(
    ("call", "error", "code"),
    [
        ("fdatasync", "EIO", "read_only"),
        ("pwrite64", "ENOSPC", "storage_full"),
    ],
)
def test_a_failing_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], call: str, error: str, code: str
) -> None:
    """Refused by name while it fails, never a wrong answer; and done once it is well again."""
    if not shutil.which("strace"):
        skip(capsys, "strace is not installed")
    with Node(tmp_path / "data") as node, Raw(node.doors) as raw:
        filler = Filler(raw)
        assert filler.once() is None
        try:
            with failing(node, call, f"error={error}"):
                problem = filler.fill()
                assert problem["code"] == code, problem
                assert until(lambda: (h := raw.ask("health"))["status"] == "read_only" and h)
                kind, problem = raw.send("timer.cancel", {"id": next(iter(filler.made))})
                assert (kind, problem["code"]) == ("E", code)
                assert raw.ask("hello")["protocol"] == [1]
        except PermissionError as refused:
            skip(capsys, f"strace may not attach: {refused}")
        filler.resume()
        assert raw.ask("health")["status"] == "ok"
        filler.check(raw)
        check_after(node, filler)
