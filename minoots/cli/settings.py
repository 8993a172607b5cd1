"""What holds for every verb of the command line: where the node is, how long to wait, how to show.

Each of these options may stand before or after the verb. Imports nothing heavy: the client, and
rich, are loaded when a verb needs them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

if TYPE_CHECKING:
    from rich.console import Console

    from minoots.client import Client

F = TypeVar("F", bound=Callable[..., Any])

VIEW_MODULE = "edgenode.bundles.view"  # found by name: this package depends on nothing of it
PIPED_COLUMNS = 1_000  # a table that no terminal shows is not cut


@dataclass(slots=True)
class Settings:
    """The options that hold for every verb."""

    control: str | None = None
    data: str | None = None
    picture: str | None = None
    timeout_s: float = 5.0
    json: bool = False
    colour: bool = True

    def client(self) -> Client:
        """A client of the node that is meant, or of the picture of one. Raises Unreachable."""
        from minoots.client import Client

        if self.picture is not None:
            from minoots.testing import client_of

            view = import_module(VIEW_MODULE).open_picture(self.data, self.picture)
            return client_of(view)
        return Client(self.control, data=self.data, timeout=self.timeout_s)

    def console(self) -> Console:
        """Where tables go: as wide as the terminal, uncut when there is none."""
        from rich.console import Console

        terminal = sys.stdout.isatty()
        plain = not self.colour or bool(os.environ.get("NO_COLOR"))
        wide = None if terminal or os.environ.get("COLUMNS") else PIPED_COLUMNS
        made = Console(
            file=sys.stdout, no_color=plain, highlight=False, width=wide, soft_wrap=False
        )
        # rich would exit 1; the program ends quietly when its reader goes away.
        made.on_broken_pipe = _reader_gone  # type: ignore[method-assign]
        return made


def _reader_gone() -> None:
    raise BrokenPipeError


def settings() -> Settings:
    """The settings of the running verb."""
    found = click.get_current_context().find_object(Settings)
    assert found is not None, "every command runs under the program's group"
    return found


def seconds(text: str) -> float:
    """Seconds of `10s`, `1h30m`, or a bare number. Raises ValueError."""
    from minoots.wire.times import SECOND, parse_duration

    try:
        return float(text)
    except ValueError:
        return parse_duration(text) / SECOND


class Span(click.ParamType):  # type: ignore[type-arg]  # generic only from click 8.2 on
    """An option that takes a length of time, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            length_s = seconds(value) if isinstance(value, str) else float(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not 0 < length_s < float("inf"):
            self.fail(f"{value} is not above 0", param, ctx)
        return length_s


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    kept = ctx.find_object(Settings) or ctx.ensure_object(Settings)
    if value is not None and param.name is not None:
        setattr(kept, param.name, value)


def common(command: F) -> F:
    """Add the options that hold for every verb; a command reads them by `settings()`.

    What the client says about arguments that make no sense, a ValueError, becomes a usage error.
    """

    @wraps(command)
    def checked(*args: Any, **given: Any) -> Any:
        try:
            return command(*args, **given)
        except ValueError as error:
            raise click.UsageError(str(error), click.get_current_context()) from None

    return _with_options(cast(F, checked))


def _with_options(command: F) -> F:
    for names, more in reversed(_OPTIONS):
        command = click.option(*names, expose_value=False, callback=_keep, **more)(command)
    return command


_OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (
        ("--control",),
        {"metavar": "ENDPOINT", "help": "The node's control door: tcp://HOST:PORT."},
    ),
    (("--data",), {"metavar": "DIR", "help": "The data directory of a node on this machine."}),
    (
        ("--picture",),
        {"metavar": "NODE", "help": "Look at the picture of NODE that bundles made here."},
    ),
    (
        ("--timeout", "timeout_s"),
        {"type": Span(), "metavar": "TIME", "help": "How long to try, such as 5s."},
    ),
    (
        ("--json", "json"),
        {"is_flag": True, "default": None, "help": "Print JSON: a document, or lines."},
    ),
    (
        ("--no-color", "colour"),
        {"flag_value": False, "default": None, "help": "No colours (or set NO_COLOR)."},
    ),
)
