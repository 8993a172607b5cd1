"""Writing a bundle: the log since an earlier one, with the tables if there is none, and commands.

The log is copied as a backup is, beside a node that goes on firing (`edgenode/backup.py`). The book
is written before the file is put in its place: a number is never given to two bundles, and a file
that was never put is made good by `--since`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec

from edgenode.backup import back_up, node_id_of
from edgenode.bundles.book import Outgoing, Pages, Sent, book_of
from edgenode.bundles.keys import (
    BundleError,
    Keyring,
    Peer,
    PublicKey,
    SecretKey,
    check_node,
)
from edgenode.bundles.orders import Order, as_line
from edgenode.bundles.sealed import (
    FORMAT,
    PART_SUFFIX,
    Head,
    OrdersPart,
    Part,
    TakenIn,
    Writer,
    put,
    span,
    verify,
)
from edgenode.check import pieces
from edgenode.manifest import FORMAT as BACKUP_FORMAT
from edgenode.manifest import LOG_FILE, TABLES_FILE, Manifest, Progress, made_at
from engine._copy import StoreFiles
from engine.errors import StoreFailed
from engine.files import failed

WORK = "outgoing"  # in bundles/: what is being put together
LAST, ACKNOWLEDGED, START = "last", "acknowledged", "start"  # of --since, besides a number


@dataclass(frozen=True, slots=True)
class Wish:
    """What a bundle is to be. to: a node, "" for all. since: `last`, `acknowledged`, `start`, or
    the number of a bundle of the chain. orders: commands to add to those that wait. encrypted: to
    the recipient."""

    to: str = ""
    since: str = LAST
    orders: tuple[Order, ...] = ()
    with_log: bool = True
    encrypted: bool = True


def send(data_dir: Path, target: Path, wish: Wish, utc_ns: int, progress: Progress) -> Head:
    """Write the bundle `target`; what it says of itself.

    Raises BundleError, StoreFailed, StoreFull, StoreCorrupt, StoreTooNew; there is no file then.
    """
    keyring = Keyring(data_dir)
    key, node = keyring.own(), node_id_of(data_dir)
    if key.node != node:
        raise BundleError(
            f"the keys are of {key.node}, this node is {node or 'nameless'}; minoots keys new"
        )
    if wish.orders and not wish.to:
        raise BundleError("commands are for one node; name it with --to")
    peer = keyring.peer(check_node(wish.to)) if wish.to else None
    recipient = peer.key if peer is not None and wish.encrypted else None
    try:
        with book_of(data_dir) as pages:
            return _send(data_dir, target, wish, key, recipient, pages, utc_ns, progress)
    except OSError as error:
        raise failed(str(error.filename or target), error) from error


def _send(
    data_dir: Path,
    target: Path,
    wish: Wish,
    key: SecretKey,
    recipient: PublicKey | None,
    pages: Pages,
    utc_ns: int,
    progress: Progress,
) -> Head:
    if target.exists():
        raise BundleError(f"{target} exists; name another file")
    chain = pages.outgoing(wish.to)
    ready = _ready(target, chain, wish, key)
    if ready is not None:
        return ready
    since = _since(chain, wish.since)
    chain.orders.extend(wish.orders)
    work = pages.folder / WORK
    shutil.rmtree(work, ignore_errors=True)
    try:
        manifest = None
        if wish.with_log:
            manifest = _copy(data_dir, work, since, wish.since == LAST, utc_ns, progress)
        head = _head(data_dir, wish, key, pages, since, manifest, utc_ns)
        return _write(target, Writer(target, head, key, recipient), work, pages)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _ready(target: Path, chain: Outgoing, wish: Wish, key: SecretKey) -> Head | None:
    """Put a bundle in its place that is in the book, and was cut off before it was put. Raises
    BundleError if it has not the commands that are to be sent now."""
    part = target.with_name(target.name + PART_SUFFIX)
    if not part.exists() or not chain.sent:
        return None
    try:
        bundle = verify(part, {key.node: Peer(key.public, False)})
    except BundleError:
        return None  # it was not finished, and is not in the book
    if bundle.id != chain.sent[-1].id:
        return None
    put(target)
    sent = [as_line(order) for order in chain.orders]
    given = [as_line(order) for order in wish.orders]
    if given and given != sent[-len(given) :]:
        raise BundleError(
            f"{target} is there now: an export that was cut off, of other commands; export these "
            "into another file"
        )
    return bundle.head


def _since(chain: Outgoing, wanted: str) -> Sent | None:
    """The bundle that the new one goes on from; None: from the start."""
    if wanted == START or (wanted == LAST and not chain.sent):
        return None
    if wanted == LAST:
        return chain.sent[-1]
    number = chain.acknowledged if wanted == ACKNOWLEDGED else _number(wanted)
    for sent in chain.sent:
        if sent.number == number:
            return sent
    first, last = (chain.sent[0].number, chain.sent[-1].number) if chain.sent else (0, 0)
    raise BundleError(
        f"bundle {number} of this chain is not in the book, which has {first} to {last}; "
        f"--since {START} sends everything"
    )


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BundleError(
            f"--since is {text[:40]!r}; it is {LAST}, {ACKNOWLEDGED}, {START} or a bundle's number"
        )
    return int(text)


def _copy(
    data_dir: Path,
    work: Path,
    since: Sent | None,
    may_begin: bool,
    utc_ns: int,
    progress: Progress,
) -> Manifest:
    """The log since a bundle; where that is no longer possible, all of it if `may_begin`."""
    if since is not None and since.log is not None:
        log = since.log
        before = Manifest(BACKUP_FORMAT, "", "", since.epoch, since.made_at, log, None)
        try:
            return back_up(data_dir, work, before, utc_ns, progress)
        except StoreFailed:
            # Restored since, or trimmed beyond that; a disk that fails will fail again.
            if not may_begin:
                raise
    return back_up(data_dir, work, None, utc_ns, progress)


def _head(
    data_dir: Path,
    wish: Wish,
    key: SecretKey,
    pages: Pages,
    since: Sent | None,
    manifest: Manifest | None,
    utc_ns: int,
) -> Head:
    chain = pages.outgoing(wish.to)
    first = max(since.orders if since is not None else 0, chain.orders_first)
    number = chain.sent[-1].number + 1 if chain.sent else 1
    return Head(
        FORMAT,
        version("minoots"),
        key.node,
        key.public.fingerprint,
        wish.to,
        chain.chain,
        number,
        chain.sent[-1].id if chain.sent else "",
        made_at(utc_ns),
        manifest.epoch if manifest else 0,
        manifest.log if manifest else None,
        manifest.tables if manifest else None,
        _log_begins(data_dir) if manifest else 0,
        OrdersPart(first, chain.orders_end - first),
        _taken_in(pages, wish.to),
    )


def _log_begins(data_dir: Path) -> int:
    files = StoreFiles(data_dir)
    try:
        return files.ends().first_seq
    finally:
        files.close()


def _taken_in(pages: Pages, to: str) -> list[TakenIn]:
    """How far we are with the chains of a node, for it to know."""
    return [
        TakenIn(came.chain, came.number, came.orders, came.refused)
        for came in pages.book.incoming.values()
        if to and came.node == to
    ]


def _write(target: Path, writer: Writer, work: Path, pages: Pages) -> Head:
    head = writer.head
    chain = pages.outgoing(head.to)
    try:
        if head.log is not None:
            for items in pieces(work / LOG_FILE):
                writer.write(Part.LOG, items)
        if head.tables is not None:
            for items in pieces(work / TABLES_FILE):
                writer.write(Part.TABLES, items)
        for order in chain.orders[head.orders.first - chain.orders_first :]:
            writer.write(Part.ORDERS, as_line(order) + b"\n")
        name = writer.finish()
        before = chain.sent[-1] if chain.sent else None
        log, epoch = head.log, head.epoch
        if log is None and before is not None:
            log, epoch = before.log, before.epoch
        chain.sent.append(Sent(head.number, name, head.made_at, epoch, log, chain.orders_end))
        pages.save()
        put(target)
        return head
    finally:
        writer.leave()


def describe(head: Head) -> str:
    """A line for a person."""
    parts = []
    if head.log is not None and (head.log.events or head.tables is not None):
        what = "the whole log and its tables" if head.tables is not None else "the log"
        parts.append(f"{what}, {span('event', head.log.first_seq, head.log.last_seq)}")
    if head.orders.count:
        last = head.orders.first + head.orders.count - 1
        parts.append(span("command", head.orders.first, last))
    to = head.to or "all who know its key"
    sealed = "encrypted" if head.sealed else "signed, in the clear"
    return (
        f"bundle {head.number} of {head.from_} to {to} ({head.made_at}, {sealed}): "
        f"{'; '.join(parts) or 'nothing new'}"
    )


def as_json(head: Head) -> str:
    """For a program."""
    return msgspec.json.encode(head).decode()
