"""Run a program in a root of its own, as another user, under what a systemd unit asks for.

For `packaging/prove`, on machines where systemd does not run. The unit itself is read, so that what
is proven is what is shipped: the system call filter as BPF, limits, capabilities, address
families, memory that is never writable and executable, a read-only root, devices, /proc. What a
unit asks for and this cannot do is in NOT_APPLIED.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import re
import resource
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

UNISTD = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
DEVICES = ("null", "zero", "full", "random", "urandom")
NOT_APPLIED = ("IPAddressDeny", "IPAddressAllow", "ProtectHostname", "KeyringMode", "RemoveIPC")
USER = 64_242  # owns nothing on this machine

CLONE_NEWNS = 0x20000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 22, 24, 38
CAP_LAST = 40

ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
AUDIT_ARCH_X86_64, X32_BIT = 0xC000003E, 0x40000000
LOAD, JEQ, JGE, JSET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
AT_NUMBER, AT_ARCH, AT_ARGUMENTS = 0, 4, 16
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}
PROT_WRITE, PROT_EXEC = 2, 4
NEW_NAMESPACES = (
    0x7E020080  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME
)

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *words: object) -> None:
    if getattr(_libc, name)(*words) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{words}: {os.strerror(number)}")


def _mount(source: str, target: Path, kind: str = "", flags: int = 0, extra: str = "") -> None:
    words = (source.encode(), str(target).encode(), kind.encode() or None)
    _call("mount", *words, ctypes.c_ulong(flags), extra.encode() or None)


# ------------------------------------------------------------------------------- reading the unit


def settings(unit: Path) -> dict[str, list[str]]:
    """The [Service] section: key -> its values, in order; an empty value is ''."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def _members(group: str) -> set[str]:
    """The system calls of a group of systemd's, such as @system-service."""
    ran = subprocess.run(
        ["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True
    )
    names = set()
    for line in ran.stdout.splitlines()[1:]:
        name = line.strip()
        if name.startswith("@"):
            names |= _members(name)
        elif name and not name.startswith("#"):
            names.add(name)
    return names


def allowed_calls(filters: Iterable[str]) -> set[str]:
    """What the lines of SystemCallFilter= allow, taken one after the other."""
    allowed = {"execve", "exit", "exit_group", "rt_sigreturn", "sigreturn"} | _members("@default")
    for line in filters:
        for word in line.removeprefix("~").split():
            names = _members(word) if word.startswith("@") else {word}
            allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed


def call_numbers() -> dict[str, int]:
    """The numbers of the system calls on this architecture."""
    return {
        name: int(number)
        for name, number in re.findall(r"#define __NR_(\w+) (\d+)", UNISTD.read_text())
    }


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """One instruction; yes, no: how many a comparison skips."""
    return struct.pack("HBBI", code, yes, no, value)


def _refuse(number: int) -> bytes:
    return _step(RETURN, ERROR | number)


def _memory(numbers: dict[str, int]) -> list[bytes]:
    """MemoryDenyWriteExecute=: no page is both, and none becomes executable."""
    protection = AT_ARGUMENTS + 8 * 2
    lines = []
    for name in ("mprotect", "pkey_mprotect"):
        lines += [_step(JEQ, numbers[name], 0, 3), _step(LOAD, protection)]
        lines += [_step(JSET, PROT_EXEC, 0, 1), _refuse(errno.EPERM), _step(LOAD, AT_NUMBER)]
    lines += [_step(JEQ, numbers["mmap"], 0, 4), _step(LOAD, protection)]
    lines += [_step(JSET, PROT_WRITE, 0, 2), _step(JSET, PROT_EXEC, 0, 1)]
    return [*lines, _refuse(errno.EPERM), _step(LOAD, AT_NUMBER)]


def _namespaces(numbers: dict[str, int]) -> list[bytes]:
    """RestrictNamespaces=yes."""
    lines = []
    for name in ("clone", "unshare"):
        lines += [_step(JEQ, numbers[name], 0, 4), _step(LOAD, AT_ARGUMENTS)]
        lines += [_step(JSET, NEW_NAMESPACES, 0, 1), _refuse(errno.EPERM)]
        lines += [_step(LOAD, AT_NUMBER)]
    # The flags of clone3 are behind a pointer: the C library does without it.
    lines += [_step(JEQ, numbers["clone3"], 0, 1), _refuse(errno.ENOSYS)]
    return [*lines, _step(JEQ, numbers["setns"], 0, 1), _refuse(errno.EPERM)]


def _sockets(numbers: dict[str, int], families: list[int]) -> list[bytes]:
    """RestrictAddressFamilies=."""
    count = len(families)
    lines = [_step(JEQ, numbers["socket"], 0, count + 2), _step(LOAD, AT_ARGUMENTS)]
    lines += [_step(JEQ, family, count - at) for at, family in enumerate(families)]
    return [*lines, _refuse(errno.EAFNOSUPPORT), _step(LOAD, AT_NUMBER)]


def program(unit: dict[str, list[str]]) -> bytes:
    """The filter as BPF: what is not allowed fails with EPERM, as SystemCallErrorNumber= says."""
    numbers = call_numbers()
    lines = [_step(LOAD, AT_ARCH), _step(JEQ, AUDIT_ARCH_X86_64, 1, 0), _step(RETURN, KILL)]
    lines += [_step(LOAD, AT_NUMBER), _step(JGE, X32_BIT, 0, 1), _refuse(errno.EPERM)]
    if unit.get("MemoryDenyWriteExecute") == ["yes"]:
        lines += _memory(numbers)
    if unit.get("RestrictNamespaces") == ["yes"]:
        lines += _namespaces(numbers)
    for value in unit.get("RestrictAddressFamilies", []):
        lines += _sockets(numbers, [FAMILIES[word] for word in value.split()])
    for name in sorted(allowed_calls(unit["SystemCallFilter"]) & numbers.keys()):
        lines += [_step(JEQ, numbers[name], 0, 1), _step(RETURN, ALLOW)]
    lines.append(_refuse(errno.EPERM))
    return b"".join(lines)


# ------------------------------------------------------------------------------- applying it


def enter(root: Path, data: Path, *, unit: dict[str, list[str]], exec_tmp: bool) -> None:
    """Go into a root that is read-only but for /data; /tmp is fresh, and noexec unless asked."""
    _call("unshare", CLONE_NEWNS)
    _mount("none", Path("/"), flags=MS_REC | MS_PRIVATE)
    _mount(str(root), root, flags=MS_BIND)
    for name in ("proc", "tmp", "dev", "data"):
        (root / name).mkdir(exist_ok=True)
    hide = "hidepid=2" if unit.get("ProtectProc") == ["invisible"] else ""
    _mount("proc", root / "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, hide)
    noexec = 0 if exec_tmp else MS_NOEXEC
    _mount("tmpfs", root / "tmp", "tmpfs", MS_NOSUID | MS_NODEV | noexec, "mode=1777")
    _mount("tmpfs", root / "dev", "tmpfs", MS_NOSUID, "mode=755")
    for name in DEVICES:
        (root / "dev" / name).touch()
        _mount(f"/dev/{name}", root / "dev" / name, flags=MS_BIND)
    _mount(str(data), root / "data", flags=MS_BIND)
    if unit.get("ProtectKernelTunables") == ["yes"]:
        _mount(str(root / "proc/sys"), root / "proc/sys", flags=MS_BIND)
        _mount("", root / "proc/sys", flags=MS_BIND | MS_REMOUNT | MS_RDONLY)
    _mount("", root, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)
    os.chroot(root)
    os.chdir("/")


def confine(unit: dict[str, list[str]]) -> None:
    """Become an ordinary user, within the unit's limits. The filter comes last: see `main`."""
    for key, (value,) in ((key, value) for key, value in unit.items() if key.startswith("Limit")):
        _limit(key.removeprefix("Limit"), _amount(value))
    if "UMask" in unit:
        os.umask(int(unit["UMask"][0], 8))
    if unit.get("CapabilityBoundingSet") == [""]:
        for capability in range(CAP_LAST + 1):
            _call("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    if unit.get("NoNewPrivileges") == ["yes"]:
        _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _limit(name: str, wanted: int) -> None:
    """Set a limit, as far as this machine lets it be raised; say where it does not."""
    which = getattr(resource, f"RLIMIT_{name}")
    try:
        resource.setrlimit(which, (wanted, wanted))
    except ValueError:
        most = resource.getrlimit(which)[1]
        resource.setrlimit(which, (min(wanted, most), most))
        print(f"sandbox: Limit{name} is {most} here, the unit asks for {wanted}", file=sys.stderr)


def _amount(text: str) -> int:
    if text == "infinity":
        return resource.RLIM_INFINITY
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(text.rstrip("KMG")) * units.get(text[-1], 1)


def seal(code: bytes) -> None:
    """Put the filter in force for this process and all that it starts."""
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    held = ctypes.create_string_buffer(header, len(header))
    _call("prctl", PR_SET_SECCOMP, 2, ctypes.c_ulong(ctypes.addressof(held)), 0, 0)


def main() -> None:
    """Read the arguments, go in, and become the program."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--root", type=Path, required=True)
    asked.add_argument("--data", type=Path, required=True, help="what /data is in there")
    asked.add_argument("--unit", type=Path, help="a systemd unit, whose sandbox is applied")
    asked.add_argument("--exec-tmp", action="store_true", help="/tmp may hold programs")
    asked.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    asked.add_argument("words", nargs="+")
    given = asked.parse_args()
    unit = settings(given.unit) if given.unit else {}
    code = b""
    if "SystemCallFilter" in unit:
        code = program(unit)
    enter(given.root, given.data, unit=unit, exec_tmp=given.exec_tmp)
    confine(unit)
    if code:
        seal(code)
    os.execve(given.words[0], given.words, dict(word.split("=", 1) for word in given.set))


if __name__ == "__main__":
    main()
