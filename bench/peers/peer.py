"""What a peer is to the bench, and what all of them share: timers, processes, ledgers, memory.

A peer is a timer service that is driven as its users would drive it at its best: creates over its
raw protocol, pipelined, encoded before the clock starts; deliveries by a worker process of its own
that writes what came into a ledger outside of the peer.
"""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from bench.load import definition
from bench.report import ROOT

NS = 1_000_000_000
START_S = 20.0
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Timer(NamedTuple):
    """A timer to create: its number in the ledger, and when it is due (Unix, ns)."""

    key: int
    due_ns: int


class Absent(Exception):
    """A peer cannot run here; the message names the package to install."""


class Refused(Exception):
    """A peer answered a create with something other than its acknowledgement."""


class Peer(Protocol):
    """One timer service. Started over an empty folder, driven, killed, stopped."""

    name: str
    ack: str  # what an acknowledgement means, in words
    creates_only: bool  # another way to create, no other workload
    victims: tuple[str, ...]  # what is killed: its store, its worker

    def start(self, folder: Path) -> None:
        """Start its servers over `folder`, again after a kill. Raises Absent."""

    def create(self, timers: Sequence[Timer]) -> float:
        """Create timers and have each acknowledged; seconds from first byte to last ack.

        Encoding happens before the clock starts. Raises Refused.
        """

    def work(self, ledger: Path) -> subprocess.Popen[bytes]:
        """Start a worker that writes `key ns` into the ledger for each timer delivered."""

    def servers(self) -> list[subprocess.Popen[bytes]]:
        """The server processes, without their children."""

    def stop(self) -> None:
        """Kill what is left of the servers."""


def body_of(timer: Timer) -> bytes:
    """The definition that a peer stores: some 300 bytes, as many as a MINOOTS record holds."""
    view = definition(timer.key)
    view["schedule"] = {"kind": "at", "instant": instant(timer.due_ns)}
    view["payload"]["k"] = timer.key
    view |= {"tenant": "default", "revision": 1, "state": "scheduled", "occurrence": 1}
    return json.dumps(view).encode()


def instant(at_ns: int) -> str:
    """An instant as RFC 3339 in UTC, to the nanosecond."""
    seconds, ns = divmod(at_ns, NS)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{ns:09}Z"


def key_of(body: bytes) -> int:
    """The timer's number in a delivered body: digits after `"k":`.

    Raises ValueError when there are none.
    """
    at = body.index(b'"k":') + 4
    while body[at : at + 1] == b" ":
        at += 1
    end = at
    while body[end : end + 1].isdigit():
        end += 1
    return int(body[at:end])


class Ledger:
    """Outside of every peer: one line `key ns` for each delivery, kept though a process dies."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, keys: Iterable[int]) -> None:
        """Write deliveries that came just now, in one write."""
        now_ns = time.time_ns()
        os.write(self._fd, b"".join(b"%d %d\n" % (key, now_ns) for key in keys))

    @staticmethod
    def read(path: Path) -> list[tuple[int, int]]:
        """(key, ns) of each whole line."""
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        lines = [line.split() for line in whole.splitlines()]
        return [(int(key), int(at_ns)) for key, at_ns in lines]


def free_port() -> int:
    """A TCP port of loopback that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _tie_to_parent() -> None:
    # A bench that is killed must not leave servers behind.
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def spawn(command: Sequence[str], log: Path, *, user: str | None = None) -> subprocess.Popen[bytes]:
    """Start a process that dies with this one; what it says goes to `log`."""
    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=ROOT,
            user=user,
            preexec_fn=_tie_to_parent,
        )


def spawn_worker(peer: str, port: int, ledger: Path) -> subprocess.Popen[bytes]:
    """A worker process of ours; `peer` names the module."""
    command = [sys.executable, "-m", "bench.peers.work", peer, str(port), str(ledger)]
    return spawn(command, ledger.with_suffix(".log"))


def wait_for_port(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until a server accepts. Raises Absent with its log if it ends or never does."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.005)
    raise Absent(f"it did not start: {log.read_text(errors='replace')[-600:]}")


def end(*processes: subprocess.Popen[bytes]) -> None:
    """kill -9, and wait until they are gone."""
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def plain_user() -> str | None:
    """For servers that refuse to run as root: an account without rights, or None (ours)."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def tree(pid: int) -> list[int]:
    """A process and all below it; none that has ended meanwhile."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(below for child in children for below in tree(int(child)))]


def memory_bytes(servers: Sequence[subprocess.Popen[bytes]]) -> int:
    """Memory of servers and their children that cannot be dropped: anonymous and shared.

    Shared pages are counted once (proportional shares); pages of files are not counted.
    """
    total = 0
    for pid in (pid for server in servers for pid in tree(server.pid)):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += int(line.split()[1]) * 1024
    return total


def disk_bytes(folder: Path) -> int:
    """Blocks that the files below `folder` hold."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
