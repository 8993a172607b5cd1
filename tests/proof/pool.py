"""Children that do work which may end them: what they count outlives them, and they go on.

Damaged images of a store are opened in children, because LMDB follows what it reads in pages
without a checksum of their own: a bad one may be a SIGSEGV, a SIGBUS or a loop without end.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import shutil
import signal
import struct
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

NOTE_BYTES = 2_000
HANG_S = 5
WAITS = 10


class Board:
    """Counters by name and one note, in memory that parent and child share.

    `at` is where the work stands: a child that goes on after another's end begins behind it.
    """

    def __init__(self, *names: str) -> None:
        self.names = ("at", "died", "hung", *names)
        self._size = 8 * len(self.names)
        self._shared = mmap.mmap(-1, self._size + 4 + NOTE_BYTES)

    def __getitem__(self, name: str) -> int:
        value: int = struct.unpack_from("<Q", self._shared, 8 * self.names.index(name))[0]
        return value

    def __setitem__(self, name: str, value: int) -> None:
        struct.pack_into("<Q", self._shared, 8 * self.names.index(name), value)

    @property
    def note(self) -> str:
        """The first thing that was noted; empty if nothing was."""
        (size,) = struct.unpack_from("<I", self._shared, self._size)
        return self._shared[self._size + 4 :][:size].decode(errors="replace")

    def say(self, text: str, *, over: bool = False) -> None:
        """Note it, if nothing was noted before; over: even so."""
        if over or not self.note:
            data = text.encode()[:NOTE_BYTES]
            struct.pack_into("<I", self._shared, self._size, len(data))
            self._shared[self._size + 4 : self._size + 4 + len(data)] = data


def run(work: Callable[[int, Board], None], boards: list[Board]) -> None:
    """Have a child do `work(i, boards[i])` for each board, and another one whenever one was ended
    by a signal. Raises AssertionError if one fails in another way: that is a fault of the work."""
    running = {_start(work, i, board): i for i, board in enumerate(boards)}
    try:
        while running:
            child, status = os.wait()
            i = running.pop(child)
            board = boards[i]
            if os.WIFSIGNALED(status):
                number = signal.Signals(os.WTERMSIG(status))
                board["hung" if number in (signal.SIGALRM, signal.SIGPROF) else "died"] += 1
                board.say(f"number {board['at']} ended the process: {number.name}")
                running[_start(work, i, board)] = i
            else:
                assert status == 0, f"a worker failed; its note: {board.note}"
    finally:
        for child in running:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _start(work: Callable[[int, Board], None], i: int, board: Board) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)  # the parent may have one of its own
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        faulthandler.disable()
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)  # LMDB's last words about a damaged page
        work(i, board)
        code = 0
    except BaseException:
        board.say(traceback.format_exc()[-NOTE_BYTES:])
    finally:
        os._exit(code)


def limit(seconds: int = HANG_S) -> None:
    """End this child unless it calls this again in time; 0: no more limit.

    In time of the processor, so that a machine that stands still is no fault; and, for what waits
    for ever, in ten times that by the clock."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(WAITS * seconds)


class Home:
    """A folder in memory's file system, if there is one, that goes when it is left; what children
    that died before have left in it goes with it."""

    def __init__(self, name: str) -> None:
        shared = Path("/dev/shm")
        parent = shared if os.access(shared, os.W_OK) else None
        self.path = Path(tempfile.mkdtemp(prefix=f"minoots-{name}-", dir=parent))

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *exc: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
