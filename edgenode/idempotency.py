"""Idempotency keys: the same key and body get the same reply, and what was done is done once.

The note of a key is committed with what it did. A schedule reply is not kept: it is rebuilt from
the event, so a key costs 64 bytes; other replies are short and are kept as they were.
"""

from __future__ import annotations

from edgenode.call import Call
from edgenode.digest import digest
from edgenode.ledger import Ledger
from edgenode.verbs import create
from engine.record import Note
from minoots.wire.problems import refusal


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
    """The reply that this key got before, marked `replayed`; None if the key is new.

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
    if call.header.op in ("timer.schedule", "timer.schedule_many"):
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


def remember(ledger: Ledger, call: Call, first_seq: int, reply: bytes) -> None:
    """Keep the note of a key with the events from `first_seq` on that it caused."""
    count = ledger.next_seq - first_seq
    if call.header.op == "timer.schedule":
        reply = b""
    elif call.header.op == "timer.schedule_many":
        reply = create.keep_of_many(reply)
    note = Note(key_of(call), body_hash(call), ledger.now.utc_ns, first_seq, count, reply)
    ledger.remember(note)
