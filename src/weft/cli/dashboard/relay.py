"""A server on this machine's loopback that shows a browser the API server's dashboard with the user's own login.

It checks who asks, adds the login, and passes bytes on: requests to the API server that answers, streams to its gateway. One
request a connection, so what is passed on is always what was checked. It keeps nothing and decides nothing else.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import html
import ssl
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from weft.cli.dashboard.browser import Browser
from weft.cli.dashboard.head import Head, read_head, write_head
from weft.client.context import Context
from weft.client.server.endpoints import CONNECT_SECONDS, Endpoints
from weft.client.tls import make_tls
from weft.objects.errors import Forbidden, InvalidInput, NotAuthenticated, Unavailable, WeftError

STREAMS = "/v1/stream"
SESSION = "/v1/session"
_HEAD_BYTES = 32 * 1024
_HEAD_SECONDS = 10.0
_DIAL_SECONDS = 10.0
_PIECE_BYTES = 64 * 1024
_MOST_CONNECTIONS = 128
_STATUS = {Forbidden: "403 Forbidden", NotAuthenticated: "401 Unauthorized", Unavailable: "502 Bad Gateway"}
_GO_ON = "location.replace('/' + location.hash)"
_LANDING = f"<!doctype html><title>weft</title><script>{_GO_ON}</script>".encode()
_TRY_AGAIN = "setTimeout(() => location.reload(), 2000)"
_encoder = msgspec.json.Encoder()


class Gateway(NamedTuple):
    """The gateway where streams go."""

    address: str  # host:port
    server_name: str


class Relay:
    """Serves at ``port`` of 127.0.0.1, 0 for any, until it is closed. ``endpoints`` are the servers; ``find_gateway`` asks, in a
    thread, where streams go now. ``used`` is called with each new link when one was used."""

    def __init__(
        self,
        context: Context,
        endpoints: Endpoints,
        find_gateway: Callable[[], Gateway | None],
        used: Callable[[str], None],
    ) -> None:
        self._context, self._endpoints, self._find_gateway, self._used = context, endpoints, find_gateway, used
        self._tls = make_tls(context)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, port: int) -> str:
        """The address of the page, without the link's key. Raises OSError if it can't listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port, limit=_HEAD_BYTES)
        self._port = self._server.sockets[0].getsockname()[1]
        self._browser = Browser(self._port)
        return f"http://127.0.0.1:{self._port}"

    @property
    def link(self) -> str:
        return f"http://127.0.0.1:{self._port}{self._browser.link}"

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head: Head | None = None
        try:
            if len(self._tasks) > _MOST_CONNECTIONS:
                raise Unavailable("the dashboard has too many connections", hint="close some of its tabs")
            async with asyncio.timeout(_HEAD_SECONDS):
                head = read_head(await reader.readuntil(b"\r\n\r\n"))
            await self._answer(head, reader, writer)
        except WeftError as problem:
            writer.write(_refuse(problem, is_page=head is not None and head.opens_page))
        except asyncio.LimitOverrunError:
            longest = f"the request's head is longer than {_HEAD_BYTES // 1024} KiB"
            writer.write(_refuse(InvalidInput(longest, hint="delete this site's cookies in the browser")))
        except (OSError, EOFError, TimeoutError):
            pass  # it has left, or never said what it wants
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    async def _answer(self, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (cookie := self._browser.sign_in(head)) is not None:
            writer.write(_land(cookie))
            if cookie:
                self._used(self.link)
            return
        self._browser.check(head)
        if head.path == SESSION:
            self._end_session(head, writer)
        elif head.path == STREAMS:
            await self._open_stream(head, reader, writer)
        else:
            await self._forward(head, reader, writer)

    def _end_session(self, head: Head, writer: asyncio.StreamWriter) -> None:
        if head.method != "DELETE":
            raise Forbidden("this page is signed in by weft dashboard", hint="weft login, then weft dashboard again")
        self._browser.sign_out()
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        self._used(self.link)

    async def _open_stream(self, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not head.wants_web_socket:
            raise InvalidInput("streams are web sockets")
        gateway = await asyncio.to_thread(self._find_gateway)
        if gateway is None:
            raise Unavailable("the server has no gateway")
        host, _, port = gateway.address.rpartition(":")
        host = host.strip("[]")
        there = await self._dial(host, int(port), gateway.server_name or host, _DIAL_SECONDS)
        await _splice((reader, writer), there, write_head(head, gateway.address), None)

    async def _forward(self, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, place = await self._reach_server()
        await _splice(
            (reader, writer), there, write_head(head, urlsplit(place).netloc, self._context.token), head.length
        )

    async def _reach_server(self) -> tuple[tuple[asyncio.StreamReader, asyncio.StreamWriter], str]:
        """A connection to the first server that answers, and its URL. Raises Unavailable."""
        endpoints, failed = self._endpoints.in_turn(), list[Unavailable]()
        seconds = CONNECT_SECONDS if len(endpoints) > 1 else _DIAL_SECONDS
        for one in endpoints:
            try:
                there = await self._dial(one.host, one.port, one.name, seconds)
            except Unavailable as problem:
                failed.append(problem)
            else:
                self._endpoints.prefer(one)
                return there, one.url
        raise failed[0]

    async def _dial(
        self, host: str, port: int, name: str, seconds: float
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.open_connection(host, port, ssl=self._tls, server_hostname=name)
        except (OSError, TimeoutError) as problem:
            what = "certificate" if isinstance(problem, ssl.SSLError) else "connection"
            raise Unavailable(f"no {what} from {host}:{port}", hint="is the server running? weft doctor") from problem


async def _splice(
    here: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    there: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    head: bytes,
    length: int | None,
) -> None:
    """Send ``head``, then ``length`` bytes (None: all) to ``there``, and all that comes back; the end of either ends both."""
    there[1].write(head)
    up = asyncio.ensure_future(_copy(here[0], there[1], length))
    down = asyncio.ensure_future(_copy(there[0], here[1], None))
    try:
        await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)
        there[1].close()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, length: int | None) -> None:
    """Copy until the source's end; what comes after ``length`` bytes is read and dropped."""
    left = length
    with contextlib.suppress(OSError):
        while piece := await source.read(_PIECE_BYTES):
            if left is not None:
                piece = piece[:left]
                left -= len(piece)
            if piece:
                sink.write(piece)
                await sink.drain()


def _land(cookie: str) -> bytes:
    """A page that goes on to the dashboard. A redirect wouldn't do: what opened the link may be another site's page or a file, and
    to a browser the redirected request would still be theirs, without the cookie."""
    set_cookie = f"Set-Cookie: {cookie}\r\n" if cookie else ""
    return (
        f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(_LANDING)}\r\n{set_cookie}"
        f"{_allow_script(_GO_ON)}Cache-Control: no-store\r\n"
        "Referrer-Policy: no-referrer\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    ).encode() + _LANDING


def _refuse(problem: WeftError, *, is_page: bool = False) -> bytes:
    """``is_page``: for people, in a browser's window; else for a program."""
    status = next((line for kind, line in _STATUS.items() if isinstance(problem, kind)), "400 Bad Request")
    body, type_, policy = _encoder.encode(problem.to_dict()), "application/problem+json", ""
    if is_page:
        goes_on = isinstance(problem, Unavailable)
        body, type_ = _write_page(problem, goes_on=goes_on), "text/html; charset=utf-8"
        policy = _allow_script(_TRY_AGAIN)
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: {type_}\r\nContent-Length: {len(body)}\r\n{policy}"
        "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    ).encode() + body


def _write_page(problem: WeftError, *, goes_on: bool) -> bytes:
    """``goes_on``: it is loaded again, under its own address."""
    hint = f"<p>{html.escape(problem.hint)}</p>" if problem.hint else ""
    again = f"<p>The page tries again automatically.</p><script>{_TRY_AGAIN}</script>" if goes_on else ""
    title = '<!doctype html><html lang="en"><meta charset="utf-8"><title>weft</title>'
    return f"{title}<main><h1>weft</h1><p>{html.escape(problem.message)}</p>{hint}{again}</main></html>".encode()


def _allow_script(script: str) -> str:
    """The header that allows a page ``script`` and nothing else."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"Content-Security-Policy: default-src 'none'; script-src 'sha256-{digest}'\r\n"
