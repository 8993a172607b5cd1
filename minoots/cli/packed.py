"""How this program is packed: from what it was built, and how it starts itself once more."""

from __future__ import annotations

import os
import sys
from importlib import import_module

BUILD_MODULE = "minoots._build"  # written when a wheel is built; sources have none


def is_compiled() -> bool:
    """Whether this runs from the binary, as a folder or one file, and not from a Python."""
    return "__compiled__" in globals()


def form() -> str:
    """`source`, `wheel`, `folder` or `one file`."""
    if not is_compiled():
        return "wheel" if build() else "source"
    return "one file" if "NUITKA_ONEFILE_DIRECTORY" in os.environ else "folder"


def build() -> dict[str, str]:
    """`commit` and `built` (when that was committed) of what was built; empty for sources."""
    try:
        found = import_module(BUILD_MODULE)
    except ModuleNotFoundError:
        return {}
    return {"commit": found.COMMIT, "built": found.BUILT}


def own_command() -> list[str]:
    """The words that start this program anew, before its verb."""
    if is_compiled():
        # Not argv[0]: that is what the caller wrote, and of one file it is the part that unpacks.
        return [os.readlink("/proc/self/exe")]
    return [sys.executable, "-m", "edgenode"]
