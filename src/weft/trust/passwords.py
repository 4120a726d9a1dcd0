"""Passwords as argon2id hashes (RFC 9106). Slow on purpose: a tenth of a second and 64 MiB each, so never call it in a loop that
serves others."""

from __future__ import annotations

import functools

import argon2
from argon2.exceptions import InvalidHashError, VerificationError

_hasher = argon2.PasswordHasher()  # RFC 9106, section 4: its second recommended option


def hash_password(password: str) -> str:
    """A salted hash to keep."""
    return _hasher.hash(password.encode(errors="replace"))


def verify_password(password: str, kept: str | None) -> bool:
    """Whether ``kept`` is the hash of ``password``. None (no such user, or none that has a password) takes as long and is never
    it."""
    dummy = _dummy()  # made before the first check, so that none takes longer for it
    try:
        return _hasher.verify(kept or dummy, password.encode(errors="replace")) and kept is not None
    except (VerificationError, InvalidHashError):
        return False


@functools.cache
def _dummy() -> str:
    return _hasher.hash("nobody has this password")
