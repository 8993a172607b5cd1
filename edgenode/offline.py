"""What is done to the data directory of a stopped node: reindex, verify. Prints; returns the exit
code."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click

from engine.errors import EngineError
from engine.files import (
    catch_up,
    close_store,
    open_store,
    rebuild_tables,
    reindex_due,
    renewed_tables,
    verify_chain,
    verify_tables,
)
from engine.store import Applied


def reindex(data_dir: Path, *, tables: bool, accept_loss: bool = False) -> int:
    """Make the due index and the names anew from the timers; with `tables`, the timers too, even if
    the tables do not open.

    Timers whose log is trimmed stand in the tables alone: a rebuild would lose them, so it is
    refused once the log's head is gone, unless that loss is accepted.
    """
    if not data_dir.is_dir():
        click.echo(f"minoots: {data_dir} is not there; give --data", err=True)
        return 1
    try:
        with renewed_tables(data_dir) if tables else nullcontext(False) as renewed:
            applied = _reindex(data_dir, rebuild=tables and not renewed, accept_loss=accept_loss)
    except EngineError as error:
        click.echo(f"minoots: {error}", err=True)
        return 1
    if applied is None:
        return 1
    click.echo(f"reindexed {applied.live_count} timers as of event {applied.seq}")
    return 0


def _reindex(data_dir: Path, *, rebuild: bool, accept_loss: bool) -> Applied | None:
    """How far the tables are then; None if it was refused."""
    log, stored = open_store(data_dir)
    try:
        if rebuild:
            first_seq = log.state().first_seq
            if first_seq > 1 and not accept_loss:
                click.echo(
                    f"minoots: the log begins at event {first_seq}: timers that are older "
                    "stand in the tables alone and would be lost; restore a backup, or give "
                    "--accept-loss",
                    err=True,
                )
                return None
            lost = rebuild_tables(log, stored)
            if lost:
                click.echo(f"{lost} timers are older than the log; they have no row", err=True)
        catch_up(log, stored)
        reindex_due(stored)
        return stored.applied()
    finally:
        close_store(data_dir, log, stored)


def verify(data_dir: Path) -> int:
    """Recompute checksums and the hash chain over the whole log; count timers and indexes."""
    if not data_dir.is_dir():
        click.echo(f"minoots: {data_dir} is not there; give --data", err=True)
        return 1
    try:
        log, stored = open_store(data_dir)
        try:
            commits = sum(1 for _ in verify_chain(log))
            state = log.state()
            timers = verify_tables(stored)
        finally:
            close_store(data_dir, log, stored)
    except EngineError as error:
        click.echo(f"minoots: {error}", err=True)
        return 1
    kept = state.last_seq - state.first_seq + 1 if state.last_seq else 0
    click.echo(f"{kept} events in {commits} commits agree with their checksums and the hash chain")
    click.echo(f"{timers} timers in the tables agree with their indexes")
    return 0
