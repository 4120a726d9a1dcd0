"""Turns credentials into an actor: a bearer token, an access key's signature, or a node's certificate. The API and the port for
functions' callers share these rules and messages; each finds the token's object in its own copy of the store. Pure.

A refusal reveals no more than a stranger may know."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec

from weft.contracts.driver.function import REGION
from weft.kinds.token import TokenSpec
from weft.objects.errors import Forbidden, NotAuthenticated
from weft.objects.identity import NODE_PREFIX
from weft.objects.roles import RIGHTS, has_right
from weft.trust.access_keys import derive_secret
from weft.trust.peer import Peer
from weft.trust.sigv4 import check_scope, read_authorization, verify
from weft.trust.tokens import Token, parse_token, verify_secret

SERVICE = "lambda"  # that signatures are for


class Actor(msgspec.Struct, frozen=True):
    """A person (or program) with a token, a node with its certificate, or a joining machine."""

    kind: Literal["person", "node", "joiner"]
    name: str  # for people and the journal
    id: str  # the token's name, or the node's uid
    role: str = ""  # of a person
    project: str | None = None  # the only one in which it has its role
    peer: Peer | None = None  # the node's certificate

    def permits(self, right: str, project: str | None) -> bool:
        """Whether it has ``right`` in ``project`` (None: in no project, or in all of them)."""
        return self.kind == "person" and has_right(self.role, self.project, right, project)

    def require(self, right: str, project: str | None, what: str) -> None:
        """Raise Forbidden unless it has ``right`` in ``project``."""
        if not self.permits(right, project):
            raise self.refuse(right, project, what)

    def require_project(self, project: str, what: str) -> None:
        """Raise Forbidden if its token is limited to another project."""
        if self.project not in (None, project):
            raise self.refuse("", project, what)

    def refuse(self, right: str, project: str | None, what: str) -> Forbidden:
        """Why it may not do ``what``: its token is limited to another project, or its role lacks the right."""
        if self.project is not None and self.project != project:
            where = f"in {project[:80]}" if project else "outside it"
            return Forbidden(
                f"{self.name} is limited to project {self.project}: it can't {what} {where}",
                hint=f"give -p {self.project}, or use a token for all projects",
            )
        least = next((role for role, rights in RIGHTS.items() if right in rights), "admin")
        hint = f"weft token create NAME --role {least}, or ask an administrator"
        return Forbidden(f"{self.name} has role {self.role}: it can't {what}", hint=hint)


class SignedRequest(msgspec.Struct, frozen=True):
    """The parts of a request that its signature covers, as they came."""

    method: str
    path: str
    query: str
    headers: Mapping[str, Sequence[str]]  # by name in lower case
    body: bytes


def missing_credentials(hint: str) -> NotAuthenticated:
    return NotAuthenticated("the request has no credentials", hint=hint)


def invalid_token() -> NotAuthenticated:
    return NotAuthenticated(
        "the token is not valid",
        hint="a token looks like weft_ID_SECRET; if it was deleted: weft token create makes another, make up renews a local one",
    )


def read_bearer(authorization: str) -> Token:
    """The token in an Authorization header. Raises NotAuthenticated."""
    scheme, _, text = authorization.partition(" ")
    token = parse_token(text.strip()) if scheme.lower() == "bearer" else None
    if token is None:
        raise invalid_token()
    return token


def check_bearer(token: Token, spec: TokenSpec, now: float) -> Actor:
    """The owner of a token whose object is stored with ``spec``. ``now``: unix seconds. Raises NotAuthenticated."""
    if not verify_secret(token.secret, spec.sha256) or spec.use == "access-key":
        raise invalid_token()
    return _make_actor(token.id, spec, now)


def check_signature(
    authorization: str,
    request: SignedRequest,
    find: Callable[[str], tuple[str, TokenSpec] | None],
    seal_key: bytes,
    now: float,
) -> Actor:
    """The owner of the access key that signed ``request``. ``find`` gives the name and spec of the one token with a key's id.
    Raises NotAuthenticated."""
    signed = read_authorization(authorization)
    dates = request.headers.get("x-amz-date")
    check_scope(signed, REGION, SERVICE, dates[0] if dates else "", now)
    found = find(signed.key_id)
    if found is None:
        raise NotAuthenticated(
            "the access key is not valid: no key has that id",
            reason="unknownAccessKey",
            hint="weft token list shows the access keys",
        )
    name, spec = found
    verify(
        signed,
        derive_secret(seal_key, spec.key_id),
        method=request.method,
        path=request.path,
        query=request.query,
        headers=request.headers,
        body_sha256=hashlib.sha256(request.body).hexdigest(),
    )
    return _make_actor(name, spec, now)


def check_certificate(peer: Peer, uid: str, now: float) -> Actor:
    """The node of a certificate that TLS has verified; ``enrolment.py`` checks whether a newer one has replaced it.

    Raises NotAuthenticated (``certificateExpired``)."""
    if not peer.begins <= now < peer.ends:
        begin, end, here = (
            datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M")
            for at in (peer.begins, peer.ends, now)
        )
        raise NotAuthenticated(
            f"the node's certificate is valid from {begin} to {end} UTC, but the server's clock says {here}",
            reason="certificateExpired",
            hint="if that clock is right: weft token create --join --node NAME, and join again with the same --state",
        )
    return Actor("node", f"{NODE_PREFIX}{uid}", uid, peer=peer)


def has_expired(spec: TokenSpec, now: float) -> bool:
    return spec.expires_at is not None and spec.expires_at <= now


def _make_actor(name: str, spec: TokenSpec, now: float) -> Actor:
    if has_expired(spec, now):
        raise NotAuthenticated(f"token {name} has expired", hint="weft token create makes another")
    if spec.use == "join":
        return Actor("joiner", f"token {name}", name)
    return Actor("person", spec.subject or name, name, spec.role, spec.project)
