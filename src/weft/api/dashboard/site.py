"""``GET /`` and ``/assets/NAME``: the dashboard's page, as ``make install`` built it. It holds no data: it takes no credentials."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from weft.api.context import ApiContext
from weft.api.request.call import Call, list_accepted
from weft.api.route import Route, Topic
from weft.objects.errors import NotFound
from weft.serving.answer import Answer

SITE = Path(__file__).parent / "site"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".json": "application/json",
    ".map": "application/json",
    ".txt": "text/plain; charset=utf-8",
}
_ENCODINGS = (("br", ".br"), ("gzip", ".gz"))  # files beside the plain one, the best first
_DAY_SECONDS = 86_400
_TOPIC = Topic("refused", "read")
_ALWAYS = (
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("vary", "accept-encoding"),
)


async def page(context: ApiContext, call: Call) -> Answer:
    """``GET /``, whatever query a login at a provider comes back with. Raises NotFound where the page wasn't built."""
    found = await asyncio.to_thread(_read, SITE, "index.html", list_accepted(call))
    if found is None:
        raise NotFound("the dashboard's page isn't built", hint="make install builds it; programs use /v1/…")
    return _answer(context, call, "index.html", found, "no-cache")


async def asset(context: ApiContext, call: Call, name: str) -> Answer:
    """``GET /assets/NAME``: names have a hash of what is in the file, so it never changes."""
    found = None
    if _NAME.fullmatch(name) and Path(name).suffix in _TYPES:
        found = await asyncio.to_thread(_read, SITE / "assets", name, list_accepted(call))
    if found is None:
        raise NotFound("the dashboard has no such file", hint="load the page again")
    return _answer(context, call, name, found, f"public, max-age={365 * _DAY_SECONDS}, immutable")


def write_policy(gateway: str) -> str:
    """The page's Content-Security-Policy: it loads only what is here, and talks to this origin and the gateway's streams."""
    return (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self'; "
        f"connect-src 'self' wss://{gateway}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _answer(context: ApiContext, call: Call, name: str, found: tuple[bytes, str], cache: str) -> Answer:
    body, encoding = found
    headers = (
        ("content-type", _TYPES[Path(name).suffix]),
        ("cache-control", cache),
        ("content-security-policy", write_policy(context.settings.gateway_for(call.host))),
        *_ALWAYS,
        *((("content-encoding", encoding),) if encoding else ()),
    )
    return Answer(200, body, headers)


def _read(folder: Path, name: str, accepted: set[str]) -> tuple[bytes, str] | None:
    """The file and its encoding ("": it is not compressed); None if there is no such file."""
    for encoding, suffix in _ENCODINGS:
        if encoding in accepted and (folder / (name + suffix)).is_file():
            return (folder / (name + suffix)).read_bytes(), encoding
    return ((folder / name).read_bytes(), "") if (folder / name).is_file() else None


ROUTES = (
    Route("GET", "/", page, "The dashboard's page; takes no credentials", topic=_TOPIC, media_type="text/html"),
    Route(
        "GET",
        "/assets/{name}",
        asset,
        "A file of the page; takes no credentials",
        topic=_TOPIC,
        media_type="application/octet-stream",
    ),
)
