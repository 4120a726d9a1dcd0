"""Tokens as text: ``weft_<id>_<secret>``. The server keeps only the secret's hash. Pure except for the random source."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import NamedTuple

PREFIX = "weft_"
_TOKEN = re.compile(r"weft_([a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?)_([0-9a-f]{64})")


class Token(NamedTuple):
    id: str  # the name of the token's object
    secret: str  # 256 random bits


def make_token(token_id: str) -> tuple[str, str]:
    """A new token for ``token_id``: its text, shown once, and the hash to keep."""
    secret = make_secret()
    return write_token(token_id, secret), hash_secret(secret)


def make_secret() -> str:
    """256 random bits, in hexadecimal digits."""
    return secrets.token_hex(32)


def write_token(token_id: str, secret: str) -> str:
    """The text of a token."""
    return f"{PREFIX}{token_id}_{secret}"


def parse_token(text: str) -> Token | None:
    """The parts of a token's text; None for any other text."""
    match = _TOKEN.fullmatch(text)
    return None if match is None else Token(match[1], match[2])


def hash_secret(secret: str) -> str:
    """SHA-256, 64 hex digits. The secret is random, so nothing slower is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def verify_secret(secret: str, sha256: str) -> bool:
    """Whether ``sha256`` is the hash of ``secret``, in constant time; an empty hash matches nothing."""
    return bool(sha256) and hmac.compare_digest(hash_secret(secret).encode(), sha256.encode())


def make_token_id(prefix: str) -> str:
    """A new name for a token's object."""
    return f"{prefix}-{secrets.token_hex(4)}"
