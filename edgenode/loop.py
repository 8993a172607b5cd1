"""The shell of the turn: it waits, drains the doors, lets the node decide, commits, and lets out.

    drain -> decide -> submit ......................... log thread: one commit
    durable? -> answers out, events to the publisher -> events door -> pulse, on the instant
    pulse: left? -> receipts of a later turn

One thread. A turn is decided while the one before it is being written; nothing of a turn leaves
before the log says that it is durable. What is due leaves by the pulse's own thread meanwhile.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import orjson

from edgenode import call as calls
from edgenode.call import Frames
from edgenode.edges import Doors, Events, Sleeper
from edgenode.fire import tell_late
from edgenode.lead import Lead
from edgenode.logs import say
from edgenode.metrics import Metrics
from edgenode.node import OPS, Node
from edgenode.pace import Pace, Times
from edgenode.principal import Principal
from edgenode.publish import Publisher
from edgenode.recovery import Recovered, anchor_note
from edgenode.timekeeping import Finding, Timekeeper
from edgenode.turns import UnderWay
from engine.clock import Clock, Now
from engine.errors import StoreFailed
from engine.record import Kind
from minoots.wire.problems import refusal

FIRE_LIMIT = 512  # timers fired before requests are looked at again
LATER_LIMIT = 64  # small requests that were put aside and are decided in one pass
SWEEP_BUDGET = 4_096  # slots of the hot set that are swept in one pass: 7 us
COSTED_MIN = 256  # fires in one pass that tell what one takes
COST_NS_MAX = 100_000  # a fire is not believed to take longer
DRAIN_WAIT_NS = 1_000_000_000  # longest wait for one commit while stopping
DRAIN_LOOK_NS = 2_000_000  # between two looks at what is still to leave
LEFT_NS = 100_000  # after its instant an expiry has left
HUNGRY_LOOK_NS = 1_000_000  # between two looks at what has left, for a consumer that waits
ROOM_LOOK_NS = 1_000_000  # ... at whether the pulse has room again
GREETING_NS = 10_000_000  # between two heartbeats that greet newcomers


@dataclass(slots=True)
class Loop:
    """See the module."""

    node: Node
    recovered: Recovered
    publisher: Publisher
    events: Events
    doors: Doors
    sleeper: Sleeper
    clock: Clock
    keeper: Timekeeper
    lead: Lead
    metrics: Metrics
    commit: int  # the newest that was submitted
    under_way: deque[UnderWay] = field(default_factory=deque)
    times: Times = field(default_factory=Times)
    pace: Pace = field(default_factory=Pace)
    stopping: bool = False
    settled_commit: int = 0
    _asked_seq: int = 0
    _swept_seq: int = 0
    _looked_ns: int = 0  # steady: when the pulse was last asked what has left

    def __post_init__(self) -> None:
        ledger = self.recovered.ledger
        ledger.breathe = self._breathe
        ledger.accept_clock = partial(self._keep_time, self.keeper.accept)
        self.node.lead_ns = self.metrics.lead_ns = self.lead.ns
        self.settled_commit = self.commit
        ledger.tables.follow(ledger.settled_seq, self.commit)
        self._tell(self.keeper.resumed())
        self._tell_held()
        for seq, data in self.recovered.unreleased:
            self.publisher.hold(seq, data, ledger.unreleased[seq], ledger.now.shift_ns)
        self.events.flush()

    def _tell_held(self) -> None:
        """What was overdue at this start is held: the store and the operator are told."""
        ledger, facts = self.recovered.ledger, self.recovered.held
        if self.recovered.held_note:
            ledger.remember(ledger.held.note())
        if facts is not None:
            said = {name: facts[name] for name in ("why", "policy", "count", "oldest", "newest")}
            say("warning", "overdue_held", **said)
            ledger.tell(Kind.OVERDUE_HELD, orjson.dumps(facts))

    # ------------------------------------------------------------------------------- one pass

    def run(self, keep_on: Callable[[], bool]) -> None:
        """Serve until `keep_on` says no, then drain. Raises StoreFailed."""
        while keep_on():
            self.step()
            wake_ns = self.wake_boot_ns()
            if wake_ns > 0 and not self.doors.pending():
                if self.sleeper.wait(wake_ns):
                    self.times.clock = 0
                self._tell(self.keeper.hear())
        self.drain()

    def step(self) -> None:
        """One pass: everything that can be done without waiting, once."""
        began_ns = self._tick().steady_ns
        self.settle()
        self.take_left()
        self._accept()
        fires = self._fire()
        if not self.events.is_full:
            self.node.carry_out()
        self._resume()
        self.settle()
        self._serve_consumers()
        self._send_free()
        self.submit()
        if not self.recovered.ledger.answers:  # small requests wait for the log, not for bulk too
            self._do_later()
            self.settle()
            self.submit()
        self.settle()
        self._regular()
        if fires >= COSTED_MIN:
            now_ns = self.recovered.timescale.now(self.clock).steady_ns
            self._learn_cost(now_ns - began_ns, fires)

    def _tick(self) -> Now:
        now = self.recovered.timescale.now(self.clock)
        self.node.begin(now)
        return now

    def _accept(self) -> None:
        limits = self.recovered.ledger.config.limits
        if len(self.recovered.ledger.events) >= limits.turn_events_max:
            return  # the commit before must end first; the doors hold what comes
        came = self.doors.drain(limits.drain_max)
        if came:
            self._tick()  # only now: a duration counts from an instant after it was asked for
        at = 0
        while at < len(came):
            at += self._accept_singles(came, at)
            if at < len(came):
                door, frames, principal = came[at]
                self._guard(door, frames, partial(self.node.accept, door, frames, principal))
                at += 1

    def _accept_singles(self, came: list[tuple[int, Frames, Principal]], at: int) -> int:
        """Decide the plain creates in a row from `came[at]` on; how many. At a fault of ours, none:
        each is decided by itself then, under `_guard`."""
        before = self.recovered.ledger.next_seq
        try:
            return self.node.accept_singles(came, at)
        except Exception:
            if self.recovered.ledger.next_seq != before:
                raise
            return 0

    def _fire(self) -> int:
        """Decide what is due within the lead; how many."""
        if self.events.is_full:
            self.node.fires_behind = True
            return 0
        self._tick()
        return self.node.fire(FIRE_LIMIT)

    def _learn_cost(self, took_ns: int, fires: int) -> None:
        """What a fire takes when there are many: the whole pass, as letting them out counts too."""
        cost_ns = self.node.fire_cost_ns
        self.node.fire_cost_ns = cost_ns + (min(took_ns // fires, COST_NS_MAX) - cost_ns) // 8

    def _guard(self, door: int, frames: Frames, decide: Callable[[], object]) -> None:
        """Decide one request; a fault of ours that it finds is answered, and the node goes on.

        Unless it wrote something: then the turn is not to be trusted, and the process ends; the
        next start goes on from what is durable.
        """
        before = self.recovered.ledger.next_seq
        try:
            decide()
        except StoreFailed as error:
            # The rest of what was drained is answered too; settling meets the failure again.
            refused = refusal("read_only", f"the store failed: {error}", retry_after_ms=1_000)
            answer = calls.problem(door, frames[0], calls.corr_of(frames), refused)
            self.recovered.ledger.answers.append(answer)
        except Exception as error:
            if self.recovered.ledger.next_seq != before:
                raise
            say("error", "fault", error=repr(error), traceback=traceback.format_exc())
            problem = refusal("internal", f"the node is at fault: {type(error).__name__}")
            answer = calls.problem(door, frames[0], calls.corr_of(frames), problem)
            self.recovered.ledger.answers.append(answer)

    def _resume(self) -> None:
        """Go on with the verbs that wait for the tables, and have the tables follow for them."""
        ledger, wants = self.recovered.ledger, self.node.wants_applied
        applied = ledger.tables.applied().seq
        if applied < wants <= ledger.settled_seq and self._asked_seq < wants:
            self._asked_seq = ledger.settled_seq
            ledger.tables.follow(ledger.settled_seq, self.settled_commit, now=True)
        for job in self.node.ready_jobs(applied):
            frames = (job.call.peer, b"", b"", job.call.corr)
            self._guard(job.call.door, frames, partial(self.node.go_on, job))
        if self._must_sweep(applied):
            self._swept_seq = ledger.hot.sweep(applied, SWEEP_BUDGET)

    def _serve_consumers(self) -> None:
        """Give consumers what has left by now, and do what their deadlines ask for."""
        ledger = self.recovered.ledger
        if len(ledger.events) < ledger.config.limits.turn_events_max:
            ledger.delivery.serve()

    def _must_sweep(self, applied_seq: int) -> bool:
        """Whether the hot set holds what the tables hold by now: creates wait for that room."""
        return applied_seq > self._swept_seq and not self.recovered.horizon.is_opening

    def _do_later(self) -> None:
        """Decide requests that were put aside, up to one that is bulk."""
        for _ in range(LATER_LIMIT):
            call = self.node.next_later()
            if call is None:
                return
            frames = (call.peer, b"", b"", call.corr)
            self._guard(call.door, frames, partial(self.node.decide_later, call))
            if OPS[call.header.op].bulk:
                return

    def _send_free(self) -> None:
        if self.node.free_answers:
            self.doors.send(self.node.free_answers)
            self.node.free_answers = []

    # ------------------------------------------------------------------------------- the barrier

    def submit(self) -> None:
        """Hand the open turn to the log, if there is one and the log takes it now.

        Answers that rest on nothing new wait for the newest commit under way, not for one more.
        """
        ledger = self.recovered.ledger
        if ledger.must_commit(receipts_too=self.stopping):
            if not self._log_is_free():
                return
            self.commit += 1
            outcome = ledger.close_turn(self.commit)
        elif ledger.answers:
            outcome = ledger.close_turn(0)
        else:
            return
        # Before the log has it: should the log have failed meanwhile, its answers are found here.
        self.under_way.append(UnderWay(self.commit, outcome, ledger.now.steady_ns))
        if outcome.batch is not None:
            number = ledger.log.submit(outcome.batch)
            assert number == self.commit, f"the log calls {number} what is commit {self.commit}"

    def _log_is_free(self) -> bool:
        """Whether no commit is under way.

        The log would queue a second one, but then a small request waits for two; the open turn goes
        on collecting instead, and overlaps all the same.
        """
        return self.commit == self.settled_commit

    def settle(self) -> None:
        """Let out what is durable by now."""
        if not self.under_way:
            return
        durable = self.recovered.ledger.log.durable()
        while self.under_way and self.under_way[0].commit <= durable:
            self._let_out(self.under_way.popleft())

    def _let_out(self, turn: UnderWay) -> None:
        ledger, outcome = self.recovered.ledger, turn.outcome
        self.doors.send(outcome.answers)
        batch = outcome.batch
        if batch is None:
            return
        now = self._tick()
        self.metrics.commit_us.record((now.steady_ns - turn.submitted_ns) // 1_000)
        if outcome.opened_ns:
            self.metrics.turn_us.record((now.steady_ns - outcome.opened_ns) // 1_000)
        if batch.events:
            self.publisher.settled(batch.first_seq, batch.events, now.shift_ns, ledger.unreleased)
            ledger.settled_seq = batch.first_seq + len(batch.events) - 1
            if outcome.fires_since_ns:
                self._feed_lead(now.steady_ns - outcome.fires_since_ns)
        for at in range(0, len(batch.receipts), 16):
            ledger.fired.pop(int.from_bytes(batch.receipts[at : at + 8], "little"), None)
        self.settled_commit = turn.commit
        ledger.tables.follow(ledger.settled_seq, turn.commit)

    def _feed_lead(self, took_ns: int) -> None:
        self.metrics.due_to_durable_us.record(took_ns // 1_000)
        self.lead.feed(took_ns)
        self.node.lead_ns = self.metrics.lead_ns = self.lead.ns

    def _breathe(self) -> None:
        """Between two pieces of one decision: let out what is durable. Nothing may be decided."""
        self.settle()

    # ------------------------------------------------------------------------------- receipts

    def take_left(self) -> None:
        """Write down what has left by the pulse: receipts, and what was later than it may be."""
        events, ledger = self.events, self.recovered.ledger
        if events.is_full:
            events.retry()
            events.flush()
        self._looked_ns = ledger.now.steady_ns
        left = events.take()
        if left:
            self.metrics.left(left)
            for seq, awaited, fired_ns in ledger.receipts_of(left):
                self.metrics.count(self.metrics.over_budget, ledger.identity.tenant)
                tell_late(ledger, seq, awaited, fired_ns)

    def let_go(self) -> None:
        """The store has failed: expiries that have not left are found again in the log, those that
        have are in `ledger.fired`."""
        self.events.clear()
        self.recovered.ledger.receipts_of(self.events.take())

    # ------------------------------------------------------------------------------- regular work

    def _regular(self) -> None:
        now = self._tick()
        times, now_ns = self.times, now.steady_ns
        self.recovered.horizon.extend()
        if self.doors.newcomers():  # they wait for a heartbeat to know that they are connected
            times.heartbeat = min(times.heartbeat, times.beat + GREETING_NS)
        if now_ns >= times.heartbeat:
            times.heartbeat, times.beat = now_ns + self.pace.heartbeat, now_ns
            self._heartbeat()
        if now_ns >= times.clock:
            times.clock = now_ns + self.pace.clock
            self.check_clock()
        if now_ns >= times.upkeep:
            times.upkeep = now_ns + self.pace.upkeep
            self._upkeep()

    def _heartbeat(self) -> None:
        ledger = self.recovered.ledger
        identity = ledger.identity
        error_us = self.keeper.error_us
        self.doors.heartbeat(
            identity.tenant, identity.epoch, ledger.left_seq, ledger.now.utc_ns, error_us
        )
        self.metrics.dropped = self.doors.dropped()

    def check_clock(self) -> None:
        """UTC may have been set: timers of the wall clock move with it, and the log says so."""
        self._keep_time(self.keeper.check)

    def _keep_time(self, look: Callable[[], list[Finding]]) -> None:
        ledger, timescale = self.recovered.ledger, self.recovered.timescale
        before_ns, was_held = timescale.shift_ns, ledger.wall_held
        found = look()
        self._tick()
        self._tell(found)
        ledger.wall_held, ledger.wall_held_by_ns = self.keeper.is_held, timescale.doubt_ns
        moved_ns = timescale.shift_ns - before_ns
        if moved_ns or was_held != ledger.wall_held:
            self.events.move(-moved_ns)
            ledger.remember(anchor_note(timescale, self.clock))
            self.recovered.horizon.stepped()

    def _tell(self, found: list[Finding]) -> None:
        for finding in found:
            say("warning", "clock", found=finding.kind.name.lower(), **finding.data)
            self.node.ledger.tell(finding.kind, finding.json)

    def _upkeep(self) -> None:
        """Forget what nobody needs: seqs the tables hold, old events, notes and finished timers."""
        ledger = self.recovered.ledger
        tables, now = ledger.tables, ledger.now
        applied = tables.applied()
        ledger.tables_moved(applied.commit)
        ledger.notes_count = applied.notes_count
        if now.steady_ns >= self.times.anchor:
            self.times.anchor = now.steady_ns + self.pace.anchor
            ledger.remember(anchor_note(self.recovered.timescale, self.clock))
        keep = ledger.config.log
        oldest_kept = ledger.log.seq_at(now.utc_ns - keep.retention)
        below = min(oldest_kept, applied.seq, self._swept_seq, ledger.left_seq)
        ledger.delivery.upkeep()
        needed = ledger.consumers.floor
        if needed is not None:
            below = min(below, needed + 1)
        notes_before_ns = now.steady_ns - keep.idem_keep
        ledger.trim_below = max(tables.expire(below, notes_before_ns), 0)
        self._check_room()

    def _check_room(self) -> None:
        ledger, about = self.recovered.ledger, self.node.about
        used = ledger.log.state().bytes_used + ledger.tables.applied().bytes_used
        most = ledger.config.log.bytes_max
        full = used > most - most // 10
        about.creates_refused = (
            f"the store is full: {used} of {most} bytes are used (log.bytes_max, of which a tenth "
            "is kept for fires); raise it or shorten log.retention"
            if full
            else ""
        )

    # ------------------------------------------------------------------------------- waiting

    def wake_boot_ns(self) -> int:
        """The BOOTTIME instant at which there is something to do again, if nothing comes in."""
        node, ledger = self.node, self.recovered.ledger
        if node.free_answers or self._must_sweep(ledger.tables.applied().seq):
            return 0
        if (node.has_work or ledger.delivery.is_behind) and not ledger.answers:
            return 0
        ready = self._log_is_free()
        if ready and (ledger.answers or ledger.events or ledger.notes):
            return 0
        wake_ns = min(self.times.next(), self.recovered.horizon.next_ns, ledger.delivery.next_ns)
        if ledger.receipts and ready:
            wake_ns = min(wake_ns, ledger.receipts_since_ns + ledger.config.log.receipt_delay)
        if self.events.held_count:
            wake_ns = min(wake_ns, self._next_look_ns())
        if self.events.is_full:
            return self.recovered.timescale.boot_ns(ledger.now.steady_ns + ROOM_LOOK_NS)
        for next_ns in (node.next_fire_ns(), node.overdue.next_ns):
            if next_ns is not None:
                wake_ns = min(wake_ns, next_ns)
        return self.recovered.timescale.boot_ns(wake_ns)

    def _next_look_ns(self) -> int:
        """When to look at what has left: soon for a consumer that waits, else now and then."""
        ledger = self.recovered.ledger
        look_ns = self._looked_ns + ledger.config.log.receipt_delay
        left_ns = ledger.next_left_ns if ledger.consumers.hungry else None
        if left_ns is None:
            return look_ns
        return min(look_ns, max(left_ns + LEFT_NS, self._looked_ns + HUNGRY_LOOK_NS))

    def drain(self) -> None:
        """Commit what is decided, let it out, wait for what is committed ahead (it is due within
        the lead), and stop. What the wall clock holds back longer is let out by the next start."""
        self.stopping = True
        ledger = self.recovered.ledger
        now = self._tick()
        engine = ledger.config.engine
        ahead_ns = max(engine.lead_max, engine.herd_max)
        until_ns = now.steady_ns + ahead_ns + DRAIN_WAIT_NS
        ledger.delivery.end_waits()
        ledger.tell(Kind.NODE_STOPPED, b"{}")
        ledger.remember(anchor_note(self.recovered.timescale, self.clock))
        while self._is_owing() or (self.events.held_count and now.steady_ns < until_ns):
            now = self._tick()
            self.take_left()
            self.submit()
            self.settle()
            boot_ns = self.clock.steady_boot_ns()
            if self.events.held_count:
                self.sleeper.wait(boot_ns + DRAIN_LOOK_NS)
            elif self.under_way:
                self.sleeper.wait(boot_ns + DRAIN_WAIT_NS)

    def _is_owing(self) -> bool:
        ledger = self.recovered.ledger
        decided = ledger.must_commit(receipts_too=True) or bool(ledger.answers)
        return decided or bool(self.under_way)
