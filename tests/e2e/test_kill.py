"""kill -9 under load, over and over: at random moments, also while it starts. Then: all agrees.

Every request carries an idempotency key, and is sent again until it is answered. The seed is
printed; MINOOTS_SEED replays one, as far as two processes can be replayed, and MINOOTS_KILLS asks
for more kills than the suite has time for.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.harness import Node, Raw
from tests.e2e.load import KILLS, SEED, Load, listen, replay
from tests.proof.ledger import CANCELLED, EXPIRED

RUN_S = (0.05, 0.5)  # how long a node lives under load
START_S = (0.0, 0.7)  # how long it lives when it is killed while it starts


def live_and_die(node: Node, load: Load) -> None:
    """One life of a node, ended by kill -9; one in three ends while it starts."""
    draw = load.random
    if draw.random() < 0.33:
        node.start(wait=False)
        time.sleep(draw.uniform(*START_S))
        node.kill()
        return
    node.start()
    load.boots += 1
    with Raw(node.doors) as raw:
        feed = listen(raw)
        load.begin()
        load.catch_up(raw)
        load.busy(raw, feed, time.monotonic() + draw.uniform(*RUN_S))
        node.kill()
        while load.take(raw, feed):
            pass  # what was on its way when the node died was said, too


@pytest.mark.timeout(120 + 3 * KILLS)
def test_nothing_is_lost_by_kill_9(tmp_path: Path) -> None:
    print(f"MINOOTS_SEED={SEED} MINOOTS_KILLS={KILLS}")
    load = Load(SEED)
    with Node(tmp_path / "data") as node:
        node.kill()
        for life in range(KILLS):
            live_and_die(node, load)
            if life % 100 == 99:
                print(f"{life + 1} kills, {len(load.ledger.asks)} requests", flush=True)
        load.cancel_grids()
        node.start()
        with Raw(node.doors) as raw:
            feed = listen(raw)
            load.begin()
            load.finish(raw, feed)
            load.cancel_grids()  # those whose acknowledgement came only now
            load.finish(raw, feed)
            until_ns = time.time_ns() + 1_500_000_000
            time.sleep(1.5 + 0.2)
            load.take(raw, feed)
        assert node.stop() == 0
        node.start()
        with Raw(node.doors) as raw:
            load.catch_up(raw)
            load.ledger.replay(replay(raw, 0))
        assert node.stop() == 0
    _tell(load)
    faults = load.ledger.faults(until_ns)
    for fault in faults[:20]:
        print(fault)
    assert not faults, f"MINOOTS_SEED={SEED}\n{node.log()[-4000:]}"
    _verify(node.folder)


def _tell(load: Load) -> None:
    ledger = load.ledger
    fires = sum(event["type"] == EXPIRED for event in ledger.events.values())
    cancels = sum(event["type"] == CANCELLED for event in ledger.events.values())
    print(
        f"{KILLS} kills, {load.boots} of them under load: {len(ledger.asks)} requests, "
        f"{len(ledger.events)} events, {fires} fires, {cancels} cancels, {len(ledger.lives)} live"
    )
    assert fires > 10 * KILLS, "the load was too light to prove anything"
    assert cancels > KILLS


def _verify(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgenode", "verify", "--data", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    print(done.stdout.strip())
    assert done.returncode == 0, done.stderr
    assert "agree" in done.stdout
