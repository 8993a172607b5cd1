"""The clients of a run, on the SDK's own cores: `minoots.requests.Call` decides about attempts,
`minoots.order.WatchCore` about what a watcher shows. Only their shells are the world's.

A client of a run is a class with

    start(), sleep(), wake()   joins; leaves for a long while; comes back
    hush()                     begins nothing new from here on
    is_done                    whether all that it asked for has its final answer
    faults()                   what it found wrong, each beginning with the checker's word for it

and is made in `run.py`, `Run._clients`. Workers on durable consumers are in `pullers.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import orjson

from minoots.event import Event
from minoots.order import Ask, Interest, Listen, WatchCore
from minoots.requests import Call, Patience, Request, idem_key, read_reply
from minoots.wire.bodies import ReplayFrom
from minoots.wire.problems import MinootsError, OutOfRetention, Refused, Unreachable
from minoots.wire.times import format_instant
from tests.sim.judge import Book
from tests.sim.net import Feed, Net, Peer
from tests.sim.world import MS, SECOND, World

AGAIN_NS = 100 * MS
OUTSTANDING_MAX = 8
GRIDS_MAX = 3
CHANGES = ("timer.extend", "timer.pause", "timer.resume", "timer.trigger", "timer.reschedule")


class Caller:
    """Carries calls as `minoots.client` does: attempts, timeouts and retries are the SDK's."""

    def __init__(
        self, world: World, net: Net, name: str, draw: random.Random | None = None
    ) -> None:
        self.world, self.net = world, net
        self.random = draw or random.Random(world.random.getrandbits(64))
        self.is_gone = False
        self._peer = Peer(name.encode(), self._take)
        self._calls: dict[bytes, tuple[Call[Any], Callable[[Call[Any]], None]]] = {}

    @property
    def now_s(self) -> float:
        """The client's clock that only goes forward."""
        return self.world.now / SECOND

    def ask(
        self, request: Request[Any], done: Callable[[Call[Any]], None], idem: str | None = None
    ) -> bytes:
        """Ask; `done` takes the call when it has ended, one way or the other. Its corr_id."""
        if request.mutates and idem is None:
            idem = idem_key(self.random.randbytes(16))
        patience, draw = Patience(), self.random
        call: Call[Any] = Call(request, idem=idem, now_s=self.now_s, patience=patience, rng=draw)
        self._calls[call.corr] = (call, done)
        self._act(call.corr)
        return call.corr

    def gone(self) -> None:
        """Its process died: nothing is sent again, and what comes is heard by nobody."""
        self.is_gone = True
        self._calls.clear()

    def _act(self, corr: bytes) -> None:
        call, _ = self._calls.get(corr, (None, None))
        if call is None:
            return
        sending = call.act(self.now_s, self.world.true_utc_ns)
        if sending is not None:
            self.net.request(self._peer, call.request.door, sending.frames)
        self._go_on(call)

    def _go_on(self, call: Call[Any]) -> None:
        if call.done:
            _, done = self._calls.pop(call.corr)
            done(call)
            return
        self.world.at(int(call.due_s * SECOND) + MS // 10, lambda: self._act(call.corr))

    def _take(self, frames: list[bytes]) -> None:
        reply = read_reply(frames)
        assert reply is not None, f"no reply of the protocol: {frames}"
        call, _ = self._calls.get(reply.corr, (None, None))
        if call is not None:
            call.take(reply, self.now_s)
            self._go_on(call)


def raw_request(op: str, body: Any) -> Request[Any]:
    """A verb whose reply is kept as it came."""
    return Request(op, orjson.dumps(body), orjson.loads, mutates=True)


def comes_again(error: MinootsError) -> bool:
    """Whether asking again, with the same key, may help."""
    return isinstance(error, Unreachable) or (isinstance(error, Refused) and error.retryable)


class Worker:
    """Makes timers, changes and cancels them, and asks again until each has its answer."""

    def __init__(self, world: World, net: Net, book: Book, name: str, *, changes: bool) -> None:
        self.world, self.book, self.name = world, book, name
        self.caller = Caller(world, net, name)
        self.random = self.caller.random
        self.changes = changes
        self.pause_ns = 150 * MS
        self._number = self._open = 0
        self._awake = False
        self._once: list[str] = []
        self._grids: list[str] = []
        self._paused: list[str] = []
        self._ever_paused: list[str] = []  # a pause may come after the resume that was sent later

    # what a run tells every client

    def start(self) -> None:
        self._awake = True
        self._think()

    def sleep(self) -> None:
        self._awake = False

    wake = start

    def hush(self) -> None:
        """From here on nothing recurs and nothing is paused; nothing new is begun."""
        self._awake = False
        for id in [*self._grids, *self._ever_paused]:
            self._ask("timer.cancel", {"id": id})
        self._grids, self._paused, self._ever_paused = [], [], []

    @property
    def is_done(self) -> bool:
        return not (self._open or self._grids or self._ever_paused)

    @property
    def is_answered(self) -> bool:
        """Whether it waits for no answer, though it may have timers that recur."""
        return not self._open

    def faults(self) -> list[str]:
        return []

    # asking

    def _think(self) -> None:
        if not self._awake:
            return
        if self._open < OUTSTANDING_MAX:
            self.think_of_one()
        self.world.after(self.random.randint(1, 2 * self.pause_ns), self._think)

    def _definition(self, name: str, most_ms: int) -> dict[str, Any]:
        draw = self.random
        schedule: dict[str, Any] = {"kind": "after", "duration": f"{draw.randint(1, most_ms)}ms"}
        if draw.random() < 0.2:
            instant = self.world.true_utc_ns + draw.randint(200, most_ms + 200) * MS
            schedule = {"kind": "at", "instant": format_instant(instant)}
        return {"name": name, "schedule": schedule, "payload": {"of": name}}

    def _key(self) -> str:
        self._number += 1
        return f"{self.name}-{self._number}"

    def think_of_one(self, most_ms: int = 20_000) -> None:
        """One more request, of a kind that is drawn."""
        draw, key = self.random, self._key()
        kind = draw.random()
        if kind < 0.15:
            timers = [self._definition(f"{key}.{n}", most_ms) for n in range(draw.randint(2, 12))]
            self._ask("timer.schedule_many", {"timers": timers}, key)
        elif kind < 0.3 and self._once:
            id = self._once.pop(draw.randrange(len(self._once)))
            self._ask("timer.cancel", {"id": id}, key)
        elif kind < 0.33 and len(self._once) > 4:
            ids = [self._once.pop() for _ in range(3)]
            self._ask("timer.cancel_many", {"ids": ids}, key)
        elif kind < 0.45 and self.changes and self._once:
            self._change(key)
        elif kind < 0.52 and len(self._grids) < GRIDS_MAX:
            every = {"kind": "every", "interval": f"{draw.randint(50, 4_000)}ms"}
            self._ask("timer.schedule", {"name": f"{key}.0", "schedule": every}, key)
        elif kind < 0.6 and self._grids:
            id = self._grids.pop(draw.randrange(len(self._grids)))
            self._ask("timer.cancel", {"id": id}, key)
        else:
            self._ask("timer.schedule", self._definition(f"{key}.0", most_ms), key)

    def _change(self, key: str) -> None:
        draw = self.random
        op, id = draw.choice(CHANGES), draw.choice(self._once)
        body: dict[str, Any] = {"id": id}
        if op == "timer.extend":
            body["by"] = f"{draw.randint(1, 5_000)}ms"
        elif op == "timer.reschedule":
            body["schedule"] = {"kind": "after", "duration": f"{draw.randint(1, 9_000)}ms"}
        elif op == "timer.resume" and self._paused:
            body["id"] = self._paused.pop()
        elif op == "timer.pause":
            self._once.remove(id)
            self._paused.append(id)
            self._ever_paused.append(id)
        self._ask(op, body, key)

    def long_ones(self, span_ns: int, interval_ns: int) -> None:
        """Timers that are due over a long stretch."""
        draw = self.random
        for _ in range(draw.randint(3, 8)):
            key = self._key()
            self._ask("timer.schedule", self._definition(f"{key}.0", span_ns // MS), key)
        interval_ms, key = draw.randint(interval_ns // 2, interval_ns) // MS, self._key()
        every = {"kind": "every", "interval": f"{interval_ms}ms"}
        self._ask("timer.schedule", {"name": f"{key}.0", "schedule": every}, key)

    def _ask(self, op: str, body: Any, key: str = "") -> None:
        key = key or self._key()
        self.book.ask(key, op, body)
        self._open += 1
        self._send(key, op, body)

    def _send(self, key: str, op: str, body: Any) -> None:
        request = raw_request(op, body)
        self.caller.ask(request, lambda call: self._ended(key, op, body, call), idem=key)

    def _ended(self, key: str, op: str, body: Any, call: Call[Any]) -> None:
        try:
            reply = call.result()
        except MinootsError as error:
            if comes_again(error):
                self.world.after(AGAIN_NS, lambda: self._send(key, op, body))
                return
            if not isinstance(error, Refused):
                raise
            self.book.refuse(key, error.code)
            self._open -= 1
            return
        self._open -= 1
        for definition, id in self.book.answer(key, reply):
            if key.startswith("probe"):
                continue  # nobody is to pause it: it must fire on its instant
            grid = definition["schedule"]["kind"] == "every"
            (self._grids if grid else self._once).append(id)
        self._once = self._once[-100:]


class Watcher:
    """A subscriber: `minoots.watch` without its sockets."""

    def __init__(
        self, world: World, net: Net, book: Book, name: str, *, types: tuple[str, ...] = ()
    ) -> None:
        self.world, self.net, self._book, self.name = world, net, book, name
        self.caller = Caller(world, net, f"{name}-ask")
        self.core = WatchCore(Interest(types=types), ReplayFrom())
        self.types = types
        self.feed = Feed(name, self._hear)
        self.shown: list[Event] = []
        self._waiting: list[list[bytes]] = []
        self._asking = self._awake = False
        self._turn = 0
        self._broken = ""

    def start(self) -> None:
        self._awake = True
        self._subscribe()
        self._pump()

    def sleep(self) -> None:
        self._awake = False
        self._turn += 1
        self.net.leave(self.feed)

    wake = start

    def hush(self) -> None:
        """It only listens."""

    @property
    def is_done(self) -> bool:
        return not self._asking

    def faults(self) -> list[str]:
        found = [self._broken] if self._broken else []
        seen: set[int] = set()
        for event in self.shown:
            if event.seq in seen:
                found.append(f"DUPLICATE {self.name} was shown event {event.seq} twice")
            seen.add(event.seq)
        return found

    def breaks(self) -> None:
        """Its connection breaks; it comes again by itself."""
        if self._awake:
            self._subscribe()

    def _subscribe(self) -> None:
        self.net.subscribe(self.feed, self.core.interest.topics())

    def _hear(self, frames: list[bytes]) -> None:
        self._book.live(frames)
        if self._asking:
            self._waiting.append(frames)  # the shell drains them after the request
        elif self._awake:
            self.core.heard(frames)
            self._pump()

    def _pump(self) -> None:
        """One step after another, until it listens or asks."""
        self._turn += 1
        while self._awake and not self._asking:
            self.shown += self.core.ready
            self.core.ready.clear()
            step = self.core.step(self.caller.now_s)
            if isinstance(step, Listen):
                turn, wait_ns = self._turn, max(int(step.seconds * SECOND), MS)
                self.world.after(wait_ns, lambda w=wait_ns, t=turn: self._idle(w, t))
                return
            if isinstance(step, Ask):
                self._asking = True
                take = step.take
                self.caller.ask(step.request, lambda call, take=take: self._asked(call, take))
            else:
                self._subscribe()

    def _idle(self, waited_ns: int, turn: int) -> None:
        if turn == self._turn and self._awake and not self._asking:
            self.core.idle(waited_ns / SECOND)
            self._pump()

    def _asked(self, call: Call[Any], take: Callable[[Any], None]) -> None:
        self._asking = False
        try:
            take(call.result())
        except MinootsError as error:
            try:
                self.core.failed(error, self.caller.now_s)
            except MinootsError as fatal:
                if not (self._book.trims and isinstance(fatal, OutOfRetention)):
                    self._broken = f"LOST {self.name} gave up: {fatal}"
                self._awake = False
        waiting, self._waiting = self._waiting, []
        for frames in waiting:
            self.core.heard(frames)
        self._pump()


class Auditor:
    """Reads the log by the contract, again and again, each time a little of what it has read.

    oldest: the first event that the log keeps, which only a simulation can ask.
    """

    def __init__(self, world: World, net: Net, book: Book, oldest: Callable[[], int]) -> None:
        self.world, self.book, self._oldest = world, book, oldest
        self.caller = Caller(world, net, "auditor")
        self._awake = self._asking = False
        self.complete = False

    def start(self) -> None:
        self._awake = True
        self._later()

    def sleep(self) -> None:
        self._awake = False

    wake = start

    def hush(self) -> None:
        """It goes on reading."""

    @property
    def is_done(self) -> bool:
        return not self._asking

    def faults(self) -> list[str]:
        return []

    def _later(self) -> None:
        def look() -> None:
            if self._awake and not self._asking:
                self.read(max(self.book.read_up_to - 100, 0))
                self._later()

        self.world.after(self.caller.random.randint(2 * SECOND, 20 * SECOND), look)

    def read(self, from_seq: int) -> None:
        """Read from there to the end; `complete` once that was reached."""
        self._asking, self.complete = True, False
        body = {"from": {"epoch": 1, "seq": from_seq}, "limit": 1_000}
        request: Request[Any] = Request(
            "stream.replay", orjson.dumps(body), orjson.loads, door="stream"
        )
        self.caller.ask(request, lambda call: self._page(from_seq, call))

    def _page(self, from_seq: int, call: Call[Any]) -> None:
        try:
            page = call.result()
        except MinootsError as error:
            if isinstance(error, OutOfRetention) and self.book.trims:
                from_seq = self._oldest() - 1
            elif not comes_again(error):
                raise
            self.world.after(AGAIN_NS, lambda: self.read(from_seq))
            return
        self.book.replay(page["events"], from_seq)
        if page["end"]:
            self._asking, self.complete = False, True
        else:
            self.read(page["next"]["seq"])


class Operator:
    """Agrees with the clock, some time after it was set by much."""

    def __init__(self, world: World, net: Net) -> None:
        self.world = world
        self.caller = Caller(world, net, "operator")
        self._open = 0

    def accept(self) -> None:
        """Ask until it is accepted."""
        self._open += 1
        self._send()

    def _send(self) -> None:
        self.caller.ask(raw_request("time.accept", {}), self._ended)

    def _ended(self, call: Call[Any]) -> None:
        try:
            call.result()
        except MinootsError as error:
            if comes_again(error):
                self.world.after(AGAIN_NS, self._send)
                return
            raise
        self._open -= 1

    def start(self) -> None:
        """It waits to be asked."""

    sleep = wake = hush = start

    @property
    def is_done(self) -> bool:
        return not self._open

    def faults(self) -> list[str]:
        return []
