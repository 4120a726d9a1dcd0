"""A connection that is cut is taken up where it was: by range, by sending the beginning once more, over FTP."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from weft.controllers.image.file import fetch
from weft.objects.errors import DriverFailed

CONTENT = os.urandom(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Site(ThreadingHTTPServer):
    """``cuts``: after how many bytes each of the next answers breaks off; ``asked``: the ranges that were asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Pages)
        self.cuts: list[int] = []
        self.asked: list[str] = []
        self.knows_ranges, self.content, self.tag = True, CONTENT, '"one"'
        self.on_answer: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/image"


class Pages(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        site, start = self.server, 0
        asked = self.headers.get("Range", "")
        site.asked.append(asked)
        content = site.content
        if asked and site.knows_ranges and self.headers.get("If-Range", site.tag) == site.tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("ETag", site.tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cut = site.cuts.pop(0) if site.cuts else len(content)
        self.wfile.write(content[start : start + cut])
        site.on_answer()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    server = Site()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def get(url: str, target: Path) -> str:
    return fetch(url, target, lambda _: None, threading.Event(), ["127.0.0.0/8", str(target.parent)])


def test_a_cut_connection_goes_on_where_it_was(site: Site, tmp_path: Path) -> None:
    site.cuts = [1_000_000, 500_000]
    assert get(site.url, tmp_path / "image") == SHA256
    assert site.asked == ["", "bytes=1000000-", "bytes=1500000-"]


def test_a_server_without_ranges_sends_the_beginning_once_more(site: Site, tmp_path: Path) -> None:
    site.knows_ranges, site.cuts = False, [1_000_000, 2_000_000]
    assert get(site.url, tmp_path / "image") == SHA256
    assert (tmp_path / "image").read_bytes() == CONTENT and len(site.asked) == 3


def test_content_that_changed_meanwhile_is_not_put_together(site: Site, tmp_path: Path) -> None:
    def change() -> None:
        site.content, site.tag = bytes(len(CONTENT)), '"two"'

    site.cuts, site.on_answer = [1_000_000], change
    with pytest.raises(DriverFailed, match="the file changed while it was being fetched"):
        get(site.url, tmp_path / "image")
    assert not (tmp_path / "image").exists()


def test_a_server_that_never_gets_further_is_given_up(site: Site, tmp_path: Path) -> None:
    site.knows_ranges, site.cuts = False, [1_000_000] * 30
    with pytest.raises(DriverFailed, match=r"ended after 1000000 of 3000000"):
        get(site.url, tmp_path / "image")
    assert len(site.asked) == 3


# Debian's pyftpdlib, run by Debian's Python: says its port, then each command it gets. Its first transfers break off.
FTP_SERVER = """
import socket, sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import DTPHandler, FTPHandler
from pyftpdlib.servers import FTPServer

folder, cuts = sys.argv[1], [int(word) for word in sys.argv[2:]]

class Cutting(DTPHandler):
    def send(self, data):
        if cuts and self.tot_bytes_sent >= cuts[0]:
            cuts.pop(0)
            self.socket.shutdown(socket.SHUT_RDWR)
        return super().send(data)

class Handler(FTPHandler):
    dtp_handler, use_sendfile = Cutting, False
    authorizer = DummyAuthorizer()

    def pre_process_command(self, line, cmd, arg):
        print(cmd, arg, flush=True)
        super().pre_process_command(line, cmd, arg)

Handler.authorizer.add_user("ann", "s3cret", folder)
Handler.authorizer.add_anonymous(folder)
server = FTPServer(("127.0.0.1", 0), Handler)
print(server.socket.getsockname()[1], flush=True)
server.serve_forever()
"""


@contextmanager
def serving_ftp(folder: Path, *cuts: int) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """A real FTP server with one image; where it is, and what it was asked when it has ended."""
    (folder / "served").mkdir()
    (folder / "served" / "my image").write_bytes(CONTENT)
    (folder / "server.py").write_text(FTP_SERVER)
    argv = ["/usr/bin/python3", str(folder / "server.py"), str(folder / "served"), *map(str, cuts)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()

        def commands() -> list[str]:
            server.kill()
            return server.stdout.read().splitlines() if server.stdout else []

        try:
            yield f"127.0.0.1:{port}/my%20image", commands
        finally:
            server.kill()


def test_ftp_gives_an_image_to_anybody_and_to_a_user(tmp_path: Path) -> None:
    with serving_ftp(tmp_path) as (place, commands):
        assert get(f"ftp://{place}", tmp_path / "image") == SHA256
        assert get(f"ftp://ann:s3cret@{place}", tmp_path / "image") == SHA256
        with pytest.raises(DriverFailed, match="530") as caught:
            get(f"ftp://ann:wrong@{place}", tmp_path / "image")
        assert "wrong" not in caught.value.message
        with pytest.raises(DriverFailed, match="550"):
            get(f"ftp://{place}-not", tmp_path / "image")
        assert "USER ann" in commands()


def test_a_cut_ftp_transfer_goes_on_where_it_was(tmp_path: Path) -> None:
    with serving_ftp(tmp_path, 1_000_000) as (place, commands):
        assert get(f"ftp://{place}", tmp_path / "image") == SHA256
        assert (tmp_path / "image").read_bytes() == CONTENT
        (rest,) = [int(command.split()[1]) for command in commands() if command.startswith("REST")]
        assert 0 < rest < len(CONTENT)


def test_a_path_on_a_network_file_system_is_a_file_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "on nfs").write_bytes(CONTENT)
    assert get((tmp_path / "on nfs").as_uri(), tmp_path / "image") == SHA256
