"""The one place that opens the node's ZeroMQ sockets: control, stream and events.

Everybody who can connect is trusted with everything, so only those on this machine can: loopback,
and ipc through a file of mode 0600. Keys, when there are any, change that here.

Every limit of libzmq that matters is set below, none is left to its default: of those MAXMSGSIZE
is none, heartbeats are off, and LINGER never ends.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import zmq

from edgenode.call import Answer, Frames
from edgenode.doors._mailbox import Mailbox
from edgenode.doors.endpoint import refused
from edgenode.doors.events import EventsDoor
from edgenode.principal import LOCAL, Principal
from engine._pulse import Pulse
from engine._realtime import SOCKET_FIFO_PRIORITY, fifo_refused
from minoots.wire.frames import BODY_BYTES_MAX, FRAMES_MAX

MIB = 1 << 20

POLLIN = int(zmq.POLLIN)
IO_THREADS = 1  # of each context: the events door has one of its own
SCHED_FIFO = 1  # of sched.h
MAX_SOCKETS = 64  # of the context; connections are not sockets
LINGER_MS = 0  # what is not sent when a door closes is gone: the log has it
BACKLOG = 256  # connections that wait to be accepted
HANDSHAKE_MS = 5_000  # after which a peer that has not said hello is cut off
HEARTBEAT_MS = 5_000  # between pings
HEARTBEAT_TIMEOUT_MS = 30_000  # without an answer the connection is closed; so does a stopped peer
HEARTBEAT_TTL_MS = 30_000  # and the peer is asked to do the same

REQUEST_FRAME_BYTES_MAX = BODY_BYTES_MAX + MIB  # a larger frame ends its sender's connection
SUBSCRIPTION_BYTES_MAX = 8_192
REQUESTS_MAX = 1_000  # RCVHWM: read ahead from a peer; then it waits
REPLIES_MAX = 16_384  # SNDHWM: waiting for a peer that does not read; then they are dropped
PAGES_MAX = 1_024  # the same for the stream door, whose replies are large
EVENTS_MAX = 131_072  # SNDHWM of a subscriber: what the pulse can hold; 85 MB if it stalls
FRAMES_KEPT = FRAMES_MAX + 2  # one too many is kept, so that the node sees it

FILES_OTHER = 256  # open files besides the connections
FILE_MASK = 0o177  # leaves 0600

CONTROL, STREAM, EVENTS = "control", "stream", "events"
DOORS = (CONTROL, STREAM, EVENTS)  # an Answer's door is an index here


class DoorError(Exception):
    """A door can't be opened at its endpoint."""


class Endpoints(Protocol):
    """Where the doors are to be (`config.DoorsSection`)."""

    @property
    def control(self) -> str: ...
    @property
    def stream(self) -> str: ...
    @property
    def events(self) -> str: ...


class Limits(Protocol):
    """What the doors must bear (`config.LimitsSection`)."""

    @property
    def connections_max(self) -> int: ...


class Pace(Protocol):
    """How the pulse keeps time (`config.EngineSection`)."""

    @property
    def spin_max(self) -> int: ...
    @property
    def spin_percent(self) -> int: ...
    @property
    def realtime(self) -> str: ...


class Principals(Protocol):
    """Who a peer is, and what he may listen to."""

    def principal_of(self, door: int, peer: bytes) -> Principal:
        """Who sends requests under this routing id by that door."""

    def admit(self, principal: Principal, prefix: bytes) -> bool:
        """Whether he may subscribe to topics under a prefix."""


class OpenPrincipals:
    """A node without keys: everybody who gets in is the admin of the one tenant."""

    def principal_of(self, door: int, peer: bytes) -> Principal:
        return LOCAL

    def admit(self, principal: Principal, prefix: bytes) -> bool:
        return True


class _IpcFile(NamedTuple):
    path: Path
    device: int
    inode: int


@dataclass(slots=True)
class Doors:
    """The open doors. endpoints: where they really are, by name."""

    contexts: list[zmq.Context[zmq.Socket[bytes]]]
    sockets: list[zmq.Socket[bytes]]
    mailboxes: tuple[Mailbox, Mailbox]
    pulse: Pulse
    events: EventsDoor
    principals: Principals
    endpoints: dict[str, str]
    files: list[_IpcFile]

    @property
    def fds(self) -> list[int]:
        """Descriptors to wait for. They are edge-triggered: before a wait, ask `pending`."""
        return [*(mailbox.fd for mailbox in self.mailboxes), self.pulse.fileno()]

    def pending(self) -> bool:
        """Whether something has come that was not drained. 1 us."""
        return any(mailbox.pending() & POLLIN for mailbox in self.mailboxes)

    def drain(self, limit: int) -> list[tuple[int, Frames, Principal]]:
        """Requests that have come: (door, frames, who asks); at most `limit` a door."""
        requests = []
        for door, mailbox in enumerate(self.mailboxes):
            for frames in mailbox.drain(limit, FRAMES_KEPT):
                principal = self.principals.principal_of(door, frames[0])
                requests.append((door, frames, principal))
        self.events.take_subscriptions()
        return requests

    def send(self, answers: list[Answer]) -> None:
        """Send answers; one whose peer is gone or full is dropped and counted."""
        for door, mailbox in enumerate(self.mailboxes):
            frames = [answer.frames for answer in answers if answer.door == door]
            if frames:
                mailbox.send(frames)

    def heartbeat(
        self, tenant: str, epoch: int, floor: int, now_ns: int, clock_error_us: int | None
    ) -> None:
        """Publish the heartbeat of a tenant."""
        self.events.heartbeat(
            tenant, epoch=epoch, floor=floor, now_ns=now_ns, clock_error_us=clock_error_us
        )

    def newcomers(self) -> bool:
        """Whether somebody has subscribed since the last time this was asked."""
        return self.events.newcomers()

    def dropped(self) -> dict[str, int]:
        """What could not be sent since the doors were opened."""
        control, stream = self.mailboxes
        return {
            "replies_full": control.dropped_full + stream.dropped_full,
            "replies_gone": control.dropped_gone + stream.dropped_gone,
            "subscribers_stalled": self.pulse.stats()["dropped_full"],
        }

    def close(self) -> None:
        """Close the doors. Without it the program hangs at its end."""
        self.pulse.close()
        _close(self.contexts, self.sockets, self.files)


def open_doors(
    config: Endpoints, limits: Limits, pace: Pace, principals: Principals | None = None
) -> Doors:
    """Open all three doors, or none. Raises DoorError, RealtimeRefused."""
    who = principals or OpenPrincipals()
    wanted = {CONTROL: config.control, STREAM: config.stream, EVENTS: config.events}
    for name, endpoint in wanted.items():
        if fault := refused(name, endpoint):
            raise DoorError(fault)
    _raise_files_max(limits.connections_max)
    contexts = [_context(realtime=False), _context(realtime=pace.realtime != "off")]
    sockets: list[zmq.Socket[bytes]] = []
    files: list[_IpcFile] = []
    try:
        endpoints = {}
        for name, endpoint in wanted.items():
            kind = zmq.XPUB if name == EVENTS else zmq.ROUTER
            opened = contexts[name == EVENTS].socket(kind)
            sockets.append(opened)
            _configure(opened, name, endpoint)
            endpoints[name] = _bind(opened, name, endpoint, files)
        control, stream = (Mailbox(opened) for opened in sockets[:2])
        pulse = Pulse(
            sockets[2],
            spin_max_ns=pace.spin_max,
            spin_percent=pace.spin_percent,
            realtime=pace.realtime,
        )
        door = EventsDoor(pulse, admit=lambda prefix: who.admit(LOCAL, prefix))
        return Doors(contexts, sockets, (control, stream), pulse, door, who, endpoints, files)
    except BaseException:
        _close(contexts, sockets, files)
        raise


def open_peer(doors: Doors, endpoint: str) -> Mailbox:
    """A way to another node's control door; closed with the doors. Raises DoorError."""
    opened = doors.contexts[0].socket(zmq.DEALER)
    doors.sockets.append(opened)
    opened.setsockopt(zmq.LINGER, LINGER_MS)
    opened.setsockopt(zmq.SNDHWM, REQUESTS_MAX)
    opened.setsockopt(zmq.IMMEDIATE, 1)
    try:
        opened.connect(endpoint)
    except zmq.ZMQError as error:
        why = os.strerror(error.errno or 0).lower()
        raise DoorError(f"clock.reference is {endpoint!r}: {why}") from error
    return Mailbox(opened)


def _context(*, realtime: bool) -> zmq.Context[zmq.Socket[bytes]]:
    """A context with an I/O thread of its own; real-time: scheduled just below the pulse.

    libzmq ends the process if the kernel refuses, so it is asked only where it will not.
    """
    context = zmq.Context[zmq.Socket[bytes]](io_threads=IO_THREADS)
    context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
    if realtime and not fifo_refused():
        context.set(zmq.THREAD_SCHED_POLICY, SCHED_FIFO)
        context.set(zmq.THREAD_PRIORITY, SOCKET_FIFO_PRIORITY)
    return context


def _raise_files_max(connections_max: int) -> None:
    """Allow as many open files as the system lets us.

    libzmq has no limit on connections, and when a descriptor is missing for one it spins (tcp) or
    aborts the process (ipc, 4.3.5).
    """
    needed = connections_max + FILES_OTHER
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != hard < needed:
        raise DoorError(
            f"{connections_max} connections need {needed} open files; the limit is {hard} (ulimit "
            "-Hn, LimitNOFILE=); raise it or lower limits.connections_max"
        )
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _configure(opened: zmq.Socket[bytes], name: str, endpoint: str) -> None:
    options = {
        zmq.LINGER: LINGER_MS,
        zmq.BACKLOG: BACKLOG,
        zmq.IMMEDIATE: 1,
        zmq.HANDSHAKE_IVL: HANDSHAKE_MS,
        zmq.HEARTBEAT_IVL: HEARTBEAT_MS,
        zmq.HEARTBEAT_TIMEOUT: HEARTBEAT_TIMEOUT_MS,
        zmq.HEARTBEAT_TTL: HEARTBEAT_TTL_MS,
        zmq.IPV6: int(endpoint.startswith("tcp://[")),
        zmq.RCVHWM: REQUESTS_MAX,
    }
    if name == EVENTS:
        # XPUB_NODROP tells the pulse that a subscriber stalls; it then goes on without.
        options |= {
            zmq.MAXMSGSIZE: SUBSCRIPTION_BYTES_MAX,
            zmq.SNDHWM: EVENTS_MAX,
            zmq.XPUB_VERBOSE: 1,  # who joins later is told of too, and gets a heartbeat at once
            zmq.XPUB_VERBOSER: 0,
            zmq.XPUB_NODROP: 1,
        }
    else:
        # A peer cannot take over another's routing id, and an answer to nobody is an error.
        options |= {
            zmq.MAXMSGSIZE: REQUEST_FRAME_BYTES_MAX,
            zmq.SNDHWM: REPLIES_MAX if name == CONTROL else PAGES_MAX,
            zmq.ROUTER_MANDATORY: 1,
            zmq.ROUTER_HANDOVER: 0,
        }
    for option, value in options.items():
        opened.setsockopt(option, value)


def _bind(opened: zmq.Socket[bytes], name: str, endpoint: str, files: list[_IpcFile]) -> str:
    """Listen; return the real endpoint."""
    try:
        if endpoint.startswith("ipc://"):
            path = Path(endpoint.removeprefix("ipc://"))
            _make_way(name, path)
            with _file_mask():
                opened.bind(endpoint)
            made = path.stat()
            files.append(_IpcFile(path, made.st_dev, made.st_ino))
        else:
            opened.bind(endpoint)
    except (OSError, zmq.ZMQError) as error:
        hint = "; is another node running?" if error.errno == errno.EADDRINUSE else ""
        why = os.strerror(error.errno or 0)
        raise DoorError(f"{name} can't listen on {endpoint}: {why.lower()}{hint}") from error
    last = opened.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(last, bytes)
    return last.rstrip(b"\0").decode()


def _make_way(name: str, path: Path) -> None:
    """Remove a socket file that nobody listens on: libzmq would remove any file."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise DoorError(f"{name} is ipc://{path}, a file that is no socket; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # somebody listens, and is behind with accepting
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


@contextmanager
def _file_mask() -> Iterator[None]:
    before = os.umask(FILE_MASK)
    try:
        yield
    finally:
        os.umask(before)


def _close(
    contexts: list[zmq.Context[zmq.Socket[bytes]]],
    sockets: list[zmq.Socket[bytes]],
    files: list[_IpcFile],
) -> None:
    for opened in sockets:
        opened.close(linger=LINGER_MS)
    for context in contexts:
        context.term()
    for path, device, inode in files:
        try:
            left = path.lstat()
        except FileNotFoundError:
            continue
        # Another node may have taken the place by now.
        if (left.st_dev, left.st_ino) == (device, inode):
            path.unlink(missing_ok=True)
