"""The encoder in C against the one in Python, and against a JSON reader."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgenode._encode import Encoder
from edgenode.encode import KIND_NAMES, Identity
from engine.record import (
    FLAG_MISFIRE,
    FLAG_SLIM,
    IMAGE,
    Image,
    Kind,
    pack_blob,
    pack_event,
    unpack_blob,
    unpack_event,
)
from engine.timer import Reason, State
from tests.unit import slow_encode

IDENTITY = Identity("node-1", "default", 7)
ENCODER = Encoder(*IDENTITY)
INSTANT_MAX = 7_258_118_400 * 10**9

instants = st.one_of(
    st.integers(0, INSTANT_MAX),
    st.sampled_from([0, 86_399 * 10**9, 951_782_400 * 10**9, 1_709_164_800 * 10**9, INSTANT_MAX]),
)
names = st.text(
    st.characters(exclude_categories=("C", "Z")) | st.sampled_from(' "\\/%'), max_size=40
)


@st.composite
def images(draw: st.DrawFn) -> Image:
    return Image(
        draw(st.binary(min_size=16, max_size=16)),
        draw(st.integers(1, 2**63)),
        draw(instants),
        draw(instants),
        draw(st.one_of(st.just(0), st.integers(1, 10**18))),
        draw(st.integers(0, 2**64 - 1)),
        draw(st.integers(1, 2**32 - 1)),
        draw(st.integers(1, 2**32 - 1)),
        0,
        draw(st.sampled_from(list(State))),
        draw(st.sampled_from([0, 1])),
        draw(st.sampled_from(list(Reason))),
    )


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@st.composite
def blobs(draw: st.DrawFn) -> bytes:
    labels = draw(st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=8)))
    rest = draw(st.sampled_from([b"", b'{"max_occurrences":3}']))
    return pack_blob(
        draw(st.sampled_from([b"", bytes(36)])),
        draw(names).encode(),
        orjson.dumps(labels),
        b'{"kind":"after","duration":"1s"}',
        orjson.dumps(draw(json_values)),
        rest,
    )


@given(
    image=images(), blob=blobs(), shift_ns=st.integers(0, 10**15), at=st.sampled_from([0, 8, 40])
)
@settings(max_examples=300)
def test_a_view_is_that_of_the_oracle(image: Image, blob: bytes, shift_ns: int, at: int) -> None:
    raw = bytes(at) + IMAGE.pack(*image) + blob
    for position in ("", "armed"):
        made = ENCODER.view(raw, at, shift_ns, position)
        slow = slow_encode.view(
            image, unpack_blob(blob), tenant="default", shift_ns=shift_ns, position=position
        )
        assert orjson.loads(made) == orjson.loads(slow)


@given(
    image=images(),
    blob=blobs(),
    kind=st.sampled_from([Kind.SCHEDULED, Kind.EXPIRED, Kind.SKIPPED, Kind.ESCALATED]),
    at_ns=instants,
    due_ns=instants,
    fired_ns=st.one_of(st.none(), instants),
    flags=st.sampled_from([0, FLAG_MISFIRE]),
)
@settings(max_examples=300)
def test_an_event_is_that_of_the_oracle(
    image: Image,
    blob: bytes,
    kind: Kind,
    at_ns: int,
    due_ns: int,
    fired_ns: int | None,
    flags: int,
) -> None:
    seq = image.seq
    data = pack_event(seq, kind, flags, at_ns, 3, due_ns, image.occurrence, image, blob)
    made = ENCODER.event(seq, data, -1 if fired_ns is None else fired_ns)
    record = unpack_event(seq, data)
    slow = slow_encode.event(IDENTITY, record, fired_ns=fired_ns)
    assert orjson.loads(made) == orjson.loads(slow)
    assert ENCODER.topic(data) == slow_encode.topic(IDENTITY, record)


@pytest.mark.parametrize("kind", [kind for kind in KIND_NAMES if kind >= Kind.NODE_STARTED])
def test_events_of_the_node(kind: int) -> None:
    data = pack_event(9, kind, 0, 10**18, 0, 0, 0, None, b'{"by_ns":5}')
    made = orjson.loads(ENCODER.event(9, data))
    assert made == orjson.loads(slow_encode.event(IDENTITY, unpack_event(9, data)))
    assert made["data"] == {"by_ns": 5}
    assert ENCODER.topic(data) == f"t/default/e/{KIND_NAMES[kind]}//".encode()


def test_a_slim_event_names_its_timer() -> None:
    image = Image(bytes(16), 5, 0, 10**18, 0, 0, 1, 2, 0, State.CANCELLED, 0, Reason.BY_CLIENT)
    blob = pack_blob(b"", b"tea", b'{"a":"b"}', b"", b"", b"")
    data = pack_event(5, Kind.CANCELLED, FLAG_SLIM, 10**18, 4, 0, 1, image, blob)
    made = orjson.loads(ENCODER.event(5, data))["data"]
    assert (made["name"], made["labels"], "payload" in made) == ("tea", {"a": "b"}, False)


@pytest.mark.parametrize("cut", [0, 39, 60, 111, 113, 130])
def test_bytes_that_do_not_add_up_are_refused(cut: int) -> None:
    image = Image(bytes(16), 5, 0, 10**18, 0, 0, 1, 2, 0, State.SCHEDULED, 0, Reason.NONE)
    blob = pack_blob(b"", b"tea", b"{}", b"{}", b"null", b"")
    data = pack_event(5, Kind.SCHEDULED, 0, 10**18, 4, 0, 1, image, blob)
    with pytest.raises(ValueError, match=r"cut short|no room|holds parts"):
        ENCODER.event(5, data[:cut])


@pytest.mark.parametrize("number", [8, 16, 200, 255])
def test_a_state_of_a_later_version_has_no_name(number: int) -> None:
    image = Image(bytes(16), 1, 5, 1, 0, 0, 1, 1, 0, number, 0, number)
    data = pack_event(
        1, Kind.SCHEDULED, 0, 1, 0, 5, 1, image, pack_blob(*[b""] * 3, b"{}", b"1", b"")
    )
    told = orjson.loads(Encoder("n", "default", 1).event(1, data))["data"]
    assert (told["state"], told["state_reason"]) == ("", "")
