"""Secrets in the store, sealed with a key in the server's state folder, so that the store alone reveals nothing.

AES-256-GCM; a sealed secret is bound to its ``place`` and can't be read in another one. While a key is replaced, the folder has
several: the first seals, and all of them open."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from weft.contracts.durable_file import write_durably
from weft.objects.errors import Unavailable
from weft.trust.tickets import read_kept

FILE = "seal.key"
MOST_KEYS: Final = 8
_VERSION = b"\x01"
_NONCE_BYTES = 12
_KEY_BYTES = 32


class SealKeys:
    """The keys in the file ``path``, as text, one a line; made there if it is missing. They are read again when the file was
    written since, so all processes of a server follow. Raises Unavailable for a file that holds none."""

    def __init__(self, path: Path | None, keys: Sequence[bytes] = ()) -> None:
        self._path, self._keys, self._seen = path, tuple(keys), (0, 0)
        self.wanted = ""  # id of the key that the fabric seals with, while this server doesn't have it
        self.keys  # noqa: B018 (what is wrong with the file is said at the start)

    @classmethod
    def of(cls, *keys: bytes) -> SealKeys:
        """Keys that are in no file."""
        return cls(None, keys)

    @property
    def keys(self) -> tuple[bytes, ...]:
        """All of them: the first one seals."""
        if self._path is None:
            return self._keys
        try:
            facts = self._path.stat()
            seen = facts.st_ino, facts.st_mtime_ns
        except FileNotFoundError:
            seen = (0, 0)
        if seen == (0, 0) or seen != self._seen:
            self._keys, self._seen = _read_keys(self._path), seen
        return self._keys

    @property
    def ids(self) -> list[str]:
        """An id of each, which reveals nothing of it."""
        return [name_key(key) for key in self.keys]

    def keep(self, keys: Sequence[bytes]) -> None:
        """Replace them, durably. Raises OSError."""
        if self._path is None:
            self._keys = tuple(keys)
        elif tuple(keys) != self.keys:
            write_durably(self._path, write_keys(keys))

    def find(self, key_id: str) -> bytes | None:
        """The key with that id."""
        return next((key for key in self.keys if name_key(key) == key_id), None)

    def seal(self, plain: bytes, place: str) -> str:
        """Seal like ``seal``. Raises Unavailable while this server doesn't have the key that the fabric seals with."""
        if self.wanted:
            raise Unavailable(
                f"this server doesn't have the fabric's sealing key {self.wanted} yet",
                reason="sealKeyMissing",
                hint="it asks the other servers for it: see weft fabric rotate status",
                retry_after_seconds=2.0,
            )
        return seal(self.keys[0], plain, place)

    def unseal(self, sealed: str, place: str) -> bytes:
        """Open like ``unseal``, with whichever of the keys fits."""
        first, *others = self.keys
        for key in others:
            if is_sealed_with(key, sealed, place):
                return unseal(key, sealed, place)
        return unseal(first, sealed, place)


def make_seal_key() -> bytes:
    return secrets.token_bytes(_KEY_BYTES)


def name_key(key: bytes) -> str:
    """An id of a key, which reveals nothing of it."""
    return hashlib.sha256(b"weft seal key\0" + key).hexdigest()[:16]


def open_seal_keys(state: Path) -> SealKeys:
    """Those in the server's state folder, so that a backup holds them."""
    return SealKeys(state / FILE)


def write_keys(keys: Sequence[bytes]) -> bytes:
    """Content of the file."""
    return "".join(f"{key.hex()}\n" for key in keys).encode()


def read_text(text: str) -> list[bytes]:
    """The keys in a file's content. Raises ValueError."""
    keys = [bytes.fromhex(line) for line in text.split()]
    if not 0 < len(keys) <= MOST_KEYS or any(len(key) != _KEY_BYTES for key in keys):
        raise ValueError("no keys")
    return keys


def _read_keys(path: Path) -> tuple[bytes, ...]:
    try:
        return tuple(read_text(read_kept(path, write_keys([make_seal_key()])).decode()))
    except ValueError:
        raise Unavailable(
            f"{path} holds no key", hint="restore it from a backup: the secrets that it sealed can't be read without it"
        ) from None


def derive_key(key: bytes, use: str) -> bytes:
    """A key for one use only, which follows from ``key``."""
    return hmac.digest(key, f"weft {use}".encode(), "sha256")


def seal(key: bytes, plain: bytes, place: str) -> str:
    """``plain`` sealed with ``key`` for ``place`` (such as a key's id), as base64url text."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    sealed = AESGCM(key).encrypt(nonce, plain, _VERSION + place.encode())
    return base64.urlsafe_b64encode(_VERSION + nonce + sealed).decode()


def unseal(key: bytes, sealed: str, place: str) -> bytes:
    """The plain bytes. Raises Unavailable if they were sealed with another key, for another place, or changed since."""
    try:
        raw = base64.urlsafe_b64decode(sealed.encode())
        if raw[:1] != _VERSION:
            raise ValueError("another version")
        nonce, rest = raw[1 : 1 + _NONCE_BYTES], raw[1 + _NONCE_BYTES :]
        return AESGCM(key).decrypt(nonce, rest, _VERSION + place.encode())
    except (InvalidTag, ValueError, binascii.Error):
        raise Unavailable(
            "can't read a sealed secret: it was sealed with another seal.key than this server's",
            reason="sealedByAnother",
            hint="restore the server from its backup, or create the secret again",
        ) from None


def is_sealed_with(key: bytes, sealed: str, place: str) -> bool:
    """Whether ``key`` opens it."""
    try:
        unseal(key, sealed, place)
    except Unavailable:
        return False
    return True
