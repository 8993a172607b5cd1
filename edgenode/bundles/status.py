"""What there is of bundles on this node: for `minoots bundle list`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgenode.bundles.book import read_book
from edgenode.bundles.picture import pictures
from edgenode.bundles.sealed import span
from engine._copy import StoreFiles


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of bundles. number: the newest; acknowledged: that the other side has told it has.
    orders: commands of it that are done; waiting: that are not, as far as is known."""

    node: str
    number: int
    made_at: str
    acknowledged: int
    orders: int
    waiting: int
    refused: list[int]


@dataclass(frozen=True, slots=True)
class View:
    """The picture of a node: as of an event, and an instant."""

    node: str
    made_at: str
    epoch: int
    last_seq: int
    timers: int
    gaps: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Status:
    """All of it."""

    sent: list[Chain]
    taken_in: list[Chain]
    pictures: list[View]


def status(data_dir: Path) -> Status:
    """Raises BundleError, StoreCorrupt, StoreFailed."""
    book = read_book(data_dir)
    sent = [
        Chain(
            out.to,
            out.sent[-1].number if out.sent else 0,
            out.sent[-1].made_at if out.sent else "",
            out.acknowledged,
            out.orders_first,
            len(out.orders),
            out.refused,
        )
        for out in book.outgoing.values()
    ]
    came = [
        Chain(c.node, c.number, c.made_at, c.number, c.orders, 0, c.refused)
        for c in book.incoming.values()
    ]
    views = []
    for picture in pictures(data_dir):
        place = picture.place()
        if place is None:
            continue
        files = StoreFiles(picture.store)
        try:
            timers = files.standing().live_count
        finally:
            files.close()
        seen = book.pictures.get(picture.node)
        made_at, gaps = (seen.made_at, seen.gaps) if seen else ("", [])
        views.append(View(picture.node, made_at, place.epoch, place.last_seq, timers, gaps))
    return Status(sent, came, views)


def lines(found: Status) -> list[str]:
    """For a person."""
    told = []
    for chain in found.sent:
        told.append(
            f"to {chain.node or 'all'}: {chain.number} bundles, the newest {chain.made_at}; "
            f"{chain.acknowledged or 'none'} acknowledged; {chain.orders} commands done, "
            f"{chain.waiting} waiting{_refused(chain.refused)}"
        )
    for chain in found.taken_in:
        told.append(
            f"from {chain.node}: taken in to bundle {chain.number} ({chain.made_at}); "
            f"{chain.orders} commands done{_refused(chain.refused)}"
        )
    for view in found.pictures:
        gaps = ", ".join(span("event", *gap) for gap in view.gaps)
        told.append(
            f"picture of {view.node}: {view.timers:,} timers as of event {view.last_seq} of epoch "
            f"{view.epoch}, {view.made_at}{f'; without {gaps}' if gaps else ''}"
        )
    return told or ["no bundle was sent or taken in here"]


def _refused(numbers: list[int]) -> str:
    return f", refused: {', '.join(map(str, numbers))}" if numbers else ""
