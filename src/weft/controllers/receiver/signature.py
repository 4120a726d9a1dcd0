"""Signs webhooks as the Standard Webhooks specification describes: HMAC-SHA256 over id, timestamp and body. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

PREFIX = "whsec_"


def read_key(text: str) -> bytes:
    """The key's bytes: ``whsec_`` and base64, or any other text as it is."""
    if text.startswith(PREFIX):
        try:
            return base64.b64decode(text.removeprefix(PREFIX), validate=True)
        except binascii.Error:
            pass
    return text.encode()


def sign(key: str, id_: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of a webhook; without a key there is no signature among them."""
    headers = {"webhook-id": id_, "webhook-timestamp": str(timestamp)}
    if key:
        digest = hmac.digest(read_key(key), f"{id_}.{timestamp}.".encode() + body, hashlib.sha256)
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers
