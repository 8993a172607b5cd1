"""Doing things once: which events were done, remembered in memory or in an SQLite file.

Delivery is at least once: a message comes again when its worker died, or when its acknowledgement
was late. `DoneKeys` knows what was done by then, so that it is acknowledged and not done again.

    done = DoneKeys("mailer.sqlite")

    @worker("mailer", types=["expired"], done=done)      # before and after the handler
    def mail(message): ...

    with done.once(message.event) as work:               # effect and key in one transaction
        if work.is_new:
            work.connection.execute("insert into sent values (?)", (message.event.name,))

Only the second form is exactly once, because only there effect and key are committed together. With
the first one an effect can be repeated if the process dies between the effect and the note of it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from minoots.arguments import Duration, duration_text
from minoots.event import Event
from minoots.transport import wall_ns
from minoots.wire.times import parse_duration

KEEP_DEFAULT = "30d"
KEYS_DEFAULT = 100_000
BUSY_S = 30.0  # that another process may hold the file
FORGET_EVERY = 1_000  # new keys between two looks for old ones

_TABLE = "create table if not exists minoots_done (key text primary key, at integer not null)"
_INDEX = "create index if not exists minoots_done_at on minoots_done (at)"


def key_of(event: Event) -> str:
    """What names the thing to be done once.

    Of an expiration its dedupe key. The other events of an occurrence share that key, and some
    happen several times (paused, rescheduled): of those, the type and the event's own id.
    """
    if event.type == "timer.expired":
        return event.dedupe_key
    return f"{event.type} {event.id}"


@dataclass(frozen=True, slots=True)
class Work:
    """What `once` found. is_new: it is to be done. connection: the open transaction of the file, in
    which the effect can be written; None in memory."""

    is_new: bool
    connection: sqlite3.Connection | None


class DoneKeys:
    """See the module. Any number of threads, and with a file of processes, may share one.

    path: an SQLite file, which may be the one with the program's own tables; without it, memory.
    keys: how many are remembered in memory; the least recently used one is forgotten first. keep:
    how long a file remembers one; longer than a message can take to come again.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        keys: int = KEYS_DEFAULT,
        keep: Duration = KEEP_DEFAULT,
    ) -> None:
        if keys < 1:
            raise ValueError(f"keys is {keys}; remember at least one")
        self._keys = keys
        self._keep_ns = parse_duration(duration_text(keep))
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.RLock()
        self._new = 0
        self._file: sqlite3.Connection | None = None
        if path is not None:
            self._file = sqlite3.connect(
                path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            self._file.execute("pragma journal_mode = wal")
            self._file.execute(_TABLE)
            self._file.execute(_INDEX)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        with self._lock:
            if self._file is not None:
                self._file.close()

    def __enter__(self) -> DoneKeys:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __contains__(self, what: Event | str) -> bool:
        """Whether it was done."""
        key = what if isinstance(what, str) else key_of(what)
        with self._lock:
            if self._file is None:
                if key in self._recent:
                    self._recent.move_to_end(key)
                return key in self._recent
            found = self._file.execute("select 1 from minoots_done where key = ?", (key,))
            return found.fetchone() is not None

    def add(self, what: Event | str) -> None:
        """It was done; on disk when this returns, if there is a file."""
        with self.once(what):
            pass

    @contextmanager
    def once(self, what: Event | str) -> Iterator[Work]:
        """A block that does it, if it is new; it is remembered when the block ends without an
        exception, and forgotten with whatever the block wrote when there is one.

        With a file, others that come with any key wait meanwhile: write the effect into the file,
        or do something short.
        """
        key = what if isinstance(what, str) else key_of(what)
        with self._lock:
            if self._file is None:
                yield Work(key not in self._recent, None)
                self._remember(key)
                return
            self._file.execute("begin immediate")
            try:
                is_new = self._note(self._file, key)
                yield Work(is_new, self._file)
                self._file.execute("commit")
            except BaseException:
                self._file.execute("rollback")
                raise

    def _remember(self, key: str) -> None:
        self._recent[key] = None
        self._recent.move_to_end(key)
        if len(self._recent) > self._keys:
            self._recent.popitem(last=False)

    def _note(self, file: sqlite3.Connection, key: str) -> bool:
        now_ns = wall_ns()
        noted = file.execute("insert or ignore into minoots_done values (?, ?)", (key, now_ns))
        if noted.rowcount:
            self._new += 1
            if self._new % FORGET_EVERY == 1:
                file.execute("delete from minoots_done where at < ?", (now_ns - self._keep_ns,))
        return noted.rowcount == 1
