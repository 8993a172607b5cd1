"""A small node in a thread, over real sockets: what the client's tests talk to.

It keeps timers and events in lists and speaks the contract's commonest verbs. It commits
expirations a little ahead of their instant, as a node does, so its live feed is out of seq. Its
faults are attributes: replies and live frames can be dropped, problems injected, and it can start
anew with another boot or epoch.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_verbs
import msgspec
import zmq
from fake_verbs import TERMINAL

from minoots.wire.frames import FINAL, MAGIC, PROBLEM, long_type
from minoots.wire.problems import Refused, refusal
from minoots.wire.times import (
    IdMaker,
    format_instant,
    parse_duration,
    parse_instant,
)

STAMP_ZERO = bytes(32)


class FakeNode:
    """Serves from construction until `close`; `doors` tells where. Times of faults in seconds."""

    def __init__(self, *, data: Path | None = None, beat_s: float = 0.02, lead_s: float = 0.0):
        self.beat_s, self.lead_s, self.data = beat_s, lead_s, data
        self.epoch, self.boot = 1, 1
        self.timers: dict[str, dict[str, Any]] = {}
        self.log: list[dict[str, Any]] = []  # the event with seq n is log[n - 1]
        self.unreleased: set[int] = set()
        self.clock_held = False
        self.notes: dict[str, tuple[bytes, dict[str, Any]]] = {}
        self.requests: list[tuple[str, dict[str, Any], Any]] = []
        self.drop_replies = 0
        self.drop_live = 0
        self.mute = False
        self.problems: deque[Refused] = deque()
        self.clock_skew_ns = 0
        self.verbs: dict[str, Callable[[FakeNode, dict[str, Any]], dict[str, Any]]] = {}
        self.ordinals: dict[str, int] = {}
        self.ids = IdMaker()
        self._due: list[tuple[int, int, str, int]] = []
        self._tasks: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]]] = (
            queue.SimpleQueue()
        )
        self._stop = threading.Event()
        self._ports: list[str] = ["tcp://127.0.0.1:*"] * 3
        self._bind()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def control(self) -> str:
        return self._ports[0]

    @property
    def doors(self) -> dict[str, str]:
        return dict(zip(("control", "stream", "events"), self._ports, strict=True))

    def run(self, task: Callable[[], Any]) -> Any:
        """Do something in the node's thread, and wait for it."""
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._tasks.put((task, done))
        return done.get(timeout=5)

    def tell(self, kind: str, timer: dict[str, Any] | None = None, **data: Any) -> int:
        """Append an event to the log, publish it, and return its seq."""
        return int(self.run(lambda: self._append(kind, timer or self._blank(), **data)))

    def restart(self, *, epoch: int | None = None, keep: int | None = None) -> None:
        """Start anew at the same address: another boot, ordinals from 1.

        epoch: of a log restored from a backup, which held the first `keep` events.
        """
        self.run(lambda: self._restart(epoch, keep))

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)

    def __enter__(self) -> FakeNode:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -------------------------------------------------------------------------------- sockets

    def _bind(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._sockets: list[zmq.Socket[bytes]] = []
        for at, kind in enumerate((zmq.ROUTER, zmq.ROUTER, zmq.XPUB)):
            sock = context.socket(kind)
            sock.setsockopt(zmq.LINGER, 0)
            for _ in range(100):
                with contextlib.suppress(zmq.ZMQError):
                    sock.bind(self._ports[at])
                    break
                time.sleep(0.01)
            self._ports[at] = sock.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
            self._sockets.append(sock)
        if self.data is not None:
            found = {"node_id": "fake", "pid": os.getpid(), "version": "0", "doors": self.doors}
            (self.data / "minoots.json").write_text(json.dumps(found))

    def _restart(self, epoch: int | None, keep: int | None) -> None:
        for sock in self._sockets:
            sock.close()
        self.boot += 1
        self.ordinals.clear()
        if epoch is not None:
            self.epoch = epoch
            del self.log[keep:]
        self._bind()

    def _serve(self) -> None:
        beat_at = 0.0
        while not self._stop.is_set():
            while not self._tasks.empty():
                task, done = self._tasks.get()
                done.put(task())
            self._fire()
            if time.monotonic() >= beat_at:
                beat_at = time.monotonic() + self.beat_s
                self._beat()
            poller = zmq.Poller()
            for sock in self._sockets:
                poller.register(sock, zmq.POLLIN)
            for sock, _ in poller.poll(2):
                self._drain(sock)
        for sock in self._sockets:
            sock.close()
        if self.data is not None:
            (self.data / "minoots.json").unlink(missing_ok=True)

    def _drain(self, sock: zmq.Socket[bytes]) -> None:
        while True:
            try:
                frames = sock.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if sock is not self._sockets[2]:
                self._answer(sock, frames)

    def _answer(self, sock: zmq.Socket[bytes], frames: list[bytes]) -> None:
        peer, magic, _, corr, header_raw, body_raw = frames[:6]
        assert magic == MAGIC
        header = json.loads(header_raw)
        body = json.loads(body_raw)
        self.requests.append((header["op"], header, body))
        try:
            if self.problems:
                raise self.problems.popleft()
            deadline = header.get("deadline")
            if deadline and parse_instant(deadline) < self.now_ns():
                raise refusal("deadline_exceeded", "too late")
            kind, reply = FINAL, self._once(header, body_raw, body)
        except Refused as refused:
            kind, reply = PROBLEM, msgspec.to_builtins(refused.problem)
        if self.drop_replies:
            self.drop_replies -= 1
            return
        if not self.mute:
            sock.send_multipart([peer, MAGIC, kind, corr, b"{}", json.dumps(reply).encode()])

    def _once(self, header: dict[str, Any], raw: bytes, body: dict[str, Any]) -> dict[str, Any]:
        key = header.get("idem")
        if key in self.notes:
            kept, told = self.notes[key]
            if kept != raw:
                raise refusal("idempotency_key_reused", "the key stands for another body")
            return told | {"replayed": True}
        name = header["op"].replace(".", "_")
        verb = self.verbs.get(name) or getattr(fake_verbs, name, None)
        if verb is None:
            raise refusal("unknown_op", f"no verb {header['op']!r}")
        reply: dict[str, Any] = verb(self, body)
        if key is not None:
            self.notes[key] = (raw, reply)
        return reply

    # --------------------------------------------------------------------------------- events

    def now_ns(self) -> int:
        return time.time_ns() + self.clock_skew_ns

    def _blank(self) -> dict[str, Any]:
        return {"id": "", "name": "", "labels": {}, "occurrence": 0, "payload": None}

    def _append(self, kind: str, timer: dict[str, Any], *, hold: bool = False, **data: Any) -> int:
        seq = len(self.log) + 1
        body = {
            "timer_id": timer["id"],
            "name": timer["name"],
            "labels": timer["labels"],
            "occurrence": timer["occurrence"],
            "state": timer.get("state", ""),
            "payload": timer["payload"],
        }
        self.log.append(
            {
                "specversion": "1.0",
                "id": f"{self.epoch}-{seq}",
                "source": "minoots://fake/default",
                "type": long_type(kind),
                "subject": timer["id"],
                "time": format_instant(self.now_ns()),
                "sequence": f"{seq:020}",
                "epoch": self.epoch,
                "tenant": "default",
                "dedupekey": f"default/{timer['id']}/{timer['occurrence']}",
                "data": body | data,
            }
        )
        if hold:
            self.unreleased.add(seq)
        else:
            self._publish(seq, 0)
        return seq

    def _publish(self, seq: int, fired_ns: int) -> None:
        event = self.log[seq - 1]
        kind = event["type"].removeprefix("io.minoots.").removesuffix(".v1")
        self.ordinals[kind] = self.ordinals.get(kind, 0) + 1
        self.ordinals[""] = self.ordinals.get("", 0) + 1
        numbers = (seq, fired_ns, self.ordinals[""], self.ordinals[kind])
        if self.drop_live:
            self.drop_live -= 1
            return
        data = event["data"]
        topic = f"t/default/e/{kind}/{data['name']}/{data['timer_id']}".encode()
        stamp = b"".join(number.to_bytes(8, "big") for number in numbers)
        live = event | {"epoch": self.epoch}
        self._sockets[2].send_multipart([topic, stamp, json.dumps(live).encode()])

    @property
    def floor(self) -> int:
        return min(self.unreleased, default=len(self.log) + 1) - 1

    def _beat(self) -> None:
        counts = dict(self.ordinals)
        beat = {
            "epoch": self.epoch,
            "boot": str(self.boot),
            "floor": self.floor,
            "total": counts.pop("", 0),
            "ordinals": counts,
            "now": format_instant(self.now_ns()),
            "clock_error_us": None,
        }
        frames = [b"t/default/~/hb", STAMP_ZERO, json.dumps(beat).encode()]
        self._sockets[2].send_multipart(frames)

    def _fire(self) -> None:
        while self._due and self._due[0][0] <= self.now_ns() + int(self.lead_s * 1e9):
            due_ns, seq, id, revision = heapq.heappop(self._due)
            if seq:  # committed before; its instant has come
                if due_ns > self.now_ns():
                    heapq.heappush(self._due, (due_ns, seq, id, revision))
                    return
                self._release(seq, due_ns)
                continue
            timer = self.timers[id]
            if timer["state"] != "scheduled" or timer["revision"] != revision:
                continue
            self._expire(timer, due_ns)

    def _expire(self, timer: dict[str, Any], due_ns: int) -> None:
        more = timer["schedule"]["kind"] == "every"
        more = more and timer["occurrence"] != timer.get("max_occurrences")
        timer["state"] = "scheduled" if more else "completed"
        seq = self._append(
            "timer.expired", timer, hold=True, due=format_instant(due_ns), misfire=False
        )
        heapq.heappush(self._due, (due_ns, seq, timer["id"], 0))
        if more:
            timer["occurrence"] += 1
            due_ns += parse_duration(timer["schedule"]["interval"])
            self._arm(timer, due_ns)

    def _release(self, seq: int, due_ns: int) -> None:
        fired_ns = self.now_ns()
        self.unreleased.discard(seq)
        self._publish(seq, fired_ns)
        data = self.log[seq - 1]["data"]
        data["fired"] = format_instant(fired_ns)
        data["lateness_us"] = (fired_ns - due_ns) // 1_000

    def _arm(self, timer: dict[str, Any], due_ns: int) -> None:
        timer["due"] = format_instant(due_ns)
        heapq.heappush(self._due, (due_ns, 0, timer["id"], timer["revision"]))

    # --------------------------------------------------------------------------------- timers

    def _find(self, body: dict[str, Any], *, alive: bool = True) -> dict[str, Any]:
        if body.get("id"):
            timer = self.timers.get(body["id"])
            found = [] if timer is None else [timer]
        else:
            found = [t for t in self._pending() if t["name"] == body["name"]]
        if not found:
            raise refusal("not_found", f"there is no timer {body.get('id') or body['name']!r}")
        if len(found) > 1:
            raise refusal("validation", f"{len(found)} timers have this name", pointer="/name")
        if alive and found[0]["state"] in TERMINAL:
            raise refusal("already_terminal", f"timer {found[0]['id']} is {found[0]['state']}")
        return found[0]

    def _pending(self) -> list[dict[str, Any]]:
        pending = [timer for timer in self.timers.values() if timer["state"] not in TERMINAL]
        return sorted(pending, key=lambda timer: str(timer["id"]))

    def _matching(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        labels = asked.get("labels", {}).items()
        return [
            timer
            for timer in self._pending()
            if timer["name"].startswith(asked.get("name_prefix", ""))
            and all(timer["labels"].get(key) == value for key, value in labels)
            and (not asked.get("state") or timer["state"] in asked["state"])
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve from a directory until interrupted.")
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    data.mkdir(parents=True, exist_ok=True)
    with FakeNode(data=data, beat_s=1.0, lead_s=0.02), contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


if __name__ == "__main__":
    main()
