"""The database that keeps metrics: a VictoriaMetrics of the server's own, one of people's own, or their Prometheus.

``--metrics`` names it. Of the server's own the supervisor writes where it listens; the others' is in the option. Requests to it are
bounded, in bytes and in time, and have threads of their own.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import ssl
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.http.connection import FAILURES, HANG_UPS, HttpConnection, Reply, TooLong, read_reply
from weft.objects.errors import InvalidInput, TimedOut, TooLarge, Unavailable, describe_failure
from weft.objects.identity import METRICS_NAME

OWN, OFF = "local", "off"
FILE = "metrics/database.json"  # in the server's state folder
_MOST_IDLE = 8


Sort = Literal["victoriametrics", "prometheus"]
KINDS: dict[str, Sort] = {"victoriametrics": "victoriametrics", "prometheus": "prometheus"}


class Database(msgspec.Struct, frozen=True):
    """``authorization`` is the header that requests to it carry, or "". With ``ca`` (PEM) its certificate must be of this CA and
    for ``name``; else of one that the machine trusts, and for its host. ``started_at``: unix seconds, of the server's own."""

    kind: Sort
    url: str
    authorization: str = ""
    ca: str = ""
    name: str = ""
    started_at: float = 0.0

    def __repr__(self) -> str:
        return f"Database({self.kind}, {self.url})"


class DatabaseEnded(Unavailable):
    """The database ended while a request to it was under way."""


def read_option(text: str, secret: str = "") -> Database | None:
    """``--metrics`` and the content of ``--metrics-secret-file``; None for ``local`` and ``off``. Raises InvalidInput."""
    if text in (OWN, OFF):
        return None
    kind, _, url = text.partition("=")
    parts = urlsplit(url)
    if kind not in KINDS or parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(
            f"--metrics: {text[:80]!r} names no database for metrics",
            field="--metrics",
            hint=f"{OWN}, {OFF}, victoriametrics=http://10.0.0.9:8428, or prometheus=http://10.0.0.9:9090",
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise InvalidInput(
            "--metrics: the URL may have no user, query or fragment",
            field="--metrics",
            hint="put USER:PASSWORD, or a bearer token, into a file, and name it with --metrics-secret-file",
        )
    return Database(KINDS[kind], url.rstrip("/"), _authorize(secret.strip()))


def make_own(port: int, password: str, ca: str, started_at: float = 0.0) -> Database:
    """The server's own, listening on loopback at ``port``. Another program there, while it is away, has no certificate, and gets no
    password."""
    url = f"https://127.0.0.1:{port}"
    return Database("victoriametrics", url, _authorize(f"weft:{password}"), ca, METRICS_NAME, started_at)


def find_database(state: Path, named: Database | None) -> Database:
    """The database to ask now: ``named``, or the server's own. Raises Unavailable while that hasn't started."""
    if named is not None:
        return named
    try:
        return msgspec.json.decode((state / FILE).read_bytes(), type=Database)
    except (OSError, msgspec.DecodeError):
        raise Unavailable(
            "the database for metrics hasn't started",
            hint="try again; if this stays, see the server's log (apt-get install victoria-metrics)",
            retry_after_seconds=1,
        ) from None


def make_off() -> Unavailable:
    """Why a server without a database has no answer."""
    return Unavailable(
        "this server keeps no history of metrics",
        reason="noMetrics",
        hint="weft top shows the usage of now; start the server with --metrics local for a history",
    )


def _authorize(secret: str) -> str:
    if not secret:
        return ""
    return f"Basic {base64.b64encode(secret.encode()).decode()}" if ":" in secret else f"Bearer {secret}"


class Asker:
    """Requests to a database over connections that are kept; at most ``most_at_once`` of them."""

    def __init__(self, clock: Clock, most_at_once: int) -> None:
        self._clock = clock
        self._threads = ThreadPoolExecutor(most_at_once, "metrics")
        self._idle: list[tuple[Database, HttpConnection]] = []
        self._lock = threading.Lock()

    async def ask(
        self,
        database: Database,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        seconds: float,
        most_bytes: int,
    ) -> Reply:
        """POST ``body`` to ``path``, twice if a connection that was kept ends before anything is answered: queries and samples may
        be repeated. Raises Unavailable, DatabaseEnded, TimedOut after ``seconds``, TooLarge."""
        given = dict(headers)
        if database.authorization:
            given["Authorization"] = database.authorization
        work = asyncio.get_running_loop().run_in_executor(
            self._threads, self._exchange, database, path, body, given, self._clock.elapsed() + seconds, most_bytes
        )
        try:
            return await work
        except TimeoutError:
            raise TimedOut(
                f"the database for metrics did not answer within {seconds:g} s", hint="send a smaller query"
            ) from None
        except HANG_UPS:
            raise DatabaseEnded(
                "the database for metrics ended before it had answered",
                hint="send a smaller query",
                retry_after_seconds=1,
            ) from None
        except FAILURES as problem:
            raise Unavailable(
                f"the database for metrics can't be reached: {describe_failure(problem)}",
                hint="try again",
                retry_after_seconds=1,
            ) from None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for _, connection in self._idle:
                connection.close()
            self._idle.clear()

    def _exchange(
        self, database: Database, path: str, body: bytes, headers: dict[str, str], ends: float, most_bytes: int
    ) -> Reply:
        connection = self._take(database)
        kept, url = connection.sock is not None, database.url + path
        begin = functools.partial(connection.begin, "POST", url, body, headers, ends=ends, most_bytes=most_bytes)
        try:
            try:
                response = begin()
            except HANG_UPS as hung_up:
                if not kept:
                    raise
                # The other end may have closed it as the request was sent, with nothing done; to do it twice changes nothing.
                connection.close()
                try:
                    connection.connect_until(ends)
                except FAILURES:
                    raise hung_up from None  # the database has ended
                response = begin()
            reply = read_reply(response, most_bytes)
        except TooLong:
            connection.close()
            raise TooLarge(
                f"the answer is larger than {most_bytes >> 20} MiB", hint="ask for fewer series, or a longer step"
            ) from None
        except BaseException:
            connection.close()
            raise
        self._give_back(database, connection)
        return reply

    def _take(self, database: Database) -> HttpConnection:
        with self._lock:
            while self._idle:
                of, connection = self._idle.pop()
                if of == database and connection.is_quiet():
                    return connection
                connection.close()
        return connect(database, self._clock)

    def _give_back(self, database: Database, connection: HttpConnection) -> None:
        with self._lock:
            if connection.sock is not None and len(self._idle) < _MOST_IDLE:
                self._idle.append((database, connection))
                return
        connection.close()


@functools.lru_cache(4)
def _trusting(ca: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def connect(database: Database, clock: Clock) -> HttpConnection:
    """A connection to be opened, which trusts only what ``database`` says."""
    tls = _trusting(database.ca) if database.ca else None
    return HttpConnection(database.url, tls=tls, name=database.name, clock=clock)
