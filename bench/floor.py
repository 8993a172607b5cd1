"""What the machine can do by itself: wake-ups of cyclictest, of our own loop in C, of asyncio.

Each runs as a process of its own (`bench/wakeups.py`), about a thousand wake-ups a second.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench.percentile import Samples
from bench.wakeups import PRIORITY

RATE = 1_000  # wake-ups a second
END_S = 60.0  # beyond what is asked for; a child that takes longer has failed

_VERBOSE = re.compile(r"^\s*\d+:\s*\d+:\s*(-?\d+)\s*$", re.MULTILINE)


def cyclictest_path() -> str | None:
    """Where cyclictest (Debian: rt-tests) is installed."""
    return shutil.which("cyclictest", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin")


def cyclictest(path: str, count: int) -> tuple[Samples, str]:
    """Wake-ups of cyclictest (ns), and its policy. The machine as a node finds it: untuned."""
    command = [path, "--default-system", "--mlockall", "--nsecs", "--verbose"]
    command += [f"--interval={1_000_000 // RATE}", f"--loops={count}"]
    policy = f"fifo {PRIORITY}"
    ran = _run([*command, "--policy=fifo", f"--priority={PRIORITY}"], count)
    if ran.returncode:
        policy = "other"
        ran = _run([*command, "--policy=other"], count)
    late = verbose_samples(ran.stdout)
    if ran.returncode or not len(late):
        raise RuntimeError(f"cyclictest measured nothing: {ran.stderr.strip()}")
    return late, policy


def verbose_samples(text: str) -> Samples:
    """The values in the verbose output of cyclictest, `task: cycle: value`."""
    return np.array([int(value) for value in _VERBOSE.findall(text)], np.int64)


def measure(kind: str, count: int) -> tuple[Samples, str]:
    """Wake-ups of a process of our own (`own` or `asyncio`), in ns, and its policy."""
    with tempfile.TemporaryDirectory(prefix="minoots-floor-") as folder:
        path = Path(folder) / "late"
        ran = _run([sys.executable, "-m", "bench.wakeups", kind, str(count), str(path)], count)
        if ran.returncode:
            raise RuntimeError(f"the floor's process failed: {ran.stderr.strip()}")
        return np.fromfile(path, np.int64), json.loads(ran.stdout)["policy"]


def _run(command: list[str], count: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=count / RATE + END_S
    )
