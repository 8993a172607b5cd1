"""What is shipped: every package in the wheel, a configuration that changes nothing, a unit that is
what the documents say, sums and signatures that notice a changed byte."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgenode import config as configs

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGING = ROOT / "packaging"


SCRIPTS = ("again", "bill", "binary", "deb", "release", "sandbox")


@pytest.fixture(scope="module")
def packaging() -> Any:
    """The scripts of packaging/, which import each other by bare names."""
    sys.path.insert(0, str(PACKAGING))
    try:
        yield SimpleNamespace(**{name: import_module(name) for name in SCRIPTS})
    finally:
        sys.path.remove(str(PACKAGING))


def test_every_package_is_in_the_wheel() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = tomllib.load(file)["tool"]["setuptools"]["packages"]
    there = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for top in ("engine", "edgenode", "minoots", "bench")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert set(listed) == there


def test_the_example_configuration_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "minoots.toml"
    path.write_text(configs.example())
    assert configs.load(path, {}, {}) == configs.Config()


def test_every_line_of_the_example_can_be_uncommented(tmp_path: Path) -> None:
    lines = configs.example().splitlines()
    bare = [line.removeprefix("#") if line[:2] != "# " else line for line in lines]
    assert sum(a != b for a, b in zip(lines, bare, strict=True)) == len(configs.describe())
    path = tmp_path / "minoots.toml"
    path.write_text("\n".join(bare))
    assert configs.load(path, {}, {}) == configs.Config()


def test_the_unit_asks_for_what_the_node_needs(packaging: Any) -> None:
    unit = packaging.sandbox.settings(PACKAGING / "minoots.service")
    allowed = packaging.sandbox.allowed_calls
    assert unit["Type"] == ["notify"]
    assert unit["CapabilityBoundingSet"] == [""]
    assert "2 78" in unit["RestartPreventExitStatus"]
    assert "ExecStartPre" not in unit, "its exit status would not prevent a restart"
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: the groups of system calls are not known")
    calls = allowed(unit["SystemCallFilter"])
    assert {"adjtimex", "sched_setscheduler", "mlock2", "fdatasync", "timerfd_create"} <= calls
    assert not calls & {"clock_settime", "settimeofday", "mount", "ptrace", "chroot", "bpf"}


_SEALED = """
import ctypes, mmap, os, socket, sys
sys.path.insert(0, sys.argv[1])
import sandbox
unit = sandbox.settings(sandbox.Path(sys.argv[1]) / "minoots.service")
code = sandbox.program(unit)
sandbox._call("prctl", sandbox.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
sandbox.seal(code)
def tell(what, run):
    try:
        run()
    except OSError as error:
        print(what, os.strerror(error.errno), sep=": ")
    else:
        print(what, "done", sep=": ")
tell("inet", lambda: socket.socket(socket.AF_INET).close())
tell("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close())
tell("vsock", lambda: socket.socket(socket.AF_VSOCK).close())
tell("rw", lambda: mmap.mmap(-1, 4096, prot=3).close())
tell("rx", lambda: mmap.mmap(-1, 4096, prot=5).close())
tell("rwx", lambda: mmap.mmap(-1, 4096, prot=7).close())
tell("unshare", lambda: sandbox._call("unshare", 0x10000000))
def time_read():
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(208)) < 0:
        raise OSError(ctypes.get_errno(), "")
import threading
thread = threading.Thread(target=lambda: print("thread: done"))
thread.start()
thread.join()
tell("adjtimex", time_read)
"""


def test_the_sandbox_refuses_what_the_unit_refuses() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: the groups of system calls are not known")
    ran = subprocess.run(
        [sys.executable, "-c", _SEALED, str(PACKAGING)], capture_output=True, text=True, check=False
    )
    assert ran.stdout.splitlines() == [
        "inet: done",
        "packet: Address family not supported by protocol",
        "vsock: Address family not supported by protocol",
        "rw: done",
        "rx: done",
        "rwx: Operation not permitted",
        "unshare: Operation not permitted",
        "thread: done",
        "adjtimex: done",
    ], ran.stderr


def _key(folder: Path) -> Path:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", folder / "key"]
    subprocess.run(words, check=True)
    return folder / "key"


@pytest.mark.parametrize("changed", ["", "a.bin", "SHA256SUMS", "allowed_signers"])
def test_a_changed_release_is_noticed(packaging: Any, tmp_path: Path, changed: str) -> None:
    release, folder = packaging.release, tmp_path / "release"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"program")
    (folder / "SHA256SUMS").write_text(release.sums(folder))
    key = _key(tmp_path)
    release.sign(key, folder)
    known = tmp_path / "known"
    shutil.copy2(folder / "allowed_signers", known)
    if not changed:
        release.verify(folder, known)
        return
    if changed == "allowed_signers":  # somebody else's release, signed with their own key
        (tmp_path / "other").mkdir()
        release.sign(_key(tmp_path / "other"), folder)
    else:
        with (folder / changed).open("ab") as file:
            file.write(b"\n")
    with pytest.raises(subprocess.CalledProcessError):
        release.verify(folder, known)


def test_a_packed_folder_has_the_same_bytes_each_time(packaging: Any, tmp_path: Path) -> None:
    folder = tmp_path / "minoots-0"
    (folder / "sub").mkdir(parents=True)
    for name in ("b", "a", "sub/c"):
        (folder / name).write_text(name)
    packaging.release.pack(folder, tmp_path / "1.tar.xz", 1_000_000_000)
    (folder / "a").touch()
    shutil.copytree(folder, tmp_path / "copy" / "minoots-0")
    packaging.release.pack(tmp_path / "copy" / "minoots-0", tmp_path / "2.tar.xz", 1_000_000_000)
    assert (tmp_path / "1.tar.xz").read_bytes() == (tmp_path / "2.tar.xz").read_bytes()
    (folder / "a").write_text("A")
    packaging.release.pack(folder, tmp_path / "3.tar.xz", 1_000_000_000)
    assert (tmp_path / "1.tar.xz").read_bytes() != (tmp_path / "3.tar.xz").read_bytes()


def test_install_sh_installs_below_a_folder_and_keeps_the_configuration(tmp_path: Path) -> None:
    bundle, root = tmp_path / "bundle", tmp_path / "root"
    (bundle / "minoots.dist").mkdir(parents=True)
    program = bundle / "minoots.dist" / "minoots"
    program.write_text("#!/bin/sh\necho minoots 1\n")
    program.chmod(0o755)
    for name in ("minoots.toml", "minoots.service"):
        (bundle / name).write_text(name)
    (bundle / "VERSION").write_text("1\n")
    shutil.copy2(PACKAGING / "install.sh", bundle)

    def install(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", str(bundle / "install.sh"), "--root", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert install().returncode == 0
    assert (root / "opt/minoots/current").readlink() == Path("1")
    assert (root / "opt/minoots/1/minoots").exists()
    own = root / "etc/minoots/minoots.toml"
    own.write_text("mine")
    (bundle / "VERSION").write_text("2\n")
    assert "kept" in install().stdout
    assert own.read_text() == "mine"
    assert (root / "opt/minoots/current").readlink() == Path("2")
    assert (root / "opt/minoots/1/minoots").exists(), "the version before is there to go back to"
    (bundle / "SHA256SUMS").write_text(f"{'0' * 64}  VERSION\n")
    (bundle / "VERSION").write_text("3\n")
    assert install().returncode == 1
    assert (root / "opt/minoots/current").readlink() == Path("2"), "a bad release changes nothing"
    (bundle / "SHA256SUMS").unlink()
    assert install("--remove").returncode == 0
    assert own.read_text() == "mine"
    assert not (root / "opt/minoots").exists()


def test_what_differs_between_two_builds_is_named(packaging: Any, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name / "dist").mkdir(parents=True)
        (tmp_path / name / "dist" / "same").write_text("same")
        (tmp_path / name / "dist" / "changed").write_text(name)
    (tmp_path / "other" / "dist" / "added").touch()
    found = packaging.again.differences(tmp_path / "one" / "dist", tmp_path / "other" / "dist")
    assert found == ["dist/added", "dist/changed"]


def test_what_the_extensions_import_is_found_in_their_sources(packaging: Any) -> None:
    found = packaging.binary.imports_of_extensions()
    assert {"lmdb.cpython", "msgspec", "zmq.backend.cython._zmq"} <= set(found)
    assert not [name for name in found if name.split(".")[0] in ("engine", "edgenode", "libc")]


# Imported where it is said what follows if it is not there.
DONE_WITHOUT = {
    ("minoots/done.py", "sqlite3"),
    ("edgenode/__main__.py", "bench"),
}


def imported(tree: ast.AST) -> set[str]:
    """The modules that some code may import when it runs."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        found |= imported(node)
    return found


def test_what_is_left_out_of_the_binary_is_not_imported(packaging: Any) -> None:
    left_out = packaging.binary.LEFT_OUT
    wanted = set()
    for top in packaging.binary.OURS:
        for path in (ROOT / top).rglob("*.py"):
            modules = imported(ast.parse(path.read_text()))
            wanted |= {
                (path.relative_to(ROOT).as_posix(), name)
                for name in left_out
                if any(module == name or module.startswith(f"{name}.") for module in modules)
            }
    assert wanted == DONE_WITHOUT


@pytest.mark.parametrize(
    ("licence", "may"),
    [
        ("MIT", True),
        ("MPL-2.0", True),
        ("GPL-3.0-only WITH GCC-exception-3.1", True),
        ("GPL-2.0-or-later", False),
        ("LGPL-3.0-only", False),
        ("AGPL-3.0-only", False),
        ("SSPL-1.0", False),
    ],
)
def test_a_licence_that_may_not_be_inside_is_refused(
    packaging: Any, licence: str, may: bool
) -> None:
    part = packaging.bill.Part("x", "1", licence, "pkg:generic/x@1", ())
    assert (packaging.bill.faults([part]) == []) is may


def test_the_floor_of_glibc_and_the_libraries_that_are_wanted(
    packaging: Any, tmp_path: Path
) -> None:
    source = tmp_path / "x.c"
    source.write_text("#include <time.h>\nint main(void) { return (int)time(0); }\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    subprocess.run(["gcc", "-o", folder / "x", source], check=True)
    assert packaging.deb.depends(folder).startswith("libc6 (>= 2.")
    (tmp_path / "own.c").write_text("int own;\n")
    library = tmp_path / "libunheard.so"
    subprocess.run(["gcc", "-shared", "-o", library, tmp_path / "own.c"], check=True)
    flags = ["-Wl,--no-as-needed", f"-L{tmp_path}", "-lunheard"]
    subprocess.run(["gcc", "-o", folder / "y", source, *flags], check=True)
    with pytest.raises(SystemExit, match="libunheard"):
        packaging.deb.depends(folder)
    shutil.copy2(library, folder)
    assert "libunheard" not in packaging.deb.depends(folder)
