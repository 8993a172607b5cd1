"""The turn: what a node decides about requests and due timers. Pure: it is given time, and it
neither waits, sends nor reads a clock. `loop.py` is its shell.

    accept   a request as frames            -> events in the open turn, an answer
    fire     timers that the wheel hands over -> `expired` events in the open turn
    go_on    verbs that wait for the tables, long ones slice by slice
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import NamedTuple

from edgenode import call as calls
from edgenode import idempotency
from edgenode._singles import answer_singles, read_singles
from edgenode.call import Answer, Call, Frames
from edgenode.fire import fire_due
from edgenode.ledger import TICK_NS, Ledger
from edgenode.overdue import Runner
from edgenode.principal import LOCAL, Principal
from edgenode.verbs import about as about_verbs
from edgenode.verbs import bulk, change, consume, create, dead, look, timeline
from edgenode.verbs import overdue as overdue_verbs
from edgenode.verbs.about import About
from engine.clock import Now, tick_floor
from engine.record import Kind
from engine.timer import State
from minoots.wire.problems import Refused, refusal

FIRE_COST_NS = 20_000  # before it is known
GATHER_NS_MAX = 5_000_000  # by which a fire may be committed earlier than the lead asks

Steps = Generator[int, None, bytes]


class Op(NamedTuple):
    """One verb. changes: it writes, so it takes an idempotency key. creates: it makes timers, so it
    waits when the tables are too far behind. bulk: large, so small requests go before it. One whose
    run returns None is answered later, by the delivery. brief: its idempotency keys are kept for
    minutes (idempotency.BRIEF_NS)."""

    run: Callable[[Ledger, Call], bytes | Steps | None]
    changes: bool = False
    creates: bool = False
    bulk: bool = False
    brief: bool = False


OPS: dict[str, Op] = {
    calls.SINGLE: Op(create.schedule, changes=True, creates=True),
    "timer.schedule_many": Op(create.schedule_many, changes=True, creates=True, bulk=True),
    "timer.cancel": Op(change.cancel, changes=True),
    "timer.cancel_many": Op(bulk.cancel_many, changes=True, bulk=True),
    "timer.pause_many": Op(bulk.pause_many, changes=True, bulk=True),
    "timer.resume_many": Op(bulk.resume_many, changes=True, bulk=True),
    "timer.shift_many": Op(bulk.shift_many, changes=True, bulk=True),
    "timer.relabel_many": Op(bulk.relabel_many, changes=True, bulk=True),
    "timer.reschedule": Op(change.reschedule, changes=True),
    "timer.extend": Op(change.extend, changes=True),
    "timer.pause": Op(change.pause, changes=True),
    "timer.resume": Op(change.resume, changes=True),
    "timer.trigger": Op(change.trigger, changes=True),
    "timer.get": Op(look.get),
    "timer.list": Op(look.list_timers, bulk=True),
    "timer.next": Op(look.next_dues),
    "timer.history": Op(look.history),
    "overdue.report": Op(overdue_verbs.report, bulk=True),
    "overdue.fire": Op(overdue_verbs.fire, changes=True, bulk=True),
    "overdue.skip": Op(overdue_verbs.skip, changes=True, bulk=True),
    "time.accept": Op(about_verbs.time_accept, changes=True),
    "timeline.bins": Op(timeline.bins, bulk=True),
    "stream.snapshot": Op(look.snapshot, bulk=True),
    "stream.replay": Op(look.replay, bulk=True),
    "consumer.create": Op(consume.create, changes=True),
    "consumer.info": Op(consume.info),
    "consumer.list": Op(consume.list_consumers),
    "consumer.delete": Op(consume.delete, changes=True),
    "consumer.pull": Op(consume.pull, changes=True),
    "consumer.ack": Op(consume.ack, changes=True, brief=True),
    "consumer.progress": Op(consume.progress, changes=True, brief=True),
    "consumer.nack": Op(consume.nack, changes=True, brief=True),
    "consumer.term": Op(consume.term, changes=True, brief=True),
    "dlq.list": Op(dead.list_dead, bulk=True),
    "dlq.redrive": Op(dead.redrive, changes=True, bulk=True),
    "dlq.drop": Op(dead.drop, changes=True, bulk=True),
}

# Verbs about the node: they read nothing that waits for a commit, so they are answered at once.
FREE_OPS: dict[str, Callable[[Ledger, Call, About], bytes]] = {
    "hello": about_verbs.hello,
    "health": about_verbs.health,
    "stats": about_verbs.stats,
    "time.sync": about_verbs.time_sync,
    "schema.get": about_verbs.schema_get,
}


@dataclass(slots=True)
class Job:
    """A verb that is under way: it goes on once the tables have reached `needs`."""

    call: Call
    steps: Steps
    needs: int
    first_seq: int
    key: bytes


class Node:
    """See the module. One thread owns it."""

    def __init__(self, ledger: Ledger, about: About) -> None:
        self.ledger = ledger
        self.about = about
        self.lead_ns = ledger.config.engine.lead_min
        self.fires_behind = False  # so much that creates wait
        self._overload_ns = ledger.config.engine.overload_after
        self._herd_ns_max = ledger.config.engine.herd_max
        self._look_ticks = self._herd_ns_max // TICK_NS + 2
        self.fire_cost_ns = FIRE_COST_NS  # what deciding one takes, as measured by the shell
        self._wheel_tick = 0
        self.overdue = Runner(ledger, about.metrics.count_policy)  # the orders about what is held
        self._later: deque[Call] = deque()  # bulk requests, and creates that wait for the tables
        self._later_bytes = 0
        self._jobs: deque[Job] = deque()
        self._keys_under_way: set[bytes] = set()
        self.free_answers: list[Answer] = []

    # ------------------------------------------------------------------------------- requests

    def accept(self, door: int, frames: Frames, principal: Principal) -> None:
        """Decide a request, or put it aside if it is large; what it brings is in the open turn.

        Raises nothing that a client could cause; what is raised is a fault of ours.
        """
        try:
            call = calls.read(door, frames, principal, self.ledger.now)
        except Refused as refused:
            peer = frames[0] if frames else b""
            self._refuse(door, peer, calls.corr_of(frames), refused)
            return
        op = OPS.get(call.header.op)
        if op is None:
            self._answer_free(call)
        elif op.bulk or (op.creates and self._must_wait()):
            self._put_aside(call)
        else:
            self._decide(call, op)

    def accept_singles(self, came: list[tuple[int, Frames, Principal]], at: int) -> int:
        """Decide the plain `timer.schedule` requests that stand in a row from `came[at]` on; how
        many those were. The same as `accept` for each, 3 us less.

        A role that may not create would be refused by `accept`: only `LOCAL` goes this way.
        """
        ledger, about = self.ledger, self.about
        if self.fires_behind or about.writes_refused or about.creates_refused:
            return 0
        limits = ledger.config.limits
        room = ledger.config.log.overlay_max - ledger.hot.newer_count
        room = min(room, ledger.create_room())
        drafts = read_singles(came, at, room, calls.singles, LOCAL, ledger.now, limits)
        if not drafts:
            return 0
        if not ledger.opened_ns:
            ledger.opened_ns = ledger.now.steady_ns
        views: list[bytes] = []
        ledger.create_drafts(drafts, 0, len(drafts), views)
        answer_singles(came, at, views, ledger.answers)
        self._count(calls.SINGLE, len(drafts))
        return len(drafts)

    def _answer_free(self, call: Call) -> None:
        run = FREE_OPS.get(call.header.op)
        name = call.header.op
        try:
            if run is None:
                known = ", ".join(sorted([*OPS, *FREE_OPS]))
                raise refusal("unknown_op", f"op is {name[:60]!r}; known: {known}")
            answer = calls.final(call, run(self.ledger, call, self.about))
        except Refused as refused:
            self._refuse(call.door, call.peer, call.corr, refused)
            return
        self._count(name)
        self.free_answers.append(answer)

    def _must_wait(self) -> bool:
        """Creates wait while the tables or the fires are behind: what is due goes first."""
        ledger = self.ledger
        if ledger.hot.newer_count >= ledger.config.log.overlay_max:
            return True
        return self.fires_behind

    def _put_aside(self, call: Call) -> None:
        limits = self.ledger.config.limits
        size = self._later_bytes + len(call.body)
        if len(self._later) >= limits.inbox_max or (self._later and size > limits.inbox_bytes_max):
            full = refusal(
                "overloaded",
                f"{len(self._later)} requests of {self._later_bytes} bytes are waiting"
                f"{' for fires that are behind' if self.fires_behind else ''}; the limits are "
                f"{limits.inbox_max} (inbox_max) and {limits.inbox_bytes_max} (inbox_bytes_max)",
                retry_after_ms=1_000 if self.fires_behind else 100,
            )
            self._refuse(call.door, call.peer, call.corr, full)
            return
        self._later_bytes = size
        self._later.append(call)

    def next_later(self) -> Call | None:
        """Take the next request that was put aside, if it can go on now."""
        if not self._later or (OPS[self._later[0].header.op].creates and self._must_wait()):
            return None
        call = self._later.popleft()
        self._later_bytes -= len(call.body)
        return call

    def decide_later(self, call: Call) -> None:
        """Decide a request that was put aside."""
        call.now = self.ledger.now
        self._decide(call, OPS[call.header.op])

    def _decide(self, call: Call, op: Op) -> None:
        ledger = self.ledger
        first_seq, key = ledger.next_seq, b""
        if not ledger.opened_ns:
            ledger.opened_ns = ledger.now.steady_ns
        try:
            if op.changes:
                if call.header.idem is not None:
                    key = idempotency.key_of(call)
                    replayed = self._recall(call, key)
                    if replayed is not None:
                        self._reply(call, replayed)
                        return
                    ledger.admit_note()
                self._check_writable(op)
            done = op.run(ledger, call)
            if isinstance(done, bytes):
                self._finish(call, first_seq, key, done)
            elif done is None:
                self._count(call.header.op)
            else:
                self._step(Job(call, done, 0, first_seq, key))
        except Refused as refused:
            assert ledger.next_seq == first_seq, "a refused request wrote events"
            self._refuse(call.door, call.peer, call.corr, refused)

    def _check_writable(self, op: Op) -> None:
        about = self.about
        if about.writes_refused:
            code = "storage_full" if about.full else "read_only"
            raise refusal(code, about.writes_refused, retry_after_ms=1_000)
        if op.creates and about.creates_refused:
            raise refusal("storage_full", about.creates_refused, retry_after_ms=10_000)

    def _recall(self, call: Call, key: bytes) -> bytes | None:
        if key in self._keys_under_way:
            raise refusal(
                "overloaded",
                f"the request with idem {call.header.idem!r} is still under way; ask again",
                retry_after_ms=50,
            )
        return idempotency.recall(self.ledger, call)

    def _finish(self, call: Call, first_seq: int, key: bytes, reply: bytes) -> None:
        if key:
            brief = OPS[call.header.op].brief
            idempotency.remember(self.ledger, call, first_seq, reply, brief=brief)
        self._reply(call, reply)

    def _reply(self, call: Call, reply: bytes) -> None:
        self._count(call.header.op)
        self.ledger.answers.append(calls.final(call, reply))

    def _refuse(self, door: int, peer: bytes, corr: bytes, refused: Refused) -> None:
        problems = self.about.metrics.problems
        problems[refused.code] = problems.get(refused.code, 0) + 1
        # A refusal may rest on what is decided and not yet durable: it waits like any answer.
        self.ledger.answers.append(calls.problem(door, peer, corr, refused))

    def _count(self, op: str, number: int = 1) -> None:
        requests = self.about.metrics.requests
        requests[op] = requests.get(op, 0) + number

    # ------------------------------------------------------------------------------- long verbs

    @property
    def wants_applied(self) -> int:
        """The seq that the tables should reach soon, for the verbs that wait; 0 for none."""
        return max((job.needs for job in self._jobs), default=0)

    @property
    def has_work(self) -> bool:
        """Whether calling again would get something done without waiting for anything."""
        if self._later and not (OPS[self._later[0].header.op].creates and self._must_wait()):
            return True
        applied = self._applied_seq
        return any(job.needs <= applied for job in self._jobs)

    _applied_seq = 0

    def ready_jobs(self, applied_seq: int) -> list[Job]:
        """Take the verbs under way that can go on, now that the tables are at `applied_seq`."""
        self._applied_seq = applied_seq
        ready = [job for job in self._jobs if job.needs <= applied_seq]
        if ready:
            self._jobs = deque(job for job in self._jobs if job.needs > applied_seq)
        return ready

    def go_on(self, job: Job) -> None:
        """Let a verb that is under way take one step."""
        job.call.now = self.ledger.now
        self._step(job)

    def _step(self, job: Job) -> None:
        before = self.ledger.next_seq
        self._keys_under_way.discard(job.key)  # back below, if the verb has not ended here
        try:
            job.needs = next(job.steps)
        except StopIteration as stop:
            self._finish(job.call, before, job.key, stop.value)
            return
        except Refused as refused:
            self._refuse(job.call.door, job.call.peer, job.call.corr, refused)
            return
        if job.needs and job.needs <= self._applied_seq:
            self._step(job)  # the tables are there already
            return
        if job.key:
            self._keys_under_way.add(job.key)
        self._jobs.append(job)

    # ------------------------------------------------------------------------------- fires

    def fire(self, limit: int) -> int:
        """Write `expired` for at most `limit` timers due within the lead; how many it handed over.

        Time is the ledger's `now`.
        """
        ledger = self.ledger
        now_ns, cost_ns = ledger.now.steady_ns, self.fire_cost_ns
        herd = ledger.hot.must_begin(now_ns, self._look_ticks, cost_ns, TICK_NS, self.lead_ns)
        # The wheel does not go back, though a lead that shrinks would have it.
        tick = max(tick_floor(now_ns + self.lead_ns, TICK_NS), herd, self._wheel_tick)
        first = ledger.hot.next_tick()
        if first is not None and first <= tick:
            # What is due soon after comes along: fires share a commit, the disk has fewer to make.
            more_ns = min(self.lead_ns // 2, GATHER_NS_MAX)
            tick = max(tick, tick_floor(now_ns + self.lead_ns + more_ns, TICK_NS))
        self._wheel_tick = tick
        ids = ledger.hot.advance(tick, limit)
        self.fires_behind = len(ids) == limit and self._late_ns(ids[-1]) > self._overload_ns
        for at, id in enumerate(ids):
            if at % 64 == 63:
                ledger.breathe()
            written = fire_due(ledger, id, tick)
            if written is not Kind.EXPIRED and written is not None:
                self.about.metrics.count_policy(written)
        return len(ids)

    def carry_out(self) -> None:
        """Go on with the orders about what is held."""
        if self.ledger.held.orders:
            self.overdue.step(self._wheel_tick)

    def next_fire_ns(self) -> int | None:
        """The steady instant at which `fire` should be called next; None if nothing is armed."""
        ledger = self.ledger
        tick = ledger.hot.next_tick()
        if tick is None:
            return None
        herd_ns = ledger.hot.backlog_ns(tick, self._look_ticks, self.fire_cost_ns, TICK_NS)
        return tick * TICK_NS - max(min(self.lead_ns + herd_ns, self._herd_ns_max), self.lead_ns)

    def _late_ns(self, id: bytes) -> int:
        """For how long a timer has been waiting to be decided, beyond its instant."""
        timer = self.ledger.load(id)
        if timer is None or timer.image.state != State.SCHEDULED:
            return 0
        return self.ledger.now.steady_ns - self.ledger.deadline_ns(timer.image)

    # ------------------------------------------------------------------------------- the turn

    def begin(self, now: Now) -> None:
        """Tell the time of what follows."""
        self.ledger.now = now

    def fail_all(self, code: str, detail: str) -> list[Answer]:
        """Every request that is not answered yet gets this problem: after a failed commit."""
        refused = refusal(code, detail, retry_after_ms=1_000)
        waiting = [*self._later, *(job.call for job in self._jobs)]
        waiting += self.ledger.consumers.take_waiting()
        self._later.clear()
        self._jobs.clear()
        self._later_bytes = 0
        self._keys_under_way.clear()
        return [calls.problem(c.door, c.peer, c.corr, refused) for c in waiting]
