"""The verbs that change timers by id and name, or all that a filter finds: cancel, pause, resume,
shift, relabel. Before all of a filter are changed, it says how many, and asks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal

import click

from minoots.cli.changes import each
from minoots.cli.options import changing, labels_of, timer_filter_of, which_timers, whole
from minoots.cli.settings import common, settings

if TYPE_CHECKING:
    from minoots.client import Client
    from minoots.wire.bodies import TimerFilter

Simple = Literal["cancel", "pause", "resume"]

DONE = {
    "cancel": "cancelled",
    "pause": "paused",
    "resume": "resumed",
    "shift": "shifted",
    "relabel": "relabelled",
}


def _simple(verb: Simple, help: str) -> click.Command:
    """A command for a verb that needs only its timers."""

    @click.command(verb, help=help)
    @click.argument("timers", metavar="[ID|NAME]...", nargs=-1)
    @which_timers
    @whole
    @changing
    @common
    def command(
        timers: tuple[str, ...],
        name_prefix: str,
        labels: tuple[str, ...],
        states: tuple[str, ...],
        due_before: str | None,
        everything: bool,
        yes: bool,
        dry_run: bool,
        idem: str | None,
        if_match: int | None,
    ) -> None:
        wanted = _filter(timers, name_prefix, labels, states, due_before, everything)
        with settings().client() as client:
            if wanted is not None:
                _change_found(client, verb, wanted, {}, yes=yes, dry_run=dry_run, idem=idem)
                return
            if dry_run:
                raise ValueError("--dry-run goes with a filter")
            change = {"cancel": client.cancel, "pause": client.pause, "resume": client.resume}
            each(
                client,
                timers,
                DONE[verb],
                lambda timer, key: change[verb](timer, idem=key, if_match=if_match),
                idem,
            )

    return command


def _filter(
    timers: tuple[str, ...],
    name_prefix: str,
    labels: tuple[str, ...],
    states: tuple[str, ...],
    due_before: str | None,
    everything: bool,
) -> TimerFilter | None:
    """Which timers a filter means; None: those that are named."""
    filtered = everything or bool(name_prefix or labels or states or due_before)
    if filtered == bool(timers):
        raise ValueError("name timers, or give a filter (--label, --name-prefix ... or --all)")
    return timer_filter_of(name_prefix, labels, states, due_before) if filtered else None


def _change_found(
    client: Client,
    verb: Any,
    wanted: TimerFilter,
    how: dict[str, Any],
    *,
    yes: bool,
    dry_run: bool,
    idem: str | None,
) -> None:
    if dry_run or not yes:
        count = _count_found(client, verb, wanted, how, dry_run=dry_run)
        if dry_run:
            return
        if not count:
            click.echo("no timer matches", err=True)
        elif not sys.stdin.isatty():
            raise click.UsageError(f"{_counted(count)}; add --yes to {verb}")
        if not count or not click.confirm(f"{_counted(count)}. {verb.capitalize()}?", err=True):
            return
    _told(verb, client.change_many(verb, wanted, idem=idem, **how))


def _count_found(
    client: Client, verb: Any, wanted: TimerFilter, how: dict[str, Any], *, dry_run: bool
) -> int:
    from minoots.cli import show
    from minoots.transport import wall_ns

    kept = settings()
    found = client.change_many(verb, wanted, dry_run=True, **how)
    if dry_run and kept.json:
        show.document(found)
    elif dry_run:
        click.echo(f"{_counted(found.count)}; nothing is {DONE[verb]}")
        show.timers(found.sample, kept, now_ns=wall_ns(), utc=False)
        if found.count > len(found.sample) > 0:
            click.echo(f"the first {len(found.sample)}; see all with minoots list", err=True)
    return found.count


def _told(verb: str, done: Any) -> None:
    from minoots.cli import show

    if settings().json:
        show.document(done)
        return
    click.echo(f"{DONE[verb]} {done.count} timer{'' if done.count == 1 else 's'}")
    if done.skipped:
        click.echo(f"{done.skipped} stay as they are: a limit forbids it", err=True)


def _counted(count: int) -> str:
    return "1 timer matches" if count == 1 else f"{count} timers match"


def _change_many(
    verb: Any,
    timers: tuple[str, ...],
    wanted: TimerFilter | None,
    how: dict[str, Any],
    *,
    yes: bool,
    dry_run: bool,
    idem: str | None,
) -> None:
    with settings().client() as client:
        if wanted is not None:
            _change_found(client, verb, wanted, how, yes=yes, dry_run=dry_run, idem=idem)
            return
        if dry_run:
            raise ValueError("--dry-run goes with a filter")
        ids = [t if t.startswith("tmr_") else client.get(t).id for t in timers]
        _told(verb, client.change_many(verb, ids=ids, idem=idem, **how))


@click.command()
@click.argument("timers", metavar="[ID|NAME]...", nargs=-1)
@click.option("--by", required=True, metavar="TIME", help="Later by 10m, or earlier by -10m.")
@which_timers
@whole
@click.option("--idem", metavar="KEY", help="Idempotency key: the same is done once.")
@common
def shift(
    timers: tuple[str, ...],
    by: str,
    name_prefix: str,
    labels: tuple[str, ...],
    states: tuple[str, ...],
    due_before: str | None,
    everything: bool,
    yes: bool,
    dry_run: bool,
    idem: str | None,
) -> None:
    """Move the dues of timers, by id or name, or of all that a filter finds."""
    wanted = _filter(timers, name_prefix, labels, states, due_before, everything)
    _change_many("shift", timers, wanted, {"by": by}, yes=yes, dry_run=dry_run, idem=idem)


@click.command()
@click.argument("timers", metavar="[ID|NAME]...", nargs=-1)
@click.option("--set", "added", metavar="K=V", multiple=True, help="Set a label; repeatable.")
@click.option("--remove", "removed", metavar="K", multiple=True, help="Take one away; repeatable.")
@which_timers
@whole
@click.option("--idem", metavar="KEY", help="Idempotency key: the same is done once.")
@common
def relabel(
    timers: tuple[str, ...],
    added: tuple[str, ...],
    removed: tuple[str, ...],
    name_prefix: str,
    labels: tuple[str, ...],
    states: tuple[str, ...],
    due_before: str | None,
    everything: bool,
    yes: bool,
    dry_run: bool,
    idem: str | None,
) -> None:
    """Set and take away labels of timers, by id or name, or of all that a filter finds."""
    wanted = _filter(timers, name_prefix, labels, states, due_before, everything)
    how = {"set": labels_of(added), "remove": list(removed)}
    _change_many("relabel", timers, wanted, how, yes=yes, dry_run=dry_run, idem=idem)


cancel = _simple("cancel", "Cancel timers, by id or name, or all that a filter finds (it asks).")
pause = _simple("pause", "Hold timers, or all that a filter finds, until they are resumed.")
resume = _simple("resume", "Let paused timers, or all that a filter finds, go on.")

COMMANDS = (cancel, pause, resume, shift, relabel)
