"""Build the compiled extensions: one `.pyx`, one extension.

`MINOOTS_DEBUG=1` builds the second column of DIRECTIVES: bounds and overflow checks.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("MINOOTS_DEBUG") == "1"

# directive: (release, debug)
DIRECTIVES = {
    "language_level": (3, 3),
    "boundscheck": (False, True),
    "wraparound": (False, False),
    "initializedcheck": (False, True),
    "overflowcheck": (False, True),
    "cdivision": (True, True),
    "auto_pickle": (False, False),
    "autotestdict": (False, False),
    "embedsignature": (True, True),
    "freethreading_compatible": (False, False),
}

FOLDERS = ("engine", "edgenode", "bench", "tests")
FLAGS = ["-O0", "-g"] if DEBUG else ["-O3", "-g1", "-fno-strict-aliasing"]


def extensions() -> list[Extension]:
    """One extension for each .pyx below FOLDERS."""
    sources = sorted(path for folder in FOLDERS for path in Path(folder).rglob("*.pyx"))
    return [
        Extension(
            ".".join(path.with_suffix("").parts),
            [str(path)],
            extra_compile_args=[
                *FLAGS,
                "-Wall",
                "-Wno-unused-function",
                "-Wno-maybe-uninitialized",
            ],
            libraries=["dl", "pthread", "m"],
        )
        for path in sources
    ]


setup(
    ext_modules=cythonize(
        extensions(),
        build_dir="build/cython-debug" if DEBUG else "build/cython",
        compiler_directives={name: pair[DEBUG] for name, pair in DIRECTIVES.items()},
        show_all_warnings=False,
        nthreads=2,
    )
)
