"""What is done to the data directory of a stopped node: reindex, verify. Prints; returns the exit
code."""

from __future__ import annotations

from pathlib import Path

import click

from engine.errors import EngineError
from engine.files import (
    catch_up,
    close_store,
    open_store,
    rebuild_tables,
    reindex_due,
    verify_chain,
)


def reindex(data_dir: Path, *, tables: bool, accept_loss: bool = False) -> int:
    """Make the due index and the names anew from the timers; with `tables`, the timers too.

    Timers whose log is trimmed stand in the tables alone: a rebuild would lose them, so it is
    refused once the log's head is gone, unless that loss is accepted.
    """
    if not data_dir.is_dir():
        click.echo(f"minoots: {data_dir} is not there; give --data", err=True)
        return 1
    try:
        log, stored = open_store(data_dir)
        try:
            if tables:
                first_seq = log.state().first_seq
                if first_seq > 1 and not accept_loss:
                    click.echo(
                        f"minoots: the log begins at event {first_seq}: timers that are older "
                        "stand in the tables alone and would be lost; restore a backup, or give "
                        "--accept-loss",
                        err=True,
                    )
                    return 1
                lost = rebuild_tables(log, stored)
                if lost:
                    click.echo(f"{lost} timers are older than the log; they have no row", err=True)
            catch_up(log, stored)
            reindex_due(stored)
            applied = stored.applied()
        finally:
            close_store(data_dir, log, stored)
    except EngineError as error:
        click.echo(f"minoots: {error}", err=True)
        return 1
    click.echo(f"reindexed {applied.live_count} timers as of event {applied.seq}")
    return 0


def verify(data_dir: Path) -> int:
    """Recompute checksums and the hash chain over the whole log."""
    if not data_dir.is_dir():
        click.echo(f"minoots: {data_dir} is not there; give --data", err=True)
        return 1
    try:
        log, stored = open_store(data_dir)
        try:
            commits = sum(1 for _ in verify_chain(log))
            state = log.state()
        finally:
            close_store(data_dir, log, stored)
    except EngineError as error:
        click.echo(f"minoots: {error}", err=True)
        return 1
    kept = state.last_seq - state.first_seq + 1 if state.last_seq else 0
    click.echo(f"{kept} events in {commits} commits agree with their checksums and the hash chain")
    return 0
