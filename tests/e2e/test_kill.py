"""kill -9 under load, over and over: at random moments, also while it starts. Then: all agrees.

Every start here is that of a new interpreter; `tests/proof/kills.py`, whose loop this is, makes
many more kills in the same time. The seed is printed; MINOOTS_SEED replays one, as far as two
processes can be replayed, and MINOOTS_KILLS asks for more kills than the suite has time for.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.load import KILLS, SEED
from tests.proof.kills import run


@pytest.mark.timeout(120 + 3 * KILLS)
def test_nothing_is_lost_by_kill_9(tmp_path: Path) -> None:
    print(f"MINOOTS_SEED={SEED} MINOOTS_KILLS={KILLS}")
    tally = run(SEED, KILLS, tmp_path, fast=False)
    print(tally._replace(faults=tally.faults[:20]))
    assert not tally.faults, f"MINOOTS_SEED={SEED} {tally.faults[:3]}"
    assert tally.fires > 10 * KILLS, "the load was too light to prove anything"
    assert tally.cancels > KILLS
