"""The `minoots` program: the client's verbs, and those that need the node's own code.

The one place that may import everything; heavy imports wait until a verb needs them, so that
`minoots --help` is quick.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgenode.bundles.cli import commands as bundle_commands
from minoots.cli import cli

if TYPE_CHECKING:
    from edgenode.bundles.orders import Carrier, Order

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: a service manager need not try again


def _fail(message: str, code: int = EXIT_FAILED) -> None:
    click.echo(f"minoots: {message}", err=True)
    sys.exit(code)


def _load_config(config: str | None, flags: dict[str, str]) -> object:
    from edgenode import config as configs

    try:
        return configs.load(configs.config_file(config), os.environ, flags)
    except configs.ConfigError as error:
        for fault in error.faults:
            click.echo(f"minoots: {fault}", err=True)
        sys.exit(EXIT_CONFIG)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}", EXIT_CONFIG)
    return None


@cli.command("run")
@click.option("--data", metavar="DIR", help="Data directory.")
@click.option("--config", metavar="FILE", help="Configuration file (TOML).")
@click.option("--control", metavar="ENDPOINT", help="Control door, e.g. tcp://127.0.0.1:0.")
@click.option("--stream", metavar="ENDPOINT", help="Stream door.")
@click.option("--events", metavar="ENDPOINT", help="Events door.")
@click.option("--json", "as_json", is_flag=True, help="Log JSON lines.")
@click.option(
    "--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"])
)
def run_command(
    data: str | None,
    config: str | None,
    control: str | None,
    stream: str | None,
    events: str | None,
    as_json: bool,
    log_level: str,
) -> None:
    """Run a node until SIGTERM or SIGINT."""
    from edgenode.config import Config, data_dir
    from edgenode.doors.zeromq import DoorError
    from edgenode.logs import say, setup
    from edgenode.serve import serve
    from engine.errors import EngineError

    given = {"doors.control": control, "doors.stream": stream, "doors.events": events}
    loaded = _load_config(config, {key: text for key, text in given.items() if text is not None})
    assert isinstance(loaded, Config)
    setup(json=as_json, level=log_level)
    if sys.stderr is not None:
        faulthandler.enable()  # a file cut short beneath us ends the process: SIGBUS is to say so
    try:
        serve(loaded, data_dir(data))
    except (EngineError, DoorError, OSError) as error:
        say("error", "cannot_serve", error=error)
        sys.exit(EXIT_FAILED)


@cli.command("check-config")
@click.option("--config", metavar="FILE", help="Configuration file (TOML).")
@click.option("--describe", is_flag=True, help="Print every key, its default, range and meaning.")
@click.option("--example", is_flag=True, help="Print a file with every key at its default.")
def check_config(config: str | None, describe: bool, example: bool) -> None:
    """Check the configuration: exit 0, or 78 with every fault."""
    from edgenode import config as configs

    if example:
        click.echo(configs.example(), nl=False)
        return

    if describe:
        for name, default, span, meaning in configs.describe():
            click.echo(f"{name} = {default}  # {span}: {meaning}")
        return
    _load_config(config, {})
    click.echo("the configuration is good")


@cli.command("demo")
@click.option("--seconds", default=8.0, show_default=True, help="How long it goes on.")
def demo_command(seconds: float) -> None:
    """Start an ephemeral node, schedule a few timers, show their events as they fire."""
    from minoots.cli.demo import demo

    sys.exit(demo(seconds))


@cli.command("bench")
@click.argument(
    "what",
    type=click.Choice(
        [
            *("wheel", "store", "turn", "node", "jitter", "recovery", "growth", "consumers"),
            *("backup", "exchange", "peers", "all"),
        ]
    ),
)
@click.option("--small", is_flag=True, help="End within seconds: to see that it runs.")
@click.option(
    "--large",
    is_flag=True,
    help="wheel, recovery, growth: up to ten million timers (6 GB of disk).",
)
@click.option("--out", metavar="DIR", help="Write WHAT.json, its plot and its page there.")
def bench_command(what: str, small: bool, large: bool, out: str | None) -> None:
    """Measure the wheel, the store, the turn, a whole node, how late it fires, how it restarts,
    grows, is backed up and exchanges bundles, on this machine.

    `peers` runs the same work on other timer services, as far as they are installed; it is not
    part of `all`. Fails if a timer fired early.
    """
    try:
        from bench.command import run
    except ImportError:
        _fail("the benches are not here: pip install 'minoots[bench]'; no binary holds them")

    found = run(what, small=small, large=large, out=Path(out) if out else None)
    early = sum(result.get("early", 0) for result in found.values())
    if early:
        _fail(f"{early} timers fired before they were due")


@cli.command("doctor")
@click.option("--data", metavar="DIR", help="Data directory, as for run.")
@click.option("--config", metavar="FILE", help="Configuration file (TOML).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor_command(data: str | None, config: str | None, as_json: bool) -> None:
    """Look whether this machine is fit to run a node: exit 0, or 1 if something fails."""
    from edgenode import doctor
    from edgenode.config import Config, data_dir
    from edgenode.machine import gather

    loaded = _load_config(config, {})
    assert isinstance(loaded, Config)
    found = doctor.findings(gather(loaded, data_dir(data)))
    click.echo(doctor.as_json(found) if as_json else "\n".join(doctor.as_lines(found)))
    sys.exit(0 if doctor.sound(found) else EXIT_FAILED)


@cli.command("support-bundle")
@click.argument("target", metavar="FILE.tar.gz")
@click.option("--data", metavar="DIR", help="Data directory, as for run.")
@click.option("--config", metavar="FILE", help="Configuration file (TOML).")
@click.option("--log", metavar="FILE", help="The node's log lines, of which the last go in.")
def support_command(target: str, data: str | None, config: str | None, log: str | None) -> None:
    """Write what somebody who helps needs to know, without payloads, names and secrets."""
    from edgenode.config import Config, data_dir
    from edgenode.machine import gather
    from edgenode.support import write_bundle
    from minoots.client import Client
    from minoots.wire.problems import MinootsError

    loaded = _load_config(config, {})
    assert isinstance(loaded, Config)
    place = data_dir(data)
    try:
        with Client(data=str(place), timeout=2.0) as client:
            stats = client.stats()
    except (MinootsError, OSError) as error:
        stats = {"error": str(error)}
    try:
        names = write_bundle(
            Path(target), loaded, place, gather(loaded, place), stats, Path(log) if log else None
        )
    except OSError as error:
        _fail(f"{error.filename or target}: {error.strerror}")
    click.echo(f"{target}: {', '.join(names)}; look through it before you send it")


@cli.command("sizing")
@click.option("--timers", metavar="N", required=True, help="Pending timers: 50000, 1k, 50M, 2G.")
@click.option("--payload", metavar="BYTES", default="200", show_default=True, help="JSON of each.")
@click.option("--rate", metavar="N", default="0", help="Timers made and fired a second, besides.")
@click.option("--config", metavar="FILE", help="Configuration file (TOML): retention, horizon.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def sizing_command(timers: str, payload: str, rate: str, config: str | None, as_json: bool) -> None:
    """Tell what size of machine a node needs: memory, disk, time to start and to fill."""
    from edgenode import sizing
    from edgenode.config import Config

    loaded = _load_config(config, {})
    assert isinstance(loaded, Config)
    given = {"--timers": timers, "--payload": payload, "--rate": rate}
    numbers = []
    for flag, text in given.items():
        try:
            numbers.append(sizing.parse_count(text))
        except ValueError as error:
            _fail(f"{flag}: {error}", EXIT_USAGE)
    known = sizing.load()
    try:
        found = sizing.size(known, loaded, *numbers)
    except ValueError as error:
        _fail(str(error), EXIT_USAGE)
    click.echo(sizing.to_json(known, found) if as_json else sizing.to_text(known, loaded, found))


@cli.command("reindex")
@click.option("--data", metavar="DIR", help="Data directory of a node that is stopped.")
@click.option("--tables", is_flag=True, help="Rebuild the tables too, as far as the log reaches.")
@click.option("--accept-loss", is_flag=True, help="... though the log's head is trimmed.")
def reindex_command(data: str | None, tables: bool, accept_loss: bool) -> None:
    """Rebuild the due index and the names from the timers; the node must be stopped."""
    from edgenode.config import data_dir
    from edgenode.offline import reindex

    sys.exit(reindex(data_dir(data), tables=tables, accept_loss=accept_loss))


@cli.command("verify")
@click.option("--data", metavar="DIR", help="Data directory of a node that is stopped.")
@click.option(
    "--from-backup",
    "backups",
    metavar="DIR",
    multiple=True,
    help="Check a backup instead; again for each increment on top of it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify_command(data: str | None, backups: tuple[str, ...], as_json: bool) -> None:
    """Replay the whole log, and compare the tables with what comes of it: exit 0 if all agrees.

    The first difference is told with its place. The node must be stopped; a backup can be checked
    beside it.
    """
    from edgenode.config import data_dir
    from edgenode.offline import verify, verify_backups

    if backups:
        sys.exit(verify_backups([Path(name) for name in backups], as_json=as_json))
    sys.exit(verify(data_dir(data), as_json=as_json))


@cli.command("compact")
@click.option("--data", metavar="DIR", help="Data directory of a node that is stopped.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compact_command(data: str | None, as_json: bool) -> None:
    """Rewrite the files of a stopped node without the pages that are free in them."""
    from edgenode.config import data_dir
    from edgenode.offline import compact_in

    sys.exit(compact_in(data_dir(data), as_json=as_json))


@cli.command("backup")
@click.argument("target", metavar="TO")
@click.option("--data", metavar="DIR", help="Data directory of the node, which may run.")
@click.option("--since", metavar="DIR", help="An earlier backup: write only the log since then.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def backup_command(target: str, data: str | None, since: str | None, as_json: bool) -> None:
    """Back up a node into the new directory TO, while it goes on firing.

    Runs on the node's machine, as its user or root. What was written is read again and replayed.
    """
    from edgenode.config import data_dir
    from edgenode.offline import backup
    from engine.clock import OsClock

    before = Path(since) if since else None
    sys.exit(backup(data_dir(data), Path(target), before, OsClock(), as_json=as_json))


@cli.command("restore")
@click.argument("backups", metavar="BACKUP [INCREMENT]...", nargs=-1, required=True)
@click.option("--data", metavar="DIR", help="Data directory, which has no store yet.")
@click.option("--epoch", default=0, metavar="N", help="The new epoch; without it the next one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def restore_command(backups: tuple[str, ...], data: str | None, epoch: int, as_json: bool) -> None:
    """Restore a backup, and the increments on top of it in order, into an empty data directory.

    All of it is checked before anything is written. The epoch is raised, so that no reader of the
    log takes it for the one it knew.
    """
    from edgenode.config import data_dir
    from edgenode.offline import restore_to
    from engine.clock import OsClock

    folders = [Path(name) for name in backups]
    sys.exit(restore_to(data_dir(data), folders, OsClock(), epoch, as_json=as_json))


@contextmanager
def _carrier(data: Path) -> Iterator[Carrier]:
    """What carries the commands of a bundle to the node that serves from `data`."""
    from edgenode.bundles.keys import BundleError
    from edgenode.bundles.orders import Outcome
    from minoots import verbs
    from minoots.client import Client
    from minoots.wire.problems import MinootsError, Refused

    with ExitStack() as opened:
        clients: list[Client] = []

        def carry(order: Order, idem: str) -> Outcome:
            try:
                if not clients:  # a bundle without commands needs no node
                    clients.append(opened.enter_context(Client(data=str(data))))
                asked = verbs.command(order.op, bytes(order.body), order.if_match)
                clients[0].call(asked, idem=idem)
            except Refused as refused:
                if refused.retryable:
                    raise BundleError(f"the node takes no commands now: {refused}") from refused
                return Outcome(refused.code, refused.detail)
            except MinootsError as error:
                raise BundleError(
                    f"its commands wait, import it again when the node runs: {error}"
                ) from error
            return Outcome("", "")

        yield carry


for _command in bundle_commands(_carrier, _load_config):
    cli.add_command(_command)


def main() -> None:
    """The entry point."""
    cli(prog_name="minoots")


if __name__ == "__main__":
    main()
