"""The head of an HTTP/1.1 request from a browser: read strictly, and written again for the server. Pure."""

from __future__ import annotations

import msgspec

from weft.objects.errors import InvalidInput

# What goes on to the server: nothing of the browser's credentials, and nothing about the connection.
_FORWARDED = (
    "accept",
    "accept-encoding",
    "content-length",
    "content-type",
    "idempotency-key",
    "if-match",
    "if-none-match",
    "last-event-id",
)
_WEB_SOCKET = ("upgrade", "sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_SAFE = ("GET", "HEAD")


class Head(msgspec.Struct, frozen=True):
    method: str
    target: str  # path and query
    headers: dict[str, str]  # by name in lower case

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def length(self) -> int:
        return int(self.headers.get("content-length", "0"))

    @property
    def is_safe(self) -> bool:
        return self.method in _SAFE

    @property
    def opens_page(self) -> bool:
        """Whether a browser's window shows the answer to people."""
        return self.is_safe and self.headers.get("sec-fetch-mode", "") == "navigate"

    @property
    def wants_web_socket(self) -> bool:
        return self.headers.get("upgrade", "").lower() == "websocket"


def read_head(data: bytes) -> Head:
    """The head in ``data``, with its empty line. Raises InvalidInput for what no browser sends."""
    lines = data.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or words[2] != "HTTP/1.1" or words[0] not in _METHODS or not _is_target(words[1]):
        raise InvalidInput("the request's first line can't be read", hint="send HTTP/1.1 with a path")
    headers: dict[str, str] = {}
    for line in filter(None, lines[1:]):
        name, colon, value = line.partition(":")
        key, value = name.lower(), value.strip()
        if not colon or not name or name != name.strip() or not value.isprintable() or key in headers:
            raise InvalidInput(f"header {name[:40]!r} is given twice or can't be read")
        headers[key] = value
    length = headers.get("content-length", "0")
    if "transfer-encoding" in headers or not (length.isascii() and length.isdecimal() and len(length) < 12):
        raise InvalidInput("the request's length can't be read", hint="send Content-Length")
    return Head(words[0], words[1], headers)


def _is_target(text: str) -> bool:
    """Whether it is a path of what a URL may have: no line break, which would begin a header of the request that is written."""
    return text.startswith("/") and text.isascii() and text.isprintable()


def write_head(head: Head, host: str, token: str = "") -> bytes:
    """The same request for the server at ``host``, with ``token`` as its credentials, as the connection's only one."""
    names = _WEB_SOCKET if head.wants_web_socket else _FORWARDED
    lines = [f"{head.method} {head.target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {head.headers[name]}" for name in names if name in head.headers]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    lines.append("Connection: Upgrade" if head.wants_web_socket else "Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
