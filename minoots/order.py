"""What a watcher shows, in which order, and what it must ask for: pure, given frames and the time.

The problem: the live feed is fast and may lose messages; the log is complete, but must be asked.
Live events leave in the order of their instants, not of seq, so "seq must grow by one" tells
nothing. The idea: every live event carries the tenant's ordinal (and its type's), which does grow
by one. A jump, or a heartbeat that counts more than was heard, is a loss. Then the core holds what
comes live, asks for the log's head, which bounds the seq of all that was lost, replays from its
floor until the replay has passed that bound, and lets the held events go.

    floor   everything up to this seq was shown, or is not wanted
    seen    seqs above the floor that were shown; heartbeats let the floor rise, and seen shrinks
    bound   the log's head after a loss was noticed; a replay that passed it has all that was lost

Exactly once follows: an event is shown unless its seq is at or below the floor or in `seen`, and
the floor only rises over what was shown. Memory: `seen` is bounded by SEEN_MAX (above it, a replay
raises the floor), the held events by HELD_MAX and HELD_BYTES_MAX (above them, a second round).

A restart of the node (another `boot`) is a loss like any other. A restored log (another `epoch`)
numbers events anew: the core reads it from where its watch began, under the new epoch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import msgspec

from minoots import verbs
from minoots.event import Event, Stamp, read_event
from minoots.requests import Request
from minoots.wire.bodies import (
    PAGE_MAX,
    Cursor,
    EventFilter,
    ReplayFrom,
    TimerFilter,
    TimerView,
)
from minoots.wire.frames import short_type
from minoots.wire.problems import (
    EpochChanged,
    MinootsError,
    ProtocolError,
    Refused,
    Unreachable,
)
from minoots.wire.times import format_instant, parse_instant

SILENCE_S = 3.5  # without a heartbeat (one a second) the connection is taken for dead
LISTEN_S = 1.0
PAUSE_S, PAUSE_S_MAX = 0.01, 0.25  # until the log has let go of what is committed ahead
TROUBLE_S = 0.25
HELD_MAX = 10_000
HELD_BYTES_MAX = 64 * 1024 * 1024
SEEN_MAX = 500_000
EPOCH_DOUBTS_MAX = 5

SNAPSHOT = "snapshot"
_BEAT = "/~/hb"


class Heartbeat(msgspec.Struct):
    """The body of a heartbeat: what has left the node up to now."""

    epoch: int
    boot: str | int
    floor: int
    total: int
    ordinals: dict[str, int] = {}
    now: str | int = 0


_heartbeat = msgspec.json.Decoder(Heartbeat)


@dataclass(frozen=True, slots=True)
class Interest:
    """Which events a watcher wants: all conditions hold; without types, all types.

    types: short, `timer.expired`. name: exactly this one. The feed is subscribed to by type, or
    whole, and sifted here: a narrower subscription could not notice a loss.
    """

    tenant: str = "default"
    types: tuple[str, ...] = ()
    name: str | None = None
    name_prefix: str = ""
    labels: dict[str, str] = field(default_factory=dict)

    def topics(self) -> list[bytes]:
        """What to subscribe to, the heartbeat included."""
        base = f"t/{self.tenant}/"
        kinds = [f"{base}e/{kind}/" for kind in self.types] or [f"{base}e/"]
        return [topic.encode() for topic in (f"{base}~/hb", *kinds)]

    def wants(self, event: Event) -> bool:
        """Whether a watcher is to be shown this event."""
        return (
            (not self.types or event.type in self.types)
            and (self.name is None or event.name == self.name)
            and event.name.startswith(self.name_prefix)
            and all(event.labels.get(key) == value for key, value in self.labels.items())
        )

    def filter(self) -> EventFilter:
        """The same for a replay, as far as its filter can say it."""
        prefix = self.name_prefix if self.name is None else self.name
        return EventFilter(types=list(self.types), labels=self.labels, name_prefix=prefix)


class Listen(NamedTuple):
    """Wait for the feed's next message."""

    seconds: float


class Ask(NamedTuple):
    """Send a request and hand its result to `take`."""

    request: Request[Any]
    take: Callable[[Any], None]


class Reopen(NamedTuple):
    """Leave the feed and subscribe anew: the connection is dead, or the node elsewhere."""


Step = Listen | Ask | Reopen


class WatchCore:
    """Feed it with `heard`, `idle` and the results that it asks for; take events from `ready`.

    start: where the replay begins, or None for what leaves from now on. snapshot: first an event
    of the type `snapshot` for every pending timer (then `start` is the snapshot's place).
    """

    def __init__(
        self,
        interest: Interest,
        start: ReplayFrom | None,
        *,
        snapshot: bool = False,
        held_max: int = HELD_MAX,
        seen_max: int = SEEN_MAX,
    ) -> None:
        self.interest = interest
        self.ready: deque[Event] = deque()
        self._held: deque[Event] = deque()
        self._held_bytes, self._held_max, self._seen_max = 0, held_max, seen_max
        self._from_now = start is None and not snapshot
        self._snapshot_from: str | None = "" if snapshot else None
        self._position = start or ReplayFrom()
        self._origin = self._position
        self._begun = False  # a page came from where the caller said
        self._epoch: int | None = None
        self._boot: str | int | None = None
        self._floor = self._position.seq or 0
        self._seen: set[int] = set()
        self._past: dict[int, int] = {}  # floors in epochs that have ended
        self._heard: dict[str, int] = {}  # ordinals, by type; by "" for the whole tenant
        self._healing = not self._from_now
        self._bound: int | None = None
        self._ended = False
        self._again = False
        self._ask_at_s = 0.0
        self._pause_s = PAUSE_S
        self._silent_s = 0.0
        self._doubts = 0

    @property
    def live(self) -> bool:
        """Whether the subscription is known to work: a heartbeat came."""
        return self._boot is not None

    @property
    def cursor(self) -> Cursor | None:
        """From where another watcher misses nothing of what this one has not shown."""
        return None if self._epoch is None else Cursor(epoch=self._epoch, seq=self._floor)

    @property
    def seen_count(self) -> int:
        """How many seqs above the floor are remembered."""
        return len(self._seen)

    # ---------------------------------------------------------------------------- what to do next

    def step(self, now_s: float) -> Step:
        """What the shell is to do next, when `ready` is empty."""
        if self._silent_s >= SILENCE_S:
            self._silent_s = 0.0
            return Reopen()
        if self._healing and now_s >= self._ask_at_s:
            if self._snapshot_from is not None:
                if self.live:
                    return Ask(
                        verbs.snapshot_page(self._timers(), PAGE_MAX, self._snapshot_from or None),
                        self._take_snapshot,
                    )
            elif self.live and self._bound is None:
                return Ask(verbs.stats(), self._take_head)
            elif self._bound is not None or not self._ended:
                return Ask(
                    verbs.replay_page(self._position, self.interest.filter(), PAGE_MAX),
                    lambda page: self._take_page(page, now_s),
                )
        if self._healing and self._ask_at_s > now_s:
            return Listen(min(LISTEN_S, self._ask_at_s - now_s))
        return Listen(LISTEN_S)

    def idle(self, waited_s: float) -> None:
        """Nothing was heard for so long."""
        self._silent_s += waited_s

    def failed(self, error: MinootsError, now_s: float) -> None:
        """A request failed: try again a little later, or raise what cannot be helped."""
        if isinstance(error, EpochChanged) and self._begun and self._doubts < EPOCH_DOUBTS_MAX:
            self._doubts += 1
            self._bound = None  # asking for the head tells the new epoch
        elif not (
            isinstance(error, Unreachable) or (isinstance(error, Refused) and error.retryable)
        ):
            raise error
        self._ask_at_s = now_s + TROUBLE_S

    # ------------------------------------------------------------------------------ what is heard

    def heard(self, frames: list[bytes]) -> None:
        """Take one message of the feed; what is not of the contract is dropped."""
        if len(frames) != 3:
            return
        topic = frames[0].decode("utf-8", "replace")
        try:
            if topic.endswith(_BEAT):
                self._take_beat(_read_beat(frames[2]))
            else:
                self._take_live(topic, Stamp.read(frames[1]), frames[2])
        except (msgspec.MsgspecError, ProtocolError):
            # A frame that cannot be read is a lost one: the next heartbeat counts it.
            return

    def _take_live(self, topic: str, stamp: Stamp, body: bytes) -> None:
        event = read_event(body, stamp)
        if self._epoch is not None and event.epoch != self._epoch:
            return  # of a log that is gone, or of one whose heartbeat is on its way
        known = event.seq <= self._floor or event.seq in self._seen
        step = self._count(topic, stamp)
        # A jump is a loss whatever brought it; one from behind is a late twin if it is known.
        if self.live and (step > 1 or (step < 1 and not known)):
            self._lose()
        if known or not self.interest.wants(event):
            return
        if self._healing or not self.live:
            self._hold(event)
        else:
            self._show(event)

    def _count(self, topic: str, stamp: Stamp) -> int:
        """How far this ordinal is from the last one: 1 is the next."""
        kind, ordinal = "", stamp.ordinal
        if self.interest.types:
            levels = topic.split("/", 4)
            if len(levels) < 5:
                raise ProtocolError(f"topic {topic[:80]!r} has no type and no timer")
            kind, ordinal = levels[3], stamp.ordinal_of_type
        last = self._heard.get(kind, 0)
        self._heard[kind] = max(last, ordinal)
        return ordinal - last

    def _take_beat(self, beat: Heartbeat) -> None:
        self._silent_s = 0.0
        counts = {"": beat.total}
        if self.interest.types:
            ordinals = {short_type(kind): count for kind, count in beat.ordinals.items()}
            counts = {kind: ordinals.get(kind, 0) for kind in self.interest.types}
        if self._boot is None:
            self._begin(beat)
        elif beat.epoch != self._epoch:
            self._restart_in(beat.epoch)
        elif beat.boot != self._boot:
            self._lose()
        elif any(count < self._heard.get(kind, 0) for kind, count in counts.items()):
            return  # a beat that was overtaken: it knows less than was heard
        elif any(count > self._heard.get(kind, 0) for kind, count in counts.items()):
            self._lose()
        elif not self._healing:
            self._raise_floor(beat.floor)
        self._boot = beat.boot
        self._heard = counts

    def _begin(self, beat: Heartbeat) -> None:
        if self._epoch is None:
            self._epoch = beat.epoch
        elif self._epoch != beat.epoch:
            self._restart_in(beat.epoch)
        if self._snapshot_from is not None:
            self._floor = beat.floor
        if not self._from_now:
            return
        # What came before the first heartbeat left after we subscribed: it belongs to "now".
        self._floor, self._begun = 0, True
        self._origin = _from_instant(beat.now)
        lost = self._again
        self._release()
        self._raise_floor(beat.floor)
        if lost:
            self._lose()

    def _lose(self) -> None:
        """Something was lost, or may be: replay from the floor to the head as it is from now on."""
        if self._healing:
            self._again = self._again or self._bound is not None
            return
        self._healing = True
        self._bound, self._ended, self._again = None, False, False
        self._position = ReplayFrom(epoch=self._epoch, seq=self._floor)

    def _restart_in(self, epoch: int) -> None:
        """The log was restored: its numbers mean other events now."""
        assert self._epoch is not None
        self._past[self._epoch] = self._floor
        self._epoch = epoch
        self._floor = self._past.get(epoch, 0)
        self._seen.clear()
        self._clear_held()
        self._healing = True
        self._bound, self._ended, self._again = None, False, False
        at_seq = self._origin.seq is not None
        self._position = ReplayFrom() if at_seq else self._origin

    # ----------------------------------------------------------------------------- what was asked

    def _take_head(self, stats: dict[str, Any]) -> None:
        try:
            epoch, seq = int(stats["log"]["epoch"]), int(stats["log"]["seq"])
        except (KeyError, TypeError, ValueError):
            raise ProtocolError("stats do not tell log.epoch and log.seq") from None
        if self._begun and epoch != self._epoch:
            self._restart_in(epoch)
        self._bound = seq
        if self._begun:
            self._settle()

    def _take_page(self, page: verbs.ReplayPage, now_s: float) -> None:
        if self._epoch is None:
            self._epoch = page.next.epoch
        elif page.next.epoch != self._epoch:
            self._bound = None  # asking for the head tells
            return
        self._begun, self._doubts = True, 0
        for event in page.events:
            known = event.seq <= self._floor or event.seq in self._seen
            if not known and self._past.get(event.epoch, 0) < event.seq:
                if self.interest.wants(event):
                    self.ready.append(event)
                self._floor = event.seq
        moved = page.next.seq > (self._position.seq or 0) or bool(page.events)
        self._position = ReplayFrom(epoch=page.next.epoch, seq=page.next.seq)
        self._raise_floor(page.next.seq)
        self._ended = page.end
        if moved:
            self._pause_s = PAUSE_S
        if page.end or not moved:
            # What is committed ahead of its instant is not told before it: wait a little.
            self._ask_at_s = now_s + self._pause_s
            self._pause_s = min(self._pause_s * 2, PAUSE_S_MAX)
        self._settle()

    def _settle(self) -> None:
        if self._bound is None or self._floor < self._bound:
            return
        if self._again:
            self._bound, self._again, self._ask_at_s = None, False, 0.0
            return
        self._release()
        self._healing, self._ask_at_s, self._pause_s = False, 0.0, PAUSE_S

    def _take_snapshot(self, page: verbs.SnapshotPage) -> None:
        if self._snapshot_from == "":
            # A timer that fires at this moment is in no snapshot, and its event may yet come.
            self._epoch = page.as_of.epoch
            self._floor = min(page.as_of.seq, self._floor)
            self._position = ReplayFrom(epoch=page.as_of.epoch, seq=self._floor)
            self._origin = self._position
        for view in page.items:
            event = _of_view(view, page.as_of)
            if self.interest.wants(replace(event, type=(self.interest.types or (SNAPSHOT,))[0])):
                self.ready.append(event)
        self._snapshot_from = page.next_cursor

    def _timers(self) -> TimerFilter:
        asked = self.interest.filter()
        return TimerFilter(labels=asked.labels, name_prefix=asked.name_prefix)

    # ---------------------------------------------------------------------------------- the books

    def _show(self, event: Event) -> None:
        self.ready.append(event)
        self._seen.add(event.seq)
        if len(self._seen) > self._seen_max:
            self._lose()

    def _hold(self, event: Event) -> None:
        if len(self._held) >= self._held_max or self._held_bytes > HELD_BYTES_MAX:
            self._again = True
            return
        self._held.append(event)
        self._held_bytes += len(event.raw)

    def _release(self) -> None:
        for event in self._held:
            known = event.seq <= self._floor or event.seq in self._seen
            if not known and event.epoch == self._epoch:
                self._show(event)
        self._clear_held()

    def _clear_held(self) -> None:
        self._held.clear()
        self._held_bytes = 0

    def _raise_floor(self, floor: int) -> None:
        if floor > self._floor:
            self._floor = floor
        if self._seen:
            self._seen = {seq for seq in self._seen if seq > self._floor}


def _read_beat(body: bytes) -> Heartbeat:
    """A heartbeat whose `now` is an instant. Raises MsgspecError, ProtocolError."""
    try:
        beat = _heartbeat.decode(body)
        _from_instant(beat.now)
    except (ValueError, OverflowError) as error:
        raise ProtocolError(f"heartbeat cannot be read: {error}") from None
    return beat


def _from_instant(now: str | int) -> ReplayFrom:
    at_ns = parse_instant(now) if isinstance(now, str) else now
    return ReplayFrom(time=format_instant(at_ns))


def _of_view(view: TimerView, as_of: Cursor) -> Event:
    return Event(
        type=SNAPSHOT,
        seq=as_of.seq,
        epoch=as_of.epoch,
        id=view.id,
        time=view.created_at,
        timer_id=view.id,
        name=view.name,
        labels=view.labels,
        occurrence=view.occurrence,
        due_ns=parse_instant(view.due) if view.due else None,
        fired_ns=None,
        lateness_us=None,
        misfire=False,
        state=view.state,
        payload=view.payload,
        dedupe_key=f"{view.tenant}/{view.id}/{view.occurrence}",
        attempt=1,
        raw=msgspec.json.encode(view),
    )
