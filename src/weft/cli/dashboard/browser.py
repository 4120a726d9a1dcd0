"""The browser that a relay serves: a link signs one in, once; after that a cookie does. Pure, but for the random words.

Other users of this machine, and pages of other sites, reach its loopback as well. So every request must name the relay as its host
(DNS rebinding), come with the cookie, and not come from another site's page (Fetch Metadata; a header that only own pages can add).
"""

from __future__ import annotations

import hmac
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from weft.cli.dashboard.head import Head
from weft.objects.errors import Forbidden, NotAuthenticated

KEY = "key"


class Browser:
    """``port`` is the relay's."""

    def __init__(self, port: int) -> None:
        self._hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        self._cookie = f"weft-dashboard-{port}"
        self._key, self._session = secrets.token_urlsafe(24), ""

    @property
    def link(self) -> str:
        """The path and query that sign a browser in."""
        return f"/?{KEY}={self._key}"

    def sign_in(self, head: Head) -> str | None:
        """The Set-Cookie for a browser that brings the link's key, which no longer counts then; None for other requests. Raises
        Forbidden for a key that doesn't count, and where no browser's window opens the link."""
        self._require_host(head)
        if head.path != "/" or f"{KEY}=" not in head.target:
            return None
        given = parse_qs(head.target.partition("?")[2]).get(KEY, [""])[0]
        if not self._key or not hmac.compare_digest(given.encode(), self._key.encode()):
            if self._knows(head):
                return ""
            raise Forbidden("this link was used already", hint="use the newest link that weft dashboard has printed")
        if head.headers.get("sec-fetch-mode", "navigate") != "navigate" or "sec-fetch-mode" not in head.headers:
            raise Forbidden("this link is for a browser", hint="open it in one")
        self._key, self._session = secrets.token_urlsafe(24), secrets.token_urlsafe(32)
        return f"{self._cookie}={self._session}; Path=/; HttpOnly; SameSite=Strict"

    def sign_out(self) -> None:
        self._session = ""

    def check(self, head: Head) -> None:
        """Raises NotAuthenticated, or Forbidden (crossSite)."""
        self._require_host(head)
        if not self._knows(head):
            raise NotAuthenticated("this browser isn't signed in", hint="open the link that weft dashboard has printed")
        site, origin = head.headers.get("sec-fetch-site", ""), head.headers.get("origin", "")
        own = tuple(f"http://{host}" for host in self._hosts)
        if site == "cross-site" or site == "same-site" or (origin and origin not in own):
            raise Forbidden("a page of another site sent this request", reason="crossSite")
        if not head.is_safe and "x-weft-csrf" not in head.headers:
            raise Forbidden("the request lacks the header X-Weft-CSRF", reason="crossSite")

    def _require_host(self, head: Head) -> None:
        if head.headers.get("host", "") not in self._hosts:
            raise Forbidden(f"the dashboard is at http://{self._hosts[0]}/ only", reason="crossSite")

    def _knows(self, head: Head) -> bool:
        try:
            cookie = SimpleCookie(head.headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return False
        return (
            bool(self._session)
            and cookie is not None
            and hmac.compare_digest(cookie.value.encode(), self._session.encode())
        )
