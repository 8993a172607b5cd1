"""One request's way through its attempts: pure, and shared by both clients.

A `Request` is what a verb asks and how its reply is read. A `Call` is one request under way: it
says which frames to send and when to act next, takes replies, and decides about retries. It is
given the time, and never sleeps or opens anything; the clients only carry its frames.

All attempts of a call bear the same corr_id and, where the verb changes something, the same
idempotency key: whichever reply comes first is the answer, and nothing is done twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import msgspec

from minoots.wire.frames import FINAL, MAGIC, PARTIAL, PROBLEM, QUERY, Header
from minoots.wire.problems import MinootsError, Problem, ProtocolError, Refused, Unreachable
from minoots.wire.times import format_instant

T = TypeVar("T")

RETRIES_DEFAULT = 4
TIMEOUT_S_DEFAULT = 5.0
ATTEMPT_SHARE = 0.25  # of the timeout: what the first attempt may wait; each later one twice that
ATTEMPT_S_MIN, ATTEMPT_S_MAX = 0.2, 10.0
BACKOFF_S, BACKOFF_S_MAX = 0.05, 2.0
CORR_BITS = 64

_header = msgspec.json.Encoder()
_problem = msgspec.json.Decoder(Problem)


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """A verb with its body. `read` makes the result of the reply's body.

    door: `control` or `stream`. mutates: it gets an idempotency key. once: never asked a second
    time, because an answer to an earlier attempt would mislead, or because each attempt takes
    something. wait_s: how long the node may hold its reply back; the call may take so much longer.
    """

    op: str
    body: bytes
    read: Callable[[bytes], T] = field(repr=False)
    door: str = "control"
    mutates: bool = False
    if_match: int | None = None
    once: bool = False
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often a client tries. timeout_s: for the whole call, retries included."""

    timeout_s: float = TIMEOUT_S_DEFAULT
    retries: int = RETRIES_DEFAULT

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise ValueError(f"timeout is {self.timeout_s} s; it must be above 0")
        if self.retries < 0:
            raise ValueError(f"retries is {self.retries}; it must be 0 or more")


class Reply(NamedTuple):
    """The frames of a reply that matter."""

    kind: bytes
    corr: bytes
    body: bytes


class Sending(NamedTuple):
    """What to send now. `unanswered`: the attempt before brought nothing; connect anew if the
    door has said nothing else since `since_s`."""

    frames: list[bytes]
    unanswered: bool
    since_s: float


def read_reply(frames: list[bytes]) -> Reply | None:
    """The reply in a message, or None for what is not of this protocol and is dropped."""
    if len(frames) < 5 or frames[0] != MAGIC or frames[1] not in (FINAL, PARTIAL, PROBLEM):
        return None
    return Reply(frames[1], frames[2], frames[4])


def new_rng(random_bytes: bytes) -> random.Random:
    """What corr_ids and jitter are drawn from."""
    return random.Random(random_bytes)


def idem_key(random_bytes: bytes) -> str:
    """An idempotency key of 16 random bytes, written as a UUIDv4."""
    number = int.from_bytes(random_bytes[:16], "big")
    number = number & ~(0xF << 76) | 4 << 76
    number = number & ~(0x3 << 62) | 2 << 62
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class Call(Generic[T]):
    """One request under way.

    Act when `due_s` has come, until `done`; then ask for the `result`. Times are seconds of any
    clock that only goes forward; `now_ns` is the wall clock, for the header's deadline.
    """

    __slots__ = (
        "_attempts",
        "_deadline_s",
        "_failure",
        "_idem",
        "_outcome",
        "_patience",
        "_refused",
        "_rng",
        "_sent_s",
        "_stated_deadline",
        "_timeout_s",
        "corr",
        "done",
        "due_s",
        "request",
        "silent_since_s",
    )

    def __init__(
        self,
        request: Request[T],
        *,
        idem: str | None,
        now_s: float,
        patience: Patience,
        rng: random.Random,
    ) -> None:
        self.request = request
        self.corr = rng.getrandbits(CORR_BITS).to_bytes(CORR_BITS // 8, "big")
        self.done = False
        self.due_s = now_s
        self._patience = patience
        self._timeout_s = patience.timeout_s + request.wait_s
        self._deadline_s = now_s + self._timeout_s
        self._rng = rng
        self._idem = idem
        self._attempts = 0
        self._sent_s = now_s
        self._refused: Refused | None = None
        self._failure: MinootsError | None = None
        self._outcome: list[T] = []
        # When the attempt was sent that brought nothing, once the call was given up for that.
        self.silent_since_s: float | None = None
        # A sample of the node's clock must come through whatever that clock says.
        self._stated_deadline = not request.once

    @property
    def attempts(self) -> int:
        """How many attempts were made."""
        return self._attempts

    def act(self, now_s: float, now_ns: int) -> Sending | None:
        """Send an attempt, or give up; to be called when `due_s` has come."""
        if self.done or now_s < self.due_s:
            return None
        if self._attempts and (now_s >= self._deadline_s or not self._more()):
            if self._refused is None:
                self.silent_since_s = self._sent_s
            self._end(self._refused or self._unreachable())
            return None
        unanswered = self._attempts > 0 and self._refused is None
        since_s, self._sent_s = self._sent_s, now_s
        self._refused = None
        self._attempts += 1
        self.due_s = min(self._deadline_s, now_s + self._attempt_s())
        return Sending(self._frames(now_s, now_ns), unanswered, since_s)

    def take(self, reply: Reply, now_s: float) -> None:
        """Take a reply with this call's corr_id."""
        if self.done:
            return
        if reply.kind == PARTIAL:
            self.due_s = min(self._deadline_s, now_s + self._attempt_s())
        elif reply.kind == PROBLEM:
            self._take_problem(reply.body, now_s)
        else:
            try:
                self._outcome.append(self.request.read(reply.body))
                self.done = True
            except (msgspec.MsgspecError, ValueError) as error:
                self._end(ProtocolError(f"reply to {self.request.op} cannot be read: {error}"))
            except MinootsError as error:
                self._end(error)

    def result(self) -> T:
        """The result of a call that is done, or what it failed with, raised."""
        if self._failure is not None:
            raise self._failure
        return self._outcome[0]

    def _more(self) -> bool:
        return not self.request.once and self._attempts <= self._patience.retries

    def _attempt_s(self) -> float:
        if not self._more():
            return self._timeout_s
        first_s = self._patience.timeout_s * ATTEMPT_SHARE
        first_s = min(max(first_s, ATTEMPT_S_MIN), ATTEMPT_S_MAX) + self.request.wait_s
        return first_s * float(2 ** (self._attempts - 1))

    def _frames(self, now_s: float, now_ns: int) -> list[bytes]:
        deadline = None
        if self._stated_deadline:
            left_ns = int((self._deadline_s - now_s) * 1_000_000_000)
            deadline = format_instant(now_ns + max(left_ns, 0))
        header = Header(
            op=self.request.op,
            idem=self._idem,
            deadline=deadline,
            if_match=self.request.if_match,
        )
        return [MAGIC, QUERY, self.corr, _header.encode(header), self.request.body]

    def _take_problem(self, body: bytes, now_s: float) -> None:
        try:
            refused = Refused.of(_problem.decode(body))
        except (msgspec.MsgspecError, ValueError) as error:  # text that is not UTF-8
            self._end(ProtocolError(f"problem cannot be read: {error}"))
            return
        if refused.code == "deadline_exceeded" and self._stated_deadline:
            # Ours has not passed: the two wall clocks differ. Only the key protects from now on.
            self._stated_deadline = False
        pause_s = self._pause_s(refused)
        if not refused.retryable or not self._more() or now_s + pause_s >= self._deadline_s:
            self._end(refused)
            return
        self._refused = refused
        self.due_s = now_s + pause_s

    def _pause_s(self, refused: Refused) -> float:
        jitter = self._rng.random()
        if refused.retry_after_ms is not None:
            return refused.retry_after_ms / 1_000 * (1 + jitter / 10)
        grown_s = BACKOFF_S * 2.0 ** max(0, self._attempts - 1)
        return min(grown_s, BACKOFF_S_MAX) * (0.5 + jitter / 2)

    def _unreachable(self) -> Unreachable:
        attempts = f"{self._attempts} attempt{'s' if self._attempts > 1 else ''}"
        return Unreachable(
            f"no reply to {self.request.op} in {self._timeout_s:g} s ({attempts}); "
            "is the node running?"
        )

    def cut_off(self, why: str) -> None:
        """End a call that is asked only once, and whose connection is gone: no reply will come."""
        if not self.done and self.request.once and self._attempts:
            self._end(Unreachable(f"{why}; there will be no reply to {self.request.op}"))

    def _end(self, failure: MinootsError) -> None:
        self._failure = failure
        self.done = True
