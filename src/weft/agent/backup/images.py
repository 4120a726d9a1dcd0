"""Makes images of VMs' disks that the server asks this node for, one after the other, and sends them to the server.

Orders come with the answers to the node's reports, and stand until their report has been read; an order that is gone ends its work.
Nothing of it outlasts the agent: what a killed one left is removed, and made anew while it is still asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

import msgspec

from weft.agent.backup.last_words import LastWords
from weft.agent.image.cache import ImageCache
from weft.agent.problem import describe_problem
from weft.agent.server.client import Server
from weft.agent.snapshot.reading import read_disks
from weft.agent.volume.pools import Pools
from weft.backup.process.make_image import BUNDLE, DISK, ImageJob, ImageLine
from weft.contracts.clock import Clock
from weft.kinds.parts.image_work import ImageOrder, ImageReport, find_image_report
from weft.objects.errors import DriverFailed, NotFound, Unavailable, WeftError
from weft.objects.image.bundle import BundleManifest

log = logging.getLogger("weft.agent")
RETRY_SECONDS = 5.0  # of an image that the server can't take now
_LINE_BYTES = 1 << 20
_PLAIN = BundleManifest(DISK, "qcow2", seed="nocloud")  # of a disk that stands on no image


class ImageWork:
    """``changed`` is called when there is something to report."""

    def __init__(
        self,
        state_dir: str,
        node: str,
        server: Server,
        pools: Pools,
        images: ImageCache,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        self._folder = Path(state_dir) / "image-work"
        shutil.rmtree(self._folder, ignore_errors=True)  # what one that was killed left
        self._folder.mkdir(mode=0o700, parents=True)
        self._node, self._server, self._pools, self._images = node, server, pools, images
        self._clock, self._changed = clock, changed
        self._orders: list[ImageOrder] = []
        self._reports: list[ImageReport] = []
        self._current: tuple[ImageOrder, asyncio.Task[None]] | None = None
        self._woken = asyncio.Event()

    @property
    def has_orders(self) -> bool:
        return bool(self._orders)

    def report(self) -> list[ImageReport]:
        return list(self._reports)

    def put_orders(self, orders: Sequence[ImageOrder]) -> None:
        """All that this node shall make."""
        if list(orders) == self._orders:
            return
        self._orders = list(orders)
        self._reports = [one for one in self._reports if any(find_image_report([one], order) for order in orders)]
        if self._current is not None and self._current[0] not in self._orders:
            self._current[1].cancel()
        self._woken.set()

    async def keep(self) -> None:
        """Do one order after the other, for ever."""
        try:
            while True:
                self._woken.clear()
                order = next((one for one in self._orders if not self._is_over(one)), None)
                if order is None:
                    await self._woken.wait()
                    continue
                task = asyncio.ensure_future(self._do(order))
                self._current = order, task
                await asyncio.wait([task])
                self._current = None
                if not task.cancelled():
                    task.result()
        finally:
            if self._current is not None:
                self._current[1].cancel()
                await asyncio.wait([self._current[1]])

    def _is_over(self, order: ImageOrder) -> bool:
        report = find_image_report(self._reports, order)
        return report is not None and report.phase != "working"

    async def _do(self, order: ImageOrder) -> None:
        begun = ImageReport(uid=order.uid, snapshot=order.snapshot)
        self._note(order, begun)
        folder = self._folder / order.uid
        try:
            folder.mkdir(mode=0o700)
            made = await self._make(order, begun, folder)
            await self._send(order, begun, made, folder / BUNDLE)
        except (WeftError, OSError) as problem:
            reason, message = describe_problem(problem)
            log.warning("image %s: %s", order.name, message)
            self._note(order, msgspec.structs.replace(begun, phase="failed", reason=reason, message=message))
        else:
            done = msgspec.structs.replace(begun, phase="done", sha256=made.sha256, cleaned=made.cleaned)
            self._note(order, done)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _note(self, order: ImageOrder, report: ImageReport) -> None:
        if order in self._orders:
            others = [one for one in self._reports if find_image_report([one], order) is None]
            self._reports = [*others, report]
            self._changed()

    async def _make(self, order: ImageOrder, begun: ImageReport, folder: Path) -> ImageLine:
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
            async with contextlib.aclosing(_read_lines(job)) as lines:
                async for line in lines:
                    if line.reason:
                        raise DriverFailed(line.message, reason=line.reason)
                    if line.sha256:
                        return line
                    self._note(order, msgspec.structs.replace(begun, message=f"{self._node} {line.step}"))
        raise AssertionError

    async def _send(self, order: ImageOrder, begun: ImageReport, made: ImageLine, path: Path) -> None:
        """Again and again, until the server has it: an order that is gone ends this. Raises WeftError."""
        while True:
            self._note(order, msgspec.structs.replace(begun, message=f"{self._node} sends it to the server"))
            stop = threading.Event()
            try:
                await asyncio.to_thread(self._server.send_image, self._node, order.uid, made.sha256, path, stop)
                return
            except (Unavailable, NotFound) as problem:
                waits = f"{self._node} tries to send it again: {problem.message}"
                self._note(order, msgspec.structs.replace(begun, message=waits))
            finally:
                stop.set()
            await self._clock.sleep(RETRY_SECONDS)


async def _read_lines(job: ImageJob) -> AsyncGenerator[ImageLine, None]:
    """What a process says that makes it, which is killed at the end. Raises DriverFailed if it dies before."""
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL"),  # it goes with the agent, however that ends
        *(sys.executable, "-m", "weft.backup.process.make_image"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES,
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    words = LastWords(process.stderr, ())
    try:
        process.stdin.write(msgspec.json.encode(job))
        process.stdin.close()
        async for text in process.stdout:
            yield msgspec.json.decode(text, type=ImageLine)
        await process.wait()
        said = await words.end()
    finally:
        words.stop()
        if process.returncode is None:
            process.kill()
        await process.wait()
    raise DriverFailed(f"the process that made the image ended with {process.returncode}{said}", reason="workerDied")
