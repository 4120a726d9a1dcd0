"""HTTPS for weft's own clients, with the standard library only, so that the CLI starts fast and the agent stays small.

Blocking; may be used from several threads. Connections are reused. A request is repeated only if that does no harm: nothing of it
was sent, or it is a read, or it carries an Idempotency-Key."""

from __future__ import annotations

import contextlib
import functools
import http.client
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from weft.client.answer import ClientAnswer, Stream, raise_problem, read_headers
from weft.client.connection import BROKEN, LOSS_SECONDS, ApiConnection, ClientRequest, Lost, make_lost
from weft.client.context import Context, is_in_clone
from weft.client.server.endpoints import AWAY_HEADER, CONNECT_SECONDS, SECOND_SECONDS, Endpoint, Endpoints
from weft.client.server.endpoints import HEADER as SERVERS
from weft.client.server.version_skew import HEADER
from weft.client.tls import explain_distrust, make_tls
from weft.contracts.clock import Clock, SystemClock
from weft.objects.errors import InvalidInput, NotAuthenticated, Unavailable, WeftError, describe_failure

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
_MOST_IDLE = 8
MOST_THROTTLED_SECONDS = 10.0  # that a request waits in all because its project makes too many


class Http:
    """Requests to one server, or to another one of the fabric while that doesn't answer. ``timeout_seconds`` bounds each silence of
    the server's; ``patience_seconds`` is how long a request keeps dialling while nobody answers; ``most_answer_bytes`` bounds
    what is read of one answer, and ``most_seconds`` the whole of one try, after which all connections are cut; None: nothing
    does. ``roams``: it goes to servers that answers name."""

    def __init__(
        self,
        context: Context,
        *,
        timeout_seconds: float = 30.0,
        patience_seconds: float = 0.0,
        clock: Clock | None = None,
        most_answer_bytes: int | None = None,
        most_seconds: float | None = None,
        roams: bool = True,
    ) -> None:
        self.server = context.server.rstrip("/")
        self.endpoints = Endpoints(context)
        self.tls = make_tls(context)
        self._headers = {"User-Agent": "weft"}
        if context.token:
            if not (
                context.token.isascii() and context.token.isprintable()
            ):  # http.client would repeat it in its error
                raise InvalidInput(
                    "the token has characters that no token has",
                    field="token",
                    hint="set WEFT_TOKEN to the token alone; weft login --server URL --user NAME makes a new one",
                )
            self._headers["Authorization"] = f"Bearer {context.token}"
        self._timeout_seconds = timeout_seconds
        self._most_answer_bytes, self._most_seconds, self._roams = most_answer_bytes, most_seconds, roams
        self._patience_seconds = patience_seconds
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._idle: list[ApiConnection] = []
        self._open: set[ApiConnection] = set()
        self._doubted: set[Endpoint] = set()  # took no connection in time, and may be frozen or only slow
        self._closed = threading.Event()
        self.on_servers: Callable[[list[str]], None] = lambda others: (
            None
        )  # called when other servers than before serve
        self.on_away: Callable[[list[str]], None] = lambda names: (
            None
        )  # called for an answer that lacks these servers' part
        self.on_version: Callable[[str], None] = lambda version: None  # called when the server's version is another
        self._version = ""
        # Before a request is sent; an error that it raises ends the request.
        self.on_request: Callable[[ClientRequest], None] = lambda request: None
        self.on_answer: Callable[[ClientRequest, int, Mapping[str, str], float], None] = lambda *answered: None

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
        answer_seconds: float | None = None,
    ) -> ClientAnswer:
        """Send ``body`` (bytes, or data for JSON) to ``path`` and return the answer, whatever its status. ``answer_seconds`` is
        the bound instead of ``timeout_seconds`` on a connection just made: a kept one may lead nowhere.

        Raises Unavailable when the server can't be reached (Unanswered: it was, and is silent), NotAuthenticated when its
        certificate isn't trusted."""
        sent = ClientRequest(method, path, body, {**self._headers, **(headers or {})})
        self.on_request(sent)
        return self._carry_out(sent, timeout_seconds or self._timeout_seconds, answer_seconds)

    def begin(self, path: str) -> Callable[[], ClientAnswer]:
        """Request ``path`` over a kept connection; the returned function waits for the answer, as ``request`` does. In between,
        the caller works while the server does."""
        sent = ClientRequest("GET", path, None, dict(self._headers))
        self.on_request(sent)
        connection = self._take_idle(self._timeout_seconds)
        if connection is None:
            return functools.partial(self._carry_out, sent, self._timeout_seconds)
        began = self._clock.elapsed()
        with contextlib.suppress(Lost):  # reported when the answer is missing
            connection.ask(sent)
        return functools.partial(self._finish, connection, sent, began)

    def _finish(self, connection: ApiConnection, sent: ClientRequest, began: float) -> ClientAnswer:
        try:
            answer = self._receive(connection)
        except Lost:
            return self._carry_out(sent, self._timeout_seconds)
        self.on_answer(sent, answer.status, answer.headers, self._clock.elapsed() - began)
        return answer if _find_wait(answer) is None else self._carry_out(sent, self._timeout_seconds)

    def _carry_out(
        self, sent: ClientRequest, timeout_seconds: float, answer_seconds: float | None = None
    ) -> ClientAnswer:
        if self._doubted:
            self._cut_doubted()
        deadline = self._clock.elapsed() + self._patience_seconds
        throttled_until = self._clock.elapsed() + MOST_THROTTLED_SECONDS
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                began = self._clock.elapsed()
                with self._bounded():
                    answer = self._exchange(sent, timeout_seconds, answer_seconds or timeout_seconds)
                self.on_answer(sent, answer.status, answer.headers, self._clock.elapsed() - began)
                wait = _find_wait(answer)
                if wait is None or self._clock.elapsed() + wait > throttled_until or self._closed.wait(wait):
                    return answer
            except Lost as lost:
                may_repeat = sent.repeatable or not lost.sent
                if not may_repeat or self._clock.elapsed() + pause > deadline or self._closed.wait(pause):
                    raise lost.error from lost
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def stream(self, method: str, path: str, *, headers: Mapping[str, str] | None = None) -> Stream:
        """Begin a request whose answer has no foreseeable end (or is large). Raises the problem the server answered
        with, or Unavailable. Use with ``with``."""
        sent = ClientRequest(method, path, None, {**self._headers, **(headers or {})})
        self.on_request(sent)
        began = self._clock.elapsed()
        try:
            connection, response = self._begin(sent)
            try:
                received = read_headers(response)
                self._note_version(received)
                self.on_answer(sent, response.status, received, self._clock.elapsed() - began)
                if response.status >= 400:
                    raise_problem(ClientAnswer(response.status, read_headers(response), self._read(response)))
            except BaseException:
                connection.hang_up()
                raise
        except Lost as lost:
            raise lost.error from lost
        except BROKEN as problem:
            raise make_lost(problem).error from problem
        return Stream(connection, response)

    def close(self) -> None:
        """Hang up every connection, also those that other threads are reading from; they get Unavailable."""
        self._closed.set()
        with self._lock:
            idle, self._idle = self._idle, []
            used = self._open.difference(idle)
        for connection in idle:
            connection.hang_up()
        for connection in used:
            connection.cut()

    def leave_server(self) -> bool:
        """Ask another server first from now on. Returns whether one is known."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.hang_up()
        return self.endpoints.leave()

    @property
    def closed(self) -> threading.Event:
        """Set once ``close`` was called: pauses between requests wait on it."""
        return self._closed

    def _begin(self, request: ClientRequest) -> tuple[ApiConnection, http.client.HTTPResponse]:
        """Send ``request``, over a kept connection if one is still open; the head of the answer."""
        connection = self._take_idle(self._timeout_seconds)
        if connection is not None:
            try:
                return connection, self._send(connection, request)
            except Lost as lost:
                if lost.sent and not request.repeatable:
                    raise
        connection = self._dial(self._timeout_seconds)
        return connection, self._send(connection, request)

    def _send(self, connection: ApiConnection, request: ClientRequest) -> http.client.HTTPResponse:
        try:
            connection.ask(request)
            return connection.receive()
        except BaseException:
            connection.hang_up()
            raise

    def _exchange(self, request: ClientRequest, timeout_seconds: float, answer_seconds: float) -> ClientAnswer:
        connection = self._take_idle(timeout_seconds)
        if connection is not None:
            try:
                return self._converse(connection, request)
            except Lost as lost:
                if lost.sent and not request.repeatable:
                    raise
        return self._converse(self._dial(timeout_seconds, answer_seconds), request)

    def _converse(self, connection: ApiConnection, request: ClientRequest) -> ClientAnswer:
        try:
            connection.ask(request)
        except BaseException:
            connection.hang_up()
            raise
        return self._receive(connection)

    def _receive(self, connection: ApiConnection) -> ClientAnswer:
        """The whole answer; the connection is kept for the next request."""
        try:
            response = connection.receive()
            try:
                answer = ClientAnswer(response.status, read_headers(response), self._read(response))
            except BROKEN as problem:
                raise make_lost(problem) from problem
        except BaseException:
            connection.hang_up()
            raise
        self._note_version(answer.headers)
        with self._lock:
            keep = not response.will_close and not self._closed.is_set() and len(self._idle) < _MOST_IDLE
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.hang_up()
        return answer

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        """The whole body. Raises Unavailable if it is longer than this client takes."""
        if self._most_answer_bytes is None:
            return response.read()
        body = response.read(self._most_answer_bytes + 1)
        if len(body) > self._most_answer_bytes:
            raise Unavailable(f"the answer is longer than {self._most_answer_bytes} bytes", reason="answerTooLong")
        if response.length or (response.length is None and not response.chunked):  # it was cut short, or may have been
            raise http.client.IncompleteRead(body)
        return body

    def _note_version(self, headers: Mapping[str, str]) -> None:
        """Take what an answer says of the fabric's servers and its release."""
        named = headers.get(SERVERS, "") if self._roams else ""
        if named and (others := self.endpoints.learn(named)) is not None:
            self.on_servers(others)
            with self._lock:
                used = list(self._open)
            for connection in used:
                connection.find_loss()
        if away := headers.get(AWAY_HEADER, ""):
            self.on_away(away.split(","))
        version = headers.get(HEADER, "")
        if version and version != self._version:
            self._version = version
            self.on_version(version)

    def _take_idle(self, timeout_seconds: float) -> ApiConnection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.is_quiet():
                connection.sock.settimeout(timeout_seconds)
                return connection
            connection.hang_up()

    def _dial(self, timeout_seconds: float, answer_seconds: float | None = None) -> ApiConnection:
        """A connection to the server that answered last, or to the next one that answers. That one has longer: when a server dies,
        all of its clients come there. Where all are slow, they share the whole time."""
        places, failures = self.endpoints.in_turn(), dict[Endpoint, Lost | NotAuthenticated]()

        def dial(places: Sequence[Endpoint], least_seconds: float) -> ApiConnection | None:
            for place in places:
                seconds = max(least_seconds, SECOND_SECONDS if failures else CONNECT_SECONDS)
                try:
                    connection = self._dial_at(place, min(seconds, timeout_seconds), answer_seconds or timeout_seconds)
                except (Lost, NotAuthenticated) as failed:
                    if self._closed.is_set():
                        raise
                    failures[place] = failed
                else:
                    self._leave(failures, place)
                    return connection
            return None

        if (connection := dial(places, timeout_seconds if len(places) == 1 else 0.0)) is not None:
            return connection
        slow = [place for place in places if isinstance(failures[place].__cause__, TimeoutError)]
        if len(places) > 1 and (connection := dial(slow, timeout_seconds / max(1, len(slow)))) is not None:
            return connection
        raise next(iter(failures.values()))

    def _leave(self, failures: Mapping[Endpoint, Lost | NotAuthenticated], place: Endpoint) -> None:
        """Go on at ``place``, and not at those that failed. One that took no connection in time may only be slow, as all are when
        many clients come at the same time: what it still sends is not cut, or they would come all the more."""
        slow = {one for one, failed in failures.items() if isinstance(failed.__cause__, TimeoutError)}
        with self._lock:
            self._doubted = (self._doubted | slow) - {place}
        self.endpoints.prefer(place)
        gone = {(one.host, one.port) for one in failures if one not in slow}
        self._cut(lambda connection: (connection.host, connection.port) in gone)
        self._cut_doubted()

    def _cut_doubted(self) -> None:
        """Cut the connections to servers in doubt that nothing comes from any more."""
        with self._lock:
            doubted = {(one.host, one.port) for one in self._doubted}
            if doubted.isdisjoint((one.host, one.port) for one in self._open):
                self._doubted.clear()
                return
        self._cut(lambda one: (one.host, one.port) in doubted and one.is_silent(LOSS_SECONDS))

    def _dial_at(self, place: Endpoint, connect_seconds: float, answer_seconds: float) -> ApiConnection:
        if self._closed.is_set():
            raise Unavailable("the client is closed")
        connection = ApiConnection(place.host, place.port, place.name, self.tls, connect_seconds, self._forget)
        with self._lock:
            self._open.add(connection)
        try:
            connection.connect()
            connection.sock.settimeout(answer_seconds)
            if self.endpoints.are_several:
                connection.find_loss()
        except ssl.SSLCertVerificationError as problem:
            connection.hang_up()
            raise explain_distrust(place.url, problem, self._clock.now()) from problem
        except OSError as problem:
            connection.hang_up()
            raise Lost(
                Unavailable(
                    f"no weft server answers at {place.url}: {describe_failure(problem)}",
                    hint="is it running? make up starts a local one"
                    if is_in_clone()
                    else "is it running, and is the address right? weft config view --show-origin shows where it comes from",
                ),
                sent=False,
            ) from problem
        if self._closed.is_set():
            connection.hang_up()
        return connection

    @contextlib.contextmanager
    def _bounded(self) -> Iterator[None]:
        """Cut what takes longer than ``most_seconds``."""
        if self._most_seconds is None:
            yield
            return
        timer = threading.Timer(self._most_seconds, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _cut(self, which: Callable[[ApiConnection], bool] = lambda one: True) -> None:
        """Cut connections: what is followed there goes on elsewhere."""
        with self._lock:
            used = list(self._open)
        for connection in used:
            if which(connection):
                connection.cut()

    def _forget(self, connection: ApiConnection) -> None:
        with self._lock:
            self._open.discard(connection)


def _find_wait(answer: ClientAnswer) -> float | None:
    """Seconds after which a request that was refused for the moment, and not begun, may be repeated; None for another answer."""
    after = answer.headers.get("retry-after", "")
    if answer.status != 429 or not after.isdecimal():
        return None
    with contextlib.suppress(WeftError):
        document = answer.json()
        if isinstance(document, dict) and document.get("reason") == "quotaExceeded":
            return float(after)
    return None
