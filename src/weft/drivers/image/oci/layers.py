"""Unpacked layers of one node, ``<state>/oci/layers/<diff id>/fs``: each is there whole, or not at all.

A folder's name is the beginning of its layer's diff id, short because overlayfs takes all of them in one page of options; the
whole id stands in ``layer.json`` beside it, and in ``implied.json`` the folders that the layer has no entry for, if there are any.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import uuid
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec

from weft.contracts.durable_file import sync_folder, write_durably
from weft.drivers.image.oci.documents import Descriptor
from weft.drivers.image.oci.folders import find_folders, make_folders, name_folders
from weft.drivers.image.oci.unpack.process import Limits, unpack
from weft.objects.errors import DriverFailed

UNPACKED_AT_ONCE = 2
_NAME_DIGITS = 24
_IMPLIED = "implied.json"
_WORK, _GONE = ".making-", ".gone-"
_RESERVE_BYTES = 1 << 30


class Layer(msgspec.Struct, frozen=True):
    """``bytes`` of its files; ``dropped`` device nodes were left out."""

    diff_id: str
    bytes: int
    entries: int = 0
    dropped: int = 0


class Layers:
    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.empty = folder / "empty"
        self.empty.mkdir(mode=0o755, exist_ok=True)
        self._known: dict[str, Layer] = {}
        self._places = asyncio.Semaphore(UNPACKED_AT_ONCE)
        self._left: list[Path] = []
        for path in folder.iterdir():
            if path == self.empty:
                continue
            try:
                layer = msgspec.json.decode((path / "layer.json").read_bytes(), type=Layer)
                if self._place(layer.diff_id) != path:
                    raise ValueError("work that was killed, or gone but for its files")
            except (OSError, ValueError):  # msgspec's errors are ValueErrors
                self._left.append(path)
            else:
                self._known[layer.diff_id] = layer

    async def sweep(self) -> None:
        """Remove what killed work left behind."""
        left, self._left = self._left, []
        if left:
            await remove_trees(left)

    def find(self, diff_id: str) -> Layer | None:
        return self._known.get(diff_id)

    def all(self) -> list[Layer]:
        return list(self._known.values())

    def path(self, diff_id: str) -> Path:
        return self._place(diff_id) / "fs"

    def work(self) -> Path:
        """A fresh name for a blob that is being fetched."""
        return self._folder / f"{_WORK}{uuid.uuid4().hex}"

    def free_bytes(self) -> int:
        """Bytes that layers may still use; part of the disk is for others."""
        facts = os.statvfs(self._folder)
        return facts.f_bavail * facts.f_frsize - min(_RESERVE_BYTES, facts.f_blocks * facts.f_frsize // 20)

    async def make(self, blob: Path, descriptor: Descriptor, diff_id: str) -> Layer:
        """Unpack ``blob`` as the layer ``diff_id``. Raises InvalidInput, TooLarge, DriverFailed."""
        work = self.work()
        root = work / "fs"
        try:
            work.mkdir(mode=0o700)
            root.mkdir(mode=0o755)
            async with self._places:
                unpacked = await unpack(blob, descriptor.packing, root, self._limits, max(0, self.free_bytes()))
            if unpacked.diff_id != diff_id:
                raise DriverFailed(
                    f"a layer unpacks to {unpacked.diff_id}, but its image says {diff_id}",
                    reason="wrongDigest",
                    hint="build and push the image again",
                    details={"step": "image"},
                )
            layer = Layer(diff_id, unpacked.bytes, unpacked.entries, unpacked.dropped)
            await asyncio.to_thread(self._keep, work, layer, unpacked.implied)
        finally:
            if work.exists():  # it failed, or another has made the same meanwhile
                await remove_trees([work])
        self._known[diff_id] = layer
        return layer

    async def make_folders(self, diff_ids: Sequence[str]) -> str | None:
        """The layer of folders to put over these layers, the uppermost first, made unless it is here (see ``folders.py``).
        None: they need none. Raises DriverFailed."""
        while True:
            work = self.work()
            try:
                layer = await asyncio.to_thread(self._make_folders, diff_ids, work)
            finally:
                if work.exists():
                    await remove_trees([work])
            if layer is None:
                return None
            if self._place(layer.diff_id).exists():  # it was there, and might have been taken away meanwhile
                self._known[layer.diff_id] = layer
                return layer.diff_id

    def _make_folders(self, diff_ids: Sequence[str], work: Path) -> Layer | None:
        implied = [self._read_implied(one) for one in diff_ids]
        folders = find_folders([self.path(one) for one in diff_ids], implied) if any(implied) else []
        if not folders:
            return None
        layer = Layer(name_folders(folders), 0, len(folders))
        if layer.diff_id not in self._known:
            work.mkdir(mode=0o700)
            (work / "fs").mkdir(mode=0o755)
            try:
                make_folders(work / "fs", folders)
            except OSError as problem:
                raise _failed(str(problem.strerror)) from problem
            self._keep(work, layer, [])
        return layer

    def _read_implied(self, diff_id: str) -> list[str]:
        try:
            return msgspec.json.decode((self._place(diff_id) / _IMPLIED).read_bytes(), type=list[str])
        except FileNotFoundError:
            return []

    def take_away(self, diff_id: str) -> Path:
        """Drop the layer; returns the path where its files still have to be removed."""
        del self._known[diff_id]
        gone = self._folder / f"{_GONE}{uuid.uuid4().hex}"
        self._place(diff_id).rename(gone)
        return gone

    def _keep(self, work: Path, layer: Layer, implied: list[str]) -> None:
        place = self._place(layer.diff_id)
        if implied:
            write_durably(work / _IMPLIED, msgspec.json.encode(implied))
        write_durably(work / "layer.json", msgspec.json.encode(layer))
        descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
                raise _failed(os.strerror(ctypes.get_errno()))
        finally:
            os.close(descriptor)
        try:
            work.rename(place)
        except OSError as problem:
            if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise _failed(str(problem.strerror)) from problem
            other = msgspec.json.decode((place / "layer.json").read_bytes(), type=Layer)
            if other.diff_id != layer.diff_id:  # which nobody meets by chance
                raise _failed(f"its digest begins like that of {other.diff_id}") from problem
        sync_folder(self._folder)

    def _place(self, diff_id: str) -> Path:
        return self._folder / diff_id.removeprefix("sha256:")[:_NAME_DIGITS]


async def remove_trees(paths: list[Path]) -> None:
    """Remove trees, even those deeper than a path may be long, also when cancelled meanwhile. Raises DriverFailed."""
    await complete(_remove_trees(paths))


async def complete(work: Coroutine[Any, Any, None]) -> None:
    """``work`` to its end, also when the caller is cancelled meanwhile, which then raises CancelledError."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def _remove_trees(paths: list[Path]) -> None:
    argv = ("rm", "-rf", "--one-file-system", "--", *map(str, paths))
    process = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.DEVNULL)
    if await process.wait() != 0:
        raise DriverFailed(f"layers can't be removed (rm ends with {process.returncode})", details={"step": "image"})


def _failed(reason: str) -> DriverFailed:
    return DriverFailed(f"a layer can't be stored: {reason}", details={"step": "image"})
