"""The messages between people's clients and an API server about logging in."""

from __future__ import annotations

from typing import Literal

import msgspec


class HeldRole(msgspec.Struct, frozen=True):
    role: str
    project: str | None = None  # the only one in which it is held; None: all


class LoginInput(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /v1/login``, without credentials."""

    user: str = ""
    password: str = ""
    oidc: Literal["", "browser", "device"] = ""  # begin a login at the provider instead …
    redirect: str = ""  # … in a browser, which comes back to this address of its own machine
    session: str = ""  # finish one that was begun
    code: str = ""  # which the browser came back with
    expires_seconds: float = 43_200.0  # how long the token is valid


class SessionInput(LoginInput, frozen=True, kw_only=True):
    """``POST /v1/session``, from a page of the API server's own origin."""

    token: str = ""  # log in by a token of a user's instead


class SessionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to that; a cookie has the other part of the token."""

    user: str
    expires_at: float  # unix seconds
    page_key: str  # for each request's X-Weft-CSRF: the part of the token that the cookie lacks


class LoginBegun(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to the beginning of a login at the OIDC provider."""

    url: str  # where the person logs in
    session: str = ""  # to send back; sealed
    state: str = ""  # what a browser must come back with
    user_code: str = ""  # what the person types at ``url``
    interval: float = 0.0  # seconds between two tries to finish


class LoginAnswer(msgspec.Struct, frozen=True, kw_only=True):
    secret: str  # the bearer token; shown only here
    token: str  # the name of its object
    user: str
    expires_at: float  # unix seconds


class PasswordInput(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /v1/users/{name}:passwd``."""

    password: str
    old: str = ""  # users who change their own give the present one
    first: bool = False  # only if the user has none yet
    end_tokens: bool = False  # end all of the user's tokens, not only the logins, but for the one that asks


class PasswordAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to that."""

    user: str
    tokens: list[str]  # the user's that are still valid, but for the one that asked


class HeldPermissions(msgspec.Struct, frozen=True, kw_only=True):
    """Permissions as KIND:VERB."""

    everywhere: list[str] = []
    projects: dict[str, list[str]] = {}  # further ones, by project


class WhoAmI(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /v1/whoami``."""

    name: str
    user: str | None = None  # whose token it is
    token: str = ""  # its name
    expires_at: float | None = None  # unix seconds
    claims: list[str] = []  # groups that the OIDC provider named at the login
    grants: list[HeldRole] = []
    limit: HeldRole | None = None  # what the token allows at most
    permissions: HeldPermissions = HeldPermissions()
