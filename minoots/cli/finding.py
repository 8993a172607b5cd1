"""The verbs that find timers: get, list, history, next, snapshot."""

from __future__ import annotations

from itertools import islice
from typing import Any

import click

from minoots.cli.options import timer_filter_of, when, when_of, which_timers
from minoots.cli.settings import common, settings

_utc = click.option("--utc", is_flag=True, help="Exact instants instead of relative ones.")


@click.command()
@click.argument("timer", metavar="ID|NAME")
@common
def get(timer: str) -> None:
    """Show a timer as it is now; by id also after it has ended."""
    from minoots.cli import show
    from minoots.transport import wall_ns

    kept = settings()
    with kept.client() as client:
        view = client.get(timer)
    if kept.json:
        show.document(view)
    else:
        show.timer(view, kept, now_ns=wall_ns())


@click.command("list")
@which_timers
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="At most.")
@click.option("--all", "everything", is_flag=True, help="No limit.")
@_utc
@common
def list_(
    name_prefix: str,
    labels: tuple[str, ...],
    states: tuple[str, ...],
    due_before: str | None,
    limit: int,
    everything: bool,
    utc: bool,
) -> None:
    """List the timers that have not ended, oldest first."""
    from minoots.cli import show
    from minoots.transport import wall_ns
    from minoots.wire.bodies import PAGE_MAX

    kept = settings()
    wanted = timer_filter_of(name_prefix, labels, states, due_before)
    with kept.client() as client:
        size = PAGE_MAX if everything else min(PAGE_MAX, limit + 1)
        views = client.list(wanted, page_size=size)
        some = views if everything else islice(views, limit)
        if kept.json:
            show.json_items(some, {})
            return
        count = show.timers(some, kept, now_ns=wall_ns(), utc=utc)
        if not count:
            click.echo("no timers", err=True)
        elif not everything and next(views, None) is not None:
            click.echo(f"the first {count}; see more with --limit or --all", err=True)


@click.command()
@click.argument("timer", metavar="ID|NAME")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="The newest.")
@_utc
@common
def history(timer: str, limit: int, utc: bool) -> None:
    """Show what happened to a timer, oldest first."""
    from minoots.cli import show

    kept = settings()
    with kept.client() as client:
        events = client.history(timer, limit=limit)
    if kept.json:
        show.document({"events": [event.cloud_event() for event in events]})
        return
    console = kept.console()
    shown = show.table("SEQ>", "EVENT", "#>", "WHEN", "LATE")
    for event in events:
        shown.add_row(*_history_row(event, utc=utc))
    console.print(shown)


def _history_row(event: Any, *, utc: bool) -> tuple[str, ...]:
    from minoots.cli import moments, show
    from minoots.transport import wall_ns
    from minoots.wire.times import parse_instant

    at_ns = event.fired_ns or parse_instant(event.time)
    when_text = moments.exact(at_ns)
    if not utc:
        when_text = f"{when_text[:19].replace('T', ' ')}Z  {moments.relative(at_ns, wall_ns())}"
    late = "" if event.lateness_us is None else moments.lateness(event.lateness_us)
    return (
        str(event.seq),
        show.styled(event.type, event.type.removeprefix("timer.")),
        str(event.occurrence or ""),
        when_text,
        late + (" misfire" if event.misfire else ""),
    )


@click.command("next")
@click.argument("timer", metavar="[ID|NAME]", required=False)
@when
@click.option("--count", default=5, show_default=True, type=click.IntRange(1), help="How many.")
@common
def next_(
    timer: str | None,
    after: str | None,
    at: str | None,
    every: str | None,
    mode: str | None,
    anchor: str | None,
    tz: str | None,
    count: int,
) -> None:
    """Show when a timer is due next, or when a schedule would be."""
    if timer is not None and (after or at or every):
        raise ValueError("give a timer or a schedule, not both")
    asked: dict[str, Any] = {}
    if timer is None:
        asked = when_of(after, at, every, mode=mode, anchor=anchor, tz=tz).given()
    show_dues(timer, count, asked)


def show_dues(timer: str | None, count: int, asked: dict[str, Any]) -> None:
    """Print coming dues: of a timer, or of a schedule that is only tried."""
    from minoots import arguments, verbs
    from minoots.cli import moments, show
    from minoots.transport import wall_ns
    from minoots.wire.times import parse_instant

    kept = settings()
    body = arguments.next_body(
        timer,
        count,
        max_occurrences=asked.pop("max_occurrences", None),
        expires_at=asked.pop("expires_at", None),
        **asked,
    )
    with kept.client() as client:
        found = client.call(verbs.next_dues(body))
    if kept.json:
        show.document(found)
        return
    shown = show.table("#>", "DUE", "")
    for at, due in enumerate(found.dues):
        due_ns = parse_instant(due)
        when_text = f"{moments.local(due_ns)}  {moments.relative(due_ns, wall_ns())}"
        shown.add_row(str(found.occurrence + at), moments.exact(due_ns), when_text)
    if found.dues:
        kept.console().print(shown)
    else:
        click.echo("no due is left", err=True)


@click.command()
@which_timers
@_utc
@common
def snapshot(
    name_prefix: str,
    labels: tuple[str, ...],
    states: tuple[str, ...],
    due_before: str | None,
    utc: bool,
) -> None:
    """All pending timers, and the place in the log from which `watch --since` goes on."""
    from minoots.cli import show
    from minoots.transport import wall_ns

    kept = settings()
    wanted = timer_filter_of(name_prefix, labels, states, due_before)
    with kept.client() as client:
        taken = client.snapshot(wanted)
        place = {"epoch": taken.as_of.epoch, "seq": taken.as_of.seq}
        if kept.json:
            show.json_items(taken.timers, {"as_of": place})
            return
        count = show.timers(taken.timers, kept, now_ns=wall_ns(), utc=utc)
    click.echo(
        f"{count} timers as of {place['epoch']}:{place['seq']}; "
        f"go on with: minoots watch --since {place['epoch']}:{place['seq']}",
        err=True,
    )


COMMANDS = (get, list_, history, next_, snapshot)
