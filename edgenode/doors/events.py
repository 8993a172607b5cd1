"""The events door: who listens for what, which counter an event has, and what waits for room.

The live feed may lose messages, and every loss can be seen: each event is counted for its tenant
and for its type whether or not anybody listens, and carries both numbers. Who finds a gap, or a
heartbeat that counts further than was heard, replays from the log. The pulse counts and sends; this
is the turn's side of it.

Of the subscriptions only their presence is kept. libzmq tells of each subscriber to a prefix that
comes (XPUB_VERBOSE) and of the last one gone, exactly, however often a peer repeats itself or
vanishes; asked to tell of all that go (XPUB_VERBOSER) it tells each repetition but one end, and
counts of them never come down to zero.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

import orjson

from engine.pulse import COUNTERS, COUNTERS_ROW, Left, Outlet, Release, Releases
from minoots.wire.times import format_instant

SUBSCRIPTIONS_MAX = 10_000  # prefixes remembered; with more, everything is wanted
WANTED_MAX = 4_096  # answers of `wanted` remembered

SUBSCRIBE, UNSUBSCRIBE = 1, 0


class PulseEdge(Outlet, Releases, Protocol):
    """The pulse, both ways (`engine._pulse.Pulse`)."""


class _Late(NamedTuple):
    """What waits for room: an expiry has a release, an event seq, topic and body; without a body it
    is `seq` events that are only counted."""

    counter: int
    release: Release | None
    seq: int = 0
    topic: bytes = b""
    body: bytes | None = None


def _anybody(prefix: bytes) -> bool:
    return True


class EventsDoor:
    """Hands events to the pulse, in order. `boot` names this start of the node.

    admit: whether a subscription to a prefix may count; a door with keys refuses the rest to libzmq
    as well, which needs XPUB_MANUAL.
    """

    def __init__(
        self, pulse: PulseEdge, boot: str = "", admit: Callable[[bytes], bool] = _anybody
    ) -> None:
        self.boot = boot
        self._pulse = pulse
        self._admit = admit
        self._waiting: deque[_Late] = deque()  # for room
        self._waiting_held = 0
        self._rows: dict[str, int] = {}
        self._counters: dict[tuple[str, str], int] = {}
        self._prefixes: set[bytes] = set()
        self._untracked_count = 0
        self._wanted: dict[bytes, bool] = {}
        self._newcomers = False

    # ------------------------------------------------------------------------- subscriptions

    @property
    def subscriptions_count(self) -> int:
        """Different prefixes that are subscribed to."""
        return len(self._prefixes) + self._untracked_count

    def take_subscriptions(self) -> None:
        """Take note of subscriptions that came and went; `wanted` goes by them from then on."""
        came = self._pulse.subscriptions()
        for frame in came:
            if frame[:1] in (b"\0", b"\1") and self._admit(frame[1:]):
                self._note(frame[0], frame[1:])
        if came:
            self._wanted.clear()

    def newcomers(self) -> bool:
        """Whether somebody has subscribed since the last time this was asked."""
        came, self._newcomers = self._newcomers, False
        return came

    def _note(self, kind: int, prefix: bytes) -> None:
        if kind == SUBSCRIBE:
            self._newcomers = True
            if len(self._prefixes) < SUBSCRIPTIONS_MAX:
                self._prefixes.add(prefix)
            else:
                self._untracked_count += 1
        elif prefix in self._prefixes:
            self._prefixes.remove(prefix)
        elif self._untracked_count:
            self._untracked_count -= 1

    def wanted(self, topic_prefix: bytes) -> bool:
        """Whether a subscription could match a topic under this prefix. 0.1 us if asked before."""
        known = self._wanted.get(topic_prefix)
        if known is None:
            known = self._untracked_count > 0 or any(
                prefix.startswith(topic_prefix) or topic_prefix.startswith(prefix)
                for prefix in self._prefixes
            )
            if len(self._wanted) >= WANTED_MAX:
                self._wanted.clear()
            self._wanted[topic_prefix] = known
        return known

    # ------------------------------------------------------------------------- on the way out

    def publish(self, tenant: str, type: str, topic: bytes, seq: int, body: bytes) -> None:
        """Let one event out at once. type: short. 0.5 us."""
        counter = self.counter(tenant, type)
        if self._waiting or not self._pulse.send(seq, counter, topic, body):
            self._waiting.append(_Late(counter, None, seq, topic, body))

    def tally(self, tenant: str, type: str, count: int) -> None:
        """Count events that nobody wanted. 0.3 us."""
        counter = self.counter(tenant, type)
        if self._waiting or not self._pulse.tally(counter, count):
            self._waiting.append(_Late(counter, None, count))

    def hold(self, counter: int, release: Release) -> None:
        """Let an expiry out at its instant. 0.5 us."""
        if self._waiting or not self._pulse.hold(release, counter):
            self._waiting.append(_Late(counter, release))
            self._waiting_held += 1

    @property
    def is_full(self) -> bool:
        """Whether something waits for room: then nothing more should be decided to be let out."""
        return bool(self._waiting)

    @property
    def held_count(self) -> int:
        """Expiries that were handed over and have not been taken back."""
        return self._pulse.held_count + self._waiting_held

    def flush(self) -> None:
        """Have what was handed over be seen at once."""
        self._pulse.flush()

    def retry(self) -> None:
        """Hand over what waited for room."""
        while self._waiting:
            counter, release, seq, topic, body = self._waiting[0]
            if release is not None:
                taken = self._pulse.hold(release, counter)
                self._waiting_held -= taken
            elif body is not None:
                taken = self._pulse.send(seq, counter, topic, body)
            else:
                taken = self._pulse.tally(counter, seq)
            if not taken:
                return
            self._waiting.popleft()

    def take(self) -> list[Left]:
        """Expiries that have left since the last time, in their order."""
        return self._pulse.take()

    def move(self, by_ns: int) -> None:
        """UTC was set: expiries of the wall clock are due `by_ns` later."""
        self._pulse.move(by_ns)
        for at, late in enumerate(self._waiting):
            if late.release is not None:
                due_ns, seq, due_utc_ns, wall, misfire, topic, body = late.release
                due_ns += by_ns if wall else 0
                moved = (due_ns, seq, due_utc_ns, wall, misfire, topic, body)
                self._waiting[at] = late._replace(release=moved)

    def clear(self) -> None:
        """Forget the expiries that have not left: they are found again in the log."""
        self._waiting = deque(late for late in self._waiting if late.release is None)
        self._waiting_held = 0
        self._pulse.clear()

    def counter(self, tenant: str, type: str) -> int:
        """The counter of a tenant's events of one type."""
        counter = self._counters.get((tenant, type))
        if counter is None:
            row = self._rows.setdefault(tenant, len(self._rows) * COUNTERS_ROW)
            used = sum(1 for known, _ in self._counters if known == tenant)
            counter = row + 1 + used
            assert row < COUNTERS, f"{len(self._rows)} tenants; the pulse counts for fewer"
            assert used + 1 < COUNTERS_ROW, f"{used} types of one tenant; the pulse counts fewer"
            self._counters[(tenant, type)] = counter
        return counter

    def heartbeat(
        self,
        tenant: str,
        *,
        epoch: int,
        floor: int,
        now_ns: int,
        clock_error_us: int | None = None,
    ) -> None:
        """Let out the tenant's heartbeat: up to where every event has left, and how many have.

        clock_error_us: None while it is not known. What left since this was put together is told
        by the next one.
        """
        row = self._rows.setdefault(tenant, len(self._rows) * COUNTERS_ROW)
        counts = self._pulse.counts(row)
        ordinals = {
            type: counts[counter - row]
            for (known, type), counter in self._counters.items()
            if known == tenant and counts[counter - row]
        }
        beat = {
            "epoch": epoch,
            "boot": self.boot,
            "floor": floor,
            "total": counts[0],
            "ordinals": ordinals,
            "now": format_instant(now_ns),
            "clock_error_us": clock_error_us,
        }
        topic, body = f"t/{tenant}/~/hb".encode(), orjson.dumps(beat)
        if not self._waiting:
            self._pulse.beat(topic, body)
            self._pulse.flush()
