"""Idempotency keys: the same key and body get the same reply, and what was done is done once.

The note of a key is committed with what it did. A schedule reply is not kept: it is rebuilt from
the event, so a key costs 64 bytes; other replies, and one that tells of a conflict, are kept as
they were.
"""

from __future__ import annotations

import struct

from edgenode.call import Call, Progress
from edgenode.digest import digest
from edgenode.ledger import Ledger
from edgenode.verbs import create
from engine.record import Note
from minoots.wire.problems import refusal

UNDER_WAY = b"\x01"  # a reply is JSON, and does not begin so
BRIEF_NS = 900_000_000_000  # what settles deliveries comes too often to be kept for a day

_progress = struct.Struct("<16sQQ")


def key_of(call: Call) -> bytes:
    """The 16 bytes that a key is kept under; made once a call."""
    assert call.header.idem is not None
    if not call.key:
        call.key = digest(call.principal.tenant.encode(), call.header.idem.encode())
    return call.key


def body_hash(call: Call) -> bytes:
    """16 bytes that stand for what is asked."""
    return digest(call.header.op.encode(), call.body)


def recall(ledger: Ledger, call: Call) -> bytes | None:
    """The reply that this key got before, marked `replayed`; None if the key is new, or what it
    asked for was not finished: then the call knows how far it came.

    Raises Refused: idempotency_key_reused, out_of_retention.
    """
    note = ledger.recall(key_of(call))
    if note is None:
        return None
    if note.body_hash != body_hash(call):
        raise refusal(
            "idempotency_key_reused",
            f"idem {call.header.idem!r} was used for another verb or body within "
            "the time that keys are kept; use a new key",
        )
    reply = note.reply
    if reply.startswith(UNDER_WAY):
        call.progress = Progress(*_progress.unpack_from(reply, 1))
        return None
    if call.header.op == "timer.schedule_many" or (
        call.header.op == "timer.schedule" and not reply
    ):
        reply = _rebuild(ledger, call, note)
    return reply[:-1] + (b',"replayed":true}' if reply != b"{}" else b'"replayed":true}')


def _rebuild(ledger: Ledger, call: Call, note: Note) -> bytes:
    records = []
    for seq in range(note.first_seq, note.first_seq + note.events_count):
        record = ledger.record(seq)
        if record is None:
            raise refusal(
                "out_of_retention",
                f"idem {call.header.idem!r} was answered before, but event {seq} is trimmed",
            )
        records.append(record)
    if call.header.op == "timer.schedule":
        return create.reply_of_one(ledger, note.first_seq, records[0])
    return create.reply_of_many(ledger, note.first_seq, records, note.reply)


def keep_progress(ledger: Ledger, call: Call, progress: Progress) -> None:
    """Note how far a call with a key is, in the commit of what it did; so a repeat after a crash
    goes on from there."""
    if call.key:
        reply = UNDER_WAY + _progress.pack(*progress)
        ledger.remember(Note(call.key, body_hash(call), ledger.now.steady_ns, 0, 0, reply))


def remember(
    ledger: Ledger, call: Call, first_seq: int, reply: bytes, *, brief: bool = False
) -> None:
    """Keep the note of a key with the events from `first_seq` on that it caused. brief: no longer
    than BRIEF_NS."""
    count = ledger.next_seq - first_seq
    if call.header.op == "timer.schedule":
        reply = create.keep_of_one(reply)
    elif call.header.op == "timer.schedule_many":
        reply = create.keep_of_many(reply)
    # By the scale that nobody steps: UTC set a day ahead would have every key forgotten at once.
    at_ns = ledger.now.steady_ns
    if brief:  # as if it had been written long ago
        at_ns -= max(ledger.config.log.idem_keep - BRIEF_NS, 0)
    note = Note(key_of(call), body_hash(call), at_ns, first_seq, count, reply)
    ledger.remember(note)
