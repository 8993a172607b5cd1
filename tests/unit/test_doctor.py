"""`minoots doctor`: what is found in given facts, and how the facts are gathered."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgenode import machine
from edgenode.__main__ import cli
from edgenode.config import Config, load
from edgenode.doctor import Finding, Level, as_json, as_lines, findings, sound
from edgenode.machine import Disk, DoorFact, Facts, Fifo, Wake, file_system_of, held, listeners
from engine._kernel import NtpState

MIB = 1 << 20

GOOD = Facts(
    versions={"minoots": "0.1.0", "python": "3.11.7"},
    clock_source="tsc",
    ntp=NtpState(True, 0, -1500, 1234, 10, 37, "", 0x2001),
    fifo=Fifo("", 99, True, 950_000, None),
    slack=True,
    memlock_bytes=64 * MIB,
    memlock_capable=False,
    wake=Wake("FIFO", 200, 40_000, 90_000),
    disk=Disk("/data", "/data", "ext4", "", 300_000, 900_000, 100_000 * MIB),
    log_bytes_max=64 << 30,
    lead_ns_max=100_000_000,
    files_max=65_536,
    files_needed=1_280,
    doors=(
        DoorFact("control", "tcp://127.0.0.1:7410", False, 0),
        DoorFact("events", "ipc:///run/e", False, 0),
    ),
    cpus=4,
    zones="2026f",
    year=2026,
    address_bytes=machine.UNLIMITED,
    keys="",
    keys_error="",
)


def one(facts: Facts, check: str) -> Finding:
    (found,) = [finding for finding in findings(facts) if finding.check == check]
    return found


def test_a_good_machine_has_nothing_to_do() -> None:
    found = findings(GOOD)
    assert {finding.level for finding in found} == {Level.OK}
    assert not any(finding.remedy for finding in found)
    assert sound(found)
    assert one(GOOD, "wall clock").found == "synchronised within 1,234 us, -1.500 ppm"
    assert one(GOOD, "wake-up").found == "200 sleeps ended p50 40 us, p99 90 us late (FIFO)"


def disk(**changed: Any) -> Any:
    return {"disk": GOOD.disk._replace(**changed)}


def fifo(**changed: Any) -> Any:
    refused = Fifo("Operation not permitted", 99, True, 950_000, None)
    return {"fifo": refused._replace(**changed)}


def door(endpoint: str, taken: bool, pid: int = 0) -> Any:
    return {"doors": (DoorFact("control", endpoint, taken, pid),)}


TCP = "tcp://127.0.0.1:7410"
UNSYNCHRONISED = NtpState(False, 0, 0, 16_000_000, 16_000_000, 0, "", 0x40)


@pytest.mark.parametrize(
    ("changed", "check", "level", "says"),
    [
        ({"clock_source": "hpet"}, "clock source", "warn", "a slow one"),
        ({"clock_source": ""}, "clock source", "warn", "mount /sys"),
        ({"ntp": None}, "wall clock", "warn", "adjtimex"),
        ({"ntp": UNSYNCHRONISED}, "wall clock", "warn", "run chrony"),
        (
            {"ntp": UNSYNCHRONISED._replace(synchronised=True, leap="insert")},
            "wall clock",
            "ok",
            "a leap second (insert) tonight",
        ),
        (fifo(capable=False, priority_max=0), "real time", "warn", "LimitRTPRIO"),
        (fifo(rt_runtime_us=0), "real time", "warn", "sched_rt_runtime_us is 0"),
        (fifo(group_runtime_us=0), "real time", "warn", "cpu.rt_runtime_us"),
        (fifo(capable=False), "real time", "warn", "RT_GROUP_SCHED"),
        (fifo(refused="", rt_runtime_us=-1), "real time", "ok", "is permitted"),
        ({"slack": False}, "timer slack", "warn", "PR_SET_TIMERSLACK"),
        ({"memlock_bytes": 8 * MIB}, "memory lock", "warn", "8 MiB may be locked, 32 MiB"),
        ({"memlock_bytes": 8 * MIB, "memlock_capable": True}, "memory lock", "ok", "any amount"),
        ({"memlock_bytes": machine.UNLIMITED}, "memory lock", "ok", "any amount"),
        ({"wake": Wake("OTHER", 200, 60_000, 5_000_001)}, "wake-up", "warn", "p99 5,000 us"),
        ({"wake": Wake("OTHER", 200, 300_001, 400_000)}, "wake-up", "warn", "p50 300 us"),
        (
            {"wake": Wake("OTHER", 200, 300_001, 400_000), **fifo(capable=False)},
            "wake-up",
            "warn",
            "permit real time",
        ),
        ({"cpus": 1}, "processors", "warn", "give it two"),
        (disk(error="Permission denied"), "data", "fail", "/data can't be written: Permission"),
        (disk(error="Permission denied"), "sync", "warn", "not measured"),
        (disk(place="/"), "data", "ok", "/data is made at the first start; / was looked at"),
        (disk(file_system="tmpfs"), "file system", "warn", "it is memory"),
        (disk(file_system="overlay"), "file system", "warn", "mount a volume"),
        (disk(file_system="nfs4"), "file system", "warn", "flock"),
        (disk(file_system="fuse.sshfs"), "file system", "warn", "flock"),
        (disk(file_system=""), "file system", "warn", "mount /proc"),
        (disk(sync_p50_ns=10_000_001), "sync", "warn", "10,000 us (median)"),
        (disk(sync_p50_ns=100_000_001), "sync", "warn", "engine.lead_max"),
        (disk(free_bytes=255 * MIB), "room", "fail", "255 MiB free"),
        (disk(free_bytes=1_000 * MIB), "room", "warn", "lower log.bytes_max"),
        ({"files_max": 1_279}, "open files", "fail", "LimitNOFILE=1280"),
        ({"files_max": machine.UNLIMITED}, "open files", "ok", "any number"),
        ({"zones": ""}, "time zones", "warn", "install tzdata"),
        ({"zones": "2024b"}, "time zones", "warn", "of 2024b, it is 2026"),
        ({"zones": "2025c"}, "time zones", "ok", "2025c"),
        ({"zones": "?"}, "time zones", "ok", "known"),
        ({"address_bytes": 1 << 40}, "address space", "fail", "1,024 GiB"),
        ({"address_bytes": 4 << 40}, "address space", "ok", "4,096 GiB"),
        ({"keys": "ab12"}, "keys", "ok", "ab12"),
        ({"keys_error": "others may read it: chmod 600"}, "keys", "warn", "chmod 600"),
        (door(TCP, taken=True), "door control", "fail", "is taken"),
        (door(TCP, taken=True, pid=77), "door control", "ok", "held by the node, pid 77"),
        (door("http://x", taken=False), "door control", "fail", "not an endpoint"),
    ],
)
def test_what_is_found(changed: dict[str, Any], check: str, level: str, says: str) -> None:
    facts = replace(GOOD, **changed)
    found = one(facts, check)
    assert found.level == level
    assert says in f"{found.found} {found.remedy}"
    assert bool(found.remedy) == (level != "ok"), "what is wrong says what to do"
    others = [each.level for each in findings(facts) if each.check not in (check, "data")]
    assert Level.FAIL not in others
    assert sound(findings(facts)) == ("fail" not in {level, one(facts, "data").level}), (
        "only a failure makes it unsound"
    )


def test_every_check_is_described() -> None:
    page = (Path(__file__).parents[2] / "docs/operating.md").read_text()
    _, _, table = page.partition("| check | looks at |")
    told = re.findall(r"`([a-z][a-z -]+)`", "".join(re.findall(r"^\|([^|]+)", table, re.MULTILINE)))
    names = [finding.check for finding in findings(GOOD)]
    expected = names[: names.index("door control")]
    assert told[: len(expected) + 3] == [*expected, "door control", "door stream", "door events"]


def test_how_it_is_shown() -> None:
    found = [Finding("a", Level.OK, "good"), Finding("long", Level.FAIL, "bad", "mend it")]
    assert as_lines(found) == [
        "ok    a     good",
        "fail  long  bad",
        "            -> mend it",
    ]
    told = json.loads(as_json(found))
    assert told["ok"] is False
    assert told["findings"][1] == {
        "check": "long",
        "level": "fail",
        "found": "bad",
        "remedy": "mend it",
    }


# ------------------------------------------------------------------------------ gathering


MOUNTS = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:26 / /run rw,nosuid shared:5 - tmpfs tmpfs rw
31 22 0:27 / /run/data rw master:3 - xfs /dev/sdb rw
32 22 0:28 / /with\040space rw - overlay overlay rw,lowerdir=/a
33 22 0:29 / /twice rw - ext4 /dev/sdc rw
34 33 0:30 / /twice rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/var/lib/minoots", "ext4"),
        ("/run", "tmpfs"),
        ("/runner", "ext4"),
        ("/run/data/x", "xfs"),
        ("/with space/x", "overlay"),
        ("/twice", "tmpfs"),
    ],
)
def test_the_file_system_of_a_path(path: str, kind: str) -> None:
    assert file_system_of(path, MOUNTS) == kind
    assert file_system_of(path, "") == ""


def test_who_listens_is_read_from_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "a b.sock"
    with socket.socket() as four, socket.socket(socket.AF_UNIX) as unix, socket.socket() as idle:
        four.bind(("127.0.0.1", 0))
        unix.bind(str(path))
        idle.bind(("127.0.0.1", 0))
        port, silent = four.getsockname()[1], idle.getsockname()[1]
        four.listen()
        unix.listen()
        listening = machine._listening()
    assert held(f"tcp://127.0.0.1:{port}", listening)
    assert held(f"ipc://{path}", listening)
    assert not held(f"tcp://127.0.0.1:{silent}", listening), "bound, but nobody listens"
    assert not held(f"tcp://[::1]:{port}", listening)
    assert not held("tcp://127.0.0.1:0", listening)
    assert not held("tcp://127.0.0.1:*", listening)
    assert not held(f"ipc://{path}2", listening)


def test_listeners_on_all_addresses_count() -> None:
    head = "  sl  local_address rem_address   st\n"
    four = head + "   0: 00000000:1CF2 00000000:0000 0A x\n   1: 0100007F:1CF3 0100007F:0 01 x\n"
    six = head + f"   0: {'0' * 24}01000000:1CF4 {'0' * 32}:0000 0A x\n"
    listening = listeners([four, six, ""], "Num RefCount\n")
    assert held("tcp://127.0.0.1:7410", listening)
    assert not held("tcp://127.0.0.1:7411", listening), "a connection, not a listener"
    assert held("tcp://[::1]:7412", listening)
    assert not held("tcp://127.0.0.1:7412", listening)


def test_a_directory_that_is_not_there_or_no_directory(tmp_path: Path) -> None:
    there = machine._disk(tmp_path / "a" / "b")
    assert (there.place, there.error) == (str(tmp_path), "")
    assert 0 < there.sync_p50_ns <= there.sync_ns_max
    assert there.free_bytes > 0
    assert list(tmp_path.iterdir()) == [], "nothing is left"
    (tmp_path / "file").touch()
    assert "is no directory" in machine._disk(tmp_path / "file").error


def test_a_directory_that_cannot_be_written() -> None:
    disk = machine._disk(Path("/proc/self"))
    assert disk.error in {os.strerror(errno.ENOENT), os.strerror(errno.EACCES)}
    assert disk.file_system == "proc"


def test_a_running_node_holds_its_doors(tmp_path: Path) -> None:
    ready = tmp_path / machine.READY_FILE
    config = Config()
    endpoints = {"control": config.doors.control, "events": config.doors.events}
    ready.write_text(json.dumps({"pid": os.getpid(), "doors": endpoints}))
    pids = {door.name: door.node_pid for door in machine._doors(config, tmp_path)}
    assert pids == {"control": os.getpid(), "stream": 0, "events": os.getpid()}
    for text in (json.dumps({"pid": 1 << 30, "doors": endpoints}), "{}", "[]", "half"):
        ready.write_text(text)
        assert not any(door.node_pid for door in machine._doors(config, tmp_path)), text


def test_trying_leaves_this_thread_as_it_was() -> None:
    refused, slack, wake = machine._try_thread()
    assert slack
    assert wake.policy == ("OTHER" if refused else "FIFO")
    assert 0 <= wake.p50_ns <= wake.p99_ns
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_refusal_of_real_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, policy: int, parameters: os.sched_param) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    refused, _, wake = machine._try_thread()
    assert (refused, wake.policy) == ("Operation not permitted", "OTHER")


def test_all_facts_are_gathered(tmp_path: Path) -> None:
    facts = machine.gather(load(None, {}, {}), tmp_path)
    assert facts.files_needed == 1_280
    assert facts.disk.data_dir == str(tmp_path)
    assert facts.versions["minoots"]
    assert [door.name for door in facts.doors] == ["control", "stream", "events"]
    assert len(findings(facts)) == 19


# ------------------------------------------------------------------------------ the command


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def run(*words: str, **environ: str) -> Result:
    env = {f"MINOOTS__DOORS__{door}": "tcp://127.0.0.1:0" for door in ("STREAM", "EVENTS")}
    given = {**env, "MINOOTS__DOORS__CONTROL": "tcp://127.0.0.1:0", **environ}
    return CliRunner().invoke(cli, ["doctor", *words], env=given, prog_name="minoots")


def test_the_command(tmp_path: Path, taken: int) -> None:
    done = run("--data", str(tmp_path), "--json")
    told = json.loads(done.stdout)
    fails = [each["check"] for each in told["findings"] if each["level"] == "fail"]
    assert (done.exit_code, told["ok"], fails) == (0, True, [])
    endpoint = f"tcp://127.0.0.1:{taken}"
    done = run("--data", str(tmp_path), "--json", MINOOTS__DOORS__CONTROL=endpoint)
    told = json.loads(done.stdout)
    assert (done.exit_code, told["ok"]) == (1, False)
    assert told["findings"][-3]["found"] == f"{endpoint} is taken"
    done = run("--data", str(tmp_path), MINOOTS__DOORS__CONTROL=endpoint)
    assert done.exit_code == 1
    assert re.search(rf"\nfail +door control +{endpoint} is taken\n", done.stdout)


def test_a_faulty_configuration_ends_it(tmp_path: Path) -> None:
    done = run("--data", str(tmp_path), MINOOTS__LOG__RETENTION="never")
    assert done.exit_code == 78
