"""Access keys: an id that a request names, and a secret that signs it (``sigv4.py``). The id is public. The secret is shown
once. It follows from the id and the server's ``seal.key``, and is stored sealed, so that it outlives that key. Pure except for the
random source."""

from __future__ import annotations

import base64
import hmac
import re
import secrets

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
KEY_ID = re.compile(r"WEFT[A-Z2-7]{16}")


def make_key_id() -> str:
    """A new id: WEFT and 80 random bits."""
    return "WEFT" + "".join(secrets.choice(_LETTERS) for _ in range(16))


def derive_secret(seal_key: bytes, key_id: str) -> str:
    """The secret of an access key: 240 bits in 40 characters, derived with the seal key."""
    return base64.b64encode(hmac.digest(seal_key, b"access key\0" + key_id.encode(), "sha256")[:30]).decode()


def place_of_access_key(key_id: str) -> str:
    """Place that a secret is sealed for: it can't be opened for another key."""
    return f"access key/{key_id}"
