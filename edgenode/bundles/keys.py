"""The keys of a node, and those of the nodes that it believes.

    bundles/key            our own, secret: an Ed25519 key that signs, an X25519 key that opens
    bundles/peers/NODE.pub the public keys of a node, and whether it may command this one

A public key is one line of text that people can send, and its fingerprint is what they read to each
other. Ed25519: RFC 8032; X25519: RFC 7748; by libsodium (PyNaCl).
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from nacl.bindings import (
    crypto_box_keypair,
    crypto_box_PUBLICKEYBYTES,
    crypto_scalarmult_base,
    crypto_sign_seed_keypair,
    crypto_sign_SEEDBYTES,
)

from edgenode.manifest import DIRECTORY_MODE
from engine.errors import EngineError
from engine.files import sync_directory, write_durably

FOLDER = "bundles"  # in the data directory
KEY_FILE, PEERS = "key", "peers"
PUBLIC, SECRET = "minoots-public-1", "minoots-secret-1"
MAY_COMMAND = "may-command"
KEY_BYTES = crypto_sign_SEEDBYTES + crypto_box_PUBLICKEYBYTES  # of either half
FINGERPRINT_DIGITS = 32
OTHERS = 0o077

_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}")


class BundleError(EngineError):
    """A bundle, a key or the book of bundles is not as it must be; nothing was changed."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """What others know of a node. sign, box: 32 bytes each."""

    node: str
    sign: bytes
    box: bytes

    @property
    def fingerprint(self) -> str:
        """32 hex digits of SHA-256 over both keys, for people to compare."""
        return hashlib.sha256(self.sign + self.box).hexdigest()[:FINGERPRINT_DIGITS]

    def __str__(self) -> str:
        return f"{PUBLIC} {self.node} {_text(self.sign + self.box)}"


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A node's own keys. seed: of the Ed25519 key, box: the X25519 key, 32 bytes each."""

    node: str
    seed: bytes
    box: bytes

    @property
    def signing(self) -> bytes:
        """The Ed25519 key as libsodium takes it, 64 bytes."""
        return crypto_sign_seed_keypair(self.seed)[1]

    @property
    def public(self) -> PublicKey:
        """What others may know."""
        sign, _ = crypto_sign_seed_keypair(self.seed)
        return PublicKey(self.node, sign, crypto_scalarmult_base(self.box))


@dataclass(frozen=True, slots=True)
class Peer:
    """A node whose bundles are believed; may_command: those with commands as well."""

    key: PublicKey
    may_command: bool


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def check_node(name: str) -> str:
    """A node's name that may be a file's. Raises BundleError."""
    if not _NODE.fullmatch(name):
        raise BundleError(
            f"{name[:80]!r} is no name of a node here: 1 to 64 letters, digits or ._:@-, the first "
            "of them a letter or digit"
        )
    return name


def read_public(text: str) -> PublicKey:
    """The line that `str(PublicKey)` gives. Raises BundleError."""
    node, raw = _read(text, PUBLIC)
    return PublicKey(node, raw[:crypto_sign_SEEDBYTES], raw[crypto_sign_SEEDBYTES:])


def _read(text: str, kind: str) -> tuple[str, bytes]:
    words = text.split()
    if len(words) < 3 or words[0] != kind:
        raise BundleError(f"that is no key: it is one line, `{kind} NODE BASE64`")
    try:
        raw = base64.b64decode(words[2], validate=True)
    except ValueError:
        raw = b""
    if len(raw) != KEY_BYTES:
        raise BundleError(f"the key of {words[1][:64]} is not {KEY_BYTES} bytes of Base64")
    return check_node(words[1]), raw


class Keyring:
    """The keys in a data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.folder = data_dir / FOLDER
        self._peers = self.folder / PEERS

    def make(self, node: str, *, replace: bool = False) -> SecretKey:
        """New keys for this node. Raises BundleError if it has some and they are to stay."""
        path = self.folder / KEY_FILE
        if path.exists() and not replace:
            raise BundleError(
                f"{path} is there; who trusts it would trust this node no longer (--replace)"
            )
        key = SecretKey(
            check_node(node), os.urandom(crypto_sign_SEEDBYTES), crypto_box_keypair()[1]
        )
        self._write(path, f"{SECRET} {node} {_text(key.seed + key.box)}\n")
        return key

    def own(self) -> SecretKey:
        """This node's keys. Raises BundleError."""
        path = self.folder / KEY_FILE
        try:
            text = path.read_text("ascii")
            mode = path.stat().st_mode
        except FileNotFoundError:
            raise BundleError("this node has no keys yet: minoots keys new") from None
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{path} cannot be read: {error}") from error
        if mode & OTHERS:
            raise BundleError(f"others may read {path}: chmod 600, and think of making new keys")
        node, raw = _read(text, SECRET)
        return SecretKey(node, raw[:crypto_sign_SEEDBYTES], raw[crypto_sign_SEEDBYTES:])

    def has_own(self) -> bool:
        """Whether this node has keys."""
        return (self.folder / KEY_FILE).exists()

    def trust(self, key: PublicKey, *, may_command: bool = False, replace: bool = False) -> None:
        """Believe a node from now on. Raises BundleError if another key is believed for it."""
        known = self.peers().get(key.node)
        if known is not None and known.key != key and not replace:
            raise BundleError(
                f"{key.node} is known by the key {known.key.fingerprint}, this one is "
                f"{key.fingerprint}; ask its operator, then --replace"
            )
        words = f"{key} {MAY_COMMAND}" if may_command else str(key)
        self._write(self._path(key.node), f"{words}\n")

    def forget(self, node: str) -> None:
        """Believe a node no longer. Raises BundleError if it is not known."""
        self.peer(node)
        self._path(node).unlink()
        sync_directory(self._peers)

    def peers(self) -> dict[str, Peer]:
        """Those that are believed, by name. Raises BundleError."""
        found = {}
        for path in sorted(self._peers.glob("*.pub")):
            text = path.read_text("ascii", "replace")
            key = read_public(text)
            if self._path(key.node) != path:
                raise BundleError(f"{path} holds the key of {key.node}")
            found[key.node] = Peer(key, MAY_COMMAND in text.split()[3:])
        return found

    def peer(self, node: str) -> Peer:
        """One that is believed. Raises BundleError."""
        known = self.peers()
        if node not in known:
            names = ", ".join(known) or "none is"
            raise BundleError(
                f"no key of {node[:64]!r} is known (known: {names}); minoots keys trust FILE"
            )
        return known[node]

    def _path(self, node: str) -> Path:
        return self._peers / f"{node}.pub"

    def _write(self, path: Path, text: str) -> None:
        path.parent.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
        write_durably(path, text.encode("ascii"))
