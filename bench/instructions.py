"""How many instructions does it take? Counted, not timed, so that noise hides no regression.

    python -m bench.instructions [--write]

Fixed workloads of the wheel, the records and the turn run in processes of their own under callgrind
(of valgrind; or `perf stat -e instructions:u` where that counts), each against a process that
imports the same and does nothing; the difference is divided by the operations. The result is
compared with bench/results/instructions.json: exit 1 if a path needs TOLERANCE more than it says,
exit 0 with a reason where nothing can count. `--write` replaces the file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import report

FILE = report.ROOT / "bench/results/instructions.json"
TOLERANCE = 0.10
TIMEOUT_S = 600
VALGRIND = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
PERF = ["perf", "stat", "-x", ",", "-e", "instructions:u"]


# --- the workloads --------------------------------------------------------------------------------


def nothing() -> int:
    """What all the others do before they begin: import, and make one of each."""
    from bench.load import definition
    from bench.micro import samples
    from bench.turn import frames
    from edgenode.virtual import VirtualNode

    node = VirtualNode()
    node.request(frames(b"timer.schedule", json.dumps(definition(0)).encode()))
    samples.scheduled(1)
    return len(samples.due_ticks(1))


def wheel() -> int:
    """Arm, disarm half, fire the rest."""
    import numpy as np

    from bench.micro.samples import HOUR_TICKS, due_ticks
    from engine._wheel import Wheel

    count = 1_000_000
    of, out = Wheel(), np.zeros(1 << 16, np.uint64)
    handles = np.zeros(count, np.uint64)
    of.arm_many(due_ticks(count), handles)
    of.disarm_many(handles[::2].copy())
    fired = 0
    for tick in range(0, HOUR_TICKS + 1, 1_000):
        while got := of.advance(tick, out):
            fired += got
    assert fired == count // 2
    return count


def record() -> int:
    """Pack, chain and unpack events."""
    from bench.micro.samples import scheduled
    from engine.record import chain_hash, unpack_event

    count = 16_000
    events = [scheduled(seq) for seq in range(1, count + 1)]
    chain_hash(bytes(32), 1, events, b"", b"")
    for seq, data in enumerate(events, 1):
        assert unpack_event(seq, data).seq == seq
    return count


def turn() -> int:
    """Timers of schedule_many with their live events, then their fires."""
    from bench.load import definition
    from bench.turn import BATCH, frames
    from edgenode.virtual import VirtualNode

    node = VirtualNode()
    timers = [definition(k) for k in range(BATCH)]
    for timer in timers:
        timer["schedule"]["duration"] = "60s"
    body = json.dumps({"timers": timers}).encode()
    requests = 8
    for _ in range(requests):
        node.request(frames(b"timer.schedule_many", body))
    came = node.live() + node.advance(61_000_000_000) + node.live()
    fired = sum(b"timer.expired" in topic for topic, *_ in came)
    assert fired == BATCH * requests, f"{fired} timers fired"
    return BATCH * requests


WORK: dict[str, Callable[[], int]] = {
    "nothing": nothing,
    "wheel": wheel,
    "record": record,
    "turn": turn,
}


# --- counting -------------------------------------------------------------------------------------


def tool() -> tuple[str, list[str]] | str:
    """The name and the command of what counts, or why nothing does."""
    if shutil.which("valgrind"):
        return "callgrind", VALGRIND
    if shutil.which("perf"):
        tried = subprocess.run([*PERF, "true"], capture_output=True, text=True, check=False)
        if counted("perf", tried.stderr) is not None:
            return "perf", PERF
        return "valgrind is not installed, and perf cannot count instructions here"
    return "neither valgrind nor perf is installed"


def counted(name: str, text: str) -> int | None:
    """The number in what the tool printed; None if there is none."""
    if name == "callgrind":
        found = re.search(r"Collected\s*:\s*(\d+)", text)
    else:
        found = re.search(r"^(\d+),.*instructions:u", text, re.MULTILINE)
    return int(found[1]) if found else None


def instructions(name: str, command: list[str], work: str) -> tuple[int, int]:
    """All instructions of a process that does `work`, and how many operations that were."""
    ran = subprocess.run(
        [*command, sys.executable, "-m", "bench.instructions", "--work", work],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        cwd=report.ROOT,
        env=os.environ | {"PYTHONHASHSEED": "0"},
    )
    number = counted(name, ran.stderr) if command else 0
    if ran.returncode or number is None:
        raise RuntimeError(f"{work} was not counted:\n{ran.stderr[-2_000:]}")
    return number, int(ran.stdout)


def measure(name: str, command: list[str]) -> dict[str, Any]:
    """Instructions an operation of each workload."""
    instructions(name, [], "nothing")  # so that no count holds the compiling of modules
    floor, _ = instructions(name, command, "nothing")
    found = {}
    for work in WORK:
        if work != "nothing":
            number, operations = instructions(name, command, work)
            found[work] = round((number - floor) / operations, 1)
            print(f"  {work}: {found[work]:,} instructions an operation", flush=True)
    return {"machine": report.machine(), "tool": name, "per_operation": found}


def regressions(found: dict[str, Any], known: dict[str, Any]) -> list[str]:
    """What needs more than it did; nothing can be said across tools or Pythons."""
    if found["tool"] != known["tool"]:
        return []
    if found["machine"]["python"] != known["machine"]["python"]:
        return []
    faults = []
    for work, number in known["per_operation"].items():
        now = found["per_operation"][work]
        if now > number * (1 + TOLERANCE):
            faults.append(
                f"{work} takes {now:,} instructions an operation, {now / number - 1:+.0%}; "
                f"it took {number:,} at commit {known['machine']['commit']}"
            )
    return faults


def main(arguments: list[str], file: Path = FILE) -> int:
    """The exit code."""
    if arguments[:1] == ["--work"]:
        nothing()  # what the one without work does, all do
        print(WORK[arguments[1]]())
        return 0
    found_tool = tool()
    if isinstance(found_tool, str):
        print(f"skipped: {found_tool}")
        return 0
    found = measure(*found_tool)
    if "--write" in arguments or not file.exists():
        file.write_text(json.dumps(found, indent=1) + "\n")
        print(f"  written to {file}")
        return 0
    faults = regressions(found, json.loads(file.read_text()))
    print("\n".join(faults) or f"  no path takes {TOLERANCE:.0%} more than it did")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
