"""Each server keeps the files that are its own to keep, and removes those that nothing needs, whether it leads or not."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator

import pytest
from tests.scenario.api_lab import ApiLab
from tests.scenario.people.test_people import wait_until
from tests.scenario.two_servers_lab import TwoServers

from weft.contracts.store import Delete, Put
from weft.controllers.file.copies import FileCopies
from weft.informer.cache import Cache
from weft.informer.view import make_view
from weft.kinds.image import IMAGE, ImageSpec, ImageStatus
from weft.kinds.parts.function_code import CODE_FOLDER
from weft.kinds.parts.image.work import name_sent
from weft.objects.envelope import encode_envelope

OLD = (1_000.0, 1_000.0)


class Kept:
    """A server's copies, kept in the loop of the API servers."""

    def __init__(self, server: ApiLab) -> None:
        self._server = server
        self.folder = server.settings.blobs
        self.cache = Cache(server.store, make_view(), server.clock)
        self.copies = FileCopies(self.folder, server.name, server.api.files, server.store, self.cache, server.clock)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._tasks = [asyncio.create_task(work) for work in (self.cache.run(), self.copies.run())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def clean(self) -> None:
        self._server.run(self.cache.catch_up())
        self._server.run(self.copies.clean())

    def list(self) -> set[str]:
        return {path.name for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def kept(lab: TwoServers) -> Iterator[Kept]:
    """Of the second server."""
    made = Kept(lab.second)
    lab.second.run(made.start())
    yield made
    lab.second.run(made.stop())


def put_content(server: ApiLab, content: bytes, folder: str = "") -> str:
    sha256 = hashlib.sha256(content).hexdigest()
    path = server.settings.blobs / folder / sha256
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    os.utime(path, OLD)
    return sha256


def put_image(lab: TwoServers, name: str, sha256: str, phase: str = "Available") -> None:
    status = ImageStatus(phase=phase, sha256=sha256, format="qcow2")  # type: ignore[arg-type]
    lab.first.put(IMAGE.make(name, ImageSpec(url="file:///x"), 0.0, project="default", status=status))


def test_images_code_and_models_come_to_a_server_that_is_to_have_them(lab: TwoServers, kept: Kept) -> None:
    image, other = put_content(lab.first, b"image"), put_content(lab.first, b"unchecked")
    code = put_content(lab.first, b"code", CODE_FOLDER)
    put_image(lab, "a", image, "Fetching")
    put_image(lab, "b", other, "Failed")
    lab.first.client.create({"kind": "image", "name": "c", "spec": {"url": "file:///x"}})
    (lab.first.settings.blobs / CODE_FOLDER / f"{code}.{lab.first.client.get('project', 'default')['uid']}").touch()
    function = {"kind": "function", "name": "f", "spec": {"code": code, "handler": "app.handler"}}
    lab.first.client.create(function)
    wait_until(lambda: kept.list() == {image, code})
    assert (kept.folder / CODE_FOLDER / code).read_bytes() == b"code"


def test_a_change_that_comes_during_a_round_has_a_round_of_its_own(
    lab: TwoServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, made, late = put_content(lab.first, b"image"), Kept(lab.second), asyncio.Event()
    status = ImageStatus(phase="Fetching", sha256=image, format="qcow2")
    late_image = IMAGE.make("late", ImageSpec(url="file:///x"), 0.0, project="default", status=status)
    begin = made.copies._begin_copies

    async def begin_late() -> bool:
        missing = await begin()
        if not late.is_set():
            late.set()
            await lab.store.commit([Put(late_image.key, encode_envelope(late_image))])
            await made.cache.catch_up()
        return missing

    monkeypatch.setattr(made.copies, "_begin_copies", begin_late)
    lab.second.run(made.start())
    try:
        wait_until(lambda: made.list() == {image})
    finally:
        lab.second.run(made.stop())


def test_the_content_of_a_deleted_image_goes_from_each_server_unless_another_image_has_it(
    lab: TwoServers, kept: Kept
) -> None:
    one, two = put_content(lab.second, b"one"), put_content(lab.second, b"two")
    for name, sha256 in (("a", one), ("b", two), ("c", two)):
        put_image(lab, name, sha256)
    lab.second.run(kept.cache.catch_up())
    purge(lab, "a", "b")
    wait_until(lambda: kept.list() == {two})
    purge(lab, "c")
    wait_until(lambda: kept.list() == set())


def purge(lab: TwoServers, *names: str) -> None:
    """As the garbage collector does."""
    lab.first.run(lab.store.commit([Delete(f"/image/default/{name}") for name in names]))


def test_content_that_no_image_explains_stays_unless_all_servers_answer_and_no_other_has_it(
    lab: TwoServers, kept: Kept
) -> None:
    gone, held = put_content(lab.second, b"deleted while away"), put_content(lab.second, b"of a newer store")
    put_content(lab.first, b"of a newer store")
    used = put_content(lab.second, b"used")
    put_image(lab, "a", used)
    (kept.folder / ".copy-abc").write_text("half")
    os.utime(kept.folder / ".copy-abc", OLD)
    made = IMAGE.make("m", ImageSpec(made_from="vm/web"), 0.0, project="default", status=ImageStatus(phase="Copying"))
    lab.first.put(made)
    for uid in (made.uid, "of-a-deleted-image"):
        name_sent(kept.folder, uid, gone).write_text("sent")
        os.utime(name_sent(kept.folder, uid, gone), OLD)
    sent = name_sent(kept.folder, made.uid, gone).name
    (young := kept.folder / hashlib.sha256(b"young").hexdigest()).write_bytes(b"young")
    lab.announce(s3="")
    kept.clean()
    assert kept.list() == {gone, held, used, young.name, sent}
    lab.announce(s3=lab.first.url)
    kept.clean()
    assert kept.list() == {held, used, young.name, sent}


def test_a_server_without_others_keeps_what_no_image_explains(lab: TwoServers, kept: Kept) -> None:
    alone = put_content(lab.second, b"alone")
    lab.announce(s1="")
    kept.clean()
    assert kept.list() == {alone}
