"""The process that speaks with registries and opens images' files: ``python -m weft.drivers.image.oci.fetch.worker
PARENT``.

Whatever comes from there, only this process can be hurt: it is nobody, has little memory and can write no file; of the node's
files it reads what everybody may, and the one that it was started with open (``PATH FD``). With ``--reach=ALLOWED`` it
connects to strangers' addresses and ALLOWED only. It carries out one request after
another: a frame with JSON on stdin, answered on stdout by ``H`` (JSON: what begins), any number of ``B`` (bytes of it) and
``E``, or ``X`` (JSON: what went wrong, instead of the rest). It keeps its connection for the next request. Time is its
parent's to keep, but for connecting.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 — needed later, when the files of this installation can't be read any more
import http.client
import json
import math
import os
import resource
import socket
import ssl
import stat
import struct
import sys
import tarfile
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from weft.contracts.clock import SystemClock
from weft.contracts.confinement.public_address import guard_connections
from weft.contracts.confinement.system_calls import OTHERS, refuse_calls
from weft.contracts.confinement.unprivileged import drop_privileges
from weft.contracts.http.connection import HttpConnection
from weft.contracts.http.proxy import find_proxy
from weft.drivers.image.oci.fetch.framing import FRAME, GUARDED, PIECE_BYTES

MEMORY_BYTES = 1 << 30
# Reading sockets, pipes and everybody's files takes no more.
LIMITS = {resource.RLIMIT_AS: MEMORY_BYTES, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
MOST_MEMBERS = 20_000
_HEADERS = ("content-type", "docker-content-digest", "content-range", "content-length", "location", "retry-after")


_GUARDS = [word.removeprefix(GUARDED) for word in sys.argv[2:] if word.startswith(GUARDED)]
_GIVEN = [*sys.argv[2 + len(_GUARDS) :], "", ""][:2]


class Failed(Exception):
    """``kind``: connect, tls, cut, badAnswer, gone, denied."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Wire:
    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._place: tuple[str, ...] = ()
        self._connection: HttpConnection | None = None

    def serve(self, source: BinaryIO) -> None:
        while len(head := source.read(4)) == 4:
            request = json.loads(source.read(struct.unpack("!I", head)[0]))
            try:
                {"http": self._http, "file": self._file, "members": self._members}[request["do"]](request)
                self._send(b"E", b"")
            except BrokenPipeError:
                return
            except Failed as problem:
                self._fail(problem.kind, str(problem))
            except MemoryError:
                self._fail("badAnswer", "its answer is endless")

    def _http(self, request: dict[str, Any]) -> None:
        try:
            response = self._begin(request)
            head: dict[str, Any] = {name: response.headers[name] for name in _HEADERS if name in response.headers}
            head["challenges"] = response.headers.get_all("WWW-Authenticate") or []
            self._send(b"H", json.dumps({"status": response.status, **head}).encode())
            while chunk := response.read1(PIECE_BYTES):
                self._send(b"B", chunk)
            if response.length:  # read1 doesn't report a premature end
                raise Failed("cut", f"the connection ended {response.length} bytes too early")
            response.read()  # nothing; but only then may the connection be used again
        except Failed:
            self._drop()
            raise
        except BrokenPipeError:
            raise
        except TimeoutError:
            self._drop()
            raise Failed("hangs", f"it sent nothing for {float(request['idle_seconds']):g} s") from None
        except (http.client.IncompleteRead, ConnectionError) as problem:
            self._drop()
            raise Failed("cut", str(problem) or type(problem).__name__) from None
        except (OSError, http.client.HTTPException, ValueError) as problem:
            self._drop()
            raise Failed("badAnswer", str(problem) or type(problem).__name__) from None

    def _begin(self, request: dict[str, Any]) -> http.client.HTTPResponse:
        parts = urlsplit(request["url"])
        place = (parts.scheme, parts.netloc, request["ca"])
        if place != self._place or (self._connection is not None and self._connection.sock is None):
            self._drop()
        kept = self._connection is not None
        while True:
            if self._connection is None:
                self._connection, self._place = self._connect(request, parts.scheme), place
            try:
                return self._connection.begin(
                    request["method"], request["url"], None, request["headers"], ends=math.inf, most_bytes=math.inf
                )
            except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):
                self._drop()
                if not kept:
                    raise Failed("cut", "the connection closed before an answer") from None
                kept = False  # it was closed while nobody spoke

    def _connect(self, request: dict[str, Any], scheme: str) -> HttpConnection:
        context = ssl.create_default_context() if scheme == "https" else None
        if context and request["ca"]:
            context.load_verify_locations(cadata=request["ca"])
        url, silence, seconds = request["url"], float(request["idle_seconds"]), float(request["connect_seconds"])
        clock = SystemClock()
        connection = HttpConnection(url, tls=context, silence_seconds=silence, clock=clock, proxy=find_proxy(url))
        try:
            connection.connect_until(clock.elapsed() + seconds)
        except ssl.SSLError as problem:
            why = getattr(problem, "verify_message", "") or problem.reason or "the server doesn't speak TLS"
            raise Failed("tls", f"{why}") from None
        except TimeoutError:
            raise Failed("connect", f"no connection within {seconds:g} s") from None
        except socket.gaierror as problem:
            raise Failed("connect", f"its name can't be resolved: {problem.strerror}") from None
        except OSError as problem:
            raise Failed("connect", problem.strerror or str(problem) or "can't be reached") from None
        return connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection, self._place = None, ()

    def _file(self, request: dict[str, Any]) -> None:
        """A plain file, from ``offset`` on, ``length`` bytes of it (-1: to its end)."""
        with _open(request["path"]) as file:
            left = os.fstat(file.fileno()).st_size - request["offset"]
            left = left if request["length"] < 0 else min(left, request["length"])
            self._send(b"H", json.dumps({"length": max(0, left)}).encode())
            file.seek(request["offset"])
            while left > 0 and (chunk := file.read(min(PIECE_BYTES, left))):
                self._send(b"B", chunk)
                left -= len(chunk)

    def _members(self, request: dict[str, Any]) -> None:
        """Send the places of the plain files in a tar: NAME: [offset, length]."""
        found: dict[str, list[int]] = {}
        try:
            with _open(request["path"]) as file, tarfile.open(fileobj=file, mode="r:") as archive:
                for count, member in enumerate(archive):
                    if count >= MOST_MEMBERS:
                        raise Failed("badAnswer", f"it has more than {MOST_MEMBERS} members")
                    if member.isreg() and not member.issparse():
                        found[member.name.removeprefix("./")] = [member.offset_data, member.size]
                    archive.members = []  # type: ignore[attr-defined]
        except (tarfile.TarError, ValueError, EOFError, RecursionError) as problem:
            raise Failed("badAnswer", f"it is not a plain tar file: {problem}") from None
        self._send(b"H", json.dumps({"members": found}).encode())

    def _send(self, kind: bytes, data: bytes) -> None:
        self._out.write(FRAME.pack(kind, len(data)) + data)
        self._out.flush()

    def _fail(self, kind: str, message: str) -> None:
        message = " ".join(message.split())[:300].encode("ascii", "backslashreplace").decode()
        self._send(b"X", json.dumps({"kind": kind, "message": message}).encode())


def _open(path: str) -> BinaryIO:
    if path == _GIVEN[0]:
        return open(os.dup(int(_GIVEN[1])), "rb")
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a device may do things when it is opened
            raise Failed("denied", "it is not a plain file")
        file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115 (the caller's)
    except (FileNotFoundError, NotADirectoryError):
        raise Failed("gone", "there is no such file") from None
    except PermissionError:
        raise Failed("denied", "it is not readable by all users of the node") from None
    except OSError as problem:
        raise Failed("denied", problem.strerror or str(problem)) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise Failed("denied", "it is not a plain file")
    return file


if __name__ == "__main__":
    drop_privileges(int(sys.argv[1]), LIMITS)
    refuse_calls(OTHERS)
    for reach in _GUARDS:
        guard_connections(reach.split())
    Wire(sys.stdout.buffer).serve(sys.stdin.buffer)
