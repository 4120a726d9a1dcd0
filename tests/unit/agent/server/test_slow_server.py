"""A report that a slow server answers late: the next one has longer for its answer, but none has longer for a connection."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from weft.agent.server.client import RemoteServer
from weft.agent.server.line import ServerLine
from weft.client.api import Client
from weft.client.connection import Unanswered
from weft.client.context import Context
from weft.contracts.clock import SystemClock
from weft.objects.errors import Unavailable
from weft.objects.identity import SERVER_NAME
from weft.protocol.report import ReportBody
from weft.serving.server import make_server_tls
from weft.trust.ca import Authority

LIMITS = (0.2, 0.3, 30.0)
WORK_SECONDS = 0.5  # longer than the first two limits


class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(WORK_SECONDS)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def slow_server(folder: Path) -> Iterator[Context]:
    authority = Authority(folder, SystemClock())
    tls = make_server_tls(*authority.renew_server([]), authority.ca_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    server.handle_error = lambda *args: None  # type: ignore[method-assign]  # the reports that are given up
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Context(server=f"https://127.0.0.1:{server.server_port}", ca=authority.ca, server_name=SERVER_NAME)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_server_that_needs_longer_than_the_first_limit_gets_a_report_done_in_the_end(tmp_path: Path) -> None:
    with slow_server(tmp_path) as context:
        server = RemoteServer(Client(context), ServerLine(SystemClock(), report_seconds=LIMITS))
        given_up = 0
        for _ in range(20):  # a handshake on a busy machine may need longer than the first limit, and changes nothing
            try:
                server.report("n1", ReportBody())
                break
            except Unanswered:
                given_up += 1
            except Unavailable:
                pass
        assert given_up == 2 and server.line.works
        assert server.line.answer_seconds == LIMITS[0], "an answer begins it again"
        server.close()


def test_who_reaches_no_server_tries_as_often_as_before() -> None:
    with socket.socket() as silent, socket.socket() as refusing:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # it takes the connection, and never shakes hands
        refusing.bind(("127.0.0.1", 0))
        for found in (silent, refusing):
            at = f"https://127.0.0.1:{found.getsockname()[1]}"
            server = RemoteServer(Client(Context(server=at)), ServerLine(SystemClock(), report_seconds=(0.1, 30.0)))
            for _ in range(2):
                with pytest.raises(Unavailable, match="no weft server answers"):
                    server.report("n1", ReportBody())
            assert server.line.answer_seconds == 0.1 and not server.line.works
            server.close()
