"""`make binary`: the compiled node, a folder (dist/minoots.dist) and one file (dist/minoots).

The wheel of the project is installed into a virtual environment of its own, with the pinned
versions of what it needs and nothing else, and Nuitka builds from there. Only our packages are
compiled; third-party Python stays bytecode (compiling it takes far longer and gains nothing), and
what is compiled already (Cython extensions, libzmq, LMDB) goes in as it is.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
import venv
from importlib.metadata import Distribution, distributions
from pathlib import Path

import wheel
from stamp import DIST, ROOT, WORK, Stamp, environment, run, stamp

from edgenode.machine import PACKAGES  # whose versions the program asks for
from minoots.wire import zones

OURS = ("engine", "edgenode", "minoots")
# What some library would use if it were there. The bench and its numpy are no part of the node.
LEFT_OUT = (
    *("bench", "numpy", "matplotlib", "Cython", "pip", "setuptools", "pkg_resources", "_pytest"),
    *("tkinter", "turtle", "idlelib", "ensurepip", "venv", "lib2to3", "distutils", "pydoc_data"),
    *("zmq.tests", "zmq.green", "zmq.eventloop", "zmq.ssh", "zmq.log", "zmq.auth", "zmq.devices"),
    *("IPython", "tornado", "gevent", "cffi", "uvloop", "attrs", "attr"),
    # What rich has for code and documents: we show tables.
    *("pygments", "markdown_it", "mdurl", "rich.markdown", "rich.syntax", "rich.traceback"),
    *("sqlite3", "dbm", "curses", "rich.pretty_ipython", "unittest", "test"),
)
# Loaded by name at run time, so that no import statement leads there.
HIDDEN = ("zmq.backend.cython._zmq", "zmq.backend.cython", "_cffi_backend")
_IMPORT = re.compile(r"^[ \t]*(?:from\s+([\w.]+)\s+import\b|import\s+([\w., \t]+))", re.MULTILINE)
MAIN = "packaging/main.py"
TOOK = WORK / "took.json"  # seconds that each step took when it was last done


def environment_of(wheel_path: Path) -> Path:
    """A fresh virtual environment with the wheel, what it needs and what builds; its Python."""
    home = WORK / "venv"
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True, symlinks=True)
    python = home / "bin" / "python"
    install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    locked = ("-c", ROOT / "requirements.txt", "-r", ROOT / "packaging/requirements-binary.txt")
    run(*install, *locked, wheel_path)
    package = site_of(python) / "tzdata"
    zones.pack(package, package / zones.PACKED)
    shutil.rmtree(package / "zoneinfo")
    return python


def site_of(python: Path) -> Path:
    """The site-packages of a virtual environment."""
    (site,) = (python.parent.parent / "lib").glob("python3.*/site-packages")
    return site


def needed(site: Path) -> dict[str, Distribution]:
    """What the wheel needs, transitively, as installed: name -> distribution."""
    there = {_plain(dist.name): dist for dist in distributions(path=[str(site)])}
    found: dict[str, Distribution] = {}
    waiting = ["minoots"]
    while waiting:
        name = waiting.pop()
        dist = there.get(name)
        if dist is None or name in found:
            continue  # for another platform, or known
        found[name] = dist
        for line in dist.requires or []:
            if "extra ==" not in line:
                waiting.append(_plain(re.split(r"[\s;<>=!~\[(]", line, maxsplit=1)[0]))
    return dict(sorted(found.items()))


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def packages_of(dist: Distribution) -> list[str]:
    """The importable top-level names of a distribution."""
    tops = {Path(str(file)).parts[0] for file in dist.files or [] if ".." not in str(file)}
    names = {top.removesuffix(".py") for top in tops if re.fullmatch(r"[A-Za-z_]\w*(\.py)?", top)}
    return sorted(names - {"__pycache__"})


def imports_of_extensions() -> list[str]:
    """What our Cython modules import and is not ours: Nuitka cannot see into them."""
    found = set()
    for top in OURS:
        for path in (ROOT / top).rglob("*.pyx"):
            for match in _IMPORT.finditer(path.read_text()):
                found |= {
                    name.split(" as ")[0].strip() for name in (match[1] or match[2]).split(",")
                }
    built_in = (*sys.builtin_module_names, *OURS, "cython")
    return sorted(name for name in found if name.split(".")[0] not in built_in)


def options(site: Path, stamped: Stamp, jobs: int) -> list[str]:
    """Nuitka's options, the same for both forms."""
    inside = needed(site)
    others = [
        name for own, dist in inside.items() if own != "minoots" for name in packages_of(dist)
    ]
    return [
        f"--jobs={jobs}",
        "--lto=no",
        "--static-libpython=no",
        "--disable-cache=bytecode",
        "--no-progressbar",
        "--quiet",
        "--assume-yes-for-downloads",
        "--python-flag=isolated",
        # Else any `-c` among the arguments ends it, as in `minoots work NAME -- sh -c ...`.
        "--no-deployment-flag=self-execution",
        "--noinclude-pytest-mode=nofollow",
        "--noinclude-setuptools-mode=nofollow",
        "--noinclude-unittest-mode=nofollow",
        *(f"--include-distribution-metadata={name}" for name in PACKAGES),
        f"--product-version={re.match(r'[0-9.]+', stamped.version)[0]}",  # type: ignore[index]
        *(f"--include-package={name}" for name in OURS),
        *(f"--include-package-data={name}" for name in ("edgenode", "tzdata")),
        *(f"--include-module={name}" for name in (*HIDDEN, *imports_of_extensions())),
        *(f"--noinclude-custom-mode={name}:bytecode" for name in others),
        *(f"--nofollow-import-to={name}" for name in LEFT_OUT),
        "--output-filename=minoots",
    ]


def compile_form(python: Path, stamped: Stamp, mode: str, jobs: int) -> Path:
    """Run Nuitka in one mode (standalone, onefile); the folder of its output."""
    out = WORK / mode
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    main = out / "main.py"
    shutil.copy2(ROOT / MAIN, main)
    env = environment(stamped, WORK)
    # Nuitka calls the compiler itself; it finds ccache, and `CC` of two words would confuse it.
    env.pop("CC", None)
    env |= {"CCFLAGS": env.pop("CFLAGS"), "NUITKA_CACHE_DIR": str(WORK / "nuitka-cache")}
    env["PATH"] = f"{_tools(python, out)}:{env['PATH']}"
    words = [f"--mode={mode}", f"--output-dir={out}", *options(site_of(python), stamped, jobs)]
    if mode == "onefile":
        # The default kills the node 5 s after a SIGTERM, in the middle of what it has to finish.
        words.append("--onefile-child-grace-time=infinity")
    run(python, "-m", "nuitka", *words, main, env=env, cwd=out)
    return out


def _tools(python: Path, out: Path) -> Path:
    """A folder with the patchelf that Nuitka runs on each library that it has copied.

    It strips the copy too, as one file is packed before we could: libpython has 17 MB of symbols.
    """
    tools = out / "tools"
    tools.mkdir()
    script = tools / "patchelf"
    script.write_text(
        "#!/bin/sh\n"
        f'"{python.parent}/patchelf" "$@" || exit\n'
        "for last; do :; done\n"
        f'case $last in "{out}"/*) strip --strip-unneeded "$last" ;; esac\n'
    )
    script.chmod(0o755)
    return tools


def build(mode: str, jobs: int, *, keep: bool = False, to: Path = DIST) -> None:
    """Build the wheel, its environment and the forms asked for; say how long each took.

    keep: with the environment of the last build. Some five minutes on two cores.
    """
    stamped, took = stamp(), json.loads(TOOK.read_text()) if TOOK.exists() else {}
    python = WORK / "venv/bin/python"
    if not keep:
        began = time.monotonic()
        environment_of(wheel.build(stamped, to))
        took["wheel"] = round(time.monotonic() - began, 1)
    for form in ("standalone", "onefile"):
        if mode not in (form, "both"):
            continue
        began = time.monotonic()
        out = compile_form(python, stamped, form, jobs)
        _put(out, form, to)
        took[form] = round(time.monotonic() - began, 1)
    TOOK.write_text(json.dumps(took) + "\n")
    print(json.dumps({"version": stamped.version, "commit": stamped.commit, "took_s": took}))


def _put(out: Path, form: str, to: Path) -> None:
    """Move what Nuitka made to its place, without symbols."""
    to.mkdir(parents=True, exist_ok=True)
    if form == "onefile":
        (to / "minoots").unlink(missing_ok=True)
        shutil.move(out / "minoots", to / "minoots")
        return
    target = to / "minoots.dist"
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(out / "main.dist", target)
    for library in target.rglob("*.so*"):
        if library.is_file() and not library.is_symlink():
            subprocess.run(["strip", "--strip-unneeded", library], check=False)


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--mode", choices=("standalone", "onefile", "both"), default="both")
    asked.add_argument("--keep-environment", action="store_true", help="that of the last build")
    asked.add_argument("--jobs", type=int, default=2, help="C compilers at one time")
    given = asked.parse_args()
    build(given.mode, given.jobs, keep=given.keep_environment)
