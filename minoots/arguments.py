"""What people write, made into what the contract says: durations, instants, targets, definitions.

Pure. Everything wrong is a ValueError or TypeError with what to write instead, before anything is
sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec

from minoots.wire.bodies import (
    SCHEDULE_MANY_MAX,
    Change,
    ChangeMany,
    Next,
    OverdueOrder,
    RelabelMany,
    ShiftMany,
    Target,
    TimelineBins,
    TimerFilter,
    TimerView,
)
from minoots.wire.definition import After, At, Definition, Every, Schedule
from minoots.wire.times import (
    ID_PREFIX,
    SECOND,
    format_duration,
    format_instant,
    parse_duration,
    parse_instant,
)

Duration = str | int | float | timedelta
Instant = str | datetime
Mode = Literal["fixed_rate", "fixed_delay"]
ManyVerb = Literal["cancel", "pause", "resume", "shift", "relabel"]

MANY = ("cancel", "pause", "resume", "shift", "relabel")

_schedule: msgspec.json.Decoder[Schedule] = msgspec.json.Decoder(Schedule)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def duration_text(duration: Duration) -> str:
    """The contract's text of a duration: `15m`, PT15M, seconds as a number, or a timedelta."""
    if isinstance(duration, str):
        parse_duration(duration)
        return duration
    if isinstance(duration, timedelta):
        duration_ns = duration // timedelta(microseconds=1) * 1_000
    elif isinstance(duration, bool) or not isinstance(duration, int | float):
        raise TypeError(
            f"duration is a {type(duration).__name__}; write '15m', seconds, or a timedelta"
        )
    elif isinstance(duration, int):
        duration_ns = duration * SECOND
    elif abs(duration) < float("inf"):
        duration_ns = round(duration * SECOND)
    else:
        raise ValueError(f"duration is {duration}; it must be a finite number of seconds")
    text = format_duration(duration_ns)
    parse_duration(text)
    return text


def instant_text(instant: Instant) -> str:
    """The contract's text of an instant: RFC 3339 with an offset, or an aware datetime."""
    if isinstance(instant, str):
        parse_instant(instant)
        return instant
    if not isinstance(instant, datetime):
        raise TypeError(
            f"instant is a {type(instant).__name__}; write RFC 3339 or an aware datetime"
        )
    if instant.utcoffset() is None:
        raise ValueError(
            f"instant is the naive datetime {instant.isoformat()}; give it a zone: "
            "datetime(..., tzinfo=UTC) or .astimezone()"
        )
    return format_instant((instant - _EPOCH) // timedelta(microseconds=1) * 1_000)


def target(timer: str | TimerView | Target) -> Target:
    """Which timer: a view, an id (a text that begins with tmr_), a name that is unique, or a
    Target, `Target(key="cart-7")`."""
    if isinstance(timer, Target):
        return timer
    if isinstance(timer, TimerView):
        return Target(id=timer.id)
    if not isinstance(timer, str):
        raise TypeError(f"timer is a {type(timer).__name__}; write an id, a name or a TimerView")
    if timer.startswith(ID_PREFIX):
        return Target(id=timer)
    if not timer:
        raise ValueError("timer is an empty text; write an id or a name")
    return Target(name=timer)


def schedule_of(
    *,
    after: Duration | None = None,
    at: Instant | None = None,
    every: Duration | None = None,
    schedule: Schedule | Mapping[str, Any] | None = None,
    mode: Mode | None = None,
    anchor: Instant | None = None,
) -> Schedule:
    """The one schedule that is meant; `mode` and `anchor` go with `every` only."""
    given = [
        name
        for name, value in (("after", after), ("at", at), ("every", every), ("schedule", schedule))
        if value is not None
    ]
    if len(given) != 1:
        raise ValueError(
            f"schedule is given {'by ' + ' and '.join(given) if given else 'by nothing'}; "
            "give exactly one of after, at, every, schedule"
        )
    if every is None and not (mode is None and anchor is None):
        raise ValueError(f"mode and anchor go with every, not with {given[0]}")
    if after is not None:
        return After(duration_text(after))
    if at is not None:
        return At(instant_text(at))
    if every is not None:
        return Every(
            duration_text(every),
            None if anchor is None else instant_text(anchor),
            mode or "fixed_rate",
        )
    if isinstance(schedule, Mapping):
        return _converted(schedule)
    assert schedule is not None
    return schedule


def _converted(schedule: Mapping[str, Any]) -> Schedule:
    try:
        return _schedule.decode(msgspec.json.encode(dict(schedule)))
    except msgspec.ValidationError as error:
        raise ValueError(f"schedule is not of the contract: {error}") from None


def definition(
    name: str = "",
    *,
    after: Duration | None = None,
    at: Instant | None = None,
    every: Duration | None = None,
    schedule: Schedule | Mapping[str, Any] | None = None,
    payload: Any = None,
    labels: Mapping[str, str] | None = None,
    max_occurrences: int | None = None,
    expires_at: Instant | None = None,
    mode: Mode | None = None,
    anchor: Instant | None = None,
    **more: Any,
) -> Definition:
    """A timer's definition from what is convenient to write.

    after, every: `15m`, seconds, or a timedelta. at, anchor, expires_at: RFC 3339 or an aware
    datetime. payload: anything that JSON can say, up to 64 KiB. more: further members of the
    contract's definition, as they are (`misfire={"policy": "skip"}`, `key="cart-7"`,
    `on_conflict="extend"`, `spread={"window": "5m", "mode": "hashed"}`); None for none.
    Raises ValueError and TypeError saying what to write.
    """
    rule = schedule_of(after=after, at=at, every=every, schedule=schedule, mode=mode, anchor=anchor)
    members: dict[str, Any] = {"name": name, "schedule": rule, "labels": dict(labels or {})}
    if max_occurrences is not None:
        members["max_occurrences"] = max_occurrences
    if expires_at is not None:
        members["expires_at"] = instant_text(expires_at)
    if payload is not None:
        members["payload"] = payload
    try:
        return msgspec.json.decode(msgspec.json.encode(members | more), type=Definition)
    except msgspec.ValidationError as error:
        raise ValueError(f"definition is not of the contract: {error}") from None


def definition_of(item: Definition | Mapping[str, Any]) -> Definition:
    """A definition as it is, or of the keyword arguments of `definition` in a dict."""
    if isinstance(item, Definition):
        return item
    if isinstance(item, Mapping):
        return definition(**item)
    raise TypeError(f"definition is a {type(item).__name__}; write a Definition or a dict")


def timer_filter(
    given: TimerFilter | Mapping[str, Any] | None = None,
    *,
    states: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    name_prefix: str = "",
    due_from: Instant | None = None,
    due_to: Instant | None = None,
) -> TimerFilter:
    """Which timers: a TimerFilter, a dict of its members, or the keyword arguments."""
    if isinstance(given, TimerFilter):
        return given
    members: dict[str, Any] = dict(given or {})
    if states:
        members["state"] = list(states)
    if labels:
        members["labels"] = dict(labels)
    if name_prefix:
        members["name_prefix"] = name_prefix
    for name, instant in (("due_from", due_from), ("due_to", due_to)):
        instant = members.get(name) if instant is None else instant
        if instant is not None:
            members[name] = instant_text(instant)
    try:
        return msgspec.convert(members, TimerFilter)
    except msgspec.ValidationError as error:
        raise ValueError(f"filter is not of the contract: {error}") from None


def overdue_order(
    given: TimerFilter | Mapping[str, Any] | None,
    *,
    older_than: Duration | None = None,
    rate: float | None = None,
    dry_run: bool = False,
) -> OverdueOrder:
    """The body of overdue.fire and overdue.skip."""
    return OverdueOrder(
        filter=timer_filter(given),
        older_than=None if older_than is None else duration_text(older_than),
        rate=rate,
        dry_run=dry_run,
    )


def chunks_of(
    items: Iterable[Definition | Mapping[str, Any]], size: int
) -> Iterator[list[Definition]]:
    """Definitions in lists of at most `size`, read only as far as they are asked for."""
    if not 1 <= size <= SCHEDULE_MANY_MAX:
        raise ValueError(f"chunk is {size}; a request takes 1 to {SCHEDULE_MANY_MAX} timers")
    chunk: list[Definition] = []
    for item in items:
        chunk.append(definition_of(item))
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def check_atomic(count: int) -> None:
    """Raise ValueError for more timers than one transaction takes."""
    if count > SCHEDULE_MANY_MAX:
        raise ValueError(
            f"atomic=True with {count} timers; one transaction takes {SCHEDULE_MANY_MAX}: "
            "send fewer, or atomic=False"
        )


def chunk_key(idem: str | None, index: int) -> str | None:
    """The idempotency key of the index-th message of a bulk call: the first bears the caller's."""
    return idem if idem is None or index == 0 else f"{idem}#{index}"


def many(
    verb: str,
    given: TimerFilter | Mapping[str, Any] | None,
    ids: Sequence[str] | None,
    *,
    by: Duration | None = None,
    set: Mapping[str, str] | None = None,
    remove: Sequence[str] = (),
    dry_run: bool = False,
) -> tuple[str, Change]:
    """The verb and the body of a change of many: by filter or by ids, and never all by mistake.

    by: of `shift` alone; a text may begin with `-`. set, remove: of `relabel` alone.
    """
    if verb not in MANY:
        raise ValueError(f"verb is {verb!r}; write one of {', '.join(MANY)}")
    if (given is None) == (ids is None):
        raise ValueError(f"{verb}_many takes either a filter or ids")
    if given is not None and not given:
        raise ValueError(f'filter is empty; to {verb} every timer, say so: {{"name_prefix": ""}}')
    which = None if given is None else timer_filter(given)
    some = None if ids is None else list(ids)
    if (by is not None) != (verb == "shift"):
        raise ValueError("shift takes by, and nothing else does")
    if bool(set or remove) != (verb == "relabel"):
        raise ValueError("relabel takes set or remove, and nothing else does")
    op = f"timer.{verb}_many"
    if by is not None:
        return op, ShiftMany(by=_shift_text(by), filter=which, ids=some, dry_run=dry_run)
    if set or remove:
        labels = dict(set or {})
        return op, RelabelMany(
            set=labels, remove=list(remove), filter=which, ids=some, dry_run=dry_run
        )
    return op, ChangeMany(filter=which, ids=some, dry_run=dry_run)


def _shift_text(by: Duration) -> str:
    if isinstance(by, str):
        duration_text(by.removeprefix("-"))
        return by
    back = by < timedelta(0) if isinstance(by, timedelta) else by < 0
    return f"-{duration_text(-by)}" if back else duration_text(by)


def timeline_body(
    end: Instant,
    start: Instant | None,
    bin: str,
    by: str | None,
    given: TimerFilter | Mapping[str, Any] | None,
) -> TimelineBins:
    """The body of timeline.bins."""
    return TimelineBins(
        to=instant_text(end),
        from_=None if start is None else instant_text(start),
        bin=bin,
        by=by,
        filter=timer_filter(given),
    )


def next_body(
    timer: str | TimerView | Target | None,
    count: int,
    *,
    max_occurrences: int | None,
    expires_at: Instant | None,
    **rule: Any,
) -> Next:
    """The body of timer.next: a timer, or the arguments of `schedule_of`."""
    if timer is not None:
        found = target(timer)
        return Next(id=found.id, name=found.name, key=found.key, count=count)
    until = None if expires_at is None else instant_text(expires_at)
    return Next(
        schedule=schedule_of(**rule),
        count=count,
        max_occurrences=max_occurrences,
        expires_at=until,
    )
