"""What a node is as a process: its store, doors and clocks, how it waits, and what it tells others
about itself (the ready file, the service manager).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import orjson

from edgenode.config import READY_FILE, Config
from edgenode.doors._mailbox import Mailbox
from edgenode.doors.zeromq import Doors
from edgenode.ledger import Ledger
from edgenode.logs import say
from edgenode.metrics import Metrics
from edgenode.node import Node
from edgenode.reference import KernelReference, NodeReference, Reference
from engine._kernel import SetWatch, ntp_state
from engine._log import LmdbLog
from engine._tables import LmdbTables
from engine._wait import Waiter
from engine.clock import CorrectedClock, Timescale
from engine.files import close_store
from engine.record import Kind


@dataclass(slots=True)
class Watchdog:
    """Tells the service manager that the loop goes round; without it, it restarts the node.

    every_ns: between two tellings, half of what the manager allows; 0 if it does not ask. The loop
    goes round once a second at least, so the manager must allow 3 s or more.
    """

    every_ns: int
    next_ns: int = 0

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Watchdog:
        """What the manager asks for (WATCHDOG_USEC), if it means this process or the part of the
        one-file program that started it."""
        asked, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        meant = pid in ("", str(os.getpid()), str(os.getppid()))
        return cls(int(asked) * 1_000 // 2 if asked.isdecimal() and meant else 0)

    def feed(self, now_ns: int) -> None:
        """Say so if it is time to. now_ns: BOOTTIME."""
        if self.every_ns and now_ns >= self.next_ns:
            self.next_ns = now_ns + self.every_ns
            notify("WATCHDOG=1")


@dataclass(slots=True)
class Serving:
    """What a running node is made of, apart from what is rebuilt after a failed commit."""

    config: Config
    data_dir: Path
    node_id: str
    boot: str
    clock: CorrectedClock
    watch: SetWatch
    peer: Mailbox | None
    doors: Doors
    metrics: Metrics
    stop: bool = False
    started: bool = False  # the log says so
    told: bool = False  # READY_FILE is written
    node: Node | None = None  # the newest one
    watchdog: Watchdog = field(default_factory=lambda: Watchdog.of(os.environ))
    beat_ns: int = 0  # steady: when a heartbeat is due while the loop does not run


@dataclass(slots=True)
class Store:
    """An open store."""

    data_dir: Path
    log: LmdbLog
    tables: LmdbTables

    def close(self) -> None:
        """Close both environments and let go of the directory."""
        close_store(self.data_dir, self.log, self.tables)


def reference(serving: Serving, timescale: Timescale) -> Reference | None:
    name = serving.config.clock.reference
    if serving.peer is not None:
        return NodeReference(name, serving.peer, timescale, serving.clock)
    if name == "kernel":
        return KernelReference(_kernel_state, timescale, serving.clock)
    return None


_refused: set[str] = set()  # what has been said of the kernel's state; once is enough


def _kernel_state() -> tuple[bool, int]:
    """Is the kernel's clock synchronised, and within how many us; a container may forbid to ask."""
    try:
        state = ntp_state()
    except OSError as error:
        if str(error) not in _refused:
            _refused.add(str(error))
            say("warning", "clock_state_refused", error=error, remedy="permit adjtimex")
        return False, 0
    return state.synchronised, state.maxerror_us


def sleeper(serving: Serving, store: Store | None) -> RealSleeper:
    fds = [] if store is None else [store.log.fileno(), store.tables.fileno()]
    if serving.peer is not None:
        fds.append(serving.peer.fd)
    # First, so that its bit is known.
    return RealSleeper(Waiter([serving.watch.fileno(), *serving.doors.fds, *fds]), serving.watch)


@dataclass(slots=True)
class RealSleeper:
    waiter: Waiter
    watch: SetWatch

    def wait(self, boot_ns: int) -> bool:
        return bool(self.waiter.wait(boot_ns) & 1) and self.watch.was_set()


def tell_started(serving: Serving, ledger: Ledger) -> None:
    started = {"version": version("minoots"), "boot": serving.boot}
    ledger.tell(Kind.NODE_STARTED, orjson.dumps(started))


def tell_ready(serving: Serving) -> None:
    """Say once that requests are answered; the file is tried again while there is no room."""
    if serving.told:
        return
    path = serving.data_dir / READY_FILE
    facts = {
        "node_id": serving.node_id,
        "pid": os.getpid(),
        "version": version("minoots"),
        "doors": serving.doors.endpoints,
    }
    fresh = path.with_suffix(".new")
    try:
        fresh.write_bytes(orjson.dumps(facts))
        fresh.chmod(0o600)
        fresh.replace(path)
        serving.told = True
    except OSError as error:
        say("warning", "ready_file_failed", path=path, error=error)
    say(
        "info",
        "serving",
        node=serving.node_id,
        **serving.doors.endpoints,
        data=serving.data_dir,
        pid=os.getpid(),
    )
    notify(f"READY=1\nMAINPID={os.getpid()}\nSTATUS=serving {serving.doors.endpoints['control']}")


def notify(state: str) -> None:
    """Tell a service manager, if there is one (sd_notify)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(state.encode(), address)
        except OSError as error:
            say("warning", "notify_failed", error=error)
