"""`minoots doctor`: is this machine fit to keep time, and what to do if it is not.

Pure: from the facts of `machine.py` to one finding each. Fail: a node can't run here, or can't keep
what it promises. Warn: it runs, and later or less surely than it could.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

from edgenode.machine import UNLIMITED, DoorFact, Facts

MIB = 1 << 20
PULSE_LOCK_BYTES = 32 * MIB  # that a thread which keeps time locks into memory
FREE_BYTES_MIN = 256 * MIB
ADDRESS_BYTES_MIN = 2 << 40  # of the maps of the two files
SYNC_NS_MAX = 10_000_000
WAKE_P50_NS_MAX = 300_000
WAKE_P99_NS_MAX = 5_000_000

SLOW_SOURCES = {"hpet", "acpi_pm", "jiffies", "refined-jiffies", "pit"}
VOLATILE = {"tmpfs", "ramfs"}
REMOTE = {"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "glusterfs"}


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(NamedTuple):
    """What was looked at, how it is, and what to do unless it is good."""

    check: str
    level: Level
    found: str
    remedy: str = ""


def findings(facts: Facts) -> list[Finding]:
    """Every finding, in a fixed order."""
    return [
        *(check(facts) for check in CHECKS),
        *(_door(door) for door in facts.doors),
    ]


def sound(found: Sequence[Finding]) -> bool:
    """Whether nothing failed."""
    return all(finding.level is not Level.FAIL for finding in found)


def as_lines(found: Sequence[Finding]) -> list[str]:
    """For a person: a line each, and one below it with what to do."""
    width = max(len(finding.check) for finding in found)
    lines = []
    for check, level, text, remedy in found:
        lines.append(f"{level:<4}  {check:<{width}}  {text}")
        if remedy:
            lines.append(f"{'':<{width + 8}}-> {remedy}")
    return lines


def as_json(found: Sequence[Finding]) -> str:
    """For a program: {"ok": ..., "findings": [{"check", "level", "found", "remedy"}]}."""
    told = {"ok": sound(found), "findings": [finding._asdict() for finding in found]}
    return json.dumps(told, indent=2)


def _versions(facts: Facts) -> Finding:
    text = ", ".join(f"{name} {number}" for name, number in facts.versions.items())
    return Finding("versions", Level.OK, text)


def _clock_source(facts: Facts) -> Finding:
    name = facts.clock_source
    if not name:
        remedy = "mount /sys, so that it can be told"
        return Finding("clock source", Level.WARN, "unknown", remedy)
    if name in SLOW_SOURCES:
        remedy = "each reading costs microseconds; use tsc or the hypervisor's clock (clocksource=)"
        return Finding("clock source", Level.WARN, f"{name}, a slow one", remedy)
    return Finding("clock source", Level.OK, name)


def _ntp(facts: Facts) -> Finding:
    ntp = facts.ntp
    if ntp is None:
        remedy = "permit adjtimex, which only reads here (seccomp profile)"
        return Finding("wall clock", Level.WARN, "the kernel does not tell its state", remedy)
    if not ntp.synchronised:
        return Finding(
            "wall clock",
            Level.WARN,
            "nobody keeps it: the kernel calls it unsynchronised",
            "run chrony or another NTP daemon; `at` timers are as wrong as the clock is",
        )
    leap = f", a leap second ({ntp.leap}) tonight" if ntp.leap else ""
    text = f"synchronised within {ntp.maxerror_us:,} us, {ntp.freq_ppb / 1000:+.3f} ppm{leap}"
    return Finding("wall clock", Level.OK, text)


def _fifo(facts: Facts) -> Finding:
    fifo = facts.fifo
    if not fifo.refused:
        limit = fifo.rt_runtime_us
        text = "SCHED_FIFO is permitted"
        if limit is not None and limit >= 0:
            text += f" (real-time threads get {limit:,} us of each period)"
        return Finding("real time", Level.OK, text)
    text = f"SCHED_FIFO is refused ({fifo.refused}): wake-ups have long tails under load"
    if not fifo.capable and fifo.priority_max < 1:
        remedy = "LimitRTPRIO=10 in the unit, or CAP_SYS_NICE"
    elif fifo.rt_runtime_us == 0:
        remedy = "kernel.sched_rt_runtime_us is 0, so nobody may; sysctl it to 950000"
    elif fifo.group_runtime_us == 0:
        remedy = "our cgroup has no real-time: give it cpu.rt_runtime_us"
    else:
        remedy = (
            "we may by limit and capability: the cgroup has no real-time (RT_GROUP_SCHED), or a "
            "container's seccomp profile refuses it; run in the root cgroup or permit it"
        )
    return Finding("real time", Level.WARN, text, remedy)


def _slack(facts: Facts) -> Finding:
    if facts.slack:
        return Finding("timer slack", Level.OK, "can be set to 1 ns")
    remedy = "permit prctl(PR_SET_TIMERSLACK) (seccomp profile)"
    return Finding("timer slack", Level.WARN, "stays at 50 us: every wake-up is later", remedy)


def _memory_lock(facts: Facts) -> Finding:
    limit, need = facts.memlock_bytes, PULSE_LOCK_BYTES
    if facts.memlock_capable or limit == UNLIMITED or limit >= need:
        shown = "any amount" if facts.memlock_capable or limit == UNLIMITED else _mib(limit)
        return Finding("memory lock", Level.OK, f"{shown} may be locked; {_mib(need)} are needed")
    text = (
        f"{_mib(limit)} may be locked, {_mib(need)} are needed: a page fault can make a fire late"
    )
    return Finding("memory lock", Level.WARN, text, "LimitMEMLOCK=64M in the unit, or ulimit -l")


def _wake(facts: Facts) -> Finding:
    wake = facts.wake
    text = (
        f"{wake.sleeps} sleeps ended p50 {wake.p50_ns / 1000:,.0f} us, "
        f"p99 {wake.p99_ns / 1000:,.0f} us late ({wake.policy})"
    )
    if wake.p50_ns > WAKE_P50_NS_MAX or wake.p99_ns > WAKE_P99_NS_MAX:
        remedy = "the machine is busy, throttled or virtual: no timer is more punctual than that"
        if facts.fifo.refused:
            remedy = "permit real time, and look again when the machine is quiet"
        return Finding("wake-up", Level.WARN, text, remedy)
    return Finding("wake-up", Level.OK, text)


def _cpus(facts: Facts) -> Finding:
    if facts.cpus < 2:
        remedy = "give it two: the log's thread and the one that fires work at the same time"
        return Finding("processors", Level.WARN, "1", remedy)
    return Finding("processors", Level.OK, str(facts.cpus))


def _data(facts: Facts) -> Finding:
    disk = facts.disk
    if disk.error:
        remedy = "give --data a directory that this user may write"
        return Finding("data", Level.FAIL, f"{disk.place} can't be written: {disk.error}", remedy)
    if disk.place != disk.data_dir:
        text = f"{disk.data_dir} is made at the first start; {disk.place} was looked at"
        return Finding("data", Level.OK, text)
    return Finding("data", Level.OK, f"{disk.data_dir} can be written")


def _file_system(facts: Facts) -> Finding:
    kind = facts.disk.file_system
    remedy = ""
    if not kind:
        kind, remedy = "unknown", "mount /proc, so that it can be told"
    elif kind in VOLATILE:
        remedy = "it is memory: every timer is lost with the machine; use a disk"
    elif kind == "overlay":
        remedy = "it is a container's layer and goes with it; mount a volume"
    elif kind in REMOTE or kind.startswith("fuse"):
        remedy = "flock and fsync may not be kept there; use a local file system"
    return Finding("file system", Level.WARN if remedy else Level.OK, kind, remedy)


def _sync(facts: Facts) -> Finding:
    disk = facts.disk
    if disk.error:
        return Finding("sync", Level.WARN, "not measured", "see data")
    text = (
        f"write and fdatasync take {disk.sync_p50_ns / 1000:,.0f} us (median), "
        f"{disk.sync_ns_max / 1000:,.0f} us at most"
    )
    if disk.sync_p50_ns > facts.lead_ns_max:
        remedy = "longer than engine.lead_max: fires are late by the difference; raise it"
        return Finding("sync", Level.WARN, text, remedy)
    if disk.sync_p50_ns > SYNC_NS_MAX:
        remedy = "every commit waits so long; use a disk with a protected cache, or an SSD"
        return Finding("sync", Level.WARN, text, remedy)
    return Finding("sync", Level.OK, text)


def _room(facts: Facts) -> Finding:
    free = facts.disk.free_bytes
    text = f"{_mib(free)} free"
    if free < FREE_BYTES_MIN:
        remedy = f"a node needs {_mib(FREE_BYTES_MIN)} at the least; make room"
        return Finding("room", Level.FAIL, text, remedy)
    if free < facts.log_bytes_max:
        text += f", log.bytes_max is {_mib(facts.log_bytes_max)}"
        remedy = "the disk would be full before the limit is reached: lower log.bytes_max"
        return Finding("room", Level.WARN, text, remedy)
    return Finding("room", Level.OK, text)


def _files(facts: Facts) -> Finding:
    most, need = facts.files_max, facts.files_needed
    shown = "any number" if most == UNLIMITED else f"{most:,}"
    if most != UNLIMITED and most < need:
        remedy = f"LimitNOFILE={need} in the unit, or lower limits.connections_max"
        return Finding("open files", Level.FAIL, f"{shown} at most, {need:,} are needed", remedy)
    return Finding("open files", Level.OK, f"{shown} at most, {need:,} are needed")


def _zones(facts: Facts) -> Finding:
    if not facts.zones:
        remedy = "install tzdata; without it times with a zone are refused"
        return Finding("time zones", Level.WARN, "unknown", remedy)
    year = int(facts.zones[:4]) if facts.zones[:4].isdigit() else facts.year
    if year < facts.year - 1:
        remedy = "install a newer tzdata; rules that changed since are wrong here"
        return Finding("time zones", Level.WARN, f"of {facts.zones}, it is {facts.year}", remedy)
    return Finding("time zones", Level.OK, "known" if facts.zones == "?" else facts.zones)


def _address_space(facts: Facts) -> Finding:
    if facts.address_bytes == UNLIMITED:
        return Finding("address space", Level.OK, "unlimited")
    found = f"{facts.address_bytes >> 30:,} GiB"
    if facts.address_bytes >= ADDRESS_BYTES_MIN:
        return Finding("address space", Level.OK, found)
    remedy = f"ulimit -v unlimited: the store maps {ADDRESS_BYTES_MIN >> 30:,} GiB, of no memory"
    return Finding("address space", Level.FAIL, found, remedy)


def _keys(facts: Facts) -> Finding:
    if facts.keys_error:
        return Finding("keys", Level.WARN, "cannot be used", facts.keys_error)
    return Finding("keys", Level.OK, facts.keys or "none; `minoots keys new` makes some")


def _door(door: DoorFact) -> Finding:
    name = f"door {door.name}"
    if not door.endpoint.startswith(("tcp://", "ipc://")):
        remedy = f"doors.{door.name}: write tcp://127.0.0.1:PORT or ipc://PATH"
        return Finding(name, Level.FAIL, f"{door.endpoint!r} is not an endpoint", remedy)
    if door.node_pid:
        return Finding(name, Level.OK, f"{door.endpoint}, held by the node, pid {door.node_pid}")
    if door.held:
        remedy = f"stop what listens there, or choose another doors.{door.name}"
        return Finding(name, Level.FAIL, f"{door.endpoint} is taken", remedy)
    return Finding(name, Level.OK, f"{door.endpoint} is free")


CHECKS: tuple[Callable[[Facts], Finding], ...] = (
    *(_versions, _clock_source, _ntp, _fifo, _slack, _memory_lock, _wake, _cpus),
    *(_data, _file_system, _sync, _room, _address_space, _files, _zones, _keys),
)


def _mib(count: int) -> str:
    return f"{count / MIB:,.0f} MiB"
