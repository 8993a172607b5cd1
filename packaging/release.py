"""`make release KEY=FILE`: everything that is handed out, in dist/release, with sums and signature.

    minoots-VERSION-linux-x86_64.tar.xz   the folder form with install.sh, to install offline
    minoots-VERSION-linux-x86_64          one file
    minoots_VERSION_amd64.deb, minoots-VERSION-*.whl
    minoots-VERSION.cdx.json, LICENSES.txt
    SHA256SUMS, SHA256SUMS.sig, allowed_signers

The signature is of SHA256SUMS, by `ssh-keygen -Y sign` with the key that is given: a file outside
the repository, or a public key whose private half an agent or a token holds. Without a key nothing
is signed, and the release says so.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import bill
import deb
from stamp import DIST, ROOT, WORK, Stamp, stamp

RELEASE = DIST / "release"
SIGNER, NAMESPACE = "release@minoots", "minoots-release"
HERE = ROOT / "packaging"
SUMS = "SHA256SUMS"


def sums(folder: Path) -> str:
    """The lines of a SHA256SUMS for all files below a folder."""
    lines = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(SUMS)):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"{digest}  {path.relative_to(folder)}\n")
    return "".join(lines)


def offline_folder(stamped: Stamp) -> Path:
    """The folder that install.sh installs from."""
    home = WORK / f"minoots-{stamped.version}-linux-x86_64"
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(deb.FOLDER, home / "minoots.dist")
    support = deb.support_files("/opt/minoots/current/minoots")
    (home / "minoots.toml").write_text(support["etc/minoots/minoots.toml"])
    (home / "minoots.service").write_text(support["usr/lib/systemd/system/minoots.service"])
    (home / "VERSION").write_text(stamped.version + "\n")
    (home / "LICENSES.txt").write_text(bill.licences())
    (home / "minoots.cdx.json").write_text(bill.as_json(stamped))
    for page in ("docs/operating.md", "docs/protocol.md", "CHANGELOG.md"):
        shutil.copy2(ROOT / page, home / Path(page).name)
    shutil.copy2(HERE / "install.sh", home / "install.sh")
    (home / SUMS).write_text(sums(home))
    return home


def pack(folder: Path, to: Path, epoch_s: int) -> None:
    """A tar of a folder with owners, times and order fixed."""

    def settled(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = "root"
        info.mtime = epoch_s
        info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
        return info

    with tarfile.open(to, "w:xz", format=tarfile.GNU_FORMAT) as tar:
        tar.add(folder, folder.name, recursive=False, filter=settled)
        for path in sorted(folder.rglob("*")):
            name = f"{folder.name}/{path.relative_to(folder)}"
            tar.add(path, name, recursive=False, filter=settled)


def sign(key: Path, folder: Path) -> None:
    """Sign the sums, and see that the signature is good. Raises CalledProcessError."""
    public = key if key.suffix == ".pub" else key.with_name(key.name + ".pub")
    kind, base64, *_ = public.read_text().split()
    signers = folder / "allowed_signers"
    signers.write_text(f'{SIGNER} namespaces="{NAMESPACE}" {kind} {base64}\n')
    listed = folder / SUMS
    (folder / f"{SUMS}.sig").unlink(missing_ok=True)
    words = ["ssh-keygen", "-Y", "sign", "-q", "-f", str(key), "-n", NAMESPACE, str(listed)]
    subprocess.run(words, check=True)
    verify(folder, signers)


def verify(folder: Path, signers: Path) -> None:
    """What a receiver does: is the list signed, and are the files those on it? Raises
    CalledProcessError."""
    words = ["ssh-keygen", "-Y", "verify", "-f", str(signers), "-I", SIGNER, "-n", NAMESPACE]
    signature = str(folder / f"{SUMS}.sig")
    with (folder / SUMS).open("rb") as listed:
        subprocess.run([*words, "-s", signature], stdin=listed, check=True, capture_output=True)
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=folder, check=True)


def build(stamped: Stamp) -> None:
    """Put everything into RELEASE; it must have been built."""
    shutil.rmtree(RELEASE, ignore_errors=True)
    RELEASE.mkdir(parents=True)
    name = f"minoots-{stamped.version}-linux-x86_64"
    pack(offline_folder(stamped), RELEASE / f"{name}.tar.xz", stamped.epoch_s)
    shutil.copy2(DIST / "minoots", RELEASE / name)
    shutil.copy2(deb.build(stamped), RELEASE)
    for wheel in DIST.glob("minoots-*.whl"):
        shutil.copy2(wheel, RELEASE)
    (RELEASE / f"minoots-{stamped.version}.cdx.json").write_text(bill.as_json(stamped))
    (RELEASE / "LICENSES.txt").write_text(bill.licences())
    for path in RELEASE.iterdir():
        os.utime(path, (stamped.epoch_s, stamped.epoch_s))
    (RELEASE / SUMS).write_text(sums(RELEASE))


def main() -> None:
    """Build, and sign if there is a key."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--key", type=Path, help="an SSH key, e.g. of ssh-keygen -t ed25519")
    given = asked.parse_args()
    if given.key is not None and given.key.resolve().is_relative_to(ROOT):
        sys.exit(
            f"packaging: {given.key} is in the repository; a key for signing is kept elsewhere"
        )
    stamped = stamp()
    if stamped.commit.endswith("-dirty") and given.key is not None:
        sys.exit("packaging: files differ from the commit; what is signed must be of one")
    commit = deb.built_of()
    if commit != stamped.commit and given.key is not None:
        sys.exit(
            f"packaging: dist/ was built of commit {commit}, the sources are {stamped.commit}; "
            "run `make binary`"
        )
    build(stamped)
    if given.key is None:
        print("not signed: give a key (make release KEY=FILE)")
    else:
        sign(given.key, RELEASE)
    for path in sorted(RELEASE.iterdir()):
        print(f"{path.stat().st_size:>12}  {path.name}")


if __name__ == "__main__":
    main()
