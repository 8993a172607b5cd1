"""`minoots work NAME -- command`: runs a command for each message of a durable consumer."""

from __future__ import annotations

import shutil
from typing import Any

import click

from minoots.cli.consumers import config_given, config_options
from minoots.cli.settings import Span, common, settings

EX_DATAERR, EX_CONFIG = 65, 78
FAILED = 1


@click.command()
@click.argument("name", metavar="CONSUMER")
@click.argument("command", metavar="-- COMMAND...", nargs=-1, type=click.UNPROCESSED, required=True)
@click.option("--concurrency", default=1, show_default=True, type=click.IntRange(1, 1_000))
@click.option("--run-for", "limit_s", type=Span(), metavar="TIME", help="Kill it after a while.")
@click.option("--delay", metavar="TIME", help="Until it comes again after exit 75.")
@click.option(
    "--give-up",
    "hopeless",
    multiple=True,
    type=click.IntRange(1, 255),
    default=(EX_DATAERR, EX_CONFIG),
    show_default=True,
    help="Exit statuses that dead-letter it; may be repeated.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="End after N messages.")
@config_options
@common
def work(
    name: str,
    command: tuple[str, ...],
    concurrency: int,
    limit_s: float | None,
    delay: str | None,
    hopeless: tuple[int, ...],
    limit: int | None,
    **config: Any,
) -> None:
    """Run a command for each message; its exit status says what becomes of it.

    The event's JSON is on its standard input. MINOOTS_EVENT_ID, MINOOTS_DEDUPEKEY, MINOOTS_ATTEMPT,
    MINOOTS_TYPE, MINOOTS_NAME and MINOOTS_CONSUMER are in its environment.

    \b
    exit 0       done
    exit 75      to be delivered again, after --delay
    exit 65, 78  dead-lettered (--give-up says others)
    any other    to be delivered again, after the backoff

    With options of `minoots consumer create` the consumer is made if it is not there. SIGTERM and
    Ctrl-C begin nothing new and wait for what runs; a second one kills it.

    \b
    minoots work mailer --type expired --concurrency 4 -- ./send-mail
    """
    import asyncio

    from minoots.arguments import duration_text
    from minoots.cli.runner import Runner

    if shutil.which(command[0]) is None:
        raise ValueError(f"there is no command {command[0]!r}")
    if delay is not None:
        duration_text(delay)
    kept = settings()
    runner = Runner(name, command, hopeless, limit_s=limit_s, delay=delay, limit=limit, kept=kept)
    wanted = concurrency if limit is None else min(concurrency, limit)
    if asyncio.run(runner.run(wanted, config_given(**config))):
        click.get_current_context().exit(FAILED)


COMMANDS = (work,)
