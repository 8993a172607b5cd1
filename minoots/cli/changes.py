"""The verbs that change timers: schedule, cancel, reschedule, extend, pause, resume, trigger."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minoots.cli.options import (
    changing,
    labels_of,
    misfire_of,
    missed,
    timer_filter_of,
    when,
    when_of,
    which_timers,
)
from minoots.cli.settings import common, settings

if TYPE_CHECKING:
    from minoots.client import Client
    from minoots.wire.bodies import TimerFilter, TimerView

FAILED = 1


def _shown(view: TimerView, verb: str) -> None:
    from minoots.cli import show
    from minoots.transport import wall_ns

    if settings().json:
        show.document(view)
    else:
        show.changed(view, verb, now_ns=wall_ns())


def _payload(text: str | None) -> Any:
    """The payload of --payload: JSON, @FILE, or - for standard input. Raises ValueError."""
    if text is None:
        return None
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"payload file {text[1:]!r}: {error.strerror}") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"payload is not JSON ({error}); quote a text twice: --payload '\"text\"'"
        ) from None


@click.command()
@click.argument("name")
@when
@click.option("--max", "most", type=click.IntRange(1), metavar="N", help="At most N occurrences.")
@click.option("--until", metavar="T", help="No occurrence is due at or after T.")
@click.option(
    "--lateness-budget", metavar="D", help="A fire later than D is told by timer.late too."
)
@missed
@click.option("--payload", metavar="JSON|@FILE|-", help="Handed back with every event.")
@click.option("--label", "labels", metavar="K=V", multiple=True, help="May be repeated.")
@click.option("--dry-run", is_flag=True, help="Show when it would fire; schedule nothing.")
@click.option("--count", default=5, show_default=True, help="With --dry-run: how many dues.")
@click.option("--idem", metavar="KEY", help="Idempotency key: the same is done once.")
@common
def schedule(
    name: str,
    after: str | None,
    at: str | None,
    every: str | None,
    mode: str | None,
    anchor: str | None,
    tz: str | None,
    most: int | None,
    until: str | None,
    lateness_budget: str | None,
    payload: str | None,
    labels: tuple[str, ...],
    dry_run: bool,
    count: int,
    idem: str | None,
    **misfire: Any,
) -> None:
    """Schedule a timer; when this returns, it is on the node's disk.

    \b
    minoots schedule tea --in 4m
    minoots schedule report --at '2026-11-22 09:00' --tz Europe/Berlin
    minoots schedule backup --every 1h --payload '{"db": "main"}' --label team=ops
    minoots schedule reminder --in 2h --misfire skip --grace 5m
    """
    from minoots.cli.moments import instant_of
    from minoots.transport import wall_ns

    asked = when_of(after, at, every, mode=mode, anchor=anchor, tz=tz).given()
    asked["max_occurrences"] = most
    asked["expires_at"] = None if until is None else instant_of(until, tz=tz, now_ns=wall_ns())
    if dry_run:
        from minoots.cli.finding import show_dues

        show_dues(None, count, asked)
        return
    asked |= {"lateness_budget": lateness_budget, "misfire": misfire_of(**misfire)}
    content, marks = _payload(payload), labels_of(labels)
    with settings().client() as client:
        view = client.schedule(name, payload=content, labels=marks, idem=idem, **asked)
    _shown(view, "scheduled")


@click.command()
@click.argument("timers", metavar="[ID|NAME]...", nargs=-1)
@which_timers
@click.option("--all", "everything", is_flag=True, help="Every timer there is.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@changing
@common
def cancel(
    timers: tuple[str, ...],
    name_prefix: str,
    labels: tuple[str, ...],
    states: tuple[str, ...],
    due_before: str | None,
    everything: bool,
    yes: bool,
    idem: str | None,
    if_match: int | None,
) -> None:
    """Cancel timers, by id or name, or all that a filter finds (it says how many, and asks)."""
    wanted = timer_filter_of(name_prefix, labels, states, due_before)
    filtered = everything or bool(name_prefix or labels or states or due_before)
    if filtered == bool(timers):
        raise ValueError("name timers, or give a filter (--label, --name-prefix ... or --all)")
    with settings().client() as client:
        if filtered:
            _cancel_found(client, wanted, yes=yes, idem=idem)
        else:
            _each(
                client,
                timers,
                "cancelled",
                lambda timer, key: client.cancel(timer, idem=key, if_match=if_match),
                idem,
            )


def _cancel_found(client: Client, wanted: TimerFilter, *, yes: bool, idem: str | None) -> None:
    from minoots.cli import show

    kept = settings()
    if not yes:
        count = sum(1 for _ in client.list(wanted))
        if not count:
            click.echo("no timer matches", err=True)
        elif not sys.stdin.isatty():
            raise click.UsageError(f"{_counted(count)}; add --yes to cancel")
        if not count or not click.confirm(f"{_counted(count)}. Cancel?", err=True):
            return
    count = client.cancel_many(wanted, idem=idem)
    if kept.json:
        show.document({"count": count})
    else:
        click.echo(f"cancelled {count} timer{'' if count == 1 else 's'}")


def _counted(count: int) -> str:
    return "1 timer matches" if count == 1 else f"{count} timers match"


def _each(
    client: Client,
    timers: tuple[str, ...],
    verb: str,
    change: Callable[[str, str | None], TimerView],
    idem: str | None,
) -> None:
    """Change each timer; those that are refused are told, and the others go on."""
    from minoots.arguments import chunk_key
    from minoots.cli import refusals
    from minoots.wire.problems import Refused

    refused = False
    for at, timer in enumerate(timers):
        try:
            _shown(change(timer, chunk_key(idem, at)), verb)
        except Refused as error:
            refused = True
            refusals.tell(error, as_json=settings().json)
    if refused:
        click.get_current_context().exit(FAILED)


@click.command()
@click.argument("timer", metavar="ID|NAME")
@when
@changing
@common
def reschedule(
    timer: str,
    after: str | None,
    at: str | None,
    every: str | None,
    mode: str | None,
    anchor: str | None,
    tz: str | None,
    idem: str | None,
    if_match: int | None,
) -> None:
    """Give a timer another schedule, from now on."""
    asked = when_of(after, at, every, mode=mode, anchor=anchor, tz=tz).given()
    with settings().client() as client:
        view = client.reschedule(timer, idem=idem, if_match=if_match, **asked)
    _shown(view, "rescheduled")


@click.command()
@click.argument("timer", metavar="ID|NAME")
@click.argument("by", metavar="TIME")
@changing
@common
def extend(timer: str, by: str, idem: str | None, if_match: int | None) -> None:
    """Move a timer's next due, and those after it, TIME later."""
    with settings().client() as client:
        _shown(client.extend(timer, by, idem=idem, if_match=if_match), "extended")


def _simple(verb: str, done: str, help: str) -> click.Command:
    """A command for a verb that needs only its timers."""

    @click.command(verb, help=help)
    @click.argument("timers", metavar="ID|NAME...", nargs=-1, required=True)
    @changing
    @common
    def command(timers: tuple[str, ...], idem: str | None, if_match: int | None) -> None:
        with settings().client() as client:
            change = {"pause": client.pause, "resume": client.resume, "trigger": client.trigger}
            _each(
                client,
                timers,
                done,
                lambda timer, key: change[verb](timer, idem=key, if_match=if_match),
                idem,
            )

    return command


pause = _simple("pause", "paused", "Hold timers until they are resumed.")
resume = _simple("resume", "resumed", "Let paused timers go on.")
trigger = _simple("trigger", "triggered", "Fire timers now.")

COMMANDS = (schedule, cancel, reschedule, extend, pause, resume, trigger)
