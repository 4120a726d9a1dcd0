"""The images controller of a server that leads, beside another server: content that lies there isn't fetched again, and an image is
available once two servers have its content."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from tests.scenario.api_lab import ApiLab, take_port
from tests.scenario.people.test_people import wait_until
from tests.scenario.two_servers_lab import TwoServers

from weft.controllers.asking import run_asking
from weft.controllers.file.copies import FileCopies
from weft.controllers.image.controller import Images
from weft.informer.cache import Cache
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import make_view
from weft.kinds.image import IMAGE, ImageSpec, ImageStatus
from weft.kinds.parts.image.work import name_sent
from weft.objects.envelope import decode_part

RAW = bytes(510) + b"\x55\xaa" + bytes(1536)
SHA256 = hashlib.sha256(RAW).hexdigest()


class Leading:
    """The images controller at one server, and at the other what keeps copies, in the loop of the API servers."""

    def __init__(self, leader: ApiLab, other: ApiLab) -> None:
        self._leader, self._other = leader, other
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, *, copies: bool = True) -> None:
        leader, other = self._leader, self._other
        cache, beside = (Cache(one.store, make_view(), one.clock) for one in (leader, other))
        lease = LeaderLease(leader.store, cache, leader.journal, leader.clock, "controllers", leader.name)
        self._tasks = [asyncio.create_task(cache.run()), asyncio.create_task(beside.run())]
        await lease.begin()
        images = Images(leader.settings.blobs, lease, files=leader.api.files, allowed=["127.0.0.0/8"])
        self._tasks += [asyncio.create_task(lease.keep()), asyncio.create_task(run_asking(images, lease))]
        if copies:
            kept = FileCopies(other.settings.blobs, other.name, other.api.files, other.store, beside, other.clock)
            self._tasks.append(asyncio.create_task(kept.run()))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Site:
    """A site with one image; ``asked`` counts requests."""

    def __init__(self) -> None:
        site, self.asked = self, 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked += 1
                self.send_response(200)
                self.send_header("Content-Length", str(len(RAW)))
                self.end_headers()
                self.wfile.write(RAW)

            def log_message(self, *_: Any) -> None: ...

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/a.img"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def leading(lab: TwoServers) -> Iterator[Leading]:
    """The second server leads."""
    made = Leading(lab.second, lab.first)
    yield made
    lab.second.run(made.stop())


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


def put_image(lab: TwoServers, status: ImageStatus | None = None, **spec: Any) -> str:
    """Its uid."""
    image = IMAGE.make("gold", ImageSpec(**spec), 0.0, project="default", status=status)
    lab.first.put(image)
    return image.uid


def read_status(lab: TwoServers) -> ImageStatus:
    envelope = lab.first.stored("/image/default/gold")
    assert envelope is not None
    return decode_part(envelope.status, ImageStatus)


def has(server: ApiLab) -> bool:
    return (server.settings.blobs / SHA256).is_file()


def test_an_image_is_available_once_another_server_has_it_too(lab: TwoServers, leading: Leading, site: Site) -> None:
    lab.second.run(leading.start(copies=False))
    put_image(lab, url=site.url)
    wait_until(lambda: "doesn't lie on two servers yet" in read_status(lab).message)
    assert read_status(lab).phase == "Fetching" and (has(lab.first), has(lab.second)) == (False, True)
    lab.second.run(leading.stop())
    lab.second.run(leading.start())  # which goes on where it was
    wait_until(lambda: read_status(lab).phase == "Available")
    assert (has(lab.first), has(lab.second), site.asked, read_status(lab).message) == (True, True, 1, "")


def test_with_one_server_that_serves_one_copy_is_enough(lab: TwoServers, leading: Leading, site: Site) -> None:
    lab.announce(s1="")
    lab.second.run(leading.start(copies=False))
    put_image(lab, url=site.url)
    wait_until(lambda: read_status(lab).phase == "Available")
    assert (has(lab.first), has(lab.second)) == (False, True)


def test_a_new_leader_fetches_nothing_that_another_server_has(lab: TwoServers, leading: Leading, site: Site) -> None:
    (lab.first.settings.blobs / SHA256).write_bytes(RAW)
    known = ImageStatus(phase="Available", sha256=SHA256, format="raw", size=len(RAW))
    put_image(lab, known, url=site.url)
    before = lab.first.revision()
    lab.second.run(leading.start(copies=False))
    wait_until(lambda: lab.first.api.requests.by_code["GET", 304] > 0)
    (lab.first.settings.blobs / SHA256).unlink()
    assert (site.asked, read_status(lab), has(lab.second)) == (0, known, False)
    assert lab.first.revision() >= before
    lab.second.run(leading.stop())
    lab.second.run(leading.start())  # now none has it
    wait_until(lambda: site.asked == 1 and read_status(lab).phase == "Available" and has(lab.first))


def test_content_that_was_lost_before_a_second_server_had_it_is_fetched_again(
    lab: TwoServers, leading: Leading, site: Site
) -> None:
    put_image(lab, ImageStatus(phase="Fetching", sha256=SHA256, format="raw", size=len(RAW)), url=site.url)
    lab.second.run(leading.start())
    wait_until(lambda: read_status(lab).phase == "Available")
    assert (site.asked, has(lab.first), has(lab.second)) == (1, True, True)


def test_what_a_node_sent_to_another_server_is_taken_in_and_waited_for_while_that_is_away(
    lab: TwoServers, leading: Leading
) -> None:
    uid = put_image(lab, ImageStatus(phase="Fetching", sha256=SHA256, cleaned=["keys"]), made_from="vm/web")
    name_sent(lab.first.settings.blobs, uid, SHA256).write_bytes(RAW)
    gone = take_port()
    lab.announce(s1=f"https://127.0.0.1:{gone.getsockname()[1]}")
    gone.close()
    lab.second.run(leading.start())
    wait_until(lambda: "may be on s1, which can't be reached" in read_status(lab).message)
    assert read_status(lab).phase == "Fetching"
    lab.announce()
    wait_until(lambda: read_status(lab).phase == "Available")
    status = read_status(lab)
    assert (status.format, status.cleaned, status.message) == ("raw", ["keys"], "")
    assert (has(lab.first), has(lab.second)) == (True, True)
