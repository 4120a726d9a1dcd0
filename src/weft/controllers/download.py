"""The process that speaks with image servers: ``python -m weft.controllers.download URL MOST_BYTES ROOM_BYTES SECONDS``,
content on stdout.

Whatever a server sends, only this process can be hurt: it has no rights, no files and little memory, and the kernel ends
it (SIGALRM) when less than ``PIECE_BYTES`` came in that many seconds, be it a head that never ends, a redirect, a
trickle or silence. What went wrong is one line on stderr and exit status 1, or 2 if there is no room.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 — needed later, when the files of this installation can't be read any more
import ftplib
import io
import os
import resource
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO, Any, BinaryIO
from urllib.parse import unquote, urlsplit

PIECE_BYTES = 256 * 1024
MEMORY_BYTES = 1024**3
REDIRECTS = 5
NOBODY = 65534
FULL = 2
_FTP_PORT = 21


class Refused(Exception):
    """What the server gives can't be taken; the message says why."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = REDIRECTS
    max_repeats = 2

    def http_error_302(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage) -> Any:
        fp.close()  # unread: it may never end
        return super().http_error_302(req, io.BytesIO(), code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: HTTPMessage, newurl: str) -> Any:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in ("http", "https") or (old, new) == ("https", "http"):
            raise Refused(f"it redirects from {old} to {new}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def main(url: str, most: int, room: int, patience: float) -> int:
    """Write what ``url`` gives to stdout; the exit status."""
    _renounce()
    signal.setitimer(signal.ITIMER_REAL, patience)
    try:
        with _open(url) as (source, announced):
            if announced is not None and announced > most:
                raise Refused(f"it is larger than {most} bytes")
            if announced is not None and announced > room:
                return FULL
            _copy(source, announced, most, patience)
    except BrokenPipeError:
        return 1  # nobody wants it any more
    except urllib.error.HTTPError as problem:
        return _say(f"the server answers {problem.code} {problem.reason}")
    except MemoryError:
        return _say("what it sends makes no sense: there is no end to it")
    except (Refused, OSError, HTTPException, ftplib.Error, ValueError, EOFError) as problem:
        said = getattr(problem, "reason", None) or getattr(problem, "strerror", None) or problem
        return _say(str(said) or type(problem).__name__)
    return 0


def _renounce() -> None:
    """Give up every right that reading from a socket and writing to a pipe don't need."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def _open(url: str) -> Any:
    return _open_ftp(url) if urlsplit(url).scheme == "ftp" else _open_http(url)


@contextmanager
def _open_http(url: str) -> Iterator[tuple[BinaryIO, int | None]]:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(url, headers={"User-Agent": "weft", "Accept-Encoding": "identity"})
    response: HTTPResponse = opener.open(request)
    with response:
        if response.status != 200:
            raise Refused(f"the server answers {response.status} {response.reason}")
        yield response, response.length


@contextmanager
def _open_ftp(url: str) -> Iterator[tuple[BinaryIO, int | None]]:
    parts = urlsplit(url)
    with ftplib.FTP() as ftp:
        ftp.connect(parts.hostname or "", parts.port or _FTP_PORT)
        ftp.login(unquote(parts.username or ""), unquote(parts.password or ""))
        ftp.voidcmd("TYPE I")
        path = unquote(parts.path)
        try:
            length = ftp.size(path)
        except ftplib.error_perm:
            length = None  # a server without SIZE
        with ftp.transfercmd(f"RETR {path}") as data, data.makefile("rb") as source:
            yield source, length
        ftp.voidresp()  # says whether that was all


def _copy(source: BinaryIO, announced: int | None, most: int, patience: float) -> None:
    out, fetched, piece = sys.stdout.buffer.fileno(), 0, 0
    read = getattr(source, "read1", source.read)
    while announced is None or fetched < announced:
        chunk = read(PIECE_BYTES if announced is None else min(PIECE_BYTES, announced - fetched))
        if not chunk:
            break
        fetched += len(chunk)
        if fetched > most:
            raise Refused(f"it is larger than {most} bytes")
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)  # our own disk may take its time
        view = memoryview(chunk)
        while view:
            view = view[os.write(out, view) :]
        piece += len(chunk)
        if piece >= PIECE_BYTES:
            piece, left = 0, patience
        signal.setitimer(signal.ITIMER_REAL, max(left, 0.001))
    if announced is not None and fetched < announced:
        raise Refused(f"the connection ended after {fetched} of {announced} bytes")


def _say(problem: str) -> int:
    line = " ".join(problem.split())[:300].encode("ascii", "backslashreplace").decode()
    sys.stderr.write(f"{line}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
