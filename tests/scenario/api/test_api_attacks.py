"""The API servers against those who hold them open: slow, endless, many. Whoever is in goes on, and nothing is held for ever."""

from __future__ import annotations

import concurrent.futures
import contextlib
import re
import resource
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.scenario.api_lab import ApiLab, make_image, make_vm
from tests.scenario.server.test_api_process import ApiProcess

from weft.client import Client, find_context
from weft.objects.errors import WeftError
from weft.serving.protocol import HttpProtocol

PATIENCE_SECONDS = 0.4


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiLab]:
    monkeypatch.setattr("weft.serving.server.CHECK_SECONDS", 0.05)
    for name in ("IDLE_SECONDS", "HEAD_SECONDS", "BODY_SECONDS", "READER_SECONDS", "LINGER_SECONDS"):
        monkeypatch.setattr(f"weft.serving.protocol.{name}", PATIENCE_SECONDS)
    for name in ("SILENCE_SECONDS", "HANDSHAKE_SECONDS", "GOODBYE_SECONDS"):
        monkeypatch.setattr(f"weft.serving.doorkeeper.{name}", PATIENCE_SECONDS)
    lab = ApiLab(tmp_path)
    yield lab
    lab.close()


def connect(lab: ApiLab, receive_buffer: int = 0) -> ssl.SSLSocket:
    plain = socket.socket()
    if receive_buffer:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    plain.settimeout(20)
    plain.connect(("127.0.0.1", lab.port))
    return ssl.create_default_context(cadata=lab.context.ca).wrap_socket(plain, server_hostname="localhost")


def head(lab: ApiLab, start: str, *more: str, token: str | None = None) -> bytes:
    lines = [f"{start} HTTP/1.1", "Host: x", f"Authorization: Bearer {token or lab.context.token}", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def read_all(sock: socket.socket) -> bytes:
    """What comes until the server hangs up."""
    answer = b""
    with contextlib.suppress(OSError):
        while piece := sock.recv(65536):
            answer += piece
    return answer


def read_answer(sock: socket.socket) -> bytes:
    """One answer, to the end of its JSON."""
    answer = b""
    while b"}" not in answer:
        piece = sock.recv(65536)
        assert piece, "the server hung up"
        answer += piece
    return answer


def until(true: Callable[[], bool]) -> None:
    for _ in range(1200):
        if true():
            return
        threading.Event().wait(0.05)
    raise AssertionError("it didn't come true in a minute")


def connections(lab: ApiLab) -> set[HttpProtocol]:
    async def look() -> set[HttpProtocol]:
        return set(lab.server.connections)

    return lab.run(look())


CREATE = "POST /v1/projects/default/vms"


@pytest.mark.parametrize("token", ["weft_x_" + "0" * 64, None], ids=["a stranger's", "an admin's"])
@pytest.mark.parametrize("body", [f"Content-Length: {2**40}", "Transfer-Encoding: chunked"])
def test_a_body_that_never_ends_is_not_taken(lab: ApiLab, token: str | None, body: str) -> None:
    piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
    with connect(lab) as sock:
        sent = 0
        with contextlib.suppress(OSError):
            sock.sendall(head(lab, CREATE, body, token=token))
            while sent < 100_000_000:
                sent += sock.send(piece)
    assert sent < 50_000_000  # the buffers of both sides, and what is read of an unwanted body
    assert lab.client.list("vm").items == []


def test_a_refusal_is_heard_by_who_sends_his_small_body_late(lab: ApiLab) -> None:
    with connect(lab) as sock:
        sock.sendall(head(lab, CREATE, "Content-Length: 1000", token="weft_x_" + "0" * 64))
        assert read_answer(sock).startswith(b"HTTP/1.1 401")
        sock.sendall(b" " * 1000 + head(lab, "GET /v1/healthz"))  # and the connection is still good
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")


def test_many_refusals_do_not_wear_a_connection_out(lab: ApiLab) -> None:
    with connect(lab) as sock:
        for _ in range(15):
            sock.sendall(head(lab, CREATE, "Content-Length: 100000", token="weft_x_" + "0" * 64))
            assert read_answer(sock).startswith(b"HTTP/1.1 401")
            sock.sendall(b" " * 100_000)


@pytest.mark.parametrize("pause_seconds", [60.0, 0.02])
def test_a_body_that_comes_too_slowly_is_told_so_and_holds_nothing(lab: ApiLab, pause_seconds: float) -> None:
    over = threading.Event()
    with connect(lab) as sock:
        sock.sendall(head(lab, CREATE, "Content-Length: 100000"))

        def trickle() -> None:
            with contextlib.suppress(OSError):
                while not over.wait(pause_seconds):
                    sock.sendall(b" ")

        trickling = threading.Thread(target=trickle)
        trickling.start()
        assert read_all(sock).startswith(b"HTTP/1.1 408")
        over.set()
        trickling.join()
    until(lambda: lab.api.busy == 0)


def test_a_head_that_trickles_is_hung_up_on(lab: ApiLab) -> None:
    with connect(lab) as sock, contextlib.suppress(OSError):
        for _ in range(400):
            sock.sendall(b"GET / HTTP/1.1\r\n" if _ == 0 else b"X: y\r\n")
            threading.Event().wait(0.05)
    assert _ < 300


def fill(lab: ApiLab, round_: int, vms: int = 240) -> None:
    for i in range(vms):
        lab.client.patch("vm", f"v{i}", {"labels": {"round": str(round_)}})


@pytest.fixture
def large(lab: ApiLab) -> ApiLab:
    """An API with more objects than the kernel buffers for anybody."""
    lab.client.create(make_image())
    lab.client.batch("vm", [make_vm(f"v{i}", user_data="#!/bin/sh\n" + "x" * 60_000) for i in range(240)])
    return lab


def test_who_never_reads_his_list_is_let_go(large: ApiLab) -> None:
    before = connections(large)
    with connect(large, receive_buffer=4096) as sock:
        sock.sendall(head(large, "GET /v1/vms"))
        until(lambda: bool(connections(large) - before))
        his = connections(large) - before
        until(lambda: not his & connections(large))
    assert len(large.client.list("vm").items) == 240


def test_who_never_reads_his_watch_is_let_go_and_the_others_miss_nothing(large: ApiLab) -> None:
    cursor = large.client.list("vm").cursor
    before = connections(large)
    with connect(large, receive_buffer=4096) as lazy:
        lazy.sendall(head(large, f"GET /v1/vms?watch=1&cursor={cursor}"))
        until(lambda: bool(connections(large) - before))
        his = connections(large) - before
        reader = large.connect()
        seen: dict[str, str] = {}

        def read() -> None:
            with contextlib.suppress(WeftError):
                for event in reader.watch("vm", cursor=cursor):
                    if event.object is not None:
                        seen[event.object["name"]] = event.object["labels"].get("round", "")
                        if list(seen.values()) == ["2"] * 240:
                            return

        reading = threading.Thread(target=read)
        reading.start()
        for round_ in (1, 2):
            fill(large, round_)
        reading.join(20)
        assert list(seen.values()) == ["2"] * 240
        reader.close()
        until(lambda: not his & connections(large))


def test_garbage_after_a_request_does_not_become_its_answer(lab: ApiLab) -> None:
    with connect(lab) as sock:
        sock.sendall(head(lab, "GET /v1/vms?watch=1&cursor=" + lab.client.list("vm").cursor))
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        sock.sendall(b"\x00\xff garbage\r\n\r\n")
        assert b"HTTP/1.1 400" not in read_all(sock)
    with connect(lab) as sock:
        sock.sendall(head(lab, "GET /v1/healthz") + b"\x00\xff garbage\r\n\r\n")
        answer = read_all(sock)
        assert answer.startswith(b"HTTP/1.1 200") and answer.count(b"HTTP/1.1 ") == 1


def test_requests_sent_ahead_are_answered_in_order_up_to_a_number(lab: ApiLab) -> None:
    with connect(lab) as sock:
        paths = ["/v1/healthz", "/v1/nowhere", "/v1/kinds"]
        sock.sendall(
            b"".join(head(lab, f"GET {path}") for path in paths[:2]) + head(lab, f"GET {paths[2]}", "Connection: close")
        )
        answer = read_all(sock)
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"404", b"200"]
    with connect(lab) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10_000)
        read_all(sock)
    with connect(lab) as sock:  # nor is anything answered after the one that is to be the last
        last = head(lab, "GET /v1/healthz", "Connection: close")
        sock.sendall(last + 3 * head(lab, "GET /v1/kinds"))
        answer = read_all(sock)
        assert answer.count(b"HTTP/1.1 ") == 1 and b"connection: close" in answer
    assert lab.client.list("vm").items == []


@pytest.mark.parametrize(
    "number", [str(2**63), str(2**64), str(-(2**63) - 1), str(10**400), "1e308", "1e-400", "-0.0", "9" * 300 + ".5"]
)
def test_a_number_no_machine_has_is_the_senders_fault(lab: ApiLab, number: str) -> None:
    for field in ("cpu", "memory", "disk", "grace", "gpus"):
        body = b'{"name":"x","spec":{"image":"tiny","' + field.encode() + b'":' + number.encode() + b"}}"
        answer = lab.client.http.request("POST", "/v1/projects/default/vms", body)
        assert answer.status in (201, 400, 404), answer.body
    for query in ("limit", "cursor", "continue"):
        answer = lab.client.http.request("GET", f"/v1/vms?{query}={number}")
        assert answer.status in (200, 400, 410), answer.body
    answer = lab.client.http.request(
        "PUT", "/v1/projects/default/vms/x", b'{"name":"x","generation":%b}' % number.encode()
    )
    assert answer.status in (400, 404, 409), answer.body


def test_handshakes_that_never_end_keep_nobody_out_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than there may be at once: who comes after them gets in when their time is up."""
    monkeypatch.setattr("weft.serving.doorkeeper.MOST_HANDSHAKES", 4)
    monkeypatch.setattr("weft.serving.doorkeeper.HANDSHAKE_SECONDS", PATIENCE_SECONDS)
    monkeypatch.setattr("weft.serving.doorkeeper.SILENCE_SECONDS", 3600.0)
    lab = ApiLab(tmp_path)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(("127.0.0.1", lab.port), 20)) for _ in range(20)]
        for sock in held[:8]:
            sock.sendall(b"\x16\x03\x01\x02\x00")  # the beginning of a greeting
        assert lab.connect().list("vm").items == []
        for sock in held[:8]:
            assert read_all(sock) == b""
        held[-1].sendall(b"GET /")  # who said nothing is still there
        assert b"HTTP" not in read_all(held[-1])
    lab.close()


def test_many_who_come_at_once_all_get_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.serving.doorkeeper.MOST_HANDSHAKES", 2)
    lab = ApiLab(tmp_path)
    clients = [lab.connect() for _ in range(40)]
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        found = list(pool.map(lambda client: client.get("project", "default")["name"], clients))
    assert found == ["default"] * 40
    lab.close()


def test_a_handshake_has_its_time(lab: ApiLab) -> None:
    with socket.create_connection(("127.0.0.1", lab.port), 20) as silent, connect(lab) as sock:
        assert read_all(silent) == b""
        assert read_all(sock) == b""  # nor is one that says nothing afterwards kept
    with socket.create_connection(("127.0.0.1", lab.port), 20) as garbled:
        garbled.sendall(b"GET / HTTP/1.1\r\n\r\n")
        read_all(garbled)
    assert lab.client.list("vm").items == []
    until(lambda: lab.server.callers.total == len(connections(lab)))


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiProcess]:
    with ApiProcess(tmp_path / "state") as api:
        yield api


@contextlib.contextmanager
def descriptors(most: int) -> Iterator[int]:
    """As many descriptors as this process may have, up to ``most``, as its limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield max(soft, wanted)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def flood(api: ApiProcess, count: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    """``count`` connections that say nothing."""
    made = []
    for _ in range(count):
        sock = stack.enter_context(socket.socket())
        sock.settimeout(20)
        with contextlib.suppress(ConnectionError):  # turned away while it came
            sock.connect(("127.0.0.1", api.port))
        made.append(sock)
    return made


def test_ten_thousand_connections_are_turned_away_in_order_and_who_is_in_goes_on(api: ApiProcess) -> None:
    process = api.start()
    client = api.connect()
    cursor = client.list("project").cursor
    with client.http.stream("GET", f"/v1/projects?watch=1&cursor={cursor}") as watch, contextlib.ExitStack() as stack:
        room = stack.enter_context(descriptors(10_500))
        flood(api, min(10_000, room - 300), stack)
        client.create({"kind": "project", "name": "amid"})  # over the connection it has
        assert any(b"amid" in line for line in watch.lines())
        late = Client(find_context(str(api.state / "context.json")), patience_seconds=20)
        assert late.get("project", "amid")["name"] == "amid"
        late.close()
    client.close()
    process.terminate()
    assert process.wait(20) == 0


def test_a_server_without_descriptors_refuses_who_comes_and_goes_on(api: ApiProcess) -> None:
    """Its limit leaves room for some forty connections; all that are let in are real ones."""
    limited = api.start("prlimit", "--nofile=300:300")
    client = api.connect()
    tls = ssl.create_default_context(cadata=find_context(str(api.state / "context.json")).ca)
    with contextlib.ExitStack() as stack:
        client.http.request("GET", "/v1/healthz")
        let_in = 0
        for sock in flood(api, 150, stack):
            with contextlib.suppress(OSError):
                stack.enter_context(tls.wrap_socket(sock, server_hostname="localhost"))
                let_in += 1
        assert 20 <= let_in < 50
        client.create({"kind": "project", "name": "amid"})
    assert client.get("project", "amid")["name"] == "amid"
    client.close()
    limited.terminate()
    assert limited.wait(20) == 0
    assert limited.stderr is not None and "the server has refused" in limited.stderr.read()
