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


def lowest(count: int) -> tuple[Samples, str]:
    """Wake-ups (ns) of cyclictest, or of our own loop where that isn't installed or permitted."""
    path = shutil.which("cyclictest", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin")
    late = None if path is None else cyclictest(path, count)
    if late is not None:
        return late, f"cyclictest, fifo {PRIORITY}"
    late, policy = measure("own", count)
    why = "not installed" if path is None else "not permitted"
    return late, f"our loop in C, {policy} (cyclictest is {why})"


def cyclictest(path: str, count: int) -> Samples | None:
    """Wake-ups of cyclictest (ns), the machine untuned as a node finds it; None if refused.

    It refuses to run at all without the right to SCHED_FIFO.
    """
    command = [path, "--default-system", "--mlockall", "--nsecs", "--verbose"]
    command += [f"--interval={1_000_000 // RATE}", f"--loops={count}"]
    ran = _run([*command, "--policy=fifo", f"--priority={PRIORITY}"], count)
    late = verbose_samples(ran.stdout)
    return late if ran.returncode == 0 and len(late) else None


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
