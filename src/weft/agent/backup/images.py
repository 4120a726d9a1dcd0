"""How orders to make images are done: of VMs' disks, one after the other; each is sent to the server.

Nothing of it outlasts the agent: what a killed one left is removed, and made again while its order stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from weft.agent.backup.process import read_lines
from weft.agent.image.cache import ImageCache
from weft.agent.orders.executor import Handler
from weft.agent.problem import describe_problem
from weft.agent.server.client import Server
from weft.agent.snapshot.reading import read_disks
from weft.agent.volume.pools import Pools
from weft.backup.process.image_job import BUNDLE, DISK, ImageJob, ImageLine
from weft.contracts.clock import Clock
from weft.kinds.parts.image.work import ImageOrder, ImageReport
from weft.objects.errors import DriverFailed, NotFound, Unavailable
from weft.objects.image.bundle import BundleManifest

log = logging.getLogger("weft.agent")
RETRY_SECONDS = 5.0  # of an image that the server can't take now
_MODULE = "weft.backup.process.make_image"
_PLAIN = BundleManifest(DISK, "qcow2", seed="nocloud")  # of a disk that stands on no image


class ImageWork(Handler[ImageOrder, ImageReport]):
    def __init__(
        self, state_dir: str, node: str, server: Server, pools: Pools, images: ImageCache, clock: Clock
    ) -> None:
        self._folder = Path(state_dir) / "image-work"
        shutil.rmtree(self._folder, ignore_errors=True)  # what one that was killed left
        self._folder.mkdir(mode=0o700, parents=True)
        self._node, self._server, self._pools, self._images, self._clock = node, server, pools, images, clock

    def lane(self, order: ImageOrder) -> str:
        """One after the other: each takes the space of a disk."""
        return ""

    def begin(self, order: ImageOrder, former: ImageReport | None) -> ImageReport:
        return ImageReport(uid=order.uid, snapshot=order.snapshot)

    async def do(self, order: ImageOrder, show: Callable[[ImageReport], None]) -> ImageReport:
        begun = self.begin(order, None)

        def note(message: str) -> None:
            show(msgspec.structs.replace(begun, message=f"{self._node} {message}"))

        folder = self._folder / order.uid
        try:
            folder.mkdir(mode=0o700)
            made = await self._make(order, note, folder)
            await self._send(order, note, made, folder / BUNDLE)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        return msgspec.structs.replace(begun, phase="done", sha256=made.sha256, cleaned=made.cleaned)

    def fail(self, order: ImageOrder, problem: Exception) -> tuple[ImageReport, None]:
        reason, message = describe_problem(problem)
        log.warning("image %s: %s", order.name, message)
        return msgspec.structs.replace(self.begin(order, None), phase="failed", reason=reason, message=message), None

    async def _make(self, order: ImageOrder, note: Callable[[str], None], folder: Path) -> ImageLine:
        """The last line of the process that makes it. Raises WeftError, OSError."""
        image = self._images.find(order.image_sha256) if order.image_sha256 else None
        reading = read_disks(
            *(self._pools, self._images, order.snapshot, {order.disk: order.disk}), image_sha256=order.image_sha256
        )
        async with reading as served:
            disk = served[order.disk]
            job = ImageJob(
                socket=disk.socket,
                size=disk.size_bytes,
                extents=disk.extents,
                folder=str(folder),
                manifest=image.manifest if image is not None else _PLAIN,
                parts=image.folder if image is not None else "",
                keeps_identity=order.keeps_identity,
                hostname=order.hostname,
            )
            async with contextlib.aclosing(read_lines(_MODULE, job, ImageLine)) as lines:
                async for line in lines:
                    if line.reason:
                        raise DriverFailed(line.message, reason=line.reason)
                    if line.sha256:
                        return line
                    note(line.step)
        raise AssertionError

    async def _send(self, order: ImageOrder, note: Callable[[str], None], made: ImageLine, path: Path) -> None:
        """Again and again, until the server has it: an order that is gone ends this. Raises WeftError."""
        while True:
            note("sends it to the server")
            stop = threading.Event()
            try:
                await asyncio.to_thread(self._server.send_image, self._node, order.uid, made.sha256, path, stop)
                return
            except (Unavailable, NotFound) as problem:
                note(f"tries to send it again: {problem.message}")
            finally:
                stop.set()
            await self._clock.sleep(RETRY_SECONDS)
