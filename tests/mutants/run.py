"""The mutants: each patch here brings a bug back that was fixed, and a test must find it.

    python -m tests.mutants.run               all of them
    python -m tests.mutants.run pulse clocks  those whose names begin so

A patch says above its difference what was wrong, and after `Test:` the cheapest tests that find it.
It is applied to a copy of the tree, what it changes is built there, and the tests run there. What
fails: a mutant that survives, a patch that no longer applies, and tests that fail without it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FOLDERS = ("engine", "edgenode", "minoots", "bench", "tests", "docs", "packaging")
TEST_S_MAX = 300
BUILD = (sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")
PYTEST = (sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider")
NO_TESTS = 5  # pytest's exit code where nothing was collected
FAILED = 1


@dataclass(frozen=True, slots=True)
class Mutant:
    """One patch. why: what was wrong; tests: what must find it."""

    path: Path
    why: str
    tests: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """The patch's, without its ending."""
        return self.path.stem


def read(path: Path) -> Mutant:
    """A patch as a mutant. Raises ValueError where it does not say its tests."""
    head, _, difference = path.read_text().partition("\n--- a/")
    why, mark, tests = head.partition("\nTest: ")
    if not mark or not tests.split() or not difference:
        raise ValueError(f"{path.name} has no line `Test:` before its difference")
    files = [
        line.split()[1].removeprefix("b/")
        for line in difference.splitlines()
        if line.startswith("+++ ")
    ]
    return Mutant(path, " ".join(why.split()), tuple(tests.split()), tuple(files))


def every(prefixes: tuple[str, ...] = ()) -> list[Mutant]:
    """Those whose names begin with one of the prefixes, or all."""
    found = [read(path) for path in sorted(HERE.glob("*.patch"))]
    return [one for one in found if not prefixes or one.name.startswith(prefixes)]


def copy_tree(to: Path) -> None:
    """The tree with what was built, times of files included, so that only changes are built."""
    for folder in FOLDERS:
        if (ROOT / folder).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(ROOT / folder, to / folder, ignore=ignore, symlinks=True)
    # Not all of build/: there may be whole systems in it, with a /dev/full that has no end.
    for pattern in ("cython", "lib.*", "temp.*"):
        for built in (ROOT / "build").glob(pattern):
            shutil.copytree(built, to / "build" / built.name, symlinks=True)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy2(path, to / path.name)


def apply(mutant: Mutant, to: Path, *, dry: bool = False) -> str:
    """Apply it; why that is not possible, or nothing."""
    command = ["patch", "-p1", "--forward", "--batch", "--no-backup-if-mismatch"]
    command += ["--dry-run"] if dry else []
    with mutant.path.open() as text:
        done = subprocess.run(
            command, cwd=to, stdin=text, capture_output=True, text=True, check=False
        )
    return "" if done.returncode == 0 else f"does not apply: {done.stdout.strip()[-300:]}"


def build(mutant: Mutant, tree: Path) -> str:
    """Build what it changes; why that is not possible, or nothing."""
    if not any(name.endswith((".pyx", ".pxd")) for name in mutant.files):
        return ""
    done = subprocess.run(BUILD, cwd=tree, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"does not build: {done.stderr[-800:]}"


def run_tests(tests: tuple[str, ...], tree: Path) -> tuple[int, str]:
    """Run tests in the tree: pytest's exit code, and what it said last. Hanging is failing."""
    try:
        done = subprocess.run(
            [*PYTEST, *tests],
            cwd=tree,
            capture_output=True,
            text=True,
            timeout=TEST_S_MAX,
            check=False,
            env={"PYTHONPATH": str(tree), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
        )
    except subprocess.TimeoutExpired:
        return FAILED, f"no end in {TEST_S_MAX} s"
    said = [
        line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR", "E  "))
    ]
    return done.returncode, " ".join(
        (said[-1:] or done.stdout.splitlines()[-1:] or ["nothing"])[0].split()
    )


def try_one(mutant: Mutant, pristine: Path) -> str:
    """What is wrong with it; nothing if it was found."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(pristine, tree, symlinks=True)
        wrong = apply(mutant, tree) or build(mutant, tree)
        if wrong:
            return wrong
        code, said = run_tests(mutant.tests, tree)
        if code == FAILED or code < 0:  # a crash is found too
            print(f"  found   {mutant.name}: {said[:150]}", flush=True)
            return ""
        return "survives" if code == 0 else f"its tests cannot run (pytest {code}): {said[:300]}"


def main(prefixes: tuple[str, ...]) -> int:
    """See the module."""
    mutants = every(prefixes)
    began_s, faults = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        pristine = Path(folder)
        copy_tree(pristine)
        needed = tuple(sorted({name for mutant in mutants for name in mutant.tests}))
        code, said = run_tests(needed, pristine)
        if code:
            print(f"the tests fail without any mutant: {said}")
            return 1
        for mutant in mutants:
            wrong = try_one(mutant, pristine)
            if wrong:
                faults.append(f"{mutant.name} {wrong}\n  ({mutant.why})")
    print(f"{len(mutants) - len(faults)} of {len(mutants)} mutants were found, "
          f"in {time.monotonic() - began_s:.0f} s")  # fmt: skip
    print("\n".join(faults), end="\n" if faults else "")
    return 1 if faults or not mutants else 0


if __name__ == "__main__":
    sys.exit(main(tuple(sys.argv[1:])))
