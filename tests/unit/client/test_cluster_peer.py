"""What another cluster answers may be anything: it is read within bounds, and what it says stays words."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from weft.client.cluster import hold
from weft.client.cluster.peer import PeerLink, ask_hello, begin_link, clip, connect_peer, find_ca
from weft.client.context import hash_ca
from weft.contracts.clock import SystemClock
from weft.objects.errors import AlreadyExists, InvalidInput, NotAuthenticated, Unavailable, WeftError
from weft.protocol.link import AcceptInput
from weft.serving.server import make_server_tls
from weft.trust.ca import Authority

GOOD = {"uid": "u", "release": "0.1.0", "epoch": "e", "oldest": 1, "newest": 1, "now": 1.0}
SECRET = "weft_cluster-ab_" + "5" * 64
Respond = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def far(folder: Path, respond: Respond) -> Iterator[PeerLink]:
    """A server under a CA of its own whose answers are ``respond``'s."""
    authority = Authority(folder, SystemClock())
    tls = make_server_tls(*authority.renew_server([]), authority.ca_path)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.close_connection = True
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with contextlib.suppress(OSError):  # the client has cut it
                respond(self)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *args: None  # type: ignore[method-assign]
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield PeerLink("west", f"https://127.0.0.1:{server.server_port}", authority.ca, SECRET)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reply(status: int, body: bytes, **headers: str) -> Respond:
    def respond(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return respond


def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while True:
        handler.wfile.write(b"1000\r\n" + b" " * 4096 + b"\r\n")


def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        time.sleep(0.1)


def drip_headers(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.1)


def encode(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_a_good_answer_is_taken_with_fields_that_this_release_does_not_know(tmp_path: Path) -> None:
    with far(tmp_path, reply(200, encode({**GOOD, "later": {"a": [1]}}))) as link:
        assert ask_hello(link).epoch == "e"


def test_a_request_says_which_project_here_it_is_for(tmp_path: Path) -> None:
    said = []

    def respond(handler: http.server.BaseHTTPRequestHandler) -> None:
        said.append((handler.path, handler.headers.get("weft-project")))
        reply(200, b"{}")(handler)

    with far(tmp_path, respond) as link, contextlib.closing(connect_peer(link)) as client:
        client.ask_for("shop").get("replica", "web", project="mall")
        hold.renew_holds(link, [hold.Hold("mall", "web", "o", "till"), hold.Hold("", "web", "o", "atk")])
    assert said == [
        ("/v1/projects/mall/replicas/web", "shop"),
        ("/v1/projects/mall/replicas/web:renew", "till"),
    ]


BAD: dict[str, tuple[Respond, type[WeftError], str]] = {
    "a token that counts no more": (reply(401, b"{}"), NotAuthenticated, "linkRefused"),
    "a right that was taken": (reply(403, b"{}"), NotAuthenticated, "linkRefused"),
    "an older release": (reply(404, b"{}"), InvalidInput, "linkProtocol"),
    "a failure": (reply(500, b"{}"), Unavailable, "unavailable"),
    "another place": (reply(302, b"", Location="https://127.0.0.1:1/"), InvalidInput, "linkProtocol"),
    "no JSON": (reply(200, b"<html>"), InvalidInput, "linkProtocol"),
    "deep JSON": (reply(200, b"[" * 60_000), InvalidInput, "linkProtocol"),
    "deep JSON in a field nobody reads": (
        reply(200, encode(GOOD)[:-1] + b',"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}"), InvalidInput, "linkProtocol",
    ),
    "wrong types": (reply(200, encode({**GOOD, "now": "soon"})), InvalidInput, "linkProtocol"),
    "a missing field": (reply(200, encode({"uid": "u"})), InvalidInput, "linkProtocol"),
    "half an answer": (reply(200, b'{"uid":', Content_Length="90"), Unavailable, "unavailable"),
    "too much": (reply(200, b" " * 100_000), Unavailable, "answerTooLong"),
    "without an end": (endless, Unavailable, "answerTooLong"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_answer_is_refused_without_the_token_in_the_error(tmp_path: Path, case: str) -> None:
    respond, type_, reason = BAD[case]
    with far(tmp_path, respond) as link, pytest.raises(type_) as caught:
        ask_hello(link)
    assert caught.value.token == reason
    assert "555" not in f"{caught.value.to_dict()} {link!r}"


@pytest.mark.parametrize("respond", [drip, drip_headers])
def test_an_answer_that_never_ends_is_cut(tmp_path: Path, respond: Respond) -> None:
    with far(tmp_path, respond) as link, pytest.raises(Unavailable):
        ask_hello(link, seconds=0.5)


def test_a_handshake_that_never_ends_is_cut(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        link = PeerLink("west", f"https://127.0.0.1:{silent.getsockname()[1]}", "", SECRET)
        with pytest.raises(Unavailable):
            ask_hello(link, seconds=0.3)


def test_another_of_its_servers_is_asked_when_the_link_s_own_does_not_answer(tmp_path: Path) -> None:
    body = (
        b'{"uid":"u","release":"0.1.0","epoch":"e","oldest":1,"newest":1,"now":1.0,"servers":["https://10.0.0.2:8443"]}'
    )
    with far(tmp_path, reply(200, body)) as link, socket.create_server(("127.0.0.1", 0)) as silent:
        for gone in ("https://127.0.0.1:1", f"https://127.0.0.1:{silent.getsockname()[1]}"):
            found = ask_hello(PeerLink("west", gone, link.ca, SECRET, (link.url,)))
            assert (found.uid, found.servers) == ("u", ["https://10.0.0.2:8443"])


def test_who_has_another_ca_gets_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    asked = []
    other = Authority(tmp_path / "b", SystemClock())
    with far(tmp_path / "a", asked.append) as link:
        with pytest.raises(InvalidInput) as caught:
            ask_hello(PeerLink("west", link.url, other.ca, SECRET))
        assert caught.value.token == "wrongCa"
        with pytest.raises(InvalidInput) as caught:
            find_ca(link.url, hash_ca(other.ca))
        assert caught.value.token == "wrongCa"
        assert hash_ca(find_ca(link.url, hash_ca(link.ca))) == hash_ca(link.ca)
    assert asked == []


def test_a_refusal_of_the_link_is_told_in_short_and_harmless_words(tmp_path: Path) -> None:
    said = {"reason": "internalError", "message": f"\x1b[2J{SECRET} " + "x" * 5000, "hint": "a\nb", "details": {"a": 1}}
    offer = AcceptInput(ca="c", url="u", token_id="t", sha256="s", release="r", epoch="e", oldest=1, newest=1)
    for status, type_ in ((400, InvalidInput), (401, InvalidInput), (403, InvalidInput), (409, AlreadyExists)):
        with far(tmp_path, reply(status, encode(said))) as link, pytest.raises(type_) as caught:
            begin_link(link.url, SECRET, link.ca, offer)
        text = json.dumps(caught.value.to_dict())
        assert "555" not in text and "\\u001b" not in text and len(text) < 600
    assert clip("a\x00b") == "a b"


def test_the_api_of_another_cluster_is_read_within_bounds(tmp_path: Path) -> None:
    with far(tmp_path, endless) as link:
        client = connect_peer(link)
        with pytest.raises(Unavailable, match="longer than"):
            client.get("vm", "web")
        client.close()


@pytest.mark.parametrize("respond", [drip, drip_headers], ids=["body", "headers"])
def test_a_word_about_a_hold_takes_no_longer_than_its_time_however_slowly_the_answer_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, respond: Respond
) -> None:
    """No silence of it is long."""
    monkeypatch.setattr(hold, "REQUEST_SECONDS", 0.5)
    asked = threading.Event()

    def ask(link: PeerLink) -> None:
        assert hold.read_arming(link, hold.Hold("p", "web", "o", "own")).outcome == "silent"
        assert hold.renew_holds(link, [hold.Hold("p", "web", "o", "own")]) == [False]
        asked.set()

    with far(tmp_path, respond) as link:
        threading.Thread(target=ask, args=(link,), daemon=True).start()
        assert asked.wait(30.0)
