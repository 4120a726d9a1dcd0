"""Tickets: each lets one client open one stream through the gateway. The API server signs them, the gateway verifies them.

``base64url(JSON claims).base64url(HMAC-SHA-256)`` with the key in ``<state>/ticket.key``. Standard library only.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weft.objects.errors import Forbidden, NotAuthenticated, Unavailable

KEY_BYTES = 32
LIFETIME_SECONDS = 60.0
ANOTHER_GATEWAY = "anotherGateway"  # reason
BLOB_LIFETIME_SECONDS = 3 * 3600.0


def read_ticket_key(path: Path) -> bytes:
    """The key in ``path``, made if it is missing; two processes that start at once get the same key."""
    key = read_kept(path, secrets.token_bytes(KEY_BYTES))
    if len(key) != KEY_BYTES:
        raise Unavailable(f"{path} holds no ticket key", hint="remove it; the server makes a new one")
    return key


def read_kept(path: Path, fresh: bytes) -> bytes:
    """The content of ``path``; a missing file is first made with ``fresh``, readable by its owner only."""
    if not path.exists():
        _keep(path, fresh)
    return path.read_bytes()


def sign_ticket(key: bytes, claims: Mapping[str, Any]) -> str:
    """``claims`` (plain JSON data with ``expires``, unix seconds) as a ticket."""
    body = _encode(json.dumps(claims, separators=(",", ":"), sort_keys=True).encode())
    return f"{body}.{_encode(_mac(key, body))}"


def verify_ticket(key: bytes, ticket: str, now: float) -> dict[str, Any]:
    """The claims of a ticket that is ours and hasn't expired at ``now`` (unix seconds). Raises NotAuthenticated.

    The text is compared, not its decoded bytes: a ticket has one spelling, so a used one can't be made to look new."""
    body, _, mac = ticket.partition(".")
    try:
        good = hmac.compare_digest(mac.encode(), _encode(_mac(key, body)).encode())
        claims = json.loads(_decode(body)) if good else None
    except ValueError:
        claims = None
    if not isinstance(claims, dict):
        raise NotAuthenticated("the ticket is not one of this fabric's", hint="ask the API for a new one")
    expires = claims.get("expires")
    if not isinstance(expires, (int, float)) or expires < now:
        raise NotAuthenticated("the ticket has expired", hint="ask the API for a new one")
    return claims


def sign_blob_ticket(key: bytes, sha256: str, node_uid: str, now: float) -> str:
    """A ticket with which only the node with that uid can fetch one blob, for a few hours."""
    claims = {"verb": "blob", "sha256": sha256, "node_uid": node_uid, "expires": now + BLOB_LIFETIME_SECONDS}
    return sign_ticket(key, claims)


def check_blob_ticket(key: bytes, ticket: str, sha256: str, node_uid: str, now: float) -> None:
    """Raises NotAuthenticated for an invalid ticket, Forbidden for one of another node or blob."""
    claims = verify_ticket(key, ticket, now)
    if (claims.get("verb"), claims.get("sha256"), claims.get("node_uid")) != ("blob", sha256, node_uid):
        raise Forbidden("the ticket is for another node, or for something else", hint="ask for a new one")


def sign_secret_ticket(key: bytes, project: str, name: str, node_uid: str, now: float) -> str:
    """A ticket with which only the node with that uid can read a secret's registry credentials, for a few hours."""
    claims = {"verb": "secret", "project": project, "secret": name, "node_uid": node_uid}
    return sign_ticket(key, {**claims, "expires": now + BLOB_LIFETIME_SECONDS})


def check_secret_ticket(key: bytes, ticket: str, node_uid: str, now: float) -> tuple[str, str]:
    """Project and name of the ticket's secret. Raises NotAuthenticated for an invalid ticket, Forbidden for another node's."""
    claims = verify_ticket(key, ticket, now)
    if (claims.get("verb"), claims.get("node_uid")) != ("secret", node_uid):
        raise Forbidden("the ticket is for another node, or for something else", hint="ask for a new one")
    return str(claims["project"]), str(claims["secret"])


def sign_repository_ticket(key: bytes, name: str, node_uid: str, now: float) -> str:
    """A ticket with which only the node with that uid can read a backup repository's key and credentials, for a minute."""
    claims = {"verb": "repository", "repository": name, "node_uid": node_uid, "expires": now + LIFETIME_SECONDS}
    return sign_ticket(key, claims)


def check_repository_ticket(key: bytes, ticket: str, name: str, node_uid: str, now: float) -> None:
    """Raises NotAuthenticated for an invalid ticket, Forbidden for one of another node or repository."""
    claims = verify_ticket(key, ticket, now)
    if (claims.get("verb"), claims.get("repository"), claims.get("node_uid")) != ("repository", name, node_uid):
        raise Forbidden("the ticket is for another node, or for something else", hint="ask for a new one")


def sign_gateway_ticket(key: bytes, gateway: str, to: str, now: float) -> str:
    """A ticket with which the gateway of that name asks another one, ``to``, about its events, for a minute."""
    return sign_ticket(key, {"verb": "event-copies", "gateway": gateway, "to": to, "expires": now + LIFETIME_SECONDS})


def check_gateway_ticket(key: bytes, ticket: str, own: str, now: float) -> str:
    """The name of the gateway that asks the gateway ``own``. Raises NotAuthenticated for an invalid ticket, Forbidden for one of
    something else."""
    claims = verify_ticket(key, ticket, now)
    if claims.get("verb") != "event-copies":
        raise Forbidden("the ticket is for something else", hint="servers of the fabric ask here, nobody else")
    if claims.get("to") != own:
        raise Forbidden(f"this is gateway {own}; the ticket is for another one", reason=ANOTHER_GATEWAY)
    return str(claims.get("gateway"))


def _keep(path: Path, data: bytes) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    with contextlib.suppress(FileExistsError):
        os.link(fresh, path)  # unlike a rename, keeps the key of a faster process
    fresh.unlink()


def _mac(key: bytes, body: str) -> bytes:
    return hmac.new(key, body.encode(), hashlib.sha256).digest()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
