"""Images in a registry: pulls by the OCI distribution specification 1.1.

Writes nothing; every byte goes through ``worker.py``. Credentials go to the registry, and to the place it names for tokens;
never to where it redirects, nor into a message.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

import msgspec

from weft.contracts.driver.image import RegistryCredentials
from weft.drivers.image.oci.documents import INDEX_TYPES, MANIFEST_TYPES, MOST_DOCUMENT_BYTES, Descriptor
from weft.drivers.image.oci.fetch.challenge import basic, pick, read_challenges, token_url
from weft.drivers.image.oci.fetch.exchange import Broken, Exchanges, RegistryAnswer
from weft.objects.errors import Forbidden, NotAuthenticated, NotFound
from weft.objects.image.reference import DIGEST, ImageReference

_REDIRECTS = 5
_MOST_TOKEN_BYTES = 1 << 20
_HOSTS = {"docker.io": "registry-1.docker.io"}
_ACCEPT = ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))


class RegistrySettings(msgspec.Struct, frozen=True):
    """``plain_http`` None: only on this machine's loopback addresses. ``ca``: certificates (PEM) trusted beside the system's."""

    plain_http: bool | None = None
    ca: str = ""


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""


class Registry:
    """``name`` in one registry, as these credentials open it."""

    def __init__(
        self,
        reference: ImageReference,
        settings: RegistrySettings,
        credentials: RegistryCredentials | None,
        exchanges: Exchanges,
    ) -> None:
        self.where = f"registry {reference.registry}"
        self._name, self._image = reference.name, f"{reference.registry}/{reference.name}"
        plain = is_loopback(reference.registry) if settings.plain_http is None else settings.plain_http
        self._plain, self._ca, self._credentials, self._exchanges = plain, settings.ca, credentials, exchanges
        host = _HOSTS.get(reference.registry, reference.registry)
        self._root = f"{'http' if plain else 'https'}://{host}/v2/{reference.name}"
        self._shown = f"Bearer {credentials.token}" if credentials is not None and credentials.token else ""

    async def look_up(self, tag: str) -> str:
        async with self._ask("HEAD", f"{self._root}/manifests/{tag}", tag) as answer:
            digest = str(answer.head.get("docker-content-digest", ""))
        return digest if DIGEST.fullmatch(digest) else ""

    async def document(self, name: str) -> tuple[bytes, str]:
        async with self._ask("GET", f"{self._root}/manifests/{name}", name) as answer:
            return await answer.read(MOST_DOCUMENT_BYTES), str(answer.head.get("content-type", ""))

    @asynccontextmanager
    async def blob(self, descriptor: Descriptor, offset: int) -> AsyncIterator[AsyncIterator[bytes]]:
        part = {"Range": f"bytes={offset}-"} if offset else {}
        async with self._ask("GET", f"{self._root}/blobs/{descriptor.digest}", descriptor.digest, part) as answer:
            skipped = offset
            if answer.head["status"] == 206 and offset:
                begins = str(answer.head.get("content-range", "")).replace("=", " ").split("-")[0].split()
                if begins != ["bytes", str(offset)]:
                    raise Broken("badAnswer", "it answers with another range than was requested")
                skipped = 0
            yield _skip(answer.body, skipped)

    async def close(self) -> None:
        await self._exchanges.close()

    @asynccontextmanager
    async def _ask(
        self, method: str, url: str, what: str, more: dict[str, str] | None = None
    ) -> AsyncIterator[RegistryAnswer]:
        """The answer, after tokens and redirects. Raises also NotFound, NotAuthenticated, Forbidden."""
        headers = {"Accept": _ACCEPT if "/manifests/" in url else "*/*", **(more or {})}
        home, redirects, showed = urlsplit(url).netloc, 0, False
        while True:
            at_home = urlsplit(url).netloc == home
            shown = {"Authorization": self._shown} if self._shown and at_home else {}
            async with self._send(method, url, headers | shown) as answer:
                status = int(answer.head["status"])
                if status in (200, 206):
                    yield answer
                    return
                await _pass_over(answer)
            if status in (301, 302, 303, 307, 308):
                redirects += 1
                url = _redirected(url, str(answer.head.get("location", "")), redirects)
            elif status == 401 and at_home and not showed:
                showed, self._shown = True, await self._authorize(answer.head["challenges"])
            else:
                raise self._refused(status, what, answer.head)

    def _send(self, method: str, url: str, headers: dict[str, str]) -> Any:
        headers = {"User-Agent": "weft", "Accept-Encoding": "identity", **headers}
        return self._exchanges.ask({"do": "http", "method": method, "url": url, "headers": headers, "ca": self._ca})

    async def _authorize(self, headers: list[str]) -> str:
        """The Authorization header to send from now on. Raises NotAuthenticated."""
        challenge, known = pick(read_challenges(headers)), self._credentials
        named = known is not None and bool(known.username)
        if challenge is None or (known is not None and known.token):
            raise self._denied()
        if challenge.scheme == "basic":
            if known is None or not named:
                raise self._denied()
            return basic(known)
        url = token_url(challenge, self._name, plain_http=self._plain)
        if url is None:
            raise NotAuthenticated(
                f"{self.where} sends clients to an insecure URL for tokens",
                hint="it must be an https URL, unless the registry itself is plain http",
            )
        async with self._send(
            "GET", url, {"Authorization": basic(known)} if known is not None and named else {}
        ) as answer:
            status = int(answer.head["status"])
            if status != 200:
                await _pass_over(answer)
                raise self._refused(status if status != 404 else 401, "token", answer.head)
            data = await answer.read(_MOST_TOKEN_BYTES)
        try:
            issued = msgspec.json.decode(data, type=_Token)
        except (msgspec.DecodeError, UnicodeError):
            raise Broken("badAnswer", "its token is malformed") from None
        token = issued.token or issued.access_token
        if not token or not token.isascii() or not token.isprintable():
            raise Broken("badAnswer", "it returns no token")
        return f"Bearer {token}"

    def _refused(self, status: int, what: str, head: dict[str, Any]) -> Exception:
        if status == 404:
            named = what if ":" in what else f"tag {what}"
            hint = "check the name, and which tags the registry has"
            return NotFound(f"the registry has no {named} (any more)", reason="imageGone", hint=hint)
        if status == 401:
            return self._denied()
        if status == 403:
            return Forbidden(f"{self.where} doesn't let these credentials pull {self._image}")
        if status == 429 or status >= 500:
            return Broken("busy", f"it answers {status}")
        return Broken("badAnswer", f"it answers {status}")

    def _denied(self) -> NotAuthenticated:
        if self._credentials is None:
            return NotAuthenticated(
                f"{self.where} requires credentials to pull {self._image}, or has no such image",
                hint="set credentials for it",
            )
        return NotAuthenticated(f"{self.where} doesn't accept the credentials for {self._image}", hint="renew them")


def is_loopback(registry: str) -> bool:
    host = urlsplit(f"//{registry}").hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _redirected(url: str, location: str, redirects: int) -> str:
    try:
        fresh = urljoin(url, location)
        parts = urlsplit(fresh)
        usable = bool(location and parts.hostname) and fresh.isascii() and fresh.isprintable() and " " not in fresh
    except ValueError:
        usable = False
    if redirects > _REDIRECTS or not usable:
        raise Broken("badAnswer", "it redirects in a loop, or without a target")
    old = urlsplit(url).scheme
    if parts.scheme not in ("http", "https") or (old, parts.scheme) == ("https", "http"):
        raise Broken("badAnswer", f"it redirects from {old} to {parts.scheme[:20]}")
    return fresh


async def _pass_over(answer: RegistryAnswer) -> None:
    """Drop the body of an error: a registry may put anything there."""
    await answer.read(1 << 16)


async def _skip(body: AsyncIterator[bytes], count: int) -> AsyncIterator[bytes]:
    async for chunk in body:
        if count >= len(chunk):
            count -= len(chunk)
            continue
        yield chunk[count:] if count else chunk
        count = 0
