"""`minoots consumer ...` and `minoots dlq ...`: durable consumers, and what they could not do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from minoots.cli.options import labels_of
from minoots.cli.settings import Span, common, settings

if TYPE_CHECKING:
    from minoots.consumer_verbs import Settled

F = TypeVar("F", bound=Callable[..., Any])
Option = Callable[[Any], Any]

FAILED = 1

_filters = (
    click.option(
        "--type", "types", metavar="TYPE", multiple=True, help="Such as expired; repeatable."
    ),
    click.option("--label", "labels", metavar="K=V", multiple=True, help="May be repeated."),
    click.option("--name-prefix", metavar="TEXT", default="", help="Names that begin so."),
)

_config = (
    *_filters,
    click.option("--since", metavar="T", help="start, now, an instant, 10m (ago), or EPOCH:SEQ."),
    click.option("--last", is_flag=True, help="Begin with the newest event that passes."),
    click.option("--ack-wait", metavar="TIME", help="Without an answer it comes again; 30s."),
    click.option(
        "--max-deliver", type=click.IntRange(0), help="Then it is dead-lettered; 0: never."
    ),
    click.option(
        "--backoff", metavar="TIME,...", help="Waits after the 1st, 2nd ... delivery: 1s,10s,5m."
    ),
    click.option("--max-ack-pending", type=click.IntRange(1), help="Unsettled at most; 1000."),
    click.option("--ordered", is_flag=True, help="Never two events of one timer at a time."),
    click.option("--inactive", metavar="TIME", help="Unused for so long, it is deleted."),
)


def _with(options: Iterable[Option]) -> Callable[[F], F]:
    def add(command: F) -> F:
        for option in reversed(list(options)):
            command = option(command)
        return command

    return add


config_options = _with(_config)


def config_given(
    *,
    types: Sequence[str],
    labels: Sequence[str],
    name_prefix: str,
    since: str | None,
    last: bool,
    ack_wait: str | None,
    max_deliver: int | None,
    backoff: str | None,
    max_ack_pending: int | None,
    ordered: bool,
    inactive: str | None,
) -> dict[str, Any]:
    """What the options say of a consumer; only what was given. Raises ValueError."""
    from minoots.cli.events import since_of

    given = {
        "types": list(types),
        "labels": labels_of(labels),
        "name_prefix": name_prefix,
        "since": None if since is None else since_of(since, None),
        "deliver_policy": "last" if last else None,
        "ack_wait": ack_wait,
        "max_deliver": max_deliver,
        "backoff": None if backoff is None else backoff.split(","),
        "max_ack_pending": max_ack_pending,
        "ordered": ordered,
        "inactive_threshold": inactive,
    }
    return {name: value for name, value in given.items() if value not in (None, [], {}, "", False)}


@click.group()
def consumer() -> None:
    """Durable consumers: make them, look at them, and work by hand."""


@consumer.command()
@click.argument("name")
@config_options
@common
def create(name: str, **config: Any) -> None:
    """Make a consumer; the same again changes nothing.

    \b
    minoots consumer create mailer --type expired --label team=ops
    minoots consumer create audit --since start --max-deliver 5 --backoff 1s,1m,1h
    """
    with settings().client() as client:
        view = client.consumers.create(name, **config_given(**config))
    _document(view, lambda: click.echo(f"consumer {view.name} is there"))


@consumer.command()
@click.argument("name")
@common
def info(name: str) -> None:
    """Show a consumer: its configuration, and what is pending."""
    from msgspec import to_builtins

    from minoots.cli import show

    with settings().client() as client:
        view = client.consumers.info(name)
    _document(view, lambda: show.pairs(show.flat(to_builtins(view)), settings()))


@consumer.command("list")
@common
def list_() -> None:
    """List the consumers."""
    from minoots.cli import show

    kept = settings()
    with kept.client() as client:
        views = list(client.consumers.list())
    if kept.json:
        show.document({"items": views})
        return
    shown = show.table("NAME", "SEQ>", "PENDING>", "OUT>", "ACKED>", "DEAD>")
    for view in views:
        counts = (view.floor.seq, view.ack_pending, view.out, view.acked, view.dead)
        shown.add_row(show.plain(view.name), *map(str, counts))
    if views:
        kept.console().print(shown)
    else:
        click.echo("no consumers", err=True)


@consumer.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
def delete(name: str, yes: bool) -> None:
    """End a consumer, with what it has to do and its dead letters."""
    with settings().client() as client:
        view = client.consumers.info(name)
        what = f"{name} has {view.pending} pending, {view.ack_pending} unsettled, {view.dead} dead"
        if not _agreed(what, "delete", yes=yes):
            return
        view = client.consumers.delete(name)
    _document(view, lambda: click.echo(f"deleted {name}"))


@consumer.command()
@click.argument("name")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1, 1_000), help="Most.")
@click.option("--wait", "wait_s", type=Span(), metavar="TIME", help="For the first one, up to 5m.")
@common
def pull(name: str, batch: int, wait_s: float | None) -> None:
    """Get messages; acknowledge them with `minoots consumer ack NAME DELIVERY...`."""
    from minoots.cli import show

    kept = settings()
    with kept.client() as client:
        messages = client.consumers.pull(name, batch, wait_s or 0)
    if kept.json:
        show.document({"messages": messages})
        return
    console = kept.console()
    for one in messages:
        line = show.event_line(one.event, utc=False, width=80)
        console.print(f"{one.delivery:<16} {line}", soft_wrap=True)
    if not messages:
        click.echo("no messages", err=True)


def _settling(verb: str, help: str, *options: Option) -> click.Command:
    @consumer.command(verb, help=help)
    @click.argument("name")
    @click.argument("deliveries", metavar="DELIVERY...", nargs=-1, required=True)
    @_with(options)
    @common
    def command(name: str, deliveries: tuple[str, ...], **more: Any) -> None:
        with settings().client() as client:
            verbs = client.consumers
            say: dict[str, Callable[..., Settled]] = {
                "ack": verbs.ack,
                "nack": verbs.nack,
                "progress": verbs.progress,
                "term": verbs.term,
            }
            settled = say[verb](name, deliveries, **more)
        _document(settled, lambda: click.echo(f"{verb}: {settled.count}"))
        for delivery in settled.stale:
            click.echo(f"{delivery} did not count: delivered again, or settled, before", err=True)
        if settled.stale:
            click.get_current_context().exit(FAILED)

    return command


_reason = click.option("--reason", default="", metavar="TEXT", help="Kept with a dead letter.")
_delay = click.option("--delay", metavar="TIME", help="Without it the backoff, or at once.")
_settling("ack", "Done.")
_settling("nack", "To be delivered again.", _delay, _reason)
_settling("progress", "Still at it: ack_wait begins anew.")
_settling("term", "Never again: dead-lettered.", _reason)


# ------------------------------------------------------------------------------- dead letters


@click.group()
def dlq() -> None:
    """Dead letters: what consumers could not do."""


@dlq.command("list")
@click.argument("name", metavar="CONSUMER")
@_with(_filters)
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="At most.")
@common
def dead_list(
    name: str, types: tuple[str, ...], labels: tuple[str, ...], name_prefix: str, limit: int
) -> None:
    """List a consumer's dead letters, oldest first."""
    from itertools import islice

    from minoots.cli import show

    kept = settings()
    with kept.client() as client:
        found = list(islice(client.dlq.list(name, _filter(types, labels, name_prefix)), limit))
    if kept.json:
        items = [
            {
                "id": dead.id,
                "attempts": dead.attempts,
                "reason": dead.reason,
                "at": dead.at,
                "event": dead.event.cloud_event(),
            }
            for dead in found
        ]
        show.document({"items": items})
        return
    shown = show.table("ID", "EVENT", "NAME", "TRIES>", "REASON", cut={"NAME": 20})
    for dead in found:
        kind = dead.event.type.removeprefix("timer.")
        row = (dead.id, kind, show.plain(dead.event.name), str(dead.attempts))
        shown.add_row(*row, show.plain(dead.reason))
    if found:
        kept.console().print(shown)
    else:
        click.echo("no dead letters", err=True)


def _filter(types: Sequence[str], labels: Sequence[str], name_prefix: str) -> dict[str, Any]:
    from minoots.watch import type_of

    kinds = [type_of(kind) for kind in types]
    return {"types": kinds, "labels": labels_of(labels), "name_prefix": name_prefix}


def _taking(verb: str, done: str, help: str) -> click.Command:
    @dlq.command(verb, help=help)
    @click.argument("which", metavar="ID...|CONSUMER", nargs=-1, required=True)
    @_with(_filters)
    @click.option("--dry-run", is_flag=True, help="Only say how many.")
    @click.option("--yes", is_flag=True, help="Do not ask.")
    @common
    def command(
        which: tuple[str, ...],
        types: tuple[str, ...],
        labels: tuple[str, ...],
        name_prefix: str,
        dry_run: bool,
        yes: bool,
    ) -> None:
        chosen = _chosen(which, _filter(types, labels, name_prefix))
        with settings().client() as client:
            take = {"redrive": client.dlq.redrive, "drop": client.dlq.drop}[verb]
            if dry_run or "ids" not in chosen:
                count = take(**chosen, dry_run=True)
                if dry_run:
                    _counted(count, f"would be {done}")
                    return
                if not count:
                    click.echo("no dead letter matches", err=True)
                    return
                if not _agreed(_letters(count) + " match", verb, yes=yes):
                    return
            _counted(take(**chosen), done)

    return command


def _chosen(which: tuple[str, ...], events: dict[str, Any]) -> dict[str, Any]:
    """By ids, which have a slash, or the consumer's that pass a filter. Raises ValueError."""
    names = [word for word in which if "/" not in word]
    if not names:
        if any(events.values()):
            raise ValueError("--type, --label and --name-prefix go with a consumer, not with ids")
        return {"ids": list(which)}
    if len(which) > 1:
        raise ValueError(f"{names[0]!r} is a consumer: name one, or only ids (CONSUMER/SEQ)")
    return {"consumer": which[0], "filter": events}


_taking("redrive", "delivered again", "Have dead letters delivered again, as often as before.")
_taking("drop", "dropped", "Forget dead letters.")


# ------------------------------------------------------------------------------- what is shared


def _document(value: Any, tell: Callable[[], object]) -> None:
    from minoots.cli import show

    if settings().json:
        show.document(value)
    else:
        tell()


def _letters(count: int) -> str:
    return f"{count} dead letter{'' if count == 1 else 's'}"


def _counted(count: int, done: str) -> None:
    _document({"count": count}, lambda: click.echo(f"{_letters(count)} {done}"))


def _agreed(what: str, verb: str, *, yes: bool) -> bool:
    """Whether it shall be done: by --yes, or by an answer on a terminal."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise click.UsageError(f"{what}; add --yes to {verb}")
    return click.confirm(f"{what}. {verb.capitalize()}?", err=True)


COMMANDS = (consumer, dlq)
