"""`make again`: build the binary a second time and compare every byte with dist/.

Prints what differs, a line each; exit code 1 if anything does. docs/operating.md says what is known
to differ, and why.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import binary
from stamp import DIST, WORK


def digests(place: Path) -> dict[str, str]:
    """Every file below a folder, or the file itself: name -> SHA-256."""
    paths = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    base = place.parent
    return {
        str(path.relative_to(base)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    }


def differences(one: Path, other: Path) -> list[str]:
    """The names that are not there twice with the same bytes."""
    first, second = digests(one), digests(other)
    return sorted(
        name for name in first.keys() | second.keys() if first.get(name) != second.get(name)
    )


def main() -> int:
    """Build once more; the exit code."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--mode", choices=("standalone", "onefile", "both"), default="both")
    mode = asked.parse_args().mode
    to = WORK / "again"
    binary.build(mode, jobs=2, to=to)
    found, count = [], 0
    names = {"standalone": ("minoots.dist",), "onefile": ("minoots",)}
    for name in names.get(mode, ("minoots.dist", "minoots")):
        found += differences(DIST / name, to / name)
        count += len(digests(DIST / name))
    for name in found:
        print(f"differs: {name}")
    print(f"{count - len(found)} of {count} files have the same bytes")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
