"""Images, what containers write, and full disks: a real small file system, on the server and on a node."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

import msgspec
import pytest
from tests.unit.controllers.image.hostile_site import hostile_site

from weft.agent.image.cache import ImageCache
from weft.agent.server.client import Server
from weft.agent.state.table import AllocationTable
from weft.contracts.driver.container import ContainerPlan, ContainerProcess
from weft.controllers.image.file import fetch
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.rootfs.writable_layer import ensure_disk
from weft.kinds.allocation import AllocatedImage
from weft.objects.errors import DriverFailed
from weft.objects.image.bundle import BundleManifest

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")]
MIB = 1024 * 1024


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def used(place: Path) -> int:
    facts = os.statvfs(place)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize


def no_space(act: Callable[[], object]) -> str:
    with pytest.raises(DriverFailed) as caught:
        act()
    assert caught.value.token == "noSpace" and caught.value.hint
    return caught.value.message


def test_an_image_that_does_not_fit_on_the_server_leaves_it_as_it_was(small: Path, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(20 * MIB))
    stop = threading.Event()
    before = used(small)
    assert "server's disk" in no_space(
        lambda: fetch(
            f"file://{tmp_path}/large", small / ".fetch-x", lambda _: None, stop, [str(tmp_path), "127.0.0.1"]
        )
    )
    with hostile_site() as site:
        for path in ("/chunks", "/large"):
            assert path in no_space(
                lambda p=path: fetch(
                    site.url + p, small / ".fetch-x", lambda _: None, stop, [str(tmp_path), "127.0.0.1"]
                )
            )
    assert list(small.iterdir()) == [] and used(small) == before


def test_a_server_keeps_room_for_its_store(small: Path, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(20 * MIB))
    fullest = 0

    def note(_: int) -> None:
        nonlocal fullest
        fullest = max(fullest, used(small))

    no_space(lambda: fetch(f"file://{tmp_path}/large", small / ".fetch-x", note, threading.Event(), [str(tmp_path)]))
    assert 4 * MIB < fullest < 8 * MIB


class Blobs:
    """A server that has one image."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def fetch_blob(self, sha256: str, out: BinaryIO, on_progress: Callable[[int], None]) -> None:
        out.write(self.content)


def bundle(size: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in (("image.json", msgspec.json.encode(BundleManifest("disk", "raw"))), ("disk", bytes(size))):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize("size", [5 * MIB, 20 * MIB])
def test_an_image_that_does_not_fit_on_a_node_leaves_it_as_it_was(
    small: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """5 MiB: the archive fits and what it holds beside it doesn't."""
    monkeypatch.setattr("weft.agent.image.cache.SPARE_BYTES", 0)
    content = bundle(size)
    image = AllocatedImage(name="large", uid="u", sha256=hashlib.sha256(content).hexdigest(), size=0, url="")
    cache = ImageCache(str(small), cast(Server, cast(Any, Blobs(content))), AllocationTable())
    before = used(small)
    try:
        assert "large" in no_space(lambda: asyncio.run(cache.ensure(image, lambda _: None)))
        assert cache.list() == [] and list((small / "images").iterdir()) == [] and used(small) <= before
    finally:
        cache.close()


def test_images_that_nothing_uses_make_room_the_longest_unused_first(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.agent.image.cache.SPARE_BYTES", 0)
    used_here: set[str] = set()
    table = cast(AllocationTable, SimpleNamespace(images=lambda: used_here))
    blobs = Blobs(b"")
    cache = ImageCache(str(small), cast(Server, cast(Any, blobs)), table)

    def ensure(name: str, size: int) -> str:
        blobs.content = bundle(size) + name.encode()
        sha256 = hashlib.sha256(blobs.content).hexdigest()
        image = AllocatedImage(name=name, uid="u", sha256=sha256, size=size, url="")
        asyncio.run(cache.ensure(image, lambda _: None))
        return sha256

    def age(sha256: str, seconds: int) -> None:
        os.utime(small / "images" / sha256, (seconds, seconds))

    try:
        first, second, third = (ensure(name, MIB // 2) for name in ("first", "second", "third"))
        for number, sha256 in enumerate((second, first, third)):
            age(sha256, number)
        used_here.add(second)
        free = os.statvfs(small).f_bavail * os.statvfs(small).f_frsize
        large = ensure("large", (free + MIB // 4) // 2)
        assert cache.list() == sorted({second, third, large})  # second is older, but in use
        used_here.update((third, large))
        assert "needs" in no_space(lambda: ensure("larger", 6 * MIB))
        assert cache.list() == sorted({second, third, large})
    finally:
        cache.close()


async def test_a_container_s_disk_that_does_not_fit_leaves_nothing(small: Path, tmp_path: Path) -> None:
    """Neither where its file system is made, nor where one is written that is known by then."""
    plan = ContainerPlan(
        id="c", uid="c", name="c", incarnation=1, layers=[], process=ContainerProcess(["true"]), cpu=1.0,
        memory_bytes=MIB, disk_bytes=47 * MIB,
    )  # fmt: skip
    full, there = (ContainerPaths(run=place, state=place) for place in (small, tmp_path))
    (small / "rest").write_bytes(bytes(8 * MIB - 40960))
    before = used(small)
    with pytest.raises(DriverFailed, match="No space left on device") as caught:
        await ensure_disk(plan, full)
    assert caught.value.token == "noSpace"
    await ensure_disk(plan, there)
    with pytest.raises(OSError, match="No space left on device"):
        await ensure_disk(plan, full)
    assert [path.name for path in small.iterdir()] == ["rest"] and used(small) == before
    assert there.disk.stat().st_size == 47 * MIB and not there.disk.with_suffix(".new").exists()
