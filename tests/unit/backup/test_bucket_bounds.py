"""A bucket's server that lies: answers without end, listings that never stop, redirects in a circle. Each ends with a sentence."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from weft.backup.header import find_header
from weft.backup.key import RepositoryKey
from weft.backup.storage import s3, s3_bounds
from weft.backup.storage.s3 import S3Storage
from weft.objects.errors import Forbidden, Unavailable

Answer = Callable[[BaseHTTPRequestHandler, dict[str, list[str]]], None]


@contextmanager
def serving(answer: Answer) -> Iterator[S3Storage]:
    """A storage in a bucket without locks whose server gives ``answer`` to every other GET and HEAD."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # a head and a body are two writes

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
            if "object-lock" in query:
                send(self, 404, b"<Error><Code>ObjectLockConfigurationNotFoundError</Code></Error>")
            else:
                with suppress(OSError):
                    answer(self, query)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        place = f"http://127.0.0.1:{server.server_port}"
        yield S3Storage("s3://lies", "lies", {"endpoint": place}, ("key", "secret"))
    finally:
        server.shutdown()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


def send_endless(status: int, beginning: bytes = b"") -> Answer:
    """An answer that goes on until the client has had enough, or 400 MiB."""

    def answer(handler: BaseHTTPRequestHandler, _: dict[str, list[str]]) -> None:
        handler.send_response(status)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(beginning)
        for _ in range(400):
            handler.wfile.write(bytes(1 << 20))

    return answer


def list_pages(name: Callable[[int], str]) -> Answer:
    """A listing with always one more page, of which each has a name."""

    def answer(handler: BaseHTTPRequestHandler, query: dict[str, list[str]]) -> None:
        number = int(query.get("continuation-token", ["0"])[0])
        found = f"<Contents><Key>{name(number)}</Key><Size>1</Size></Contents>" if name(number) else ""
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{number + 1}</NextContinuationToken>"
        send(handler, 200, f"<ListBucketResult>{found}{more}</ListBucketResult>".encode())

    return answer


def test_an_object_is_read_no_further_than_it_may_be_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "MOST_OBJECT_BYTES", 1 << 20)
    with serving(send_endless(200)) as storage:
        with pytest.raises(Unavailable, match="more than the 1000 bytes that it may have"):
            storage.get("packs/a", 0, 1000)
        with pytest.raises(Unavailable, match="more than the 1048576 bytes"):
            storage.get("weft-backup")


def test_a_refusal_and_a_listing_are_read_no_further_than_one_can_be_long() -> None:
    for status, ask in (
        (404, lambda storage: storage.get("packs/a", 0, 10)),
        (200, lambda storage: list(storage.list("packs/"))),
    ):
        answer = send_endless(status, b"<Error><Code>NoSuchKey</Code>")
        with serving(answer) as storage, pytest.raises(Unavailable, match="an answer of more than 16 MiB"):
            ask(storage)


@pytest.mark.parametrize("name", [lambda _: "", lambda _: "packs/a", lambda number: f"packs/{9999 - number}"])
def test_a_listing_that_does_not_go_on_ends(name: Callable[[int], str]) -> None:
    with serving(list_pages(name)) as storage:
        with pytest.raises(Unavailable, match="a listing that has no end"):
            list(storage.list("packs/"))
        # Each GET of an object is answered with a page, too: that is no header which is damaged.
        with pytest.raises(Unavailable, match="its answer for weft-backup is a page"):
            find_header(storage, RepositoryKey.generate(), list, 0.0)


def test_a_listing_that_goes_on_and_on_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_bounds, "MOST_OBJECTS", 50)
    answer = list_pages(lambda number: f"packs/{number:09}")
    with serving(answer) as storage, pytest.raises(Unavailable, match="a listing that has no end"):
        list(storage.list("packs/"))


def test_a_redirect_in_a_circle_is_a_refusal() -> None:
    def answer(handler: BaseHTTPRequestHandler, _: dict[str, list[str]]) -> None:
        send(handler, 307, b"", Location=handler.path)

    with serving(answer) as storage, pytest.raises(Unavailable, match=r"redirect|307"):
        storage.clock_offset()


def test_an_object_that_is_as_long_as_it_should_be_is_read_whole() -> None:
    with serving(lambda handler, _: send(handler, 206, b"x" * 1000)) as storage:
        assert storage.get("packs/a", 0, 1000) == b"x" * 1000
        assert storage.get("packs/a") == b"x" * 1000


def test_a_key_that_no_header_can_have_is_called_so_and_not_shown() -> None:
    with serving(lambda handler, _: send(handler, 200, b"")) as storage:
        place = storage._s3.meta.endpoint_url
    with pytest.raises(Forbidden, match="a character that can't be sent") as refused:
        S3Storage("s3://lies", "lies", {"endpoint": place}, ("AKIASHOWN\n", "secret"))
    assert "AKIASHOWN" not in str(refused.value) and "Signature" not in str(refused.value)


def test_an_object_that_is_cut_off_is_no_object() -> None:
    def answer(handler: BaseHTTPRequestHandler, _: dict[str, list[str]]) -> None:
        handler.send_response(206)
        handler.send_header("Content-Length", "1000")
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(b"x" * 500)
        handler.close_connection = True

    with serving(answer) as storage, pytest.raises(Unavailable):
        storage.get("packs/a", 0, 1000)
