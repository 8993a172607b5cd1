"""Workers on durable consumers: a client of a run (`clients.py`) is a `Desk`, one consumer with the
workers that pull from its name.

All that a desk draws comes from a generator of its own, so that who else takes part draws the same
with and without it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import orjson

from minoots import consumer_verbs as verbs
from minoots.consumer_verbs import ConsumerView, DeadPage, Delivered, Settled
from minoots.requests import Call, Request, idem_key, read_reply
from minoots.wire.bodies import ConsumerConfig, EventFilter
from minoots.wire.frames import PARTIAL
from minoots.wire.problems import MinootsError
from minoots.wire.times import parse_duration
from tests.sim.clients import AGAIN_NS, Caller, comes_again
from tests.sim.deliveries import Deliveries
from tests.sim.judge import Book
from tests.sim.machine import MESSAGES
from tests.sim.net import Net
from tests.sim.world import MS, SECOND, World

LOOK_NS = 500 * MS  # between two looks at whether all is settled


def draw_config(draw: random.Random, name: str) -> ConsumerConfig:
    """A consumer of expirations."""
    most = draw.choice((0, 0, 2, 5))
    backoff = ["100ms", "500ms", "2s"] if draw.random() < 0.3 else []
    return verbs.config_of(
        name,
        types=["timer.expired"],
        name_prefix=draw.choice(("", "", "", "w1-")),
        deliver_policy=draw.choice(("all", "new")),
        ack_wait=draw.choice(("200ms", "1s", "5s", "30s")),
        max_deliver=most,
        backoff=backoff[:most] if most else backoff,
        max_ack_pending=draw.choice((5, 50, 1_000, 1_000)),
        ordered=draw.random() < 0.4,
    )


class Desk:
    """See the module. judged: what it has seen, for judgement."""

    def __init__(self, world: World, net: Net, book: Book, draw: random.Random, name: str) -> None:
        self.world, self.draw = world, draw
        self.judged = Deliveries(world, book, draw_config(draw, name))
        self.caller = Caller(world, net, f"{name}-desk", random.Random(draw.getrandbits(64)))
        count = draw.randint(2, 3)
        self.pullers = [Puller(world, net, self, f"{name}-p{n}") for n in range(count)]
        self.pulls: dict[bytes, int] = {}  # when each was sent, by corr_id
        self.mild = False  # everything is acknowledged, at once
        self._made = self._awake = False
        self.is_settled = False

    @property
    def name(self) -> str:
        """The consumer's."""
        return self.judged.name

    def start(self) -> None:
        self._awake = True
        request, key = verbs.create(self.judged.config), idem_key(self.draw.randbytes(16))
        self.until_taken(self.caller, request, key, self._begin)

    def _begin(self, view: ConsumerView) -> None:
        self.judged.begins = view.cursor.seq
        self._made = True
        if self._awake:
            self.wake()

    def wake(self) -> None:
        self._awake = True
        for puller in self.pullers if self._made else ():
            puller.start()

    def sleep(self) -> None:
        self._awake = False
        for puller in self.pullers:
            puller.awake = False

    def hush(self) -> None:
        """All that comes from here on is acknowledged."""
        self.mild = True

    @property
    def is_awake(self) -> bool:
        """Whether its workers are to pull."""
        return self._awake

    @property
    def is_done(self) -> bool:
        return self.is_settled

    def faults(self) -> list[str]:
        return self.judged.faults()

    def left(self, frames: tuple[bytes, ...] | list[bytes]) -> None:
        """An answer leaves the node; those of others are none of its business."""
        if not frames[0].startswith(f"{self.name}-p".encode()) or not frames[-1].startswith(
            MESSAGES
        ):
            return
        pulled_ns = self.pulls.get(frames[3], 0)
        for message in orjson.loads(frames[-1])["messages"]:
            self.world.tell("delivers", frames[0], message["delivery"])
            self.judged.left(pulled_ns, message)

    def until_taken(
        self, caller: Caller, request: Request[Any], key: str | None, done: Callable[[Any], None]
    ) -> None:
        """Ask, as `minoots.settle` does, with the same key until there is an answer."""

        def ended(call: Call[Any]) -> None:
            try:
                reply = call.result()
            except MinootsError as error:
                if not comes_again(error):
                    raise
                self.world.after(AGAIN_NS, again)
                return
            done(reply)

        def again() -> None:
            if not caller.is_gone:
                caller.ask(request, ended, idem=key)

        again()

    # the end

    def finish(self) -> None:
        """Look until nothing is held or pending; then nobody pulls any more, and the dead are
        counted: `is_settled`."""
        self.until_taken(self.caller, verbs.info(self.name), None, self._looked)

    def _looked(self, view: ConsumerView) -> None:
        if view.ack_pending or view.pending or not all(one.is_idle for one in self.pullers):
            if not (view.ack_pending or view.pending):
                self.sleep()  # and look again when their last long polls have ended
            self.world.after(LOOK_NS, self.finish)
            return
        self.judged.view = view
        self._list(None)

    def _list(self, cursor: str | None) -> None:
        request = verbs.dead_page(self.name, EventFilter(), 100, cursor)
        self.until_taken(self.caller, request, None, self._listed)

    def _listed(self, page: DeadPage) -> None:
        self.judged.dead |= {one.event.seq: one for one in page.items}
        if page.next_cursor is not None:
            self._list(page.next_cursor)
        else:
            self.is_settled = True


class _PullCaller(Caller):
    """A connection of one life of a worker. pushed: takes what partial replies bring."""

    pushed: Callable[[list[Delivered]], None]

    def _take(self, frames: list[bytes]) -> None:
        reply = read_reply(frames)
        if reply is not None and reply.kind == PARTIAL and reply.corr in self._calls:
            self.pushed(self._calls[reply.corr][0].request.read(reply.body))
        super()._take(frames)


class Puller:
    """One worker: it pulls, is at it for a while, says what became of it, or does not; dies with
    all that it has in hand, and comes back."""

    def __init__(self, world: World, net: Net, desk: Desk, name: str) -> None:
        self.world, self.net, self.desk, self.name = world, net, desk, name
        self.random = random.Random(desk.draw.getrandbits(64))
        self.pushes = self.random.random() < 0.3
        self.awake = self._pulling = False
        self._in_hand = 0
        self._life = 0
        self._acks: list[str] = []
        self._telling = False
        self._born()

    def _born(self) -> None:
        self._life += 1
        name = f"{self.name}-{self._life}"
        caller = _PullCaller(self.world, self.net, name, random.Random(self.random.getrandbits(64)))
        life = self._life
        caller.pushed = lambda messages: self._take(life, messages)
        self.caller = caller
        self._acks, self._in_hand = [], 0
        self._pulling = self._telling = False

    def start(self) -> None:
        if self.awake:
            return
        self.awake = True
        self._later(self.random.randint(2 * SECOND, 40 * SECOND), self._die)
        self._pull()

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing in hand and waits for nothing."""
        return not (self._pulling or self._in_hand or self._telling or self._acks)

    def _later(self, ns: int, do: Callable[[], None]) -> None:
        """Do it then, if it has not died meanwhile."""
        life = self._life

        def still() -> None:
            if life == self._life:
                do()

        self.world.after(ns, still)

    def _die(self) -> None:
        if not self.awake or self.desk.mild:
            return
        self.caller.gone()
        self.awake = False
        self._born()

        def back() -> None:
            if self.desk.is_awake:
                self.start()

        self._later(self.random.randint(100 * MS, 5 * SECOND), back)

    # pulling

    def _pull(self) -> None:
        if not self.awake or self._pulling:
            return
        draw = self.random
        batch, wait = draw.choice((1, 3, 10, 100)), draw.choice(("0s", "1s", "5s"))
        request = verbs.pull(self.desk.name, batch, wait)
        if self.pushes and wait != "0s":
            body = orjson.dumps(orjson.loads(request.body) | {"push": True})
            request = Request(
                request.op, body, request.read, door=request.door, once=True, wait_s=request.wait_s
            )
        self._pulling = True
        life = self._life
        corr = self.caller.ask(request, lambda call: self._pulled(life, call))
        self.desk.pulls[corr] = self.world.now

    def _pulled(self, life: int, call: Call[list[Delivered]]) -> None:
        self._pulling = False
        pause_ns = self.random.randint(1 * MS, 100 * MS)
        try:
            messages = call.result()
        except MinootsError as error:
            if not comes_again(error):
                raise
            messages = []
        self._take(life, messages)
        self._later(pause_ns if messages else 2 * pause_ns, self._pull)

    def _take(self, life: int, messages: list[Delivered]) -> None:
        assert life == self._life, "a connection of a life that is over brought something"
        for message in messages:
            self._work(message.delivery)

    # working

    def _work(self, delivery: str) -> None:
        """Be at it for a while, and then say what is drawn."""
        draw, wait_ns = self.random, parse_duration(self.desk.judged.config.ack_wait)
        kind = 0.0 if self.desk.mild else draw.random()
        took_ns = draw.randint(0, 50 * MS)
        if kind >= 0.92:
            return  # it forgets it
        self._in_hand += 1
        if kind < 0.6:
            self._later(took_ns, lambda: self._done(delivery))
        elif kind < 0.68:  # much too late, or just so
            late_ns = draw.choice((wait_ns - MS, wait_ns, wait_ns + MS, 2 * wait_ns))
            self._later(late_ns, lambda: self._done(delivery))
        elif kind < 0.74:
            self._later(took_ns, lambda: self._tell("ack", delivery, twice=True))
        elif kind < 0.80:
            self._later(took_ns, lambda: self._progress(delivery))
        elif kind < 0.89:
            self._later(took_ns, lambda: self._tell("nack", delivery))
        else:
            self._later(took_ns, lambda: self._tell("term", delivery))

    def _progress(self, delivery: str) -> None:
        asked_ns = self.world.now

        def renewed(settled: Settled) -> None:
            if settled.count:
                self.desk.judged.renewed(delivery, asked_ns, settled.stale)
            self._done(delivery)

        request = verbs.progress(self.desk.name, [delivery])
        self.desk.until_taken(self.caller, request, None, renewed)

    def _done(self, delivery: str) -> None:
        """Acknowledge it, with those that are done while a request is under way."""
        self._in_hand -= 1
        self._acks.append(delivery)
        if not self._telling:
            self._tell_acks()

    def _tell_acks(self) -> None:
        some, self._acks = self._acks, []
        self._telling = bool(some)
        if some:
            self._say("ack", verbs.ack(self.desk.name, some), some, lambda _: self._tell_acks())

    def _tell(self, op: str, delivery: str, *, twice: bool = False) -> None:
        """One verdict by itself; `twice` with another key, as of somebody who has forgotten it."""
        draw, name, delay_ns = self.random, self.desk.name, 0
        request = verbs.ack(name, [delivery])
        if op == "term":
            request = verbs.term(name, [delivery], "given up")
        elif op == "nack":
            delay = draw.choice((None, "0s", "100ms", "3s"))
            request = verbs.nack(name, [delivery], delay, "not now")
            delay_ns = parse_duration(delay or "0s")

        def heard(settled: Settled) -> None:
            if twice:
                self._say(op, request, [delivery], lambda _: self._let_go())
            else:
                self._let_go()

        self._say(op, request, [delivery], heard, delay_ns)

    def _let_go(self) -> None:
        self._in_hand -= 1

    def _say(
        self,
        op: str,
        request: Request[Settled],
        deliveries: list[str],
        heard: Callable[[Settled], None],
        delay_ns: int = 0,
    ) -> None:
        judged = self.desk.judged
        judged.ask(op, deliveries, delay_ns)

        def taken(settled: Settled) -> None:
            judged.answer(op, deliveries, settled.stale)
            heard(settled)

        key = idem_key(self.random.randbytes(16))
        self.desk.until_taken(self.caller, request, key, taken)
