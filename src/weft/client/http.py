"""HTTPS for weft's own clients, on the standard library alone: what starts a CLI fast keeps an agent small.

Blocking; may be used from several threads. Connections are kept and used again. A request is sent anew only when that
can do no harm: nothing of it was sent, or it is a read, or it carries an Idempotency-Key.
"""

from __future__ import annotations

import hashlib
import http.client
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from weft.client.context import Context
from weft.client.skew import HEADER
from weft.contracts.clock import Clock, SystemClock
from weft.objects.errors import InvalidInput, NotAuthenticated, Unavailable, WeftError, error_from_dict

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
_MOST_IDLE = 8
_SAFE = ("GET", "HEAD", "PUT")
_IN_PATHS = "/?&=%:,()!~*'+@;$#[]"
_encoder = msgspec.json.Encoder()


class Answer(msgspec.Struct, frozen=True):
    """A whole response; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as plain data; raises WeftError when it is no JSON."""
        try:
            return msgspec.json.decode(self.body) if self.body else None
        except msgspec.DecodeError as problem:
            raise WeftError(f"the server's answer is not JSON: {problem}") from problem


class Stream:
    """A response that is read piece by piece; closes its connection at the end of ``with``."""

    def __init__(self, connection: _Connection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response
        self.status = response.status
        self.headers = _headers(response)

    def lines(self) -> Iterator[bytes]:
        """Each line without its end, as it comes. Raises Unavailable when the connection is lost before the end."""
        while True:
            line = self._take(self._response.readline)
            if not line:
                return
            if not line.endswith(b"\n"):
                raise Unavailable("the server's answer broke off")
            yield line[:-1]

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; empty at the end. Raises Unavailable when the connection is lost before."""
        return self._take(lambda: self._response.read1(size))

    def limit_silence(self, seconds: float) -> None:
        """Wait at most so long for the next piece; then the stream raises Unavailable and is of no more use."""
        if self._connection.sock is not None:
            self._connection.sock.settimeout(seconds)

    def _take(self, read: Any) -> bytes:
        try:
            return bytes(read())
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as problem:
            # the last two are what http.client makes of a connection that another thread closed
            raise _lost(problem).error from problem

    def close(self) -> None:
        self._connection.hang_up()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Http:
    """Requests to one server. ``timeout_seconds`` bounds each silence of the server's; ``patience_seconds`` is how long
    a request goes on dialling while nobody answers."""

    def __init__(
        self,
        context: Context,
        *,
        timeout_seconds: float = 30.0,
        patience_seconds: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        parts = urlsplit(context.server)
        if parts.scheme != "https" or not parts.hostname:
            raise InvalidInput(
                f"server {context.server!r} is not an https URL",
                field="server",
                hint="write it like https://10.0.0.1:6443",
            )
        self.server = context.server.rstrip("/")
        self._host, self._port = parts.hostname, parts.port or 443
        self._name = context.server_name or self._host
        self._tls = make_tls(context)
        self._headers = {"User-Agent": "weft"}
        if context.token:
            self._headers["Authorization"] = f"Bearer {context.token}"
        self._timeout_seconds = timeout_seconds
        self._patience_seconds = patience_seconds
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._closed = threading.Event()
        self.on_version: Callable[[str], None] = lambda version: None  # called when the server's version is another
        self._version = ""

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> Answer:
        """Send ``body`` (bytes, or what becomes JSON) to ``path`` and give back the answer, whatever its status.

        Raises Unavailable when the server can't be reached, NotAuthenticated when its certificate isn't trusted."""
        sent = _Request(method, path, body, {**self._headers, **(headers or {})})
        deadline = self._clock.elapsed() + self._patience_seconds
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return self._exchange(sent, timeout_seconds or self._timeout_seconds)
            except _Lost as lost:
                may_repeat = sent.repeatable or not lost.sent
                if not may_repeat or self._clock.elapsed() + pause > deadline or self._closed.wait(pause):
                    raise lost.error from lost
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def stream(self, method: str, path: str, *, headers: Mapping[str, str] | None = None) -> Stream:
        """Begin a request whose answer has no foreseeable end (or is large). Raises the problem the server answered
        with, or Unavailable. Use with ``with``."""
        try:
            connection = self._dial(self._timeout_seconds)
            try:
                response = connection.exchange(_Request(method, path, None, {**self._headers, **(headers or {})}))
                self._note_version(_headers(response))
                if response.status >= 400:
                    raise_problem(Answer(response.status, _headers(response), response.read()))
            except BaseException:
                connection.hang_up()
                raise
        except _Lost as lost:
            raise lost.error from lost
        except (OSError, http.client.HTTPException) as problem:
            raise _lost(problem).error from problem
        return Stream(connection, response)

    def close(self) -> None:
        """Hang up every connection, also those that other threads are reading from; they get Unavailable."""
        self._closed.set()
        with self._lock:
            connections = list(self._open)
            self._idle.clear()
        for connection in connections:
            connection.hang_up()

    @property
    def closed(self) -> threading.Event:
        """Set once ``close`` was called: what waits between requests waits on this."""
        return self._closed

    def _exchange(self, request: _Request, timeout_seconds: float) -> Answer:
        connection = self._take_idle(timeout_seconds)
        if connection is not None:
            try:
                return self._converse(connection, request)
            except _Lost as lost:
                if lost.sent and not request.repeatable:
                    raise
        return self._converse(self._dial(timeout_seconds), request)

    def _converse(self, connection: _Connection, request: _Request) -> Answer:
        try:
            response = connection.exchange(request)
            try:
                answer = Answer(response.status, _headers(response), response.read())
            except (OSError, http.client.HTTPException) as problem:
                raise _lost(problem) from problem
        except BaseException:
            connection.hang_up()
            raise
        self._note_version(answer.headers)
        if response.will_close or self._closed.is_set():
            connection.hang_up()
        else:
            with self._lock:
                keep = len(self._idle) < _MOST_IDLE
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.hang_up()
        return answer

    def _note_version(self, headers: Mapping[str, str]) -> None:
        version = headers.get(HEADER, "")
        if version and version != self._version:
            self._version = version
            self.on_version(version)

    def _take_idle(self, timeout_seconds: float) -> _Connection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.is_quiet():
                connection.sock.settimeout(timeout_seconds)
                return connection
            connection.hang_up()

    def _dial(self, timeout_seconds: float) -> _Connection:
        if self._closed.is_set():
            raise Unavailable("the client is closed")
        connection = _Connection(self._host, self._port, self._name, self._tls, timeout_seconds, self._forget)
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as problem:
            raise NotAuthenticated(
                f"the server at {self.server} is not the one this context trusts: {problem.verify_message}",
                hint="check the context's ca and server, or WEFT_CONTEXT",
            ) from problem
        except OSError as problem:
            connection.close()
            raise _Lost(
                Unavailable(
                    f"no weft server answers at {self.server}: {_words(problem)}",
                    hint="is it running? make up starts a local one",
                ),
                sent=False,
            ) from problem
        with self._lock:
            self._open.add(connection)
        if self._closed.is_set():
            connection.hang_up()
        return connection

    def _forget(self, connection: _Connection) -> None:
        with self._lock:
            self._open.discard(connection)


class _Request:
    def __init__(self, method: str, path: str, body: Any, headers: dict[str, str]) -> None:
        self.method = method
        self.path = quote(path, safe=_IN_PATHS)
        self.body = body if body is None or isinstance(body, bytes) else _encoder.encode(body)
        self.headers = headers
        if self.body is not None:
            headers.setdefault("Content-Type", "application/json")
        self.repeatable = method in _SAFE or "Idempotency-Key" in headers


class _Lost(Exception):
    """The exchange failed under way; ``sent`` says whether the server may have got the request."""

    def __init__(self, error: Unavailable, *, sent: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.sent = sent


def _lost(problem: BaseException) -> _Lost:
    return _Lost(Unavailable(f"the connection to the server was lost: {_words(problem)}"), sent=True)


class _Connection(http.client.HTTPConnection):
    auto_open = 0  # one that was hung up stays so

    def __init__(
        self, host: str, port: int, name: str, tls: ssl.SSLContext, timeout_seconds: float, forget: Any
    ) -> None:
        super().__init__(host, port, timeout=timeout_seconds)
        self._name = name
        self._tls = tls
        self._forget = forget

    def connect(self) -> None:
        super().connect()
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._name)

    def exchange(self, request: _Request) -> http.client.HTTPResponse:
        """Send a whole request and read the head of its answer. Raises _Lost."""
        try:
            self.request(request.method, request.path, request.body, request.headers)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            # a server that refuses a body before it has read it may have answered all the same
            pass
        except (OSError, http.client.HTTPException) as problem:
            raise _lost(problem) from problem
        try:
            return self.getresponse()
        except (OSError, http.client.HTTPException, ValueError) as problem:
            raise _lost(problem) from problem

    def is_quiet(self) -> bool:
        """Nothing has come since the last answer; a server that hung up would have left its goodbye."""
        if self.sock is None:
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def hang_up(self) -> None:
        """Close now, even while another thread reads: a mere close would leave it waiting."""
        self._forget(self)
        if self.sock is not None:
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self.close()


def make_tls(context: Context) -> ssl.SSLContext:
    """What a connection to the context's server must satisfy. Raises InvalidInput for unreadable certificates."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if context.ca:
            tls.load_verify_locations(cadata=context.ca)
        else:
            tls.load_default_certs()
        if context.certificate:
            tls.load_cert_chain(context.certificate, context.key or None)
    except (OSError, ValueError) as problem:
        raise InvalidInput(f"the context's certificates can't be used: {problem}", field="ca") from problem
    return tls


def raise_problem(answer: Answer) -> None:
    """Raise the error that an answer of status ≥ 400 carries; its request id stands in ``details``."""
    if answer.status < 400:
        return
    try:
        problem = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        problem = None
    if not isinstance(problem, dict) or "reason" not in problem:
        raise WeftError(f"the server answered with HTTP status {answer.status}", details={"status": answer.status})
    error = error_from_dict(problem)
    if problem.get("request_id"):
        error.details = {**error.details, "request_id": problem["request_id"]}
    raise error


def fetch_ca(server: str, sha256: str, *, timeout_seconds: float = 10.0) -> str:
    """The CA certificate (PEM) that the server at ``server`` shows and whose SHA-256 is ``sha256``.

    The first contact of a machine that knows nothing else yet: nothing is sent. Raises NotAuthenticated if the server
    shows no such certificate, Unavailable if it can't be reached."""
    parts = urlsplit(server)
    if parts.scheme != "https" or not parts.hostname:
        raise InvalidInput(f"server {server!r} is not an https URL", field="server")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((parts.hostname, parts.port or 443), timeout_seconds) as plain,
            tls.wrap_socket(plain) as sock,
        ):
            shown = _shown_certificates(sock)
    except OSError as problem:
        raise Unavailable(f"no weft server answers at {server}: {_words(problem)}") from problem
    for certificate in shown:
        if hashlib.sha256(certificate).hexdigest() == sha256.lower().replace(":", ""):
            return ssl.DER_cert_to_PEM_cert(certificate)
    raise NotAuthenticated(
        f"the server at {server} does not belong to the CA with SHA-256 {sha256[:16]}…",
        field="ca_sha256",
        hint="copy the whole command that weft token create --join printed",
    )


def _shown_certificates(sock: ssl.SSLSocket) -> list[bytes]:
    ask = getattr(sock, "get_unverified_chain", None)  # public from Python 3.13 on
    if ask is not None:
        return [bytes(certificate) for certificate in ask()]
    chain = sock._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in chain or ()]


def _headers(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def _words(problem: BaseException) -> str:
    if isinstance(problem, TimeoutError):
        return "no answer in time"
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror.lower() if not isinstance(problem, ssl.SSLError) else problem.strerror
    return str(problem) or type(problem).__name__
