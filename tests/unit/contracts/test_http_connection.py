"""A hostile HTTP server costs a caller no more than the time and the bytes that it is ready to give."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from tests.unit.contracts.hostile_http import serving

from weft.contracts.clock import SystemClock
from weft.contracts.http.connection import FAILURES, HttpConnection, Reply, exchange
from weft.objects.errors import describe_failure
from weft.trust.ca import Authority

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def get(url: str, seconds: float = 20, tls: ssl.SSLContext | None = None) -> Reply:
    return exchange("GET", url, seconds=seconds, most_bytes=1000, tls=tls)


@pytest.mark.parametrize(
    ("pieces", "why"),
    [
        (lambda: itertools.chain([HEAD], itertools.repeat(b"a: " + b"b" * 9000 + b"\r\n")), "is too long"),
        (lambda: itertools.repeat(b"HTTP/1.1 100 Continue\r\na: b\r\n\r\n"), "is too long"),
        (lambda: itertools.chain([CHUNKED, b"0\r\n"], itertools.repeat(b"a: b\r\n" * 100)), "is too long"),
        (lambda: itertools.chain([CHUNKED], itertools.repeat(b"1;" + b"x" * 9000 + b"\r\nx\r\n")), "is too long"),
        (lambda: itertools.chain([HEAD, b"\r\n"], itertools.repeat(b"x" * 9000)), "too long: more than 1000 bytes"),
        (lambda: [HEAD + b"Content-Length: 9999999999\r\n\r\n" + b"x" * 1001], "too long: more than 1000 bytes"),
        (lambda: [HEAD + b"Content-Length: 50\r\n\r\nhalf"], "cut off"),
        (lambda: [b"SSH-2.0-OpenSSH_9.2\r\n"], "something else than HTTP"),
        (lambda: [b""], "hung up without an answer"),
    ],
    ids=["headers", "continues", "trailers", "extensions", "body", "length", "cut", "ssh", "closes"],
)
def test_an_answer_is_read_up_to_its_bound(pieces: Callable[[], Iterable[bytes]], why: str) -> None:
    with serving(pieces) as url, pytest.raises(FAILURES) as problem:
        get(url)
    assert re.search(why, describe_failure(problem.value))


@pytest.mark.parametrize("before", [HEAD, HEAD + b"\r\n", CHUNKED], ids=["head", "body", "chunk"])
def test_an_answer_that_drips_ends_with_the_time_of_its_request(before: bytes) -> None:
    endless = serving(lambda: itertools.chain([before], itertools.repeat(b"0")), pause=0.05)
    with endless as url, pytest.raises(TimeoutError):
        get(url, seconds=0.5)


def test_a_redirect_is_an_answer() -> None:
    with serving(lambda: [b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n"]) as url:
        assert get(url).status == 302


def test_only_a_server_with_a_certificate_of_the_ca_for_its_host_is_asked(tmp_path: Path) -> None:
    authority = Authority(tmp_path, SystemClock())
    trusting = ssl.create_default_context(cadata=authority.ca)
    (tmp_path / "metrics").mkdir()
    right, other = authority.renew_server([]), authority.renew_metrics(tmp_path / "metrics")
    for shown, tls, good in ((right, trusting, True), (right, None, False), (other, trusting, False)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*shown)
        with serving(lambda: [HEAD + b"Content-Length: 2\r\n\r\nok"], tls=context) as url:
            if good:
                assert get(url, tls=tls) == Reply(200, b"ok")
                continue
            with pytest.raises(ssl.SSLCertVerificationError):
                get(url, tls=tls)


def test_a_password_that_no_header_can_hold_is_not_told() -> None:
    with serving(lambda: [HEAD]) as url, pytest.raises(FAILURES) as problem:
        exchange("GET", url, None, {"Authorization": "Bearer one\ntwo"}, seconds=9, most_bytes=0)
    assert describe_failure(problem.value) == "the request has characters that HTTP does not allow"


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://shop.example/x?y", b"GET http://shop.example/x?y HTTP/1.1"),
        ("https://shop.example/x", b"CONNECT shop.example:443 HTTP/1.0"),
    ],
)
def test_a_proxy_is_asked_in_place_of_the_server(url: str, line: bytes) -> None:
    asked = list[bytes]()
    with serving(lambda: [b"HTTP/1.1 407 No\r\n\r\n"], asked=asked) as place:
        connection = HttpConnection(url, proxy=place.replace("://", "://me:secret@"))
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.begin("GET", url, ends=math.inf, most_bytes=0)
    assert asked[0].startswith(line) and b"Proxy-Authorization: Basic bWU6c2VjcmV0\r\n" in asked[0]
