"""What a node does with orders for images: made from what a pool serves, sent until the server has it, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.scenario.agent_lab import StubServer

from weft.agent.backup import images
from weft.agent.backup.images import ImageWork
from weft.agent.image.cache import ImageCache
from weft.agent.orders.executor import Executor
from weft.agent.state.table import AllocationTable
from weft.agent.volume.pools import Pools
from weft.contracts.clock import SystemClock
from weft.contracts.driver.layers import KeptDisk, KeptSnapshot, ServedDisk
from weft.kinds.orders import MAKE_IMAGE
from weft.kinds.parts.image.work import ImageOrder, ImageReport
from weft.objects.errors import DriverFailed, NotFound, Unavailable, WeftError
from weft.objects.image.bundle import read_bundle

pytestmark = pytest.mark.skipif(not shutil.which("qemu-nbd"), reason="needs qemu-utils")
SIZE = 32 << 20
ORDER = ImageOrder(uid="i", name="default/gold", node_uid="u", snapshot="s", disk="root", hostname="web")


class Server(StubServer):
    def __init__(self) -> None:
        super().__init__()
        self.answers: list[WeftError] = []
        self.got: list[bytes] = []
        self.holds: threading.Event | None = None

    def send_image(self, node: str, uid: str, sha256: str, path: Path, stop: threading.Event) -> None:
        if self.holds is not None:
            self.holds.set()
            stop.wait(60)
        if self.answers:
            raise self.answers.pop(0)
        self.got.append(path.read_bytes())


class Pool:
    """A pool with the snapshot, whose disk has an ext4."""

    def __init__(self, folder: Path) -> None:
        self.disk, self.socket, self.silent = folder / "disk.raw", str(folder / "nbd"), False
        self.layers = self.copies = self
        with self.disk.open("wb") as out:
            out.truncate(SIZE)
        (folder / "tree" / "etc").mkdir(parents=True)
        (folder / "tree" / "etc" / "machine-id").write_text("5ecre7\n")
        subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", folder / "tree", self.disk], check=True)

    async def list_kept(self) -> list[KeptSnapshot]:
        return [KeptSnapshot("s-short", "s", {"root": KeptDisk(("one",), SIZE)})]

    @contextlib.asynccontextmanager
    async def read(self, *_: object, **__: object) -> AsyncIterator[ServedDisk]:
        argv = ["qemu-nbd", "-r", "-f", "raw", "-k", self.socket, "--fork", str(self.disk)]
        if self.silent:
            server = await asyncio.start_unix_server(lambda *_: None, self.socket)
            try:
                yield ServedDisk(self.socket, SIZE, [(0, SIZE, False)], True)
            finally:
                server.close()
            return
        await asyncio.to_thread(subprocess.run, argv, check=True)
        yield ServedDisk(self.socket, SIZE, [(0, SIZE, False)], True)


class Lab:
    def __init__(self, folder: Path) -> None:
        self.folder, self.server, self.pool = folder / "state", Server(), Pool(folder)
        self.changed = asyncio.Event()
        (self.folder / "image-work" / "killed").mkdir(parents=True)
        clock, state = SystemClock(), str(self.folder)
        pools = Pools(self.pool, {}, clock, asyncio.Event())  # type: ignore[arg-type]
        cache = ImageCache(state, self.server, AllocationTable())
        work = ImageWork(state, "n1", self.server, pools, cache, clock)
        self.work = Executor(MAKE_IMAGE, work, state, clock, self.changed.set)
        self.left = sorted((self.folder / "image-work").iterdir())
        self.task = asyncio.ensure_future(self.work.keep())

    async def until(self, phase: str, message: str = "") -> ImageReport:
        while True:
            self.changed.clear()
            for report in self.work.report():
                if report.phase == phase and message in report.message:
                    return report
            await asyncio.wait_for(self.changed.wait(), 60)

    async def until_empty(self) -> None:
        async with asyncio.timeout(60):
            while list((self.folder / "image-work").iterdir()):
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    await lab.close()


async def test_an_image_is_made_cleaned_and_sent_again_until_the_server_has_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "RETRY_SECONDS", 0.01)
    assert lab.left == [], "what a killed agent left is gone"
    lab.server.answers = [Unavailable("no weft server answers"), NotFound("not yet")]
    lab.work.put_orders([ORDER])
    done = await lab.until("done")
    assert done.cleaned == ["machine id"] and len(done.sha256) == 64
    (content,) = lab.server.got
    path = lab.folder / "got"
    path.write_bytes(content)
    with path.open("rb") as file:
        bundle = read_bundle(file, len(content))
    assert (bundle.manifest.disk_format, bundle.manifest.seed) == ("qcow2", "nocloud")
    assert b"5ecre7" not in content
    await lab.until_empty()
    lab.work.put_orders([])
    assert lab.work.report() == []


async def test_an_identity_that_is_kept_is_in_the_image_and_a_refusal_of_the_server_is_final(lab: Lab) -> None:
    lab.server.answers = [DriverFailed("it doesn't fit on the server's disk", reason="noSpace")]
    lab.work.put_orders(
        [ImageOrder(**{name: getattr(ORDER, name) for name in ORDER.__struct_fields__} | {"keeps_identity": True})]
    )
    failed = await lab.until("failed")
    assert (failed.reason, failed.message, lab.server.got) == ("noSpace", "it doesn't fit on the server's disk", [])
    await lab.until_empty()


@pytest.mark.parametrize("is_sending", [False, True])
async def test_an_order_that_is_gone_ends_its_work_and_leaves_nothing(lab: Lab, is_sending: bool) -> None:
    lab.pool.silent = not is_sending
    lab.server.holds = threading.Event()
    lab.work.put_orders([ORDER])
    await lab.until("working", "sends it" if is_sending else "copies the disk")
    if is_sending:
        await asyncio.to_thread(lab.server.holds.wait, 60)
    lab.work.put_orders([])
    await lab.until_empty()
    assert lab.work.report() == []
