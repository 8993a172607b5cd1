"""Real nodes and a raw client: plain ZeroMQ frames written from docs/protocol.md, no SDK."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import zmq

READY_S = 20.0


PROGRAM = (sys.executable, "-m", "edgenode")


def spawn(
    command: list[str], log: Path, env: dict[str, str], program: Sequence[str] = PROGRAM
) -> subprocess.Popen[bytes]:
    """Start the program with these arguments; what it says goes to `log`."""
    with log.open("ab") as out:
        return subprocess.Popen([*program, *command], stderr=out, stdout=out, env=env)


class Node:
    """One node process on free ports. `with` starts it and kills what is left of it.

    spawn: how it is started; see there. program: the words that start it, before `run`."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        env: dict[str, str] | None = None,
        spawn: Any = spawn,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self.folder = folder
        self.spawn = spawn if program is PROGRAM else partial(spawn, program=program)
        self._flags = flags
        self._env = {**os.environ, **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self.log_path = folder.with_suffix(".log")
        self.doors: dict[str, str] = {}
        self.node_id = ""

    def start(self, *, wait: bool = True) -> Node:
        doors = [f"--{door}=tcp://127.0.0.1:0" for door in ("control", "stream", "events")]
        command = ["run", "--data", str(self.folder), *doors, *self._flags]
        self.process = self.spawn(command, self.log_path, self._env)
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        assert self.process is not None
        until = time.monotonic() + READY_S
        ready = self.folder / "minoots.json"
        while time.monotonic() < until:
            if ready.exists():
                facts = json.loads(ready.read_bytes() or b"{}")  # empty: left by a power cut
                if facts and self._is_ours(facts["pid"]):  # not one that a killed node left
                    self.doors, self.node_id = facts["doors"], facts["node_id"]
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.005)
        raise AssertionError(f"the node did not start:\n{self.log()}")

    def _is_ours(self, pid: int) -> bool:
        """Whether it is the process that was started, or the child of it that one file has."""
        assert self.process is not None
        if pid == self.process.pid:
            return True
        try:
            parent = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1]
        except FileNotFoundError:
            return False
        return int(parent) == self.process.pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def __enter__(self) -> Node:
        return self.start() if self.process is None else self

    def __exit__(self, *exc: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Raw:
    """A client by hand: DEALER to control and stream, SUB to events."""

    def __init__(self, doors: dict[str, str]) -> None:
        self.context = zmq.Context()
        self._corr = itertools.count(1)
        self._sockets: list[zmq.Socket[bytes]] = []
        self.doors = doors
        self.control = self._dealer(doors["control"])
        self.stream = self._dealer(doors["stream"])

    def _dealer(self, endpoint: str) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.DEALER)
        self._sockets.append(socket)
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = 0
        socket.connect(endpoint)
        return socket

    def subscribe(self, topic: bytes = b"t/default/") -> zmq.Socket[bytes]:
        """A SUB socket that is known to be subscribed: it has heard a heartbeat."""
        socket = self.context.socket(zmq.SUB)
        self._sockets.append(socket)
        socket.linger = 0
        socket.rcvhwm = 0
        socket.subscribe(b"t/default/~/hb")
        socket.subscribe(topic)
        socket.connect(self.doors["events"])
        assert socket.poll(5000), "no heartbeat"
        return socket

    def post(self, op: str, body: Any = None, *, door: str = "control", **header: Any) -> bytes:
        corr = b"%d" % next(self._corr)
        socket = self.control if door == "control" else self.stream
        raw = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        frames = [b"MZP1", b"Q", corr, json.dumps({"op": op, **header}).encode(), raw]
        socket.send_multipart(frames)
        return corr

    def take(self, *, door: str = "control", timeout: float = 10) -> tuple[str, bytes, Any]:
        """(kind, corr, body) of the next reply."""
        socket = self.control if door == "control" else self.stream
        if not socket.poll(int(timeout * 1000)):
            raise TimeoutError(f"no reply in {timeout} s")
        magic, kind, corr, _, body = socket.recv_multipart()
        assert magic == b"MZP1"
        return kind.decode(), corr, json.loads(body)

    def send(self, op: str, body: Any = None, **more: Any) -> tuple[str, Any]:
        door = more.pop("door", "control")
        timeout = more.pop("timeout", 10)
        corr = self.post(op, body, door=door, **more)
        kind, echoed, reply = self.take(door=door, timeout=timeout)
        assert echoed == corr
        return kind, reply

    def ask(self, op: str, body: Any = None, **more: Any) -> Any:
        kind, reply = self.send(op, body, **more)
        assert kind == "R", reply
        return reply

    def after(self, duration: str, name: str = "t", **more: Any) -> Any:
        header = {key: more.pop(key) for key in ("idem",) if key in more}
        schedule = {"kind": "after", "duration": duration}
        return self.ask("timer.schedule", {"name": name, "schedule": schedule, **more}, **header)

    def replay_all(self, types: tuple[str, ...] = ()) -> list[Any]:
        """Every event of the log that has left, checked to be contiguous when unfiltered."""
        events: list[Any] = []
        place: dict[str, Any] = {}
        while True:
            body = {"from": place, "limit": 1000, "filter": {"types": list(types)}}
            page = self.ask("stream.replay", body, door="stream")
            events += page["events"]
            place = page["next"]
            if page["end"]:
                break
        if not types:
            seqs = [int(event["sequence"]) for event in events]
            assert seqs == list(range(1, len(seqs) + 1)), "the log has a gap or a repeat"
        return events

    def close(self) -> None:
        for socket in self._sockets:
            socket.close(linger=0)
        self.context.term()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def ns_of(text: str) -> int:
    """The ns since the epoch of an instant of the contract."""
    from datetime import datetime

    seconds = int(datetime.fromisoformat(text[:19] + "+00:00").timestamp())
    return seconds * 1_000_000_000 + int(text[20:29])
