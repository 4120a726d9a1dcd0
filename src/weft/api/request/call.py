"""One request as handlers see it: path, query, headers, actor, and a body that is read within bounds."""

from __future__ import annotations

import functools
import itertools
import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, unquote_to_bytes

import msgspec

from weft.api.route import Topic
from weft.objects.envelope import Envelope, show_revision
from weft.objects.errors import Forbidden, InvalidInput, TimedOut, TooLarge, UnknownField, WeftError
from weft.objects.json_text import decode_json
from weft.objects.schema import suggest
from weft.objects.spec_change import FieldChange
from weft.protocol.link import PROJECT_HEADER
from weft.serving.answer import Answer
from weft.serving.request import BodyLost, Request
from weft.trust.credentials import Actor
from weft.trust.peer import Peer

MAX_BODY_BYTES = 4_000_000
MAX_BULK_BYTES = 16_000_000
_PIECE_BYTES = 65536
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECRET = re.compile(r"(?<=_)[0-9a-f]{16,}")
_PROCESS = secrets.token_hex(4)  # the beginning of all request ids of this process; a number follows
_numbers = itertools.count(1)
JSON = (("content-type", "application/json"),)
_encoder = msgspec.json.Encoder()


class Change(NamedTuple):
    """A request's change to an object: for the audit log."""

    envelope: Envelope
    action: Literal["", "created", "updated", "unchanged", "deleting", "deleted"]
    changes: Sequence[FieldChange] = ()
    labels: dict[str, str] | None = None  # as they were, if they changed


class Call:
    """One HTTP request, before its answer begins."""

    problem: WeftError | None = None  # why it was refused or failed
    topic: Topic | None = None  # what it turned out to be about, where the path doesn't say it
    is_dry_run = False  # its handler does nothing: ``read_dry_run``
    began_at = 0.0  # in seconds of the monotonic clock
    known_actor: Actor | None = None  # from when the request is authenticated

    def __init__(self, request: Request) -> None:
        self.request = request
        self.method = "GET" if request.method == "HEAD" else request.method
        self.path = request.path
        given = request.header(b"x-request-id")
        self.request_id = given if given and _REQUEST_ID.fullmatch(given) else f"{_PROCESS}{next(_numbers):06x}"
        self.changed: list[Change] = []

    @property
    def actor(self) -> Actor:
        if self.known_actor is None:
            raise Forbidden("the request is not authenticated")
        return self.known_actor

    @property
    def shown_path(self) -> str:
        """The path for logs: in one line, and without a token that a client put there."""
        return _show(self.path[:1000])

    @property
    def wants_watch(self) -> bool:
        """Whether the request watches a collection."""
        return any(part in ("watch=1", "watch=true") for part in self.request.query.split("&"))

    @property
    def host(self) -> str:
        """This machine's address that the client connected to."""
        return self.request.host

    @property
    def bearer(self) -> str:
        """The Authorization header; "" if there is none."""
        return self.request.header(b"authorization")

    @property
    def asked_for(self) -> str:
        """The project of the linked cluster for which it asks; "" if it doesn't say."""
        return self.request.header(PROJECT_HEADER.encode())

    @property
    def peer(self) -> Peer | None:
        """The certificate of the connection, if it showed one of ours."""
        return self.request.peer

    @property
    def is_forwarded(self) -> bool:
        """Whether another server of the fabric asks: it gets what this one has itself."""
        return self.peer is not None and self.peer.server is not None

    @property
    def idempotency_key(self) -> str | None:
        """The client's Idempotency-Key, made unique for the actor and the path."""
        given = self.request.header(b"idempotency-key")
        if not given:
            return None
        if len(given) > 200:
            raise InvalidInput("Idempotency-Key is longer than 200 characters", field="Idempotency-Key")
        return f"{self.actor.kind}/{self.actor.id}/{self.method}/{self.path}/{given}"

    @property
    def loose_query(self) -> dict[str, str]:
        """The query's parameters, unknown ones too: rights depend on some, and are checked before the parameters are."""
        if not self.request.query:
            return {}
        return dict(parse_qsl(self.request.query, keep_blank_values=True, errors="replace"))

    def query(self, *known: str) -> dict[str, str]:
        """The query's parameters. Raises UnknownField for one that isn't in ``known``, InvalidInput for one that comes twice."""
        out: dict[str, str] = {}
        if not self.request.query:
            return out
        for name, value in parse_qsl(self.request.query, keep_blank_values=True, errors="replace"):
            if name not in known:
                meant = suggest(name, list(known))
                hint = f"did you mean {meant}?" if meant else "known: " + (", ".join(known) or "none")
                raise UnknownField(
                    f"query parameter {name[:60]!r} is not known at this path", field=name[:60], hint=hint
                )
            if name in out:
                raise InvalidInput(f"query parameter {name} is given twice", field=name)
            out[name] = value
        return out

    def read_dry_run(self) -> bool:
        """Whether the request only asks what would be done. For handlers that heed it: no dry run is in the audit log. Raises as
        ``query`` does."""
        self.is_dry_run = read_flag(self.query("dry_run"), "dry_run")
        return self.is_dry_run

    async def read_body(self, limit: int = MAX_BODY_BYTES) -> bytes:
        """The whole body. Raises TooLarge beyond ``limit`` bytes without reading on, TimedOut when it stops coming."""
        if not self.request.whole:
            self._refuse_announced(limit)
        body = await self._read()
        if not self.request.whole:
            pieces = bytearray(body)
            while body and len(pieces) <= limit:
                body = await self._read()
                pieces += body
            body = bytes(pieces)
        if len(body) > limit:
            raise _too_large(limit)
        return body

    async def read_pieces(self, limit: int) -> AsyncIterator[bytes]:
        """The body as it arrives, in pieces of a useful size. Raises as ``read_body`` does."""
        self._refuse_announced(limit)
        piece = bytearray()
        while body := await self._read():
            piece += body
            if len(piece) > limit:
                raise _too_large(limit)
            if len(piece) >= _PIECE_BYTES:
                limit -= len(piece)
                yield bytes(piece)
                piece.clear()
        yield bytes(piece)

    async def _read(self) -> bytes:
        try:
            return await self.request.read()
        except BodyLost:
            raise TimedOut("the request's body is incomplete") from None

    def _refuse_announced(self, limit: int) -> None:
        announced = self.request.header(b"content-length")
        if announced.isdecimal() and int(announced[:19]) > limit:
            raise _too_large(limit)

    async def read_object(self, limit: int = MAX_BODY_BYTES) -> dict[str, Any]:
        """The body as a JSON object; an empty body is an empty object. Raises InvalidInput for anything else."""
        body = await self.read_body(limit)
        if not body.strip():
            return {}
        try:
            found = decode_json(body)
        except RecursionError:
            raise InvalidInput(
                "the body is nested too deeply", hint="weft's objects are at most ten levels deep"
            ) from None
        except (msgspec.DecodeError, UnicodeError) as problem:
            raise InvalidInput(f"the body is not JSON: {problem}", hint="send a JSON object") from None
        if not isinstance(found, dict):
            raise InvalidInput("the body must be a JSON object", hint='like {"name": "web", "spec": {}}')
        return found


@functools.lru_cache(64)  # the log and the audit log both show it
def _show(path: str) -> str:
    if "%" in path:
        path = unquote(path)
    if not (path.isascii() and path.isprintable()):
        path = path.encode("unicode_escape").decode()
    return (_SECRET.sub("…", path) if "_" in path else path)[:200]


def read_segments(path: str) -> list[str]:
    """The path's parts after the leading slash, each decoded on its own, so that %2F is no separator."""
    parts = path.split("/")[1:]
    if "%" not in path:
        return parts
    return [unquote_to_bytes(part).decode("utf-8", "replace") for part in parts]


def read_flag(query: Mapping[str, str], name: str) -> bool:
    """A yes-or-no parameter: 1 or true, 0 or false or absent. Raises InvalidInput."""
    value = query.get(name, "0")
    if value not in ("0", "1", "true", "false", ""):
        raise InvalidInput(f"query parameter {name}: {value[:20]!r} is neither 1 nor 0", field=name)
    return value in ("1", "true")


def read_count(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    """A parameter that is a whole number between 0 and ``most``. Raises InvalidInput."""
    text = query.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 16 and int(text) <= most):
        raise InvalidInput(
            f"query parameter {name}: {text[:20]!r} is not a number from 0 to {most}",
            field=name,
            hint="give a whole number, or leave it out",
        )
    return int(text)


def read_seconds(query: Mapping[str, str], name: str, default: float) -> float:
    """A parameter that is a number of seconds. Raises InvalidInput."""
    text = query.get(name)
    try:
        number = default if text is None else float(text[:40])
    except ValueError:
        number = -1.0
    if not 0.0 <= number < 1e11:
        raise InvalidInput(f"query parameter {name}: {(text or '')[:40]!r} is not a number of seconds", field=name)
    return number


def json_answer(content: Any, status: int = 200) -> Answer:
    return Answer(status, _encoder.encode(content), JSON)


def object_answer(envelope: Envelope, status: int = 200, **more: Any) -> Answer:
    """A whole object, with its revision as ETag; ``more`` stands beside its fields."""
    body = _encoder.encode(envelope)
    if more:
        body = body[:-1] + b"," + _encoder.encode(more)[1:]
    return Answer(status, body, (*JSON, ("etag", f'"{envelope.revision}"')) if envelope.revision else JSON)


def stored_answer(value: bytes, revision: int) -> Answer:
    """A whole object, as it is stored."""
    return Answer(200, show_revision(value, revision), (*JSON, ("etag", f'"{revision}"')))


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than {limit} bytes", hint="send fewer objects in one request")


def list_accepted(call: Call) -> set[str]:
    """The encodings that the client takes beside plain bytes: gzip, br."""
    words = call.request.header(b"accept-encoding").lower().split(",")
    return {word.partition(";")[0].strip() for word in words if not word.replace(" ", "").endswith(";q=0")}
