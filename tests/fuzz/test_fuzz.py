"""Each target on its seeds and some mutations of them; `make fuzz SECONDS=` goes on from there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgenode.bundles.book import read_book
from tests.fuzz import child, exchange, sanitize, targets
from tests.fuzz.child import seeds_of
from tests.fuzz.mutate import Mutator
from tests.fuzz.run import Way, run
from tests.fuzz.targets import PLANTED, TARGETS

EXECUTIONS = 400
FEW = {"store": 60, "requests": 200, "bundles": 200}  # those that take longer


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in PLANTED])
def test_nothing_is_raised(name: str) -> None:
    target, module = TARGETS[name], sys.modules["tests.fuzz.targets"]
    mutator = Mutator(seeds_of(name, module), target.words, seed=1)
    for number, data in enumerate(mutator):
        target.run(data)
        if number >= FEW.get(name, EXECUTIONS):
            break


def test_a_bug_of_python_is_noticed() -> None:
    with pytest.raises(IndexError, match="the planted bug"):
        TARGETS["planted-python"].run(b"MZP9 and more")
    found = run(Way("planted-python", guided=False, sanitized=False), 0.5, 1)
    assert found.fault == ""  # nobody guides it there
    assert found.executions > 100


def test_what_ends_a_process_is_kept(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"MZP9")
    command = [sys.executable, "-m", "tests.fuzz.child", "planted-python", "--input"]
    done = subprocess.run(
        [*command, str(tmp_path / "input")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "the planted bug" in done.stderr


def test_the_planted_read_is_seen_by_a_sanitizer() -> None:
    """Only where they are built: `make fuzz` does that, and takes minutes the first time."""
    if why := sanitize.refused() or (
        "" if sanitize.COVERAGE.exists() else "build/asan is not there"
    ):
        print(f"skipped: {why}")
        pytest.skip(why)
    code = "from tests.fuzz._planted import beyond; beyond(b'MZP9')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=sanitize.OUT,
        env={**os.environ, **sanitize.environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert "heap-buffer-overflow" in done.stderr


def test_the_seeds_of_bundles_are_good_ones() -> None:
    """Else a target would look at refusals alone."""
    folder, key = exchange._sites()
    exchange._site.used = exchange.SITE_LIFE
    site = exchange._site.fresh()
    news = []
    for seed in exchange.bundle_seeds():
        exchange.bundles(seed)
        book = read_book(site)
        news.append((len(book.incoming), len(book.pictures)))
    assert news == [(1, 1), (1, 1), (2, 1)]
    assert sorted(came.orders for came in book.incoming.values())[0] == 0
    assert any(came.orders for came in book.incoming.values())
    for found in exchange.item_seeds():
        assert exchange._agreeing(found) == found
    assert key.node == "a"
    assert folder.is_dir()


@pytest.mark.parametrize("kept_bytes", [0, 20_000])
def test_what_a_target_keeps_for_ever_is_a_leak(
    kept_bytes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = []

    def run(data: bytes) -> None:
        time.sleep(0.0002)
        if kept_bytes:
            kept.append(bytearray(kept_bytes))

    target = targets.Target(run, lambda: [b"seed"])
    fake = SimpleNamespace(TARGETS={"keeps": target}, begin_anew=lambda: None)
    monkeypatch.setattr(child, "load", lambda guided: fake)
    (tmp_path / "place").write_bytes(bytes(child.PLACE_BYTES))
    place = child.Place(tmp_path / "place")
    assert child.mutate("keeps", place, 1.0, 7) == (3 if kept_bytes else 0)
    assert ("leak:" in capsys.readouterr().err) == bool(kept_bytes)
