"""Running a verb of the program, as an operator does, and timing it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

MINOOTS = (sys.executable, "-m", "edgenode")


def text_of(*words: str) -> str:
    """What a verb prints; it must succeed."""
    ran = subprocess.run([*MINOOTS, *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def command(*words: str) -> tuple[float, dict[str, Any]]:
    """Run a verb; the seconds that it took, and the JSON that it printed."""
    began_ns = time.monotonic_ns()
    text = text_of(*words, "--json")
    found: dict[str, Any] = json.loads(text)
    return (time.monotonic_ns() - began_ns) / 1e9, found
