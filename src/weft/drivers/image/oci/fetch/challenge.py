"""A registry's demand for credentials (``WWW-Authenticate``), and the answer to it. Pure.

Source: RFC 9110 section 11.6, and the token authentication of the distribution project.
"""

from __future__ import annotations

import base64
import re
from urllib.parse import urlencode, urlsplit

import msgspec

from weft.contracts.driver.image import RegistryCredentials

_LONGEST = 4096
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9._-]*)(?:\s+|$)")
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z_]+)\s*=\s*(?:"([^"\\]*)"|([^\s,"]+))')


class Challenge(msgspec.Struct, frozen=True):
    scheme: str
    parameters: dict[str, str] = {}


def read_challenges(headers: list[str]) -> list[Challenge]:
    """Those that can be understood; schemes and names of parameters in lower case."""
    found = []
    for header in headers:
        rest = header[:_LONGEST]
        while scheme := _SCHEME.match(rest):
            rest, parameters = rest[scheme.end() :], {}
            while parameter := _PARAMETER.match(rest):
                parameters[parameter[1].lower()] = parameter[2] if parameter[2] is not None else parameter[3]
                rest = rest[parameter.end() :]
            found.append(Challenge(scheme[1].lower(), parameters))
            rest = rest.lstrip(" ,")
    return found


def pick(challenges: list[Challenge]) -> Challenge | None:
    """The one to answer: a token of the registry's is better than name and password each time."""
    known = {one.scheme: one for one in reversed(challenges)}
    return known.get("bearer") or known.get("basic")


def token_url(challenge: Challenge, name: str, *, plain_http: bool) -> str | None:
    """The URL of a token for pulling ``name``; None where no password may be sent: not TLS, or not a URL."""
    realm = challenge.parameters.get("realm", "")
    try:
        parts = urlsplit(realm)
        usable = (
            bool(parts.hostname) and not parts.username and realm.isprintable() and realm.isascii() and " " not in realm
        )
    except ValueError:
        return None
    if not usable or parts.scheme not in (("https", "http") if plain_http else ("https",)):
        return None
    query = {"service": challenge.parameters["service"]} if "service" in challenge.parameters else {}
    query["scope"] = f"repository:{name}:pull"
    return f"{parts.scheme}://{parts.netloc}{parts.path or '/'}?{parts.query + '&' if parts.query else ''}{urlencode(query)}"


def basic(credentials: RegistryCredentials) -> str:
    named = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(named).decode()}"
