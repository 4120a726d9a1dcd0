"""The cookie of a browser's session, and the checks that keep other sites from using it. Pure.

No script reads it, no other host sets it, and it goes only over TLS and with no request that another site began. Beside that, what
comes with it must come from a page of this very origin: ports of one host count as one site, but not as one origin. Browsers send
cookies to every port of a host, where guests' published ports may be, so the cookie has a part of the token only: the rest is the
session's page key, which the page keeps where only pages of its own origin read it, and sends with each request.
"""

from __future__ import annotations

from weft.api.request.call import Call
from weft.objects.errors import Forbidden, NotAuthenticated

NAME = "__Host-weft"  # the prefix: browsers take it only over TLS, for this host alone, and for all its paths
HEADER = "x-weft-csrf"  # which no page of another origin may send; it has the page key
KEY_LETTERS = 32  # half of the token's secret, 128 random bits
_ATTRIBUTES = "Path=/; Secure; HttpOnly; SameSite=Strict"
_LONGEST = 200


def read_cookie(call: Call) -> str:
    """Value of the session's cookie; "" if there is none. Raises NotAuthenticated for two of them."""
    found = [
        value
        for part in call.request.header(b"cookie").split(";")
        for name, sign, value in [part.strip().partition("=")]
        if sign and name == NAME
    ]
    if len(found) > 1:
        raise NotAuthenticated("the request has two cookies of a session", hint="log in again")
    return found[0][:_LONGEST] if found else ""


def write_cookie(value: str, seconds: float) -> tuple[str, str]:
    """The header that gives the browser the session's cookie; with an empty value it takes it away."""
    return "set-cookie", f"{NAME}={value}; {_ATTRIBUTES}; Max-Age={max(0, int(seconds)) if value else 0}"


def split_token(token: str) -> tuple[str, str]:
    """Split a session's token into the part in its cookie, and the page key. Neither of them is enough to guess the other by."""
    return token[:-KEY_LETTERS], token[-KEY_LETTERS:]


def join_token(call: Call, cookie: str) -> str:
    """The session's token. Raises Forbidden unless a page of this origin sent the request."""
    if call.method != "GET":
        check_origin(call)
    elif call.request.header(b"sec-fetch-site") in ("cross-site", "same-site"):
        raise _refuse("a page of another origin")
    if len(key := call.request.header(HEADER.encode())) != KEY_LETTERS:
        raise _refuse(f"something that doesn't send the session's page key in {HEADER}")
    return cookie + key


def check_origin(call: Call) -> None:
    """Raise Forbidden unless the browser says that a page of this origin sent the request."""
    site, origin = call.request.header(b"sec-fetch-site"), call.request.header(b"origin")
    if site == "same-origin" or (not site and origin and origin == own_origin(call)):
        return
    raise _refuse("a page of another origin" if site or origin else "something that names no origin")


def own_origin(call: Call) -> str:
    """The origin of this server's pages, as the client names it; "" for a client that names no host."""
    host = call.request.header(b"host")
    return f"https://{host}" if host else ""


def _refuse(sender: str) -> Forbidden:
    return Forbidden(
        f"the request comes from {sender}: a session counts only for the dashboard's own pages",
        reason="crossSite",
        hint="programs use a token: Authorization: Bearer weft_…",
    )
