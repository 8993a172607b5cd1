"""`minoots bundle` and `minoots keys`. Prints; ends with the exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

FAILED = 1
# Makes what sends commands to the node that serves from a data directory, and closes it after.
CarrierOf = Callable[[Path], Any]
LoadConfig = Callable[[str | None, dict[str, str]], Any]

_data = click.option("--data", metavar="DIR", help="Data directory of this node, as for run.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@contextmanager
def _telling() -> Iterator[None]:
    """What is refused or fails goes to stderr, and the exit code is 1."""
    from engine.errors import EngineError

    try:
        yield
    except (EngineError, OSError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            text = f"{error.filename}: {error.strerror}"
        click.echo(f"minoots: {text}", err=True)
        sys.exit(FAILED)
    finally:
        if sys.stderr.isatty():
            click.echo("\r\x1b[K", err=True, nl=False)


def _place(data: str | None) -> Path:
    from edgenode.config import data_dir

    return data_dir(data)


def _print(document: object) -> None:
    import msgspec

    click.echo(msgspec.json.encode(document).decode())


# ------------------------------------------------------------------------------------------ keys


@click.group("keys")
def keys() -> None:
    """The keys that bundles are signed and encrypted with."""


@keys.command("new")
@_data
@click.option("--replace", is_flag=True, help="... though this node has keys already.")
def keys_new(data: str | None, replace: bool) -> None:
    """Make keys for this node, and print the public one: a line that others are to trust."""
    with _telling():
        from edgenode.backup import node_id_of
        from edgenode.bundles.keys import BundleError, Keyring

        place = _place(data)
        node = node_id_of(place)
        if not node:
            raise BundleError(f"no node has run in {place}; start it once, or give --data")
        key = Keyring(place).make(node, replace=replace).public
        click.echo(str(key))
        click.echo(f"fingerprint {key.fingerprint}: read it to whoever trusts it", err=True)


@keys.command("show")
@_data
def keys_show(data: str | None) -> None:
    """Print this node's public key."""
    with _telling():
        from edgenode.bundles.keys import Keyring

        key = Keyring(_place(data)).own().public
        click.echo(str(key))
        click.echo(f"fingerprint {key.fingerprint}", err=True)


@keys.command("trust")
@click.argument("file", metavar="FILE", type=click.File("r"))
@_data
@click.option("--may-command", is_flag=True, help="Carry out the commands in its bundles.")
@click.option("--replace", is_flag=True, help="... though another key is known for that node.")
def keys_trust(file: Any, data: str | None, may_command: bool, replace: bool) -> None:
    """Trust the public key in FILE (`-`: of stdin): take in the bundles of its node."""
    with _telling():
        from edgenode.bundles.keys import Keyring, read_public

        key = read_public(file.read(4_096))
        Keyring(_place(data)).trust(key, may_command=may_command, replace=replace)
        may = "; it may command this node" if may_command else ""
        click.echo(f"{key.node} is trusted by the key {key.fingerprint}{may}")


@keys.command("list")
@_data
@_json
def keys_list(data: str | None, as_json: bool) -> None:
    """The nodes that are trusted."""
    with _telling():
        from edgenode.bundles.keys import Keyring

        found = [
            {"node": node, "fingerprint": peer.key.fingerprint, "may_command": peer.may_command}
            for node, peer in Keyring(_place(data)).peers().items()
        ]
        if as_json:
            _print(found)
            return
        for each in found:
            may = "may command" if each["may_command"] else "picture only"
            click.echo(f"{each['node']}  {each['fingerprint']}  {may}")


@keys.command("forget")
@click.argument("node", metavar="NODE")
@_data
def keys_forget(node: str, data: str | None) -> None:
    """Trust a node no longer; its picture stays."""
    with _telling():
        from edgenode.bundles.keys import Keyring

        Keyring(_place(data)).forget(node)
        click.echo(f"{node} is trusted no longer")


# ---------------------------------------------------------------------------------------- bundles


@click.group("bundle")
def bundle() -> None:
    """Exchange with nodes that no network joins: signed files, carried by hand."""


@bundle.command("export")
@click.argument("target", metavar="FILE")
@_data
@click.option("--to", default="", metavar="NODE", help="Encrypt it to this node alone.")
@click.option(
    "--since",
    default="last",
    show_default=True,
    metavar="WHICH",
    help="Go on from the `last` bundle, the last `acknowledged` one, the `start`, or number N.",
)
@click.option(
    "--commands",
    metavar="FILE",
    type=click.File("rb"),
    help='Commands for NODE, one a line: {"op": "timer.schedule", "body": {...}}.',
)
@click.option("--valid-for", metavar="TIME", help="These are not carried out later than that.")
@click.option("--without-log", is_flag=True, help="Commands alone: tell nothing of this node.")
@click.option("--plain", is_flag=True, help="Sign it, but do not encrypt it.")
@_json
def bundle_export(
    target: str,
    data: str | None,
    to: str,
    since: str,
    commands: Any,
    valid_for: str | None,
    without_log: bool,
    plain: bool,
    as_json: bool,
) -> None:
    """Write what is new here since the bundle before into FILE, while the node goes on firing."""
    with _telling():
        from edgenode.bundles import send
        from edgenode.bundles.orders import read_orders
        from edgenode.offline import in_the_background, progress_shown
        from engine.clock import OsClock
        from minoots.wire.times import format_instant, parse_duration

        try:
            valid_ns = parse_duration(valid_for) if valid_for else 0
        except ValueError as error:
            raise click.UsageError(f"--valid-for: {error}") from error
        utc_ns = OsClock().utc_ns()
        until = format_instant(utc_ns + valid_ns) if valid_ns else ""
        orders = tuple(read_orders(commands or (), until))
        wish = send.Wish(to, since, orders, with_log=not without_log, encrypted=not plain)
        with in_the_background():
            head = send.send(_place(data), Path(target), wish, utc_ns, progress_shown())
        click.echo(send.as_json(head) if as_json else f"{target}: {send.describe(head)}")


def _import_with(carrier_of: CarrierOf, load: LoadConfig) -> click.Command:
    @click.command("import")
    @click.argument("files", metavar="FILE...", nargs=-1, required=True)
    @_data
    @click.option("--config", metavar="FILE", help="Configuration file (TOML) of this node.")
    @click.option("--accept-gap", is_flag=True, help="Go on though something before is missing.")
    @click.option(
        "--accept-repeat", is_flag=True, help="Carry out commands that may have been already."
    )
    @click.option("--log-only", is_flag=True, help="Leave commands alone.")
    @_json
    def command(
        files: tuple[str, ...],
        data: str | None,
        config: str | None,
        accept_gap: bool,
        accept_repeat: bool,
        log_only: bool,
        as_json: bool,
    ) -> None:
        """Take in bundles of other nodes, in any order, as often as you like.

        The log in one makes the picture of its node longer; its commands go to this node, which
        must run. Of several files the older ones go first.
        """
        with _telling():
            from edgenode.bundles.receive import Ways

            ways = Ways(accept_gap, accept_repeat, log_only)
            keep_ns = load(config, {}).log.idem_keep
            _import(_place(data), files, ways, keep_ns, carrier_of, as_json)

    return command


def _import(
    place: Path,
    files: tuple[str, ...],
    ways: Any,
    keep_ns: int,
    carrier_of: CarrierOf,
    as_json: bool,
) -> None:
    from edgenode.backup import node_id_of
    from edgenode.bundles.book import book_of
    from edgenode.bundles.keys import BundleError
    from edgenode.bundles.receive import Receiver, in_order
    from edgenode.offline import progress_shown
    from engine.clock import OsClock

    with book_of(place) as pages, carrier_of(place) as carry:
        utc_ns = OsClock().utc_ns()
        shown = progress_shown()
        receiver = Receiver(place, node_id_of(place), pages, carry, ways, utc_ns, keep_ns, shown)
        for path in in_order([Path(name) for name in files]):
            try:
                taken = receiver.take_in(path)
            except BundleError as error:
                raise BundleError(f"{path}: {error}") from error
            if as_json:
                _print(taken)
                continue
            click.echo(f"{path}: {_told(taken)}")
            for refused in taken.refused:
                click.echo(
                    f"  command {refused['number']} was refused: {refused['code']}: "
                    f"{refused['detail']}",
                    err=True,
                )


def _told(taken: Any) -> str:
    from edgenode.bundles.sealed import span

    if not taken.is_news:
        return f"bundle {taken.number} of {taken.from_} holds nothing that is new here"
    parts = []
    if taken.events:
        first = taken.last_seq - taken.events + 1
        parts.append(f"{span('event', first, taken.last_seq)} taken in")
    if taken.gap:
        parts.append(f"{span('event', *taken.gap)} missing")
    if taken.orders:
        parts.append(f"commands carried out: {taken.orders:,}, refused: {len(taken.refused)}")
    return f"bundle {taken.number} of {taken.from_} ({taken.made_at}): {'; '.join(parts)}"


@bundle.command("show")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@_data
@_json
def bundle_show(file: Path, data: str | None, as_json: bool) -> None:
    """What a bundle says of itself, if its signature is good."""
    with _telling():
        from edgenode.bundles.keys import BundleError, Keyring, Peer
        from edgenode.bundles.sealed import verify
        from edgenode.bundles.send import as_json as text_of
        from edgenode.bundles.send import describe

        keyring = Keyring(_place(data))
        peers = keyring.peers()
        if keyring.has_own():
            own = keyring.own().public
            peers[own.node] = Peer(own, False)
        try:
            found = verify(file, peers)
        except BundleError as error:
            raise BundleError(f"{file}: {error}") from error
        click.echo(text_of(found.head) if as_json else f"{describe(found.head)}; {found.id}")


@bundle.command("list")
@_data
@_json
def bundle_list(data: str | None, as_json: bool) -> None:
    """Chains that were sent and taken in, and the pictures of other nodes."""
    with _telling():
        from edgenode.bundles.status import lines, status

        found = status(_place(data))
        if as_json:
            _print(found)
            return
        for line in lines(found):
            click.echo(line)


@bundle.command("forget")
@click.argument("node", metavar="NODE")
@_data
@click.option("--yes", is_flag=True, help="Do not ask.")
def bundle_forget(node: str, data: str | None, yes: bool) -> None:
    """Remove the picture of a node. What of its commands is done stays noted."""
    with _telling():
        from edgenode.bundles.book import book_of
        from edgenode.bundles.picture import picture_of

        picture = picture_of(_place(data), node)
        if not yes and not (sys.stdin.isatty() and click.confirm(f"Remove the picture of {node}?")):
            raise click.UsageError("nothing was removed; give --yes")
        with book_of(_place(data)) as pages:
            picture.forget()
            pages.book.pictures.pop(node, None)
            pages.save()
        click.echo(f"the picture of {node} is removed; a bundle from the start makes a new one")


@bundle.command("restart")
@click.argument("node", metavar="[NODE]", default="")
@_data
@click.option("--yes", is_flag=True, help="Do not ask.")
def bundle_restart(node: str, data: str | None, yes: bool) -> None:
    """Begin the chain of bundles to NODE (without: to all) anew: the next one holds everything.

    Commands that it has not acknowledged are dropped: some of them may have been carried out.
    """
    with _telling():
        from edgenode.bundles.book import book_of
        from edgenode.bundles.keys import BundleError

        with book_of(_place(data)) as pages:
            chain = pages.book.outgoing.get(node)
            if chain is None:
                raise BundleError(f"no bundle was written to {node or 'all'} here")
            what = f"The chain to {node or 'all'} has {len(chain.orders)} commands that wait."
            if not yes and not (sys.stdin.isatty() and click.confirm(f"{what} Begin anew?")):
                raise click.UsageError(f"{what} Nothing was changed; give --yes")
            pages.book.outgoing.pop(node)
            pages.save()
        click.echo(f"{len(chain.orders)} commands are dropped; the next bundle begins a new chain")


def commands(carrier_of: CarrierOf, load: LoadConfig) -> tuple[click.Command, ...]:
    """The two groups. carrier_of: how commands reach our own node; load: how its configuration is
    read, or the program ends."""
    bundle.add_command(_import_with(carrier_of, load))
    return bundle, keys
