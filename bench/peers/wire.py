"""Raw protocols over sockets: framing of four of them, and a pump with many requests in flight.

The pump counts answers rather than parsing them one by one where the protocol allows it, so that
the client is not what is measured.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from bench.peers.peer import Refused

T = TypeVar("T")
RECEIVE_BYTES = 1 << 20
SILENCE_S = 60


class Gone(OSError):
    """The other side closed the connection."""


# --- framing: each parser takes a buffer and a position, and returns what lies there whole and the
# position after it, or None while bytes are missing.


def resp(buffer: bytes, at: int) -> tuple[Any, int] | None:
    """One Redis reply: bytes, int, None or a list of them; an error becomes Refused, unraised."""
    end = buffer.find(b"\r\n", at)
    if end < 0:
        return None
    kind, text, after = buffer[at : at + 1], buffer[at + 1 : end], end + 2
    if kind == b":":
        return int(text), after
    if kind == b"+":
        return text, after
    if kind == b"-":
        return Refused(text.decode()), after
    size = int(text)
    if size < 0:
        return None, after
    if kind == b"$":
        end = after + size
        return (buffer[after:end], end + 2) if len(buffer) >= end + 2 else None
    items = []
    for _ in range(size):
        found = resp(buffer, after)
        if found is None:
            return None
        items.append(found[0])
        after = found[1]
    return items, after


class Job(NamedTuple):
    """A line of beanstalkd: its words, and a job's body if it carries one."""

    words: list[bytes]
    body: bytes


def beanstalk(buffer: bytes, at: int) -> tuple[Job, int] | None:
    """One reply of beanstalkd."""
    end = buffer.find(b"\r\n", at)
    if end < 0:
        return None
    words, after = buffer[at:end].split(), end + 2
    if words[0] not in (b"RESERVED", b"FOUND", b"OK"):
        return Job(words, b""), after
    end = after + int(words[-1])
    return (Job(words, buffer[after:end]), end + 2) if len(buffer) >= end + 2 else None


class Message(NamedTuple):
    """A line of NATS: its words (`MSG subject sid [reply] bytes`), and a message's payload."""

    words: list[bytes]
    payload: bytes

    @property
    def reply(self) -> bytes:
        """Where an answer is to go; empty if nowhere."""
        least = 5 if self.words[0] == b"HMSG" else 4
        return self.words[3] if len(self.words) > least else b""


def nats(buffer: bytes, at: int) -> tuple[Message, int] | None:
    """One operation of a NATS server; headers are left out of the payload."""
    end = buffer.find(b"\r\n", at)
    if end < 0:
        return None
    words, after = buffer[at:end].split(), end + 2
    if words[0] not in (b"MSG", b"HMSG"):
        return Message(words, b""), after
    end = after + int(words[-1])
    if len(buffer) < end + 2:
        return None
    if words[0] == b"HMSG":
        after += int(words[-2])
    return Message(words, buffer[after:end]), end + 2


class Note(NamedTuple):
    """A message of PostgreSQL: its type and body."""

    kind: bytes
    body: bytes


def postgres(buffer: bytes, at: int) -> tuple[Note, int] | None:
    """One message of a PostgreSQL server."""
    if len(buffer) < at + 5:
        return None
    end = at + 1 + int.from_bytes(buffer[at + 1 : at + 5], "big")
    if len(buffer) < end:
        return None
    return Note(buffer[at : at + 1], buffer[at + 5 : end]), end


class Line(Generic[T]):
    """A blocking connection that speaks one of the protocols above."""

    def __init__(
        self, port: int, parse: Callable[[bytes, int], tuple[T, int] | None], timeout_s: float
    ) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._parse = parse
        self._buffer, self._at = b"", 0

    def send(self, *parts: bytes) -> None:
        """Send bytes."""
        self._socket.sendall(b"".join(parts))

    def next(self) -> T:
        """The next reply. Raises Gone, TimeoutError."""
        while True:
            found = self._parse(self._buffer, self._at)
            if found is not None:
                self._at = found[1]
                return found[0]
            self._receive()

    def at_hand(self) -> Iterator[T]:
        """The next reply and those that have come with it."""
        yield self.next()
        while (found := self._parse(self._buffer, self._at)) is not None:
            self._at = found[1]
            yield found[0]

    def _receive(self) -> None:
        chunk = self._socket.recv(RECEIVE_BYTES)
        if not chunk:
            raise Gone("closed by the server")
        self._buffer, self._at = self._buffer[self._at :] + chunk, 0

    def close(self) -> None:
        """Close."""
        self._socket.close()


# --- counting: each counter takes what a socket gave and returns how many answers ended in it.


class Lines:
    """Answers of one line each, all alike: Redis' to simple commands, beanstalkd's to `put`."""

    def __init__(self, good: Sequence[bytes]) -> None:
        """good: the first bytes an answer may have."""
        self._good = tuple(good)
        self._rest = b""

    def count(self, chunk: bytes) -> int:
        """How many lines ended. Raises Refused at a line that is no acknowledgement."""
        whole, _, rest = (self._rest + chunk).rpartition(b"\n")
        self._rest = rest
        if not whole:
            return 0
        lines = whole.split(b"\n")
        for line in lines:
            if not line.startswith(self._good):
                raise Refused(line[:200].decode(errors="replace"))
        return len(lines)


class Frames(Generic[T]):
    """Answers that must be parsed to be told apart; `means` gives what each counts."""

    def __init__(
        self, parse: Callable[[bytes, int], tuple[T, int] | None], means: Callable[[T], int]
    ) -> None:
        self._parse, self._means = parse, means
        self._rest = b""

    def count(self, chunk: bytes) -> int:
        """The sum of what the frames that ended count."""
        buffer, at, total = self._rest + chunk, 0, 0
        while (found := self._parse(buffer, at)) is not None:
            total += self._means(found[0])
            at = found[1]
        self._rest = buffer[at:]
        return total


class Stream:
    """One connection of the pump: bytes to send, answers to wait for."""

    def __init__(self, port: int, answers: Lines | Frames[Any], greeting: bytes = b"") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), SILENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(greeting)
        self.socket.setblocking(False)
        self.answers = answers
        self.waiting: deque[tuple[memoryview, int]] = deque()  # to send: bytes, answers
        self.owed: deque[int] = deque()  # answers still owed by each request, oldest first

    @property
    def in_flight(self) -> int:
        """Requests without all their answers."""
        return len(self.owed)

    def put(self, request: bytes, answers: int) -> None:
        """Take a request to send."""
        self.waiting.append((memoryview(request), answers))
        self.owed.append(answers)

    def write(self) -> None:
        """Send what the socket takes."""
        while self.waiting:
            view, answers = self.waiting[0]
            try:
                sent = self.socket.send(view)
            except BlockingIOError:
                return
            if sent < len(view):
                self.waiting[0] = (view[sent:], answers)
                return
            self.waiting.popleft()

    def read(self) -> None:
        """Take answers off the oldest requests. Raises Gone, Refused."""
        chunk = self.socket.recv(RECEIVE_BYTES)
        if not chunk:
            raise Gone("closed by the server")
        came = self.answers.count(chunk)
        while came:
            took = min(came, self.owed[0])
            self.owed[0] -= took
            came -= took
            if not self.owed[0]:
                self.owed.popleft()


def pump(
    streams: Sequence[Stream], requests: Sequence[bytes], *, answers: Sequence[int], in_flight: int
) -> float:
    """Send all requests, `in_flight` unanswered on each stream; seconds to the last answer.

    answers: how many answers each request gets. Raises Refused, Gone, TimeoutError.
    """
    todo = deque(zip(requests, answers, strict=True))
    poller = select.poll()
    by_fd = {stream.socket.fileno(): stream for stream in streams}
    began_ns = time.monotonic_ns()
    while todo or any(stream.owed for stream in streams):
        for fd, stream in by_fd.items():
            while todo and stream.in_flight < in_flight:
                stream.put(*todo.popleft())
            stream.write()
            poller.register(fd, select.POLLIN | (select.POLLOUT if stream.waiting else 0))
        ready = poller.poll(SILENCE_S * 1000)
        if not ready:
            raise TimeoutError(f"no answer for {SILENCE_S} s")
        for fd, events in ready:
            if events & ~select.POLLOUT:
                by_fd[fd].read()
    seconds = (time.monotonic_ns() - began_ns) / 1e9
    for stream in streams:
        stream.socket.close()
    return seconds


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Runs of `size`, the last one shorter."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
