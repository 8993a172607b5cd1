"""What the kernel says of its clocks. Nothing here sets one.

So nobody sets UTC for `SetWatch` to see. A child process has a seccomp filter answer its read with
what the kernel answers then, ECANCELED; that the kernel does so is not tested here.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine import _kernel
from engine._kernel import SetWatch, ntp_state, ntp_state_of
from engine._wait import boottime_ns

MS = 1_000_000
FAR_S = 9_000_000_000
STA_INS, STA_DEL, STA_UNSYNC, STA_NANO = 0x10, 0x20, 0x40, 0x2000
TIME_OK, TIME_INS, TIME_DEL, TIME_OOP, TIME_WAIT, TIME_ERROR = range(6)


def test_the_kernel_tells_its_state() -> None:
    state = ntp_state()
    assert state.synchronised in (True, False)
    assert state.maxerror_us >= 0
    assert state.esterror_us >= 0
    assert abs(state.freq_ppb) <= 500_000
    assert abs(state.offset_ns) <= 1000 * MS
    assert state.leap in ("", "insert", "delete")
    if state.status & STA_UNSYNC:
        assert not state.synchronised


@pytest.mark.parametrize(
    ("state", "status", "synchronised", "leap"),
    [
        (TIME_OK, 0, True, ""),
        (TIME_OK, STA_UNSYNC, False, ""),
        (TIME_ERROR, 0, False, ""),
        (TIME_OK, STA_INS, True, "insert"),  # announced; the kernel notices within a second
        (TIME_ERROR, STA_INS | STA_UNSYNC, False, "insert"),
        (TIME_INS, STA_INS, True, "insert"),
        (TIME_OOP, STA_INS, True, "insert"),
        (TIME_WAIT, STA_INS, True, ""),  # it is over
        (TIME_OK, STA_DEL, True, "delete"),
        (TIME_DEL, STA_DEL, True, "delete"),
        (TIME_WAIT, STA_DEL, True, ""),
    ],
)
def test_what_the_state_means(state: int, status: int, synchronised: bool, leap: str) -> None:
    said = ntp_state_of(state, status, 0, 0, 7, 8, 37)
    assert (said.synchronised, said.leap) == (synchronised, leap)
    assert (said.maxerror_us, said.esterror_us, said.tai_s, said.status) == (7, 8, 37, status)


def test_units() -> None:
    assert ntp_state_of(TIME_OK, STA_NANO, -1234, 0, 0, 0, 0).offset_ns == -1234
    assert ntp_state_of(TIME_OK, 0, -1234, 0, 0, 0, 0).offset_ns == -1_234_000
    assert ntp_state_of(TIME_OK, 0, 0, 500 << 16, 0, 0, 0).freq_ppb == 500_000
    assert ntp_state_of(TIME_OK, 0, 0, -(3 << 15), 0, 0, 0).freq_ppb == -1_500


def test_monotonic_and_suspended() -> None:
    first_ns = _kernel.monotonic_ns()
    assert first_ns <= time.monotonic_ns() <= _kernel.monotonic_ns()
    suspended_ns = _kernel.suspended_ns()
    assert abs(boottime_ns() - _kernel.monotonic_ns() - suspended_ns) < 50 * MS
    many_ns = sorted(_kernel.suspended_ns() for _ in range(101))
    assert abs(many_ns[50] - suspended_ns) < MS
    assert many_ns[-2] - many_ns[1] < MS


def test_a_suspend_shows() -> None:
    """A time namespace whose BOOTTIME is an hour ahead looks like a machine that slept an hour."""
    program = "from engine._kernel import suspended_ns; print(suspended_ns())"
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is not installed")
    words = [unshare, "--time", "--boottime", "3600", sys.executable, "-c", program]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    if done.returncode != 0 and "unshare" in done.stderr:
        pytest.skip(f"no time namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert abs(int(done.stdout) - _kernel.suspended_ns() - 3_600_000 * MS) < MS


def armed(watch: SetWatch) -> tuple[str, bool]:
    """The timer's flags, and whether it ends in the far future."""
    lines = Path(f"/proc/self/fdinfo/{watch.fileno()}").read_text().splitlines()
    said = dict(line.split(":", 1) for line in lines)
    left_s = int(said["it_value"].strip(" ()").split(",")[0])
    return said["settime flags"].strip(), abs(left_s + time.time() - FAR_S) < 60


def ready(watch: SetWatch, wait_s: float = 0) -> bool:
    return bool(select.select([watch.fileno()], [], [], wait_s)[0])


def settime(watch: SetWatch, second: int) -> None:
    """Arm it for an instant of UTC in the past, or disarm it (0), without word of a set clock."""
    libc = ctypes.CDLL(None, use_errno=True)
    value = (ctypes.c_long * 4)(0, 0, second, 0)
    assert libc.timerfd_settime(watch.fileno(), 1, value, None) == 0


def test_nothing_is_told_while_nobody_sets_utc() -> None:
    watch = SetWatch()
    assert armed(watch) == ("03", True), "absolute, cancelled when UTC is set"
    assert not ready(watch)
    assert not watch.was_set()
    assert not watch.was_set()
    assert not os.get_inheritable(watch.fileno())
    watch.close()


def test_it_is_armed_again_after_it_told() -> None:
    watch = SetWatch()
    settime(watch, 1)
    assert ready(watch, 5)
    assert watch.was_set()
    assert armed(watch) == ("03", True)
    assert not ready(watch)
    assert not watch.was_set()
    watch.close()


def test_closing() -> None:
    watch = SetWatch()
    fd = watch.fileno()
    watch.close()
    assert watch.fileno() == -1
    watch.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        watch.was_set()
    let_go = SetWatch()
    fd = let_go.fileno()
    del let_go
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def answer_reads(fd: int, error: int) -> None:
    """From now on this process's read of `fd` fails with `error`: a seccomp filter, for x86-64."""
    read_call = 0
    load, jump_if_equal, give = 0x20, 0x15, 0x06
    program = [
        (load, 0, 0, 0),  # the number of the call
        (jump_if_equal, 0, 3, read_call),
        (load, 0, 0, 16),  # its first argument
        (jump_if_equal, 0, 1, fd),
        (give, 0, 0, 0x0005_0000 | error),
        (give, 0, 0, 0x7FFF_0000),  # let it through
    ]
    code = b"".join(
        op.to_bytes(2, "little") + bytes([yes, no]) + k.to_bytes(4, "little")
        for op, yes, no, k in program
    )
    held = ctypes.create_string_buffer(code)
    head = (ctypes.c_uint64 * 2)(len(program), ctypes.addressof(held))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, seccomp, filter_mode = 38, 22, 2
    for words in [(no_new_privileges, 1, 0, 0, 0), (seccomp, filter_mode, head, 0, 0)]:
        if libc.prctl(*words) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def child() -> None:
    """What runs in the child process: prints what a watch says to ECANCELED."""
    watch = SetWatch()
    settime(watch, 0)
    before = armed(watch)[0]
    answer_reads(watch.fileno(), 125)
    told = [watch.was_set(), watch.was_set()]
    print(json.dumps([before, told, armed(watch)]))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter knows x86-64's calls")
def test_a_cancelled_read_tells_that_utc_was_set_and_arms_it_again() -> None:
    words = [sys.executable, "-c", "import test_kernel; test_kernel.child()"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=env)
    if "prctl" in done.stderr:
        pytest.skip(f"no seccomp here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["01", [True, True], ["03", True]]
