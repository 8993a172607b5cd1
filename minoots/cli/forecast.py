"""forecast: how many fires are to come, as bars or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from minoots.cli.options import labels_of
from minoots.cli.settings import Settings, common, settings

if TYPE_CHECKING:
    from minoots.verbs import Forecast

BINS_SHOWN = 60  # at most, where the size of a bin is not given
STEPS = ("1s", "5s", "10s", "30s", "1m", "5m", "10m", "30m", "1h", "6h", "1d", "7d")
TAIL = (" ", "▏", "▎", "▍", "▌", "▋", "▊", "▉")  # eighths of a cell
CELLS_MAX = 60  # of a bar
ROW_WIDTH = 30  # of what stands beside it: an instant, and space; a count comes to that
EMPTY_ROWS = 3  # from here on empty bins in a row are one line


@click.command()
@click.option("--from", "start", metavar="T", help="An instant; without it now.")
@click.option("--to", "end", metavar="T", default="1h", show_default=True, help="Or within 1h.")
@click.option("--bin", "width", metavar="TIME", help="second, minute, hour, day, or 15m.")
@click.option("--by", metavar="LABEL", help="Count by the values of a label too.")
@click.option("--name-prefix", metavar="TEXT", default="", help="Names that begin so.")
@click.option("--label", "labels", metavar="K=V", multiple=True, help="May be repeated.")
@common
def forecast(
    start: str | None,
    end: str,
    width: str | None,
    by: str | None,
    name_prefix: str,
    labels: tuple[str, ...],
) -> None:
    """Show how many fires are to come, and when.

    \b
    minoots forecast --to 24h --bin hour
    minoots forecast --from 09:00 --to 10:00 --by team
    """
    from minoots.arguments import timer_filter
    from minoots.cli import show
    from minoots.cli.moments import instant_of
    from minoots.transport import wall_ns
    from minoots.wire.times import SECOND, format_instant, parse_duration, parse_instant

    kept, now_ns = settings(), wall_ns()
    whole_ns = now_ns // SECOND * SECOND
    start = format_instant(whole_ns) if start is None else instant_of(start, tz=None, now_ns=now_ns)
    try:
        end = format_instant(parse_instant(start) + parse_duration(end))
    except ValueError:
        end = instant_of(end, tz=None, now_ns=now_ns)
    width = width or width_for(parse_instant(end) - parse_instant(start))
    wanted = timer_filter(labels=labels_of(labels), name_prefix=name_prefix)
    with kept.client() as client:
        found = client.forecast(end, start=start, bin=width, by=by, filter=wanted)
    if kept.json:
        show.document(found)
    else:
        _print(found, by, kept)


def width_for(length_ns: int) -> str:
    """A bin of which no more than BINS_SHOWN make the length."""
    from minoots.wire.times import parse_duration

    for step in STEPS:
        if parse_duration(step) * BINS_SHOWN >= length_ns:
            return step
    return STEPS[-1]


def bar(count: int, most: int, cells: int) -> str:
    """A bar of at most `cells` cells, to an eighth; something for whatever is not 0."""
    eighths = -(-count * cells * 8 // most) if most else 0
    return "█" * (eighths // 8) + TAIL[eighths % 8].strip()


def _print(found: Forecast, by: str | None, kept: Settings) -> None:
    from minoots.cli import moments, show
    from minoots.wire.times import parse_duration, parse_instant

    console = kept.console()
    from_ns, width_ns = parse_instant(found.from_), parse_duration(found.bin)
    cells = min(max(console.width - ROW_WIDTH - len(str(found.total)), 8), CELLS_MAX)
    shown = show.table("FROM", "FIRES>", "")
    most = max(found.bins)
    for at, run in _rows(found.bins):
        when = moments.exact(from_ns + at * width_ns)
        if run > 1:
            shown.add_row(when, "0", f"{run} times {found.bin}")
        else:
            shown.add_row(when, str(found.bins[at]), bar(found.bins[at], most, cells))
    console.print(shown)
    if by is not None:
        _print_groups(found, by, kept, cells)
    peak = f", at most {most} in {found.bin}" if most else ""
    click.echo(f"{found.total} fires{peak}")


def _rows(bins: list[int]) -> list[tuple[int, int]]:
    """(bin, how many empty ones stand in its row) of each row."""
    rows: list[tuple[int, int]] = []
    at = 0
    while at < len(bins):
        end = at
        while end < len(bins) and not bins[end]:
            end += 1
        if end - at >= EMPTY_ROWS:
            rows.append((at, end - at))
        else:
            rows += [(empty, 1) for empty in range(at, end)]
            rows += [(end, 1)] if end < len(bins) else []
            end += 1
        at = end
    return rows


def _print_groups(found: Forecast, by: str, kept: Settings, cells: int) -> None:
    from minoots.cli import show

    console = kept.console()
    shown = show.table(by.upper(), "FIRES>", "", cut={by.upper(): show.NAME_WIDTH_MAX})
    rows = [(group.value, group.total) for group in found.groups]
    if found.others is not None:
        rows.append(("(others)", found.others.total))
    most = max((total for _, total in rows), default=0)
    for value, total in rows:
        name = "(none)" if value is None else show.plain(value)
        shown.add_row(name, str(total), bar(total, most, cells))
    console.print(shown)


COMMANDS = (forecast,)
