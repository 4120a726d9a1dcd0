"""Container images that the fabric holds, on a node: from the server's archive into a real store, once."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from image_lab import files, leftovers, node

from weft.agent.image.cache import ImageCache
from weft.agent.image.oci import ContainerImages
from weft.agent.server.client import Server
from weft.agent.state.allocation import LocalAllocation
from weft.agent.state.table import AllocationTable
from weft.contracts.clock import SystemClock
from weft.contracts.driver.runtime import GuestFacts
from weft.images.busybox.build import pack_image
from weft.kinds.allocation import AllocatedContainer, AllocatedImage, AllocationSpec, Resources
from weft.objects.errors import NotAuthenticated, WeftError
from weft.objects.identity import Ref
from weft.objects.image.oci_archive import read_archive

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Blobs:
    """A server that has one archive, and counts who asks."""

    def __init__(self, content: bytes) -> None:
        self.content, self.asked = content, 0

    def fetch_blob(self, sha256: str, out: BinaryIO, on_progress: Callable[[int], None], ticket: str = "") -> None:
        self.asked += 1
        for at in range(0, len(self.content), 4096):
            out.write(self.content[at : at + 4096])
            on_progress(out.tell())


class HeldNode:
    def __init__(self, folder: Path, archive: bytes) -> None:
        self.folder, self.archive = folder, archive
        self.server, self.store = Blobs(archive), node(folder)
        table = AllocationTable()
        table.found["g"] = GuestFacts("g", "g", "g", 1, "running")  # which may need any image
        cache = ImageCache(str(folder), cast(Server, cast(Any, self.server)), table)
        self.images = ContainerImages(self.store, cache, table, SystemClock())

    def wanted(self, uid: str, digest: str = "") -> LocalAllocation:
        with open(self.folder / "x.tar", "wb+") as file:
            file.write(self.archive)
            digest = digest or read_archive(file, len(self.archive))
        sha256 = hashlib.sha256(self.archive).hexdigest()
        image = AllocatedImage(name="web", uid="u", sha256=sha256, size=len(self.archive), url="", digest=digest)
        container = AllocatedContainer(image="web")
        ref = Ref("container", uid, f"uid-of-{uid}", "default")
        spec = AllocationSpec(
            node="n1", node_uid="uid", workload=ref, workload_generation=1, incarnation=1, resources=Resources(), volumes=[],
            nics=[], image=image, container=container,
        )  # fmt: skip
        return LocalAllocation(uid, uid, spec)

    def archives(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "images").iterdir())


@pytest.fixture
def held(tmp_path: Path) -> HeldNode:
    tmp_path.chmod(0o700)  # as a node's own folder is: nobody else may read in it
    return HeldNode(tmp_path, pack_image(files(hello="x" * 50_000)))


async def test_it_is_fetched_once_for_all_that_want_it_and_its_archive_goes(held: HeldNode) -> None:
    told: list[str] = []
    ready = await asyncio.gather(*(held.images.ensure(held.wanted(uid), "", told.append) for uid in ("a", "b", "c")))
    assert held.server.asked == 1 and len({image.digest for image, _ in ready}) == 1 and told
    assert (Path(ready[0][0].layers[0]) / "hello").read_text() == "x" * 50_000
    again, said = await held.images.ensure(held.wanted("d"), ready[0][0].digest, told.append)
    assert (held.server.asked, said, again.digest) == (1, "cached", ready[0][0].digest)
    assert held.archives() == [] and leftovers(held.folder) == []


async def test_one_that_is_not_what_it_was_said_to_be_leaves_nothing(held: HeldNode) -> None:
    with pytest.raises(WeftError) as caught:
        await held.images.ensure(held.wanted("a", f"sha256:{'ab' * 32}"), "", lambda _: None)
    assert str(held.folder) not in caught.value.message and "web" in caught.value.message
    assert held.archives() == [] and leftovers(held.folder) == []


async def test_an_archive_that_a_person_names_is_read_as_everybody_may(held: HeldNode) -> None:
    (held.folder / "x.tar").write_bytes(held.archive)
    with pytest.raises(NotAuthenticated):
        await held.store.pull(f"oci-archive:{held.folder}/x.tar")
    assert (await held.store.pull(f"oci-archive:{held.folder}/x.tar", own_file=True)).layers


async def test_what_a_killed_agent_left_of_an_archive_goes(held: HeldNode) -> None:
    (held.folder / "images" / f".archive-{'ab' * 32}.part").write_bytes(b"half")
    (held.folder / "images" / f".archive-{'ab' * 32}.tar").write_bytes(b"whole")
    HeldNode(held.folder, held.archive)
    assert held.archives() == []
