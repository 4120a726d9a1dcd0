"""The node's image cache: each image once, by digest, checked, unpacked, complete or absent.

Reads the server's blobs; writes ``<state>/images/<sha256>/``: the image's manifest and its files. Several guests that
need the same image wait for one fetch. Images stay until another needs their space and no disk here is based on them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from weft.agent.problem import refuse_file
from weft.agent.server.client import Server
from weft.agent.state.table import AllocationTable
from weft.contracts.durable_file import sync_folder, write_durably
from weft.contracts.trace.span import span
from weft.kinds.allocation import AllocatedImage
from weft.objects.errors import DriverFailed
from weft.objects.image.bundle import (
    MANIFEST_NAME,
    BundleManifest,
    BundleMember,
    decode_manifest,
    is_bundle,
    not_an_image,
    read_bundle,
)
from weft.objects.image.qcow2 import HEADER_BYTES, read_qcow2_header
from weft.objects.quantity import format_bytes

log = logging.getLogger("weft.agent")
FETCHES = 2  # at a time
SPARE_BYTES = 64 * 1024 * 1024

Progress = Callable[[int], None]


class CachedImage(msgspec.Struct, frozen=True):
    """An image on this node."""

    folder: str
    manifest: BundleManifest

    @property
    def disk(self) -> str:
        return f"{self.folder}/{self.manifest.disk}"

    @property
    def disk_format(self) -> Literal["qcow2", "raw"]:
        return "raw" if self.manifest.disk_format == "raw" else "qcow2"  # there are no others here: _check_disk

    @property
    def kernel(self) -> str | None:
        return f"{self.folder}/{self.manifest.kernel}" if self.manifest.kernel else None

    @property
    def initrd(self) -> str:
        return f"{self.folder}/{self.manifest.initrd}" if self.manifest.initrd else ""


class _Held:
    """A container image's archive: the number of its users, and the lock of its fetch."""

    def __init__(self) -> None:
        self.holders = 0
        self.fetching = asyncio.Lock()


class ImageCache:
    """The images in one agent's state folder. Those that ``table`` uses are kept."""

    def __init__(self, state_dir: str, server: Server, table: AllocationTable) -> None:
        self._folder = Path(state_dir) / "images"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._server, self._table = server, table
        self._fetching: dict[str, asyncio.Task[CachedImage]] = {}
        self._followers: dict[str, list[Progress]] = {}
        self._archives: dict[str, _Held] = {}  # by digest: of container images, while they are unpacked
        self._threads = ThreadPoolExecutor(FETCHES, "weft-image")
        for left in (*self._folder.glob(".fetch-*"), *self._folder.glob(".gone-*")):
            shutil.rmtree(left, ignore_errors=True)
        for archive in self._folder.glob(".archive-*"):
            archive.unlink(missing_ok=True)

    def find(self, sha256: str) -> CachedImage | None:
        """The image if it is here; marks it as used now."""
        folder = self._folder / sha256
        try:
            found = CachedImage(str(folder), decode_manifest((folder / MANIFEST_NAME).read_bytes()))
            os.utime(folder)
        except FileNotFoundError:
            return None
        return found

    def list(self) -> list[str]:
        """Digests of the images that are here."""
        return sorted(name for name in os.listdir(self._folder) if not name.startswith("."))

    async def ensure(self, image: AllocatedImage, on_progress: Progress) -> CachedImage:
        """The image, fetched if it is missing. Raises DriverFailed (``noSpace``, ``sha256Mismatch``, ``notAnImage``),
        NotFound, Unavailable. A cancelled call leaves the fetch to the others that wait."""
        found = self.find(image.sha256)
        if found is not None:
            return found
        task = self._fetching.get(image.sha256)
        if task is None:
            task = asyncio.ensure_future(self._fetch(image))
            self._fetching[image.sha256] = task
            task.add_done_callback(lambda done: self._done(image.sha256, done))
        followers = self._followers.setdefault(image.sha256, [])
        followers.append(on_progress)
        try:
            return await asyncio.shield(task)
        finally:
            followers.remove(on_progress)

    def archive_path(self, image: AllocatedImage) -> Path:
        """The path of a container image's archive while it is held."""
        return self._folder / f".archive-{image.sha256}.tar"

    @asynccontextmanager
    async def hold_archive(self, image: AllocatedImage, on_progress: Progress, ticket: str = "") -> AsyncIterator[None]:
        """Hold a container image's complete archive at ``archive_path``; concurrent holders wait for one fetch. ``ticket``
        permits an image that no allocation of this node names. Raises as ``ensure``."""
        lock = self._archives.setdefault(image.sha256, _Held())
        lock.holders += 1
        path = self.archive_path(image)
        try:
            async with lock.fetching:
                if not path.exists():
                    await self._evict(image)
                    loop = asyncio.get_running_loop()

                    def show(length: int) -> None:
                        loop.call_soon_threadsafe(on_progress, length)

                    fetch = loop.run_in_executor(self._threads, self._fetch_archive, image, path, show, ticket)
                    await asyncio.shield(fetch)
            yield
        finally:
            lock.holders -= 1
            if not lock.holders:
                async with lock.fetching:  # a new holder waits, and fetches it anew
                    if not lock.holders:
                        await asyncio.to_thread(path.unlink, missing_ok=True)
                if not lock.holders:
                    self._archives.pop(image.sha256, None)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _evict(self, image: AllocatedImage) -> None:
        """Remove unused images, the longest unused first, until this one fits."""
        for folder in sorted(map(self._folder.joinpath, self.list()), key=lambda path: path.stat().st_mtime):
            used = self._table.images()
            if used is None:
                return
            if self._lacks_space(image) and folder.name not in {*used, *self._fetching, image.sha256}:
                log.info("evicting image %s: image %s needs the space", folder.name[:12], image.name)
                gone = folder.rename(folder.with_name(f".gone-{folder.name}"))
                await asyncio.to_thread(shutil.rmtree, gone, ignore_errors=True)

    async def _fetch(self, image: AllocatedImage) -> CachedImage:
        await self._evict(image)
        loop = asyncio.get_running_loop()

        def show(length: int) -> None:
            for follower in self._followers.get(image.sha256, ()):
                follower(length)

        def on_progress(length: int) -> None:
            loop.call_soon_threadsafe(show, length)

        with span("fetch", image=image.name):
            return await loop.run_in_executor(self._threads, self._fetch_now, image, on_progress)

    def _done(self, sha256: str, task: asyncio.Task[CachedImage]) -> None:
        self._fetching.pop(sha256, None)
        self._followers.pop(sha256, None)
        if not task.cancelled():
            task.exception()  # the callers that waited have it; there may be none

    def _fetch_now(self, image: AllocatedImage, on_progress: Progress) -> CachedImage:
        self._check_space(image)
        work = self._folder / f".fetch-{image.sha256}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(mode=0o700)
        try:
            blob = work / ".blob"
            with blob.open("wb") as out:
                self._server.fetch_blob(image.sha256, out, on_progress)
                out.flush()
                os.fsync(out.fileno())
            unpack(blob, work, image.name)
            sync_folder(work)
            work.rename(self._folder / image.sha256)
            sync_folder(self._folder)
        except OSError as problem:
            raise refuse_file(f"image {image.name}", problem, "image") from problem
        finally:
            shutil.rmtree(work, ignore_errors=True)
        found = self.find(image.sha256)
        if found is None:
            raise DriverFailed(f"image {image.name} vanished from this node's cache", details={"step": "image"})
        return found

    def _fetch_archive(self, image: AllocatedImage, path: Path, on_progress: Progress, ticket: str) -> None:
        self._check_space(image)
        work = path.with_suffix(".part")
        try:
            with work.open("wb") as out:
                self._server.fetch_blob(image.sha256, out, on_progress, ticket)
            work.rename(path)
        except OSError as problem:
            raise refuse_file(f"image {image.name}", problem, "image") from problem
        finally:
            work.unlink(missing_ok=True)

    def _lacks_space(self, image: AllocatedImage) -> str:
        """The needed and the free space, if that isn't enough; else ""."""
        facts = os.statvfs(self._folder)
        free = facts.f_bavail * facts.f_frsize
        needed = 2 * image.size + SPARE_BYTES  # the archive and what it holds
        if needed <= free:
            return ""
        return f"needs {format_bytes(needed)} while it is fetched; {self._folder} has {format_bytes(free)} free"

    def _check_space(self, image: AllocatedImage) -> None:
        if lack := self._lacks_space(image):
            raise DriverFailed(
                f"image {image.name} {lack}",
                reason="noSpace",
                hint="free some space on the node's disk; the agent tries again",
                details={"step": "image"},
            )


def unpack(blob: Path, folder: Path, name: str) -> BundleManifest:
    """Unpack the image in file ``blob`` (bundle, qcow2 or raw) into ``folder``, its manifest last; ``blob`` is used up.

    Raises DriverFailed (``notAnImage``) for anything but plain files named in its manifest, and for a disk that would read other
    files of the node.
    """
    try:
        with blob.open("rb") as file:
            start = file.read(512)
            if is_bundle(start):
                manifest = _unpack_bundle(file, folder)
                blob.unlink()
            else:
                manifest = BundleManifest(
                    "disk", "qcow2" if read_qcow2_header(start[:HEADER_BYTES]) else "raw", seed="nocloud"
                )
                blob.rename(folder / "disk")
        _check_disk(folder / manifest.disk, manifest)
    except DriverFailed as problem:
        raise DriverFailed(
            f"can't use image {name}: {problem.message}", reason=problem.token, details={"step": "image"}
        ) from problem
    write_durably(folder / MANIFEST_NAME, msgspec.json.encode(manifest))
    return manifest


def _unpack_bundle(file: BinaryIO, folder: Path) -> BundleManifest:
    bundle = read_bundle(file, os.fstat(file.fileno()).st_size)
    for name, member in bundle.members.items():
        with (folder / name).open("xb") as out:
            copy_member(file, member, out)
            out.flush()
            os.fsync(out.fileno())
    return bundle.manifest


def copy_member(bundle: BinaryIO, member: BundleMember, out: BinaryIO) -> None:
    bundle.seek(member.offset)
    left = member.size
    while left and (piece := bundle.read(min(left, 1 << 20))):
        out.write(piece)
        left -= len(piece)


def _check_disk(path: Path, manifest: BundleManifest) -> None:
    with path.open("rb") as file:
        header = read_qcow2_header(file.read(HEADER_BYTES))
    if manifest.disk_format == "tar":
        raise not_an_image("it is a function runtime: it has no disk to boot from")
    if manifest.disk_format == "raw":
        return
    if header is None:
        raise not_an_image(f"{manifest.disk} is not a qcow2 file")
    if header.has_backing or header.has_external_data:
        raise not_an_image("its disk refers to another file")
