"""A server that does to its clients what servers shouldn't: each path is one way of it."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator

RAW = bytes(510) + b"\x55\xaa" + bytes(1536)


class HostileSite(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Visit)
        self.over = threading.Event()
        self.asked: list[str] = []
        self.silent = False  # whether it only hangs where it broke off before

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def hostile_site() -> Iterator[HostileSite]:
    site = HostileSite()
    thread = threading.Thread(target=site.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield site
    finally:
        site.over.set()
        site.shutdown()
        thread.join()
        site.server_close()


class _Visit(socketserver.BaseRequestHandler):
    server: HostileSite

    def handle(self) -> None:
        head = b""
        with contextlib.suppress(OSError):
            while b"\r\n\r\n" not in head and (piece := self.request.recv(65536)):
                head += piece
            if head:
                path = head.split()[1].decode()
                self.server.asked.append(path)
                WAYS[path.split("-")[0]](self)

    def say(self, text: str, body: bytes = b"") -> None:
        self.request.sendall(text.replace("\n", "\r\n").encode() + b"\r\n" + body)

    def for_ever(self, piece: bytes, pause_seconds: float = 0.0) -> None:
        while not self.server.over.wait(pause_seconds):
            self.request.sendall(piece)

    def hang(self) -> None:
        self.server.over.wait(60)

    def redirect(self, to: str, more: str = "Content-Length: 0\n") -> None:
        self.say(f"HTTP/1.1 302 Found\nLocation: {to}\n{more}")

    def reset(self) -> None:
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


OK = "HTTP/1.1 200 OK\n"
CHUNKED = OK + "Transfer-Encoding: chunked\n"


def _then(*steps: Callable[[_Visit], None]) -> Callable[[_Visit], None]:
    def way(visit: _Visit) -> None:
        for step in steps:
            step(visit)

    return way


WAYS: dict[str, Callable[[_Visit], None]] = {
    "/image": lambda v: v.say(OK + f"Content-Length: {len(RAW)}\n", RAW),
    "/silent": lambda v: v.hang(),
    "/stuck": _then(lambda v: v.say(OK + "Content-Length: 10000000\n", RAW), lambda v: v.hang()),
    "/trickle": _then(
        lambda v: v.say(OK + "Content-Length: 10000000\n"), lambda v: v.for_ever(b"x", pause_seconds=0.02)
    ),
    "/slow_head": _then(lambda v: v.request.sendall(b"HTTP/1.1 200 OK\r\n"), lambda v: v.for_ever(b"X: y\r\n", 0.05)),
    "/continue": lambda v: v.for_ever(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "/long_head": _then(lambda v: v.request.sendall(b"HTTP/1.1 200 OK\r\nX: "), lambda v: v.for_ever(b"x" * 65536)),
    "/more": lambda v: v.say(OK + f"Content-Length: {len(RAW)}\n", RAW + b"more" * 1000),
    "/less": lambda v: v.say(OK + "Content-Length: 100000\n", RAW),
    "/banana": lambda v: v.say(OK + "Content-Length: banana\n", RAW),
    "/negative": lambda v: v.say(OK + "Content-Length: -1\n", RAW),
    "/petabyte": _then(lambda v: v.say(OK + f"Content-Length: {2**50}\n", RAW), lambda v: v.hang()),
    "/large": _then(lambda v: v.say(OK + f"Content-Length: {2**35}\n", RAW), lambda v: v.hang()),
    "/chunks": _then(lambda v: v.say(CHUNKED), lambda v: v.for_ever(b"10000\r\n" + bytes(65536) + b"\r\n")),
    "/chunk_garbage": lambda v: v.say(CHUNKED, b"what?\r\nfoo"),
    "/chunk_cut": lambda v: v.say(CHUNKED, b"10000\r\nabc"),
    "/chunk_trailer": _then(lambda v: v.say(CHUNKED, b"0\r\n"), lambda v: v.for_ever(b"X: y\r\n")),
    "/empty": lambda v: v.say("HTTP/1.1 204 No Content\n"),
    "/part": lambda v: v.say("HTTP/1.1 206 Partial Content\nContent-Length: 3\n", b"abc"),
    "/none": lambda v: v.say("HTTP/1.1 404 Not Found\nContent-Length: 4\n", b"none"),
    "/garbage": lambda v: v.request.sendall(b"\x00\xff\x16\x03" * 100),
    "/reset": lambda v: v.reset(),
    "/later_silent": lambda v: v.hang() if v.server.silent else v.reset(),
    "/ring": lambda v: v.redirect("/ring"),
    "/ladder": lambda v: v.redirect(f"/ladder-{len(v.server.asked)}"),
    "/moved": lambda v: v.redirect("/image"),
    "/endless_redirect": _then(
        lambda v: v.redirect("/image", "Transfer-Encoding: chunked\n"),
        lambda v: v.for_ever(b"10000\r\n" + bytes(65536) + b"\r\n"),
    ),
    "/to_file": lambda v: v.redirect("file:///etc/hostname"),
    "/to_ftp": lambda v: v.redirect("ftp://127.0.0.1:1/x"),
    "/to_nowhere": lambda v: v.redirect("http://[::bad/"),
}
