"""The API of another cluster, over a link. Blocking; usable from threads.

Who answers there may be anyone who got hold of that cluster: answers are bounded in size, depth and time, and none of its words
stands for a name or a path here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from weft.client.answer import ClientAnswer
from weft.client.api import Client
from weft.client.connection import ClientRequest
from weft.client.context import Context
from weft.client.http import Http
from weft.client.tls import fetch_ca
from weft.objects.errors import AlreadyExists, InvalidInput, NotAuthenticated, Unavailable, WeftError
from weft.objects.identity import SERVER_NAME
from weft.protocol.link import PATH, PROJECT_HEADER, AcceptAnswer, AcceptInput, HelloAnswer
from weft.trust.redaction import hide_in_text

MOST_ANSWER_BYTES = 1 << 20
MOST_HELLO_BYTES = 64 << 10
MOST_TEXT = 300  # characters of what the other cluster says
SILENCE_SECONDS = 5.0
HELLO_SECONDS, MOST_SECONDS = 8.0, 60.0
T = TypeVar("T")


class PeerLink(msgspec.Struct, frozen=True):
    """How another cluster is reached: its API server's URL, its CA (PEM), the token with which this cluster asks, and the URLs of
    its other servers."""

    name: str  # here
    url: str
    ca: str
    token: str
    others: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"PeerLink({self.name!r}, …)"

    @property
    def context(self) -> Context:
        others = list(self.others)
        return Context(server=self.url, ca=self.ca, token=self.token, server_name=SERVER_NAME, others=others)


class PeerClient(Client):
    """The API of another cluster, for one thread. It says of each request which project of this cluster it is for, which the
    other one compares with its own link."""

    def __init__(self, context: Context, own_project: str = "", **given: Any) -> None:
        super().__init__(context, **given)
        self._own_project = own_project
        self.http.on_request = self._name_project

    def ask_for(self, own_project: str) -> PeerClient:
        """The same client, whose next requests are for this project here."""
        self._own_project = own_project
        return self

    def _name_project(self, request: ClientRequest) -> None:
        request.headers[PROJECT_HEADER] = self._own_project


def connect_peer(
    link: PeerLink,
    *,
    timeout_seconds: float = SILENCE_SECONDS,
    most_answer_bytes: int = MOST_ANSWER_BYTES,
    most_seconds: float = MOST_SECONDS,
) -> PeerClient:
    """The other cluster's API, with the rights that the link has there. Its methods raise as ``Client``'s do; an answer of more
    than ``most_answer_bytes``, or a request that takes longer than ``most_seconds``, raises Unavailable. Close it."""
    return PeerClient(
        link.context,
        timeout_seconds=timeout_seconds,
        most_answer_bytes=most_answer_bytes,
        most_seconds=most_seconds,
    )


def ask_hello(link: PeerLink, *, seconds: float = HELLO_SECONDS) -> HelloAnswer:
    """How the other cluster is, within ``seconds``. Raises NotAuthenticated (``linkRefused``) if it doesn't take the token any
    more, InvalidInput with ``wrongCa`` if another answers there, with ``linkProtocol`` if it knows no links; Unavailable."""
    with _connect(link.context, seconds) as http:
        answer = http.request("GET", PATH)
    if answer.status in (401, 403):
        raise NotAuthenticated(f"{link.name} doesn't accept this cluster's token any more", reason="linkRefused")
    _refuse_status(answer, link.name)
    return _read(answer, HelloAnswer, link.name)


def begin_link(url: str, token: str, ca: str, offer: AcceptInput, *, seconds: float = 20.0) -> AcceptAnswer:
    """Show the link token and ``offer`` to the cluster at ``url``, whose CA is ``ca``. Raises InvalidInput or AlreadyExists
    if that refuses it, Unavailable."""
    with _connect(Context(server=url, ca=ca, token=token, server_name=SERVER_NAME), seconds) as http:
        answer = http.request("POST", PATH, msgspec.to_builtins(offer))
    if 400 <= answer.status < 500 and (refusal := _read_refusal(answer)) is not None:
        raise refusal
    _refuse_status(answer, "the other cluster")
    return _read(answer, AcceptAnswer, "the other cluster")


def find_ca(url: str, sha256: str) -> str:
    """The CA (PEM) with this digest that the server at ``url`` shows; nothing is sent. Raises InvalidInput (``wrongCa``),
    Unavailable."""
    try:
        return fetch_ca(url, sha256, timeout_seconds=SILENCE_SECONDS)
    except NotAuthenticated:
        raise InvalidInput(
            f"the server at {url} is not of the cluster that made the link token: it has another CA",
            reason="wrongCa",
            field="url",
            hint="check the address; weft cluster link-token makes another token there",
        ) from None


@contextlib.contextmanager
def _connect(context: Context, seconds: float) -> Iterator[Http]:
    """Requests that end after ``seconds``, however slowly the answer comes."""
    http = Http(
        context,
        timeout_seconds=min(seconds, SILENCE_SECONDS),
        most_answer_bytes=MOST_HELLO_BYTES,
        most_seconds=seconds,
    )
    try:
        yield http
    except NotAuthenticated as problem:
        if problem.token == "certificateExpired":
            raise
        raise InvalidInput(
            f"who answers at {context.server} is not the cluster of the link: it has another CA",
            reason="wrongCa",
            field="url",
        ) from None
    finally:
        http.close()


def _refuse_status(answer: ClientAnswer, name: str) -> None:
    if answer.status == 404:
        raise InvalidInput(
            f"{name} doesn't know links: its release is older", reason="linkProtocol", hint="update that cluster"
        )
    if answer.status >= 400:
        raise Unavailable(f"{name} answers with HTTP status {answer.status}")


def _read(answer: ClientAnswer, type_: type[T], name: str) -> T:
    try:
        return msgspec.json.decode(answer.body, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidInput(
            f"the answer of {name} is not one of this release's", reason="linkProtocol", hint="update the older cluster"
        ) from None


def _read_refusal(answer: ClientAnswer) -> WeftError | None:
    """Why the other cluster refuses it, in its words; None if that isn't an error of weft's."""
    try:
        problem = msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if answer.status == 404 or not isinstance(problem, dict) or not isinstance(problem.get("message"), str):
        return None
    message, hint = (
        f"the other cluster refuses the link: {clip(problem['message'])}",
        clip(str(problem.get("hint") or "")),
    )
    if answer.status == 409:
        return AlreadyExists(message, field="name", hint=hint or None)
    return InvalidInput(message, field="token", hint=hint or None)


def clip(text: str) -> str:
    """Another cluster's words, for people: short, printable, and without what looks like a secret."""
    return hide_in_text("".join(one if one.isprintable() else " " for one in text[:MOST_TEXT]))
