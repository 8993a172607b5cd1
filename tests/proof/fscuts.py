"""File-system cuts: the node's file system is shut down under it, as by a power cut.

    python -m tests.proof.fscuts --seed N --seconds N

ext4 on a loop device, and its `shutdown` ioctl without a flush of the journal: from that instant
nothing reaches the device, and what was not synced is gone when it is mounted again. Unlike the
crash states this has a real file system's journal, block allocation and file sizes in it; unlike
them it cuts at a few moments only. It needs root and a loop device.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.e2e.harness import Node
from tests.proof import shim
from tests.proof.kills import Tally, run, tell
from tests.proof.outcome import Outcome, command

EXT4_IOC_SHUTDOWN = 0x8004_587D  # _IOR('X', 125, __u32)
NO_LOG_FLUSH = 2
DISK_BYTES = 192 << 20
CUTS_AT_ONCE = 60
CUTS_A_SECOND = 2.0


class Disk:
    """A small ext4 on a loop device, mounted at `at`."""

    def __init__(self, folder: Path) -> None:
        self.at = folder / "disk"
        self.at.mkdir()
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        _call("mkfs.ext4", "-q", "-E", "lazy_itable_init=0", str(image))
        self.device = _call("losetup", "--find", "--show", str(image)).strip()
        self.mount()

    def mount(self) -> None:
        _call("mount", self.device, str(self.at))

    def cut(self) -> None:
        """From here on nothing reaches the device."""
        fd = os.open(self.at, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def again(self) -> None:
        """Mount it anew; the journal is replayed."""
        _call("umount", str(self.at))
        self.mount()

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.at)], capture_output=True, check=False)
        subprocess.run(["losetup", "--detach", self.device], capture_output=True, check=False)


def _call(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def missing() -> str:
    """Why there can be no cuts here; empty if there can."""
    if os.geteuid():
        return "mounting needs root"
    for tool in ("mkfs.ext4", "losetup", "mount", "umount"):
        if not shutil.which(tool):
            return f"there is no {tool}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            disk = Disk(Path(folder))
        except (OSError, subprocess.CalledProcessError) as error:
            return f"a file system on a loop device is refused: {error}"
        try:
            disk.cut()
            disk.again()
        except (OSError, subprocess.CalledProcessError) as error:
            return f"ext4's shutdown ioctl is refused: {error}"
        finally:
            disk.close()
    return ""


def cuts(seed: int, count: int, *, swallow: str = "") -> Tally:
    """Cut the file system under a node so often. swallow: see shim.c."""
    with tempfile.TemporaryDirectory() as folder:
        disk = Disk(Path(folder))

        def end(node: Node) -> None:
            disk.cut()
            time.sleep(0.003)  # long enough for a node that sees it to say something wrong
            node.kill()
            disk.again()

        env = shim.environment(Path(os.devnull), swallow) if swallow else None
        try:
            log = Path(folder) / "node.log"
            return run(seed, count, disk.at, end=end, env=env, log=log)
        finally:
            disk.close()


def part(seed: int, seconds: float) -> Outcome:
    """See `outcome`."""
    outcome = Outcome("file-system cuts", seed, command("fscuts", seed, seconds))
    outcome.skipped = missing() or shim.missing()
    if outcome.skipped:
        return outcome
    try:
        found = len(cuts(seed, 4, swallow="all").faults)
        outcome.planted = f"syncs swallowed: {found} faults in 4 cuts"
    except AssertionError as error:
        found = 1
        outcome.planted = f"syncs swallowed: {str(error).splitlines()[0]}"
    assert found, "without syncs nothing was lost: the cuts prove nothing"
    until_s, round = time.monotonic() + seconds, 0
    while not round or time.monotonic() < until_s:
        count = min(CUTS_AT_ONCE, max(5, round_to(until_s - time.monotonic())))
        tally = cuts(seed + round, count)
        tell(outcome, tally, "cuts")
        round += 1
    return outcome


def round_to(seconds: float) -> int:
    """How many cuts fit into that."""
    return int(seconds * CUTS_A_SECOND)


if __name__ == "__main__":
    from tests.proof.run import one

    sys.exit(one(part))
