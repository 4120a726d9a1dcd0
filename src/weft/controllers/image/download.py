"""The process that speaks with image servers: ``python -m weft.controllers.image.download PARENT URL MOST_BYTES FREE_BYTES
SECONDS [ALLOWED…]``, content on stdout. ALLOWED are addresses of this machine or its links that it may connect to all the same.

A hostile server can hurt only this process: it has no rights, no files and little memory, and the kernel ends it (SIGALRM) when
less than ``PIECE_BYTES`` came in that many seconds: an endless header, a redirect, a trickle or silence. A failure is one line
on stderr and exit status 1, or 2 if there is no space.

A cut connection is resumed, some times, while the server still has the same content; a server that can't resume sends the
beginning once more, which is dropped.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 — needed later, when the files of this installation can't be read any more
import ftplib
import math
import os
import re
import resource
import select
import signal
import string
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPException, HTTPResponse
from typing import Any, BinaryIO
from urllib.parse import quote, unquote, urljoin, urlsplit

from weft.contracts.confinement.public_address import guard_connections
from weft.contracts.confinement.system_calls import OTHERS, refuse_calls
from weft.contracts.confinement.unprivileged import drop_privileges
from weft.contracts.http.connection import FAILURES, HttpConnection
from weft.contracts.http.proxy import find_proxy
from weft.objects.errors import describe_failure

PIECE_BYTES = 256 * 1024
MEMORY_BYTES = 1024**3
REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
# Reading from a socket and writing to a pipe take no more.
LIMITS = {resource.RLIMIT_AS: MEMORY_BYTES, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
FULL = 2
RESUMES, BARREN_RESUMES = 20, 2  # in all, and those in a row that bring nothing new
PAUSE_SECONDS = 0.2
_FTP_PORT = 21


class ContentRefused(Exception):
    """The server's content is refused; the message is why."""


class _Cut(Exception):
    """The connection ended before its time."""


class _Transfer:
    """How far it is: bytes passed on, bytes in all, and what the server calls this content (ETag or date)."""

    def __init__(self) -> None:
        self.fetched, self.piece, self.resumes, self.barren = 0, 0, 0, 0
        self.total: int | None = None
        self.tag = ""

    def check_same(self, total: int | None, tag: str) -> None:
        """Raises ContentRefused if the content is another one than at the beginning."""
        if self.fetched and (total != self.total or (tag and self.tag and tag != self.tag)):
            raise ContentRefused("the file changed while it was being fetched")
        self.total, self.tag = total, tag


def main(parent: int, url: str, most: int, space: int, patience: float, allowed: Sequence[str]) -> int:
    """Write what ``url`` gives to stdout; the exit status. Ends with process ``parent``."""
    drop_privileges(parent, LIMITS)
    refuse_calls(OTHERS)
    signal.setitimer(signal.ITIMER_REAL, patience)
    guard_connections(allowed)
    try:
        return _fetch(url, most, space, patience)
    except BrokenPipeError:
        return 1  # nobody wants it any more
    except MemoryError:
        return _fail("the answer makes no sense: it never ends")
    except (ContentRefused, *FAILURES, ftplib.Error, EOFError) as problem:
        return _fail(describe_failure(problem))


def _fetch(url: str, most: int, space: int, patience: float) -> int:
    transfer = _Transfer()
    while True:
        before = transfer.fetched
        try:
            with _open(url, transfer) as (source, skipped):
                if transfer.total is not None and transfer.total > most:
                    raise ContentRefused(f"the file is larger than {most} bytes")
                if transfer.total is not None and transfer.total > space:
                    return FULL
                _copy(source, skipped, transfer, most, patience)
            return 0
        except (_Cut, OSError, HTTPException, ftplib.Error, EOFError) as problem:
            transfer.barren = 0 if transfer.fetched > before else transfer.barren + 1
            hopeless = transfer.resumes >= RESUMES or transfer.barren >= BARREN_RESUMES
            resumable = transfer.fetched and transfer.total is not None and not hopeless
            if not resumable or isinstance(problem, BrokenPipeError):
                if isinstance(problem, _Cut):
                    raise ContentRefused(
                        f"the connection ended after {transfer.fetched} of {transfer.total} bytes"
                    ) from None
                raise
        transfer.resumes += 1
        select.select([], [], [], PAUSE_SECONDS)


def _open(url: str, transfer: _Transfer) -> Any:
    """The content from where ``transfer`` is, and how many bytes of it come once more before that."""
    return _open_ftp(url, transfer) if urlsplit(url).scheme == "ftp" else _open_http(url, transfer)


@contextmanager
def _open_http(url: str, transfer: _Transfer) -> Iterator[tuple[BinaryIO, int]]:
    headers = {"User-Agent": "weft", "Accept-Encoding": "identity", "Connection": "close"}
    if transfer.fetched:
        headers["Range"] = f"bytes={transfer.fetched}-"
        if transfer.tag:
            headers["If-Range"] = transfer.tag
    for _ in range(1 + REDIRECTS):
        with (
            closing(HttpConnection(url, proxy=find_proxy(url))) as connection,
            _ask(connection, url, headers) as response,
        ):
            place = response.headers.get("Location")
            if response.status not in _REDIRECTS or place is None:
                yield response, _find_start(response, transfer)
                return
        url = _follow(url, place)
    raise ContentRefused(f"the server redirects more than {REDIRECTS} times")


def _ask(connection: HttpConnection, url: str, headers: dict[str, str]) -> HTTPResponse:
    try:
        return connection.begin("GET", url, None, headers, ends=math.inf, most_bytes=math.inf)
    except BrokenPipeError as problem:  # the server's, not that of who wants the content
        raise ConnectionResetError(*problem.args) from problem


def _follow(url: str, place: str) -> str:
    """Target of a redirect. Raises ContentRefused, ValueError."""
    target = urljoin(url, quote(place, encoding="iso-8859-1", safe=string.punctuation))
    old, new = urlsplit(url).scheme, urlsplit(target).scheme
    if new not in ("http", "https") or (old, new) == ("https", "http"):
        raise ContentRefused(f"the server redirects from {old} to {new}, which is not allowed")
    return target


def _find_start(response: HTTPResponse, transfer: _Transfer) -> int:
    """How many bytes come once more. Raises ContentRefused."""
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    if response.status == 206 and transfer.fetched:
        transfer.check_same(_read_range(response, transfer.fetched), tag or transfer.tag)
        return 0
    if response.status == 200:
        transfer.check_same(response.length, "" if tag.startswith("W/") else tag)
        return transfer.fetched
    raise ContentRefused(f"the server answered {response.status} {response.reason}")


def _read_range(response: HTTPResponse, start: int) -> int:
    """How long the whole is. Raises ContentRefused if the answer doesn't begin at ``start``."""
    found = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", response.headers.get("Content-Range", "").strip())
    if found is None or int(found[1]) != start:
        raise ContentRefused("the server sent another part of the file than requested")
    return int(found[2])


@contextmanager
def _open_ftp(url: str, transfer: _Transfer) -> Iterator[tuple[BinaryIO, int]]:
    parts = urlsplit(url)
    with ftplib.FTP() as ftp:  # noqa: S321 (images have a digest, and old mirrors nothing else)
        ftp.connect(parts.hostname or "", parts.port or _FTP_PORT)
        ftp.login(unquote(parts.username or ""), unquote(parts.password or ""))
        ftp.voidcmd("TYPE I")
        path = unquote(parts.path)
        try:
            length = ftp.size(path)
        except ftplib.error_perm:
            length = None  # a server without SIZE
        transfer.check_same(length, "")
        skipped = 0
        try:
            data = ftp.transfercmd(f"RETR {path}", transfer.fetched or None)
        except ftplib.error_perm:  # a server without REST, unless it refuses the file itself
            data, skipped = ftp.transfercmd(f"RETR {path}"), transfer.fetched
        with data, data.makefile("rb") as source:
            yield source, skipped
        ftp.voidresp()  # raises if the file is incomplete


def _copy(source: BinaryIO, skipped: int, transfer: _Transfer, most: int, patience: float) -> None:
    """Pass on what comes, but for its first ``skipped`` bytes. Raises _Cut, ContentRefused."""
    out, total = sys.stdout.buffer.fileno(), transfer.total
    read = getattr(source, "read1", source.read)
    while total is None or transfer.fetched < total:
        wanted = PIECE_BYTES if total is None else min(PIECE_BYTES, skipped + total - transfer.fetched)
        chunk = read(wanted)
        if not chunk:
            break
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)  # our own disk may take its time
        transfer.piece += len(chunk)
        if transfer.piece >= PIECE_BYTES:
            transfer.piece, left = 0, patience
        fresh = memoryview(chunk)[skipped:]
        skipped = max(0, skipped - len(chunk))
        if transfer.fetched + len(fresh) > most:
            raise ContentRefused(f"the file is larger than {most} bytes")
        while fresh:
            written = os.write(out, fresh)
            fresh = fresh[written:]
            transfer.fetched += written
        signal.setitimer(signal.ITIMER_REAL, max(left, 0.001))
    if total is not None and transfer.fetched < total:
        raise _Cut


def _fail(problem: str) -> int:
    line = " ".join(problem.split())[:300].encode("ascii", "backslashreplace").decode()
    sys.stderr.write(f"{line}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]), sys.argv[6:]))
