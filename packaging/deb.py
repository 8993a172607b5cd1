"""`make deb`: a Debian package of the folder form, written by dpkg-deb alone.

    /usr/lib/minoots/            the program, as it was built
    /usr/bin/minoots             a link to it
    /etc/minoots/minoots.toml    every key at its default, commented out; kept over upgrades
    systemd unit, tmpfiles, docs, licences, bill of materials

Owners, times and order are fixed: the same folder gives the same bytes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import bill
from stamp import DIST, ROOT, WORK, Stamp, run, stamp

PROGRAM = "usr/lib/minoots"
HERE = ROOT / "packaging"
FOLDER = DIST / "minoots.dist"
GLIBC = re.compile(rb"GLIBC_2\.(\d+)")
NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]")
# What the folder leaves to the system -> the package that has it, beside libc6 itself.
SYSTEM = {"libstdc++.so.6": "libstdc++6", "libgcc_s.so.1": "libgcc-s1", "libz.so.1": "zlib1g"}
OF_LIBC = re.compile(r"(libc|libm|libdl|libpthread|librt|ld-linux-x86-64)\.so\.")


def glibc_floor(folder: Path) -> str:
    """The oldest glibc that has all that the files of a folder ask for, such as `2.35`.

    libc itself writes its versions into what is linked with it.
    """
    newest = 0
    for path in folder.rglob("*"):
        if path.is_file() and path.read_bytes()[:4] == b"\x7fELF":
            newest = max([newest, *map(int, GLIBC.findall(path.read_bytes()))])
    return f"2.{newest}"


def depends(folder: Path) -> str:
    """The packages that have the libraries which a folder needs and does not hold.

    Ends the build where such a library is unknown: it would be missing on some machine.
    """
    own = {path.name for path in folder.rglob("*") if path.is_file()}
    wanted = set()
    for path in folder.rglob("*"):
        if path.is_file() and path.read_bytes()[:4] == b"\x7fELF":
            ran = subprocess.run(
                ["readelf", "-d", path], capture_output=True, text=True, check=True
            )
            wanted |= set(NEEDED.findall(ran.stdout)) - own
    wanted = {name for name in wanted if not OF_LIBC.match(name)}
    if unknown := wanted - SYSTEM.keys():
        sys.exit(f"packaging: the folder needs {sorted(unknown)}; name them in deb.SYSTEM")
    packages = sorted(SYSTEM[name] for name in wanted)
    return ", ".join([f"libc6 (>= {glibc_floor(folder)})", *packages, "passwd"])


def built_of() -> str:
    """The commit that the folder form was built of, as it says itself."""
    words = [str(FOLDER / "minoots"), "version", "--json"]
    ran = subprocess.run(words, capture_output=True, text=True, check=True)
    return str(json.loads(ran.stdout)["commit"])


def control(version: str, commit: str, installed_kib: int, needs: str) -> str:
    """The package's control file. commit: of the program, which may be older than the sources."""
    if commit.endswith("-dirty"):
        version += "+dirty"
    return (
        "Package: minoots\n"
        f"Version: {version}\n"
        "Architecture: amd64\n"
        "Section: net\n"
        "Priority: optional\n"
        "Maintainer: MINOOTS <root@localhost>\n"
        f"Installed-Size: {installed_kib}\n"
        f"Depends: {needs}\n"
        "Description: durable timing service\n"
        " A timer, once acknowledged, fires at its instant, survives every crash, and can be\n"
        " proven afterwards. One node, one data directory; nothing is fetched when it runs.\n"
        f" .\n Built from commit {commit}.\n"
    )


def put(tree: Path, name: str, source: str | Path, mode: int = 0o644) -> None:
    """Write text, or copy a file, to a place of the package's tree."""
    target = tree / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(source, Path):
        shutil.copy2(source, target)
    else:
        target.write_text(source)
    target.chmod(mode)


def lay_out(tree: Path, stamped: Stamp) -> None:
    """Make the package's tree from the folder form."""
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(FOLDER, tree / PROGRAM)
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/minoots").symlink_to(f"../../{PROGRAM}/minoots")
    for name, text in support_files("/usr/bin/minoots").items():
        put(tree, name, text)
    docs = "usr/share/doc/minoots"
    for page in ("docs/operating.md", "docs/protocol.md", "CHANGELOG.md", "README.md"):
        put(tree, f"{docs}/{Path(page).name}", ROOT / page)
    put(tree, f"{docs}/copyright", bill.licences())
    put(tree, f"{docs}/minoots.cdx.json", bill.as_json(stamped))
    scripts = HERE / "debian"
    for script in ("postinst", "prerm", "postrm"):
        put(tree, f"DEBIAN/{script}", scripts / script, 0o755)
    put(tree, "DEBIAN/conffiles", "/etc/minoots/minoots.toml\n")
    kib = sum(path.lstat().st_size for path in tree.rglob("*")) // 1024
    put(tree, "DEBIAN/control", control(stamped.version, built_of(), kib, depends(FOLDER)))


def support_files(program: str) -> dict[str, str]:
    """What goes beside the program: path -> text."""

    def told(*words: str) -> str:
        ran = subprocess.run(
            [FOLDER / "minoots", *words], capture_output=True, text=True, check=True
        )
        return ran.stdout

    unit = (HERE / "minoots.service").read_text().replace("@BIN@", program)
    return {
        "etc/minoots/minoots.toml": told("check-config", "--example"),
        "usr/share/bash-completion/completions/minoots": told("completion", "bash"),
        "usr/lib/systemd/system/minoots.service": unit,
        "usr/lib/tmpfiles.d/minoots.conf": (HERE / "minoots.tmpfiles").read_text(),
    }


def settle(tree: Path, epoch_s: int) -> None:
    """Give every file its mode and the time of the commit."""
    for path in [tree, *tree.rglob("*")]:
        if not path.is_symlink():
            executable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if executable else 0o644)
        os.utime(path, (epoch_s, epoch_s), follow_symlinks=False)


def build(stamped: Stamp) -> Path:
    """Build the package; where it is. Ends the program when there is no folder form."""
    if not (FOLDER / "minoots").exists():
        sys.exit("packaging: dist/minoots.dist is not there; run `make binary` first")
    tree = WORK / "deb"
    lay_out(tree, stamped)
    settle(tree, stamped.epoch_s)
    made = DIST / f"minoots_{stamped.version}_amd64.deb"
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(stamped.epoch_s)}
    run("dpkg-deb", "--root-owner-group", "-Zxz", "-z6", "--build", tree, made, env=env)
    return made


if __name__ == "__main__":
    print(build(stamp()))
