"""What comes in bundles: the items of a log, and whole files that a trusted node has signed."""

from __future__ import annotations

import shutil
import struct
import tempfile
import zlib
from functools import cache
from pathlib import Path

import msgspec
from nacl import bindings as sodium

from edgenode.bundles.book import book_of
from edgenode.bundles.keys import BundleError, Keyring, SecretKey
from edgenode.bundles.orders import Order, Outcome, read_orders
from edgenode.bundles.receive import Receiver, Ways
from edgenode.bundles.sealed import MAGIC
from edgenode.bundles.send import Wish, send
from edgenode.config import NODE_ID_FILE
from engine._audit import Audit, whole_items
from engine._copy import StoreFiles
from engine._load import behind_commit, last_seal
from engine.errors import StoreCorrupt, StoreFailed, StoreTooNew
from tests.unit.churn import churned

UTC_NS = 1_800_000_000 * 10**9
DAY_NS = 86_400 * 10**9
ITEM = struct.Struct("<BBHI")
EVENT, SEAL = 1, 2
SITE_LIFE = 300


def _quiet(what: str, size: int) -> None:
    assert size >= 0, what


@cache
def _sites() -> tuple[Path, SecretKey]:
    """Where a node with a small store is, and its key."""
    room = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=room))
    churned(folder / "a", 4)
    (folder / "a" / NODE_ID_FILE).write_text("a\n")
    return folder, Keyring(folder / "a").make("a")


# ---------------------------------------------------------------------------------------- items


def items(data: bytes) -> None:
    """A log of items, as they come and with checksums that agree: replayed, or refused."""
    for found in (data, _agreeing(data)):
        whole = found[: whole_items(found)]
        assert 0 <= last_seal(whole) <= len(whole)
        assert 0 <= behind_commit(whole, len(data)) <= len(whole)
        audit = Audit(1)
        try:
            audit.feed(whole)
            audit.ended()
            audit.take_receipts()
        except (StoreCorrupt, StoreTooNew):
            continue


def _agreeing(data: bytes) -> bytes:
    """The same items, each with the checksum that belongs to its key and value."""
    made, at = [], 0
    while at + ITEM.size <= len(data):
        table, key_bytes, _, size = ITEM.unpack_from(data, at)
        at += ITEM.size
        key, value = data[at : at + key_bytes], data[at + key_bytes : at + key_bytes + size]
        at += key_bytes + size
        if table in (EVENT, SEAL) and len(value) > 4:
            number = int.from_bytes(key[:8], "big")
            seed = number & 0xFFFFFFFF
            if table == SEAL:
                seed = zlib.crc32(number.to_bytes(8, "little"), 0x5345414C)
            value = zlib.crc32(value[4:], seed).to_bytes(4, "little") + value[4:]
        made.append(ITEM.pack(table, len(key), 0, len(value)) + key + value)
    return b"".join(made)


def item_seeds() -> list[bytes]:
    """The log of a small store."""
    files = StoreFiles(_sites()[0] / "a")
    try:
        found, _, _ = files.log_items(1, 0, 4, 1, 1 << 20)
    finally:
        files.close()
    return [found[: last_seal(found)], found]


# -------------------------------------------------------------------------------------- bundles


class _Site:
    """A node that trusts the other one in everything, for some bundles."""

    used = SITE_LIFE

    def fresh(self) -> Path:
        folder, key = _sites()
        site = folder / "b"
        self.used += 1
        if self.used >= SITE_LIFE:
            self.used = 0
            shutil.rmtree(site, ignore_errors=True)
            site.mkdir()
            (site / NODE_ID_FILE).write_text("b\n")
            Keyring(site).make("b")
            Keyring(site).trust(key.public, may_command=True)
        return site


_site = _Site()


def _carry(order: Order, idem: str) -> Outcome:
    assert idem.startswith("bundle/"), order
    return Outcome("", "")


def bundles(data: bytes) -> None:
    """Head and frames that the sender has signed, whatever they are: taken in, or refused; and
    after that a good one is taken in, or its own reason is said."""
    folder, key = _sites()
    site = _site.fresh()
    state = sodium.crypto_sign_ed25519ph_state()
    sodium.crypto_sign_ed25519ph_update(state, MAGIC + data)
    signature = sodium.crypto_sign_ed25519ph_final_create(state, key.signing)
    path = folder / "x.bundle"
    path.write_bytes(MAGIC + data + signature)
    with book_of(site) as pages:
        for ways in (Ways(), Ways(accept_gap=True, accept_repeat=True)):
            receiver = Receiver(site, "b", pages, _carry, ways, UTC_NS, DAY_NS, _quiet)
            try:
                receiver.take_in(path)
            except (BundleError, StoreCorrupt, StoreTooNew, StoreFailed):
                continue


def bundle_seeds() -> list[bytes]:
    """Bundles in the clear, of the log and of commands."""
    folder, _ = _sites()
    orders = tuple(read_orders([b'{"op":"timer.cancel","body":{"name":"x"}}']))
    Keyring(folder / "a").trust(Keyring(_site.fresh()).own().public, replace=True)
    found = []
    for number, wish in enumerate(
        (
            Wish("b", "start", orders, encrypted=False),
            Wish("b", "start", orders, with_log=False, encrypted=False),
            Wish("", "start", encrypted=False),
        )
    ):
        target = folder / f"seed{number}"
        target.unlink(missing_ok=True)
        send(folder / "a", target, wish, UTC_NS, _quiet)
        found.append(target.read_bytes()[len(MAGIC) : -64])
    return found


BUNDLE_WORDS = (
    *(name.encode() for name in ("from", "chain", "number", "first_commit", "orders", "tables")),
    *(b"\x01", b"\x02", b"\x03", b"\x00\x00\x00\x80", b"null", msgspec.json.encode(1 << 63)),
)
