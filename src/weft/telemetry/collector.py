"""An OpenTelemetry collector that takes OTLP over HTTP, in JSON."""

from __future__ import annotations

from contextlib import closing
from urllib.parse import urlsplit

import msgspec

from weft.contracts.clock import SystemClock
from weft.contracts.http.connection import FAILURES, HttpConnection
from weft.objects.errors import InvalidInput, describe_failure

PREFIX = "otlp="
SECONDS, WHOLE_SECONDS = 5.0, 15.0  # of one silence; of one request
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
    """Collector at ``url``. Used by one thread."""

    def __init__(self, url: str) -> None:
        self._url = url

    def post(self, document: object) -> tuple[str, bool]:
        """Why it must be sent again ("": it mustn't), and whether the collector will never take it."""
        body, headers, clock = msgspec.json.encode(document), {"Content-Type": "application/json"}, SystemClock()
        try:
            with closing(HttpConnection(self._url, silence_seconds=SECONDS, clock=clock)) as connection:
                ends = clock.elapsed() + WHOLE_SECONDS
                status = connection.begin("POST", self._url, body, headers, ends=ends, most_bytes=0).status
        except FAILURES as problem:
            return describe_failure(problem), False
        if status in _AGAIN:
            return f"HTTP {status}", False
        return "", status >= 300
