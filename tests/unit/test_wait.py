"""Waiting for descriptors and instants."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from engine import _wait
from engine._wait import Waiter, boottime_ns

MS = 1_000_000


@pytest.fixture
def fds() -> Iterator[list[int]]:
    made = [_wait.eventfd() for _ in range(3)]
    yield made
    for fd in made:
        os.close(fd)


def test_nothing_is_ready_until_it_is(fds: list[int]) -> None:
    waiter = Waiter(fds)
    assert waiter.wait(0) == 0
    _wait.eventfd_set(fds[1])
    _wait.eventfd_set(fds[1])
    assert waiter.wait(-1) == 0b010
    _wait.eventfd_set(fds[2])
    assert waiter.wait(boottime_ns() + 1000 * MS) == 0b110
    _wait.eventfd_clear(fds[1])
    _wait.eventfd_clear(fds[1])
    assert waiter.wait(0) == 0b100


def test_a_deadline_is_never_reported_early(fds: list[int]) -> None:
    waiter = Waiter(fds)
    for wait_ns in (1, 50_000, 999_999, 3 * MS):
        deadline_ns = boottime_ns() + wait_ns
        assert waiter.wait(deadline_ns) == 0
        assert boottime_ns() >= deadline_ns


def test_waiting_for_a_deadline_alone() -> None:
    deadline_ns = boottime_ns() + MS
    assert Waiter([]).wait(deadline_ns) == 0
    assert boottime_ns() >= deadline_ns


def test_a_wait_lets_signal_handlers_run(fds: list[int]) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: heard.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert Waiter(fds).wait(-1) == 0
    finally:
        signal.signal(signal.SIGALRM, before)
    assert heard == [signal.SIGALRM]


def test_what_a_signal_handler_raises_comes_out(fds: list[int]) -> None:
    def refuse(number: int, frame: object) -> None:
        raise InterruptedError("enough")

    before = signal.signal(signal.SIGALRM, refuse)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with pytest.raises(InterruptedError, match="enough"):
            Waiter(fds).wait(boottime_ns() + 1000 * MS)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_an_end_counts_as_readable_and_a_closed_descriptor_is_an_error() -> None:
    reads, writes = os.pipe()
    waiter = Waiter([reads])
    os.close(writes)
    assert waiter.wait(-1) == 1
    os.close(reads)
    with pytest.raises(ValueError, match=f"descriptor {reads} is closed"):
        waiter.wait(-1)


def test_limits_and_errors() -> None:
    with pytest.raises(ValueError, match="33 descriptors to wait for; the limit is 32"):
        Waiter([0] * 33)
    with pytest.raises(OSError, match="Bad file descriptor"):
        _wait.eventfd_set(-1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        _wait.eventfd_clear(-1)


def test_clocks_and_slack() -> None:
    assert _wait.set_timer_slack(1)
    assert _wait.set_timer_slack(0)
    first_ns = boottime_ns()
    assert first_ns <= boottime_ns()
    assert abs(_wait.realtime_ns() - time.time_ns()) < 1000 * MS
