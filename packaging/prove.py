"""`packaging/prove`: the binary in bare systems, outside of which a raw client watches it.

For each system (made by debootstrap, kept in build/prove): no Python, a read-only root, as
a user that owns nothing, with no environment and a /tmp that holds no programs:

    the folder                   schedule, kill -9, restart, nothing lost or early, SIGTERM
    the folder, under the unit   the same under the systemd unit's sandbox (sandbox.py), with its
                                 check before it, and the messages that a service manager waits for
    one file                     the same, with the folder for programs that it needs
    the .deb                     installs, its program runs, and purging leaves the timers
    the archive                  the same by install.sh, which refuses files that were changed
    the wheel                    in a clean virtual environment: demonstration, SDK, a bundle's keys
    the service                  a machine that systemd has booted (service.py), with the .deb

Loopback only. Prints a line each, and writes build/prove/report.json; exit code 1 if any failed.
What cannot be tried here (no debootstrap, no mirror of a system) says so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import deb
import release
import service
from sandbox import NOT_APPLIED, USER
from stamp import DIST, ROOT, WORK, stamp

from tests.e2e.harness import Raw, ns_of

PLACE = ROOT / "build" / "prove"
UNIT = WORK / "minoots.service"
SYSTEMS = ("jammy", "bookworm", "trixie")  # jammy is the oldest that has the glibc, 2.35
TIMERS = 400
SPREAD_S = 4.0
START_S = 30.0
READY_FILE = "minoots.json"
PROGRAMS = {"folder": "/opt/minoots.dist/minoots", "one file": "/opt/minoots"}


class Failed(Exception):
    """A proof that did not hold."""


class Skipped(Exception):
    """A proof that cannot be tried here."""


def need(holds: object, what: str) -> None:
    """Fail unless it holds."""
    if not holds:
        raise Failed(what)


def bare(suite: str, name: str, *options: str) -> Path:
    """A bare system, made once."""
    root = PLACE / name
    if not (root / "bin/sh").exists():
        PLACE.mkdir(parents=True, exist_ok=True)
        # From the mirror that debootstrap knows for the suite. Without the keyring of that
        # distribution it warns, and does not check it.
        words = ["debootstrap", "--variant=minbase", *options, suite, str(root)]
        with (PLACE / f"{name}.log").open("wb") as log:
            made = subprocess.run(words, stdout=log, stderr=log, check=False)
        if made.returncode:
            shutil.rmtree(root, ignore_errors=True)
            raise Skipped(f"debootstrap could not make it: see {PLACE / name}.log")
    return root


def system(suite: str) -> Path:
    """A bare system; the programs are put in anew each time."""
    root = bare(suite, suite)
    found = [*root.glob("usr/bin/python*"), *root.glob("usr/lib/python3*/os.py")]
    need(not found, f"{suite} has a Python: {found}")
    opt, etc = root / "opt", root / "etc/minoots"
    for old in (opt / "minoots", opt / "minoots.dist"):
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    if (DIST / "minoots.dist").exists():
        shutil.copytree(DIST / "minoots.dist", opt / "minoots.dist")
    if (DIST / "minoots").exists():
        shutil.copy2(DIST / "minoots", opt / "minoots")
    etc.mkdir(exist_ok=True)
    (etc / "minoots.toml").write_text(example())
    return root


def example() -> str:
    """The configuration that is shipped, as the program prints it."""
    words = [str(DIST / "minoots.dist/minoots"), "check-config", "--example"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


class Inside:
    """A node in a bare system, seen from outside."""

    def __init__(
        self, root: Path, form: str, *, unit: bool = False, exec_tmp: bool = False
    ) -> None:
        self.data = PLACE / "data"
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir()
        os.chown(self.data, USER, USER)
        self.log = PLACE / f"{root.name}-{form.replace(' ', '-')}{'-unit' if unit else ''}.log"
        self.log.unlink(missing_ok=True)
        self._program = PROGRAMS[form]
        self._words = [sys.executable, str(ROOT / "packaging/sandbox.py"), f"--root={root}"]
        self._words += [f"--data={self.data}"]
        self._words += [f"--unit={UNIT}"] * unit + ["--exec-tmp"] * exec_tmp
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str, **environ: str) -> dict[str, Any]:
        """Start a node; what its ready file says."""
        doors = [f"--{door}=tcp://127.0.0.1:0" for door in ("control", "stream", "events")]
        self.spawn("run", "--data=/data", "--config=/etc/minoots/minoots.toml", *doors, **environ)
        assert self.process is not None
        ready, before = self.data / READY_FILE, time.monotonic()
        while time.monotonic() < before + START_S and self.process.poll() is None:
            if ready.exists():
                found: dict[str, Any] = json.loads(ready.read_bytes())
                if Path(f"/proc/{found['pid']}").exists():
                    return found
            time.sleep(0.005)
        self.stop(signal.SIGKILL)
        raise Failed(f"the node did not start:\n{self.log.read_text(errors='replace')[-2000:]}")

    def spawn(self, *words: str, **environ: str) -> subprocess.Popen[bytes]:
        """Start the program in there."""
        given = [f"--set={name}={value}" for name, value in environ.items()]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._words, *given, "--", self._program, *words], stdout=log, stderr=log
            )
        return self.process

    def ask(self, *words: str, **environ: str) -> int:
        """Run a verb to its end; its exit code."""
        return self.spawn(*words, **environ).wait(60)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)


def life(node: Inside, **environ: str) -> dict[str, Any]:
    """Timers over a few seconds, killed amid them: every one fires once, none early."""
    found = node.start(**environ)
    made = spread(found["doors"])
    os.kill(found["pid"], signal.SIGKILL)
    assert node.process is not None
    node.process.wait(30)
    found = node.start(**environ)
    fired = all_fired(found["doors"], made)
    rss = rss_mb(found["pid"])
    need((code := node.stop()) == 0, f"SIGTERM ended it with {code}")
    need(not (node.data / READY_FILE).exists(), "the ready file is still there")
    need(not Path(f"/proc/{found['pid']}").exists(), "the node outlived what was stopped")
    return {"timers": TIMERS, "fired": fired, "early": 0, "rss_mb": rss}


def spread(doors: dict[str, str]) -> dict[str, str]:
    """Timers over a few seconds, of which some have fired by now: id -> due."""
    made = {}
    with Raw(doors) as raw:
        live = raw.subscribe()
        for k in range(TIMERS):
            view = raw.after(f"{1000 + round(k * SPREAD_S * 1000 / TIMERS)}ms", f"n{k}")
            made[view["id"]] = view["due"]
        need(live.poll(5000), "no live event")
        time.sleep(SPREAD_S / 3)
    return made


def all_fired(doors: dict[str, str], made: dict[str, str]) -> int:
    """Wait until all are due; each has fired once, none early."""
    with Raw(doors) as raw:
        time.sleep(SPREAD_S + 1)
        events = [event for event in raw.replay_all() if event["type"].endswith(".expired.v1")]
    fired = [event for event in events if event["subject"] in made]
    subjects = [event["subject"] for event in fired]
    need(sorted(subjects) == sorted(made), f"{len(fired)} of {TIMERS} fired")
    early = [e for e in fired if ns_of(e["data"]["fired"]) < ns_of(made[e["subject"]])]
    need(not early, f"{len(early)} fired early")
    need(len({event["dedupekey"] for event in fired}) == TIMERS, "a dedupe key came twice")
    return len(fired)


def rss_mb(pid: int) -> int:
    """The resident memory of a process, in MB of 10^6 bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1_000_000


def folder(root: Path) -> dict[str, Any]:
    """The folder form as it is."""
    return life(Inside(root, "folder"))


def under_the_unit(root: Path) -> dict[str, Any]:
    """The folder form with the sandbox of the unit, and a service manager that listens."""
    UNIT.write_text(deb.support_files(PROGRAMS["folder"])["usr/lib/systemd/system/minoots.service"])
    node = Inside(root, "folder", unit=True)
    code = node.ask("check-config", "--config", "/etc/minoots/minoots.toml")
    need(code == 0, f"check-config ended with {code}: {node.log.read_text()[-500:]}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0minoots-prove")
        manager.settimeout(5)
        asked = {"NOTIFY_SOCKET": "@minoots-prove", "WATCHDOG_USEC": "2000000"}
        node.start(**asked)
        said = [manager.recv(4096).split(b"\n")[0].decode() for _ in range(2)]
        need(node.stop() == 0, "it did not stop")
        while said[-1] != "STOPPING=1":
            said.append(manager.recv(4096).decode())
    need(said[:2] == ["READY=1", "WATCHDOG=1"], f"it said {said}")
    return {**life(node), "said": sorted(set(said)), "not_applied": list(NOT_APPLIED)}


def one_file(root: Path) -> dict[str, Any]:
    """One file: refused where it cannot unpack, and well where TMPDIR says where it can."""
    node = Inside(root, "one file")
    code = node.ask("version")
    need(code != 0, "it ran though no folder may hold programs")
    own = node.data / "unpacked"
    own.mkdir()
    os.chown(own, USER, USER)
    found = life(node, TMPDIR="/data/unpacked")
    need(not list(own.glob("*/*.so")), "what it unpacked is still there after a clean stop")
    return {**found, "without_tmpdir": code}


def package(root: Path) -> dict[str, Any]:
    """The .deb installs in there with dpkg alone, and what it installs runs."""
    (made,) = DIST.glob("minoots_*.deb")
    shutil.copy2(made, root / "opt/minoots.deb")
    dpkg = ["chroot", str(root), "dpkg"]
    said = subprocess.run(
        [*dpkg, "--install", "/opt/minoots.deb"], capture_output=True, text=True, check=False
    )
    need(said.returncode == 0, said.stderr)
    subprocess.run(["mount", "-t", "proc", "proc", root / "proc"], check=True)
    try:
        ran = subprocess.run(
            ["chroot", str(root), "/usr/bin/env", "-i", "/usr/bin/minoots", "version", "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        subprocess.run(["umount", root / "proc"], check=True)
    need(ran.returncode == 0, ran.stderr)
    user = (root / "etc/passwd").read_text()
    need("minoots:" in user, "no user was made")
    mode = (root / "var/lib/minoots").stat().st_mode & 0o777
    need(mode == 0o700, f"the data directory has mode {mode:o}")
    subprocess.run([*dpkg, "--purge", "minoots"], capture_output=True, check=True)
    need(not (root / "etc/minoots").exists(), "purging left the configuration")
    need((root / "var/lib/minoots").exists(), "purging took the timers away")
    (root / "opt/minoots.deb").unlink()
    return {"form": json.loads(ran.stdout)["form"], "bytes": made.stat().st_size}


def archive(root: Path) -> dict[str, Any]:
    """install.sh installs offline what the archive holds, refuses changed files, and removes."""
    (root / "opt/minoots").unlink(missing_ok=True)  # the one file; this is a folder now
    bundle = root / "opt/offline"
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(release.offline_folder(stamp()), bundle)

    def inside(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["chroot", str(root), "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    subprocess.run(["mount", "-t", "proc", "proc", root / "proc"], check=True)
    try:
        done = inside("sh", "/opt/offline/install.sh")
        need(done.returncode == 0, done.stderr)
        ran = inside("/usr/local/bin/minoots", "version", "--json")
        need(ran.returncode == 0, ran.stderr)
        checked = inside(
            "/usr/local/bin/minoots", "check-config", "--config=/etc/minoots/minoots.toml"
        )
        need(checked.returncode == 0, checked.stderr)
        with (bundle / "minoots.dist/minoots").open("ab") as program:
            program.write(b"x")
        need(
            inside("sh", "/opt/offline/install.sh").returncode == 1, "a changed file was installed"
        )
        need(inside("sh", "/opt/offline/install.sh", "--remove").returncode == 0, "not removed")
    finally:
        subprocess.run(["umount", root / "proc"], check=True)
        shutil.rmtree(bundle)
    need(not (root / "opt/minoots").is_dir(), "the program is still there")
    need((root / "var/lib/minoots").exists(), "removing took the timers away")
    return {"form": json.loads(ran.stdout)["form"], "version": json.loads(ran.stdout)["minoots"]}


def as_a_wheel() -> dict[str, Any]:
    """The wheel in a virtual environment that has nothing else, and nothing of this folder."""
    home = PLACE / "wheel"
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home / "venv", with_pip=True, symlinks=True)
    bin, (wheel,) = home / "venv/bin", DIST.glob("minoots-*.whl")
    env = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TMPDIR": str(home)}

    def run(*words: object) -> str:
        command = [str(word) for word in words]
        ran = subprocess.run(
            command, cwd=home, env=env, capture_output=True, text=True, check=False
        )
        need(ran.returncode == 0, f"{words[0]}: {ran.stdout[-300:]}{ran.stderr[-500:]}")
        return ran.stdout

    locked = ("-c", ROOT / "requirements.txt")
    environ = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    installed = subprocess.run(
        [bin / "python", "-m", "pip", "install", "--quiet", *locked, wheel],
        env=environ,
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    need(installed.returncode == 0, installed.stderr[-500:])
    need("12 fired, 0 early, 0 lost" in run(bin / "minoots", "demo", "--seconds", "2"), "demo")
    code = (
        "from minoots.testing import TestNode\n"
        "with TestNode() as node:\n"
        "    node.client.schedule('tea', after='4m'); node.advance('5m')\n"
        "    print([event.name for event in node.expired])"
    )
    need("['tea']" in run(bin / "python", "-c", code), "the SDK's TestNode")
    need("good" in run(bin / "minoots", "check-config"), "check-config")
    (home / "data").mkdir()
    (home / "data/node.id").write_text("rack-7\n")
    key = run(bin / "minoots", "keys", "new", "--data", home / "data")
    need(key.startswith("minoots-public-1 rack-7 "), "keys")
    found = json.loads(run(bin / "minoots", "version", "--json"))
    return {"form": found["form"], "bytes": wheel.stat().st_size}


def as_a_service() -> dict[str, Any]:
    """The .deb on a machine that systemd has booted: ready, confined, restarted, stopped."""
    if why := service.missing():
        raise Skipped(why)
    root = bare("bookworm", "booted", "--include=systemd,systemd-sysv,dbus")
    shutil.rmtree(root / service.DATA, ignore_errors=True)
    (made,) = DIST.glob("minoots_*.deb")
    shutil.copy2(made, root / "opt/minoots.deb")
    (root / "etc/systemd/system/minoots.service.d/override.conf").unlink(missing_ok=True)
    with service.Machine(root, PLACE / "booted-machine.log") as machine:
        machine.try_run("dpkg", "--purge", "minoots")
        machine.run("dpkg", "--install", "/opt/minoots.deb")
        machine.run("systemctl", "enable", "--now", service.UNIT)
        timers = spread(machine.running(0)["doors"])
        confined = service.sandbox_of(machine)
        nothing = "0" * 16
        expected = {"NoNewPrivs": "1", "Seccomp": "2", "CapEff": nothing, "CapBnd": nothing}
        need(confined == {**expected, "user": "minoots"}, f"it is not confined: {confined}")
        machine.kill(signal.SIGKILL)
        doors = machine.running(1)["doors"]
        fired = all_fired(doors, timers)
        with Raw(doors) as raw:
            policy = raw.ask("stats")["pulse"]["policy"]
        hung_s = service.hang(machine, 1)
        wrong = service.wrong_configuration(machine)
        machine.wait(lambda at: at["ActiveState"] == "active")
        machine.run("systemctl", "stop", service.UNIT)
        stopped = machine.shown()
        need(stopped["Result"] == "success", f"stopped, it is {stopped}")
        machine.run("dpkg", "--purge", "minoots")
        need((root / service.DATA / "log").exists(), "purging took the timers away")
    told = {"confined": confined, "policy": policy, "restarted_after_a_hang_s": hung_s}
    return {"timers": TIMERS, "fired": fired, **told, "wrong_configuration": wrong}


PROOFS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "folder": folder,
    "unit": under_the_unit,
    "one file": one_file,
    "deb": package,
    "archive": archive,
}


# Those that are of no system in particular.
ONCE: dict[str, Callable[[], dict[str, Any]]] = {"wheel": as_a_wheel, "service": as_a_service}


def prove_in(suite: str, proof: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Prove something in a system, which is made if need be."""
    return proof(system(suite))


def unit_verdicts() -> dict[str, Any]:
    """What systemd itself thinks of the unit, where its tools are installed."""
    if shutil.which("systemd-analyze") is None:
        raise Skipped("systemd-analyze is not installed")
    UNIT.parent.mkdir(parents=True, exist_ok=True)
    program = str(DIST / "minoots.dist/minoots")
    UNIT.write_text(deb.support_files(program)["usr/lib/systemd/system/minoots.service"])
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", UNIT], capture_output=True, text=True, check=False
    )
    need(checked.returncode == 0 and not checked.stderr, f"verify: {checked.stderr}")
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", UNIT],
        capture_output=True,
        text=True,
        check=False,
    )
    return {"verify": "ok", "exposure": rated.stdout.strip().splitlines()[-1].lstrip("→ ")}


def main() -> int:
    """Prove all that is asked for; the exit code."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--system", action="append", choices=SYSTEMS, help="default: all")
    asked.add_argument("--only", action="append", choices=[*PROOFS, *ONCE])
    given = asked.parse_args()
    if os.geteuid() != 0:
        sys.exit("packaging: a root of its own needs root")
    report: dict[str, Any] = {}
    failed = skipped = 0

    def prove(name: str, proof: Callable[[], dict[str, Any]]) -> None:
        nonlocal failed, skipped
        try:
            report[name] = proof()
        except Skipped as error:
            report[name], skipped = {"skipped": str(error)}, skipped + 1
        except (Failed, service.Refused) as error:
            report[name], failed = {"failed": str(error)}, failed + 1
        print(f"{name}: {json.dumps(report[name])}", flush=True)

    prove("systemd-analyze", unit_verdicts)
    for suite in given.system or SYSTEMS:
        for name in given.only or PROOFS:
            if name in PROOFS:
                prove(f"{suite}: {name}", partial(prove_in, suite, PROOFS[name]))
    for name, proof in ONCE.items():
        if name in (given.only or ONCE):
            prove(name, proof)
    (PLACE / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    held = len(report) - failed - skipped
    print(f"{held} of {len(report)} hold, {failed} do not, {skipped} were not tried", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
