"""The records of the log and the tables: what C reads is what Python wrote; damage is told."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import record
from engine._blake import name_hash_of
from engine._crc import crc32_of
from engine.errors import StoreCorrupt, StoreTooNew
from engine.record import Image, Kind, Note, Scale
from engine.timer import TERMINAL, State
from tests.unit import _probe_record as probe  # type: ignore[attr-defined]

IMAGE = Image(b"0123456789abcdef", 7, -5, 11, 12, 2**63 + 1, 3, 4, 513, 2, 1, 5)
BLOB = record.pack_blob(b"rule", b"name", b"{}", b"plan", b"load", b"rest")
NOTE = Note(b"k" * 16, b"h" * 16, -9, 1 << 40, 3, b"reply")


@given(st.binary(max_size=200), st.integers(0, 2**32 - 1))
def test_crc_is_that_of_zlib(data: bytes, seed: int) -> None:
    assert crc32_of(data, seed) == zlib.crc32(data, seed)


@pytest.mark.parametrize(
    ("layout", "reader"),
    [
        (record.EVENT_HEAD, probe.event_head),
        (record.IMAGE, probe.image),
        (record.ROW_HEAD, probe.row_head),
        (record.NOTE_HEAD, probe.note_head),
        (record.BLOB_HEAD, probe.blob_head),
    ],
)
def test_c_reads_each_field_where_python_writes_it(layout: struct.Struct, reader: object) -> None:
    assert callable(reader)
    for step in (1, 37, 101):
        data = bytes(i * step + 130 & 255 for i in range(layout.size))
        assert reader(data) == layout.unpack(data)


def test_c_knows_the_same_sizes_and_numbers() -> None:
    for name in ("EVENT_HEAD", "IMAGE", "ROW_HEAD", "NOTE_HEAD", "BLOB_HEAD"):
        assert probe.SIZES[name] == getattr(record, name).size
    assert (probe.SIZES["due key"], probe.SIZES["name key"]) == (21, 24)
    for name, value in probe.CONSTANTS.items():
        assert value == getattr(record, name)
    assert probe.STATES == {"scheduled": State.SCHEDULED, "paused": State.PAUSED}
    assert set(State) - TERMINAL == set(probe.STATES.values())
    assert all(state > State.PAUSED for state in TERMINAL)
    assert (probe.KIND_OF_BIRTH, probe.STEADY) == (Kind.SCHEDULED, Scale.STEADY)
    assert len(set(probe.SEEDS)) == len(probe.SEEDS)


def test_an_event_comes_back() -> None:
    data = record.pack_event(7, Kind.EXPIRED, record.FLAG_MISFIRE, 1, 2, 3, 4, IMAGE, BLOB)
    event = record.unpack_event(7, data)
    assert (event.image, event.blob, event.prev_seq, event.due_ns) == (IMAGE, BLOB, 2, 3)
    assert event.flags == record.FLAG_MISFIRE | record.FLAG_IMAGE | record.FLAG_BLOB
    plain = record.unpack_event(8, record.pack_event(8, 64, 0, 1, 0, 0, 0, None, b"text"))
    assert (plain.image, plain.blob) == (None, b"text")
    slim = record.pack_event(7, Kind.EXPIRED, record.FLAG_SLIM, 1, 2, 3, 4, IMAGE, BLOB)
    assert record.unpack_event(7, slim).flags == record.FLAG_SLIM | record.FLAG_IMAGE


def test_every_flipped_bit_of_an_event_is_told() -> None:
    data = record.pack_event(7, Kind.EXPIRED, 0, 1, 2, 3, 4, IMAGE, BLOB)
    for bit in range(8 * len(data)):
        with pytest.raises(StoreCorrupt):
            record.unpack_event(7, flipped(data, bit))
    for size in range(len(data)):
        with pytest.raises(StoreCorrupt):
            record.unpack_event(7, data[:size])
    with pytest.raises(StoreCorrupt, match="event 8 does not agree with its checksum"):
        record.unpack_event(8, data)


def test_every_flipped_bit_of_a_row_and_a_note_is_told() -> None:
    row, note = record.pack_row(IMAGE, BLOB), record.pack_note(NOTE)
    assert record.unpack_row(IMAGE.id, row) == (IMAGE, BLOB)
    assert record.unpack_note(note) == NOTE
    for bit in range(8 * len(row)):
        with pytest.raises(StoreCorrupt):
            record.unpack_row(IMAGE.id, flipped(row, bit))
    for bit in range(8 * len(note)):
        with pytest.raises(StoreCorrupt):
            record.unpack_note(flipped(note, bit))
    with pytest.raises(StoreCorrupt, match="carries the id"):
        record.unpack_row(b"x" * 16, row)


def test_records_of_a_later_version_are_refused() -> None:
    body = bytearray(record.pack_event(7, 1, 0, 1, 2, 3, 4, IMAGE, BLOB))
    body[4] = 9
    body[:4] = zlib.crc32(body[4:], 7).to_bytes(4, "little")
    with pytest.raises(StoreTooNew, match="record version 9 is newer than 1; upgrade minoots"):
        record.unpack_event(7, bytes(body))


def test_a_definition_comes_back_in_parts() -> None:
    assert record.unpack_blob(BLOB) == (b"rule", b"name", b"{}", b"plan", b"load", b"rest")
    with pytest.raises(StoreCorrupt, match="holds parts of"):
        record.unpack_blob(BLOB + b"!")
    with pytest.raises(StoreCorrupt, match="a definition is 19 bytes; its head alone has 20"):
        record.unpack_blob(BLOB[:19])


def test_names_hash_by_tenant_and_never_to_nothing() -> None:
    assert record.name_hash(b"") == 0
    assert record.name_hash(b"tea") != record.name_hash(b"tea", 1)
    assert record.name_hash(b"tea") == record.name_hash(b"tea") != 0


@given(st.binary(max_size=400), st.integers(0, 0xFFFF))
def test_c_hashes_names_alike(name: bytes, tenant: int) -> None:
    for whole in (name, name[:128], name[:129]):
        assert name_hash_of(whole, tenant) == record.name_hash(whole, tenant)


def test_the_chain_covers_everything() -> None:
    base = record.chain_hash(bytes(32), 1, [b"a", b"b"], b"r" * 16, b"n")
    others = [
        record.chain_hash(b"1" * 32, 1, [b"a", b"b"], b"r" * 16, b"n"),
        record.chain_hash(bytes(32), 2, [b"a", b"b"], b"r" * 16, b"n"),
        record.chain_hash(bytes(32), 1, [b"a", b"c"], b"r" * 16, b"n"),
        record.chain_hash(bytes(32), 1, [b"a", b"b"], b"s" * 16, b"n"),
        record.chain_hash(bytes(32), 1, [b"a", b"b"], b"r" * 16, b"m"),
    ]
    assert len({base, *others}) == 6


def flipped(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)
