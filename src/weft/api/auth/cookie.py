"""The cookie of a browser's session, and the checks that keep other sites from using it. Pure.

No script reads it, no other host sets it, and it goes only over TLS and with no request that another site began. Beside that, what
comes with it must come from a page of this very origin: ports of one host count as one site, but not as one origin.
"""

from __future__ import annotations

from weft.api.request.call import Call
from weft.objects.errors import Forbidden, NotAuthenticated

NAME = "__Host-weft"  # the prefix: browsers take it only over TLS, for this host alone, and for all its paths
HEADER = "x-weft-csrf"  # which no page of another origin may send
_ATTRIBUTES = "Path=/; Secure; HttpOnly; SameSite=Strict"
_LONGEST = 200


def read_cookie(call: Call) -> str:
    """The token in the session's cookie; "" if there is none. Raises NotAuthenticated for two of them."""
    found = [
        value
        for part in call.request.header(b"cookie").split(";")
        for name, sign, value in [part.strip().partition("=")]
        if sign and name == NAME
    ]
    if len(found) > 1:
        raise NotAuthenticated("the request has two cookies of a session", hint="log in again")
    return found[0][:_LONGEST] if found else ""


def write_cookie(token: str, seconds: float) -> tuple[str, str]:
    """The header that gives the browser the session's cookie; with an empty token it takes it away."""
    return "set-cookie", f"{NAME}={token}; {_ATTRIBUTES}; Max-Age={max(0, int(seconds)) if token else 0}"


def check_site(call: Call) -> None:
    """Raise Forbidden unless a page of this origin, or the person, sent a request that has the cookie."""
    if call.method == "GET":
        if call.request.header(b"sec-fetch-site") in ("cross-site", "same-site"):
            raise _refuse("a page of another origin")
        return
    check_origin(call)
    if call.request.header(HEADER.encode()) != "1":
        raise _refuse(f"something that doesn't send the header {HEADER}: 1")


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
