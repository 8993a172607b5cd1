"""`minoots top`: the figures of a running node, again and again in place."""

from __future__ import annotations

import threading
from typing import Any

import click

from minoots.cli.settings import common, settings

CLEAR = "\x1b[H\x1b[J"  # home, and erase to the end


def page(now: dict[str, Any], before: dict[str, Any] | None, seconds: float) -> str:
    """One page: what there is, and what has come since `before`, `seconds` ago."""

    def rate(*path: str) -> str:
        if before is None or seconds <= 0:
            return "-"
        return f"{(_at(now, path) - _at(before, path)) / seconds:,.0f}/s"

    late, turn, log = now["lateness_us"], now["turn_us"], now["log"]
    lines = [
        f"timers    {now['timers']['pending']:>14,} pending {now['timers']['armed']:>12,} armed",
        f"fires     {now['fires']['total']:>14,} total   {rate('fires', 'total'):>12}"
        f" {now['fires']['late']:>10,} late",
        f"lateness  {late['p50']:>11,} us p50 {late['p99']:>10,} us p99 {late['max']:>10,} us max",
        f"turn      {turn['p50']:>11,} us p50 {turn['p99']:>10,} us p99"
        f" {now['lead_us']:>10,} us lead",
        f"log       {log['seq']:>14,} events  {rate('log', 'seq'):>12} {log['epoch']:>10,} epoch",
    ]
    return "\n".join(lines)


def _at(found: dict[str, Any], path: tuple[str, ...]) -> float:
    value: Any = found
    for name in path:
        value = value[name]
    return float(value)


@click.command()
@click.option("--every", "seconds", default=1.0, show_default=True, help="Seconds between pages.")
@click.option("--once", is_flag=True, help="Print one page and end.")
@common
def top(seconds: float, once: bool) -> None:
    """Show the node's figures as they change; Ctrl-C ends it."""
    from minoots.cli import show
    from minoots.transport import monotonic_s

    kept = settings()
    if seconds < 0.1:
        raise click.BadParameter("is below 0.1", param_hint="--every")
    pause = threading.Event()  # never set: Ctrl-C ends the wait
    with kept.client() as client:
        before: dict[str, Any] | None = None
        before_s = 0.0
        while True:
            now, now_s = client.stats(), monotonic_s()
            if kept.json:
                show.json_line(now)
            else:
                clear = "" if once else CLEAR
                click.echo(clear + page(now, before, now_s - before_s))
            if once:
                return
            before, before_s = now, now_s
            pause.wait(seconds)


COMMANDS = (top,)
