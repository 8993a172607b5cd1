"""The mutants' own rules, and two of them as a sample; `make mutants` tries them all."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.mutants.run import ROOT, Mutant, apply, every, read, run_tests, try_one

SAMPLE = "clocks-committed-stays"


def sources(to: Path) -> Path:
    """What Python mutants need of the tree: as much as their tests import."""
    for folder in ("engine", "edgenode", "minoots", "tests"):
        ignore = shutil.ignore_patterns("__pycache__", "corpus")
        shutil.copytree(ROOT / folder, to / folder, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", to)
    return to


def test_every_patch_applies_and_says_its_tests(tmp_path: Path) -> None:
    tree = sources(tmp_path)
    mutants = every()
    assert len(mutants) >= 12
    faults = [f"{one.name} {why}" for one in mutants if (why := apply(one, tree, dry=True))]
    assert not faults, "\n".join(faults)
    for one in mutants:
        for name in one.tests:
            file, _, function = name.partition("::")
            assert (ROOT / file).exists(), f"{one.name}: {file} is not there"
            assert not function or f"def {function}(" in (ROOT / file).read_text(), name


def test_a_mutant_is_found_and_a_harmless_one_survives(tmp_path: Path) -> None:
    tree = sources(tmp_path / "tree")
    [sample] = every((SAMPLE,))
    assert try_one(sample, tree) == ""
    harmless = tmp_path / "harmless.patch"
    text = sample.path.read_text()
    text = text.replace("-            self.events.move(-moved_ns)\n", DOUBLE)
    harmless.write_text(re.sub(r"(@@ -\d+,5 \+\d+),4", r"\1,5", text))
    assert try_one(read(harmless), tree) == "survives"
    code, _ = run_tests(sample.tests, tree)
    assert code == 0, "the tree itself was changed"


DOUBLE = """-            self.events.move(-moved_ns)
+            self.events.move(0 - moved_ns)
"""


def test_a_stale_patch_is_a_failure(tmp_path: Path) -> None:
    tree = sources(tmp_path / "tree")
    [sample] = every((SAMPLE,))
    stale = tmp_path / "stale.patch"
    stale.write_text(sample.path.read_text().replace("self.events.move(", "self.events.moved("))
    assert "does not apply" in try_one(read(stale), tree)


def test_a_patch_without_its_tests_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mute.patch"
    path.write_text("It was wrong.\n\n--- a/x\n+++ b/x\n")
    with pytest.raises(ValueError, match="has no line `Test:`"):
        read(path)
    assert isinstance(every()[0], Mutant)
