"""`make wheel`: the Python wheel, from a clean copy of the sources, into dist/."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from stamp import DIST, WORK, Stamp, copy_sources, environment, run, stamp


def build(stamped: Stamp, to: Path = DIST) -> Path:
    """Build the wheel; where it is. Takes a minute or two on two cores."""
    sources, made = WORK / "src", WORK / "wheel"
    copy_sources(sources, stamped)
    shutil.rmtree(made, ignore_errors=True)
    quiet = ("--quiet", "--disable-pip-version-check")
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", made)
    env = environment(stamped, sources)
    run(sys.executable, "-m", "pip", "wheel", *quiet, *options, sources, env=env)
    (wheel,) = made.glob("minoots-*.whl")
    to.mkdir(parents=True, exist_ok=True)
    for old in to.glob("minoots-*.whl"):
        old.unlink()
    return Path(shutil.copy2(wheel, to))


if __name__ == "__main__":
    print(build(stamp()))
