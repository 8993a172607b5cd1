"""The bodies of requests and replies, one struct each (contract, section 4, "Shapes")."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from minoots.wire.definition import Definition, Misfire, Schedule, Spread

SCHEDULE_MANY_MAX = 1_000
PAGE_MAX = 1_000
PAGE_DEFAULT = 100
BULK_ATOMIC_MAX = 1_000
FILTER_LABELS_MAX = 16
BINS_MAX = 10_000
GROUPS_MAX = 32
FILTER_BYTES_MAX = 16_384

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
    """One timer, by `id`, by its `key`, or by `name` where it is unique among those that have not
    ended."""

    id: str | None = None
    name: str | None = None
    key: str | None = None


class Reschedule(_Body):
    """`timer.reschedule`: a timer and its new schedule."""

    schedule: Schedule
    id: str | None = None
    name: str | None = None
    key: str | None = None


class Extend(_Body):
    """`timer.extend`: move the next due `by` a duration."""

    by: str
    id: str | None = None
    name: str | None = None
    key: str | None = None


class Next(_Body):
    """`timer.next`: the coming dues of a timer, or of a schedule that is only tried."""

    id: str | None = None
    name: str | None = None
    key: str | None = None
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


class ChangeMany(_Body):
    """`timer.cancel_many`, `pause_many`, `resume_many`: by filter, or by a list of at most
    SCHEDULE_MANY_MAX ids; `dry_run`: only say which."""

    filter: TimerFilter | None = None
    ids: list[str] | None = None
    dry_run: bool = False


class ShiftMany(_Body):
    """`timer.shift_many`: the dues move `by` a duration, back if it begins with `-`."""

    by: str
    filter: TimerFilter | None = None
    ids: list[str] | None = None
    dry_run: bool = False


class RelabelMany(_Body):
    """`timer.relabel_many`: labels that are set, and keys of those that are taken away."""

    set: dict[str, str] = {}
    remove: list[str] = []
    filter: TimerFilter | None = None
    ids: list[str] | None = None
    dry_run: bool = False


Change = ChangeMany | ShiftMany | RelabelMany


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
    """Which events: types such as `timer.expired`, labels, name prefix. tenant: the client's own,
    which is the default."""

    types: list[str] = []
    tenant: str = ""
    labels: dict[str, str] = {}
    name_prefix: str = ""


class Replay(_Body):
    """`stream.replay`."""

    from_: ReplayFrom = msgspec.field(name="from", default_factory=ReplayFrom)
    filter: EventFilter = msgspec.field(default_factory=EventFilter)
    limit: int = PAGE_DEFAULT


class TimelineBins(_Body):
    """`timeline.bins`: the fires to come from `from` (now, if absent) to `to`, counted by bins: a
    duration, or `second`, `minute`, `hour`, `day`. by: the key of a label to count by as well."""

    to: str
    from_: str | None = msgspec.field(name="from", default=None)
    bin: str = "minute"
    by: str | None = None
    filter: TimerFilter = msgspec.field(default_factory=TimerFilter)


DELIVERIES_MAX = 1_000
PULL_WAIT_MAX = "5m"

DeliverPolicy = Literal["all", "new", "last", "by_seq", "by_time"]


class ConsumerConfig(_Body):
    """`consumer.create`: which events, from where on, and how long an acknowledgement may take.

    name: 1 to 64 of `A-Z a-z 0-9 _ -`. from: for by_seq the cursor after which it begins, for
    by_time the time. ack_wait: after which a message comes again; backoff: the waits after the
    first, second ... delivery instead (the last one repeats). max_deliver: deliveries after which
    it is dead-lettered, 0: no limit. ordered: never two events of one timer at the same time.
    inactive_threshold: without a request for so long it is deleted; none: never.
    """

    name: str
    deliver_policy: DeliverPolicy = "all"
    from_: ReplayFrom | None = msgspec.field(name="from", default=None)
    filter: EventFilter = msgspec.field(default_factory=EventFilter)
    ack_wait: str = "30s"
    max_deliver: int = 0
    backoff: list[str] = []
    max_ack_pending: int = 1_000
    ordered: bool = False
    inactive_threshold: str | None = None


class ConsumerTarget(_Body):
    """`consumer.info` and `consumer.delete`."""

    name: str


class ConsumerList(_Body):
    """`consumer.list`: a page of consumers, in the order of their names, after `cursor`."""

    limit: int = PAGE_DEFAULT
    cursor: str | None = None


class Pull(_Body):
    """`consumer.pull`: up to `batch` messages as soon as there is one, at most after `wait`.

    push: each that comes is sent at once, in partial replies, until `batch` have been (that is the
    credit) or `wait` is over; the final reply is empty.
    """

    name: str
    batch: int = 1
    wait: str = "0s"
    push: bool = False


class Deliveries(_Body):
    """`consumer.ack` (done) and `consumer.progress` (still at it: ack_wait begins anew)."""

    name: str
    deliveries: list[str]


class Nack(_Body):
    """`consumer.nack`: to be delivered again, after `delay`, or the backoff, or at once."""

    name: str
    deliveries: list[str]
    delay: str | None = None
    reason: str = ""


class Term(_Body):
    """`consumer.term`: never to be delivered again; dead-lettered with the reason."""

    name: str
    deliveries: list[str]
    reason: str = ""


class DlqList(_Body):
    """`dlq.list`: a page of a consumer's dead letters, in the order of their seq."""

    consumer: str
    filter: EventFilter = msgspec.field(default_factory=EventFilter)
    limit: int = PAGE_DEFAULT
    cursor: str | None = None


class DlqTake(_Body):
    """`dlq.redrive` and `dlq.drop`: by ids, or those of a consumer that pass a filter.

    dry_run: only count them.
    """

    ids: list[str] | None = None
    consumer: str | None = None
    filter: EventFilter | None = None
    dry_run: bool = False


class TimeSync(_Body):
    """`time.sync`: `t0` is the client's clock (ns since the epoch) as the request leaves."""

    t0: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] = 0


class OverdueReport(_Body):
    """`overdue.report`: what is held; `older_than`: overdue for longer; `sample`: so many of it."""

    filter: TimerFilter = msgspec.field(default_factory=TimerFilter)
    older_than: str | None = None
    sample: int = 5


class OverdueOrder(_Body):
    """`overdue.fire`, `overdue.skip`: what of it; fires per second; `dry_run`: count alone."""

    filter: TimerFilter = msgspec.field(default_factory=TimerFilter)
    older_than: str | None = None
    rate: float | None = None
    dry_run: bool = False


class SchemaGet(_Body):
    """`schema.get`: the JSON Schema of a verb's body; all of them without `op`."""

    op: str | None = None


# ---------------------------------------------------------------------------------------- replies


class TimerView(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A timer as replies show it; `replayed` where an idempotency key answered; `conflict` where
    another held its key: what became of that one, `kept`, `replaced` or `extended`."""

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
    misfire: Misfire | None = None
    key: str | None = None
    spread: Spread | None = None
    remaining: str | None = None
    conflict: str | None = None
    replayed: bool = False


class BulkResult(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What a bulk verb changed, or with `dry_run` would change. skipped: those that a limit kept
    as they are. sample: some of them, of a dry run."""

    count: int
    skipped: int = 0
    sample: list[TimerView] = []
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
