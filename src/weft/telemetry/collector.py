"""An OpenTelemetry collector that takes OTLP over HTTP, in JSON."""

from __future__ import annotations

import http.client
import ssl
from urllib.parse import urlsplit

import msgspec

from weft.objects.errors import InvalidInput, describe_failure

PREFIX = "otlp="
SECONDS = 5.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
_AGAIN = (429, 502, 503, 504)  # as OTLP says: the others aren't retried


def read_collector(text: str, flag: str = "--traces", path: str = "/v1/traces") -> str:
    """``otlp=http://HOST:4318`` as the URL to send to. Raises InvalidInput."""
    url = text.removeprefix(PREFIX)
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid:
        example = f"{PREFIX if flag == '--traces' else ''}http://127.0.0.1:4318"
        raise InvalidInput(f"{flag}: {url[:80]!r} is not the address of a collector", hint=f"write it like {example}")
    return url.rstrip("/") if parts.path.rstrip("/") else f"{url.rstrip('/')}{path}"


class Collector:
    """At ``url``. Used by one thread."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)

    def post(self, document: object) -> tuple[str, bool]:
        """Why it must be sent again ("": it mustn't), and whether the collector will never take it."""
        host, port = self._parts.hostname or "", self._parts.port
        try:
            connection: http.client.HTTPConnection
            if self._parts.scheme == "https":
                tls = ssl.create_default_context()
                connection = http.client.HTTPSConnection(host, port or 443, timeout=SECONDS, context=tls)
            else:
                connection = http.client.HTTPConnection(host, port or 80, timeout=SECONDS)
            try:
                body = msgspec.json.encode(document)
                connection.request("POST", self._parts.path, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read(65_536)
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as problem:
            return describe_failure(problem), False
        if answer.status in _AGAIN:
            return f"HTTP {answer.status}", False
        return "", answer.status >= 300
