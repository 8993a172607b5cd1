"""Print the manual page of `minoots` (roff, section 1), from the help of its verbs.

python packaging/man.py > build/minoots.1
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version

import click

from minoots.cli import cli

importlib.import_module("edgenode.__main__")  # adds the verbs of the node to `cli`


def escaped(text: str) -> str:
    """Text that roff takes for nothing else."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line[:1] in (".", "'") else line for line in text.split("\n"))


def paragraphs(text: str) -> str:
    """A help text; what click is not to wrap (after a \\b) is not filled here either."""
    found = []
    for block in text.strip().split("\n\n"):
        if block.startswith("\b"):
            found.append(".nf\n" + escaped(block.lstrip("\b\n")) + "\n.fi")
        else:
            found.append(escaped(" ".join(block.split())))
    return "\n.PP\n".join(found)


def options(command: click.Command) -> list[str]:
    """Each option with its help; options that every verb has stand once, in the program's part."""
    lines = []
    context = click.Context(command)
    shared = [option.get_help_record(context) for option in cli.params]
    for param in command.params:
        record = param.get_help_record(context)
        if isinstance(param, click.Option) and record and (command is cli or record not in shared):
            lines += [".TP", f".B {escaped(record[0])}", escaped(record[1])]
    return lines


def page() -> str:
    """The whole manual page."""
    lines = [
        f'.TH MINOOTS 1 "" "minoots {version("minoots")}" "User Commands"',
        ".SH NAME",
        "minoots \\- durable timers",
        ".SH SYNOPSIS",
        ".B minoots",
        "[OPTIONS] COMMAND [ARGS]...",
        ".SH DESCRIPTION",
        paragraphs(cli.help or ""),
        ".SH OPTIONS",
        *options(cli),
        ".SH COMMANDS",
    ]
    for name in sorted(cli.commands):
        lines += verb(name, cli.commands[name])
    lines += [
        ".SH EXIT STATUS",
        "0 done, 1 refused or failed, 2 usage, 78 the configuration cannot be used, 130 Ctrl\\-C.",
    ]
    return "\n".join(lines) + "\n"


def verb(name: str, command: click.Command) -> list[str]:
    """One verb, or a group and the verbs in it."""
    usage = command.collect_usage_pieces(click.Context(command, info_name=name))
    lines = [f".SS minoots {escaped(name)} {escaped(' '.join(usage))}"]
    lines += [paragraphs(command.help or ""), *options(command)]
    if isinstance(command, click.Group):
        for inner in sorted(command.commands):
            lines += verb(f"{name} {inner}", command.commands[inner])
    return lines


if __name__ == "__main__":
    sys.stdout.write(page())
