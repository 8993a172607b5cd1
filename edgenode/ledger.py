"""The node's facts: what the log says, and what the open turn adds to it.

Verbs and fires read timers here and write events here; nothing else does. A written event is at
once what later decisions of the same turn and of later turns see (through the hot set), although it
leaves the process only after its commit: if that fails, all of this is thrown away and rebuilt.
Arming follows the decision at once too; docs/decisions/0001-arming.md says why that is safe.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgenode._draft import write
from edgenode._encode import Encoder
from edgenode.call import Answer
from edgenode.config import Config
from edgenode.consumers import notes as consumer_notes
from edgenode.consumers.room import Consumers
from edgenode.definitions import key_of, slim
from edgenode.digest import digest
from edgenode.edges import StoreLog, StoreTables
from edgenode.encode import Identity
from edgenode.held import NOTHING, Held
from edgenode.occupancy import Occupancy
from edgenode.turns import Awaited, Outcome
from engine._hot import HotSet
from engine.clock import Now, tick_at_or_after
from engine.pulse import Left
from engine.record import (
    FLAG_BLOB,
    FLAG_SLIM,
    FOR_EVER_NS,
    IMAGE,
    Event,
    Image,
    Kind,
    Note,
    Scale,
    chain_hash,
    pack_event,
    pack_note,
    unpack_event,
    unpack_note,
    unpack_row,
)
from engine.store import Batch
from engine.timer import TERMINAL, State, may
from minoots.wire.problems import refusal
from minoots.wire.times import IdMaker

if TYPE_CHECKING:
    from edgenode.consumers.deliver import Delivery

TICK_NS = (
    1 << 20
)  # the wheel's unit, 1.05 ms: the release is exact, the wheel only hands over ahead


_receipt = struct.Struct("<Qq").pack


@dataclass(slots=True)
class Timer:
    """A timer as it is now: its image, its definition, and the seq that the image stands at."""

    image: Image
    blob: bytes


@dataclass(slots=True)
class Ledger:
    """See the module. `now` is set by the node at each pass; `random_bits(n)` is its randomness."""

    config: Config
    identity: Identity
    log: StoreLog
    tables: StoreTables
    hot: HotSet
    random_bits: Callable[[int], int]
    now: Now
    consumers: Consumers
    chain: bytes = bytes(32)
    first_seq: int = 1
    horizon_ns: int = 0  # steady: what is due before it is armed
    serving_since_ns: int = 0  # steady: what was due earlier was missed
    wall_held: bool = False  # the wall clock is in doubt: its timers do not fire
    wall_held_by_ns: int = 0  # ... by how much
    held: Held = field(default_factory=Held)  # what was overdue at a start
    let_go: set[bytes] = field(default_factory=set)  # of those, some that are to fire
    turned_away: set[bytes] = field(default_factory=set)  # ... that a change has had armed
    settled_seq: int = 0  # the newest event that is durable and was handed to the publisher
    live_count: int = 0
    trim_below: int = 0
    notes_count: int = 0  # idempotency notes in the tables
    events: list[bytes] = field(default_factory=list)
    notes: list[bytes] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    receipts: bytearray = field(default_factory=bytearray)
    receipts_since_ns: int = 0
    opened_ns: int = 0
    fires_since_ns: int = 0
    unreleased: dict[int, Awaited] = field(default_factory=dict)  # expired, not yet receipted
    receipted: set[int] = field(default_factory=set)
    waiting_receipt: deque[int] = field(default_factory=deque)
    newer_notes: dict[bytes, bytes] = field(default_factory=dict)
    notes_order: deque[tuple[int, bytes]] = field(default_factory=deque)
    notes_left: dict[bytes, int] = field(default_factory=dict)  # key -> its notes, open ones too
    fired: dict[int, int] = field(default_factory=dict)  # receipts that are not durable yet
    receipts_told: bool = False  # an answer tells of one: it must wait until that is durable
    proving: bool = False  # the store has failed, and no commit has followed yet
    breathe: Callable[[], None] = lambda: None  # a look at the clock inside a long decision
    accept_clock: Callable[[], None] = lambda: None  # believe UTC as it is
    ids: IdMaker = field(default_factory=IdMaker)
    occupancy: Occupancy = field(default_factory=Occupancy)
    _ids_at: Now | None = None
    encoder: Encoder = field(init=False)
    delivery: Delivery = field(init=False)  # what looks after the consumers

    def __post_init__(self) -> None:
        self.encoder = Encoder(*self.identity)

    # ------------------------------------------------------------------------------- reading

    @property
    def next_seq(self) -> int:
        """The number that the next event gets."""
        return self.first_seq + len(self.events)

    def record(self, seq: int) -> bytes | None:
        """The bytes of a decided event, durable or not; None if it is trimmed."""
        at = seq - self.first_seq
        return self.events[at] if at >= 0 else self.log.event(seq)

    def event(self, seq: int) -> Event | None:
        """A decided event, durable or not; None if it is trimmed."""
        data = self.record(seq)
        return None if data is None else unpack_event(seq, data)

    def view(self, timer: Timer) -> bytes:
        """The JSON of a timer as it is now."""
        raw = IMAGE.pack(*timer.image) + timer.blob
        return self.encoder.view(raw, 0, self.now.shift_ns, self.position(timer.image))

    def load(self, id: bytes) -> Timer | None:
        """A timer as the newest decision left it; None if there is none or its end is forgotten."""
        entry = self.hot.get(id)
        if entry is not None and entry[0]:
            record = self.event(entry[0])
            assert record is not None, "the log was trimmed above the tables"
            return self._from_record(record)
        row = self.tables.row(id)
        if row is not None:
            return Timer(*unpack_row(id, row))
        seq = self.tables.done(id)
        record = self.event(seq) if seq else None
        return self._from_record(record) if record is not None else None

    def _from_record(self, record: Event) -> Timer:
        image = record.image
        assert image is not None
        if record.flags & FLAG_BLOB:
            return Timer(image, record.blob)
        return Timer(image, self._definition(record) or slim(record.blob))

    def _definition(self, record: Event) -> bytes | None:
        """The newest definition at or before `record`, or the one in the tables."""
        image = record.image
        assert image is not None
        earlier: Event | None = record
        while earlier is not None and not earlier.flags & FLAG_BLOB:
            earlier = self.event(earlier.prev_seq) if earlier.prev_seq else None
        if earlier is not None:
            return earlier.blob
        row = self.tables.row(image.id)
        return unpack_row(image.id, row)[1] if row is not None else None

    def position(self, image: Image) -> str:
        """`armed` or `firing` where that is where the timer stands, else ""."""
        if image.seq in self.unreleased:
            return "firing"
        if image.state == State.SCHEDULED and self.deadline_ns(image) < self.horizon_ns:
            return "" if self.is_held(image) else "armed"
        return ""

    def held_before(self, id: bytes) -> tuple[int, int]:
        """By scale: what is due before does not fire, if it is of this timer. 0.1 us."""
        return NOTHING if id in self.let_go else self.held.before_ns

    def is_held(self, image: Image) -> bool:
        """Whether a scheduled timer was overdue at a start and is held."""
        return image.due_ns < self.held_before(image.id)[image.scale]

    def deadline_ns(self, image: Image) -> int:
        """A timer's due on the steady scale."""
        return image.due_ns - (self.now.shift_ns if image.scale == Scale.WALL else 0)

    # ------------------------------------------------------------------------------- writing

    def new_id(self, count: int = 1) -> bytes:
        """A timer id, the first of `count` that are taken: the others count up from it."""
        if self._ids_at is not self.now:
            self.ids.begin(self.now.utc_ns, self.random_bits(54))
            self._ids_at = self.now
        return self.ids.make(count)

    def create_drafts(self, drafts: Sequence[object], at: int, end: int, views: list[bytes]) -> int:
        """Write `scheduled` for the drafts that stand in a row from `at` on; how many those were.

        The same as `create` for each, in C; their views are added to `views`.
        """
        written = write(
            drafts,
            at,
            end,
            self.new_id,
            self.events,
            self.next_seq,
            self.now,
            self.horizon_ns,
            TICK_NS,
            self.hot,
            self.encoder,
            views,
        )
        self.live_count += written
        return written

    def create(self, image: Image, blob: bytes, due_utc_ns: int) -> bytes:
        """Write `scheduled` for a new timer, and return the record; `image.seq` is `next_seq`."""
        data = pack_event(
            image.seq,
            Kind.SCHEDULED,
            0,
            self.now.utc_ns,
            0,
            due_utc_ns,
            image.occurrence,
            image,
            blob,
        )
        self.events.append(data)
        self.live_count += 1
        self.hot.note(image.id, image.seq, image.due_ns, image.scale)
        deadline_ns = self.deadline_ns(image)
        if deadline_ns < self.horizon_ns:
            self.hot.arm(image.id, tick_at_or_after(deadline_ns, TICK_NS))
        return data

    def change(
        self,
        kind: Kind,
        timer: Timer,
        *,
        blob: bytes = b"",
        flags: int = 0,
        told_due_ns: int = 0,
        told_occurrence: int = 0,
        at_ns: int = 0,
        **after: int,
    ) -> Timer:
        """Write an event that changes a timer, and return the timer after it.

        blob: the whole definition, if it is new or the event must carry it; without one, or with
        one of `slim` and FLAG_SLIM, the event carries what names the timer. told_due_ns (UTC),
        told_occurrence: what the event speaks of, by default the occurrence before the change.
        at_ns: its time, by default now. after: the members of the image that change; `revision`
        and `seq` go by themselves.
        """
        before = timer.image
        seq = self.next_seq
        revision = before.revision + (kind != Kind.LATE)  # which changes nothing
        image = before._replace(seq=seq, revision=revision, **after)  # type: ignore[arg-type]
        assert may(before.state, kind, image.state), (before.state, kind, image.state)
        if not blob:
            flags |= FLAG_SLIM
        data = pack_event(
            seq,
            kind,
            flags,
            at_ns or self.now.utc_ns,
            before.seq,
            told_due_ns,
            told_occurrence or before.occurrence,
            image,
            blob or slim(timer.blob),
        )
        self.events.append(data)
        scheduled = image.state == State.SCHEDULED
        self.hot.note(image.id, seq, image.due_ns if scheduled else 0, image.scale)
        deadline_ns = self.deadline_ns(image)
        if scheduled and deadline_ns < self.horizon_ns:
            self.hot.arm(image.id, tick_at_or_after(deadline_ns, TICK_NS))
        else:
            self.hot.disarm(image.id)
        if image.state in TERMINAL and before.state not in TERMINAL:
            self.live_count -= 1
            key = key_of(timer.blob)
            if key is not None:  # its note need be kept no longer than any
                self.remember(_key_note(self.key_hash(key), image.id, self.now.steady_ns))
        return Timer(image, timer.blob if flags & FLAG_SLIM else blob)

    def tell(self, kind: Kind, data: bytes) -> None:
        """Write an event of the node itself; `data` is its JSON."""
        self.events.append(pack_event(self.next_seq, kind, 0, self.now.utc_ns, 0, 0, 0, None, data))

    def receipt(self, seq: int, fired_ns: int) -> None:
        """Write down when one expired event left."""
        self.receipts_of([(seq, fired_ns, 0, False)])

    def receipts_of(self, left: list[Left]) -> list[tuple[int, Awaited, int]]:
        """Write down when expired events left: seq, what was awaited and when it left, of those
        that are later than their budget. 1 us each."""
        over = []
        if left and not self.receipts:
            self.receipts_since_ns = left[0][1] - self.now.shift_ns
        awaited_of, receipted, fired = self.unreleased.pop, self.receipted.add, self.fired
        packed = []
        for seq, fired_ns, late_ns, _ in left:
            packed.append(_receipt(seq, fired_ns))
            receipted(seq)
            fired[seq] = fired_ns
            awaited = awaited_of(seq, None)
            if awaited is not None and 0 < awaited.budget_ns < late_ns:
                over.append((seq, awaited, fired_ns))
        self.receipts += b"".join(packed)
        return over

    def fired_ns(self, seq: int) -> int | None:
        """When an expired event left, if its receipt is not durable yet; None for the others.

        Who tells it waits for that commit: after a crash the event leaves again, at another time.
        """
        fired_ns = None if self.proving else self.fired.get(seq)
        self.receipts_told |= fired_ns is not None
        return fired_ns

    def expect_receipt(self, seq: int, awaited: Awaited) -> None:
        """An expired event was written (or found at start) that has yet to leave."""
        if not self.fires_since_ns:
            self.fires_since_ns = self.now.steady_ns
        self.unreleased[seq] = awaited
        self.waiting_receipt.append(seq)

    def remember(self, note: Note) -> None:
        """Write down what an idempotency key did."""
        data = pack_note(note)
        self.notes.append(data)
        self._is_newer(note.key, data)

    def content(self, key: bytes) -> bytes | None:
        """What a note of the node itself holds."""
        data = self.newer_notes.get(key) or self.tables.note(key)
        return None if data is None else unpack_note(data).reply

    def recall(self, key: bytes) -> Note | None:
        """What an idempotency key did."""
        data = self.newer_notes.get(key) or self.tables.note(key)
        if data is None:
            return None
        note = unpack_note(data)
        fresh = note.at_ns > self.now.steady_ns - self.config.log.idem_keep
        return note if fresh else None

    # ------------------------------------------------------------------------------- keys

    # A key is a note like those of idempotency, that leads to the timer: found at once when it is
    # written, after a restart too, and written in the commit that makes the timer.
    # docs/decisions/0009-keys.md says why there is no index.

    def key_hash(self, key: str) -> bytes:
        """The 16 bytes that the note of a timer's key is kept under."""
        return digest(b"key", self.identity.tenant.encode(), key.encode("utf-8", "surrogatepass"))

    def holder(self, key: str) -> Timer | None:
        """The timer that has not ended and has this key."""
        note = self.recall(self.key_hash(key))
        timer = self.load(note.body_hash) if note is not None else None
        return timer if timer is not None and timer.image.state not in TERMINAL else None

    def hold_key(self, key: str, id: bytes) -> None:
        """Write down that a timer has this key, until it ends."""
        self.remember(_key_note(self.key_hash(key), id, FOR_EVER_NS))

    # ------------------------------------------------------------------------------- the turn

    def floor(self) -> int:
        """Every expired event up to this seq has its receipt, decided if not yet durable."""
        waiting = self.waiting_receipt
        while waiting and waiting[0] in self.receipted:
            self.receipted.discard(waiting.popleft())
        return waiting[0] - 1 if waiting else self.next_seq - 1

    @property
    def next_left_ns(self) -> int | None:
        """The steady instant at which the floor may rise next; None if nothing is awaited."""
        self.floor()
        awaited = self.unreleased.get(self.waiting_receipt[0]) if self.waiting_receipt else None
        if awaited is None:
            return None
        return awaited.due_ns - (self.now.shift_ns if awaited.wall else 0)

    @property
    def left_seq(self) -> int:
        """Every event up to this seq is durable and has left: replays and heartbeats end here."""
        return min(self.settled_seq, self.floor())

    def must_commit(self, *, receipts_too: bool) -> bool:
        """Whether there is something to commit. Receipts alone can wait for company."""
        if self.events or self.notes or self.consumers.is_changed:
            return True
        waited_ns = self.now.steady_ns - self.receipts_since_ns
        due = receipts_too or self.receipts_told or waited_ns >= self.config.log.receipt_delay
        return bool(self.receipts) and due

    def close_turn(self, commit: int) -> Outcome:
        """Take what was decided since the last turn was closed; commit: its number, or 0 to take
        the answers alone."""
        batch = None
        if commit:
            for note in consumer_notes.changes(self.consumers):
                self.remember(note)
            receipts, notes = bytes(self.receipts), b"".join(self.notes)
            self.chain = chain_hash(self.chain, self.first_seq, self.events, receipts, notes)
            batch = Batch(
                self.first_seq,
                self.now.utc_ns,
                self.events,
                receipts,
                self.notes,
                self.chain,
                self.floor(),
                self.trim_below,
            )
            self.notes_order.extend((commit, data[8:24]) for data in self.notes)
            self.first_seq += len(self.events)
            self.events, self.notes = [], []
            self.receipts = bytearray()
            self.receipts_told = False
        fires_since_ns = self.fires_since_ns if batch is not None else 0
        outcome = Outcome(batch, self.answers, self.opened_ns, fires_since_ns)
        if batch is not None:
            self.fires_since_ns = 0
        self.answers = []
        self.opened_ns = 0
        return outcome

    def tables_moved(self, commit: int) -> None:
        """Forget the notes that the tables hold by now."""
        order = self.notes_order
        while order and order[0][0] <= commit:
            _, key = order.popleft()
            self.notes_left[key] -= 1
            if not self.notes_left[key]:
                del self.notes_left[key], self.newer_notes[key]

    def recovered_note(self, commit: int, key: bytes, data: bytes) -> None:
        """A note was found in the log, in a commit that the tables do not have."""
        self._is_newer(key, data)
        self.notes_order.append((commit, key))

    def _is_newer(self, key: bytes, data: bytes) -> None:
        # It counts from now on, not from its commit on: the tables may reach an older note of the
        # same key while this one waits for the turn to close, and must not take it along.
        self.newer_notes[key] = data
        self.notes_left[key] = self.notes_left.get(key, 0) + 1

    # ------------------------------------------------------------------------------- admission

    def create_room(self) -> int:
        """How many timers `admit_create` admits now."""
        return self.config.limits.timers_max - self.live_count

    def admit_create(self, number: int) -> None:
        """Refuse creates that there is no room for. Raises Refused."""
        limits = self.config.limits
        if number > self.create_room():
            raise refusal(
                "quota_exceeded",
                f"there are {self.live_count} timers; the limit is {limits.timers_max} "
                "(timers_max); cancel some or raise it",
            )

    def admit_note(self) -> None:
        """Refuse keys that there is no room for. Raises Refused."""
        most = self.config.log.idem_max
        if self.notes_count + len(self.newer_notes) >= most:
            raise refusal(
                "quota_exceeded",
                f"{most} keys are kept (idem_max), of idempotency and of timers; send no key, "
                "raise the limit or shorten idem_keep",
                retry_after_ms=60_000,
            )


def _key_note(hash: bytes, id: bytes, at_ns: int) -> Note:
    return Note(hash, id, at_ns, 0, 0, b"")
