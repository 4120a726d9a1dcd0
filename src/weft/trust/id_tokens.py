"""Checks the ID tokens of an OIDC provider (OpenID Connect Core 1.0, section 3.1.3.7). Pure.

Only signatures with a public key count: ``none`` and shared keys (HS256) are refused, whatever the token's header says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jwt
import msgspec

from weft.objects.errors import NotAuthenticated

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
LEEWAY_SECONDS = 60.0
MOST_CLAIMS, LONGEST_CLAIM = 200, 256  # groups of a user, characters of each
LONGEST_SUBJECT = 255  # as OpenID Connect Core has it
Keys = Mapping[str, jwt.PyJWK]  # by key id


class UnknownKey(NotAuthenticated):
    """The token was signed with a key that isn't among the provider's: it may have new ones."""


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """Values that an ID token must have."""

    issuer: str
    client: str  # the audience
    nonce: str | None  # of the request; None where the flow has none
    groups_claim: str = "groups"
    name_claim: str = "preferred_username"


class Identity(msgspec.Struct, frozen=True):
    """A person as the provider knows the person."""

    subject: str  # never another person's, at this provider
    name: str  # what the person is called there; "" if the provider doesn't say
    full_name: str
    groups: tuple[str, ...]


def read_keys(document: Any) -> Keys:
    """The signing keys of a JSON Web Key Set; those that can't be read, or are no public keys, are left out."""
    keys: dict[str, jwt.PyJWK] = {}
    items = document.get("keys") if isinstance(document, dict) else None
    for item in items[:MOST_CLAIMS] if isinstance(items, list) else ():
        if isinstance(item, dict) and item.get("use", "sig") == "sig" and item.get("kty") in ("RSA", "EC", "OKP"):
            try:
                keys[str(item.get("kid", ""))] = jwt.PyJWK(item)
            except (jwt.PyJWTError, ValueError, TypeError):
                continue
    return keys


def check_id_token(text: str, keys: Keys, expected: Expected, now: float) -> Identity:
    """Identity that ``text`` says has logged in, ``now`` in unix seconds. Raises UnknownKey, NotAuthenticated."""
    try:
        header = jwt.get_unverified_header(text)
    except jwt.PyJWTError as problem:
        raise refuse(f"it can't be read: {problem}") from None
    if header.get("alg") not in ALGORITHMS:
        raise refuse(f"it is signed by {str(header.get('alg'))[:20]!r}")
    key = _find_key(header, keys)
    try:
        claims: dict[str, Any] = jwt.decode(
            text,
            key,
            algorithms=list(ALGORITHMS),
            audience=expected.client,
            issuer=expected.issuer,
            # The times are compared below, with the server's clock.
            options={
                "require": ["iss", "aud", "sub", "exp", "iat"],
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
    except (jwt.PyJWTError, ValueError, TypeError) as problem:
        raise refuse(str(problem)) from None
    return _read_claims(claims, expected, now)


def refuse(why: str) -> NotAuthenticated:
    """The error for an ID token that doesn't count."""
    return NotAuthenticated(
        f"the OIDC provider's ID token is not valid: {why}",
        reason="invalidIdToken",
        hint="log in again; if that doesn't help, check the server's --oidc options and clock",
    )


def _find_key(header: Mapping[str, Any], keys: Keys) -> jwt.PyJWK:
    if "kid" in header:
        key = keys.get(str(header["kid"]))
    else:
        key = next(iter(keys.values())) if len(keys) == 1 else None
    if key is None:
        raise UnknownKey(
            "the OIDC provider's ID token is not valid: it was signed with an unknown key",
            reason="invalidIdToken",
            hint="log in again",
        )
    return key


def _read_claims(claims: Mapping[str, Any], expected: Expected, now: float) -> Identity:
    audience = claims["aud"]
    if isinstance(audience, list) and len(audience) > 1 and claims.get("azp") != expected.client:
        raise refuse("it is for several clients, and not made for this one")
    for name in ("exp", "iat", "nbf"):
        if name in claims and (isinstance(claims[name], bool) or not isinstance(claims[name], int | float)):
            raise refuse(f"{name} is not a valid time")
    if claims["exp"] + LEEWAY_SECONDS < now:
        raise refuse("it has expired")
    if max(claims["iat"], claims.get("nbf", 0)) - LEEWAY_SECONDS > now:
        raise refuse("it is from the future")
    if expected.nonce is not None and claims.get("nonce") != expected.nonce:
        raise refuse("it answers another request")
    subject = claims["sub"]
    if not isinstance(subject, str) or not 0 < len(subject) <= LONGEST_SUBJECT:
        raise refuse("it names nobody")
    return Identity(
        subject,
        _read_text(claims.get(expected.name_claim)),
        _read_text(claims.get("name")),
        _read_groups(claims.get(expected.groups_claim)),
    )


def _read_text(claim: Any) -> str:
    return claim[:200] if isinstance(claim, str) else ""


def _read_groups(claim: Any) -> tuple[str, ...]:
    """Too many, or what are no groups, are left out: fewer rights, never more."""
    found = claim if isinstance(claim, list) else [claim]
    return tuple(sorted({one for one in found if isinstance(one, str) and 0 < len(one) <= LONGEST_CLAIM}))[:MOST_CLAIMS]
