"""The fuzzers: every target for some seconds, and first a planted bug that each way must find.

    python -m tests.fuzz.run --seconds 600                   all, the time shared among them
    python -m tests.fuzz.run --seconds 60 --only records     one

Python is fuzzed by atheris (libFuzzer, guided by branches) where that is installed, our C by the
mutator in `mutate.py`, guided by gcc's coverage, on extensions with sanitizers. The seed is printed
first, and what repeats a find last; its input is kept in build/fuzz.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import sanitize
from tests.fuzz.child import COUNT, PLACE_BYTES
from tests.fuzz.targets import PLANTED, TARGETS

KEEP = sanitize.ROOT / "build" / "fuzz"
HANG_S = 30.0
START_S = 90.0  # until the first input
PLANT_S = 45.0
LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Way:
    """How a target is run."""

    name: str
    guided: bool  # by atheris
    sanitized: bool

    @property
    def says(self) -> str:
        """In words."""
        by = "atheris" if self.guided else "our mutator"
        return f"{by}, {'sanitizers' if self.sanitized else 'usual build'}"


@dataclass(frozen=True, slots=True)
class Found:
    """What came of it. fault: nothing if all was well."""

    executions: int
    fault: str = ""
    data: bytes = b""


def ways(names: Sequence[str]) -> tuple[list[Way], list[str]]:
    """How the targets can be run here; and why some cannot."""
    atheris = importlib.util.find_spec("atheris") is not None
    why = sanitize.refused()
    said = [] if atheris else ["atheris is not installed: Python is fuzzed without its guidance"]
    said += [f"without sanitizers: {why}"] if why else []
    found = [Way(name, atheris, False) for name in names if name != "planted-c"]
    if not why:
        found += [Way(name, False, True) for name in names if TARGETS[name].native]
    return found, said


def run(way: Way, seconds: float, seed: int) -> Found:
    """Run one, and watch it."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        place = Path(folder) / "place"
        place.write_bytes(bytes(PLACE_BYTES))
        command = [sys.executable, "-m", "tests.fuzz.child", way.name, str(place)]
        command += [str(seconds), str(seed), *(["guided"] if way.guided else [])]
        env = sanitize.environment() if way.sanitized else dict(os.environ)
        where = sanitize.OUT if way.sanitized else sanitize.ROOT
        said_path = Path(folder) / "said"
        with said_path.open("wb") as said_file:
            child = subprocess.Popen(
                command, cwd=where, env=env, stdout=said_file, stderr=said_file
            )
            hung = _watch(child, place, seconds)
        count, size = COUNT.unpack_from(place.read_bytes())
        data = place.read_bytes()[COUNT.size : COUNT.size + size]
        said = said_path.read_text(errors="replace")
    if hung:
        return Found(count, hung, data)
    if child.returncode:
        return Found(count, _why(child.returncode, said), data)
    return Found(count, "" if count else "it executed nothing")


def _watch(child: subprocess.Popen[bytes], place: Path, seconds: float) -> str:
    """Wait for the child; why it had to be ended, if it had."""
    newest, since_s = 0, time.monotonic()
    end_s = since_s + START_S + seconds + HANG_S
    while child.poll() is None:
        time.sleep(LOOK_S)
        count = struct.unpack_from("<Q", place.read_bytes())[0]
        now_s = time.monotonic()
        if count != newest:
            newest, since_s = count, now_s
        patience_s = HANG_S if newest else START_S
        if now_s - since_s > patience_s or now_s > end_s:
            child.kill()
            child.wait()
            return f"hang: nothing for {now_s - since_s:.0f} s after input {newest}"
    return ""


def _why(code: int, said: str) -> str:
    lines = said.strip().splitlines()
    marks = ("ERROR: AddressSanitizer", "runtime error:", "Uncaught Python exception", "leak:")
    for at, line in enumerate(lines):
        if any(mark in line for mark in marks):
            what = f"exit {code}: {line.strip()} {' '.join(lines[at + 1 : at + 3])}"[:400]
            return what.replace(f"{sanitize.ROOT}/", "")
    return f"exit {code}: {' '.join(lines[-1:])}"[:400]


def keep(way: Way, found: Found) -> str:
    """Keep what ended it; the command that repeats it."""
    KEEP.mkdir(parents=True, exist_ok=True)
    path = KEEP / f"{way.name}.input"
    path.write_bytes(found.data)
    return f"python -m tests.fuzz.child {way.name} --input {path.relative_to(sanitize.ROOT)}"


def plant(seed: int, names: Sequence[str]) -> str:
    """Each way that is used must find its planted bug first; what it found."""
    told = []
    for way in ways(names)[0]:
        found = run(way, PLANT_S, seed)
        wanted = "AddressSanitizer" if way.sanitized else "the planted bug"
        if not way.guided and not way.sanitized:
            continue  # blind: it would need luck
        if wanted not in found.fault:
            raise AssertionError(f"the bug planted in {way.name} was not found: {found.fault!r}")
        told.append(f"{way.name} after {found.executions} executions ({way.says})")
    return "; ".join(told) or "nothing: neither atheris nor sanitizers are here"


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unplanted", action="store_true", help="trust the fuzzers this time")
    parser.add_argument("--only", action="append", choices=sorted(TARGETS))
    asked = parser.parse_args()
    seed = asked.seed or time.time_ns() % 1_000_000_000
    print(f"seed {seed}", flush=True)
    if not sanitize.refused():
        sanitize.build()
    if not asked.unplanted:
        print(f"planted and found: {plant(seed, PLANTED)}", flush=True)
    names = asked.only or [name for name in TARGETS if name not in PLANTED]
    planned, said = ways(names)
    print("\n".join(said), end="\n" if said else "")
    total = 0
    for way in planned:
        found = run(way, asked.seconds / len(planned), seed)
        total += found.executions
        print(f"{way.name:12} {found.executions:10} executions ({way.says})", flush=True)
        if found.fault:
            print(f"{found.fault}\nagain: {keep(way, found)}")
            return 1
    print(f"{total} executions, nothing was found")
    again = "".join(f" --only {name}" for name in asked.only or ())
    print(f"again: python -m tests.fuzz.run --seconds {asked.seconds:g} --seed {seed}{again}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
