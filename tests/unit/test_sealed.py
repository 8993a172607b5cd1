"""A bundle's file: what was changed, cut, forged or meant for another is refused, and why."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import resource
import struct
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from nacl import bindings as sodium

from edgenode.bundles.keys import BundleError, Keyring, Peer, PublicKey, SecretKey, read_public
from edgenode.bundles.sealed import Head, OrdersPart, Part, Writer, put, verify

MADE_AT = "2027-01-15T08:00:00Z"


def new_key(folder: Path, node: str) -> SecretKey:
    return Keyring(folder / node).make(node)


def head_of(key: SecretKey, to: str = "") -> Head:
    nothing = OrdersPart(0, 0)
    return Head(
        1, "0.1", key.node, key.public.fingerprint, to, "c" * 32, 1, "", MADE_AT, 1, None, None, 0,
        nothing, [],
    )  # fmt: skip


def written(
    path: Path, key: SecretKey, to: PublicKey | None, parts: list[tuple[Part, bytes]]
) -> str:
    writer = Writer(path, head_of(key, to.node if to else ""), key, to)
    for part, data in parts:
        writer.write(part, data)
    name = writer.finish()
    put(path)
    writer.leave()
    return name


def believed(*keys: SecretKey) -> dict[str, Peer]:
    return {key.node: Peer(key.public, False) for key in keys}


PARTS = [
    (Part.LOG, b"a" * 10),
    (Part.LOG, random.Random(1).randbytes(3_000_000)),
    (Part.TABLES, b""),
    (Part.ORDERS, b"{}\n"),
]


def joined(frames: list[tuple[Part, bytes]]) -> dict[Part, bytes]:
    found: dict[Part, bytes] = {}
    for part, data in frames:
        found[part] = found.get(part, b"") + data
    return {part: data for part, data in found.items() if data}


@pytest.mark.parametrize("encrypted", [False, True])
def test_what_is_written_is_read(tmp_path: Path, encrypted: bool) -> None:
    ours, theirs = new_key(tmp_path, "a"), new_key(tmp_path, "b")
    path = tmp_path / "x.bundle"
    name = written(path, ours, theirs.public if encrypted else None, PARTS)
    bundle = verify(path, believed(ours))
    assert bundle.id == name
    assert joined(list(bundle.frames(theirs))) == joined(PARTS)
    assert (b"a" * 10 in path.read_bytes()) is not encrypted
    assert path.stat().st_mode & 0o077 == 0
    assert not list(tmp_path.glob("*.part"))


def test_another_program_can_read_it_from_the_page_on_the_format(tmp_path: Path) -> None:
    """Written from docs/format.md alone, with nothing of ours."""
    ours, theirs = new_key(tmp_path, "a"), new_key(tmp_path, "b")
    path = tmp_path / "x.bundle"
    written(path, ours, theirs.public, PARTS)
    data = path.read_bytes()
    assert data.startswith(b"minoots bundle\n")
    at = len(b"minoots bundle\n")
    (size,) = struct.unpack_from("<I", data, at)
    head = json.loads(data[at + 4 : at + 4 + size])
    assert head["from"] == "a"
    box = base64.b64decode(head["sealed"]["key"])
    key = sodium.crypto_box_seal_open(box, theirs.public.box, theirs.box)
    state = sodium.crypto_secretstream_xchacha20poly1305_state()
    start = base64.b64decode(head["sealed"]["start"])
    sodium.crypto_secretstream_xchacha20poly1305_init_pull(state, start, key)
    at += 4 + size
    found: dict[int, bytes] = {}
    last = 0
    while not last:
        (length,) = struct.unpack_from("<I", data, at)
        size, last = length & 0x7FFFFFFF, length >> 31
        text, tag = sodium.crypto_secretstream_xchacha20poly1305_pull(
            state, data[at + 4 : at + 4 + size], None
        )
        assert (tag == sodium.crypto_secretstream_xchacha20poly1305_TAG_FINAL) == bool(last)
        if not last:
            found[text[0]] = found.get(text[0], b"") + text[1:]
        at += 4 + size
    assert {Part(kind): text for kind, text in found.items() if text} == joined(PARTS)
    signing = sodium.crypto_sign_ed25519ph_state()
    sodium.crypto_sign_ed25519ph_update(signing, data[:at])
    assert sodium.crypto_sign_ed25519ph_final_verify(signing, data[at:], ours.public.sign)


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_changed_or_shortened_file_is_refused(tmp_path: Path, encrypted: bool) -> None:
    ours, theirs = new_key(tmp_path, "a"), new_key(tmp_path, "b")
    path = tmp_path / "x.bundle"
    written(path, ours, theirs.public if encrypted else None, [(Part.LOG, b"log" * 40)])
    good = path.read_bytes()
    for at in range(len(good)):
        for bit in (1, 128):
            bad = bytearray(good)
            bad[at] ^= bit
            path.write_bytes(bad)
            with pytest.raises(BundleError):
                verify(path, believed(ours))
        path.write_bytes(good[:at])
        with pytest.raises(BundleError, match=r"cut short|does not begin as one"):
            verify(path, believed(ours))
    path.write_bytes(good + b"x")
    with pytest.raises(BundleError, match="behind its signature"):
        verify(path, believed(ours))
    path.write_bytes(good)
    verify(path, believed(ours))


def test_a_forged_one_is_refused(tmp_path: Path) -> None:
    ours, theirs, thief = (new_key(tmp_path, node) for node in ("a", "b", "c"))
    path = tmp_path / "x.bundle"
    written(path, ours, None, PARTS)
    with pytest.raises(BundleError, match="whose key is not known"):
        verify(path, believed(theirs))
    claims = SecretKey("a", thief.seed, thief.box)  # says it were a
    path.unlink()
    written(path, claims, None, PARTS)
    with pytest.raises(BundleError, match="it is signed by the key"):
        verify(path, believed(ours))
    text = path.read_bytes()  # ... and names a's fingerprint
    mine, good = thief.public.fingerprint.encode(), ours.public.fingerprint.encode()
    path.write_bytes(text.replace(mine, good))
    with pytest.raises(BundleError, match="forged"):
        verify(path, believed(ours))


def test_a_signature_is_of_its_own_file(tmp_path: Path) -> None:
    ours = new_key(tmp_path, "a")
    for name in "xy":
        written(tmp_path / name, ours, None, [(Part.LOG, name.encode())])
    one, other = ((tmp_path / name).read_bytes() for name in "xy")
    (tmp_path / "x").write_bytes(one[:-64] + other[-64:])
    with pytest.raises(BundleError, match="forged"):
        verify(tmp_path / "x", believed(ours))


def test_one_for_another_does_not_open(tmp_path: Path) -> None:
    ours, theirs, other = (new_key(tmp_path, node) for node in ("a", "b", "c"))
    path = tmp_path / "x.bundle"
    written(path, ours, theirs.public, PARTS)
    bundle = verify(path, believed(ours))
    for key in (other, None):
        with pytest.raises(BundleError, match="encrypted to the key"):
            list(bundle.frames(key))


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    ours = new_key(tmp_path, "a")
    path = tmp_path / "x.bundle"
    writer = Writer(path, msgspec.structs.replace(head_of(ours), format=2), ours, None)
    writer.finish()
    put(path)
    writer.leave()
    with pytest.raises(BundleError, match="format 2, newer than 1; upgrade"):
        verify(path, believed(ours))


def test_where_there_is_no_room_nothing_is_left(tmp_path: Path) -> None:
    ours = new_key(tmp_path, "a")
    writer = Writer(tmp_path / "x.bundle", head_of(ours), ours, None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            writer.write(Part.LOG, b"log" * 1_000_000)
        with suppress(OSError):
            writer.leave()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.glob("*.bundle*"))


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    ours = new_key(tmp_path, "a")
    path = tmp_path / "x"
    for bad in (b"", b"hello", b"minoots bundle\n" + b"\xff" * 4, b"minoots bundle\n\1\0\0\0{"):
        path.write_bytes(bad)
        with pytest.raises(BundleError):
            verify(path, believed(ours))


# ------------------------------------------------------------------------------------------ keys


def test_keys_are_made_once_and_kept_secret(tmp_path: Path) -> None:
    ring = Keyring(tmp_path)
    with pytest.raises(BundleError, match="minoots keys new"):
        ring.own()
    made = ring.make("rack-7")
    assert ring.own() == made
    assert (tmp_path / "bundles/key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(BundleError, match="--replace"):
        ring.make("rack-7")
    assert ring.make("rack-7", replace=True) != made
    (tmp_path / "bundles/key").chmod(0o640)
    with pytest.raises(BundleError, match="chmod 600"):
        ring.own()


def test_a_public_key_is_a_line_that_gives_no_secret_away(tmp_path: Path) -> None:
    made = Keyring(tmp_path).make("rack-7")
    text = str(made.public)
    assert read_public(text + "\n") == made.public
    raw = base64.b64decode(text.split()[2])
    assert made.seed not in raw
    assert made.box not in raw
    expected = hashlib.sha256(raw).hexdigest()[:32]
    assert made.public.fingerprint == expected


@pytest.mark.parametrize(
    "text",
    ["", "minoots-public-1 a", "minoots-secret-1 a AAAA", "minoots-public-1 a AAAA",
     "minoots-public-1 ../a " + "A" * 86 + "==", "minoots-public-1 a " + "!" * 88],
)  # fmt: skip
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(BundleError):
        read_public(text)


def test_another_key_of_a_known_node_is_not_taken_unasked(tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "mine")
    first, second = (Keyring(tmp_path / n).make("rack.7").public for n in "ab")
    ring.trust(first, may_command=True)
    ring.trust(first)  # again: it may command no longer
    assert ring.peers() == {"rack.7": Peer(first, False)}
    with pytest.raises(BundleError, match="--replace"):
        ring.trust(second)
    assert ring.peer("rack.7").key == first
    ring.trust(second, replace=True, may_command=True)
    assert ring.peer("rack.7") == Peer(second, True)
    ring.forget("rack.7")
    with pytest.raises(BundleError, match=r"no key of 'rack.7' is known"):
        ring.peer("rack.7")
