"""The verbs about timers that were overdue when the node started and are held: overdue."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from minoots.cli.options import timer_filter_of
from minoots.cli.settings import common, settings

if TYPE_CHECKING:
    from minoots.client import Client
    from minoots.wire.bodies import TimerFilter

F = TypeVar("F", bound=Callable[..., Any])


def _which(command: F) -> F:
    """--older-than, --name-prefix, --label."""
    for option in (
        click.option("--label", "labels", metavar="K=V", multiple=True, help="May be repeated."),
        click.option("--name-prefix", metavar="TEXT", default="", help="Names that begin so."),
        click.option("--older-than", metavar="TIME", help="Overdue for longer than this."),
    ):
        command = option(command)
    return command


@click.group(invoke_without_command=True)
@common
def overdue() -> None:
    """Timers that were overdue when the node started, and are held: report, fire, skip, ask.

    Without a word: report.
    """
    ctx = click.get_current_context()
    if ctx.invoked_subcommand is None:
        ctx.invoke(report)


@overdue.command()
@_which
@click.option("--sample", default=5, show_default=True, help="How many of the oldest to show.")
@common
def report(older_than: str | None, name_prefix: str, labels: tuple[str, ...], sample: int) -> None:
    """Show what is held, by age, and why."""
    from minoots.cli import show

    kept = settings()
    wanted = timer_filter_of(name_prefix, labels, (), None)
    with kept.client() as client:
        found = client.overdue.report(wanted, older_than=older_than, sample=sample)
    if kept.json:
        show.document(found)
        return
    if found["clock"]["held"]:
        count = found["clock"]["due_if_accepted"]
        click.echo(
            f"UTC is in doubt: {count} timers of the wall clock come due if it is accepted "
            "(minoots clock --accept)"
        )
    if not found["held"]:
        click.echo("nothing is held")
        return
    click.echo(f"held since {found['since']}: {found['why']}")
    for tenant, facts in found["tenants"].items():
        _show_tenant(tenant, facts)
    for order in found["orders"]:
        rate = f", {order['rate']:g} a second" if order.get("rate") else ""
        click.echo(f"under way: {order['word']} {order.get('count', 0)}{rate}")


def _show_tenant(tenant: str, facts: dict[str, Any]) -> None:
    from minoots.cli import show

    kept = settings()
    click.echo(f"tenant {tenant}: {_timers(facts['count'])}")
    if not facts["count"]:
        return
    ages = show.table("OVERDUE FOR", "TIMERS>")
    for age in facts["ages"]:
        ages.add_row(f"more than {age['older_than']}", f"{age['count']:,}")
    kept.console().print(ages)
    if facts["sample"]:
        oldest = show.table("OLDEST", "NAME", "DUE")
        for timer in facts["sample"]:
            oldest.add_row(timer["id"], show.plain(timer["name"]), timer["due"])
        kept.console().print(oldest)


def _timers(count: int) -> str:
    return "1 timer" if count == 1 else f"{count:,} timers"


def _word(word: str, help: str) -> click.Command:
    """`fire` or `skip`: says how many, and asks."""

    @click.command(word, help=help)
    @_which
    @click.option("--rate", type=float, metavar="N", help="At most N a second.")
    @click.option("--dry-run", is_flag=True, help="Say how many; do nothing.")
    @click.option("--yes", is_flag=True, help="Do not ask.")
    @click.option("--idem", metavar="KEY", help="Idempotency key: the same is done once.")
    @common
    def command(
        older_than: str | None,
        name_prefix: str,
        labels: tuple[str, ...],
        rate: float | None,
        dry_run: bool,
        yes: bool,
        idem: str | None,
    ) -> None:
        from minoots.cli import show

        kept = settings()
        wanted = timer_filter_of(name_prefix, labels, (), None)
        with kept.client() as client:
            call = {"fire": client.overdue.fire, "skip": client.overdue.skip}[word]
            if dry_run or not yes:
                count = call(wanted, older_than=older_than, dry_run=True)
                if not dry_run and count and not _agreed(word, count):
                    return
            if not dry_run:
                count = call(wanted, older_than=older_than, rate=rate, idem=idem)
        if kept.json:
            show.document({"count": count})
        elif dry_run:
            click.echo(f"would {word}: {_timers(count)}")
        else:
            click.echo(f"ordered to {word}: {_timers(count)}")

    return command


def on_terminal() -> bool:
    """Whether somebody can answer."""
    return sys.stdin.isatty()


def _agreed(word: str, count: int) -> bool:
    if not on_terminal():
        raise click.UsageError(f"{_timers(count)} would {word}; add --yes to do so")
    return click.confirm(f"{_timers(count)}. {word.capitalize()}?", err=True)


@overdue.command()
@click.option("--rate", type=float, metavar="N", help="Fire at most N a second.")
@common
def ask(rate: float | None) -> None:
    """Go through what is held, a group of one age at a time, the oldest first, and ask."""
    if not on_terminal():
        raise click.UsageError("ask needs a terminal; use overdue fire or skip with --older-than")
    with settings().client() as client:
        found = client.overdue.report()
        if not found["held"]:
            click.echo("nothing is held")
            return
        for facts in found["tenants"].values():
            for age in reversed(facts["ages"]):
                _ask_group(client, age, rate)


def _ask_group(client: Client, age: dict[str, Any], rate: float | None) -> None:
    from minoots.arguments import timer_filter

    wanted: TimerFilter = timer_filter(due_from=age["due_from"], due_to=age["due_to"])
    answer = click.prompt(
        f"{_timers(age['count'])} overdue for more than {age['older_than']}",
        type=click.Choice(["fire", "skip", "leave"]),
        default="leave",
        err=True,
    )
    if answer == "leave":
        return
    call = client.overdue.fire if answer == "fire" else client.overdue.skip
    count = call(wanted, rate=rate if answer == "fire" else None)
    click.echo(f"ordered to {answer}: {_timers(count)}")


fire = _word("fire", "Let go of what is held: each timer does as its misfire policy says.")
skip = _word("skip", "Skip what is held: it does not fire; recurring timers go on.")
overdue.add_command(fire)
overdue.add_command(skip)

COMMANDS = (overdue,)
