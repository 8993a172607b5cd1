"""What is fuzzed: each target takes bytes, and may raise nothing.

What a target lets pass is what the thing under test promises to raise. `native` ones go through our
C, and run once more on extensions built with sanitizers, where a read beyond an end ends the
process.
"""

from __future__ import annotations

import random
import shutil
import struct
import tempfile
import tomllib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import orjson

from edgenode import call as calls
from edgenode import config
from edgenode._draft import ManyDrafts, draft
from edgenode._encode import Encoder
from edgenode._expire import expire
from edgenode._plain import is_plain_json
from edgenode._times import duration_of, instant_of
from edgenode.config import Config, EngineSection, LimitsSection
from edgenode.encode import KIND_NAMES
from edgenode.principal import LOCAL
from edgenode.virtual import DAY_NS, VirtualNode
from engine._hot import HotSet
from engine._wheel import Wheel
from engine.clock import Now
from engine.errors import StoreCorrupt, StoreFailed, StoreTooNew
from engine.files import open_store
from engine.record import (
    EVENT_HEAD_BYTES,
    FLAG_BLOB,
    FLAG_IMAGE,
    ROW_SEED,
    unpack_blob,
    unpack_event,
    unpack_note,
    unpack_row,
)
from engine.store import Filter
from minoots import arguments, consumer_verbs, verbs
from minoots.event import Stamp, read_event
from minoots.order import Interest, WatchCore
from minoots.requests import Call, Patience, Request, read_reply
from minoots.wire.bodies import EventFilter, ReplayFrom, TimerFilter
from minoots.wire.problems import MinootsError, Refused
from minoots.wire.times import parse_duration, parse_instant
from tests.fuzz import exchange, planted
from tests.unit import slow_draft, stored

UTC_NS = 1_800_000_000_000_000_000
FAR_NS = UTC_NS + 10**12
NOW = Now(UTC_NS - 5, UTC_NS, 5)
LIMITS = LimitsSection()
SPLIT = b"\xff\xfe"  # between frames; in no UTF-8
NODE_LIFE = 500  # requests to one node
STORE_LIFE = 200  # commits to one store
ID = bytes(range(16))
TICK_NS = 1 << 20


class Target(NamedTuple):
    """One thing that is fuzzed. words: what a mutation may put in."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    native: bool = False
    words: tuple[bytes, ...] = ()


# ------------------------------------------------------------------------------- the doors


def frames(data: bytes) -> None:
    """Frames to a call, or a problem that is JSON."""
    parts = tuple(data.split(SPLIT))
    try:
        calls.read(0, (b"peer", *parts), LOCAL, NOW)
    except Refused as refused:
        answer = calls.problem(0, b"peer", calls.corr_of((b"peer", *parts)), refused)
        orjson.loads(answer.frames[-1])


class _Nodes:
    """A virtual node for some requests each."""

    def __init__(self) -> None:
        self.node: VirtualNode | None = None
        self.asked = 0

    def ask(self, parts: list[bytes]) -> dict[str, Any]:
        if self.node is None or self.asked >= NODE_LIFE:
            self.node, self.asked = VirtualNode(), 0
        self.asked += 1
        try:
            answers = self.node.request(parts)
        except BaseException:
            self.node = None
            raise
        assert len(answers) == 1, f"{len(answers)} answers"
        magic, kind, _, _, body = answers[0]
        reply = orjson.loads(body)
        assert (magic, kind) in ((b"MZP1", b"R"), (b"MZP1", b"E")), answers
        assert kind == b"R" or reply["code"] != "internal", reply
        if self.asked % 50 == 0:
            self.node.advance(random.Random(len(parts[-1])).randrange(DAY_NS))
            self.node.live()
        return cast(dict[str, Any], reply)


_nodes = _Nodes()


def begin_anew() -> None:
    """Have the next input meet a new node: what the one that there is holds depends on its age."""
    _nodes.node = None


def requests(data: bytes) -> None:
    """Any request gets one answer, and none finds a fault of the node's own."""
    _nodes.ask(data.split(SPLIT))


def cursors(data: bytes) -> None:
    """Cursors of pages and of the log."""
    text = data[1:].decode("utf-8", "replace")
    op, body = [
        ("timer.list", {"cursor": text, "limit": 10}),
        ("stream.snapshot", {"cursor": text}),
        ("timer.history", {"id": text, "cursor": text}),
        ("stream.replay", {"from": {"time": text}}),
        ("stream.replay", {"from": {"epoch": 1, "seq": int.from_bytes(data[1:9], "big") >> 1}}),
        ("stream.replay", {"from": {"epoch": int.from_bytes(data[1:9], "little") >> 1, "seq": 0}}),
        ("timer.get", {"id": text}),
    ][(data[0] if data else 0) % 7]
    _nodes.ask([b"MZP1", b"Q", b"1", orjson.dumps({"op": op}), orjson.dumps(body)])


# ------------------------------------------------------------------------------- on disk


def sealed(data: bytes, seed: int) -> bytes:
    """The bytes with a checksum that agrees, of a version that is known: what gets further in."""
    body = bytearray(data[4:])
    if body:
        body[0] = 1
    return zlib.crc32(bytes(body), seed).to_bytes(4, "little") + bytes(body)


def records(data: bytes) -> None:
    """Every decoder of what is stored, with checksums that do not agree and that do."""
    seq = int.from_bytes(data[56:64], "little") if len(data) >= 64 else 1
    key = data[8:24]
    for found in (data, sealed(data, seq & 0xFFFFFFFF), sealed(data, ROW_SEED)):
        for unpack in (
            lambda raw: unpack_event(seq, raw),
            lambda raw: unpack_row(key, raw),
            unpack_note,
            unpack_blob,
        ):
            try:
                unpack(found)
            except (StoreCorrupt, StoreTooNew):
                continue


class _Text:
    """Stands for a file of configuration."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_text(self, encoding: str) -> str:
        return self._data.decode(encoding)


def configuration(data: bytes) -> None:
    """A file, and the same as environment and flags: a Config, or faults that are said."""
    words = [line.partition(b"=") for line in data.split(b"\n")[:8]]
    texts = {k.decode("utf-8", "replace"): v.decode("utf-8", "replace") for k, _, v in words}
    for given in (
        lambda: config.load(cast(Path, _Text(data)), {}, {}),
        lambda: config.load(None, {f"MINOOTS__{name}": text for name, text in texts.items()}, {}),
        lambda: config.load(None, {}, texts),
    ):
        try:
            made = given()
        except config.ConfigError as refused:
            if not refused.faults:
                raise
            continue
        assert made.engine.lead_min <= made.engine.lead_max


# ------------------------------------------------------------------------------- the SDK


def _questions() -> list[Request[Any]]:
    return [
        verbs.stats(),
        verbs.hello(),
        verbs.list_page(TimerFilter(), 10, None),
        verbs.snapshot_page(TimerFilter(), 10, None),
        verbs.replay_page(ReplayFrom(), EventFilter(), 10),
        verbs.history_page("tmr_x", 10, None),
        verbs.time_sync(1),
        verbs.change_many(*arguments.many("cancel", None, ["tmr_x"])),
        consumer_verbs.info("w"),
        consumer_verbs.list_page(10, None),
        consumer_verbs.pull("w", 10, "1s"),
        consumer_verbs.ack("w", ["1.2.3"]),
    ]


def sdk(data: bytes) -> None:
    """What comes from a node to the SDK: events, heartbeats, replies."""
    parts = data.split(SPLIT)
    core = WatchCore(Interest(types=("timer.expired",) if len(data) % 2 else ()), None)
    try:
        core.heard([b"t/default/~/hb", bytes(32), BEAT])
        core.heard(parts[:3])
        core.heard([b"t/default/e/timer.expired/x/y", parts[0][:32], parts[-1]])
        core.heard([b"t/default/~/hb", bytes(32), parts[-1]])
        core.step(1.0)
        read_event(parts[-1], Stamp.read(parts[0]))
    except MinootsError:
        pass
    for request in _questions():
        call: Call[Any] = Call(
            request, idem=None, now_s=0.0, patience=Patience(), rng=random.Random(1)
        )
        call.act(0.0, UTC_NS)
        kind = b"RE"[len(parts[-1]) % 2 : len(parts[-1]) % 2 + 1]
        reply = read_reply([b"MZP1", kind, call.corr, b"{}", parts[-1]])
        assert reply is not None
        call.take(reply, 0.1)
        read_reply(parts)
        try:
            if call.done:
                call.result()
        except MinootsError:
            continue


BEAT = orjson.dumps({"epoch": 1, "boot": "x", "floor": 3, "total": 5, "ordinals": {}, "now": 0})


# ------------------------------------------------------------------------------- our C


def definitions(data: bytes) -> None:
    """A definition read in C: what it takes gives the oracle's record, byte by byte."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return  # no door lets it through
    made = draft(data, NOW, LIMITS)
    if made is not None:
        assert is_plain_json(data.strip())
        assert slow_draft.record(data, NOW, LIMITS, ID, 7) is not None, data
    many = ManyDrafts(data, NOW, LIMITS)
    for _ in range(1 + len(data)):
        if many.ended or many.take(3) is None:
            break
    word = text[:64].encode()
    for fast, slow in ((duration_of, parse_duration), (instant_of, parse_instant)):
        got = fast(word)
        if got >= 0:
            assert slow(word.decode("utf-8", "replace")) == got, word


_encoder = Encoder("node", "default", 1)


def encoded(data: bytes) -> None:
    """Views and events put together from a record that the decoder lets pass."""
    seq = int.from_bytes(data[56:64], "little") if len(data) >= 64 else 1
    for flags in (None, FLAG_IMAGE | FLAG_BLOB):
        raw = bytearray(data)
        if flags is not None and len(raw) > 6:
            raw[6:8] = flags.to_bytes(2, "little")
        record = sealed(bytes(raw), seq & 0xFFFFFFFF)
        try:
            event = unpack_event(seq, record)
            if event.image is not None and event.flags & FLAG_BLOB:
                unpack_blob(event.blob)
            if event.kind not in KIND_NAMES:
                continue  # of a later version
        except (StoreCorrupt, StoreTooNew):
            continue
        for put_together in (
            lambda seq, raw: _encoder.event(seq, raw),
            lambda seq, raw: _encoder.event(seq, raw, UTC_NS),
            lambda seq, raw: _encoder.topic(raw),
            lambda seq, raw: _encoder.expiry(seq, raw, True),
            lambda seq, raw: _encoder.view(raw, EVENT_HEAD_BYTES, 0),
        ):
            try:
                put_together(seq, record)
            except (StoreCorrupt, ValueError):
                continue


def fired(data: bytes) -> None:
    """An expiry written in C from a record, or from a row."""
    seq = int.from_bytes(data[56:64], "little") if len(data) >= 64 else 1
    for stored_seq, seed in ((seq, seq & 0xFFFFFFFF), (0, ROW_SEED)):
        hot = HotSet(Wheel(capacity=64, now_tick=0))
        arguments = (hot, data[40:56].ljust(16, b"\0"), sealed(data, seed), stored_seq)
        try:
            expire(
                *arguments, [], 9, NOW, 1 << 50, TICK_NS, 10**9, 0, UTC_NS + 10**12, False, (0, 0)
            )
        except (StoreCorrupt, StoreTooNew):
            continue


class _Stores:
    """A store for some commits each."""

    def __init__(self) -> None:
        self.folder = ""
        self.used = 0

    def open(self) -> tuple[Any, Any]:
        self.close()
        room = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.folder = tempfile.mkdtemp(prefix="fuzz-", dir=room)
        self.used = 0
        self.log, self.tables = open_store(
            Path(self.folder), slice_entries=1 << 20, slice_age_ns=DAY_NS, map_bytes=64 << 20
        )
        self.writer = stored.Writer(self.log)
        return self.log, self.tables

    def close(self) -> None:
        if self.folder:
            for one in (self.tables, self.log):
                try:
                    one.close()
                except (StoreFailed, StoreCorrupt):
                    continue
            shutil.rmtree(self.folder)
            self.folder = ""


_stores = _Stores()


def store(data: bytes) -> None:
    """A commit of damaged records, folded into the tables: done, or a damage that is said."""
    if not _stores.folder or _stores.used >= STORE_LIFE:
        _stores.open()
    _stores.used += 1
    log, tables, writer = _stores.log, _stores.tables, _stores.writer
    first = writer.state.last_seq + 1
    parts = data.split(SPLIT)
    events = [_numbered(part, first + at) for at, part in enumerate(parts[:4])]
    notes = [sealed(part, 0x4E4F5445) for part in parts[4:8]]
    try:
        commit = writer.write(events, notes=notes)
        tables.follow(log.state().last_seq, commit, now=True)
        while tables.applied().commit < commit:
            stored.wait(tables.fileno())
        tables.scan(Filter(labels=(b'"a":',), name_prefix=parts[0][:4]), b"", 10, 100)
        tables.due(0, 0, 1 << 62)
        tables.row(parts[0][40:56].ljust(16, b"\0"))
    except (StoreCorrupt, StoreTooNew, StoreFailed):
        _stores.open()


def _numbered(part: bytes, seq: int) -> bytes:
    """The record as the one of `seq`."""
    raw = bytearray(part)
    if len(raw) >= 64:
        raw[56:64] = seq.to_bytes(8, "little")
    return sealed(bytes(raw), seq & 0xFFFFFFFF)


# ------------------------------------------------------------------------------- seeds


def _requests() -> list[bytes]:
    header = b'{"op":"%b","idem":"i"}'
    after, at = b'{"kind":"after","duration":"15m"}', b'{"kind":"at","instant":"2027-02-01T00:00Z"}'
    fixed = b'{"kind":"every","interval":"5s","mode":"fixed_delay"}'
    every: dict[bytes, bytes] = {
        b"timer.schedule": b'{"name":"a","schedule":%b,"payload":{}}' % after,
        b"timer.schedule_many": b'{"timers":[{"schedule":%b}]}' % at,
        b"timer.cancel": b'{"name":"a"}',
        b"timer.cancel_many": b'{"filter":{"labels":{"a":"b"},"due_from":"2027-01-15T08:00:00Z"}}',
        b"timer.reschedule": b'{"name":"a","schedule":{"kind":"every","interval":"5s"}}',
        b"timer.extend": b'{"name":"a","by":"1h30m"}',
        b"timer.list": b'{"filter":{"state":["scheduled"],"name_prefix":"a"},"limit":3}',
        b"timer.next": b'{"schedule":%b,"count":3}' % fixed,
        b"stream.replay": b'{"from":{"epoch":1,"seq":0},"filter":{"types":["timer.expired"]}}',
        b"time.sync": b'{"t0":12}',
        b"stats": b"{}",
    }
    return [SPLIT.join((b"MZP1", b"Q", b"1", header % op, body)) for op, body in every.items()]


def _records() -> list[bytes]:
    def after(text: bytes) -> bytes:
        record = slow_draft.record(text, NOW, LIMITS, ID, 7)
        assert record is not None
        return record

    texts = (
        b'{"name":"tea","schedule":{"kind":"after","duration":"15m"},"payload":{"a":[1]}}',
        b'{"labels":{"a":"b"},"schedule":{"kind":"every","interval":"5s"},"max_occurrences":3}',
        b'{"schedule":{"kind":"at","instant":"2027-02-01T00:00:00Z"}}',
    )
    return [after(text) for text in texts] + [stored.event(1), stored.event(7, flags=4)]


def _definitions() -> list[bytes]:
    alone = [request.split(SPLIT)[-1] for request in _requests()]
    return [*alone, b"1h30m", b"PT15M", b"2027-02-01T00:00:00.5+01:00"]


def _configurations() -> list[bytes]:
    rows = config.describe()
    text = '[engine]\nhorizon = "5m"\n[log]\nretention = "7d"\n[doors]\nhttp = ""\n'
    tomllib.loads(text)
    flags = "\n".join(f"{name}={default}" for name, default, _, _ in rows[:8])
    return [text.encode(), flags.encode(), b"engine.lead_min=2s\nengine.lead_max=1s"]


def _sdk() -> list[bytes]:
    node = VirtualNode(config=Config(engine=EngineSection(horizon=DAY_NS)))
    node.request(_requests()[0].split(SPLIT))
    live = node.advance(DAY_NS)
    replies = [node.request(request.split(SPLIT))[0] for request in _requests()]
    return [SPLIT.join((message[1], *message)) for message in live] + [
        SPLIT.join(reply) for reply in replies
    ]


def _cursors() -> list[bytes]:
    page = b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    return [bytes([op]) + text for op in range(7) for text in (page, b"2027-01-15T08:00:00Z")]


JSON_TEXT = b"""{ } [ ] , : " null true false 0 -1 1e999 \\u0000 \\ud800 kind after at every
duration interval instant schedule name labels payload limit cursor filter from epoch seq"""
JSON_WORDS = (*JSON_TEXT.split(), b"9" * 25, b"[" * 60, b'"' * 3)
BINARY_WORDS = tuple(
    struct.pack("<q", number) for number in (0, 1, -1, 1 << 62, -(1 << 63), 0xFFFF, 1 << 31)
)

TARGETS: dict[str, Target] = {
    "frames": Target(frames, _requests, words=(*JSON_WORDS, SPLIT, b"MZP1", b"Q")),
    "requests": Target(requests, _requests, native=True, words=(*JSON_WORDS, SPLIT)),
    "cursors": Target(cursors, _cursors),
    "records": Target(records, _records, words=BINARY_WORDS),
    "config": Target(configuration, _configurations, words=(b"=", b"[", b"]", b'"', b"\n", b"1h")),
    "sdk": Target(sdk, _sdk, words=JSON_WORDS),
    "definitions": Target(definitions, _definitions, native=True, words=JSON_WORDS),
    "encoded": Target(encoded, _records, native=True, words=BINARY_WORDS),
    "fired": Target(fired, _records, native=True, words=BINARY_WORDS),
    "store": Target(
        store, lambda: [SPLIT.join(_records()[:3]), *_records()], native=True, words=BINARY_WORDS
    ),
    "items": Target(exchange.items, exchange.item_seeds, native=True, words=BINARY_WORDS),
    "bundles": Target(exchange.bundles, exchange.bundle_seeds, words=exchange.BUNDLE_WORDS),
    "planted-python": Target(planted.python, lambda: [b"0" * 12]),
    "planted-c": Target(planted.native, lambda: [b"0" * 12], native=True),
}
PLANTED = ("planted-python", "planted-c")
