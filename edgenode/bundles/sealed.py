"""A bundle's file: signed, and encrypted if it is for one node alone.

docs/format.md tells the layout. The head says what is inside, in the clear; frames follow, then a
signature over all before it (Ed25519ph, RFC 8032). Encrypted, the frames are a secretstream of
libsodium (XChaCha20-Poly1305) whose key is sealed to the recipient. So whoever carries the file can
tell that it is whole and whose it is, but not what it says; and nothing of it is believed before
its signature is checked.

# If you change it, raise FORMAT, keep the old reader, add a fixture.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from nacl import bindings as sodium
from nacl.exceptions import CryptoError

from edgenode.bundles.keys import BundleError, Peer, PublicKey, SecretKey, check_node
from edgenode.manifest import FILE_MODE, UNREADABLE, LogPart, TablesPart
from engine.files import sync_directory
from minoots.wire.times import parse_instant

FORMAT = 1
MAGIC = b"minoots bundle\n"
HEAD_BYTES_MAX = 1 << 20
FRAME_BYTES = 1 << 20  # of what is inside a frame, but the last
LAST = 1 << 31  # in the length of a frame: none follows
SIGNATURE_BYTES = 64
READ_BYTES = 1 << 20
NUMBER_END = 1 << 62
PART_SUFFIX = ".part"  # of the file while it is written

_length = struct.Struct("<I")


def span(what: str, first: int, last: int) -> str:
    """`event 7`, `events 7 to 9`."""
    return f"{what} {first}" if first == last else f"{what}s {first} to {last}"


class Part(IntEnum):
    """What a frame holds; its first byte."""

    LOG = 1
    TABLES = 2
    ORDERS = 3


class OrdersPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The commands `first` to `first + count - 1` of their chain."""

    first: int
    count: int


class TakenIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the sender has taken in of a chain of the recipient: its newest bundle, how many
    commands are done, and which of them were refused (the newest hundred)."""

    chain: str
    number: int
    orders: int
    refused: list[int]


class Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a bundle is encrypted. to: the fingerprint of the recipient's keys. key: the stream's
    key in a sealed box, start: the stream's header; Base64."""

    to: str
    key: str
    start: str


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """What a bundle says of itself.

    from_, signed_by: the sender and the fingerprint of its keys. to: the recipient, "" for all who
    trust the sender. chain: a random name of the row of bundles that this one stands in as the
    `number`th; previous: the id of the one before it, "" for the first. epoch, log, tables: as in a
    backup, null if nothing of the log is inside. log_begins: the oldest event that the sender
    keeps.
    """

    format: int
    program: str
    from_: str
    signed_by: str
    to: str
    chain: str
    number: int
    previous: str
    made_at: str
    epoch: int
    log: LogPart | None
    tables: TablesPart | None
    log_begins: int
    orders: OrdersPart
    taken_in: list[TakenIn]
    sealed: Sealed | None = None


class _Format(msgspec.Struct):
    format: int


_encode = msgspec.json.Encoder().encode
_head = msgspec.json.Decoder(Head)
_format = msgspec.json.Decoder(_Format)


class Writer:
    """Writes one bundle beside its place; `finish` signs it, and `put` moves it there.

    Raises OSError, BundleError.
    """

    def __init__(self, path: Path, head: Head, key: SecretKey, to: PublicKey | None) -> None:
        self._fresh = path.with_name(path.name + PART_SUFFIX)
        self._key = key
        self._sha = hashlib.sha256()
        self._signing = sodium.crypto_sign_ed25519ph_state()
        self._stream = sodium.crypto_secretstream_xchacha20poly1305_state() if to else None
        self._waiting: tuple[int, bytearray] = (0, bytearray())
        self.head = head if to is None else msgspec.structs.replace(head, sealed=self._seal(to))
        self._file = os.fdopen(
            os.open(self._fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE),
            "wb",
        )
        text = _encode(self.head)
        if len(text) > HEAD_BYTES_MAX:
            raise BundleError(f"the head is {len(text)} bytes; the limit is {HEAD_BYTES_MAX}")
        self._put(MAGIC + _length.pack(len(text)) + text)

    def _seal(self, to: PublicKey) -> Sealed:
        stream_key = sodium.crypto_secretstream_xchacha20poly1305_keygen()
        assert self._stream is not None
        start = sodium.crypto_secretstream_xchacha20poly1305_init_push(self._stream, stream_key)
        key = sodium.crypto_box_seal(stream_key, to.box)
        return Sealed(to.fingerprint, _base64(key), _base64(start))

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._sha.update(data)
        sodium.crypto_sign_ed25519ph_update(self._signing, data)

    def write(self, part: Part, data: bytes) -> None:
        """Add to a part; all of one before the next."""
        kept, waiting = self._waiting
        if kept != part:
            self._frames(kept, waiting, 1)
            waiting = bytearray()
        waiting += data
        self._waiting = (int(part), self._frames(part, waiting, FRAME_BYTES))

    def _frames(self, part: int, waiting: bytearray, least: int) -> bytearray:
        """Write whole frames, and what is left if it is `least` bytes; what is left then."""
        while len(waiting) >= least:
            self._frame(bytes((part,)) + waiting[:FRAME_BYTES])
            del waiting[:FRAME_BYTES]
        return waiting

    def _frame(self, data: bytes, last: int = 0) -> None:
        if self._stream is not None:
            tag = sodium.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE
            if last:
                tag = sodium.crypto_secretstream_xchacha20poly1305_TAG_FINAL
            push = sodium.crypto_secretstream_xchacha20poly1305_push
            data = push(self._stream, bytes(data), None, tag)
        self._put(_length.pack(len(data) | last) + data)

    def finish(self) -> str:
        """Sign it and have it on disk; its id: SHA-256 of what is signed, in hex."""
        self._frames(*self._waiting, 1)
        self._frame(b"", LAST)
        sign = sodium.crypto_sign_ed25519ph_final_create
        self._file.write(sign(self._signing, self._key.signing))
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._sha.hexdigest()

    def leave(self) -> None:
        """Close the file, and remove it unless it was `put`."""
        try:
            self._file.close()  # it may have to write, where there is no room
        finally:
            self._fresh.unlink(missing_ok=True)


def put(path: Path) -> None:
    """Move what was written and finished to its place."""
    path.with_name(path.name + PART_SUFFIX).replace(path)
    sync_directory(path.parent)


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


@dataclass(frozen=True, slots=True)
class Bundle:
    """One whose signature is that of a node which is believed."""

    path: Path
    head: Head
    id: str
    peer: Peer
    body_at: int

    def frames(self, key: SecretKey | None) -> Iterator[tuple[Part, bytes]]:
        """What is inside, frame by frame. Raises BundleError if it is not for `key`."""
        pull = _opened(self.head, key)
        with self.path.open("rb") as file:
            file.seek(self.body_at)
            last = 0
            while not last:
                data, last = _read_frame(file)
                data = pull(data, bool(last))
                if last:
                    break
                try:
                    part = Part(data[0])
                except (ValueError, IndexError):
                    raise _damaged("a frame of an unknown kind") from None
                yield part, data[1:]


def _opened(head: Head, key: SecretKey | None) -> Any:
    """What makes a frame's text of its bytes."""
    if head.sealed is None:
        return lambda data, last: data
    if key is None or key.public.fingerprint != head.sealed.to:
        own = key.public.fingerprint if key else "none"
        raise BundleError(
            f"it is encrypted to the key {head.sealed.to}; the key of this node is {own}"
        )
    public = key.public.box
    state = sodium.crypto_secretstream_xchacha20poly1305_state()
    try:
        box = base64.b64decode(head.sealed.key, validate=True)
        start = base64.b64decode(head.sealed.start, validate=True)
        stream_key = sodium.crypto_box_seal_open(box, public, key.box)
        sodium.crypto_secretstream_xchacha20poly1305_init_pull(state, start, stream_key)
    except (ValueError, TypeError, CryptoError) as error:
        raise _damaged(f"its key does not open ({error})") from error

    def pull(data: bytes, last: bool) -> bytes:
        try:
            text, tag = sodium.crypto_secretstream_xchacha20poly1305_pull(state, data, None)
        except (ValueError, TypeError, CryptoError, RuntimeError) as error:
            raise _damaged(f"a frame does not open ({error})") from error
        if last != (tag == sodium.crypto_secretstream_xchacha20poly1305_TAG_FINAL):
            raise _damaged("it ends where its stream does not")
        return bytes(text)

    return pull


def _damaged(what: str) -> BundleError:
    return BundleError(f"{what}: though the signature is good, the sender made it so")


def read_head(file: BinaryIO) -> Head:
    """The head, which nobody has vouched for yet. Raises BundleError."""
    magic = file.read(len(MAGIC))
    if magic != MAGIC:
        raise BundleError("it is no bundle: it does not begin as one")
    size = _length.unpack(_exactly(file, _length.size))[0]
    if size > HEAD_BYTES_MAX:
        raise BundleError(f"its head is {size} bytes; the limit is {HEAD_BYTES_MAX}")
    text = _exactly(file, size)
    try:
        version = _format.decode(text).format
        if version > FORMAT:
            raise BundleError(f"it has format {version}, newer than {FORMAT}; upgrade minoots")
        return _checked(_head.decode(text))
    except (*UNREADABLE, ValueError) as error:
        raise BundleError(f"its head cannot be read: {error}") from error


def _checked(head: Head) -> Head:
    """A head whose members can be what they are for. Raises ValueError."""
    check_node(head.from_)
    check_node(head.to or head.from_)
    log, orders = head.log, head.orders
    numbers = [orders.first, orders.count, head.log_begins, head.number - 1, head.epoch]
    if log is not None:
        numbers += [log.first_seq, log.last_seq, log.first_commit, log.last_commit, log.events]
        if len(bytes.fromhex(log.chain_before)) not in (0, 32):
            raise ValueError("chain_before is no hash")
    if not all(0 <= number < NUMBER_END for number in numbers):
        raise ValueError(f"a number is below 0, or not below {NUMBER_END}")
    parse_instant(head.made_at)
    return head


def _exactly(file: BinaryIO, size: int) -> bytes:
    found = file.read(size)
    if len(found) != size:
        raise BundleError(
            f"it is cut short: {size - len(found):,} bytes are missing of {size:,} that belong at "
            f"byte {file.tell() - len(found):,}"
        )
    return found


def _read_frame(file: BinaryIO) -> tuple[bytes, int]:
    length = _length.unpack(_exactly(file, _length.size))[0]
    size, last = length & ~LAST, length & LAST
    if size > FRAME_BYTES + 64:
        raise BundleError(f"a frame is {size} bytes; the limit is {FRAME_BYTES + 64}")
    return _exactly(file, size), last


def verify(path: Path, peers: dict[str, Peer]) -> Bundle:
    """Check that the file is whole and signed by the node that it names. Raises BundleError,
    OSError. Some 300 MB/s."""
    with path.open("rb") as file:
        head = read_head(file)
        peer = peers.get(head.from_)
        if peer is None:
            raise BundleError(
                f"it comes from {head.from_[:64]!r}, whose key is not known; minoots keys trust"
            )
        if head.signed_by != peer.key.fingerprint:
            raise BundleError(
                f"it is signed by the key {head.signed_by[:64]!r}; {head.from_} is known by "
                f"{peer.key.fingerprint}"
            )
        body_at = file.tell()
        last = 0
        while not last:
            _, last = _read_frame(file)
        end = file.tell()
        signature = _exactly(file, SIGNATURE_BYTES)
        if file.read(1):
            raise BundleError("bytes stand behind its signature")
        file.seek(0)
        name = _check_signature(file, end, signature, peer.key)
    return Bundle(path, head, name, peer, body_at)


def _check_signature(file: BinaryIO, end: int, signature: bytes, key: PublicKey) -> str:
    """Raise BundleError unless the first `end` bytes were signed so; their SHA-256 in hex."""
    state, sha = sodium.crypto_sign_ed25519ph_state(), hashlib.sha256()
    while end > 0:
        data = _exactly(file, min(end, READ_BYTES))
        sodium.crypto_sign_ed25519ph_update(state, data)
        sha.update(data)
        end -= len(data)
    try:
        good = sodium.crypto_sign_ed25519ph_final_verify(state, signature, key.sign)
    except CryptoError:
        good = False
    if not good:
        raise BundleError(
            f"its signature is not by {key.node}: it was changed on its way, or forged"
        )
    return sha.hexdigest()
