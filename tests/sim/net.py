"""The virtual sockets of a run: what a peer sends may be lost, come twice, late, in another order.

As with ZeroMQ over TCP: a request may be lost with its connection or come again by a retry, an
answer to a peer that is gone or full is dropped and counted, a subscriber's feed keeps its order
and loses what does not fit (HWM) or was under way when its connection broke.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from edgenode.call import Answer, Frames
from edgenode.doors.events import EventsDoor
from edgenode.principal import LOCAL, Principal
from edgenode.virtual import VirtualPulse
from engine.pulse import Left, Release
from tests.sim.world import MS, SECOND, US, World

FEED_HWM = 1_000
DOORS = {"control": 0, "stream": 1}


@dataclass(slots=True)
class Faults:
    """How bad the network is. Probabilities are per message."""

    drop: float = 0.0
    duplicate: float = 0.0
    feed_drop: float = 0.0
    delay_ns: tuple[int, int] = (20 * US, 500 * US)
    slow: float = 0.0  # probability that a message takes up to slow_ns
    slow_ns: int = 2 * SECOND
    answers_max: int = 1_000  # HWM of a peer


@dataclass(slots=True)
class Peer:
    """A client's end of the control and stream doors."""

    name: bytes
    take: Callable[[list[bytes]], None]
    under_way: int = 0


@dataclass(slots=True)
class Feed:
    """A subscriber's end. heard: takes the messages. every_ns: how long one takes it."""

    name: str
    heard: Callable[[list[bytes]], None]
    topics: list[bytes] = field(default_factory=list)
    known: bool = False  # whether the node has the subscription
    life: int = 0
    queued: int = 0
    hwm: int = FEED_HWM
    every_ns: int = 0
    _last_ns: int = 0

    def slot(self, at_ns: int) -> int:
        """When a message that comes then is taken: after those before it."""
        self._last_ns = max(at_ns, self._last_ns + self.every_ns)
        return self._last_ns


class Net:
    """All connections. node: the doors of the process that runs, if one does."""

    def __init__(self, world: World, faults: Faults) -> None:
        self.world, self.faults = world, faults
        self.node: SimDoors | None = None
        self.feeds: list[Feed] = []
        self.lost = 0
        self.answers: Callable[[Frames], None] = lambda frames: None  # sees all that leave

    # ------------------------------------------------------------------------- requests, answers

    def _delay(self) -> int:
        faults, draw = self.faults, self.world.random
        if self.world.chance(faults.slow):
            return draw.randint(0, faults.slow_ns)
        return draw.randint(*faults.delay_ns)

    def request(self, peer: Peer, door: str, frames: list[bytes]) -> None:
        """Send a request."""
        if self.world.chance(self.faults.drop):
            self.lost += 1
            return
        copies = 2 if self.world.chance(self.faults.duplicate) else 1
        for _ in range(copies):
            self.world.after(self._delay(), lambda: self._arrive(peer, door, frames))

    def _arrive(self, peer: Peer, door: str, frames: list[bytes]) -> None:
        if self.node is None:
            self.lost += 1  # nobody listens: the socket gave it to a connection that broke
            return
        self.world.tell("in", peer.name, frames[2])
        self.node.arrive(DOORS[door], peer, frames)

    def answer(self, peer: Peer, frames: list[bytes]) -> bool:
        """Send an answer; False: the peer is full, and it is dropped."""
        if peer.under_way >= self.faults.answers_max:
            self.lost += 1
            return False
        if self.world.chance(self.faults.drop):
            self.lost += 1
            return True
        peer.under_way += 1
        self.world.after(self._delay(), lambda: self._answered(peer, frames))
        return True

    def _answered(self, peer: Peer, frames: list[bytes]) -> None:
        peer.under_way -= 1
        self.world.tell("out", peer.name, frames[2])
        peer.take(frames)

    # ------------------------------------------------------------------------- the feed

    def subscribe(self, feed: Feed, topics: Iterable[bytes]) -> None:
        """Connect a subscriber anew; the node hears of it a little later."""
        if feed not in self.feeds:
            self.feeds.append(feed)
        self.leave(feed)
        feed.topics, life = list(topics), feed.life
        self.world.after(self._delay(), lambda: self._subscribed(feed, life))

    def _subscribed(self, feed: Feed, life: int) -> None:
        if life != feed.life or feed.known:
            return
        if self.node is None:
            # Its own thread connects again by itself, once there is a node.
            self.world.after(200 * MS, lambda: self._subscribed(feed, life))
            return
        feed.known = True
        self.world.tell("subscribed", feed.name)
        self.node.pulse.came += [b"\1" + topic for topic in feed.topics]
        self.node.wake()

    def leave(self, feed: Feed) -> None:
        """A subscriber's connection breaks, or it leaves."""
        if feed.known and self.node is not None:
            others = {t for f in self.feeds if f.known and f is not feed for t in f.topics}
            self.node.pulse.came += [b"\0" + t for t in feed.topics if t not in others]
            self.node.wake()
        feed.life += 1
        feed.known, feed.queued = False, 0

    def publish(self, frames: Frames) -> None:
        """What the pulse lets out, to all who want it."""
        for feed in self.feeds:
            if not feed.known or not any(frames[0].startswith(topic) for topic in feed.topics):
                continue
            if feed.queued >= feed.hwm or self.world.chance(self.faults.feed_drop):
                self.lost += 1
                continue
            feed.queued += 1
            self._carry(feed, list(frames))

    def _carry(self, feed: Feed, frames: list[bytes]) -> None:
        life = feed.life

        def come() -> None:
            if life == feed.life:
                feed.queued -= 1
                feed.heard(frames)

        self.world.at(feed.slot(self.world.now + self._delay()), come)

    # ------------------------------------------------------------------------- the node

    def break_all(self) -> None:
        """The node's process is gone, and every connection with it; subscribers come again."""
        self.node = None
        for feed in self.feeds:
            if feed.known:
                feed.life += 1
                feed.known, feed.queued, life = False, 0, feed.life
                self.world.after(self._delay(), lambda f=feed, n=life: self._subscribed(f, n))


class SimPulse(VirtualPulse):
    """The thread that fires: it wakes at the instant, or a little late; once let out, an event is
    judged and carried. hastens_ns: a planted bug, by which it is early."""

    def __init__(
        self, world: World, net: Net, left: Callable[[bytes, bytes, bytes], None], lag_ns: int
    ) -> None:
        super().__init__(world.clock)
        self._world, self._net, self._on_left, self._lag_ns = world, net, left, lag_ns
        self._subscriptions = []
        self.came: list[bytes] = []
        self.hastens_ns = 0
        self._lag = 0

    def subscriptions(self) -> list[bytes]:
        came, self.came = self.came, []
        return came

    def next_ns(self) -> int | None:  # type: ignore[override]
        """World time at which something leaves next."""
        if not self._waiting:
            return None
        return self._world.world_ns(self._waiting[0][0]) + self._lag

    def run(self) -> None:
        if self._waiting and self._waiting[0][0] + self._lag <= self._clock.steady_boot_ns():
            super().run()
            self._lag = self._world.random.randint(0, self._lag_ns)

    def hold(self, release: Release, counter: int) -> bool:
        due_ns, *rest = release
        return super().hold((due_ns - self.hastens_ns, *rest), counter)  # type: ignore[arg-type]

    def take(self) -> list[Left]:
        left, self._left = self._left, []
        self.held_count -= len(left)
        return left

    def send(self, seq: int, counter: int, topic: bytes, body: bytes) -> bool:
        done = super().send(seq, counter, topic, body)
        self._carry()
        return done

    def beat(self, topic: bytes, body: bytes) -> bool:
        done = super().beat(topic, body)
        self._carry()
        return done

    def _leave(
        self, seq: int, counter: int, fired_ns: int, topic: bytes, body: bytes | None
    ) -> None:
        super()._leave(seq, counter, fired_ns, topic, body)
        if fired_ns:
            self._on_left(topic, seq.to_bytes(8, "big") + fired_ns.to_bytes(8, "big"), body or b"")
        self._carry()

    def _carry(self) -> None:
        sent, self.sent = self.sent, []
        for frames in sent:
            self._net.publish(frames)


class SimDoors:
    """Stands for `edgenode.doors.zeromq.Doors`: one of each process."""

    endpoints: dict[str, str]

    def __init__(
        self, world: World, net: Net, pulse: SimPulse, boot: str, cpu_ns: tuple[int, int]
    ) -> None:
        self.world, self.net, self.pulse, self.cpu_ns = world, net, pulse, cpu_ns
        self.events = EventsDoor(pulse, boot)
        self.endpoints = {"control": "sim:", "stream": "sim:", "events": "sim:"}
        self.inbox: list[tuple[int, Frames, Principal]] = []
        self.peers: dict[bytes, Peer] = {}
        self.woken = False
        self.passes = 0
        self._dropped = 0

    def wake(self) -> None:
        """Something is readable."""
        self.woken = True

    def arrive(self, door: int, peer: Peer, frames: list[bytes]) -> None:
        """A request comes in."""
        self.peers[peer.name] = peer
        self.inbox.append((door, (peer.name, *frames), LOCAL))
        self.wake()

    def drain(self, limit: int) -> list[tuple[int, Frames, Principal]]:
        """A pass of the node takes some time too."""
        self.passes += 1
        self.world.run_to(self.world.now + self.world.random.randint(*self.cpu_ns))
        self.events.take_subscriptions()
        taken, self.inbox = self.inbox[:limit], self.inbox[limit:]
        return taken

    def pending(self) -> bool:
        return bool(self.inbox or self.pulse.came)

    def send(self, answers: list[Answer]) -> None:
        for answer in answers:
            self.net.answers(answer.frames)
            peer = self.peers.get(answer.frames[0])
            if peer is not None and not self.net.answer(peer, list(answer.frames[1:])):
                self._dropped += 1

    def newcomers(self) -> bool:
        return self.events.newcomers()

    def dropped(self) -> dict[str, int]:
        return {"control": self._dropped}

    def heartbeat(
        self, tenant: str, epoch: int, floor: int, now_ns: int, clock_error_us: int | None
    ) -> None:
        self.events.heartbeat(
            tenant, epoch=epoch, floor=floor, now_ns=now_ns, clock_error_us=clock_error_us
        )
