"""One consumer: what it has looked at, what it holds, what is to be delivered again. Pure.

A message it *holds* was found in the log and is not settled: not acknowledged, not dead. All others
below its cursor are settled or did not pass its filter, so they are not remembered one by one.

    found -> READY -> OUT -- ack --> settled        PARKED: ordered, and an earlier event of
               ^       |                            its timer is held
               +-- LATER (backoff, nack) -- too often, term --> dead
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from edgenode.call import Call
from edgenode.consumers.dead import DeadLetters
from edgenode.consumers.deadlines import Deadlines
from edgenode.consumers.plan import Plan
from minoots.wire.bodies import ConsumerConfig

Key = tuple[str, str]  # tenant, name


class Standing(IntEnum):
    """Where a held message stands. Stored: do not renumber."""

    READY = 0
    OUT = 1
    LATER = 2
    PARKED = 3


@dataclass(slots=True, eq=False)
class Message:
    """One that is held: it is not settled. attempt: of its newest delivery, 0 if there was none.
    until_ns: steady; when its acknowledgement or its delay runs out. copied: its event lies among
    the dead letters, the log may have forgotten it. before: attempts before it was redriven, which
    do not count for limits; an attempt's number is never given twice. timer: its timer, if order is
    kept."""

    seq: int
    standing: Standing = Standing.READY
    attempt: int = 0
    until_ns: int = 0
    copied: bool = False
    before: int = 0
    timer: bytes = b""
    handle: int = 0


@dataclass(slots=True, eq=False)
class Waiting:
    """A pull that waits. left: messages it still wants; push: it takes them one by one."""

    call: Call
    left: int
    until_ns: int
    push: bool
    handle: int = 0


@dataclass(slots=True)
class Counts:
    """Since it was created."""

    delivered: int = 0
    redelivered: int = 0
    acked: int = 0


@dataclass(slots=True, eq=False)
class Consumer:
    """See the module. cursor: the next event to look at; noted_cursor: as it is stored. touched:
    shared by all, whose stored state no longer holds. active_ns: steady, the last request."""

    tenant: str
    config: ConsumerConfig
    plan: Plan
    created_ns: int
    cursor: int
    deadlines: Deadlines[tuple[Consumer, object]]
    touched: set[Key]
    dead: DeadLetters = field(default_factory=DeadLetters)
    held: dict[int, Message] = field(default_factory=dict)  # in the order of their seqs
    again: dict[int, Message] = field(default_factory=dict)  # dead letters that were redriven
    counts: Counts = field(default_factory=Counts)
    waiting: deque[Waiting] = field(default_factory=deque)
    out_count: int = 0
    noted_cursor: int = 0
    active_ns: int = 0
    inactive_handle: int = 0
    _ready: list[int] = field(default_factory=list)  # a heap; may hold what is ready no more
    _lanes: dict[bytes, deque[int]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique in its tenant."""
        return self.config.name

    @property
    def key(self) -> Key:
        """Unique in the node."""
        return self.tenant, self.config.name

    def touch(self) -> None:
        """Have it stored anew with the open turn."""
        self.touched.add(self.key)

    @property
    def floor(self) -> int:
        """Every event up to this seq is settled, or none of its business."""
        # What is held was found in the order of seqs, and a dict keeps that.
        for seq in self.held:
            return seq - 1
        return self.cursor - 1

    @property
    def has_room(self) -> bool:
        """Whether it may hold one more message (max_ack_pending)."""
        return len(self.held) < self.plan.max_ack_pending

    @property
    def has_ready(self) -> bool:
        """Whether something that it holds can be delivered now."""
        while self._ready:
            held = self.find(self._ready[0])
            if held is not None and held.standing == Standing.READY:
                return True
            heapq.heappop(self._ready)
        return False

    def find(self, seq: int) -> Message | None:
        """The message that it holds with this seq."""
        return self.held.get(seq) or self.again.get(seq)

    def each(self) -> Iterator[Message]:
        """All that it holds."""
        yield from self.held.values()
        yield from self.again.values()

    # ------------------------------------------------------------------------------- coming in

    def admit(self, held: Message) -> None:
        """Hold a message that was found, or one that was redriven."""
        self.keep(held)
        self.line_up(held)
        self.touch()

    def keep(self, held: Message) -> None:
        """Remember it; not yet where it stands."""
        (self.again if held.copied else self.held)[held.seq] = held

    def line_up(self, held: Message) -> None:
        """Put it where it stands, behind those of its timer if order is kept."""
        if held.timer:
            lane = self._lanes.setdefault(held.timer, deque())
            lane.append(held.seq)
            if len(lane) > 1:
                held.standing = Standing.PARKED
                return
        self.place(held)

    def place(self, held: Message) -> None:
        """Put a held message where it stands: on the heap, or among the deadlines."""
        if held.standing == Standing.READY:
            heapq.heappush(self._ready, held.seq)
        elif held.standing != Standing.PARKED:
            self.out_count += held.standing == Standing.OUT
            held.handle = self.deadlines.arm(held.until_ns, (self, held))

    # ------------------------------------------------------------------------------- going out

    def deliver(self, now_ns: int) -> Message | None:
        """Take the next message that is ready; it is out from now on."""
        if not self.has_ready:
            return None
        held = self.find(heapq.heappop(self._ready))
        assert held is not None
        held.attempt += 1
        held.standing = Standing.OUT
        held.until_ns = now_ns + self.wait_ns(held)
        self.place(held)
        self.touch()
        return held

    def wait_ns(self, held: Message) -> int:
        """How long the acknowledgement of its newest delivery may take."""
        return self.plan.wait_ns(held.attempt - held.before)

    def delivered(self, seq: int, attempt: int) -> Message | None:
        """The held message of a delivery, unless it was delivered again since."""
        held = self.find(seq)
        if held is None or held.attempt != attempt or held.standing == Standing.PARKED:
            return None
        return held

    def renew(self, held: Message, now_ns: int) -> bool:
        """Its worker is still at it; False if it is not out any more."""
        if held.standing != Standing.OUT:
            return False
        self._leave(held)
        held.standing = Standing.OUT
        held.until_ns = now_ns + self.wait_ns(held)
        self.place(held)
        self.touch()
        return True

    def put_back(self, held: Message, now_ns: int, delay_ns: int) -> None:
        """To be delivered again, after a delay."""
        self._leave(held)
        held.standing = Standing.LATER if delay_ns else Standing.READY
        held.until_ns = now_ns + delay_ns
        self.place(held)
        self.touch()

    def settle(self, held: Message) -> None:
        """It is done with: acknowledged, or dead."""
        self._leave(held)
        (self.again if held.copied else self.held).pop(held.seq)
        self.touch()
        if held.timer:
            self._next_in_lane(held)

    def is_exhausted(self, held: Message) -> bool:
        """Whether it was delivered as often as it may be."""
        return 0 < self.plan.max_deliver <= held.attempt - held.before

    def _leave(self, held: Message) -> None:
        if held.standing in (Standing.OUT, Standing.LATER):
            self.deadlines.disarm(held.handle)
            self.out_count -= held.standing == Standing.OUT

    def _next_in_lane(self, held: Message) -> None:
        lane = self._lanes[held.timer]
        if lane[0] != held.seq:
            lane.remove(held.seq)
            return
        lane.popleft()
        if not lane:
            del self._lanes[held.timer]
            return
        coming = self.find(lane[0])
        assert coming is not None
        coming.standing = Standing.READY
        self.place(coming)
