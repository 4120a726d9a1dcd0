"""An OIDC provider as the API server asks it: its addresses, its keys, and tokens for codes. Every answer is bounded, in bytes and
in time, and requests to it have threads of their own: a slow provider delays nobody but those who log in there."""

from __future__ import annotations

import asyncio
import base64
import ssl
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.http.connection import FAILURES, Reply, exchange
from weft.objects.errors import NotAuthenticated, Unavailable, WeftError, describe_failure
from weft.trust.id_tokens import Expected, Identity, Keys, UnknownKey, check_id_token, read_keys

MOST_BYTES = 256 * 1024
STEP_SECONDS = 4.0  # of silence
WHOLE_SECONDS = 8.0  # of one request
KEPT_SECONDS = 600.0  # addresses and keys are read again after this: a key that was withdrawn counts no longer
LEAST_SECONDS = 5.0  # between two reads of keys, however many tokens name an unknown one
MOST_AT_ONCE, MOST_WAITING = 4, 64
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ProviderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The server's --oidc options."""

    issuer: str
    client: str
    secret: str = ""  # "": a public client
    groups_claim: str = "groups"
    name_claim: str = "preferred_username"
    scope: str = "openid profile groups"
    ca: str = ""  # PEM; "": the machine's own CAs


class Endpoints(msgspec.Struct, frozen=True):
    """Endpoints in the provider's discovery document."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    device_authorization_endpoint: str = ""


class LoginRefused(NotAuthenticated):
    """The provider answered with an OAuth error, ``code``."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(
            f"the OIDC provider refused the login: {text or code}", reason="loginRefused", hint="log in again"
        )
        self.code = code


class Provider:
    def __init__(self, settings: ProviderSettings, clock: Clock) -> None:
        self.settings = settings
        self._clock = clock
        self._tls = ssl.create_default_context(cadata=settings.ca or None)
        self._threads = ThreadPoolExecutor(MOST_AT_ONCE, "oidc")
        self._waiting = 0
        self._endpoints: tuple[float, Endpoints] | None = None
        self._keys: tuple[float, Keys] | None = None
        self._reading = asyncio.Lock()

    async def find_endpoints(self) -> Endpoints:
        """Raises Unavailable if the provider can't be reached, or its document is another's."""
        known = self._endpoints
        if known is None or self._clock.elapsed() - known[0] > KEPT_SECONDS:
            document = await self._fetch(f"{self.settings.issuer.rstrip('/')}/.well-known/openid-configuration")
            try:
                found = msgspec.convert(document, Endpoints)
            except msgspec.ValidationError as problem:
                raise _broken(f"its discovery document is incomplete: {problem}") from None
            if found.issuer != self.settings.issuer:
                raise _broken(f"its discovery document is that of {found.issuer[:200]!r}")
            known = self._endpoints = (self._clock.elapsed(), found)
        return known[1]

    async def request_device(self) -> dict[str, Any]:
        """Begin a device flow (RFC 8628): the provider's answer. Raises Unavailable, LoginRefused."""
        endpoints = await self.find_endpoints()
        if not endpoints.device_authorization_endpoint:
            raise Unavailable("the OIDC provider has no device flow", reason="noDeviceFlow", hint="weft login --oidc")
        return await self._post(endpoints.device_authorization_endpoint, {"scope": self.settings.scope})

    async def redeem(self, grant: dict[str, str], nonce: str | None) -> Identity:
        """Redeem a code for the identity of who has logged in. Raises LoginRefused, NotAuthenticated, Unavailable."""
        answer = await self._post((await self.find_endpoints()).token_endpoint, grant)
        text = answer.get("id_token")
        if not isinstance(text, str):
            raise _broken("its answer has no ID token")
        return await self.check(text, nonce)

    async def check(self, text: str, nonce: str | None) -> Identity:
        """Identity that an ID token is for; an unknown key has the keys read again, within bounds. Raises NotAuthenticated,
        Unavailable."""
        settings = self.settings
        expected = Expected(
            issuer=settings.issuer,
            client=settings.client,
            nonce=nonce,
            groups_claim=settings.groups_claim,
            name_claim=settings.name_claim,
        )
        try:
            return check_id_token(text, await self._read_keys(KEPT_SECONDS), expected, self._clock.now())
        except UnknownKey:
            return check_id_token(text, await self._read_keys(LEAST_SECONDS), expected, self._clock.now())

    async def _read_keys(self, most_seconds: float) -> Keys:
        """The provider's keys, read at most ``most_seconds`` ago."""
        async with self._reading:
            if self._keys is None or self._clock.elapsed() - self._keys[0] > most_seconds:
                document = await self._fetch((await self.find_endpoints()).jwks_uri)
                self._keys = (self._clock.elapsed(), read_keys(document))
            return self._keys[1]

    async def _post(self, url: str, fields: dict[str, str]) -> dict[str, Any]:
        settings = self.settings
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        if settings.secret:
            pair = f"{quote(settings.client, safe='')}:{quote(settings.secret, safe='')}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        body = urlencode({**fields, "client_id": settings.client})
        return await self._fetch(url, body.encode(), headers)

    async def _fetch(
        self, url: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """The JSON object at ``url``. Raises Unavailable, LoginRefused."""
        if self._waiting >= MOST_WAITING:
            raise Unavailable("too many people log in just now", hint="try again", retry_after_seconds=2)
        self._waiting += 1
        try:
            async with asyncio.timeout(WHOLE_SECONDS):
                status, data = await asyncio.get_running_loop().run_in_executor(
                    self._threads, self._exchange, url, body, headers or {}
                )
        except TimeoutError:
            raise _broken(f"it did not answer within {WHOLE_SECONDS:.0f} s") from None
        except FAILURES as problem:
            raise _broken(describe_failure(problem)) from None
        finally:
            self._waiting -= 1
        try:
            answer = msgspec.json.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            answer = None
        if isinstance(answer, dict) and 400 <= status < 500 and isinstance(answer.get("error"), str):
            raise LoginRefused(answer["error"][:60], str(answer.get("error_description") or "")[:200])
        if status != 200 or not isinstance(answer, dict):
            raise _broken(
                f"it answered with HTTP status {status}" if status != 200 else "its answer is not a JSON object"
            )
        return answer

    def _exchange(self, url: str, body: bytes | None, headers: dict[str, str]) -> Reply:
        """One request, in a thread. No redirect is followed."""
        parts = urlsplit(url)
        if parts.scheme != "https" and (parts.scheme != "http" or parts.hostname not in _LOOPBACK):
            raise ValueError("its addresses are not https")
        return exchange(
            "GET" if body is None else "POST",
            url,
            body,
            headers,
            seconds=WHOLE_SECONDS,
            most_bytes=MOST_BYTES,
            silence_seconds=STEP_SECONDS,
            tls=self._tls,
        )


def _broken(why: str) -> WeftError:
    return Unavailable(
        f"the OIDC provider can't be used: {why}",
        reason="providerUnavailable",
        hint="try again; weft login --user NAME logs in with a password; the server's --oidc-issuer says where it is",
    )
