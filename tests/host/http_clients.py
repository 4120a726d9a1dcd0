"""HTTP clients and targets of a service, fast enough to measure a proxy: run inside a namespace.

``serve NAME PORT [FAILS]``: answers each request with NAME, the X-Forwarded-For that came with it, and the peer's address; every
FAILS-th with 500; ``/head`` with the request's head, and an upgrade to WebSocket with its answer. ``ask HOST:PORT TIMES
[CONNECTIONS] [fresh]``: that many requests over so many connections, with ``fresh`` each over a new one; prints how often which
status came, what was answered, and how long it took. ``load HOST:PORT CONNECTIONS [fresh]``: the same until a line comes. ``raw
HOST:PORT``: sends what comes on standard input, prints the answer."""

from __future__ import annotations

import asyncio
import collections
import json
import socket
import sys
import time

# Source: RFC 6455, 1.3, its example: the answer to the key dGhlIHNhbXBsZSBub25jZQ==
_UPGRADED = (
    b"101 Upgraded\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)


class Target(asyncio.Protocol):
    asked = 0

    def __init__(self, name: str, fails: int) -> None:
        self._name, self._fails, self._held = name, fails, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._out = transport
        self._peer = transport.get_extra_info("peername")[0]

    def data_received(self, data: bytes) -> None:
        self._held += data
        while (end := self._held.find(b"\r\n\r\n")) >= 0:
            head, self._held = self._held[:end].lower(), self._held[end + 4 :]
            at = head.find(b"x-forwarded-for: ")
            client = head[at + 17 :].partition(b"\r\n")[0].decode() if at >= 0 else "-"
            Target.asked += 1
            status = b"500 Bad" if self._fails and Target.asked % self._fails == 0 else b"200 OK"
            body = f"{self._name} {client} {self._peer} {head.count(b'x-forwarded-for')}".encode()
            if head.startswith(b"get /head "):
                body, status = head, b"200 OK"
            elif b"\r\nupgrade: " in head:
                body, status = b"", _UPGRADED
            self._out.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))  # type: ignore[attr-defined]


async def serve(name: str, port: str, fails: str = "0") -> None:
    server = await asyncio.get_running_loop().create_server(
        lambda: Target(name, int(fails)), "", int(port), backlog=512
    )
    print("ready", flush=True)
    async with server:
        await asyncio.to_thread(sys.stdin.readline)


class Asked:
    def __init__(self, place: str, fresh: bool) -> None:
        self.host, _, self.port = place.partition(":")
        self.fresh, self.over = fresh, False
        self.statuses: collections.Counter[str] = collections.Counter()
        self.answers: collections.Counter[str] = collections.Counter()
        self.seconds: list[float] = []
        self.left = 0

    async def run(self) -> None:
        link = None
        while self.left > 0 and not self.over:
            self.left -= 1
            began = time.perf_counter()
            try:
                if link is None:
                    link = await asyncio.open_connection(self.host, int(self.port))
                reader, writer = link
                writer.write(b"GET / HTTP/1.1\r\nHost: shop\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n")
                async with asyncio.timeout(20):
                    head = await reader.readuntil(b"\r\n\r\n")
                    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                    body = await reader.readexactly(size)
            except (OSError, EOFError, TimeoutError, ValueError) as problem:
                self.statuses[type(problem).__name__] += 1
                link = None
                continue
            self.seconds.append(time.perf_counter() - began)
            self.statuses[head[9:12].decode()] += 1
            self.answers[body.decode().strip()] += 1
            if self.fresh or b"connection: close" in head.lower():
                writer.close()
                link = None

    def show(self, seconds: float) -> None:
        times = sorted(self.seconds) or [0.0]
        found = {
            "statuses": self.statuses,
            "answers": self.answers,
            "p50": times[len(times) // 2],
            "most": times[-1],
            "seconds": seconds,
        }
        print(json.dumps(found), flush=True)


async def ask(place: str, times: str, connections: str = "1", how: str = "") -> None:
    asked = Asked(place, how == "fresh")
    asked.left, began = int(times), time.perf_counter()
    await asyncio.gather(*(asked.run() for _ in range(int(connections))))
    asked.show(time.perf_counter() - began)


async def load(place: str, connections: str, how: str = "") -> None:
    asked = Asked(place, how == "fresh")
    asked.left, began = 1 << 60, time.perf_counter()
    work = [asyncio.ensure_future(asked.run()) for _ in range(int(connections))]
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    asked.over = True
    await asyncio.gather(*work)
    asked.show(time.perf_counter() - began)


async def raw(place: str) -> None:
    host, _, port = place.partition(":")
    with socket.create_connection((host, int(port)), 20) as link:
        link.sendall(sys.stdin.buffer.read())
        print(link.recv(4096).decode(errors="replace"), flush=True)


if __name__ == "__main__":
    asyncio.run({"serve": serve, "ask": ask, "load": load, "raw": raw}[sys.argv[1]](*sys.argv[2:]))
