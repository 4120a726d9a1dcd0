"""The messages between people's clients and an API server about logging in."""

from __future__ import annotations

import msgspec


class HeldRole(msgspec.Struct, frozen=True):
    role: str
    project: str | None = None  # the only one in which it is held; None: all


class LoginInput(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /v1/login``, without credentials."""

    user: str = ""
    password: str = ""
    expires_seconds: float = 43_200.0  # how long the token is valid


class LoginAnswer(msgspec.Struct, frozen=True, kw_only=True):
    secret: str  # the bearer token; shown only here
    token: str  # the name of its object
    user: str
    expires_at: float  # unix seconds


class PasswordInput(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /v1/users/{name}:passwd``."""

    password: str
    old: str = ""  # users who change their own give the present one


class WhoAmI(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /v1/whoami``."""

    name: str
    user: str | None = None  # whose token it is
    token: str = ""  # its name
    expires_at: float | None = None  # unix seconds
    claims: list[str] = []  # groups that the OIDC provider named at the login
    grants: list[HeldRole] = []
    limit: HeldRole | None = None  # what the token allows at most
