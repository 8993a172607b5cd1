"""The bodies of requests and replies, one struct each (contract, section 4, "Shapes")."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from minoots.wire.definition import Definition, Schedule

SCHEDULE_MANY_MAX = 1_000
PAGE_MAX = 1_000
PAGE_DEFAULT = 100

StateName = Literal["scheduled", "armed", "firing", "paused", "completed", "failed", "cancelled"]


class _Body(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What all bodies have in common."""


class Empty(_Body):
    """`{}`: hello, stats, health."""


class ScheduleMany(_Body):
    """`timer.schedule_many`: up to SCHEDULE_MANY_MAX; `atomic`: all or none."""

    timers: list[Definition]
    atomic: bool = False


class ScheduleManyRaw(_Body):
    """The same, each definition left as it came, so that each bad one gets its own problem."""

    timers: list[msgspec.Raw]
    atomic: bool = False


class Target(_Body):
    """One timer, by `id`, or by `name` where it is unique among those that have not ended."""

    id: str | None = None
    name: str | None = None


class Reschedule(_Body):
    """`timer.reschedule`: a timer and its new schedule."""

    schedule: Schedule
    id: str | None = None
    name: str | None = None


class Extend(_Body):
    """`timer.extend`: move the next due `by` a duration."""

    by: str
    id: str | None = None
    name: str | None = None


class Next(_Body):
    """`timer.next`: the coming dues of a timer, or of a schedule that is only tried."""

    id: str | None = None
    name: str | None = None
    schedule: Schedule | None = None
    max_occurrences: int | None = None
    expires_at: str | None = None
    count: int = 5


class TimerFilter(_Body):
    """Which timers: all conditions hold. due_from <= due < due_to."""

    state: list[StateName] = []
    labels: dict[str, str] = {}
    name_prefix: str = ""
    due_from: str | None = None
    due_to: str | None = None


class CancelMany(_Body):
    """`timer.cancel_many`: by filter, or by a list of at most SCHEDULE_MANY_MAX ids."""

    filter: TimerFilter | None = None
    ids: list[str] | None = None


class ListTimers(_Body):
    """`timer.list` and `stream.snapshot`: a page of those that have not ended, in order of id."""

    filter: TimerFilter = msgspec.field(default_factory=TimerFilter)
    limit: int = PAGE_DEFAULT
    cursor: str | None = None


class History(_Body):
    """`timer.history`: a timer's events, newest page first, each page in order."""

    id: str
    limit: int = PAGE_DEFAULT
    cursor: str | None = None


class Cursor(_Body):
    """A place in a log: the next event to read is `seq + 1`."""

    epoch: int
    seq: int


class ReplayFrom(_Body):
    """Where a replay begins: after the event `(epoch, seq)`, or at the first one since `time`."""

    epoch: int | None = None
    seq: int | None = None
    time: str | None = None


class EventFilter(_Body):
    """Which events: types such as `timer.expired`, labels, name prefix."""

    types: list[str] = []
    labels: dict[str, str] = {}
    name_prefix: str = ""


class Replay(_Body):
    """`stream.replay`."""

    from_: ReplayFrom = msgspec.field(name="from", default_factory=ReplayFrom)
    filter: EventFilter = msgspec.field(default_factory=EventFilter)
    limit: int = PAGE_DEFAULT


class TimeSync(_Body):
    """`time.sync`: `t0` is the client's clock (ns since the epoch) as the request leaves."""

    t0: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] = 0


class SchemaGet(_Body):
    """`schema.get`: the JSON Schema of a verb's body; all of them without `op`."""

    op: str | None = None


# ---------------------------------------------------------------------------------------- replies


class TimerView(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A timer as replies show it; `replayed` where an idempotency key answered."""

    id: str
    tenant: str = "default"
    name: str = ""
    labels: dict[str, str] = {}
    state: str
    state_reason: str = ""
    occurrence: int
    due: str | None = None
    revision: int
    created_at: str
    schedule: Schedule
    payload: Any = None
    max_occurrences: int | None = None
    expires_at: str | None = None
    lateness_budget: str | None = None
    remaining: str | None = None
    replayed: bool = False


class EventData(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The `data` of a timer's event. `fired` and `lateness_us` are there on replay, once the
    receipt is in; a live frame carries `fired` in its stamp."""

    timer_id: str = ""
    name: str = ""
    labels: dict[str, str] = {}
    occurrence: int = 0
    due: str | None = None
    fired: str | None = None
    lateness_us: int | None = None
    misfire: bool = False
    state: str = ""
    payload: Any = None


class CloudEvent(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One event, CloudEvents 1.0 structured JSON with the contract's extensions."""

    specversion: str
    id: str
    source: str
    type: str
    subject: str = ""
    time: str
    datacontenttype: str = "application/json"
    sequence: str
    epoch: int
    tenant: str
    dedupekey: str = ""
    attempt: int = 1
    traceparent: str | None = None
    correlationid: str | None = None
    causationid: str | None = None
    data: Any = None
