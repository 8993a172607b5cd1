"""One node as a process: it opens store and doors, serves until told to stop, and says so.

After a failed commit it opens the store again, rebuilds the node by the start-up path, answers
what was waiting with a problem, and takes no writes until a commit has succeeded.
"""

from __future__ import annotations

import gc
import os
import secrets
import signal
import socket
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import orjson

from edgenode.call import Answer, problem
from edgenode.config import Config
from edgenode.doors.zeromq import Doors, open_doors
from edgenode.lead import Lead
from edgenode.logs import say
from edgenode.loop import Loop
from edgenode.metrics import Metrics
from edgenode.node import Node
from edgenode.publish import Publisher, ReleaseQueue
from edgenode.recovery import anchor_note, recover
from edgenode.verbs.about import About
from engine._log import LmdbLog
from engine._tables import LmdbTables
from engine._wait import Waiter, set_timer_slack
from engine.clock import OsClock
from engine.errors import StoreFailed, StoreFull
from engine.files import close_store, open_store
from engine.record import Kind
from minoots.wire.problems import refusal

READY_FILE = "minoots.json"
NODE_ID_FILE = "node.id"
RETRY_NS = 1_000_000_000  # between two attempts to open a failed store again
TIMER_SLACK_NS = 1


@dataclass(slots=True)
class Serving:
    """What a running node is made of, apart from what is rebuilt after a failed commit."""

    config: Config
    data_dir: Path
    node_id: str
    boot: str
    clock: OsClock
    doors: Doors
    metrics: Metrics
    stop: bool = False


def serve(config: Config, data_dir: Path) -> None:
    """Run a node until SIGTERM or SIGINT. Raises StoreLocked, StoreCorrupt, StoreTooNew,
    DoorError, OSError."""
    store = _open(config, data_dir)
    try:
        doors = open_doors(config.doors, config.limits)
    except BaseException:
        store.close()
        raise
    clock = OsClock()
    node_id = config.node.id or _node_id(data_dir)
    serving = Serving(config, data_dir, node_id, secrets.token_hex(8), clock, doors, Metrics())
    doors.events.boot = serving.boot
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(serving, "stop", True))
    set_timer_slack(TIMER_SLACK_NS)
    try:
        _serve_all(serving, store)
    finally:
        (data_dir / READY_FILE).unlink(missing_ok=True)
        _notify("STOPPING=1")
        doors.close()


@dataclass(slots=True)
class Store:
    """An open store."""

    data_dir: Path
    log: LmdbLog
    tables: LmdbTables

    def close(self) -> None:
        """Close both environments and let go of the directory."""
        close_store(self.data_dir, self.log, self.tables)


def _open(config: Config, data_dir: Path) -> Store:
    log, tables = open_store(
        data_dir, slice_entries=config.log.slice_max, slice_age_ns=config.log.slice_delay
    )
    return Store(data_dir, log, tables)


def _node_id(data_dir: Path) -> str:
    """The node's name, made once."""
    path = data_dir / NODE_ID_FILE
    if not path.exists():
        path.write_text(f"node-{secrets.token_hex(4)}\n", encoding="ascii")
        path.chmod(0o600)
    return path.read_text(encoding="ascii").strip()


def _serve_all(serving: Serving, store: Store | None) -> None:
    """Serve; after a failed commit, again on a store that is opened anew."""
    failed = ""
    while not serving.stop:
        if store is None:
            store = _reopen(serving, failed)
            continue
        loop = _build(serving, store, failed)
        try:
            _run(serving, loop, failed)
        except StoreFailed as error:
            failed = _after_failure(serving, loop, error)
        try:
            store.close()
        except StoreFailed as error:
            say("error", "store_close_failed", error=error)
        store = None


def _reopen(serving: Serving, failed: str) -> Store | None:
    try:
        return _open(serving.config, serving.data_dir)
    except (StoreFailed, OSError) as error:
        say("error", "store_reopen_failed", error=error, after=failed)
        Waiter([]).wait(serving.clock.steady_boot_ns() + RETRY_NS)
        return None


def _build(serving: Serving, store: Store, failed: str) -> Loop:
    config, clock, metrics = serving.config, serving.clock, serving.metrics
    began_ns = clock.steady_boot_ns()
    recovered = recover(config, serving.node_id, store.log, store.tables, clock, secrets.randbits)
    ledger = recovered.ledger
    metrics.started_ns = metrics.started_ns or ledger.now.steady_ns
    about = About(version("minoots"), serving.boot, serving.doors.endpoints, metrics, failed)
    node = Node(ledger, about)
    queue = ReleaseQueue()
    lead = Lead(config.engine.lead_min, config.engine.lead_max)
    publisher = Publisher(ledger.identity, serving.doors.events, queue)
    sleeper = _Sleeper(Waiter([*serving.doors.fds, store.log.fileno(), store.tables.fileno()]))
    loop = Loop(
        node,
        recovered,
        publisher,
        queue,
        serving.doors,
        sleeper,
        clock,
        lead,
        metrics,
        store.log.state().commit,
    )
    took_ms = (clock.steady_boot_ns() - began_ns) // 1_000_000
    say(
        "info",
        "recovered",
        seq=ledger.next_seq - 1,
        pending=ledger.live_count,
        armed=ledger.hot.armed_count,
        unreleased=len(recovered.unreleased),
        took_ms=took_ms,
    )
    return loop


@dataclass(slots=True)
class _Sleeper:
    waiter: Waiter

    def wait(self, boot_ns: int) -> None:
        self.waiter.wait(boot_ns)


def _run(serving: Serving, loop: Loop, failed: str) -> None:
    ledger = loop.recovered.ledger
    started = b'{"version":"%b","boot":"%b"}' % (
        version("minoots").encode(),
        serving.boot.encode(),
    )
    ledger.tell(Kind.NODE_STARTED, started)
    ledger.remember(anchor_note(loop.recovered.timescale, serving.clock))
    # The first commit proves the store: until it is durable nobody is told that we serve.
    while not loop.settled_commit or loop.under_way or ledger.events:
        loop.submit()
        loop.settle()
        if loop.under_way:
            loop.sleeper.wait(serving.clock.steady_boot_ns() + RETRY_NS)
        elif not ledger.events:
            break
    loop.node.about.writes_refused = ""
    if failed:
        say("info", "writes_resumed", after=failed)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1_000)
    _tell_ready(serving)
    loop.run(lambda: not serving.stop)
    say("info", "stopped", seq=ledger.next_seq - 1, pending=ledger.live_count)


def _tell_ready(serving: Serving) -> None:
    path = serving.data_dir / READY_FILE
    facts = {
        "node_id": serving.node_id,
        "pid": os.getpid(),
        "version": version("minoots"),
        "doors": serving.doors.endpoints,
    }
    fresh = path.with_suffix(".new")
    fresh.write_bytes(orjson.dumps(facts))
    fresh.chmod(0o600)
    fresh.replace(path)
    say(
        "info",
        "serving",
        node=serving.node_id,
        **serving.doors.endpoints,
        data=serving.data_dir,
        pid=os.getpid(),
    )
    _notify(f"READY=1\nMAINPID={os.getpid()}\nSTATUS=serving {serving.doors.endpoints['control']}")


def _after_failure(serving: Serving, loop: Loop, error: StoreFailed) -> str:
    """Tell who waits that their request was not done; return why writes are refused."""
    full = isinstance(error, StoreFull)
    why = "no room is left on the disk" if full else f"the store failed: {error}"
    say("error", "commit_failed", error=error, full=full)
    answers = loop.node.fail_all("storage_full" if full else "internal", why)
    code, waiting = ("storage_full" if full else "internal"), loop.unanswered()
    answers += [_refused(answer, code, why) for answer in waiting]
    serving.doors.send(answers)
    return why


def _refused(answer: Answer, code: str, why: str) -> Answer:
    peer, _, _, corr, *_ = answer.frames
    return problem(answer.door, peer, corr, refusal(code, why, retry_after_ms=1_000))


def _notify(state: str) -> None:
    """Tell a service manager, if there is one (sd_notify)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(state.encode(), address)
        except OSError as error:
            say("warning", "notify_failed", error=error)
