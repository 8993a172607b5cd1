"""What a build is stamped with, and the clean copy of the sources that it starts from.

Version from pyproject.toml, commit and its time from git: two builds of one commit get the same
stamp, so that their bytes can be compared.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
WORK = ROOT / "build" / "package"
STAMP_FILE = "minoots/_build.py"  # read by `minoots version`
NOT_SHIPPED = ("tests/", ".ci/")


@dataclass(frozen=True, slots=True)
class Stamp:
    """Which sources a build is of.

    commit: 12 hexadecimal digits, `-dirty` after them when files differ from it. epoch_s: when it
    was committed, Unix seconds.
    """

    version: str
    commit: str
    epoch_s: int

    @property
    def built(self) -> str:
        """The time of the commit, RFC 3339."""
        return datetime.fromtimestamp(self.epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _git(*words: str) -> str:
    ran = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return ran.stdout.strip()


def stamp() -> Stamp:
    """The stamp of the working copy. Raises CalledProcessError outside a git repository."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    dirty = "-dirty" if _git("status", "--porcelain", "--untracked-files=no") else ""
    return Stamp(version, _git("rev-parse", "--short=12", "HEAD") + dirty, _epoch_s())


def _epoch_s() -> int:
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return int(given) if given else int(_git("log", "-1", "--format=%ct"))


def copy_sources(to: Path, stamped: Stamp) -> None:
    """A copy of the tracked files as they are, without tests, with the stamp in it."""
    shutil.rmtree(to, ignore_errors=True)
    for name in _git("ls-files").splitlines():
        source, target = ROOT / name, to / name
        if name.startswith(NOT_SHIPPED) or not source.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    text = f"""# Written by packaging/stamp.py.
COMMIT = {stamped.commit!r}
BUILT = {stamped.built!r}
"""
    (to / STAMP_FILE).write_text(text)


def environment(stamped: Stamp, sources: Path) -> dict[str, str]:
    """The environment of a build that gives the same bytes each time: time, paths, hash seed."""
    cached = {"CC": "ccache gcc"} if shutil.which("ccache") else {}
    return {
        **os.environ,
        **cached,
        "SOURCE_DATE_EPOCH": str(stamped.epoch_s),
        "PYTHONHASHSEED": "0",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "CFLAGS": f"-ffile-prefix-map={sources}=.",
        "LDFLAGS": "-Wl,--strip-debug",
        "CCACHE_BASEDIR": str(sources),
    }


def run(*words: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT) -> None:
    """Run a command and show it; end the build with what it said if it fails."""
    line = [str(word) for word in words]
    print("+", " ".join(line), flush=True)
    done = subprocess.run(line, env=env, cwd=cwd, check=False)
    if done.returncode:
        sys.exit(f"packaging: {line[0]} failed with {done.returncode}")
