"""What the verbs print: JSON for programs, tables and lines that fit in 80 columns for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec

from minoots.cli import moments
from minoots.cli.settings import Settings
from minoots.wire.bodies import TimerView
from minoots.wire.definition import After, At, Cron, Every
from minoots.wire.times import parse_duration, parse_instant

if TYPE_CHECKING:
    from rich.table import Table

    from minoots.event import Event

WIDE_COLUMNS = 118  # from here on a table has room for what is nice to know
NAME_WIDTH_MAX = 24

_OVER = ("firing", "completed", "failed", "cancelled", "paused")

_STYLES = {
    "timer.expired": "green",
    "timer.late": "yellow",
    "timer.skipped": "yellow",
    "timer.escalated": "red",
    "timer.failed": "red",
    "timer.error": "red",
    "timer.cancelled": "dim",
    "paused": "yellow",
    "cancelled": "dim",
    "completed": "dim",
    "failed": "red",
}


def document(value: Any) -> None:
    """One JSON document."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def json_line(value: Any) -> None:
    """One line of a stream, out at once."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def json_items(views: Iterable[TimerView], more: dict[str, Any]) -> None:
    """`{"items": [...]}` written as it comes, so that a million timers need no memory."""
    sys.stdout.write('{"items":[')
    for at, view in enumerate(views):
        sys.stdout.write(("," if at else "") + "\n" + msgspec.json.encode(view).decode())
    sys.stdout.write("\n]" + "".join(f",{json.dumps(k)}:{json.dumps(v)}" for k, v in more.items()))
    sys.stdout.write("}\n")


def table(*columns: str, cut: dict[str, int] | None = None) -> Table:
    """An empty table in the house's looks; a column's name may end in `>` to stand right.

    cut: columns that are cut at a width, so that the others, an id above all, never are.
    """
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(
            column.rstrip(">"),
            justify="right" if column.endswith(">") else "left",
            no_wrap=True,
            overflow="ellipsis",
            max_width=(cut or {}).get(column),
        )
    return made


def due_text(view: TimerView, *, now_ns: int, utc: bool) -> str:
    """When a timer is due, for people; of one that is paused, what is left."""
    if view.remaining is not None:
        return f"{moments.span(parse_duration(view.remaining))} left"
    if view.due is None:
        return "-"
    due_ns = parse_instant(view.due)
    return moments.exact(due_ns) if utc else moments.relative(due_ns, now_ns)


def schedule_text(schedule: Any) -> str:
    """A schedule in a few words."""
    if isinstance(schedule, After):
        return f"after {schedule.duration}"
    if isinstance(schedule, At):
        return f"at {moments.exact(parse_instant(schedule.instant))}"
    if isinstance(schedule, Every):
        return f"every {schedule.interval}" + (
            " fixed delay" if schedule.mode == "fixed_delay" else ""
        )
    if isinstance(schedule, Cron):
        return f"cron {schedule.expr} {schedule.tz}"
    return str(msgspec.to_builtins(schedule).get("kind", ""))


def labels_text(labels: dict[str, str]) -> str:
    """`a=1 b=2`."""
    return " ".join(f"{key}={value}" for key, value in labels.items())


def timers(views: Iterable[TimerView], kept: Settings, *, now_ns: int, utc: bool) -> int:
    """Print timers as a table, in batches so that long lists start at once; how many there were."""
    console = kept.console()
    wide = console.width >= WIDE_COLUMNS
    count = 0
    for batch in _batches(views, 500):
        columns = ["ID", "NAME", "DUE>"] if utc and not wide else ["ID", "NAME", "STATE", "DUE>"]
        columns += ["#>", "SCHEDULE", "LABELS"] if wide else []
        shown = table(*columns, cut=_cuts(console.width, utc=utc))
        shown.show_header = count == 0
        for view in batch:
            due = due_text(view, now_ns=now_ns, utc=utc)
            state = [styled(view.state)] if "STATE" in columns else []
            row = [view.id, plain(view.name), *state, due]
            if wide:
                row += [
                    str(view.occurrence),
                    plain(schedule_text(view.schedule)),
                    plain(labels_text(view.labels)),
                ]
            shown.add_row(*row)
        console.print(shown)
        count += len(batch)
    return count


def _cuts(width: int, *, utc: bool) -> dict[str, int]:
    """How wide a name may be beside an id (30), a state (9) and a due (10, or 30 if exact)."""
    due = 30 if utc else 10
    if width < WIDE_COLUMNS:
        return {"NAME": max(4, width - 30 - due - (4 if utc else 15))}
    left = width - 30 - 9 - due - 4 - 12
    return {"NAME": left // 3, "SCHEDULE": left // 3, "LABELS": left // 3}


def _batches(views: Iterable[TimerView], size: int) -> Iterable[list[TimerView]]:
    batch: list[TimerView] = []
    for view in views:
        batch.append(view)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def timer(view: TimerView, kept: Settings, *, now_ns: int) -> None:
    """Print one timer, a line for each thing known."""
    rows: list[tuple[str, str]] = [
        ("id", view.id),
        ("name", plain(view.name)),
        ("state", styled(view.state) + (f" ({view.state_reason})" if view.state_reason else "")),
        ("schedule", plain(schedule_text(view.schedule))),
    ]
    if view.due is not None and view.remaining is None:
        due_ns = parse_instant(view.due)
        rows.append(("due", f"{moments.exact(due_ns)}  {moments.relative(due_ns, now_ns)}"))
    if view.remaining is not None:
        rows.append(("left", view.remaining))
    of = f" of {view.max_occurrences}" if view.max_occurrences else ""
    rows.append(("occurrence", f"{view.occurrence}{of}"))
    if view.expires_at is not None:
        rows.append(("until", view.expires_at))
    if view.lateness_budget is not None:
        rows.append(("lateness budget", view.lateness_budget))
    if view.misfire is not None:
        told = [f"{name} {value}" for name, value in msgspec.structs.asdict(view.misfire).items()]
        rows.append(("misfire", ", ".join(text for text in told if not text.endswith(" None"))))
    if view.labels:
        rows.append(("labels", plain(labels_text(view.labels))))
    if view.payload is not None:
        rows.append(("payload", plain(json.dumps(view.payload, ensure_ascii=False))))
    rows.append(("created", moments.exact(parse_instant(view.created_at))))
    rows.append(("revision", str(view.revision)))
    pairs(rows, kept)


def pairs(rows: Sequence[tuple[str, str]], kept: Settings) -> None:
    """Print names and values, aligned."""
    console = kept.console()
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        console.print(f"[bold]{name:<{width}}[/bold]  {value}", soft_wrap=True)


def changed(view: TimerView, verb: str, *, now_ns: int) -> None:
    """One line for what a changing verb did."""
    name = view.name or "(no name)"
    line = f"{verb} {name}  {view.id}"
    if view.due is not None and view.state not in _OVER:
        due_ns = parse_instant(view.due)
        line += f"  due {moments.relative(due_ns, now_ns)} ({moments.near(due_ns, now_ns)})"
    if view.remaining is not None:
        line += f"  {moments.span(parse_duration(view.remaining))} left"
    if view.replayed:
        line += "  (done before: same key)"
    sys.stdout.write(line + "\n")


def event_line(event: Event, *, utc: bool, width: int) -> str:
    """One event as a line with markup: when, what, who, how late."""
    at_ns = event.fired_ns or parse_instant(event.time)
    when = moments.exact(at_ns) if utc else moments.clock(at_ns)
    kind = event.type.removeprefix("timer.")
    name = event.name if len(event.name) <= NAME_WIDTH_MAX else event.name[:23] + "…"
    late = "" if event.lateness_us is None else moments.lateness(event.lateness_us)
    if event.misfire:
        late += " misfire"
    line = f"{when}  {styled(event.type, f'{kind:<11}')} {plain(f'{name:<16}')}"
    number = f"#{event.occurrence}" if event.occurrence else ""
    line += f" {number:<4} {late:<8}"
    if width >= 96:
        line += f" {event.timer_id:<30} {event.seq:>8}"
    elif width >= 80 and not utc:
        line += f" …{event.timer_id[-6:]}" if event.timer_id else ""
    return line.rstrip()


def styled(word: str, text: str | None = None) -> str:
    """A word in its colour, as markup."""
    style = _STYLES.get(word)
    shown = plain(word if text is None else text)
    return f"[{style}]{shown}[/{style}]" if style else shown


def plain(text: str) -> str:
    """Text that a terminal cannot mistake for a command, nor rich for markup."""
    safe = "".join(char if char.isprintable() else "�" for char in text)
    return safe.replace("[", "\\[")


def flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A JSON document as dotted names and values."""
    rows: list[tuple[str, str]] = []
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, dict) and inner:
            rows = list(chain(rows, flat(inner, f"{name}.")))
        elif isinstance(inner, int) and not isinstance(inner, bool):
            rows.append((name, f"{inner:,}"))
        else:
            rows.append((name, plain(inner if isinstance(inner, str) else json.dumps(inner))))
    return rows
