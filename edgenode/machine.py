"""Facts about the machine a node is to run on, gathered for `minoots doctor`; it judges nothing.

Changes nothing: what it tries (a real-time policy, a shorter timer slack, synced writes) it tries
in a thread that ends, and in a file that has no name.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import statistics
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from edgenode.bundles.keys import BundleError, Keyring
from edgenode.config import READY_FILE, Config
from edgenode.doors.zeromq import FILES_OTHER
from engine._kernel import NtpState, monotonic_ns, ntp_state
from engine._wait import Waiter, boottime_ns, set_timer_slack
from engine.clock import OsClock
from minoots.wire import zones
from minoots.wire.times import format_instant

CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
RT_RUNTIME = Path("/proc/sys/kernel/sched_rt_runtime_us")
PACKAGES = ("minoots", "pyzmq", "lmdb", "msgspec", "PyNaCl")
CAP_IPC_LOCK, CAP_SYS_NICE = 14, 23
UNLIMITED = resource.RLIM_INFINITY

SYNCS = 50
SYNC_BYTES = 4096
SLEEPS = 200
SLEEP_NS = 1_000_000
TIMER_SLACK_NS = 1
FIFO_PRIORITY = 1


class Fifo(NamedTuple):
    """Whether SCHED_FIFO was permitted, and what decides it.

    refused: why not, empty if it was. rt_runtime_us: of each second or so for all real-time
    threads; -1 no limit; None unknown. group_runtime_us: the same of our cgroup, None if it has
    no such limit.
    """

    refused: str
    priority_max: int
    capable: bool
    rt_runtime_us: int | None
    group_runtime_us: int | None


class Wake(NamedTuple):
    """How late bare sleeps end."""

    policy: str
    sleeps: int
    p50_ns: int
    p99_ns: int


class Disk(NamedTuple):
    """Where the data is to be. place: the directory itself, or the nearest there is above it."""

    data_dir: str
    place: str
    file_system: str
    error: str
    sync_p50_ns: int
    sync_ns_max: int
    free_bytes: int


class DoorFact(NamedTuple):
    """One door's endpoint: does anybody listen there, and if it is our node, its pid."""

    name: str
    endpoint: str
    held: bool
    node_pid: int


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the findings are drawn from."""

    versions: dict[str, str]
    clock_source: str
    ntp: NtpState | None
    fifo: Fifo
    slack: bool
    memlock_bytes: int
    memlock_capable: bool
    wake: Wake
    disk: Disk
    log_bytes_max: int
    lead_ns_max: int
    files_max: int
    files_needed: int
    doors: tuple[DoorFact, ...]
    cpus: int
    zones: str  # the release of the time zones, such as 2026f; "?" if it does not say, "" if none
    year: int  # of UTC, by this machine's clock
    address_bytes: int
    keys: str  # the fingerprint of the node's own, "" if it has none
    keys_error: str


def gather(config: Config, data_dir: Path) -> Facts:
    """Look at everything; takes about half a second."""
    refused, slack, wake = _try_thread()
    keys, keys_error = _keys(data_dir)
    return Facts(
        versions=_versions(),
        clock_source=_text(CLOCK_SOURCE),
        ntp=_ntp(),
        fifo=_fifo(refused),
        slack=slack,
        memlock_bytes=resource.getrlimit(resource.RLIMIT_MEMLOCK)[1],
        memlock_capable=_capable(CAP_IPC_LOCK),
        wake=wake,
        disk=_disk(data_dir),
        log_bytes_max=config.log.bytes_max,
        lead_ns_max=config.engine.lead_max,
        files_max=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        files_needed=config.limits.connections_max + FILES_OTHER,
        doors=_doors(config, data_dir),
        cpus=len(os.sched_getaffinity(0)),
        zones=zones.release(),
        year=int(format_instant(OsClock().utc_ns())[:4]),
        address_bytes=resource.getrlimit(resource.RLIMIT_AS)[0],
        keys=keys,
        keys_error=keys_error,
    )


def _text(path: Path) -> str:
    """A file of /proc or /sys in one line; empty if it can't be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in PACKAGES}
    return {**found, "python": platform.python_version(), "kernel": platform.release()}


def _ntp() -> NtpState | None:
    try:
        return ntp_state()
    except OSError:
        return None


def _keys(data_dir: Path) -> tuple[str, str]:
    """The fingerprint of the node's keys, and why they cannot be used."""
    ring = Keyring(data_dir)
    try:
        return (ring.own().public.fingerprint if ring.has_own() else ""), ""
    except (BundleError, OSError) as error:
        return "", str(error)


# ------------------------------------------------------------------------------ threads


def _try_thread() -> tuple[str, bool, Wake]:
    """Why FIFO is refused, whether the timer slack can be set, and a bare thread's wake-ups."""
    found: list[tuple[str, bool, Wake]] = []

    def run() -> None:
        refused = _try_fifo()
        slack = set_timer_slack(TIMER_SLACK_NS)
        found.append((refused, slack, _wake("OTHER" if refused else "FIFO")))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def _try_fifo() -> str:
    """Make the calling thread real-time; why it was refused, or nothing."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(FIFO_PRIORITY))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _wake(policy: str) -> Wake:
    waiter, late_ns = Waiter([]), []
    for _ in range(SLEEPS):
        due_ns = boottime_ns() + SLEEP_NS
        waiter.wait(due_ns)
        late_ns.append(boottime_ns() - due_ns)
    late_ns.sort()
    return Wake(policy, SLEEPS, late_ns[SLEEPS // 2], late_ns[SLEEPS * 99 // 100])


def _fifo(refused: str) -> Fifo:
    runtime = _text(RT_RUNTIME)
    return Fifo(
        refused,
        resource.getrlimit(resource.RLIMIT_RTPRIO)[1],
        _capable(CAP_SYS_NICE),
        int(runtime) if runtime else None,
        _group_runtime_us(),
    )


def _group_runtime_us() -> int | None:
    """What our cgroup leaves to real-time threads (version 1; version 2 has no such file)."""
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, group = line.split(":", 2)
        if "cpu" in controllers.split(","):
            told = _text(Path(f"/sys/fs/cgroup/{controllers}{group}/cpu.rt_runtime_us"))
            return int(told) if told else None
    return None


def _capable(number: int) -> bool:
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", _text(Path("/proc/self/status")), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> number & 1)


# ------------------------------------------------------------------------------ disk


def _disk(data_dir: Path) -> Disk:
    data_dir = data_dir.absolute()
    place = next(path for path in (data_dir, *data_dir.parents) if os.path.isdir(path))
    kind = file_system_of(os.path.realpath(place), _text(Path("/proc/self/mountinfo")))
    error, sync_ns = "", [0]
    try:
        sync_ns = _syncs(place)
        if os.path.lexists(data_dir) and not os.path.isdir(data_dir):
            error = f"{data_dir} is no directory"
    except OSError as failed:
        error = failed.strerror or str(failed)
    room = os.statvfs(place)
    return Disk(
        str(data_dir),
        str(place),
        kind,
        error,
        int(statistics.median(sync_ns)),
        max(sync_ns),
        room.f_bavail * room.f_frsize,
    )


def _syncs(place: Path) -> list[int]:
    took_ns = []
    with tempfile.TemporaryFile(dir=place, buffering=0) as file:
        for _ in range(SYNCS):
            began_ns = monotonic_ns()
            file.write(b"\0" * SYNC_BYTES)
            os.fdatasync(file.fileno())
            took_ns.append(monotonic_ns() - began_ns)
    return took_ns


def file_system_of(path: str, mountinfo: str) -> str:
    """The type of the file system that holds `path`, from the text of /proc/self/mountinfo."""
    best, kind = -1, ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        where = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), left.split()[4])
        inside = path == where or path.startswith(where.rstrip("/") + "/")
        # Of two mounts on one place the later one is seen.
        if inside and len(where) >= best:
            best, kind = len(where), right.split()[0]
    return kind


# ------------------------------------------------------------------------------ doors


def _doors(config: Config, data_dir: Path) -> tuple[DoorFact, ...]:
    doors = config.doors
    named = {"control": doors.control, "stream": doors.stream, "events": doors.events}
    ours, pid = _running(data_dir)
    listening = _listening()
    return tuple(
        DoorFact(name, endpoint, held(endpoint, listening), pid if endpoint in ours else 0)
        for name, endpoint in named.items()
    )


def _running(data_dir: Path) -> tuple[set[str], int]:
    """The endpoints of the node that serves this directory, and its pid; or nothing."""
    try:
        told = json.loads((data_dir / READY_FILE).read_bytes())
        endpoints, pid = set(told["doors"].values()), int(told["pid"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return set(), 0
    return (endpoints, pid) if Path(f"/proc/{pid}").is_dir() else (set(), 0)


def _listening() -> set[str]:
    tables = [_text(Path(f"/proc/net/{name}")) for name in ("tcp", "tcp6")]
    return listeners(tables, _text(Path("/proc/net/unix")))


def listeners(tcp: Iterable[str], unix: str) -> set[str]:
    """Who listens: "ADDRESS:PORT" with the address in the kernel's hexadecimals, and paths.

    From the texts of /proc/net/tcp, tcp6 and unix.
    """
    found = set()
    for table in tcp:
        for line in table.splitlines()[1:]:
            cells = line.split()
            address, _, port = cells[1].partition(":")
            if cells[3] == "0A":
                found.add(f"{address}:{int(port, 16)}")
    for line in unix.splitlines()[1:]:
        cells = line.split(maxsplit=7)
        if len(cells) == 8 and int(cells[3], 16) & 0x10000:
            found.add(cells[7])
    return found


LOOPBACKS = {
    "127.0.0.1": ("0100007F", "00000000", "0" * 32),  # itself, and those that listen on all
    "[::1]": ("0" * 24 + "01000000", "0" * 32),
}


def held(endpoint: str, listening: set[str]) -> bool:
    """Whether somebody listens at the endpoint; never at a port that is to be chosen."""
    if endpoint.startswith("ipc://"):
        return endpoint.removeprefix("ipc://") in listening
    address, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return any(f"{known}:{port}" in listening for known in LOOPBACKS.get(address, ()))
