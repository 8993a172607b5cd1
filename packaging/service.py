"""The package as a service of a machine that systemd has booted: part of `packaging/prove`.

The machine is a container (systemd-nspawn) of a Debian without Python; a raw client watches from
outside. What is looked at is what the unit promises: readiness, the sandbox, restarts after a kill
and after a hang, a configuration that is wrong, a clean stop.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BOOT_S = 60.0
WAIT_S = 30.0
HANG_S = 3  # of the watchdog, and until what hangs is killed, here
UNIT = "minoots.service"
DATA = "var/lib/minoots"


class Refused(Exception):
    """The machine did not do what was asked."""


def missing() -> str:
    """Why no machine can be booted here; "" if one can."""
    for program in ("systemd-nspawn", "debootstrap", "nsenter"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    return ""


class Machine:
    """A booted machine; `with` boots it and turns it off."""

    def __init__(self, root: Path, log: Path) -> None:
        self.root, self._log = root, log
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> Machine:
        words = ["systemd-nspawn", "--quiet", f"--directory={self.root}", "--boot"]
        words += ["--register=no", "--keep-unit", "--console=pipe"]
        with self._log.open("wb") as log:
            self._nspawn = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._wait_for_boot(self._nspawn)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait_for_boot(self, nspawn: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + BOOT_S
        while time.monotonic() < until and nspawn.poll() is None:
            children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children").read_text().split()
            if children:
                self._leader = int(children[0])
                # Degraded: a unit that has nothing to do with ours may not like the container.
                if self.try_run("systemctl", "is-system-running").stdout.strip() in (
                    *("running", "degraded"),
                ):
                    return
            time.sleep(0.2)
        raise Refused(f"it did not boot: see {self._log}")

    def __exit__(self, *exc: object) -> None:
        assert self._nspawn is not None
        if self._leader and self._nspawn.poll() is None:
            self.try_run("systemctl", "poweroff", "--no-block")
        try:
            self._nspawn.wait(20)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()

    def try_run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program in there."""
        inside = ["nsenter", f"--target={self._leader}", "--all", "/usr/bin/env", "-i"]
        given = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
        return subprocess.run(
            [*inside, *given, *words], capture_output=True, text=True, check=False
        )

    def run(self, *words: str) -> str:
        """Run a program in there that must succeed; what it printed."""
        ran = self.try_run(*words)
        if ran.returncode:
            raise Refused(f"{' '.join(words)} ended with {ran.returncode}: {ran.stderr[-500:]}")
        return ran.stdout

    def shown(self) -> dict[str, str]:
        """What systemd says of the service."""
        names = "ActiveState,SubState,Result,MainPID,NRestarts,ExecMainStatus,StatusText"
        lines = self.run("systemctl", "show", UNIT, f"--property={names}").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def wait(self, what: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """Until it is so; what systemd says then."""
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            if what(found := self.shown()):
                return found
            time.sleep(0.1)
        raise Refused(f"it stays {found}: {self.run('journalctl', '-u', UNIT, '-n', '20')}")

    def running(self, restarts: int) -> dict[str, Any]:
        """Until the service has been restarted so often and is ready; its ready file."""
        self.wait(lambda at: at["ActiveState"] == "active" and int(at["NRestarts"]) == restarts)
        ready: dict[str, Any] = json.loads((self.root / DATA / "minoots.json").read_bytes())
        return ready

    def kill(self, number: signal.Signals) -> None:
        """Send the node a signal."""
        self.run("systemctl", "kill", "--kill-whom=main", f"--signal={number.name}", UNIT)

    def settings(self, text: str) -> None:
        """Change the unit as an operator does."""
        folder = self.root / "etc/systemd/system/minoots.service.d"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "override.conf").write_text(text)
        self.run("systemctl", "daemon-reload")


def sandbox_of(machine: Machine) -> dict[str, str]:
    """What holds for the process of the node, by its own /proc/PID/status."""
    pid = machine.shown()["MainPID"]
    lines = machine.run("cat", f"/proc/{pid}/status").splitlines()
    found = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    wanted = ("NoNewPrivs", "Seccomp", "CapEff", "CapBnd")
    told = {name: found[name].strip() for name in wanted}
    owner = machine.run("stat", "--format=%U", f"/proc/{pid}").strip()
    return {**told, "user": owner}


def hang(machine: Machine, restarts: int) -> float:
    """Stop the process as a hang would; the seconds until the watchdog has it running again."""
    machine.settings(f"[Service]\nWatchdogSec={HANG_S}s\nTimeoutAbortSec={HANG_S}s\n")
    machine.run("systemctl", "restart", UNIT)
    machine.running(0)  # a restart that was asked for counts from 0 again
    began = time.monotonic()
    machine.kill(signal.SIGSTOP)
    machine.running(restarts)
    return round(time.monotonic() - began, 1)


def wrong_configuration(machine: Machine) -> dict[str, str]:
    """A configuration with a fault: the service fails, says why, and does not try for ever."""
    file = machine.root / "etc/minoots/minoots.toml"
    good = file.read_text()
    file.write_text("[log]\nretention = 3\n")
    os.chmod(file, 0o644)
    try:
        if machine.try_run("systemctl", "restart", UNIT).returncode == 0:
            raise Refused("it started with a configuration that is wrong")
        before = machine.shown()
        time.sleep(3)
        after = machine.shown()
        if (after["ActiveState"], after["NRestarts"]) != ("failed", before["NRestarts"]):
            raise Refused(f"with a wrong configuration it is {after}")
        said = machine.run("journalctl", "-u", UNIT, "-n", "10", "-o", "cat")
        if "write a duration" not in said:
            raise Refused(f"the journal does not say what is wrong: {said}")
    finally:
        file.write_text(good)
    machine.run("systemctl", "reset-failed", UNIT)
    machine.run("systemctl", "start", UNIT)
    return {"state": after["ActiveState"], "result": after["Result"]}
