"""A reader of MINOOTS that misses nothing: `watch` of the SDK, over kills of the node."""

from __future__ import annotations

from bench.peers.peer import Ledger
from minoots import Client


def work(port: int, ledger: Ledger) -> None:
    """Write each expiration from the start of the log on."""
    with Client(control=f"tcp://127.0.0.1:{port}") as client:
        for event in client.watch(types=["timer.expired"], since="start"):
            assert isinstance(event.payload, dict)
            ledger.write([int(event.payload["k"])])
