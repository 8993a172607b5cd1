"""The verbs about the node and this program: hello, ping, stats, health, time-sync, clock,
schema, version, completion."""

from __future__ import annotations

import sys

import click

from minoots.cli.settings import common, settings


@click.command()
@common
def hello() -> None:
    """Show who the node is, its limits and doors."""
    from minoots.cli import show

    kept = settings()
    with kept.client() as client:
        found = client.hello()
    import msgspec

    if kept.json:
        show.document(found)
    else:
        show.pairs(show.flat(msgspec.to_builtins(found)), kept)


@click.command()
@click.option("--count", default=5, show_default=True, type=click.IntRange(1), help="How many.")
@common
def ping(count: int) -> None:
    """Measure the way to the node and back."""
    from minoots.cli import show

    kept = settings()
    with kept.client() as client:
        found = client.hello()  # the first one also connects
        taken_us = sorted(round(client.ping() * 1_000_000) for _ in range(count))
    if kept.json:
        show.document({"node_id": found.node_id, "version": found.version, "us": taken_us})
        return
    click.echo(
        f"node {found.node_id} ({found.version}): {count} answers, "
        f"min {taken_us[0] / 1000:.2f} ms, median {taken_us[count // 2] / 1000:.2f} ms, "
        f"max {taken_us[-1] / 1000:.2f} ms"
    )


@click.command()
@common
def stats() -> None:
    """Show the node's figures: timers, fires, lateness, log."""
    from minoots.cli import show

    kept = settings()
    with kept.client() as client:
        found = client.stats()
    if kept.json:
        show.document(found)
    else:
        show.pairs(show.flat(found), kept)


@click.command()
@common
def health() -> None:
    """Say whether the node is well; exit 1 if it is not."""
    from minoots.cli import show

    kept = settings()
    with kept.client() as client:
        found = client.health()
    if kept.json:
        show.document(found)
    else:
        show.pairs(show.flat(found), kept)
    if found.get("status") != "ok":
        click.get_current_context().exit(1)


@click.command("time-sync")
@click.option("--samples", default=8, show_default=True, type=click.IntRange(1), help="How many.")
@common
def time_sync(samples: int) -> None:
    """Compare the node's clock with this machine's."""
    import msgspec

    from minoots.cli import show

    kept = settings()
    with kept.client() as client:
        found = client.time_sync(samples)
    if kept.json:
        show.document(msgspec.to_builtins(found))
        return
    click.echo(
        f"the node's clock is {found.offset_ns / 1_000:+.1f} us from ours, "
        f"give or take {max(found.delay_ns, 0) / 2_000:.1f} us "
        f"(best of {found.samples}; {found.delay_ns / 1_000:.1f} us there and back)"
    )


@click.command()
@click.option("--accept", is_flag=True, help="Believe UTC as the node's machine has it.")
@common
def clock(accept: bool) -> None:
    """Show what the node knows of its clock; accept UTC that was set by too much to be believed."""
    from minoots.cli import show

    kept = settings()
    with kept.client() as client:
        accepted = accept and client.time_accept()
        found = client.stats()["clock"]
    if kept.json:
        show.document({"accepted": accepted, **found})
        return
    show.pairs(show.flat(found), kept)
    if accept:
        click.echo("UTC is accepted" if accepted else "nothing to accept: UTC is not in doubt")


@click.command()
@click.argument("op", required=False)
@common
def schema(op: str | None) -> None:
    """Print the JSON Schema of a verb's body, such as timer.schedule, or of all."""
    from minoots.cli import show

    with settings().client() as client:
        show.document(client.schema(op))


@click.command()
@common
def version() -> None:
    """Show the version of this program and what it stands on."""
    import platform

    import minoots
    from minoots.cli import packed, show
    from minoots.transport import versions

    build = packed.build()
    found = {
        "minoots": minoots.__version__,
        "commit": build.get("commit", ""),
        "built": build.get("built", ""),
        "form": packed.form(),
        "protocol": "MZP/1",
        "python": platform.python_version(),
    } | versions()
    if settings().json:
        show.document(found)
    else:
        click.echo(
            f"minoots {found['minoots']} ({found['protocol']}; Python {found['python']}, "
            f"libzmq {found['libzmq']}; {found['form']}"
            + (f", commit {found['commit']} of {found['built']})" if build else ")")
        )


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes words in your shell.

    \b
    bash:  eval "$(minoots completion bash)"       in ~/.bashrc
    zsh:   eval "$(minoots completion zsh)"        in ~/.zshrc
    fish:  minoots completion fish | source        in ~/.config/fish/config.fish
    """
    from click.shell_completion import ShellComplete, get_completion_class

    found = get_completion_class(shell)
    assert found is not None, "click completes the three shells that are offered"
    root = click.get_current_context().find_root()
    writer = found(root.command, {}, root.info_name or "minoots", "_MINOOTS_COMPLETE")
    # click's bash class runs bash to learn its version; the script is the same in any case.
    sys.stdout.write(ShellComplete.source(writer) + "\n")


COMMANDS = (hello, ping, stats, health, time_sync, clock, schema, version, completion)
