"""The verbs that look: get, list, snapshot, next, history, replay."""

from __future__ import annotations

import base64
from collections.abc import Generator

import msgspec
import orjson

from edgenode.call import Call
from edgenode.definitions import time_of
from edgenode.event_filter import read_match
from edgenode.ledger import Ledger
from edgenode.verbs.find import SCAN_BUDGET, find, read_filter, read_id, unpack_id
from edgenode.verbs.place import PAGE_BYTES_MAX, STEP_EVENTS, out_of_retention, replay_start
from engine import schedule as rules
from engine.record import Event, Kind, Scale, check_event, rule_of, unpack_event
from engine.schedule import Occurrence
from engine.timer import TERMINAL, State
from minoots.wire import bodies
from minoots.wire.problems import refusal
from minoots.wire.times import INSTANT_NS_MAX, format_instant

_target = msgspec.json.Decoder(bodies.Target)
_list = msgspec.json.Decoder(bodies.ListTimers)
_next = msgspec.json.Decoder(bodies.Next)
_history = msgspec.json.Decoder(bodies.History)
_replay = msgspec.json.Decoder(bodies.Replay)

Steps = Generator[int, None, bytes]

PAGE_EVENTS_SCANNED = 20_000  # ... and in one page, so that a rare filter does not hold the door


def get(ledger: Ledger, call: Call) -> Steps:
    """`timer.get`: one timer, ended ones too while the log keeps them."""
    asked = call.read(_target)
    timer = yield from find(ledger, asked)
    return ledger.view(timer)


def _page_size(limit: int) -> int:
    if not 1 <= limit <= bodies.PAGE_MAX:
        raise refusal(
            "validation", f"limit is {limit}; it must be 1 to {bodies.PAGE_MAX}", pointer="/limit"
        )
    return limit


def _bad_cursor(text: str) -> Exception:
    detail = f"cursor is {text[:40]!r}; send back what the page before gave, unchanged"
    return refusal("validation", detail, pointer="/cursor")


def _read_cursor(text: str | None) -> tuple[bytes, int]:
    """The id to go on after, and the seq that the first page stood at."""
    if text is None:
        return b"", 0
    try:
        raw = base64.b64decode(text.encode(), b"-_", validate=True)
    except ValueError:
        raise _bad_cursor(text) from None
    if len(raw) != 24:
        raise _bad_cursor(text)
    return raw[:16], int.from_bytes(raw[16:], "big")


def list_timers(ledger: Ledger, call: Call) -> Steps:
    """`timer.list`: a page of the timers that have not ended, in the order of their ids."""
    items, cursor, _ = yield from _page(ledger, call)
    return b'{"items":[%b],"next_cursor":%b}' % (b",".join(items), cursor)


def snapshot(ledger: Ledger, call: Call) -> Steps:
    """`stream.snapshot`: the same, and `as_of`: replaying from there brings it up to date."""
    items, cursor, as_of = yield from _page(ledger, call)
    place = b'{"epoch":%d,"seq":%d}' % (ledger.identity.epoch, as_of)
    return b'{"items":[%b],"next_cursor":%b,"as_of":%b}' % (b",".join(items), cursor, place)


def _page(ledger: Ledger, call: Call) -> Generator[int, None, tuple[list[bytes], bytes, int]]:
    asked = call.read(_list)
    limit = _page_size(asked.limit)
    after, as_of = _read_cursor(asked.cursor)
    wanted = read_filter(asked.filter, ledger)
    if not after:
        yield ledger.next_seq - 1  # the first page waits until the tables hold what came before
        as_of = min(ledger.tables.applied().seq, ledger.left_seq)
    items: list[bytes] = []
    size = 0
    while len(items) < limit and size < PAGE_BYTES_MAX:
        step = min(limit - len(items), STEP_EVENTS)
        rows, after = ledger.tables.scan(wanted, after, step, SCAN_BUDGET)
        for row in rows:
            timer = ledger.load(unpack_id(row))
            if timer is not None and timer.image.state not in TERMINAL:
                items.append(ledger.view(timer))
                size += len(items[-1])
        if not after:
            break
        yield 0
    cursor = b"null"
    if after:
        cursor = b'"' + base64.urlsafe_b64encode(after + as_of.to_bytes(8, "big")) + b'"'
    return items, cursor, as_of


def next_dues(ledger: Ledger, call: Call) -> Steps:
    """`timer.next`: the coming dues of a timer, or of a schedule that is only tried."""
    asked = call.read(_next)
    if not 1 <= asked.count <= bodies.PAGE_MAX:
        raise refusal(
            "validation",
            f"count is {asked.count}; it must be 1 to {bodies.PAGE_MAX}",
            pointer="/count",
        )
    if asked.schedule is not None:
        if (asked.id, asked.name, asked.key) != (None, None, None):
            raise refusal("validation", "give a timer or a schedule, not both", pointer="/schedule")
        timing = time_of(
            asked.schedule,
            call.now,
            ledger.config.limits,
            max_occurrences=asked.max_occurrences,
            expires_at=asked.expires_at,
        )
        rule, scale, coming = timing.rule, timing.scale, timing.first
    else:
        timer = yield from find(ledger, asked)
        image = timer.image
        if image.state != State.SCHEDULED:
            return b'{"occurrence":0,"dues":[]}'
        rule = rules.unpack_rule(rule_of(timer.blob))
        scale, coming = image.scale, Occurrence(image.occurrence, image.due_ns)
    shift_ns = call.now.shift_ns if scale == Scale.STEADY else 0
    dues: list[str] = []
    at: Occurrence | None = coming
    while at is not None and len(dues) < asked.count and at.due_ns + shift_ns <= INSTANT_NS_MAX:
        dues.append(format_instant(at.due_ns + shift_ns))
        at = rules.following(rule, at, now_ns=at.due_ns, shift_ns=shift_ns)
    return orjson.dumps({"occurrence": coming.number, "dues": dues})


def history(ledger: Ledger, call: Call) -> Steps:
    """`timer.history`: its events; without a cursor the newest page, each page in order."""
    asked = call.read(_history)
    limit = _page_size(asked.limit)
    id = read_id(asked.id)
    if asked.cursor is None:
        timer = yield from find(ledger, bodies.Target(id=asked.id))
        seq = timer.image.seq
    else:
        seq = _history_seq(asked.cursor, ledger)
    found: list[bytes] = []
    while seq and len(found) < limit:
        data = ledger.record(seq)
        if data is None:
            break
        record = unpack_event(seq, data)
        if record.image is None or record.image.id != id:
            raise _bad_cursor(asked.cursor or "")
        if seq not in ledger.unreleased:  # an expiration is not shown before its instant
            found.append(_shown_event(ledger, record, data))
        seq = record.prev_seq
    events = found[::-1]
    cursor = b'"%d"' % seq if seq and ledger.record(seq) is not None else b"null"
    return b'{"events":[%b],"next_cursor":%b}' % (b",".join(events), cursor)


def _history_seq(text: str, ledger: Ledger) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) < ledger.next_seq):
        raise _bad_cursor(text)
    return int(text)


def _shown_event(ledger: Ledger, record: Event, data: bytes) -> bytes:
    seq = record.seq
    fired_ns = None
    if record.kind == Kind.EXPIRED:
        fired_ns = ledger.fired_ns(seq)
        if fired_ns is None:
            fired_ns = ledger.log.receipts(seq, seq).get(seq)
    return ledger.encoder.event(seq, data, -1 if fired_ns is None else fired_ns)


def replay(ledger: Ledger, call: Call) -> Steps:
    """`stream.replay`: events that have left, in the order of their seq, after a cursor.

    It ends at the floor: an expiration that is committed ahead of its instant is not shown yet.
    """
    asked = call.read(_replay)
    limit = _page_size(asked.limit)
    match = read_match(asked.filter, call.principal.tenant)
    seq = replay_start(ledger, asked.from_)
    events: list[bytes] = []
    size = scanned = 0
    floor = ledger.left_seq
    while seq <= floor and len(events) < limit and size < PAGE_BYTES_MAX:
        if scanned >= PAGE_EVENTS_SCANNED:
            break
        step = min(STEP_EVENTS, floor - seq + 1)
        page = ledger.log.events(seq, step, PAGE_BYTES_MAX)
        if not page:
            raise out_of_retention(ledger, seq)
        receipts = ledger.log.receipts(seq, seq + len(page) - 1)
        looked = len(page)
        for at in match.among(page):
            check_event(seq + at, page[at])
            fired_ns = ledger.fired_ns(seq + at) or receipts.get(seq + at, -1)
            events.append(ledger.encoder.event(seq + at, page[at], fired_ns))
            size += len(events[-1])
            if len(events) == limit or size >= PAGE_BYTES_MAX:
                looked = at + 1
                break
        seq += looked
        scanned += looked
        yield 0
    end = b"true" if seq > floor else b"false"
    return b'{"events":[%b],"next":{"epoch":%d,"seq":%d},"end":%b}' % (
        b",".join(events),
        ledger.identity.epoch,
        seq - 1,
        end,
    )
