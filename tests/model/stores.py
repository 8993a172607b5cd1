"""The two stores behind one harness: what opens, crashes and waits differs, what they keep not."""

from __future__ import annotations

import os
import select
import shutil
import tempfile
from pathlib import Path
from typing import Any

from engine.files import close_store, open_store
from engine.memory import MemoryLog, MemoryTables
from engine.store import Batch, Log, Tables

HOUR_NS = 3600 * 10**9
WAIT_MS = 20_000


def wait_durable(log: Log, number: int) -> None:
    """Wait, on the log's own fd, until `number` is durable."""
    while log.durable() < number:
        wait_readable(log.fileno())


def follow_all(tables: Tables, last_seq: int, commit: int) -> None:
    """Have the tables follow up to `commit`, and wait until they have."""
    tables.follow(last_seq, commit, now=True)
    while tables.applied().commit < commit:
        wait_readable(tables.fileno())


def wait_readable(fd: int) -> None:
    assert fd >= 0, "a store without an eventfd should have done it at once"
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(WAIT_MS), "nothing happened in 20 s"


class MemoryStore:
    """The virtual twin."""

    def __init__(self) -> None:
        self.log: Any = MemoryLog()
        self.tables: Any = MemoryTables(self.log)

    def reopen(self) -> None:
        self.log.crash(2)
        self.tables.crash()

    def crash(self, batch: Batch, landed: int) -> bool:
        """Crash with `batch` under way; whether it became durable."""
        self.log.hold()
        self.log.submit(batch)
        self.log.crash(landed)
        self.tables.crash()
        return bool(landed)

    def expire(self, below: int, notes_before_ns: int) -> int:
        reached: int = self.tables.expire(below, notes_before_ns)
        return reached

    def close(self) -> None:
        self.tables.close()
        self.log.close()


class LmdbStore:
    """The real one, in memory's file system if there is one: the disk is not what is tested."""

    def __init__(self, **options: int) -> None:
        shared = Path("/dev/shm")
        self.home = Path(tempfile.mkdtemp(dir=shared if os.access(shared, os.W_OK) else None))
        self.options = options
        self.lives = 0
        self.path = self.home / "0"
        self.log, self.tables = open_store(self.path, **self.options)

    def reopen(self) -> None:
        close_store(self.path, self.log, self.tables)
        self.log, self.tables = open_store(self.path, **self.options)

    def crash(self, batch: Batch, landed: int) -> bool:
        """Go on from copies of the files, as they were before or after `batch`, never closed."""
        if landed:
            wait_durable(self.log, self.log.submit(batch))
        self.tables.close()  # it may be at work; the log is not
        self.lives += 1
        copy = self.home / str(self.lives)
        shutil.copytree(self.path, copy)
        close_store(self.path, self.log, self.tables)
        shutil.rmtree(self.path)
        self.path = copy
        self.log, self.tables = open_store(self.path, **self.options)
        return bool(landed)

    def expire(self, below: int, notes_before_ns: int) -> int:
        """Ask, and wait until it has been done."""
        while True:
            seq = self.tables.applied().seq  # clears the fd: what comes later is seen below
            reached: int = self.tables.expire(below, notes_before_ns)
            if reached >= min(below, seq):
                return reached
            wait_readable(self.tables.fileno())

    def close(self) -> None:
        close_store(self.path, self.log, self.tables)
        shutil.rmtree(self.home)
