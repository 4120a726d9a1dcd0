"""The other servers of the fabric, as one of them asks them: over HTTPS, its API with its own certificate of the fabric's CA.

Nobody waits for a server that is away: one without a heartbeat isn't asked, and one that hangs costs ``ANSWER_SECONDS`` once, and
is left alone for a while. Its name is part of the answer. Only one that takes a connection may take longer for its answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from weft.client.answer import ClientAnswer, Stream
from weft.client.context import Context
from weft.client.http import Http
from weft.contracts.clock import Clock
from weft.objects.errors import Unavailable, WeftError
from weft.objects.identity import SERVER_NAME, ServerIdentity
from weft.trust.ca import Authority

ANSWER_SECONDS = 2.0
REST_SECONDS = 3.0  # for which a server that didn't answer isn't asked
MOST_BYTES = 16 << 20  # of one answer
_AT_ONCE = 4  # requests to one server: those to another never wait for them
_RENEW_SECONDS = 86_400.0  # after which the certificate is looked at again


class _Line(NamedTuple):
    """The way to a server."""

    url: str
    made_at: float  # in elapsed seconds
    http: Http
    slow: Http  # for answers that may take long: it keeps no connections, which may lead nowhere
    threads: ThreadPoolExecutor

    def close(self) -> None:
        self.http.close()
        self.slow.close()
        self.threads.shutdown(wait=False, cancel_futures=True)


class Answers(NamedTuple):
    """The answers of the servers that gave any, by name, and the names of the others."""

    found: dict[str, ClientAnswer]
    away: list[str]


class OtherServers:
    """Those that ``find`` knows beside ``own``: the URL of each by name, "" while it doesn't serve; none if ``own`` is None.
    ``make_context``, of a URL and ``own``, is called when one is asked, and not before: the process that serves the API makes
    the CA. It may block."""

    def __init__(
        self,
        own: ServerIdentity | None,
        make_context: Callable[[str, ServerIdentity], Context],
        find: Callable[[str], Mapping[str, str]],
        clock: Clock,
    ) -> None:
        self._own, self._make_context, self._find, self._clock = own, make_context, find, clock
        self._lock = threading.Lock()
        self._lines: dict[str, _Line] = {}  # by name
        self._resting: dict[str, tuple[str, float]] = {}  # by name: its URL, and until when

    def list_all(self) -> list[str]:
        """Their names."""
        return list(self._list())

    def list_serving(self) -> list[str]:
        """The names of those that serve, as far as the store says."""
        return [name for name, url in self._list().items() if url]

    async def ask_all(
        self,
        method: str,
        path: str | Callable[[str], str],
        *,
        headers: Mapping[str, str] | None = None,
        seconds: float = ANSWER_SECONDS,
    ) -> Answers:
        """Ask all of them together, each at ``path``, which may depend on its name. It takes no longer than ``seconds``."""
        names = list(self._list())
        asked = (
            self.ask(name, method, path if isinstance(path, str) else path(name), headers=headers, seconds=seconds)
            for name in names
        )
        given = dict(zip(names, await asyncio.gather(*asked, return_exceptions=True), strict=True))
        answers = Answers({}, [])
        for name, one in given.items():
            if isinstance(one, ClientAnswer):
                answers.found[name] = one
            elif isinstance(one, Unavailable):
                answers.away.append(name)
            else:
                raise one
        return answers

    async def ask(
        self,
        name: str,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        seconds: float = ANSWER_SECONDS,
        silence: float | None = None,
    ) -> ClientAnswer:
        """The answer of one, whatever its status. Raises Unavailable after ``seconds``, after so much silence, or if it is away."""
        self._require_awake(name)
        try:
            async with asyncio.timeout(seconds):
                line = self._find_line(name)
                if line is None:
                    line = await asyncio.to_thread(self._open, name)
                http, given = line.http, dict(headers or {})
                if seconds > ANSWER_SECONDS:
                    http, given = line.slow, given | {"Connection": "close"}
                request = partial(http.request, method, path, body, headers=given, answer_seconds=silence or seconds)
                return await asyncio.get_running_loop().run_in_executor(line.threads, request)
        except (TimeoutError, WeftError) as problem:
            raise self._rest(name, problem) from None

    def stream(self, name: str, path: str, headers: Mapping[str, str] | None = None) -> Stream:
        """An answer that may be long, for a thread. Raises Unavailable if the server is away, and the problem that it answers."""
        self._require_awake(name)
        try:
            line = self._open(name)
        except WeftError as problem:
            raise self._rest(name, problem) from None
        return line.http.stream("GET", path, headers=headers)

    def close(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, {}
        for line in lines.values():
            line.close()

    def _list(self) -> Mapping[str, str]:
        return self._find(self._own.name) if self._own is not None else {}

    def _require_awake(self, name: str) -> None:
        """Raise Unavailable for a server that needn't be asked."""
        url, (former, until) = self._list().get(name, ""), self._resting.get(name, ("", 0.0))
        if not url:
            raise _be_away(name, "it sends no heartbeat")
        if url == former and self._clock.elapsed() < until:
            raise _be_away(name, "it didn't answer just now")

    def _rest(self, name: str, problem: Exception) -> Unavailable:
        self._resting[name] = self._list().get(name, ""), self._clock.elapsed() + REST_SECONDS
        return _be_away(name, problem.message if isinstance(problem, WeftError) else "it didn't answer in time")

    def _find_line(self, name: str) -> _Line | None:
        """The way to a server that was asked before, unless its address is another since."""
        line = self._lines.get(name)
        if line is None or line.url != self._list().get(name):
            return None
        return line if self._clock.elapsed() - line.made_at < _RENEW_SECONDS else None

    def _open(self, name: str) -> _Line:
        """The way to a server. Blocks. Raises WeftError."""
        with self._lock:
            if (line := self._find_line(name)) is not None:
                return line
            assert self._own is not None
            url = self._list().get(name, "")
            context = self._make_context(url, self._own)
            http, slow = (
                Http(
                    context,
                    timeout_seconds=ANSWER_SECONDS,
                    clock=self._clock,
                    most_answer_bytes=MOST_BYTES,
                    roams=False,
                )
                for _ in range(2)
            )
            line = _Line(url, self._clock.elapsed(), http, slow, ThreadPoolExecutor(_AT_ONCE, f"server {name}"))
            former, self._lines[name] = self._lines.get(name), line
        if former is not None:
            former.close()
        return line


def make_own_context(authority: Authority, url: str, own: ServerIdentity) -> Context:
    """The context with which the server ``own`` asks the API at ``url``."""
    certificate = str(authority.renew_own(own))
    return Context(server=url, ca=authority.ca, certificate=certificate, server_name=SERVER_NAME)


def _be_away(name: str, why: str) -> Unavailable:
    return Unavailable(f"server {name} is away: {why}", reason="serverAway", details={"server": name})
