"""The shim that writes down what a store does to its files: building it, running under it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
SUBMIT, DURABLE, FORGET, CLOCK = range(1, 5)  # what a mark says; see `Recorder`


def missing() -> str:
    """Why the shim cannot be built here; empty if it can."""
    return "" if shutil.which("gcc") else "there is no gcc to build the shim with"


@cache
def built() -> Path:
    """The shared library, built once a process."""
    folder = Path(tempfile.mkdtemp(prefix="minoots-shim-"))
    library = folder / "shim.so"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, "-o", library, SOURCE, "-ldl", "-lpthread"], check=True)
    return library


def discard() -> None:
    """Remove the library again."""
    if built.cache_info().currsize:
        shutil.rmtree(built().parent)
        built.cache_clear()


def environment(trace: Path, swallow: str = "") -> dict[str, str]:
    """For a process that is to be watched. swallow: "", "meta" or "all"; see shim.c."""
    wanted = {"LD_PRELOAD": str(built()), "MINOOTS_TRACE": str(trace)}
    return {**os.environ, **wanted, **({"MINOOTS_SWALLOW": swallow} if swallow else {})}


class Marker:
    """Puts marks into the trace of this process, which runs under the shim."""

    def __init__(self) -> None:
        self._mark = ctypes.CDLL(None).proof_mark  # AttributeError without the shim
        self._mark.argtypes = [ctypes.c_uint64, ctypes.c_uint64]
        self._mark.restype = None

    def __call__(self, what: int, number: int) -> None:
        self._mark(what, number)
