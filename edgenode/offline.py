"""What is done to a data directory without its node: reindex, verify, back up, restore. Prints;
returns the exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from edgenode.backup import back_up
from edgenode.check import check_backups, check_increment_alone
from edgenode.compact import compact
from edgenode.manifest import Manifest, read_manifest
from edgenode.restore import Restored, restore
from edgenode.verify import Verified, verify_store
from engine.clock import Clock
from engine.errors import EngineError
from engine.files import (
    catch_up,
    close_store,
    open_store,
    rebuild_tables,
    reindex_due,
    renewed_tables,
)
from engine.store import Applied
from minoots.wire.times import format_instant

PROGRESS_BYTES = 16 << 20


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
        aside = renewed_tables(data_dir, accept_loss=accept_loss)
        with aside if tables else nullcontext(False) as renewed:
            applied = _reindex(data_dir, tables=tables, renewed=renewed, accept_loss=accept_loss)
    except EngineError as error:
        click.echo(f"minoots: {error}", err=True)
        return 1
    if applied is None:
        return 1
    click.echo(f"reindexed {applied.live_count} timers as of event {applied.seq}")
    return 0


def _reindex(data_dir: Path, *, tables: bool, renewed: bool, accept_loss: bool) -> Applied | None:
    """How far the tables are then; None if it was refused."""
    log, stored = open_store(data_dir, renewed=renewed)
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
                return None
            lost = rebuild_tables(log, stored)
            if lost:
                click.echo(f"{lost} timers are older than the log; they have no row", err=True)
        catch_up(log, stored)
        reindex_due(stored)
        return stored.applied()
    finally:
        close_store(data_dir, log, stored)


def compact_in(data_dir: Path, *, as_json: bool = False) -> int:
    """Rewrite the files of a stopped node without their free pages."""

    def text(found: dict[str, int]) -> str:
        return f"{found['before']:,} bytes before, {found['after']:,} bytes now; verified"

    def made() -> dict[str, int]:
        before, after = compact(data_dir, progress_shown())
        return {"before": before, "after": after}

    return _tell(made, text, as_json)


def verify(data_dir: Path, *, as_json: bool = False) -> int:
    """Replay the whole log, and hold tables, indexes and consumers against it."""
    if not data_dir.is_dir():
        click.echo(f"minoots: {data_dir} is not there; give --data", err=True)
        return 1
    return _tell(lambda: verify_store(data_dir, progress_shown()), _verified_text, as_json)


def verify_backups(folders: list[Path], *, as_json: bool = False) -> int:
    """Read and replay backups: a full one and its increments, or one increment alone."""

    def check() -> dict[str, Any]:
        if len(folders) == 1 and read_manifest(folders[0]).tables is None:
            manifest, audit = check_increment_alone(folders[0], progress_shown())
            manifests = [manifest]
        else:
            manifests, audit = check_backups(folders, progress_shown())
        return {
            "backups": len(manifests),
            "events": audit.events,
            "commits": audit.commits,
            "rows": audit.rows,
            "first_seq": audit.from_seq,
            "last_seq": audit.last_seq,
            "chain": audit.chain.hex(),
        }

    def text(found: dict[str, Any]) -> str:
        return (
            f"{found['events']:,} events in {found['commits']:,} commits and {found['rows']:,} "
            f"rows of {found['backups']} backups agree: checksums, hash chain, states, sizes"
        )

    return _tell(check, text, as_json)


def backup(
    data_dir: Path, target: Path, since: Path | None, clock: Clock, *, as_json: bool = False
) -> int:
    """Write a backup, running node or not, and read it again."""

    def text(found: Manifest) -> str:
        log, size = found.log, found.log.bytes + (found.tables.bytes if found.tables else 0)
        what = "events" if found.tables is None else f"{found.tables.timers:,} timers, events"
        return (
            f"{target}: {what} {log.first_seq} to {log.last_seq} of {found.node_id or 'a node'}, "
            f"epoch {found.epoch}, {size:,} bytes, read again and replayed"
        )

    def made() -> Manifest:
        before = read_manifest(since) if since is not None else None
        return back_up(data_dir, target, before, clock.utc_ns(), progress_shown())

    with in_the_background():
        return _tell(made, text, as_json)


def restore_to(
    data_dir: Path, folders: list[Path], clock: Clock, epoch: int, *, as_json: bool = False
) -> int:
    """Restore backups into an empty data directory, and tell what the next start will do."""

    def text(found: Restored) -> str:
        lines = [
            f"restored {found.timers:,} timers of {found.manifest.node_id or 'a node'} as of event "
            f"{found.verified.last_seq} into {data_dir}; the epoch is {found.epoch} now",
            "clients with a cursor of an earlier epoch are told so, and start from a snapshot",
        ]
        if found.overdue:
            lines.append(
                f"{found.overdue:,} timers are overdue, the oldest since "
                f"{format_instant(found.since_ns)}: the next start holds them, unless "
                "overdue.policy says otherwise; `minoots overdue` shows them, fires or skips them"
            )
        else:
            lines.append("no timer is overdue")
        lines.append(
            "what fired after the backup was made fires again, with the same dedupe key: the old "
            "node must not run any more"
        )
        return "\n".join(lines)

    return _tell(lambda: restore(folders, data_dir, clock, epoch, progress_shown()), text, as_json)


def _verified_text(found: Verified) -> str:
    text = (
        f"{found.events:,} events in {found.commits:,} commits agree with their checksums, the "
        f"hash chain and the moves of their timers; so do {found.receipts:,} receipts, "
        f"{found.rows:,} rows, {found.dues + found.names:,} index entries and "
        f"{found.consumers:,} consumers"
    )
    if found.first_seq > 1:
        text += (
            f"; the log begins at event {found.first_seq}: older timers stand in the tables alone"
        )
    return text


T = TypeVar("T")


def _tell(what: Callable[[], T], text: Callable[[T], str], as_json: bool) -> int:
    """Do it and print what came of it; the exit code."""
    try:
        found = what()
    except EngineError as error:
        click.echo(f"minoots: {error}", err=True)
        return 1
    finally:
        if sys.stderr.isatty():
            click.echo("\r\x1b[K", err=True, nl=False)
    click.echo(msgspec.json.encode(found).decode() if as_json else text(found))
    return 0


def progress_shown() -> Callable[[str, int], None]:
    """What shows on a terminal how far a long piece of work is."""
    if not sys.stderr.isatty():
        return lambda what, size: None
    told = [0]

    def show(what: str, size: int) -> None:
        if abs(size - told[0]) >= PROGRESS_BYTES:
            told[0] = size
            click.echo(f"\r\x1b[K{what}: {size >> 20:,} MiB", err=True, nl=False)

    return show


@contextmanager
def in_the_background() -> Iterator[None]:
    """Have this process run only when nobody else wants to: fires are no later then beside it,
    which `nice` does not achieve."""
    before = os.sched_getscheduler(0)
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, before, os.sched_param(0))
