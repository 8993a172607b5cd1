"""The house rules that a machine can check: layers, ways out of the process, sizes, the map.

Each finding names the file and the line. A rule that cannot fail is no rule: the last tests feed
the checks code that breaks them.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("engine", "edgenode", "minoots", "bench", "tests")

# package -> what of ours it may import (prefixes). edgenode/__main__.py may import everything.
MAY_IMPORT = {
    "engine": ("engine",),
    "minoots": ("minoots",),
    "edgenode": ("edgenode", "engine", "minoots.wire"),
}

# A way out of the process -> the modules that may open it.
EDGES = {
    "lmdb": {"engine/_lmdb.pyx", "engine/_lmdb.pxd"},
    "zmq": {
        "edgenode/doors/zeromq.py",
        "engine/_libzmq.pyx",
        "engine/_pulse.pyi",
        "edgenode/doors/_mailbox.pyx",
        "edgenode/doors/_mailbox.pyi",
        "minoots/transport.py",
        "minoots/aio.py",
    },
    "time": {"minoots/transport.py", "minoots/aio.py"},
    "subprocess": {"minoots/cli/demo.py", "minoots/cli/runner.py"},
    "socket": {"edgenode/process.py", "edgenode/doors/zeromq.py"},
    "numpy": set(),
    "sqlite3": {"minoots/done.py"},
    "random": {"edgenode/virtual.py", "minoots/requests.py"},
}
CLOCK_CALLS = re.compile(r"\b(?:datetime\.now|datetime\.utcnow|time\.time|time\.monotonic)\b")
CLOCK_MODULES = {"engine/clock.py", "minoots/transport.py", "minoots/aio.py"}

FILE_LINES_MAX = 500
FILE_LINES_MAX_OF = {"engine/_wheel.pyx": 800}
FUNCTION_LINES_MAX = 70
FUNCTION_LINES_USUAL = 40

_IMPORT = re.compile(
    r"^[ \t]*(?:from\s+([\w.]+)\s+c?import\b|c?import\s+([\w.]+(?:\s*,\s*[\w.]+)*))", re.MULTILINE
)


def sources(*folders: str) -> list[Path]:
    found = []
    for folder in folders:
        for pattern in ("*.py", "*.pyx", "*.pxd", "*.pyi"):
            found += (ROOT / folder).rglob(pattern)
    return sorted(found)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports_of(text: str) -> list[tuple[int, str]]:
    """(line, module) of each import and cimport."""
    found = []
    for match in _IMPORT.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        for module in (match[1] or match[2]).split(","):
            found.append((line, module.strip()))
    return found


def layer_faults(name: str, text: str) -> list[str]:
    package = name.split("/", 1)[0]
    if name == "edgenode/__main__.py" or package not in MAY_IMPORT:
        return []
    faults = []
    for line, module in imports_of(text):
        if module.split(".")[0] in OURS and not any(
            module == allowed or module.startswith(allowed + ".") for allowed in MAY_IMPORT[package]
        ):
            faults.append(f"{name}:{line} {package} may not import {module}")
    return faults


def edge_faults(name: str, text: str) -> list[str]:
    faults = []
    for line, module in imports_of(text):
        top = module.split(".")[0]
        if top in EDGES and name not in EDGES[top]:
            faults.append(f"{name}:{line} imports {module}; only {sorted(EDGES[top])} may")
    if name not in CLOCK_MODULES:
        for match in CLOCK_CALLS.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            faults.append(f"{name}:{line} reads a clock: {match[0]}")
    return faults


def function_sizes(text: str) -> list[tuple[int, str, int]]:
    """(line, name, lines without the docstring) of each function of Python source."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            size = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                first = node.body[0]
                assert first.end_lineno is not None
                size -= first.end_lineno - first.lineno + 1
            found.append((node.lineno, node.name, size))
    return found


def test_imports_point_down() -> None:
    faults = []
    for path in sources("engine", "edgenode", "minoots"):
        faults += layer_faults(name_of(path), path.read_text())
    assert not faults, "\n".join(faults)


def test_each_way_out_has_one_door() -> None:
    faults = []
    for path in sources("engine", "edgenode", "minoots"):
        faults += edge_faults(name_of(path), path.read_text())
    assert not faults, "\n".join(faults)


def twins(paths: list[Path]) -> list[str]:
    """Files of tests with one name: pytest takes the second for the first, and ends."""
    first: dict[str, Path] = {}
    return [
        f"{name_of(path)} has the name of {name_of(first[path.name])}"
        for path in paths
        if first.setdefault(path.name, path) is not path
    ]


def test_no_two_files_of_tests_have_one_name() -> None:
    faults = twins(sorted((ROOT / "tests").rglob("test_*.py")))
    assert not faults, "\n".join(faults)
    unit, sim = ROOT / "tests/unit/test_x.py", ROOT / "tests/sim/test_x.py"
    assert twins([unit, sim]) == ["tests/sim/test_x.py has the name of tests/unit/test_x.py"]


def test_files_are_small() -> None:
    faults = []
    for path in sources("engine", "edgenode", "minoots", "bench", "tests", "packaging"):
        lines = path.read_text().count("\n")
        most = FILE_LINES_MAX_OF.get(name_of(path), FILE_LINES_MAX)
        if lines > most:
            faults.append(f"{name_of(path)} has {lines} lines; the limit is {most}")
    assert not faults, "\n".join(faults)


def test_functions_are_small() -> None:
    faults, sizes = [], []
    for path in sources("engine", "edgenode", "minoots", "bench"):
        if path.suffix != ".py":
            continue
        for line, name, size in function_sizes(path.read_text()):
            sizes.append(size)
            if size > FUNCTION_LINES_MAX:
                faults.append(f"{name_of(path)}:{line} {name} has {size} lines")
    assert not faults, "\n".join(faults)
    usual = sum(size <= FUNCTION_LINES_USUAL for size in sizes) / len(sizes)
    assert usual >= 0.95, f"only {usual:.0%} of functions have up to {FUNCTION_LINES_USUAL} lines"


def test_every_folder_is_on_the_map() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    folders = {path.parent for path in sources(*OURS)} | {ROOT / "packaging", ROOT / "docs"}
    missing = [
        name_of(folder)
        for folder in sorted(folders)
        if folder.is_dir() and f"{name_of(folder)}/" not in text
    ]
    assert not missing, f"ARCHITECTURE.md does not name {missing}"


def test_nothing_is_left_undone() -> None:
    marks = re.compile(r"\b(?:TODO|FIXME|XXX|NotImplementedError)\b")
    faults = []
    for path in sources("engine", "edgenode", "minoots", "bench"):
        for at, line in enumerate(path.read_text().splitlines(), 1):
            if marks.search(line):
                faults.append(f"{name_of(path)}:{at} {line.strip()}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("name", "text", "finds"),
    [
        ("engine/x.py", "from edgenode import node\n", "engine may not import edgenode"),
        ("engine/_x.pyx", "\nfrom minoots.wire cimport times\n", "engine/_x.pyx:2 engine may not"),
        ("edgenode/x.py", "import minoots.client\n", "may not import minoots.client"),
        ("minoots/x.py", "import os, engine.log\n", "minoots may not import engine.log"),
    ],
)
def test_the_layer_check_can_fail(name: str, text: str, finds: str) -> None:
    assert any(finds in fault for fault in layer_faults(name, text))


@pytest.mark.parametrize(
    ("name", "text", "finds"),
    [
        ("edgenode/node.py", "import zmq\n", "imports zmq"),
        ("engine/log.py", "import lmdb\n", "imports lmdb"),
        ("edgenode/node.py", "x = datetime.now()\n", "reads a clock"),
        ("edgenode/node.py", "import numpy as np\n", "imports numpy"),
    ],
)
def test_the_edge_check_can_fail(name: str, text: str, finds: str) -> None:
    assert any(finds in fault for fault in edge_faults(name, text))


def test_the_size_check_can_fail() -> None:
    long = "def f():\n" + '    """Doc."""\n' + "    x = 1\n" * 71
    assert function_sizes(long) == [(1, "f", 72)]
