"""The client's verbs of the `minoots` program: a click group that the program extends.

Exit codes: 0 done, 1 refused or failed (the problem on stderr), 2 usage, 130 for Ctrl-C. A reader
that goes away (`| head`) ends a verb quietly.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from minoots.cli import (
    about,
    bulk,
    changes,
    consumers,
    events,
    explain,
    finding,
    forecast,
    overdue,
    top,
    work,
)
from minoots.cli.settings import Settings, common

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130


class Program(click.Group):
    """The group; it turns what the client raises into exit codes, whoever calls it."""

    def invoke(self, ctx: click.Context) -> Any:
        ctx.ensure_object(Settings)
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            _leave_pipe()
            ctx.exit(0)
        except Exception as error:
            self._tell(ctx, error)
        else:
            return result

    def _tell(self, ctx: click.Context, error: Exception) -> None:
        from minoots.wire.problems import MinootsError

        if not isinstance(error, MinootsError):
            raise error
        from minoots.cli import refusals

        refusals.tell(error, as_json=ctx.ensure_object(Settings).json)
        ctx.exit(EXIT_FAILED)


def _leave_pipe() -> None:
    # What is still buffered would fail again when Python ends; let it go nowhere.
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@common
def cli() -> None:
    """Durable timers: schedule them, watch them fire, and read what happened."""


_ROOMS = (changes, bulk, finding, forecast, explain, events, consumers, work, about, top, overdue)
for _command in (command for room in _ROOMS for command in room.COMMANDS):
    cli.add_command(_command)

__all__ = ["cli"]
