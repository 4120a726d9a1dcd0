"""What a client is told when nobody answers, or when it is closed while others use it."""

from __future__ import annotations

import http.server
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import msgspec
import pytest

from weft.client.answer import ClientAnswer, raise_problem
from weft.client.connection import Unanswered
from weft.client.context import Context
from weft.client.http import Http
from weft.contracts.clock import SystemClock
from weft.objects.errors import InvalidInput, NotFound, Unavailable, WeftError
from weft.objects.identity import SERVER_NAME
from weft.serving.server import make_server_tls
from weft.trust.ca import Authority


def test_a_watch_that_finds_nobody_listening_is_told_so_like_any_request() -> None:
    """Whoever follows the server catches this one error and dials again; another would end its thread for ever."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening: refused, and nobody else gets the port
        http = Http(Context(server=f"https://127.0.0.1:{held.getsockname()[1]}"))
        for ask in (http.request, http.stream):
            with pytest.raises(Unavailable, match="no weft server answers"):
                ask("GET", "/v1/publishedports")


@pytest.mark.parametrize(
    "server",
    ["h:1", "http://h", "https://", "https://h:x", "https://[::1", "https://u:p@h", "https://h/x", "https://h;rm x"],
)
def test_an_address_that_is_not_a_server_s_is_refused_before_anybody_is_asked(server: str) -> None:
    with pytest.raises(InvalidInput, match="is not an https URL"):
        Http(Context(server=server))


@pytest.mark.parametrize("token", ["secret\n", "secr\u20act"])
def test_a_token_that_no_request_can_hold_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Http(Context(server="https://127.0.0.1:1", token=token))
    assert refused.value.field == "token" and "secr" not in f"{refused.value.to_dict()}"


class Answers(http.server.BaseHTTPRequestHandler):
    """Says a line over and over to who asks for a stream, and one to anybody else; hangs up on the first who asks for /late. Is
    silent to a POST, and after the first line of /quiet, until ``asked`` is set."""

    protocol_version = "HTTP/1.1"
    asked: Event

    def do_GET(self) -> None:
        if self.path == "/late" and not self.asked.is_set():
            self.asked.set()
            self.close_connection = True
            return
        self.send_response(200)
        if self.path == "/quiet":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"5\r\nline\n\r\n")
            self.asked.wait(30)
            self.close_connection = True
        elif self.path == "/stream":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"5\r\nline\n\r\n")
            except OSError:
                self.close_connection = True
        else:
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"line\n")

    def do_POST(self) -> None:
        self.asked.wait(30)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(
    folder: Path, asked: Event | None = None, servers: list[http.server.ThreadingHTTPServer] | None = None
) -> Iterator[Context]:
    authority = Authority(folder, SystemClock())
    tls = make_server_tls(*authority.renew_server([]), authority.ca_path)
    answers = type("Answering", (Answers,), {"asked": asked or Event()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), answers)
    server.daemon_threads = True
    server.handle_error = lambda *args: None  # type: ignore[method-assign]  # clients hang up amid their handshake here
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    (servers if servers is not None else []).append(server)
    try:
        yield Context(server=f"https://127.0.0.1:{server.server_port}", ca=authority.ca, server_name=SERVER_NAME)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_whoever_uses_a_client_that_another_thread_closes_hears_that_the_connection_is_lost(tmp_path: Path) -> None:
    """However far it is just then: dialling, sending, reading an answer or a stream."""
    with serving(tmp_path) as context:
        for _ in range(15):
            client, ends = Http(context, timeout_seconds=10), []

            def ask(client: Http = client, ends: list[object] = ends) -> None:
                try:
                    while True:
                        client.request("GET", "/")
                except BaseException as problem:  # every end is compared below
                    ends.append(problem)

            def follow(client: Http = client, ends: list[object] = ends) -> None:
                try:
                    with client.stream("GET", "/stream") as stream:
                        ends.append(list(stream.lines()))
                except BaseException as problem:  # as above
                    ends.append(problem)

            threads = [threading.Thread(target=work) for work in (ask, ask, follow, follow)]
            for thread in threads:
                thread.start()
            threads[0].join(random.uniform(0, 0.05))
            client.close()
            for thread in threads:
                thread.join(10)
            assert [type(end) for end in ends] == [Unavailable] * 4, ends


def test_what_was_begun_reaches_the_server_at_once_and_is_answered_although_its_connection_was_lost(
    tmp_path: Path,
) -> None:
    asked = Event()
    with serving(tmp_path, asked) as context:
        client = Http(context, timeout_seconds=10)
        assert client.begin("/")().body == b"line\n"  # no connection is kept yet
        late = client.begin("/late")
        assert asked.wait(10)
        assert late().body == b"line\n"
        assert client.begin("/")().body == b"line\n"
        client.close()


def test_a_kept_connection_has_no_longer_for_its_answer_since_it_may_have_been_cut(tmp_path: Path) -> None:
    asked = Event()
    with serving(tmp_path, asked) as context:
        client = Http(context, timeout_seconds=10)
        client.request("GET", "/")
        with pytest.raises(Unanswered):  # later the server hangs up, which is another error
            client.request("POST", "/", b"{}", timeout_seconds=0.1, answer_seconds=60.0)
        asked.set()
        client.close()


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'["reason"]', b'"reason"', b"{}", b"\xff"])
def test_an_error_that_is_none_of_weft_s_is_told_by_its_status(body: bytes) -> None:
    with pytest.raises(WeftError, match="HTTP status 502") as caught:
        raise_problem(ClientAnswer(502, {}, body))
    assert caught.value.details == {"status": 502}


def test_an_error_in_prometheus_form_has_its_message() -> None:
    body = b'{"status":"error","errorType":"bad_data","error":"query is missing","reason":"invalidInput"}'
    with pytest.raises(InvalidInput, match="query is missing"):
        raise_problem(ClientAnswer(400, {}, body))


@pytest.mark.parametrize(
    "odd",
    [
        {"details": [1], "request_id": "r1"},
        {"details": "text", "request_id": {"a": 1}},
        {"hint": [1], "field": {}, "retry_after_seconds": "soon", "family": []},
    ],
)
def test_parts_of_a_wrong_type_in_another_clusters_problem_are_left_out(odd: dict[str, object]) -> None:
    body = msgspec.json.encode({"reason": "notFound", "message": "no such replica", **odd})
    with pytest.raises(NotFound, match="no such replica") as caught:
        raise_problem(ClientAnswer(404, {}, body))
    problem = caught.value
    assert (problem.hint, problem.field, problem.retry_after_seconds) == (None, None, None)
    assert problem.details == ({"request_id": odd["request_id"]} if "request_id" in odd else {})


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("CONNECT_SECONDS", 0.05), ("SECOND_SECONDS", 0.1), ("LOSS_SECONDS", 1.0)):
        monkeypatch.setattr(f"weft.client.http.{name}", seconds)


@pytest.mark.usefixtures("short_waits")
def test_what_is_followed_at_a_server_that_froze_is_cut_once_it_was_silent_for_long(tmp_path: Path) -> None:
    """Its connections stand: only a request to it shows that nobody is there."""
    frozen = list[http.server.ThreadingHTTPServer]()
    with serving(tmp_path, servers=frozen) as first, serving(tmp_path) as second:
        client = Http(msgspec.structs.replace(first, others=[second.server]), timeout_seconds=60)
        ends, heard = list[object](), Event()

        def follow() -> None:
            try:
                with client.stream("GET", "/quiet") as followed:
                    for _ in followed.lines():
                        heard.set()
            except WeftError as problem:
                ends.append(problem.message)

        following = threading.Thread(target=follow)
        following.start()
        assert heard.wait(10)
        frozen[0].shutdown()  # it takes no connection more
        assert client.request("GET", "/").body == b"line\n"
        assert [one.url for one in client.endpoints.in_turn()] == [second.server, first.server]
        while following.is_alive():
            following.join(0.05)
            assert client.request("GET", "/").body == b"line\n"
        assert len(ends) == 1 and "the connection to the server was lost" in str(ends[0])
        client.close()


@pytest.mark.usefixtures("short_waits")
def test_what_a_slow_server_still_sends_is_not_cut_when_another_one_answers_in_its_place(tmp_path: Path) -> None:
    slow = list[http.server.ThreadingHTTPServer]()
    with serving(tmp_path, servers=slow) as first, serving(tmp_path) as second:
        client = Http(msgspec.structs.replace(first, others=[second.server]), timeout_seconds=60)
        with client.stream("GET", "/stream") as followed:
            lines = followed.lines()
            assert next(lines) == b"line"
            slow[0].shutdown()  # and goes on with the connections that it has
            client.request("GET", "/")
            assert [one.url for one in client.endpoints.in_turn()] == [second.server, first.server]
            for _ in range(20_000):  # more than was on its way
                assert next(lines) == b"line"
            client.request("GET", "/")
            assert next(lines) == b"line"
        client.close()


@pytest.mark.usefixtures("short_waits")
def test_where_all_servers_are_slow_the_first_has_the_whole_time(tmp_path: Path) -> None:
    slow = list[http.server.ThreadingHTTPServer]()
    with serving(tmp_path, servers=slow) as first, socket.create_server(("127.0.0.1", 0)) as silent:
        silent_url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        client = Http(msgspec.structs.replace(first, others=[silent_url]), timeout_seconds=60)
        slow[0].shutdown()
        answers = list[bytes]()
        asking = threading.Thread(target=lambda: answers.append(client.request("GET", "/").body))
        asking.start()
        asking.join(0.8)  # by then it has tried both, twice
        assert asking.is_alive()
        again = threading.Thread(target=slow[0].serve_forever, kwargs={"poll_interval": 0.02})
        again.start()
        asking.join(30)
        assert answers == [b"line\n"]
        client.close()
        slow[0].shutdown()
        again.join()
