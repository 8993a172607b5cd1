"""Lost writes: the node's disk forgets what was not synced, or tears it, and the node is killed.

    python -m tests.proof.lost_writes --seed N --seconds N

The load, the ledger and what is verified are those of the kills. The file system is one of our own
(`mounted.py`, by FUSE): at a cut it keeps any of the unsynced writes, or a part of one, where a
kill keeps all and ext4's shutdown none that its journal has not let through. A cut comes at a write
or a sync, not between two looks at the clock. It needs root, /dev/fuse and libfuse.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.harness import Node
from tests.proof.forgetful import KINDS
from tests.proof.kills import Tally, run, tell
from tests.proof.outcome import Outcome, command

MNT_FORCE, MNT_DETACH = 1, 2
CUTS_AT_ONCE = 30  # of one data directory
CUTS_A_SECOND = 2.0
AFTER_MAX = 24  # changes and syncs of a node that is ended
CUT_WITHIN_S = 0.03  # if it asks for fewer
BIRTHS = 4  # first starts that are cut, before there is a node that has acknowledged anything
BIRTH_AFTERS_MAX = 24, 64  # until the log and the tables stand; until the node serves
BIRTH_WITHIN_S = 0.8
PLANTED = (("all", ("none",), 2), ("meta", KINDS, 10))  # see `mounted.py`; by which cuts
PLANTED_TRIES = 3  # a cut between a commit and the next sync is what shows the second
MOUNT_S = 10.0
STORE = "data.mdb"  # both files that count have that name


class Cut(NamedTuple):
    """kind: see `forgetful.py`. after: changes and syncs that are still heeded."""

    kind: str
    seed: int
    after: int


class Mount:
    """A file system that forgets, mounted at `at`. losses: of all cuts, see `forgetful.Loss`."""

    def __init__(self, folder: Path, swallow: str = "") -> None:
        self.at = folder / "disk"
        self.at.mkdir()
        self.said = folder / "disk.log"
        self.losses: list[dict[str, dict[str, int]]] = []
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.proof.mounted", str(self.at), swallow],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
            )
        try:
            self._told("mounted")
        except OSError:
            self.close()
            raise

    def _says(self, within_s: float) -> bool:
        return bool(select.select([self.process.stdout], [], [], within_s)[0])

    def _told(self, what: str) -> Any:
        """Wait for a line; what it has. Raises OSError."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline() if self._says(MOUNT_S) else b""
        if not line:
            said = self.said.read_text().strip()
            raise OSError(said.splitlines()[-1] if said else f"it was not {what} in time")
        return json.loads(line)[what]

    def ask(self, cut: Cut) -> None:
        """Have it cut at the change or sync that is so many away."""
        os.setxattr(self.at, "user.cut", f"{cut.kind} {cut.seed} {cut.after}".encode())

    def cut(self, cut: Cut, within_s: float) -> None:
        """Wait for the cut that was asked for; now, if none has come by then."""
        if not self._says(within_s):
            self.ask(cut._replace(after=0))
        self.losses.append(self._told("cut"))

    def again(self) -> None:
        """Mount it anew; nobody has a file open."""
        assert self.process.stdin is not None
        _unmount(self.at, 0)
        self.process.stdin.write(b"again\n")
        self.process.stdin.flush()
        self._told("mounted")

    def close(self) -> None:
        """Unmount, whoever has a file open, and end the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        with contextlib.suppress(OSError):  # it is not mounted
            _unmount(self.at, MNT_FORCE | MNT_DETACH)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def _unmount(at: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(at), flags):
        raise OSError(ctypes.get_errno(), f"{at} is not unmounted")


@cache
def missing() -> str:
    """Why there can be no such file system here; empty if there can."""
    if os.geteuid():
        return "mounting needs root"
    if not Path("/dev/fuse").exists():
        return "there is no /dev/fuse"
    with tempfile.TemporaryDirectory() as folder:
        try:
            Mount(Path(folder)).close()
        except OSError as error:
            return f"a file system by FUSE is refused: {error}"
    return ""


def births(disk: Mount, draw: random.Random) -> None:
    """Cut the disk under nodes that make their first store, and make it anew from what is left."""
    node = Node(disk.at / "data")
    node.log_path = disk.at.with_name("node.log")
    for _ in range(BIRTHS):
        after = draw.randint(1, draw.choice(BIRTH_AFTERS_MAX))
        cut = Cut(draw.choice(KINDS), draw.getrandbits(32), after)
        disk.ask(cut)
        node.start(wait=False)
        try:
            disk.cut(cut, BIRTH_WITHIN_S)
        finally:
            node.kill()
        disk.again()


def cuts(
    seed: int, count: int, *, swallow: str = "", kinds: Sequence[str] = KINDS
) -> tuple[Tally, Mount]:
    """Cut the disk under a node so often. swallow: see `mounted.py`."""
    draw = random.Random(seed)

    def end(node: Node) -> None:
        cut = Cut(draw.choice(kinds), draw.getrandbits(32), draw.randint(0, AFTER_MAX))
        disk.ask(cut)
        disk.cut(cut, CUT_WITHIN_S)
        time.sleep(0.003)  # long enough for a node that sees it to say something wrong
        node.kill()
        disk.again()

    with tempfile.TemporaryDirectory() as folder:
        disk = Mount(Path(folder), swallow)
        try:
            if not swallow:
                births(disk, draw)
            return run(seed, count, disk.at, end=end, log=disk.at.with_name("node.log")), disk
        finally:
            disk.close()


def planted(seed: int) -> list[str]:
    """What is found where the disk does not heed syncs, for each of the bugs of `PLANTED`."""
    said = []
    for swallow, kinds, many in PLANTED:
        for more in range(PLANTED_TRIES):
            try:
                found = cuts(seed + more, many, swallow=swallow, kinds=kinds)[0].faults
                what = f"{sum(fault.startswith('LOST') for fault in found)} lost"
            except AssertionError as error:
                found, what = [str(error)], "a store that does not open"
            if found:
                break
        assert found, f"with {swallow} syncs swallowed nothing was lost: the cuts prove nothing"
        said.append(f"{swallow} syncs swallowed: {what} in {many} cuts")
    return said


def count(outcome: Outcome, losses: list[dict[str, dict[str, int]]]) -> None:
    """What the cuts took, of the files that count."""
    stores = [loss[STORE] for loss in losses if STORE in loss]
    outcome.add(cuts_that_lost_writes=sum(bool(loss["lost"] + loss["torn"]) for loss in stores))
    outcome.add(writes_unsynced=sum(loss["pending"] for loss in stores))
    outcome.add(writes_lost=sum(loss["lost"] for loss in stores))
    outcome.add(writes_torn=sum(loss["torn"] for loss in stores))
    outcome.add(names_lost=sum(loss[""]["lost"] for loss in losses))


def part(seed: int, seconds: float) -> Outcome:
    """See `outcome`."""
    outcome = Outcome("lost writes", seed, command("lost_writes", seed, seconds))
    outcome.skipped = missing()
    if outcome.skipped:
        return outcome
    outcome.planted = ", ".join(planted(seed))
    until_s, round = time.monotonic() + seconds, 0
    while not round or time.monotonic() < until_s:
        left = int((until_s - time.monotonic()) * CUTS_A_SECOND)
        tally, disk = cuts(seed + round, min(CUTS_AT_ONCE, max(8, left)))
        tell(outcome, tally, "cuts")
        outcome.add(cuts_of_first_starts=BIRTHS)
        count(outcome, disk.losses)
        round += 1
    assert outcome.counts["writes lost"], "no write was lost: the cuts prove nothing"
    return outcome


if __name__ == "__main__":
    from tests.proof.run import one

    sys.exit(one(part))
