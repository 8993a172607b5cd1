"""Where a node knows UTC from: the kernel's own NTP state, or another node's `time.sync`.

Both give samples to `engine.drift`: by how much the reference is off from the steady clock, and how
sure that is. The kernel's say how good this machine's UTC is; a node's say what UTC is. A node that
states no error of its own is taken at its word: the bound is then against that node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from edgenode.call import Frames
from engine.clock import Clock, Timescale
from engine.drift import Sample, exchanged
from minoots.wire.frames import FINAL, MAGIC, QUERY

QUESTION = b'{"op":"time.sync"}'
ANSWERS_MAX = 16  # taken in one go


class Reference(Protocol):
    """What a timekeeper asks."""

    name: str
    corrects: bool  # whether UTC is put right by it; else it only says how good UTC is

    def ask(self) -> None:
        """Ask for a sample, if it must be asked."""

    def samples(self) -> list[Sample]:
        """What has come since the last time."""


class Channel(Protocol):
    """A socket to another node (`doors._mailbox.Mailbox`)."""

    def send(self, messages: list[Frames]) -> int:
        """Send messages."""

    def drain(self, limit: int) -> list[Frames]:
        """Messages that have come."""


class _Answer(msgspec.Struct):
    t1: int
    t2: int
    clock_error_us: int | None = None


_answer = msgspec.json.Decoder(_Answer)


class NodeReference:
    """Another node, asked by its control door. Only the newest question counts."""

    corrects = True

    def __init__(self, name: str, channel: Channel, timescale: Timescale, clock: Clock) -> None:
        self.name = name
        self._channel = channel
        self._timescale = timescale
        self._clock = clock
        self._number = 0
        self._asked_ns: int | None = None

    def ask(self) -> None:
        """Send the question; an answer that is still missing is not waited for any more."""
        self._number += 1
        corr = b"%d" % self._number
        self._asked_ns = self._timescale.now(self._clock).steady_ns
        self._channel.send([(MAGIC, QUERY, corr, QUESTION, b"{}")])

    def samples(self) -> list[Sample]:
        """The sample of the newest question, once its answer is here."""
        found = []
        for frames in self._channel.drain(ANSWERS_MAX):
            now_ns = self._timescale.now(self._clock).steady_ns
            is_ours = len(frames) >= 5 and frames[:2] == (MAGIC, FINAL)
            if not is_ours or frames[2] != b"%d" % self._number or self._asked_ns is None:
                continue
            try:
                said = _answer.decode(frames[4])
            except msgspec.DecodeError:
                continue
            error_ns = max(said.clock_error_us or 0, 0) * 1_000
            found.append(exchanged(self._asked_ns, said.t1, said.t2, now_ns, error_ns=error_ns))
            self._asked_ns = None
        return found


class KernelReference:
    """The kernel's clock, as good as whoever disciplines it says. state: asks the kernel whether it
    is synchronised, and for its maximum error in us (`engine._kernel.ntp_state`)."""

    name = "kernel"
    corrects = False

    def __init__(
        self, state: Callable[[], tuple[bool, int]], timescale: Timescale, clock: Clock
    ) -> None:
        self._state = state
        self._timescale = timescale
        self._clock = clock
        self._found: list[Sample] = []

    def ask(self) -> None:
        """Read it; nothing is known while it is not synchronised."""
        synchronised, maxerror_us = self._state()
        if synchronised:
            now = self._timescale.now(self._clock)
            self._found.append(Sample(now.steady_ns, now.shift_ns, 0, maxerror_us * 1_000))

    def samples(self) -> list[Sample]:
        """What was read."""
        found, self._found = self._found, []
        return found
