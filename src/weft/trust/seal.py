"""Secrets in the store, sealed with a key in the server's state folder, so that the store alone reveals nothing.

AES-256-GCM; a sealed secret is bound to its ``place`` and can't be read in another one."""

from __future__ import annotations

import base64
import binascii
import hmac
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
    """The key in the server's state folder, made if it is missing; stored as text, so that a backup holds it. Raises
    Unavailable."""
    path = state / FILE
    try:
        key = bytes.fromhex(read_kept(path, secrets.token_hex(_KEY_BYTES).encode() + b"\n").decode())
        if len(key) != _KEY_BYTES:
            raise ValueError(path)
    except ValueError:
        raise Unavailable(
            f"{path} holds no key", hint="restore it from a backup: the secrets that it sealed can't be read without it"
        ) from None
    return key


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
