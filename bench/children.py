"""The processes of a bench: told lines on stdin, they answer with lines on stdout.

Each ends when its stdin does, so none outlives the bench. Imports little: a bench starts many.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from typing import Any


def start(module: str, *words: str) -> subprocess.Popen[str]:
    """Start a module of the bench."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def begin(*children: subprocess.Popen[str]) -> None:
    """Wait until each has its work ready, then let all go."""
    for child in children:
        assert answer_of(child) == "ready"
    for child in children:
        tell(child, "go")


def tell(child: subprocess.Popen[str], line: str) -> None:
    """Write a line to a child."""
    assert child.stdin is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()


def answer_of(child: subprocess.Popen[str]) -> str:
    """The next line that a child says, without its end."""
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"{child.args!r} ended with {child.wait(30)} and said nothing")
    return line.rstrip("\n")


def result_of(child: subprocess.Popen[str]) -> dict[str, Any]:
    """What a child measured; it has ended then."""
    found: dict[str, Any] = json.loads(answer_of(child))
    end(child)
    return found


def end(child: subprocess.Popen[str]) -> None:
    """Close a child's pipes, which ends it, and wait for that."""
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        pipe.close()
    try:
        child.wait(30)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


# ------------------------------------------------------------------------------- in the child


def say(line: str) -> None:
    """A line for who started this process."""
    print(line, flush=True)


def ready() -> None:
    """Say so, and wait to be let go."""
    say("ready")
    sys.stdin.readline()


def told_to_stop() -> bool:
    """Whether a line has come on stdin, or who started this process is gone."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def claim_realtime(priority: int) -> str:
    """Have the kernel prefer this process and the threads it will start; the policy in force."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except PermissionError:
        return "other"
    return f"fifo {priority}"
