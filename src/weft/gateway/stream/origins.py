"""Pages that may open web sockets: a browser, and only a browser, sends the page's origin in ``Origin``. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from urllib.parse import urlsplit

from weft.objects.errors import Forbidden, InvalidInput

_PORTS = {"https": 443, "http": 80}


class Origins:
    """Pages of ``allowed`` may, and those of the server itself: of the request's host, at the same port or one of ``api_ports``.
    At its other ports that host may serve strangers' pages, such as functions' answers.

    Raises InvalidInput for an allowed origin that can't be read."""

    def __init__(self, api_ports: Iterable[int] = (), allowed: Iterable[str] = ()) -> None:
        self._api_ports = tuple(api_ports)
        self._allowed = frozenset(read_origin(text) for text in allowed)

    def check(self, origin: str | None, host: str) -> None:
        """Raise Forbidden if a page of ``origin`` may not connect; None comes from a program. ``host`` is the request's Host."""
        if origin is None:
            return
        with contextlib.suppress(InvalidInput):  # such as "null", of a page without an origin
            page = read_origin(origin)
            if page in self._allowed:
                return
            scheme, name, port = read_origin(f"https://{host}")
            if page in ((scheme, name, own) for own in (port, *self._api_ports)):
                return
        raise Forbidden(
            f"pages of {origin[:80]} may not open web sockets here",
            hint="weft server --allow-origin names those that may",
        )


def read_origin(text: str) -> tuple[str, str, int]:
    """Scheme, host and port of an origin like ``https://10.0.0.1:8443``. Raises InvalidInput."""
    try:
        url = urlsplit(text)
        port = url.port or _PORTS[url.scheme]
        if not url.hostname or "@" in url.netloc or url.path or url.query or url.fragment:
            raise ValueError(text)
    except (ValueError, KeyError):
        raise InvalidInput(
            f"{text[:80]!r} is not an origin of pages", field="origin", hint="write it like https://novnc.example:6080"
        ) from None
    return url.scheme, url.hostname, port
