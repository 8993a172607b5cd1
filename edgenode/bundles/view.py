"""Asking a picture: the verbs that look, answered from another node's store as ours would.

It decides as a node does (`edgenode/node.py`), without a loop: nothing fires, nothing is written,
no door is open. `minoots --picture NODE list` and the other verbs that look go this way.
"""

from __future__ import annotations

import secrets
from importlib.metadata import version
from pathlib import Path

from edgenode.bundles.book import read_book
from edgenode.bundles.keys import BundleError
from edgenode.bundles.picture import picture_of
from edgenode.call import Frames
from edgenode.config import Config, data_dir
from edgenode.metrics import Metrics
from edgenode.node import Node
from edgenode.principal import LOCAL
from edgenode.recovery import recover
from edgenode.verbs.about import About
from engine.clock import OsClock
from engine.errors import EngineError
from engine.files import close_store, open_store
from minoots.wire.problems import MinootsError, Unreachable

PEER = b"picture"
STEPS_MAX = 1_000_000


class PictureNode:
    """A node that only looks; `minoots.testing.VirtualTransport` reaches it."""

    def __init__(self, store: Path, node: str, as_of: str) -> None:
        self._store, self._clock = store, OsClock()
        self._log, self._tables = open_store(store)
        recovered = recover(Config(), node, self._log, self._tables, self._clock, secrets.randbits)
        ledger = recovered.ledger
        about = About(version("minoots"), "picture", {}, Metrics(started_ns=ledger.now.steady_ns))
        about.writes_refused = (
            f"this is a picture of {node} as of {as_of}; what is to change there goes as a command "
            "in a bundle"
        )
        self._timescale = recovered.timescale
        self._node, self._ledger = Node(ledger, about), ledger

    @property
    def now_ns(self) -> int:
        """UTC."""
        return self._clock.utc_ns()

    def request(self, frames: list[bytes]) -> list[list[bytes]]:
        """Ask, as a client's socket would: MZP/1 frames without the peer; and the answers."""
        node, ledger = self._node, self._ledger
        node.begin(self._timescale.now(self._clock))
        node.accept(0, (PEER, *frames), LOCAL)
        while call := node.next_later():
            node.decide_later(call)
        for _ in range(STEPS_MAX):
            jobs = node.ready_jobs(self._tables.applied().seq)
            if not jobs:
                break
            for job in jobs:
                node.go_on(job)
        answers: list[Frames] = [a.frames for a in (*ledger.answers, *node.free_answers)]
        ledger.answers.clear()
        node.free_answers.clear()
        return [list(found[1:]) for found in answers]

    def advance(self, ns: int) -> list[list[bytes]]:
        """Raises MinootsError: nothing happens in a picture."""
        raise MinootsError("a picture has no live events; `minoots log` shows what it holds")

    def close(self) -> None:
        """Close its files; a second time does nothing."""
        close_store(self._store, self._log, self._tables)


def open_picture(data: str | None, node: str) -> PictureNode:
    """The picture of a node in a data directory. Raises Unreachable."""
    place = data_dir(data)
    try:
        picture = picture_of(place, node)
        if not picture.is_there:
            raise BundleError(f"the picture of {node} is being made; import a bundle of it again")
        seen = read_book(place).pictures.get(node)
        return PictureNode(picture.store, node, seen.made_at if seen else "an unknown time")
    except (EngineError, OSError) as error:
        raise Unreachable(str(error)) from error
