"""Builds our extensions with AddressSanitizer and UBSan into build/asan, beside our Python.

The C that Cython made for the usual build is compiled again, so it must have been built. What the
sanitizers find ends the process with a report on stderr.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
OUT = ROOT / "build" / "asan"
FOLDERS = ("engine", "edgenode", "minoots", "tests")
# LMDB and the wire hand us bytes where they lie: reading them unaligned is meant, on x86.
SANITIZE = (
    "-fsanitize=address,undefined",
    "-fno-sanitize=alignment",
    "-fno-sanitize-recover=undefined",
    "-fsanitize-coverage=trace-pc",
)
FLAGS = ("-O1", "-g1", "-fPIC", "-fno-omit-frame-pointer", "-fno-strict-aliasing", "-fwrapv", "-w")
COVERAGE = OUT / "libcoverage.so"


def refused() -> str:
    """Why this machine cannot; nothing if it can."""
    if not shutil.which("gcc"):
        return "gcc is not installed"
    library = _library("libasan.so")
    return "" if library.is_absolute() else "gcc has no libasan.so (package libasan8)"


def _library(name: str) -> Path:
    done = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip())


def sources() -> list[Path]:
    """The C of our extensions that the targets load."""
    cython = ROOT / "build" / "cython"
    found = [*cython.glob("engine/*.c"), *cython.glob("edgenode/**/*.c")]
    return sorted([*found, cython / "tests" / "fuzz" / "_planted.c"])


def build() -> None:
    """Compile what is older than its C, and copy the Python. Minutes the first time."""
    OUT.mkdir(parents=True, exist_ok=True)
    for folder in FOLDERS:
        shutil.copytree(
            ROOT / folder,
            OUT / folder,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.pyx"),
        )
    coverage = Path(__file__).with_name("coverage.c")
    if _is_older(COVERAGE, coverage):
        _run("gcc", "-O2", "-shared", "-fPIC", "-o", str(COVERAGE), str(coverage))
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    include = sysconfig.get_paths()["include"]
    work = []
    for source in sources():
        name = source.relative_to(ROOT / "build" / "cython").with_suffix("")
        made = OUT / name.parent / f"{name.name}{suffix}"
        if _is_older(made, source):
            work.append((source, made))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda pair: _compile(*pair, include), work))


def _is_older(made: Path, source: Path) -> bool:
    return not made.exists() or made.stat().st_mtime < source.stat().st_mtime


def _compile(source: Path, made: Path, include: str) -> None:
    fresh = made.with_suffix(".new")
    places = ["-I", include, "-I", str(ROOT)]
    _run("gcc", *FLAGS, *SANITIZE, *places, "-shared", "-o", str(fresh), str(source), "-ldl", "-lm")
    fresh.replace(made)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:2])} ...: {done.stderr[-2_000:]}")


def environment() -> dict[str, str]:
    """What a process needs that loads them."""
    libraries = [
        _library("libasan.so"),
        _library("libubsan.so"),
        _library("libstdc++.so"),
        COVERAGE,
    ]
    return {
        **os.environ,
        "LD_PRELOAD": ":".join(str(path) for path in libraries),
        "PYTHONPATH": str(OUT),
        "PYTHONMALLOC": "malloc",  # so that an end of a bytes object is an end to the sanitizer
        "ASAN_OPTIONS": "detect_leaks=0:exitcode=66:allocator_may_return_null=1"
        ":quarantine_size_mb=16",  # so that growth is a leak
        "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=66",
        "MINOOTS_COVERAGE": str(COVERAGE),
    }


if __name__ == "__main__":
    if why := refused():
        sys.exit(why)
    build()
