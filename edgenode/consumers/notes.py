"""Consumers as notes of the log: they are durable with the commit that changed them, and folded
into the tables like any note. What is stored of one is all that it holds: 4 bytes a message where
many were delivered together.

    LIST_KEY                          the (tenant, name) of all of them
    digest(consumer, tenant, name)    one: State
    digest(piece, tenant, name, n)    a piece of its list of dead letters
    digest(dead, tenant, name, seq)   a dead letter's event: when it fired, and the record

# If you change a layout here, raise VERSION, keep the old reader, add a fixture.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise

import msgspec

from edgenode.consumers.dead import Dead
from edgenode.consumers.deadlines import Deadlines
from edgenode.consumers.plan import read_plan
from edgenode.consumers.room import Consumers
from edgenode.consumers.state import Consumer, Counts, Message, Standing
from edgenode.digest import digest
from engine.errors import StoreCorrupt, StoreTooNew
from engine.record import FLAG_IMAGE, FOR_EVER_NS, Note
from minoots.wire.bodies import ConsumerConfig

VERSION = 1
LIST_KEY = b"\x00minoots.consmrs"  # no digest of a client's key: those are random
GONE_NS = 0  # `at_ns` of a note that is forgotten soon

_fired = struct.Struct("<q")
_FLAGS, _ID = 6, slice(40, 56)  # of a record


class State(msgspec.Struct, array_like=True, gc=False):
    """What is stored of one consumer. The lists are parallel, one entry a held message: seq and
    `until` in ns (each minus the one before), standing, attempt."""

    version: int
    config: ConsumerConfig
    created_ns: int
    cursor: int
    counts: tuple[int, int, int]
    seqs: list[int]
    standings: bytes
    attempts: list[int]
    untils: list[int]
    again: list[int]  # of those that were redriven: seq, standing, attempt, until, before, ...
    pieces: list[int]


_encode = msgspec.msgpack.Encoder().encode
_state = msgspec.msgpack.Decoder(State)
_list = msgspec.msgpack.Decoder(list[tuple[str, str]])
_piece = msgspec.msgpack.Decoder(list[Dead])


def key_of(consumer: Consumer, kind: bytes = b"consumer", number: int = 0) -> bytes:
    """The key of one of a consumer's notes. 2 us."""
    return digest(kind, consumer.tenant.encode(), consumer.name.encode(), b"%d" % number)


def changes(consumers: Consumers) -> Iterator[Note]:
    """What has changed, as notes; it is not changed any more."""
    for key in consumers.gone:
        yield _note(key, b"", GONE_NS)
    for key, content in consumers.copies.items():
        yield _note(key, content)
    for name in consumers.touched:
        consumer = consumers.by_key[name]
        for number in consumer.dead.changed:
            piece = list(consumer.dead.pieces.get(number, {}).values())
            at_ns = FOR_EVER_NS if piece else GONE_NS
            yield _note(key_of(consumer, b"piece", number), _encode(piece), at_ns)
        consumer.dead.changed.clear()
        consumer.noted_cursor = consumer.cursor
        yield _note(key_of(consumer), _encode(_state_of(consumer)))
    if consumers.listed:
        yield _note(LIST_KEY, _encode(list(consumers.by_key)))
    consumers.gone.clear()
    consumers.copies.clear()
    consumers.touched.clear()
    consumers.listed = False


def _note(key: bytes, content: bytes, at_ns: int = FOR_EVER_NS) -> Note:
    return Note(key, bytes(16), at_ns, 0, 0, content)


def _state_of(consumer: Consumer) -> State:
    held = list(consumer.held.values())
    again: list[int] = []
    for one in consumer.again.values():
        again += (one.seq, one.standing, one.attempt, one.until_ns, one.before)
    counts = consumer.counts
    return State(
        VERSION,
        consumer.config,
        consumer.created_ns,
        consumer.cursor,
        (counts.delivered, counts.redelivered, counts.acked),
        _steps([one.seq for one in held]),
        bytes([one.standing for one in held]),
        [one.attempt for one in held],
        _steps([one.until_ns for one in held]),
        again,
        list(consumer.dead.pieces),
    )


def _steps(values: list[int]) -> list[int]:
    """Each minus the one before: small numbers take one byte."""
    return [value - before for before, value in pairwise([0, *values])]


def copy_of(record: bytes, fired_ns: int) -> bytes:
    """What is kept of a dead letter's event."""
    return _fired.pack(fired_ns) + record


def event_of(copy: bytes) -> tuple[bytes, int]:
    """The record and when it fired (-1: it did not)."""
    return copy[_fired.size :], _fired.unpack_from(copy)[0]


Find = Callable[[bytes], bytes | None]  # the content of a note


def restore(find: Find, record: Callable[[int], bytes | None], now_ns: int) -> Consumers:
    """All consumers as they were stored. record: an event of the log.

    Raises StoreCorrupt, StoreTooNew.
    """
    consumers = Consumers(Deadlines(now_ns))
    listed = find(LIST_KEY)
    for tenant, name in _list.decode(listed) if listed else ():
        content = find(digest(b"consumer", tenant.encode(), name.encode(), b"0"))
        if not content:
            raise StoreCorrupt(f"consumer {name!r} is listed, and what it holds is not there")
        _restore_one(consumers, find, record, tenant, content)
    for consumer in consumers.by_key.values():
        consumers.active(consumer, now_ns)
    consumers.touched.clear()
    return consumers


def _restore_one(
    consumers: Consumers,
    find: Find,
    record: Callable[[int], bytes | None],
    tenant: str,
    content: bytes,
) -> None:
    state = _state.decode(content)
    if state.version > VERSION:
        raise StoreTooNew(
            f"consumer {state.config.name!r} has version {state.version}, newer than {VERSION}; "
            "upgrade minoots"
        )
    plan = read_plan(state.config, tenant)
    consumer = consumers.make(tenant, state.config, plan, state.created_ns, state.cursor)
    consumer.noted_cursor = state.cursor
    consumer.counts = Counts(*state.counts)
    for number in state.pieces:
        piece = find(key_of(consumer, b"piece", number))
        if not piece:
            raise StoreCorrupt(f"dead letters of consumer {consumer.name!r} are missing")
        consumer.dead.restore(number, _piece.decode(piece))
    for held in _held_of(state):
        data = record(held.seq)
        if held.copied:
            copy = find(key_of(consumer, b"dead", held.seq))
            data = event_of(copy)[0] if copy else None
        if data is None:
            raise StoreCorrupt(f"event {held.seq} is gone, and {consumer.name!r} holds it")
        held.timer = timer_of(data) if plan.ordered else b""
        consumer.keep(held)
    _line_up(consumer)


def _held_of(state: State) -> Iterator[Message]:
    seqs, untils = accumulate(state.seqs), accumulate(state.untils)
    for seq, standing, attempt, until_ns in zip(
        seqs, state.standings, state.attempts, untils, strict=True
    ):
        yield Message(seq, Standing(standing), attempt, until_ns)
    again = iter(state.again)
    for seq, standing, attempt, until_ns, before in zip(*[again] * 5, strict=True):
        yield Message(seq, Standing(standing), attempt, until_ns, copied=True, before=before)


def _line_up(consumer: Consumer) -> None:
    """Those that were ahead of others of their timer go first."""
    parked = []
    for held in consumer.each():
        if held.standing == Standing.PARKED:
            parked.append(held)
        else:
            consumer.line_up(held)
    for held in parked:
        held.standing = Standing.READY
        consumer.line_up(held)


def timer_of(record: bytes) -> bytes:
    """The timer that a record is about; b"" if it is about none."""
    return record[_ID] if record[_FLAGS] & FLAG_IMAGE else b""
