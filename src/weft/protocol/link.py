"""The messages between the API servers of two linked clusters, and the text of a link token. What comes from the other side is
checked by ``kinds/fields/cluster/link.py``, and is never taken for a name or a path here."""

from __future__ import annotations

import re

import msgspec

# Of links: which messages there are, and what they mean. A cluster speaks all from the first to the second.
OLDEST, NEWEST = 1, 1
PROJECT_HEADER = "weft-project"  # of a request over a link: the project of the cluster that asks, for which it does
PATH = "/v1/link"  # POST with a link token: link; GET with the token of a link: hello
_TEXT = re.compile(r"(weft_[a-z0-9][-a-z0-9]{0,62}_[0-9a-f]{64})\.([0-9a-f]{64})")


class LinkInput(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /v1/clusters/{name}:link``: what people want at the cluster that begins the link."""

    url: str  # where the other cluster's API server is
    token: str  # the link token, as the other cluster printed it
    own_url: str  # where this cluster's API server is, as the other one reaches it
    grants: list[str] | None = None  # what the other cluster may do here; None: what it may already
    projects: dict[str, str] | None = None  # each one here with the one there; None: those that the link has

    def __repr__(self) -> str:
        return "LinkInput(…)"


class AcceptInput(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /v1/link``: what the cluster that begins the link says of itself. The secret itself stays there."""

    ca: str  # PEM; its uid follows from it
    url: str
    token_id: str  # the name that the token has there, with which this one's cluster asks
    sha256: str  # of the secret with which it will ask here
    release: str
    epoch: str  # the history of its store
    oldest: int  # protocols of links that it speaks
    newest: int


class AcceptAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer, in the same words; ``name`` is what the other cluster is called there."""

    name: str
    ca: str
    token_id: str
    sha256: str
    release: str
    epoch: str
    protocol: int  # the newest that both speak


class HelloAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``GET /v1/link``: how the cluster is that was asked."""

    uid: str
    release: str
    epoch: str
    oldest: int
    newest: int
    now: float  # unix seconds, by its clock
    seen_seconds: float | None = None  # since the asking cluster last answered it; None: never
    phase: str = ""  # of the asking cluster, there
    servers: list[str] = []  # URLs of its servers, if it has several


def write_link_token(token: str, ca_sha256: str) -> str:
    """The text that people carry: the secret, and the digest of the CA that the server must show before the secret is sent."""
    return f"{token}.{ca_sha256}"


def read_link_token(text: str) -> tuple[str, str] | None:
    """The token and the CA's digest; None for any other text."""
    match = _TEXT.fullmatch(text.strip())
    return None if match is None else (match[1], match[2])


def choose_protocol(oldest: int, newest: int) -> int:
    """The newest protocol that both sides speak; 0: there is no such."""
    common = min(newest, NEWEST)
    return common if common >= max(oldest, OLDEST) else 0
