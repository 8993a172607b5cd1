"""The verbs that show events: watch (as they happen) and log (what has happened)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import click

from minoots.cli.options import event_filter_of, which_events
from minoots.cli.settings import Settings, Span, common, settings

if TYPE_CHECKING:
    from minoots.client import Client
    from minoots.event import Event
    from minoots.watch import Since, Watch
    from minoots.wire.bodies import EventFilter

POLL_S = 0.5
_PLACE = re.compile(r"(\d+):(\d+)")
_utc = click.option("--utc", is_flag=True, help="Exact instants instead of local times of day.")


def since_of(text: str, tz: str | None) -> Since:
    """`now`, `start`, EPOCH:SEQ, a duration ago, or an instant. Raises ValueError."""
    from minoots.cli.moments import ago_or_instant
    from minoots.transport import wall_ns

    if text in ("now", "start"):
        return text
    place = _PLACE.fullmatch(text)
    # 09:30 is a time of day; places are written with a zero-free epoch, and seqs may be short.
    if place and not re.fullmatch(r"[0-2]\d:[0-5]\d", text):
        return int(place[1]), int(place[2])
    return ago_or_instant(text, tz=tz, now_ns=wall_ns())


class _Printer:
    """Prints events as lines, JSON or for people."""

    def __init__(self, kept: Settings, *, utc: bool) -> None:
        self._json, self._utc = kept.json, utc
        self._console = None if kept.json else kept.console()

    def show(self, event: Event) -> None:
        from minoots.cli import show

        if self._console is None:
            show.json_line(event.cloud_event())
        else:
            line = show.event_line(event, utc=self._utc, width=self._console.width)
            self._console.print(line, soft_wrap=True)


@click.command()
@which_events
@click.option(
    "--since",
    default="now",
    metavar="T",
    help="now, start, an instant, 10m (ago), or EPOCH:SEQ.",
)
@click.option("--tz", metavar="ZONE", help="Of a local --since.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N events.")
@click.option("--for", "for_s", type=Span(), metavar="TIME", help="End after a while.")
@_utc
@common
def watch(
    pattern: str | None,
    types: tuple[str, ...],
    name: str | None,
    labels: tuple[str, ...],
    since: str,
    tz: str | None,
    count: int | None,
    for_s: float | None,
    utc: bool,
) -> None:
    """Show events as they leave the node: each once, none lost.

    FILTER is a name, or the beginning of names: 'backup-*'. With both --count and --for, fewer
    events than asked for are a failure (exit 1).
    """
    wanted, exact = event_filter_of(pattern, types, name, labels)
    start = since_of(since, tz)
    kept = settings()
    with kept.client() as client, client.watch(wanted, name=exact, since=start) as live:
        printer, shown = _Printer(kept, utc=utc), 0
        for event in _until(live, count, for_s):
            printer.show(event)
            shown += 1
    if count is not None and shown < count:
        click.get_current_context().exit(1)


def _until(live: Watch, count: int | None, for_s: float | None) -> Iterator[Event]:
    from minoots.transport import monotonic_s

    end_s = None if for_s is None else monotonic_s() + for_s
    shown = 0
    while count is None or shown < count:
        left_s = POLL_S if end_s is None else end_s - monotonic_s()
        if left_s <= 0:
            return
        event = live.poll(min(POLL_S, left_s))
        if event is not None:
            shown += 1
            yield event


@click.command("log")
@which_events
@click.option("--since", metavar="T", help="An instant, 10m (ago), EPOCH:SEQ; default: start.")
@click.option("--from-seq", type=click.IntRange(0), metavar="N", help="After event N.")
@click.option("--tz", metavar="ZONE", help="Of a local --since.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most N events.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes.")
@_utc
@common
def log_(
    pattern: str | None,
    types: tuple[str, ...],
    name: str | None,
    labels: tuple[str, ...],
    since: str | None,
    from_seq: int | None,
    tz: str | None,
    limit: int | None,
    follow: bool,
    utc: bool,
) -> None:
    """Show the events of the log, in order: what was decided, and when it fired."""
    wanted, exact = event_filter_of(pattern, types, name, labels)
    if since is not None and from_seq is not None:
        raise ValueError("--since and --from-seq both say where to begin; give one")
    start = since_of(since or "start", tz)
    kept = settings()
    with kept.client() as client:
        if from_seq is not None:
            start = (client.hello().epoch, from_seq)
        printer = _Printer(kept, utc=utc)
        for event in islice(_events(client, wanted, exact, start, follow), limit):
            printer.show(event)


def _events(
    client: Client, wanted: EventFilter, name: str | None, start: Since, follow: bool
) -> Iterable[Event]:
    if not follow:
        yield from client.replay(since=start, filter=wanted, name=name)
        return
    with client.watch(wanted, name=name, since=start) as live:
        yield from _until(live, None, None)


COMMANDS = (watch, log_)
