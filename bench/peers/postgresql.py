"""PostgreSQL as a timer store: a table, COPY in, and a worker that deletes with SKIP LOCKED.

All settings are the server's defaults: a commit is an fsync. The worker works inside its
transaction, so that its death gives its rows back at once.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import chown, which
from subprocess import Popen, run

from bench.peers.peer import (
    Absent,
    Ledger,
    Refused,
    Timer,
    body_of,
    end,
    free_port,
    instant,
    key_of,
    plain_user,
    spawn,
    spawn_worker,
    tree,
    wait_for_port,
)
from bench.peers.wire import Frames, Line, Note, Stream, chunks, postgres, pump

PIPELINE = 500
CONNECTIONS = 4  # sessions commit together; one session would wait for each fsync alone
IN_FLIGHT = 2  # on each of them
POLL_S = 0.100
DUE_MAX = 500
PROTOCOL = 196_608  # 3.0
US = 1_000
DEBIAN = Path("/usr/lib/postgresql")
TABLE = (
    "CREATE TABLE timers (id bigint PRIMARY KEY, due timestamptz NOT NULL, body text NOT NULL);"
    "CREATE INDEX timers_due ON timers (due)"
)
TAKE = (
    "BEGIN; DELETE FROM timers WHERE id IN (SELECT id FROM timers WHERE due <= clock_timestamp() "
    f"ORDER BY due LIMIT {DUE_MAX} FOR UPDATE SKIP LOCKED) RETURNING body"
)


def message(kind: bytes, body: bytes) -> bytes:
    """A message of the client; the first one has no kind."""
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def query(sql: str) -> bytes:
    """A simple query: one transaction, unless it says otherwise."""
    return message(b"Q", sql.encode() + b"\0")


STARTUP = message(b"", PROTOCOL.to_bytes(4, "big") + b"user\0postgres\0database\0postgres\0\0")


def copy(timers: Sequence[Timer]) -> bytes:
    """COPY of some timers, in a transaction of its own, sent without waiting for the server."""
    rows = []
    for timer in timers:
        due = instant(-(-timer.due_ns // US) * US)  # whole microseconds, rounded up
        rows.append(b"%d\t%s\t%s\n" % (timer.key, due.encode(), body_of(timer)))
    return query("COPY timers FROM STDIN") + message(b"d", b"".join(rows)) + message(b"c", b"")


def committed(note: Note) -> int:
    """1 for a COPY that has ended, which is after its commit. Raises Refused."""
    if note.kind == b"E":
        raise Refused(note.body.replace(b"\0", b" ").decode(errors="replace"))
    return note.kind == b"C"


def values(row: bytes) -> list[bytes]:
    """The columns of a DataRow; NULL is empty."""
    found, at = [], 2
    for _ in range(int.from_bytes(row[:2], "big")):
        size = int.from_bytes(row[at : at + 4], "big", signed=True)
        at += 4
        found.append(row[at : at + max(size, 0)])
        at += max(size, 0)
    return found


def ask(line: Line[Note], sql: str) -> list[list[bytes]]:
    """The rows of a query. Raises Refused."""
    line.send(query(sql))
    return rows_until_ready(line)


def rows_until_ready(line: Line[Note]) -> list[list[bytes]]:
    """Rows up to the server's ReadyForQuery. Raises Refused."""
    rows, fault = [], ""
    while (note := line.next()).kind != b"Z":
        if note.kind == b"D":
            rows.append(values(note.body))
        elif note.kind == b"E":
            fault = note.body.replace(b"\0", b" ").decode(errors="replace")
            if "FATAL" in fault:
                break
    if fault:
        raise Refused(fault)
    return rows


def session(port: int, timeout_s: float) -> Line[Note]:
    """A session that is ready for a query. Raises Refused while the server recovers."""
    line = Line(port, postgres, timeout_s)
    line.send(STARTUP)
    rows_until_ready(line)
    return line


def binaries() -> Path:
    """The folder with postgres and initdb: on PATH, or Debian's newest."""
    found = which("initdb")
    if found:
        return Path(found).parent
    installed = sorted(DEBIAN.glob("*/bin/initdb"), key=_version)
    if not installed:
        raise Absent("install the Debian package postgresql")
    return installed[-1].parent


def _version(path: Path) -> int:
    return int(path.parent.parent.name)


@dataclass
class Postgresql:
    """A cluster of its own, with the server's defaults."""

    name: str = "PostgreSQL, SKIP LOCKED, 100 ms poll"
    ack: str = "fsync"
    creates_only: bool = False
    victims: tuple[str, ...] = ("store", "worker")
    port: int = field(default_factory=free_port)
    _server: Popen[bytes] | None = None

    def start(self, folder: Path) -> None:
        """initdb where needed, then the server."""
        tools, user = binaries(), plain_user()
        base, log = folder / "cluster", folder / "postgresql.log"
        fresh = not base.exists()
        if fresh:
            base.mkdir(mode=0o700)
            if user is not None:
                chown(base, user)
            flags = ["-D", str(base), "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N"]
            # initdb looks at its working directory, which another user may not see.
            run(
                [tools / "initdb", *flags, "--locale=C"],
                check=True, capture_output=True, user=user, cwd="/",
            )  # fmt: skip
        command = [str(tools / "postgres"), "-D", str(base), "-p", str(self.port)]
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        self._server = spawn([*command, *settings], log, user=user)
        wait_for_port(self._server, self.port, log)
        line = self._first_session()
        if fresh:
            ask(line, TABLE)
        line.close()

    def _first_session(self) -> Line[Note]:
        until = time.monotonic() + 30
        while True:
            try:
                return session(self.port, 30)
            except (Refused, OSError) as error:  # it recovers
                if time.monotonic() > until:
                    raise Absent(f"it does not serve: {error}") from error
                time.sleep(0.02)

    def create(self, timers: Sequence[Timer]) -> float:
        """COPY of 500 rows a transaction, 8 in flight over 4 sessions."""
        requests = [copy(chunk) for chunk in chunks(timers, PIPELINE)]
        streams = [
            Stream(self.port, Frames(postgres, committed), STARTUP)
            for _ in range(min(CONNECTIONS, len(requests)))
        ]
        return pump(streams, requests, answers=[1] * len(requests), in_flight=IN_FLIGHT)

    def work(self, ledger: Path) -> Popen[bytes]:
        """The polling worker."""
        return spawn_worker("postgresql", self.port, ledger)

    def servers(self) -> list[Popen[bytes]]:
        """The postmaster."""
        return [self._server] if self._server else []

    def stop(self) -> None:
        """kill -9 the postmaster and its children, so that its memory is free to start again."""
        if self._server is None:
            return
        for pid in tree(self._server.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        end(self._server)
        self._server = None


def work(port: int, ledger: Ledger) -> None:
    """Delete what is due in a transaction, write it, commit; poll each 100 ms."""
    line = session(port, 60)
    while True:
        rows = ask(line, TAKE)
        if rows:
            ledger.write(key_of(row[0]) for row in rows)
        ask(line, "COMMIT")
        if len(rows) < DUE_MAX:
            time.sleep(POLL_S)
