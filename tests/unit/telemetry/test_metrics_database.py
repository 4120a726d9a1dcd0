"""Requests to the database for metrics: whom they trust, and what it means when the other end hangs up."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.unit.contracts.hostile_http import serving

from weft.contracts.clock import SystemClock
from weft.contracts.http.connection import Reply
from weft.objects.errors import TimedOut, TooLarge, Unavailable
from weft.telemetry.metrics.database import Asker, Database, DatabaseEnded, make_own
from weft.trust.ca import Authority

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server on loopback that gives each connection to ``serve``; its port."""
    with socket.create_server(("127.0.0.1", 0)) as door:

        def accept() -> None:
            while True:
                try:
                    link, _ = door.accept()
                except OSError:
                    return
                with link, suppress(OSError):
                    serve(link)

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield door.getsockname()[1]
        finally:
            door.shutdown(socket.SHUT_RDWR)


def read_whole(link: socket.socket) -> bytes:
    """A request with the body that ``ask`` gives it, which may come apart; b"" at the end of the connection."""
    data = b""
    while not data.endswith(b"\r\n\r\nq") and (piece := link.recv(9999)):
        data += piece
    return data


def ask(database: Database, times: int = 1, seconds: float = 5) -> Reply:
    asker = Asker(SystemClock(), 1)

    async def run() -> list[Reply]:
        return [await asker.ask(database, "/x", b"q", {}, seconds=seconds, most_bytes=100) for _ in range(times)]

    try:
        return asyncio.run(run())[-1]
    finally:
        asker.close()


def wrap(folder: Path, got: list[bytes]) -> tuple[Authority, Callable[[socket.socket], None]]:
    """A TLS server with the certificate of a CA of its own, which answers two requests and keeps what it reads."""
    authority = Authority(folder, SystemClock())
    (folder / "metrics").mkdir()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.renew_metrics(folder / "metrics"))

    def serve(link: socket.socket) -> None:
        with context.wrap_socket(link, server_side=True) as inside:
            for _ in range(2):
                got.append(inside.recv(9999))
                inside.sendall(ANSWER)

    return authority, serve


def test_only_the_database_with_a_certificate_of_the_fabrics_ca_gets_the_password(tmp_path: Path) -> None:
    seen: list[bytes] = []
    own, serve_own = wrap(tmp_path / "own", seen)
    with listening(serve_own) as port:
        assert ask(make_own(port, "secret", own.ca), times=2).body == b"ok"
    assert b"Basic " in seen[0]

    stolen: list[bytes] = []
    _, serve_other = wrap(tmp_path / "other", stolen)
    for serve in (serve_other, lambda link: stolen.append(link.recv(9999)) or link.sendall(ANSWER)):
        with listening(serve) as port, pytest.raises(Unavailable) as refused:
            ask(make_own(port, "secret", own.ca))
        assert not isinstance(refused.value, DatabaseEnded)
    assert not any(b"Basic " in data for data in stolen)


def test_another_certificate_of_the_same_ca_is_not_the_databases(tmp_path: Path) -> None:
    authority = Authority(tmp_path, SystemClock())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.renew_server(["127.0.0.1"]))

    def serve(link: socket.socket) -> None:
        context.wrap_socket(link, server_side=True).close()

    with listening(serve) as port, pytest.raises(Unavailable, match=r"verify failed|certificate"):
        ask(make_own(port, "secret", authority.ca))


def test_a_database_that_ends_before_its_answer_is_told_from_one_that_is_away() -> None:
    with listening(lambda link: read_whole(link) and None) as port, pytest.raises(DatabaseEnded):
        ask(Database("victoriametrics", f"http://127.0.0.1:{port}"))
    with pytest.raises(Unavailable) as away:
        ask(Database("victoriametrics", f"http://127.0.0.1:{port}"))
    assert not isinstance(away.value, DatabaseEnded)


def test_an_answer_that_was_cut_off_is_no_answer_nor_is_one_whose_head_drips() -> None:
    with serving(lambda: [b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nok"]) as url, pytest.raises(DatabaseEnded):
        ask(Database("victoriametrics", url))
    endless = serving(lambda: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n", 200), pause=0.05)
    with endless as url, pytest.raises(TimedOut):
        ask(Database("victoriametrics", url), seconds=0.3)
    with serving(lambda: [b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 101]) as url, pytest.raises(TooLarge):
        ask(Database("victoriametrics", url))


def test_a_connection_that_was_hung_up_while_idle_is_not_used_again() -> None:
    with listening(lambda link: read_whole(link) and link.sendall(ANSWER)) as port:
        assert ask(Database("victoriametrics", f"http://127.0.0.1:{port}"), times=3).body == b"ok"


def test_a_request_is_sent_again_when_its_kept_connection_was_hung_up_as_it_was_sent() -> None:
    got = list[bytes]()

    def serve(link: socket.socket) -> None:
        got.append(read_whole(link))
        link.sendall(ANSWER)
        got.append(read_whole(link))

    with listening(serve) as port:
        assert ask(Database("victoriametrics", f"http://127.0.0.1:{port}"), times=3).body == b"ok"
    assert len(got) >= 5 and set(got[:5]) == {got[0]}, "the second and the third were sent twice"


def test_a_database_that_ends_during_a_request_on_a_kept_connection_is_not_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            link, _ = door.accept()
            with link:
                read_whole(link)
                link.sendall(ANSWER)
                read_whole(link)
                door.close()

        server = threading.Thread(target=serve)
        server.start()
        with pytest.raises(DatabaseEnded):
            ask(Database("victoriametrics", f"http://127.0.0.1:{door.getsockname()[1]}"), times=2)
        server.join()
