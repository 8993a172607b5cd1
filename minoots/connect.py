"""Finding a node: by `minoots.json` in its data directory, or by its control door's address.

Nothing here opens a socket. A locator is asked again after each lost connection, because a node
that was started anew may have other doors.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from minoots.wire.problems import Unreachable

NODE_FILE = "minoots.json"
CONTROL, STREAM, EVENTS = "control", "stream", "events"

_WILDCARDS = ("*", "0.0.0.0", "[::]", "::")
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True, slots=True)
class Doors:
    """The endpoints of a node; an empty text is a door not known, or switched off."""

    control: str
    stream: str = ""
    events: str = ""
    http: str = ""


Locator = Callable[[], Doors]


class _NodeFile(msgspec.Struct):
    """The content of minoots.json; further members are ignored."""

    doors: dict[str, str]
    node_id: str = ""
    pid: int = 0
    version: str = ""


def default_data_dir() -> Path:
    """Where a node keeps its data when nobody says: /var/lib/minoots for root, XDG for others."""
    told = os.environ.get("MINOOTS_DATA")
    if told:
        return Path(told)
    if os.geteuid() == 0:
        return Path("/var/lib/minoots")
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "minoots"


def locator(control: str | None, data: str | os.PathLike[str] | None) -> Locator:
    """How to find the node: `control` is an endpoint such as tcp://127.0.0.1:7410, and wins.

    Raises Unreachable, now or when asked, if no node serves from the data directory.
    """
    if control is not None:
        if "://" not in control:
            raise ValueError(f"control is {control!r}; write an endpoint: tcp://127.0.0.1:7410")
        doors = Doors(control=control)
        return lambda: doors
    directory = Path(data) if data is not None else default_data_dir()
    return lambda: _read_node_file(directory)


def _read_node_file(directory: Path) -> Doors:
    path = directory / NODE_FILE
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_NodeFile)
    except FileNotFoundError:
        raise Unreachable(
            f"no node serves from {directory}; start one with `minoots run --data {directory}`, "
            "or name a node with --data, MINOOTS_DATA or --control"
        ) from None
    except OSError as error:
        raise Unreachable(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Unreachable(f"{path} is not a node's file: {error}") from None
    if not found.doors.get(CONTROL):
        raise Unreachable(f"{path} names no control door")
    if found.pid and not _runs(found.pid):
        raise Unreachable(
            f"the node of {directory} (pid {found.pid}) no longer runs; start it with "
            f"`minoots run --data {directory}`, or give its address with --control"
        )
    return doors_of(found.doors)


def doors_of(told: dict[str, str], control: str = "") -> Doors:
    """The doors that a node tells of, seen from here.

    A wildcard, or a loopback address told by a node on another machine, is replaced by the host of
    the control door that was used.
    """
    host = _host(control)
    seen = {name: _from_here(endpoint, host) for name, endpoint in told.items() if endpoint}
    return Doors(
        control=control or seen.get(CONTROL, ""),
        stream=seen.get(STREAM, ""),
        events=seen.get(EVENTS, ""),
        http=seen.get("http", ""),
    )


def _host(endpoint: str) -> str:
    if not endpoint.startswith("tcp://"):
        return ""
    return endpoint.removeprefix("tcp://").rpartition(":")[0]


def _from_here(endpoint: str, host: str) -> str:
    theirs = _host(endpoint)
    elsewhere = host not in ("", *_LOOPBACK)
    if theirs in _WILDCARDS or (theirs in _LOOPBACK and elsewhere):
        port = endpoint.rpartition(":")[2]
        return f"tcp://{host or '127.0.0.1'}:{port}"
    return endpoint


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
