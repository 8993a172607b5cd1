"""The verbs about the node itself: hello, health, stats, time.sync, schema.get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import orjson

from edgenode.call import Call
from edgenode.ledger import Ledger
from edgenode.metrics import Metrics
from edgenode.overdue import summary
from minoots.wire import bodies, definition, frames
from minoots.wire.problems import refusal
from minoots.wire.times import format_instant

_empty = msgspec.json.Decoder(bodies.Empty)
_sync = msgspec.json.Decoder(bodies.TimeSync)
_schema = msgspec.json.Decoder(bodies.SchemaGet)

FEATURES = (
    *("after", "at", "every", "misfire", "idempotency", "replay", "snapshot", "receipts"),
    *("overdue", "consumers", "keys", "spread", "bulk", "forecast"),
)


class About(msgspec.Struct):
    """What a node says of itself, besides what the ledger knows."""

    version: str
    boot: str
    doors: dict[str, str]
    metrics: Metrics
    writes_refused: str = ""  # why no writes are taken, "" while they are
    full: bool = False  # ... because there is no room
    creates_refused: str = ""  # why no creates are taken, "" while they are
    pulse: Callable[[], dict[str, Any]] = dict  # what the pulse says of itself
    clock: Callable[[], dict[str, Any]] = dict  # ... and the timekeeper


def hello(ledger: Ledger, call: Call, about: About) -> bytes:
    """`hello`: the protocol, the node, its limits and doors."""
    call.read(_empty)
    limits = ledger.config.limits
    return orjson.dumps(
        {
            "protocol": [1],
            "version": about.version,
            "node_id": ledger.identity.node_id,
            "epoch": ledger.identity.epoch,
            "boot": about.boot,
            "limits": {
                "payload_bytes_max": limits.payload_bytes_max,
                "name_bytes_max": limits.name_bytes_max,
                "labels_max": limits.labels_max,
                "label_key_bytes_max": definition.LABEL_KEY_BYTES_MAX,
                "label_value_bytes_max": definition.LABEL_VALUE_BYTES_MAX,
                "key_bytes_max": definition.KEY_BYTES_MAX,
                "schedule_many_max": bodies.SCHEDULE_MANY_MAX,
                "bulk_atomic_max": bodies.BULK_ATOMIC_MAX,
                "bins_max": bodies.BINS_MAX,
                "page_max": bodies.PAGE_MAX,
                "corr_bytes_max": frames.CORR_BYTES_MAX,
                "header_bytes_max": frames.HEADER_BYTES_MAX,
                "idem_bytes_max": frames.IDEM_BYTES_MAX,
                "interval_min_ns": limits.interval_min,
                "due_max_ns": limits.due_max,
                "timers_max": limits.timers_max,
            },
            "features": list(FEATURES),
            "doors": about.doors,
        }
    )


def health(ledger: Ledger, call: Call, about: About) -> bytes:
    """`health`: whether timers are taken and fired. status: ok, holding, no_creates or read_only,
    with the reason."""
    call.read(_empty)
    held = ledger.held
    status, reason = "ok", ""
    if about.writes_refused:
        status, reason = "read_only", about.writes_refused
    elif about.creates_refused:
        status, reason = "no_creates", about.creates_refused
    elif held.is_on:
        status, reason = "holding", f"{held.why}; see minoots overdue"
    return orjson.dumps(
        {
            "status": status,
            "reason": reason,
            "node_id": ledger.identity.node_id,
            "uptime_s": about.metrics.uptime_s(ledger.now.steady_ns),
        }
    )


def stats(ledger: Ledger, call: Call, about: About) -> bytes:
    """`stats`: counts, lateness, turns, store; see docs/protocol.md for each."""
    call.read(_empty)
    metrics, hot = about.metrics, ledger.hot
    state, applied = ledger.log.state(), ledger.tables.applied()
    consumers = ledger.consumers.by_key.values()
    return orjson.dumps(
        {
            "timers": {
                "pending": ledger.live_count,
                "armed": hot.armed_count,
                "newer_than_tables": hot.newer_count,
            },
            "fires": metrics.fires(),
            "overdue": summary(ledger.held),
            "log": {
                "seq": state.last_seq,
                "epoch": state.epoch,
                "first_seq": state.first_seq,
                "commits": state.commit,
                "bytes": state.bytes_used,
                "floor": ledger.left_seq,
            },
            "tables": {
                "applied_seq": applied.seq,
                "behind": state.last_seq - applied.seq,
                "bytes": applied.bytes_used,
                "notes": applied.notes_count,
            },
            "consumers": {
                "count": len(ledger.consumers.by_key),
                "ack_pending": sum(len(c.held) + len(c.again) for c in consumers),
                "waiting": sum(len(c.waiting) for c in consumers),
                "dead": sum(len(c.dead) for c in consumers),
                "floor": ledger.consumers.floor,
            },
            "lateness_us": metrics.lateness_us.summary(),
            "lead_us": metrics.lead_ns // 1_000,
            "pulse": about.pulse(),
            "clock": about.clock(),
            "due_to_durable_us": metrics.due_to_durable_us.summary(),
            "turn_us": metrics.turn_us.summary(),
            "commit_us": metrics.commit_us.summary(),
            "requests": metrics.requests,
            "problems": metrics.problems,
            "dropped": metrics.dropped,
            "horizon": format_instant(max(ledger.horizon_ns + ledger.now.shift_ns, 0)),
        }
    )


def time_sync(ledger: Ledger, call: Call, about: About) -> bytes:
    """`time.sync`: four timestamps (RFC 5905, section 8): t0 by the client as it sends, t1 and t2
    here, t3 by the client as the reply comes: offset ((t1 - t0) + (t2 - t3)) / 2."""
    asked = call.read(_sync)
    now, clock = ledger.now, about.clock()
    return orjson.dumps(
        {
            "t0": asked.t0,
            "t1": call.now.utc_ns,
            "t2": now.utc_ns,
            "steady_ns": now.steady_ns,
            "shift_ns": now.shift_ns,
            "boot": about.boot,
            "clock_error_us": clock.get("error_us"),
            "clock": clock,
        }
    )


def time_accept(ledger: Ledger, call: Call) -> bytes:
    """`time.accept`: believe UTC as this machine has it, though it was set by more than
    `clock.hold_above`; held timers of the wall clock go on."""
    call.read(_empty)
    accepted = ledger.wall_held
    if accepted:
        ledger.accept_clock()
    return orjson.dumps({"accepted": accepted})


def schema_get(ledger: Ledger, call: Call, about: About) -> bytes:
    """`schema.get`: the JSON Schema (2020-12) of verbs' bodies."""
    asked = call.read(_schema)
    if asked.op is None:
        return orjson.dumps({"ops": {op: _schema_of(op) for op in BODIES}})
    if asked.op not in BODIES:
        raise refusal(
            "not_found", f"no verb {asked.op[:60]!r}; known: {', '.join(BODIES)}", pointer="/op"
        )
    return orjson.dumps(_schema_of(asked.op))


BODIES: dict[str, Any] = {
    "hello": bodies.Empty,
    "timer.schedule": definition.Definition,
    "timer.schedule_many": bodies.ScheduleMany,
    "timer.cancel": bodies.Target,
    "timer.cancel_many": bodies.ChangeMany,
    "timer.pause_many": bodies.ChangeMany,
    "timer.resume_many": bodies.ChangeMany,
    "timer.shift_many": bodies.ShiftMany,
    "timer.relabel_many": bodies.RelabelMany,
    "timer.reschedule": bodies.Reschedule,
    "timer.extend": bodies.Extend,
    "timer.pause": bodies.Target,
    "timer.resume": bodies.Target,
    "timer.trigger": bodies.Target,
    "timer.get": bodies.Target,
    "timer.list": bodies.ListTimers,
    "timer.next": bodies.Next,
    "timer.history": bodies.History,
    "timeline.bins": bodies.TimelineBins,
    "stream.snapshot": bodies.ListTimers,
    "stream.replay": bodies.Replay,
    "consumer.create": bodies.ConsumerConfig,
    "consumer.info": bodies.ConsumerTarget,
    "consumer.list": bodies.ConsumerList,
    "consumer.delete": bodies.ConsumerTarget,
    "consumer.pull": bodies.Pull,
    "consumer.ack": bodies.Deliveries,
    "consumer.progress": bodies.Deliveries,
    "consumer.nack": bodies.Nack,
    "consumer.term": bodies.Term,
    "dlq.list": bodies.DlqList,
    "dlq.redrive": bodies.DlqTake,
    "dlq.drop": bodies.DlqTake,
    "stats": bodies.Empty,
    "health": bodies.Empty,
    "time.sync": bodies.TimeSync,
    "time.accept": bodies.Empty,
    "overdue.report": bodies.OverdueReport,
    "overdue.fire": bodies.OverdueOrder,
    "overdue.skip": bodies.OverdueOrder,
    "schema.get": bodies.SchemaGet,
}


def _schema_of(op: str) -> dict[str, Any]:
    return msgspec.json.schema(BODIES[op], schema_hook=_any_json)


def _any_json(type: Any) -> dict[str, Any]:
    if type is msgspec.Raw:
        return {}
    raise TypeError(type)
