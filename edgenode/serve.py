"""One node as a process: it opens store and doors, serves until told to stop, and says so.

After a failed commit it answers what was waiting, opens the store anew and rebuilds the node by the
start-up path. It answers reads then, and neither takes writes nor fires until a commit has
succeeded: what the disk lost is never taken for written. While the store cannot be opened at all,
only what speaks of the node itself is answered.
"""

from __future__ import annotations

import gc
import secrets
import signal
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from edgenode import call as calls
from edgenode.call import Answer, Frames, problem
from edgenode.config import NODE_ID_FILE, READY_FILE, Config
from edgenode.doors.zeromq import Doors, open_doors, open_peer
from edgenode.lead import Lead
from edgenode.logs import say
from edgenode.loop import Loop
from edgenode.metrics import Metrics
from edgenode.node import FREE_OPS, Node
from edgenode.process import (
    Serving,
    Store,
    notify,
    reference,
    sleeper,
    tell_ready,
    tell_started,
)
from edgenode.publish import Publisher
from edgenode.recovery import PAGE_BYTES, PAGE_EVENTS, Recovered, anchor_note, recover
from edgenode.timekeeping import Timekeeper
from edgenode.turns import UnderWay
from edgenode.verbs.about import About
from engine._kernel import SetWatch
from engine._wait import map_large, set_timer_slack
from engine.clock import CorrectedClock, OsClock, Timescale
from engine.errors import StoreFailed, StoreFull
from engine.files import open_store, write_durably
from engine.record import Kind
from minoots.wire.problems import Refused, refusal

RETRY_NS = 1_000_000_000  # between two attempts to write to a failed store again
RETRY_MS = RETRY_NS // 1_000_000
TIMER_SLACK_NS = 1
LARGE_BYTES = 1 << 20  # blocks of memory that are given back as soon as they are free


def serve(config: Config, data_dir: Path) -> None:
    """Run a node until SIGTERM or SIGINT. Raises StoreLocked, StoreCorrupt, StoreTooNew,
    DoorError, OSError."""
    map_large(LARGE_BYTES)
    store = _open(config, data_dir)
    try:
        doors = open_doors(config.doors, config.limits, config.engine)
    except BaseException:
        store.close()
        raise
    clock, watch = CorrectedClock(OsClock()), SetWatch()
    node_id = config.node.id or _node_id(data_dir)
    peer = None
    if config.clock.reference not in ("", "kernel"):
        peer = open_peer(doors, config.clock.reference)
    boot = secrets.token_hex(8)
    serving = Serving(config, data_dir, node_id, boot, clock, watch, peer, doors, Metrics())
    doors.events.boot = serving.boot
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(serving, "stop", True))
    set_timer_slack(TIMER_SLACK_NS)
    _tell_pulse(doors)
    try:
        _serve_all(serving, store)
    finally:
        (data_dir / READY_FILE).unlink(missing_ok=True)
        notify("STOPPING=1")
        doors.close()
        watch.close()


def _tell_pulse(doors: Doors) -> None:
    """Say what the kernel lets the thread that fires have; `minoots doctor` says what to do."""
    said = doors.pulse.stats()
    facts = {name: said[name] for name in ("policy", "policy_refused", "locked", "slack_ns")}
    if said["policy_refused"] or not said["locked"]:
        say("warning", "pulse_refused", **facts)
    else:
        say("info", "pulse", **facts)


def _open(config: Config, data_dir: Path) -> Store:
    log, tables = open_store(
        data_dir, slice_entries=config.log.slice_max, slice_age_ns=config.log.slice_delay
    )
    return Store(data_dir, log, tables)


def _node_id(data_dir: Path) -> str:
    """The node's name, made once; on disk before anybody is told it."""
    path = data_dir / NODE_ID_FILE
    found = path.read_text(encoding="ascii").strip() if path.exists() else ""
    if not found:  # an empty file is what a power cut left of one that was not on disk
        found = f"node-{secrets.token_hex(4)}"
        write_durably(path, f"{found}\n".encode())
    return found


def _serve_all(serving: Serving, store: Store | None) -> None:
    """Serve; after a failure of the store, again on one that is opened anew."""
    owed: Owed | None = None
    while not serving.stop:
        if store is None:
            assert owed is not None
            store = _reopen(serving, owed)
            continue
        recovered = _recover(serving, store, owed)
        loop = None
        try:
            if owed is not None:
                _prove(serving, store, recovered, owed)
            if not serving.stop:
                loop = _loop(serving, store, recovered)
                _run(serving, loop, owed)
        except StoreFailed as error:
            owed = _after_failure(serving, recovered, loop, owed, error)
        try:
            store.close()
        except StoreFailed as error:
            say("error", "store_close_failed", error=error)
        store = None


def _recover(serving: Serving, store: Store, owed: Owed | None) -> Recovered:
    """From the store to a node that decides; what has left meanwhile has left."""
    config, clock, metrics = serving.config, serving.clock, serving.metrics
    if owed is not None:
        # The node before this one is let go first, and what it holds in cycles with it.
        serving.node = None
        gc.unfreeze()
        gc.collect()
    began_ns = clock.steady_boot_ns()
    recovered = recover(config, serving.node_id, store.log, store.tables, clock, secrets.randbits)
    ledger = recovered.ledger
    about = About(version("minoots"), serving.boot, serving.doors.endpoints, metrics)
    about.pulse = serving.doors.pulse.stats
    if owed is not None:
        about.writes_refused, about.full = owed.why, owed.code == "storage_full"
        ledger.proving = True
        recovered = _keep_fired(recovered, owed)
        _answer_undone(serving, owed, store.log.state().commit)
    metrics.started_ns = metrics.started_ns or ledger.now.steady_ns
    serving.node = Node(ledger, about)
    took_ms = (clock.steady_boot_ns() - began_ns) // 1_000_000
    say(
        "debug" if owed is not None else "info",
        "recovered",
        seq=ledger.next_seq - 1,
        pending=ledger.live_count,
        armed=ledger.hot.armed_count,
        unreleased=len(recovered.unreleased),
        took_ms=took_ms,
    )
    return recovered


def _loop(serving: Serving, store: Store, recovered: Recovered) -> Loop:
    assert serving.node is not None
    config, timescale = serving.config, recovered.timescale
    keeper = Timekeeper(timescale, serving.clock, config.clock, reference(serving, timescale))
    serving.node.about.clock = keeper.facts
    return Loop(
        serving.node,
        recovered,
        Publisher(recovered.ledger.identity, serving.doors.events, timescale.boot_ns(0)),
        serving.doors.events,
        serving.doors,
        sleeper(serving, store),
        serving.clock,
        keeper,
        Lead(config.engine.lead_min, config.engine.lead_max),
        serving.metrics,
        store.log.state().commit,
    )


def _run(serving: Serving, loop: Loop, owed: Owed | None) -> None:
    ledger = loop.recovered.ledger
    if owed is None:
        _first_commit(serving, loop)
    else:
        _make_good(serving, loop, owed)
        say("info", "writes_resumed", after=owed.why)
    loop.node.about.writes_refused = ""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1_000)
    tell_ready(serving)
    loop.run(partial(_goes_on, serving))
    say("info", "stopped", seq=ledger.next_seq - 1, pending=ledger.live_count)


def _goes_on(serving: Serving) -> bool:
    """Asked on each pass of the loop, and while a failed store is waited for."""
    serving.watchdog.feed(serving.clock.steady_boot_ns())
    return not serving.stop


def _first_commit(serving: Serving, loop: Loop) -> None:
    """The first commit proves the store: until it is durable nobody is told that we serve."""
    ledger = loop.recovered.ledger
    tell_started(serving, ledger)
    ledger.remember(anchor_note(loop.recovered.timescale, serving.clock))
    while not loop.settled_commit or loop.under_way or ledger.events:
        loop.submit()
        loop.settle()
        if loop.under_way:
            loop.sleeper.wait(serving.clock.steady_boot_ns() + RETRY_NS)
        elif not ledger.events:
            break
    serving.started = True


# ------------------------------------------------------------------- when the store has failed


@dataclass(slots=True)
class Owed:
    """What a failed store leaves to be made good once it is open again.

    code, why: what requests are refused with meanwhile. doubtful: turns that were submitted, and
    nobody knows whether they are on disk. fired: what has left (seq -> when), its receipts not
    durable. settled_seq: events up to it were given to the publisher.
    """

    code: str
    why: str
    timescale: Timescale
    doubtful: list[UnderWay]
    fired: dict[int, int]
    settled_seq: int


def _after_failure(
    serving: Serving,
    recovered: Recovered,
    loop: Loop | None,
    owed: Owed | None,
    error: StoreFailed,
) -> Owed:
    """Answer all who wait and whose fate is known; return what is owed to the others."""
    full = isinstance(error, StoreFull)
    code = "storage_full" if full else "read_only"
    why = f"no room is left on the disk: {error}" if full else f"the store failed: {error}"
    again = owed is not None and owed.why == why  # each second: once is enough to be told
    say("debug" if again else "error", "commit_failed", error=error, full=full)
    node, ledger = serving.node, recovered.ledger
    assert node is not None
    node.about.writes_refused, node.about.full = why, full
    answers, doubtful, settled_seq = [], [], ledger.settled_seq
    if loop is not None:
        loop.let_go()
        durable = ledger.log.state().commit
        for turn in loop.under_way:
            if turn.commit <= durable:
                answers += turn.outcome.answers
            else:
                doubtful.append(turn)
    elif owed is not None:
        doubtful, settled_seq = owed.doubtful, owed.settled_seq
    answers += [_refused(answer, code, why) for answer in ledger.answers]
    serving.doors.send([*answers, *node.free_answers, *node.fail_all(code, why)])
    return Owed(code, why, recovered.timescale, doubtful, ledger.fired, settled_seq)


def _refused(answer: Answer, code: str, why: str) -> Answer:
    peer, _, _, corr, *_ = answer.frames
    return problem(answer.door, peer, corr, refusal(code, why, retry_after_ms=RETRY_MS))


def _refuse_doubtful(serving: Serving, turns: list[UnderWay], code: str, why: str) -> None:
    waiting = [answer for turn in turns for answer in turn.outcome.answers]
    serving.doors.send([_refused(answer, code, why) for answer in waiting])


def _reopen(serving: Serving, owed: Owed) -> Store | None:
    """The store, opened anew; or None, after a while in which nothing that needs it is done."""
    try:
        return _open(serving.config, serving.data_dir)
    except (StoreFailed, OSError) as error:
        say("error", "store_reopen_failed", error=error, after=owed.why)
    unknown = f"{owed.why}; this may have been done: ask again with the same idempotency key"
    _refuse_doubtful(serving, owed.doubtful, owed.code, unknown)
    owed.doubtful = []
    waiting, until_ns = sleeper(serving, None), serving.clock.steady_boot_ns() + RETRY_NS
    while _goes_on(serving) and serving.clock.steady_boot_ns() < until_ns:
        _answer_without_store(serving, owed)
        if not serving.doors.pending():
            waiting.wait(until_ns)
    return None


def _answer_without_store(serving: Serving, owed: Owed) -> None:
    """One pass: what speaks of the node itself is answered by the last one, the rest refused."""
    node = serving.node
    assert node is not None
    node.begin(owed.timescale.now(serving.clock))
    answers = []
    for door, frames, principal in serving.doors.drain(serving.config.limits.drain_max):
        try:
            call = calls.read(door, frames, principal, node.ledger.now)
            run = FREE_OPS.get(call.header.op)
            if run is None:
                answers.append(_problem(owed, door, frames))
            else:
                answers.append(calls.final(call, run(node.ledger, call, node.about)))
        except StoreFailed:  # `stats` asks the tables
            answers.append(_problem(owed, door, frames))
        except Refused as refused:
            answers.append(problem(door, frames[0], calls.corr_of(frames), refused))
    serving.doors.send(answers)
    _beat(serving, owed)


def _problem(owed: Owed, door: int, frames: Frames) -> Answer:
    refused = refusal(owed.code, owed.why, retry_after_ms=RETRY_MS)
    return problem(door, frames[0], calls.corr_of(frames), refused)


def _keep_fired(recovered: Recovered, owed: Owed) -> Recovered:
    """Do not release again what has left this process: write its receipt down again."""
    waiting = []
    for seq, data in recovered.unreleased:
        if seq in owed.fired:
            recovered.ledger.receipt(seq, owed.fired[seq])
        else:
            waiting.append((seq, data))
    return recovered._replace(unreleased=waiting)


def _answer_undone(serving: Serving, owed: Owed, commit: int) -> None:
    """Tell those whose turn is not in the log, which ends at `commit`, that it never happened."""
    undone = [turn for turn in owed.doubtful if turn.commit > commit]
    _refuse_doubtful(serving, undone, owed.code, f"{owed.why}; nothing was done")
    owed.doubtful = [turn for turn in owed.doubtful if turn.commit <= commit]


def _prove(serving: Serving, store: Store, recovered: Recovered, owed: Owed) -> None:
    """Answer reads, until a commit and the tables behind it are on disk. Raises StoreFailed.

    Nothing is decided and nothing fires. The attempt comes after a pause: once a second is enough
    for a disk that stays full.
    """
    ledger, clock = recovered.ledger, serving.clock
    node, waiting = serving.node, sleeper(serving, store)
    assert node is not None
    tell_ready(serving)
    probe, probe_ns = 0, clock.steady_boot_ns() + RETRY_NS
    while _goes_on(serving):
        _answer_reads(serving, recovered, owed)
        if not probe and clock.steady_boot_ns() >= probe_ns:
            if not serving.started:
                tell_started(serving, ledger)
            ledger.remember(anchor_note(recovered.timescale, clock))
            batch = ledger.close_turn(store.log.state().commit + 1).batch
            assert batch is not None
            probe = store.log.submit(batch)
        if probe and store.log.durable() >= probe:
            ledger.settled_seq = store.log.state().last_seq
            store.tables.follow(ledger.settled_seq, probe, now=True)
            if store.tables.applied().commit >= probe:
                ledger.fired.clear()
                ledger.proving = False
                serving.started = True
                return
        if not node.has_work and not serving.doors.pending():
            waiting.wait(clock.steady_boot_ns() + RETRY_NS if probe else probe_ns)


def _answer_reads(serving: Serving, recovered: Recovered, owed: Owed) -> None:
    """One pass without a commit: reads are answered, writes refused."""
    node, ledger = serving.node, recovered.ledger
    assert node is not None
    node.begin(recovered.timescale.now(serving.clock))
    answers = []
    for door, frames, principal in serving.doors.drain(serving.config.limits.drain_max):
        try:
            node.accept(door, frames, principal)
        except StoreFailed:  # `stats` asks the tables; the probe meets the failure again
            answers.append(_problem(owed, door, frames))
    if (call := node.next_later()) is not None:
        node.decide_later(call)
    for job in node.ready_jobs(ledger.tables.applied().seq):
        node.go_on(job)
    serving.doors.send([*answers, *node.free_answers, *ledger.close_turn(0).answers])
    node.free_answers = []
    _beat(serving, owed)


def _beat(serving: Serving, owed: Owed) -> None:
    """The heartbeat, once a second."""
    node = serving.node
    assert node is not None
    now = node.ledger.now
    if now.steady_ns < serving.beat_ns:
        return
    serving.beat_ns = now.steady_ns + RETRY_NS
    identity = node.ledger.identity
    floor = min(node.ledger.left_seq, owed.settled_seq)
    serving.doors.heartbeat(identity.tenant, identity.epoch, floor, now.utc_ns, None)


def _make_good(serving: Serving, loop: Loop, owed: Owed) -> None:
    """Answer and publish what turned out to be in the log; expirations go by their own way."""
    serving.doors.send([answer for turn in owed.doubtful for answer in turn.outcome.answers])
    ledger, seq = loop.recovered.ledger, owed.settled_seq + 1
    while page := ledger.log.events(seq, PAGE_EVENTS, PAGE_BYTES):
        for data in page:
            if data[5] != Kind.EXPIRED:
                loop.publisher.tell(seq, data)
            seq += 1
