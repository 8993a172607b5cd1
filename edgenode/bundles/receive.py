"""Taking a bundle in.

The file is copied to our own disk first, and its signature checked there; then it is asked what
would have to be done, and whether all of it can be; only then anything is. What is in it is told
apart by place, not by file: events by their commit, commands by their number. So a bundle that
comes twice does nothing, one that overlaps with another adds what is new, and what is missing is
known exactly.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from edgenode.bundles.book import Incoming, Pages, Seen, UnderWay
from edgenode.bundles.keys import BundleError, Keyring
from edgenode.bundles.orders import Carrier, Order, carry_out, read_orders
from edgenode.bundles.picture import Picture, Place
from edgenode.bundles.sealed import Bundle, Head, Part, read_head, span, verify
from edgenode.manifest import (
    DIRECTORY_MODE,
    FORMAT,
    LOG_FILE,
    TABLES_FILE,
    LogPart,
    Manifest,
    Progress,
    write_manifest,
)

WORK = "incoming"  # in bundles/: the file that is taken in
COPY = "bundle"


class Step(Enum):
    """What is to be done with the log of a bundle."""

    NOTHING = "nothing"
    BEGIN = "begin"
    EXTEND = "extend"
    BRIDGE = "bridge"


@dataclass(frozen=True, slots=True)
class Ways:
    """What else may be done. accept_gap: go on though something is missing. accept_repeat: carry
    commands out that may have been already. log_only: leave commands alone."""

    accept_gap: bool = False
    accept_repeat: bool = False
    log_only: bool = False


@dataclass(slots=True)
class Taken:
    """What came of a bundle. events, orders: that were new; refused: by our node, with the number
    of each; gap: the events [from, to] that the picture lacks since."""

    from_: str
    number: int
    id: str
    made_at: str
    events: int = 0
    last_seq: int = 0
    orders: int = 0
    refused: list[dict[str, object]] = field(default_factory=list)
    gap: tuple[int, int] | None = None

    @property
    def is_news(self) -> bool:
        """Whether anything was new."""
        return bool(self.events or self.orders)


@dataclass(frozen=True, slots=True)
class _Plan:
    step: Step
    place: Place | None
    orders_from: int


class Receiver:
    """Takes bundles in, one after the other.

    node: who we are. carry: sends commands to our node. idem_keep_ns: how long it keeps keys.
    """

    def __init__(
        self,
        data_dir: Path,
        node: str,
        pages: Pages,
        carry: Carrier,
        ways: Ways,
        utc_ns: int,
        idem_keep_ns: int,
        progress: Progress,
    ) -> None:
        self._data_dir, self._node, self._pages = data_dir, node, pages
        self._keyring = Keyring(data_dir)
        self._carry, self._ways = carry, ways
        self._utc_ns, self._idem_keep_ns = utc_ns, idem_keep_ns
        self._progress = progress
        self._work = pages.folder / WORK

    def take_in(self, path: Path) -> Taken:
        """Take one in. Raises BundleError, StoreCorrupt, StoreTooNew, StoreFailed, StoreFull,
        OSError, and what the carrier raises: the commands before that are done and noted."""
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(DIRECTORY_MODE)
        try:
            copy = self._work / COPY
            shutil.copyfile(path, copy)
            bundle = verify(copy, self._keyring.peers())
            Picture(self._data_dir, bundle.head.from_).settle()
            came = self._came(bundle.head)
            plan = self._plan(bundle, came)
            orders = self._orders(bundle)  # all are read before anything is done
            taken = Taken(came.node, bundle.head.number, bundle.id, bundle.head.made_at)
            self._take_log(bundle, plan, taken)
            if not self._ways.log_only:
                self._take_orders(bundle.head, came, orders, plan.orders_from, taken)
            self._note(bundle, came)
            return taken
        finally:
            shutil.rmtree(self._work, ignore_errors=True)

    def _came(self, head: Head) -> Incoming:
        """The chain that a bundle is of."""
        known = self._pages.book.incoming.get(head.chain)
        if known is not None and (known.node, known.to) != (head.from_, head.to):
            raise BundleError(f"chain {head.chain[:32]} is one of {known.node} to {known.to}")
        return known or Incoming(head.from_, head.to, head.chain)

    # What is to be done, and whether it can be.

    def _plan(self, bundle: Bundle, came: Incoming) -> _Plan:
        head = bundle.head
        if head.to and head.to != self._node:
            raise BundleError(f"it is for {head.to[:64]}; this node is {self._node}")
        self._check_chain(bundle, came)
        step, place = self._log_step(head)
        return _Plan(step, place, self._orders_from(bundle, came))

    def _check_chain(self, bundle: Bundle, came: Incoming) -> None:
        """Two bundles with one number, or another before this one than the one that came: the
        sender's book was put back, or somebody else has its key."""
        head = bundle.head
        same = came.ids.get(head.number, bundle.id) == bundle.id
        follows = head.previous == came.ids.get(head.number - 1, head.previous)
        if not (same and follows):
            other = head.number if not same else head.number - 1
            raise BundleError(
                f"another bundle {other} of {head.from_} has been taken in, of the same chain: its "
                "book was put back to an earlier state, or somebody else signs with its key"
            )

    def _log_step(self, head: Head) -> tuple[Step, Place | None]:
        log = head.log
        if log is None:
            return Step.NOTHING, None
        place = Picture(self._data_dir, head.from_).place()
        if place is not None and head.epoch < place.epoch:
            return Step.NOTHING, place
        if place is not None and head.epoch == place.epoch:
            seen = self._pages.book.pictures.get(head.from_)
            heals = head.tables is not None and seen is not None and bool(seen.gaps)
            if log.last_commit < place.commit or (log.last_commit == place.commit and not heals):
                return Step.NOTHING, place
            if heals:
                return Step.BEGIN, place
            if log.first_commit <= place.commit + 1:
                return Step.EXTEND, place
        if head.tables is not None:
            return Step.BEGIN, place
        if place is not None and head.epoch == place.epoch and self._ways.accept_gap:
            return Step.BRIDGE, place
        raise BundleError(self._log_gap(head, log, place))

    def _log_gap(self, head: Head, log: LogPart, place: Place | None) -> str:
        begins = f"it begins at event {log.first_seq} of epoch {head.epoch}"
        came = self._pages.book.incoming.get(head.chain)
        since = came.number if came is not None and came.number else "start"
        remedy = f"--since {since} on {head.from_} sends what is missing"
        if place is None:
            return f"{begins}, and there is no picture of {head.from_} yet; ask for --since start"
        if place.epoch != head.epoch:
            return (
                f"{begins}, the picture is of epoch {place.epoch}: {head.from_} was restored in "
                "between; ask for --since start"
            )
        missing = span("event", place.last_seq + 1, log.first_seq - 1)
        return f"{begins}, without {missing}; {remedy}, or --accept-gap"

    def _orders_from(self, bundle: Bundle, came: Incoming) -> int:
        """The number of the first command that is new."""
        head, orders = bundle.head, bundle.head.orders
        if not orders.count or self._ways.log_only or orders.first + orders.count <= came.orders:
            return came.orders
        if not head.to:
            raise BundleError("it has commands, and is for nobody in particular")
        if not bundle.peer.may_command:
            raise BundleError(
                f"it has commands, and {head.from_} may not command this node: minoots keys trust "
                "--may-command, or --log-only"
            )
        if orders.first > came.orders and not self._ways.accept_gap:
            raise BundleError(
                f"it lacks {span('command', came.orders, orders.first - 1)}; --since "
                f"{came.number or 'start'} on {head.from_} sends what is missing, or --accept-gap "
                "leaves it out for ever"
            )
        self._check_repeat(came)
        return max(came.orders, orders.first)

    def _check_repeat(self, came: Incoming) -> None:
        under_way = came.under_way
        if under_way is None or self._ways.accept_repeat:
            return
        age_ns = self._utc_ns - under_way.since_ns
        if not 0 <= age_ns < self._idem_keep_ns:
            raise BundleError(
                f"an import was cut off at command {under_way.first}, longer ago than the node "
                "keeps idempotency keys: it or some after it may have been carried out; look, then "
                "--accept-repeat"
            )

    # Doing it.

    def _frames(self, bundle: Bundle, *parts: Part) -> Iterator[tuple[Part, bytes]]:
        key = self._keyring.own() if self._keyring.has_own() else None
        for part, data in bundle.frames(key):
            if part in parts:
                yield part, data

    def _orders(self, bundle: Bundle) -> list[Order]:
        """The commands that are inside. Raises BundleError, also where it does not open."""
        lines = b"".join(data for _, data in self._frames(bundle, Part.ORDERS)).split(b"\n")
        orders = read_orders(lines)
        if len(orders) != bundle.head.orders.count:
            raise BundleError(
                f"it has {len(orders)} commands, its head says {bundle.head.orders.count}"
            )
        return orders

    def _take_log(self, bundle: Bundle, plan: _Plan, taken: Taken) -> None:
        head, log = bundle.head, bundle.head.log
        picture = Picture(self._data_dir, head.from_)
        if log is None or plan.step is Step.NOTHING:
            taken.last_seq = plan.place.last_seq if plan.place else 0
            return
        seen = self._pages.book.pictures.setdefault(head.from_, Seen(head.made_at))

        def items() -> Iterator[bytes]:
            return (data for _, data in self._frames(bundle, Part.LOG))

        if plan.step is Step.BEGIN:
            self._begin(bundle, picture)
            taken.events, seen.gaps = log.events, []
        elif plan.step is Step.EXTEND:
            taken.events = picture.extend(log, items, head.log_begins, self._progress)
        else:
            taken.gap = picture.bridge(log, items, self._progress)
            seen.gaps.append(taken.gap)
            taken.events = log.events
        taken.last_seq, seen.made_at = log.last_seq, head.made_at

    def _begin(self, bundle: Bundle, picture: Picture) -> None:
        head = bundle.head
        assert head.log is not None
        backup = self._work / "backup"
        backup.mkdir(DIRECTORY_MODE)
        with (backup / LOG_FILE).open("wb") as log, (backup / TABLES_FILE).open("wb") as tables:
            for part, data in self._frames(bundle, Part.LOG, Part.TABLES):
                (log if part is Part.LOG else tables).write(data)
        manifest = Manifest(
            FORMAT, head.program, head.from_, head.epoch, head.made_at, head.log, head.tables
        )
        write_manifest(backup, manifest)
        picture.begin(backup, self._progress)

    def _take_orders(
        self, head: Head, came: Incoming, orders: list[Order], first: int, taken: Taken
    ) -> None:
        wanted = orders[first - head.orders.first :] if head.orders.count else []
        if not wanted:
            return
        self._pages.book.incoming[came.chain] = came

        def done(number: int) -> None:
            came.orders, came.under_way = number, UnderWay(number, self._utc_ns)
            self._pages.save()

        done(first)
        carried = carry_out(came.chain, first, wanted, self._carry, done, self._utc_ns)
        for number, outcome in carried:
            taken.orders += 1
            if outcome.code:
                came.refused.append(number)
                taken.refused.append(
                    {"number": number, "code": outcome.code, "detail": outcome.detail}
                )
        came.under_way = None

    def _note(self, bundle: Bundle, came: Incoming) -> None:
        """Write down that it has been taken in, and what its sender has of ours."""
        head = bundle.head
        self._pages.book.incoming[came.chain] = came
        if head.number >= came.number:
            came.number, came.made_at = head.number, head.made_at
        came.ids[head.number] = bundle.id
        for has in head.taken_in:
            for chain in self._pages.book.outgoing.values():
                if chain.chain != has.chain or chain.to != head.from_:
                    continue
                if has.number >= chain.acknowledged:
                    chain.acknowledged, chain.refused = has.number, has.refused
                done = min(max(has.orders - chain.orders_first, 0), len(chain.orders))
                del chain.orders[:done]
                chain.orders_first += done
        self._pages.save()


def in_order(paths: list[Path]) -> list[Path]:
    """Files in the order in which they were written; those that are no bundles first."""
    return sorted(paths, key=_place_of)


def _place_of(path: Path) -> tuple[str, str, str, int]:
    with suppress(BundleError, OSError), path.open("rb") as file:
        head = read_head(file)
        return head.from_, head.to, head.made_at, head.number
    return "", "", "", 0
