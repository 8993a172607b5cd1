"""Nodes that exchange bundles, for tests: stores that move, and what each was told to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgenode.bundles.book import book_of
from edgenode.bundles.keys import BundleError, Keyring
from edgenode.bundles.orders import Carrier, Order, Outcome, read_orders
from edgenode.bundles.picture import Picture
from edgenode.bundles.receive import Receiver, Taken, Ways
from edgenode.bundles.sealed import Head
from edgenode.bundles.send import Wish, send
from edgenode.config import NODE_ID_FILE
from tests.unit.churn import churning

NOW_NS = 1_800_000_000 * 10**9
HOUR_NS = 3600 * 10**9
DAY_NS = 24 * HOUR_NS


def quiet(what: str, size: int) -> None:
    assert what
    assert size >= 0


class Site:
    """A node that others know, and what its own node was told to do."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.data = name, folder / name
        self.data.mkdir(exist_ok=True)
        (self.data / NODE_ID_FILE).write_text(f"{name}\n")
        self.ring = Keyring(self.data)
        self.key = self.ring.make(name)
        self.done: list[tuple[str, bytes, str]] = []
        self.refuses: set[int] = set()
        self.breaks_at: int | None = None

    def trusts(self, other: Site, *, may_command: bool = False) -> None:
        self.ring.trust(other.key.public, may_command=may_command)

    def send(self, name: str, utc_ns: int = NOW_NS, **wish: object) -> Path:
        target = self.data.parent / name
        self.head: Head = send(self.data, target, Wish(**wish), utc_ns, quiet)  # type: ignore[arg-type]
        return target

    def carry(self, order: Order, idem: str) -> Outcome:
        if len(self.done) == self.breaks_at:
            raise BundleError("the node is gone")
        self.done.append((order.op, bytes(order.body), idem))
        return Outcome("not_found", "x") if len(self.done) in self.refuses else Outcome("", "")

    def take(self, *paths: Path, utc_ns: int = NOW_NS, ways: Ways | None = None) -> list[Taken]:
        carry: Carrier = self.carry
        with book_of(self.data) as pages:
            receiver = Receiver(
                self.data, self.name, pages, carry, ways or Ways(), utc_ns, DAY_NS, quiet
            )
            return [receiver.take_in(path) for path in paths]

    def picture(self, other: Site) -> Path:
        return Picture(self.data, other.name).store


@contextmanager
def two(tmp_path: Path, seed: int) -> Iterator[tuple[Site, Site, Callable[[str, int], None]]]:
    """A site whose store moves, and one that trusts it."""
    (tmp_path / "a").mkdir()
    with churning(tmp_path / "a", seed) as move:
        a, b = Site(tmp_path, "a"), Site(tmp_path, "b")
        a.trusts(b)
        b.trusts(a, may_command=True)
        yield a, b, move


def order(number: int) -> Order:
    [made] = read_orders([b'{"op":"timer.cancel","body":{"name":"n%d"}}' % number])
    return made
