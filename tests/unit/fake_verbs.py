"""The verbs of the fake node: each takes the node and a request's body, and returns the reply's."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from minoots.wire.frames import long_type
from minoots.wire.problems import Refused, refusal
from minoots.wire.times import (
    SECOND,
    format_duration,
    format_id,
    format_instant,
    parse_duration,
    parse_instant,
)

if TYPE_CHECKING:
    from fake_node import FakeNode

TERMINAL = ("completed", "failed", "cancelled")


def hello(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "protocol": [1],
        "version": "0.0-fake",
        "node_id": "fake",
        "epoch": node.epoch,
        "limits": {},
        "features": [],
        "doors": node.doors,
    }


def stats(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    pending = sum(timer["state"] not in TERMINAL for timer in node.timers.values())
    return {
        "timers": {"pending": pending, "armed": pending},
        "log": {"seq": len(node.log), "epoch": node.epoch},
        "fires": {"total": sum("expired" in event["type"] for event in node.log), "late": 0},
        "lateness_us": {"p50": 21, "p99": 90, "max": 340},
        "lead_us": int(node.lead_s * 1e6),
        "turn_us": {"p50": 80, "p99": 400},
        "clock": {"state": "following", "error_us": 340, "held": node.clock_held},
    }


def time_accept(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    accepted, node.clock_held = node.clock_held, False
    return {"accepted": accepted}


def health(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    return {"status": "ok"}


def schema_get(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object"} if body.get("op") else {"ops": {"hello": {"type": "object"}}}


def time_sync(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    return {"t0": body["t0"], "t1": node.now_ns(), "t2": node.now_ns()}


def _due_of(node: FakeNode, schedule: dict[str, Any]) -> int:
    try:
        if schedule["kind"] == "after":
            return node.now_ns() + parse_duration(schedule["duration"])
        if schedule["kind"] == "every":
            return node.now_ns() + parse_duration(schedule["interval"])
        if schedule["kind"] == "at":
            return parse_instant(schedule["instant"])
    except ValueError as error:
        raise refusal("bad_schedule", str(error), pointer="/schedule") from None
    raise refusal("bad_schedule", "this kind is not supported", pointer="/schedule/kind")


def timer_schedule(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    due_ns = _due_of(node, body["schedule"])
    if due_ns < node.now_ns() - SECOND:
        raise refusal("due_in_past", "the instant has passed", pointer="/schedule/instant")
    node.ids.begin(node.now_ns(), random.getrandbits(54))
    timer: dict[str, Any] = {
        "tenant": "default",
        "name": "",
        "labels": {},
        "state": "scheduled",
        "state_reason": "",
        "occurrence": 1,
        "revision": 1,
        "created_at": format_instant(node.now_ns()),
        "payload": None,
    }
    timer |= body | {"id": format_id(node.ids.make())}
    node.timers[timer["id"]] = timer
    node._arm(timer, due_ns)
    node._append("timer.scheduled", timer, due=timer["due"])
    return dict(timer)


def timer_schedule_many(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    results = []
    for timer in body["timers"]:
        try:
            results.append(timer_schedule(node, timer))
        except Refused as refused:
            if body.get("atomic"):
                raise
            results.append({"problem": msgspec.to_builtins(refused.problem)})
    return {"results": results}


def _move(node: FakeNode, body: dict[str, Any], state: str, kind: str) -> dict[str, Any]:
    timer = node._find(body)
    timer["state"] = state
    timer["revision"] += 1
    if state in TERMINAL:
        timer.pop("due", None)
    node._append(kind, timer)
    return dict(timer)


def timer_cancel(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    return _move(node, body, "cancelled", "timer.cancelled")


def timer_pause(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    timer = node._find(body)
    if timer["state"] == "paused":
        return dict(timer)
    left_ns = parse_instant(timer.pop("due")) - node.now_ns()
    timer["remaining"] = format_duration(max(left_ns, 1))
    return _move(node, body, "paused", "timer.paused")


def timer_resume(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    view = _move(node, body, "scheduled", "timer.resumed")
    timer = node.timers[view["id"]]
    node._arm(timer, node.now_ns() + parse_duration(timer.pop("remaining")))
    return dict(timer)


def timer_trigger(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    timer = node._find(body)
    timer["revision"] += 1
    node._expire(timer, node.now_ns())
    node._fire()
    return dict(timer)


def timer_reschedule(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    due_ns = _due_of(node, body["schedule"])
    timer = node._find(body)
    timer["schedule"] = body["schedule"]
    return _moved(node, timer, due_ns)


def timer_extend(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    timer = node._find(body)
    return _moved(node, timer, parse_instant(timer["due"]) + parse_duration(body["by"]))


def _moved(node: FakeNode, timer: dict[str, Any], due_ns: int) -> dict[str, Any]:
    timer["revision"] += 1
    node._arm(timer, due_ns)
    node._append("timer.rescheduled", timer, due=timer["due"])
    return dict(timer)


def _each(
    node: FakeNode, body: dict[str, Any], change: Callable[[FakeNode, dict[str, Any]], Any]
) -> dict[str, Any]:
    found = node._matching(body["filter"]) if "filter" in body else node._pending()
    if "ids" in body:
        found = [timer for timer in found if timer["id"] in body["ids"]]
    if change is timer_resume:
        found = [timer for timer in found if timer["state"] == "paused"]
    if body.get("dry_run"):
        return {"count": len(found), "sample": found[:10]}
    for timer in found:
        change(node, {"id": timer["id"]})
    return {"count": len(found)}


def timer_cancel_many(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    return _each(node, body, timer_cancel)


def timer_pause_many(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    return _each(node, body, timer_pause)


def timer_resume_many(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    return _each(node, body, timer_resume)


def timer_shift_many(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    by_ns = parse_duration(body["by"].removeprefix("-"))
    by_ns = -by_ns if body["by"].startswith("-") else by_ns

    def shift(node: FakeNode, target: dict[str, Any]) -> None:
        timer = node._find(target)
        _moved(node, timer, parse_instant(timer["due"]) + by_ns)

    return _each(node, body, shift)


def timer_relabel_many(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    def relabel(node: FakeNode, target: dict[str, Any]) -> None:
        timer = node._find(target)
        kept = {k: v for k, v in timer["labels"].items() if k not in body.get("remove", [])}
        timer["labels"] = kept | body.get("set", {})

    return _each(node, body, relabel) | {"skipped": 1}


def timer_get(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    return dict(node._find(body, alive=False))


def timer_list(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    limit = body.get("limit", 100)
    found = [
        timer
        for timer in node._matching(body.get("filter", {}))
        if str(timer["id"]) > (body.get("cursor") or "")
    ]
    cursor = found[limit - 1]["id"] if len(found) > limit else None
    return {"items": found[:limit], "next_cursor": cursor}


def stream_snapshot(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    return timer_list(node, body) | {"as_of": {"epoch": node.epoch, "seq": len(node.log)}}


def timer_history(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    limit = body.get("limit", 100)
    below = int(body.get("cursor") or len(node.log) + 1)
    mine = [
        (at, event)
        for at, event in enumerate(node.log, 1)
        if event["subject"] == body["id"] and at < below and at not in node.unreleased
    ]
    if not mine and below > len(node.log):
        raise refusal("not_found", f"there is no timer {body['id']}")
    page = mine[-limit:]
    cursor = str(page[0][0]) if len(mine) > limit else None
    return {"events": [event for _, event in page], "next_cursor": cursor}


def timer_next(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    if "schedule" in body:
        schedule, due_ns, number = body["schedule"], _due_of(node, body["schedule"]), 1
    else:
        timer = node._find(body, alive=False)
        if timer["state"] not in ("scheduled", "armed"):
            return {"occurrence": 0, "dues": []}
        schedule, number = timer["schedule"], timer["occurrence"]
        due_ns = parse_instant(timer["due"])
    step_ns = parse_duration(schedule["interval"]) if schedule["kind"] == "every" else 0
    count = body.get("count", 5) if step_ns else 1
    return {
        "occurrence": number,
        "dues": [format_instant(due_ns + at * step_ns) for at in range(count)],
    }


def timeline_bins(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    """Of one-shots alone."""
    width_ns = parse_duration(body["bin"])
    from_ns, to_ns = parse_instant(body["from"]), parse_instant(body["to"])
    bins = [0] * -((from_ns - to_ns) // width_ns)
    groups: dict[str | None, list[int]] = {}
    for timer in node._matching(body.get("filter", {})):
        due_ns = parse_instant(timer["due"])
        if from_ns <= due_ns < to_ns:
            at = (due_ns - from_ns) // width_ns
            bins[at] += 1
            groups.setdefault(timer["labels"].get(body.get("by")), [0] * len(bins))[at] += 1
    told = [{"value": v, "total": sum(b), "bins": b} for v, b in groups.items()]
    reply = body | {"total": sum(bins), "bins": bins}
    return reply | ({"groups": told} if "by" in body else {})


def stream_replay(node: FakeNode, body: dict[str, Any]) -> dict[str, Any]:
    start, asked = body.get("from", {}), body.get("filter", {})
    if start.get("epoch", node.epoch) != node.epoch:
        raise refusal("epoch_changed", "the cursor is of another epoch")
    seq = start.get("seq", 0)
    if "time" in start:
        early = [event for event in node.log if event["time"] < start["time"]]
        seq = len(early)
    types = [long_type(kind) for kind in asked.get("types", [])]
    found: list[dict[str, Any]] = []
    while seq < node.floor and len(found) < body.get("limit", 100):
        event = node.log[seq] | {"epoch": node.epoch}
        seq += 1
        if (not types or event["type"] in types) and event["data"]["name"].startswith(
            asked.get("name_prefix", "")
        ):
            found.append(event)
    end = seq >= node.floor
    return {"events": found, "next": {"epoch": node.epoch, "seq": seq}, "end": end}
