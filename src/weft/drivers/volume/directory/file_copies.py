"""Layers of raw volumes, which containers mount: copies, since a loop device keeps its file. Each holds the 64 KiB clusters that
differ from the volume's last snapshot, on whose layers it stands; the volume itself stands on none of them.

A mounted file system is frozen. Where the pool's own file system has reflinks that takes milliseconds; elsewhere the file is copied
first, and what has changed since is written once more while writers stand still. Compared is what lies there, so that a wrong guess
of the last snapshot costs space and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import msgspec

from weft.contracts.driver.disk_lock import hold_disk
from weft.contracts.driver.layers import TakenFacts
from weft.contracts.durable_file import write_durably
from weft.drivers.linux.frozen_files import find_mounted, hold_frozen, thaw
from weft.drivers.linux.sparse_copy import clone_file, update_copy
from weft.drivers.volume.directory.layer_records import LayerRecords
from weft.drivers.volume.directory.locking import Locking
from weft.drivers.volume.directory.qemu_img import COPY_SECONDS, check_own, round_up, run_qemu_img
from weft.objects.errors import IllegalTransition

# What a qcow2 header holds of a base's name while files are compared. With a longer chain the layer is a whole copy.
_LONGEST_NAME = 1000
FROZEN = "frozen"  # names the file that says which volumes are being frozen


class MadeLayers(msgspec.Struct):
    files: dict[str, Path]  # by layer; they go unless they get another name
    below: dict[str, tuple[str, ...]]  # by layer, what it stands on
    facts: TakenFacts


class FileCopies:
    def __init__(self, records: LayerRecords, work: Callable[[str], Path], locked: Locking) -> None:
        self._records, self._work, self._locked = records, work, locked

    @contextlib.asynccontextmanager
    async def make(self, volumes: Mapping[str, tuple[str, Path]]) -> AsyncIterator[MadeLayers]:
        """The layers of raw volumes, all of one instant: by layer the volume's id and its file. Inside, nobody begins to use a
        volume that nobody had. Raises IllegalTransition for one that a machine has, DriverFailed."""
        files = {layer: self._work(f"{layer}.made") for layer in volumes}
        copies = {layer: self._work(f"{layer}.copy") for layer in volumes}
        with contextlib.ExitStack() as held:
            for path in (*files.values(), *copies.values()):
                held.callback(path.unlink, missing_ok=True)
            mounted: dict[str, int] = {}
            for layer, (id_, path) in volumes.items():
                if (folder := await asyncio.to_thread(_hold, path, id_, held)) is not None:
                    mounted[layer] = folder
            pause = await self._copy({volumes[one][1]: copies[one] for one in mounted}, list(mounted.values()))
            facts = TakenFacts("filesystem" if mounted else "stopped", pause)
            below: dict[str, tuple[str, ...]] = {}
            for layer, (id_, path) in volumes.items():
                source = copies[layer] if layer in mounted else path
                below[layer] = await self._make_layer(id_, source, files[layer])
                copies[layer].unlink(missing_ok=True)
            yield MadeLayers(files, below, facts)

    async def _copy(self, copies: Mapping[Path, Path], folders: list[int]) -> float:
        """Copy mounted files; how long they were frozen, in milliseconds."""
        if not copies:
            return 0.0
        acts: dict[Path, Callable[[Path, Path], object]] = {}
        for path, copy in copies.items():
            acts[path] = clone_file if await asyncio.to_thread(clone_file, path, copy) else update_copy
            await asyncio.to_thread(acts[path], path, copy)
        left = self._work(FROZEN)
        await asyncio.to_thread(write_durably, left, "\n".join(map(str, copies)).encode())
        async with hold_frozen(folders) as frozen:
            for path, copy in copies.items():
                await asyncio.to_thread(acts[path], path, copy)
        await asyncio.to_thread(left.unlink, missing_ok=True)
        return frozen.pause_ms

    async def _make_layer(self, volume_id: str, source: Path, work: Path) -> tuple[str, ...]:
        """Make the file ``work`` with what ``source`` holds beside the volume's last snapshot; the layers of that one."""
        below = await self._locked(lambda: self._find_last(volume_id))
        name = _name_chain([str(self._records.layer(layer)) for layer in below])
        raw = _name({"driver": "raw", "file.driver": "file", "file.filename": str(source), "file.locking": "off"})
        if not below or len(name) > _LONGEST_NAME:
            await run_qemu_img("convert", "-q", "-O", "qcow2", raw, str(work), seconds=COPY_SECONDS)
            return ()
        for layer in below:
            check_own(self._records.layer(layer), f"layer {layer} of volume {volume_id}")
        size = str(round_up((await asyncio.to_thread(source.stat)).st_size))
        await run_qemu_img("create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", raw, str(work), size)
        await run_qemu_img("rebase", "-q", "-f", "qcow2", "-F", "qcow2", "-b", name, str(work), seconds=COPY_SECONDS)
        await run_qemu_img("rebase", "-q", "-u", "-f", "qcow2", "-b", "", str(work))
        return below

    def _find_last(self, volume_id: str) -> tuple[str, ...]:
        kept = [one for one in self._records.list_kept() if volume_id in one.disks]
        last = max(kept, key=lambda one: one.taken_at, default=None)
        return last.disks[volume_id].layers if last is not None else ()


def thaw_left(left: Path) -> None:
    """Thaw what was frozen when this node's agent and the process that held it frozen were killed. Blocks."""
    with contextlib.suppress(OSError):
        for line in left.read_text().splitlines():
            thaw(Path(line))


def refuse_open(path: Path, volume_id: str) -> None:
    """Raise IllegalTransition for a volume's file that somebody has open."""
    with path.open("r+b") as file:
        if not hold_disk(file.fileno()):
            raise _in_use(volume_id)


def _hold(path: Path, volume_id: str, held: contextlib.ExitStack) -> int | None:
    """Hold the volume, or else open the folder where it is mounted. Raises IllegalTransition."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    if hold_disk(descriptor):
        held.callback(os.close, descriptor)
        return None
    os.close(descriptor)
    folder = find_mounted(path)
    if folder is None:
        raise _in_use(volume_id)
    held.callback(os.close, folder)
    return folder


def _in_use(volume_id: str) -> IllegalTransition:
    return IllegalTransition(
        f"volume {volume_id} is in use by a machine", reason="inUse", hint="stop it first, or take a snapshot of the VM"
    )


def _name_chain(paths: list[str]) -> str:
    node: dict[str, object] | None = None
    for path in paths:
        node = {"driver": "qcow2", "file.driver": "file", "file.filename": path, "backing": node}
    return _name(node or {})


def _name(node: dict[str, object]) -> str:
    return f"json:{json.dumps(node, separators=(',', ':'))}"
