"""The verbs that change single timers: schedule, reschedule, extend, trigger."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minoots.cli.options import (
    changing,
    keyed,
    labels_of,
    misfire_of,
    missed,
    more_of,
    when,
    when_of,
)
from minoots.cli.settings import common, settings

if TYPE_CHECKING:
    from minoots.client import Client
    from minoots.wire.bodies import TimerView

FAILED = 1


def shown(view: TimerView, verb: str) -> None:
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
@keyed
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
    key: str | None,
    on_conflict: str | None,
    spread: str | None,
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
    minoots schedule remind --in 30m --key cart-7 --on-conflict extend
    minoots schedule report --in 1h --spread 5m:hashed
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
    asked |= more_of(lateness_budget, key, on_conflict, spread)
    asked["misfire"] = misfire_of(**misfire)
    content, marks = _payload(payload), labels_of(labels)
    with settings().client() as client:
        view = client.schedule(name, payload=content, labels=marks, idem=idem, **asked)
    shown(view, view.conflict or "scheduled")


def each(
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
            shown(change(timer, chunk_key(idem, at)), verb)
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
    shown(view, "rescheduled")


@click.command()
@click.argument("timer", metavar="ID|NAME")
@click.argument("by", metavar="TIME")
@changing
@common
def extend(timer: str, by: str, idem: str | None, if_match: int | None) -> None:
    """Move a timer's next due, and those after it, TIME later."""
    with settings().client() as client:
        shown(client.extend(timer, by, idem=idem, if_match=if_match), "extended")


@click.command()
@click.argument("timers", metavar="ID|NAME...", nargs=-1, required=True)
@changing
@common
def trigger(timers: tuple[str, ...], idem: str | None, if_match: int | None) -> None:
    """Fire timers now."""
    with settings().client() as client:
        each(
            client,
            timers,
            "triggered",
            lambda timer, key: client.trigger(timer, idem=key, if_match=if_match),
            idem,
        )


COMMANDS = (schedule, reschedule, extend, trigger)
