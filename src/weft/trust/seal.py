"""Secrets that weft must be able to read again, as they lie in the store: sealed with a key in the server's state folder.

AES-256-GCM; what is sealed is bound to the ``place`` it is for, so that it is worth nothing in another one. Who reads the store
alone reads nothing of it."""

from __future__ import annotations

import base64
import binascii
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from weft.objects.errors import Unavailable
from weft.trust.tickets import read_kept

FILE = "seal.key"
_VERSION = b"\x01"
_NONCE_BYTES = 12
_KEY_BYTES = 32


def read_seal_key(state: Path) -> bytes:
    """The key in the server's state folder, made if there is none; as text, so that a backup holds it. Raises Unavailable."""
    path = state / FILE
    try:
        key = bytes.fromhex(read_kept(path, secrets.token_hex(_KEY_BYTES).encode() + b"\n").decode())
        if len(key) != _KEY_BYTES:
            raise ValueError(path)
    except ValueError:
        raise Unavailable(
            f"{path} holds no key", hint="put back the one from a backup: what it sealed can't be read without it"
        ) from None
    return key


def seal(key: bytes, plain: bytes, place: str) -> str:
    """``plain`` as text (base64url) that only who has ``key`` reads, and only for ``place`` (such as a key's id)."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    sealed = AESGCM(key).encrypt(nonce, plain, _VERSION + place.encode())
    return base64.urlsafe_b64encode(_VERSION + nonce + sealed).decode()


def unseal(key: bytes, sealed: str, place: str) -> bytes:
    """What was sealed. Raises Unavailable if it was with another key, for another place, or was changed since."""
    try:
        raw = base64.urlsafe_b64decode(sealed.encode())
        if raw[:1] != _VERSION:
            raise ValueError("another version")
        nonce, rest = raw[1 : 1 + _NONCE_BYTES], raw[1 + _NONCE_BYTES :]
        return AESGCM(key).decrypt(nonce, rest, _VERSION + place.encode())
    except (InvalidTag, ValueError, binascii.Error):
        raise Unavailable(
            "a sealed secret can't be read: this server's seal.key is another one",
            reason="sealedByAnother",
            hint="restore the server from its backup, or create the secret anew",
        ) from None
