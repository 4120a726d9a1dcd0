"""The images that root disks are clones of: each once in a pool, ``weft-image-HASH`` with a protected snapshot ``base``.

The name follows from the content, so nodes that share a pool share them, whatever each calls its file. One is made under another
name first. Those that no disk stands on any more are kept up to a number, and then removed, the oldest first.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from weft.drivers.linux.ceph.programs import CephClient
from weft.drivers.linux.programs import run_on_disk
from weft.drivers.volume.rbd.place import RbdPlace
from weft.objects.errors import DriverFailed, NotFound
from weft.objects.identity import short_id
from weft.objects.image.qcow2 import HEADER_BYTES, read_qcow2_header

PREFIX, SNAPSHOT = "weft-image-", "base"
_MAKING = "weft-making-"
KEPT_UNUSED = 4
COPY_SECONDS = 3600.0
_SECTOR = 512
_HASH_CHARACTERS = 32


class BaseImages:
    """``mark`` tells this node's unfinished images from those of others."""

    def __init__(self, client: CephClient, place: RbdPlace, node_uid: str) -> None:
        self._client, self._place, self._mark = client, place, short_id(node_uid)
        self._hashes: dict[tuple[str, int, int], str] = {}
        self._making: dict[str, asyncio.Lock] = {}

    async def ensure(self, path: str, form: str, size: int) -> str:
        """The image with this file's content, of ``size`` bytes: its name. Raises DriverFailed (``noSpace``)."""
        name = PREFIX + (await asyncio.to_thread(self._hash, path))[:_HASH_CHARACTERS]
        async with self._making.setdefault(name, asyncio.Lock()):
            if not await self._is_there(name):
                await self._copy(path, form, size, name)
            await self._protect(name)
        return name

    async def tidy(self) -> None:
        """Remove those beyond the number that no disk stands on. One that a disk has come to meanwhile stays: it can't be
        unprotected. Raises DriverFailed."""
        pool = self._place.pool
        await self._drop_unfinished()
        found = [
            one for one in await self._client.ask("rbd", "ls", "-l", "-p", pool) if one.get("snapshot") == SNAPSHOT
        ]
        unused = []
        for one in found:
            name = str(one["image"])
            if name.startswith(PREFIX) and not await self._client.ask(
                "rbd", "children", "--all", f"{pool}/{name}@{SNAPSHOT}"
            ):
                unused.append(
                    (str((await self._client.ask("rbd", "info", f"{pool}/{name}"))["create_timestamp"]), name)
                )
        for _, name in sorted(unused, key=lambda one: _when(one[0]))[: max(0, len(unused) - KEPT_UNUSED)]:
            image = f"{pool}/{name}"
            try:
                await self._client.run("rbd", "snap", "unprotect", f"{image}@{SNAPSHOT}", "--no-progress")
                await self._client.run("rbd", "snap", "rm", f"{image}@{SNAPSHOT}", "--no-progress")
                await self._client.run("rbd", "rm", image, "--no-progress")
            except NotFound:
                continue

    async def _drop_unfinished(self) -> None:
        """Drop the images that an earlier agent of this node was making, and this one isn't."""
        begin = f"{_MAKING}{self._mark}-"
        for one in await self._client.ask("rbd", "ls", "-p", self._place.pool):
            name = str(one).removeprefix(begin)
            if name != one and not (name in self._making and self._making[name].locked()):
                with contextlib.suppress(NotFound):
                    await self._client.run("rbd", "rm", f"{self._place.pool}/{one}", "--no-progress")

    async def _is_there(self, name: str) -> bool:
        try:
            await self._client.ask("rbd", "info", f"{self._place.pool}/{name}")
        except NotFound:
            return False
        return True

    async def _copy(self, path: str, form: str, size: int, name: str) -> None:
        pool, work = self._place.pool, f"{_MAKING}{self._mark}-{name}"
        with contextlib.suppress(NotFound):
            await self._client.run("rbd", "rm", f"{pool}/{work}", "--no-progress")
        await self._client.run("rbd", "create", f"{pool}/{work}", "--size", f"{size}B", "--no-progress")
        # The file is a stranger's: what it stands on is given, whatever its header says.
        backing = ',"backing":null' if form == "qcow2" else ""
        source = f'json:{{"driver":"{form}","file":{{"driver":"file","filename":{_quote(path)}}}{backing}}}'
        target = {"driver": "rbd", "pool": pool, "image": work, "conf": self._place.conf, "user": self._place.user}
        options = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in target.items())
        words = ["qemu-img", "convert", "-n", "--target-is-zero", "-W", "--target-image-opts", source, options]
        await run_on_disk(words, "qemu-utils qemu-block-extra", seconds=COPY_SECONDS, hint=None)
        try:
            await self._client.run("rbd", "mv", f"{pool}/{work}", f"{pool}/{name}")
        except DriverFailed:
            if not await self._is_there(name):  # else another node was faster
                raise
            await self._client.run("rbd", "rm", f"{pool}/{work}", "--no-progress")

    async def _protect(self, name: str) -> None:
        """Protect the snapshot of a base image, also of one whose maker ended before."""
        image = f"{self._place.pool}/{name}"
        found = {one["name"]: one for one in await self._client.ask("rbd", "snap", "ls", image)}
        try:
            if SNAPSHOT not in found:
                await self._client.run("rbd", "snap", "create", f"{image}@{SNAPSHOT}", "--no-progress")
            if str(found.get(SNAPSHOT, {}).get("protected", "false")) != "true":
                await self._client.run("rbd", "snap", "protect", f"{image}@{SNAPSHOT}")
        except DriverFailed:
            now = {one["name"]: str(one["protected"]) for one in await self._client.ask("rbd", "snap", "ls", image)}
            if now.get(SNAPSHOT) != "true":  # else another node has done it
                raise

    def _hash(self, path: str) -> str:
        status = os.stat(path)
        key = (path, status.st_mtime_ns, status.st_size)
        if key not in self._hashes:
            with open(path, "rb") as file:
                self._hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._hashes[key]


def find_size(path: str, form: str) -> int:
    """The size of the disk in an image file, in whole sectors. Raises DriverFailed."""
    try:
        with Path(path).open("rb") as file:
            if form == "raw":
                return -(-os.fstat(file.fileno()).st_size // _SECTOR) * _SECTOR
            header = read_qcow2_header(file.read(HEADER_BYTES))
    except OSError as problem:
        raise DriverFailed(f"image {path} can't be read: {problem.strerror}", details={"step": "disk"}) from problem
    if header is None or header.has_external_data or header.has_backing:
        raise DriverFailed(f"image file {path} is not a qcow2 file that stands alone", details={"step": "disk"})
    return header.virtual_size


def _quote(text: str) -> str:
    return json.dumps(text)


def _when(text: str) -> float:
    """Ceph writes a time as C's ctime does."""
    try:
        return time.mktime(time.strptime(text))
    except ValueError:
        return 0.0
