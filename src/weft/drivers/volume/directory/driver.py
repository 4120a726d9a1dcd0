"""Volumes as qcow2 files in one folder, ``<pool>/volumes/<id>.qcow2``; clones are copy-on-write. One that a container has mounted
is ``<id>.raw`` from then on. The node's state folder is the pool ``local``; others may be seen by several nodes at once. What
volumes stand on is in ``layers``.

Makes files with qemu-img under another name first, so that a half-made volume is never seen. Reads sizes from the files
themselves, which works while a guest has them open. Called by the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
import uuid
from pathlib import Path

from weft.contracts.driver.host import Host
from weft.contracts.driver.volume import PoolFacts, VolumeFacts
from weft.contracts.durable_file import keep_file, name_file, sync_folder, write_durably
from weft.drivers.linux.ext4 import check_files, has_files, is_blank, make_files, refuse_others
from weft.drivers.volume.directory.disk_copy import DirectoryDiskCopies
from weft.drivers.volume.directory.encryption import DirectoryEncryption
from weft.drivers.volume.directory.file_copies import FROZEN, thaw_left
from weft.drivers.volume.directory.layer_changes import LayerChanges
from weft.drivers.volume.directory.layer_records import Chain, LayerRecords, Pending, find_file, list_kept_layers
from weft.drivers.volume.directory.layer_transfer import DirectoryLayerTransfer
from weft.drivers.volume.directory.layers import DirectoryLayers
from weft.drivers.volume.directory.locking import Locking
from weft.drivers.volume.directory.qemu_img import COPY_SECONDS, check_own, describe_chain, round_up, run_qemu_img
from weft.drivers.volume.directory.taking import DirectoryTaking
from weft.objects.errors import DriverFailed, InvalidInput, NotFound
from weft.objects.identity import short_id
from weft.objects.image.qcow2 import HEADER_BYTES, read_qcow2_header
from weft.objects.quantity import format_bytes

_SUFFIX, _RAW = ".qcow2", ".raw"
_SECTOR = 512
_ID_FILE = "weft-pool-id"


class DirectoryVolumes:
    """The volumes of one node in the pool at ``place``, which must be there; without one in its own, ``local``."""

    name = "directory"

    def __init__(self, host: Host, pool_name: str = "local", place: str | None = None) -> None:
        self._host, self._pool_name = host, pool_name
        self._place = Path(place or host.state_dir)
        self._folder = self._place / "volumes"
        self._known_id = Path(host.state_dir) / "pools" / pool_name
        self._known_id.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._making: dict[str, asyncio.Lock] = {}
        self._inspect_pooling = threading.Lock()  # several threads ask at once, and the first makes what names the pool
        self._work_prefix = f".making-{short_id(host.node_uid)}-"  # others may be at work in the same folder
        if place is None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._records = LayerRecords(self._folder)
        self._changes = LayerChanges(self._records)
        locked = Locking(self._records, f"storage pool {pool_name} of node {host.node}")
        self.layers = DirectoryLayers(self._records, self._changes, self._inspect, self._work, locked)
        self.taking = DirectoryTaking(self._records, self.layers, self._inspect, self._work, locked)
        self.transfer = DirectoryLayerTransfer(self._records, self._changes, self._work, locked)
        thaw_left(self._work(FROZEN))
        self.copies = DirectoryDiskCopies(self._records, self._changes, self._work, locked)
        self.encryption = DirectoryEncryption(self._lock, self._inspect, self._work, self._name)
        with contextlib.suppress(OSError):
            for left in self._folder.glob(".making-*" if place is None else f"{self._work_prefix}*"):
                left.unlink(missing_ok=True)
        with contextlib.suppress(OSError, DriverFailed):
            if self._records.is_used():
                with self._records.locked():
                    self._changes.sweep()

    def pool(self) -> PoolFacts:
        """The first node that finds no id makes one; a node that has seen one there doesn't: an empty folder is then a mount
        point without its mount."""
        with self._inspect_pooling:
            return self._inspect_pool()

    def _inspect_pool(self) -> PoolFacts:
        known = self._known_id.read_text() if self._known_id.exists() else ""
        path = self._place / _ID_FILE
        if not path.exists():
            if known:
                raise DriverFailed(
                    f"storage pool {self._pool_name}: {self._place} is not the same storage as before ({known}), or is not mounted",
                    hint=f"mount it, or remove {self._known_id} to start with an empty pool",
                    details={"step": "disk"},
                )
            _make_id(self._place, path, short_id(self._host.node_uid))
        id_ = path.read_text().strip()
        if id_ != known:
            write_durably(self._known_id, id_.encode())
        usage = shutil.disk_usage(self._place)
        return PoolFacts(id_, usage.total, usage.free)

    async def share(self, volume_id: str, other_id: str) -> VolumeFacts:
        path, other = self._path(volume_id), self._path(other_id)
        try:
            await asyncio.to_thread(self._share, volume_id, other_id)
            if not path.samefile(other):
                raise DriverFailed(f"{other} is another disk than {path}", details={"step": "disk"})
        except OSError as problem:
            raise DriverFailed(
                f"disk {volume_id} can't be shared in storage pool {self._pool_name}: {problem.strerror}",
                details={"step": "disk"},
            ) from problem
        facts = self._inspect(other_id)
        assert facts is not None
        return facts

    async def keep(
        self, volume_id: str, other_id: str, *, base: str | None = None, base_format: str = "qcow2"
    ) -> VolumeFacts:
        layers = await self.layers.list_layers(volume_id)
        if not layers:
            facts = await self.share(volume_id, other_id)
            if facts.format == "qcow2" and base is not None:
                check_own(Path(facts.path), f"disk {volume_id}")
                await run_qemu_img("rebase", "-q", "-u", "-f", "qcow2", "-F", base_format, "-b", base, facts.path)
                await run_qemu_img("rebase", "-q", "-f", "qcow2", "-b", "", facts.path, seconds=COPY_SECONDS)
            return facts
        if (there := self._inspect(other_id)) is not None:
            return there
        if layer := await self.layers.find_unfinished(volume_id):
            raise DriverFailed(
                f"disk {volume_id} can't be kept while a snapshot of it is taken (layer {layer})",
                details={"step": "disk"},
            )
        files = [*(layer.path for layer in layers), str(self._path(volume_id))]
        for path in files:
            check_own(Path(path), f"disk {volume_id}")
        below, work = [(base, base_format)] if base is not None else [], self._work(other_id)
        image = describe_chain([*below, *((path, "qcow2") for path in files)])
        try:
            await run_qemu_img("convert", "-q", "-O", "qcow2", image, str(work), seconds=COPY_SECONDS)
            await asyncio.to_thread(self._name, other_id, work)
        finally:
            work.unlink(missing_ok=True)
        made = self._inspect(other_id)
        assert made is not None
        return made

    def _share(self, volume_id: str, other_id: str) -> None:
        if not self._records.is_used():
            with contextlib.suppress(FileExistsError):
                os.link(self._path(volume_id), self._path(other_id))
            sync_folder(self._folder)
            return
        with self._records.locked():
            if (pending := self._records.read(volume_id).pending) is not None:
                raise DriverFailed(
                    f"disk {volume_id} can't be shared while a snapshot of it is taken (layer {pending.layer})",
                    details={"step": "disk"},
                )
            self._changes.share(volume_id, other_id)

    async def ensure(
        self, volume_id: str, *, size_bytes: int, base: str | None = None, base_format: str = "qcow2"
    ) -> VolumeFacts:
        """Make the volume if it isn't there. Raises InvalidInput for one without a size or smaller than its base,
        DriverFailed (``noSpace``, ``driverFailed``)."""
        async with self._lock(volume_id):
            if self._inspect(volume_id) is not None:
                await self._part(volume_id)
            return self._inspect(volume_id) or await self._make(volume_id, size_bytes, base, base_format)

    def _lock(self, volume_id: str) -> asyncio.Lock:
        return self._making.setdefault(volume_id, asyncio.Lock())

    async def _part(self, volume_id: str) -> None:
        """Give a volume whose present file a snapshot keeps another one above that. A restore in place that keeps it replaces it
        right afterwards; but the volume may have left the workload in between, and then a guest would write to what is kept."""
        if self._records.is_used() and (layer_id := await asyncio.to_thread(self._find_shared, volume_id)):
            await self.layers.begin_layer(volume_id, layer_id)
            await self.layers.finish_layer(volume_id, layer_id)

    def _find_shared(self, volume_id: str) -> str:
        """The layer that is kept and is the volume's own file; ""."""
        path = self._path(volume_id)
        if self._raw(volume_id).exists() or not path.exists() or path.stat().st_nlink == 1:
            return ""
        with self._records.locked():
            own = find_file(path) if self._records.read(volume_id).pending is None else None
            kept = {layer for one in self._records.list_kept() for layer in list_kept_layers(one)}
            return next((layer for layer in sorted(kept) if own and find_file(self._records.layer(layer)) == own), "")

    def begin(self, volume_id: str) -> str:
        path = self._work(volume_id)
        path.unlink(missing_ok=True)
        return str(path)

    async def complete(
        self, volume_id: str, *, base: str | None = None, base_format: str = "qcow2", form: str = "qcow2"
    ) -> VolumeFacts:
        work, raw = self._work(volume_id), form == "raw" and base is None
        try:
            with work.open("rb") as file:
                header = read_qcow2_header(file.read(HEADER_BYTES))
            if not raw and (header is None or header.has_external_data or (header.has_backing and base is None)):
                raise InvalidInput(f"volume {volume_id}: the received data is not its disk")
            if base is not None:  # -u: only the name in the header changes, which was the other node's
                await run_qemu_img("rebase", "-q", "-u", "-f", "qcow2", "-F", base_format, "-b", base, str(work))
            await asyncio.to_thread(self._complete, volume_id, work, raw)
        except OSError as problem:
            raise _failed(volume_id, problem) from problem
        facts = self._inspect(volume_id)
        assert facts is not None
        return facts

    def _complete(self, volume_id: str, work: Path, raw: bool) -> None:
        path, other = self._path(volume_id), self._raw(volume_id)
        if raw:
            path, other = other, path
        if not self._records.is_used():
            keep_file(work, path)
            other.unlink(missing_ok=True)
            return
        with self._records.locked():
            next = self.transfer.find_chain(volume_id)
            if not raw and self._records.read(volume_id) not in (Chain(), next):
                pending = Pending(f"former-{volume_id}", next.layers, replaced=next.replaced)
                self._changes.switch(work, volume_id, pending)
            else:  # what is there is empty
                self._records.write(volume_id, next)
                keep_file(work, path)
            other.unlink(missing_ok=True)
            self._changes.sweep()

    async def ensure_files(self, volume_id: str, *, size_bytes: int, owner: tuple[int, int] = (0, 0)) -> VolumeFacts:
        async with self._lock(volume_id):
            try:
                await self._give_files(volume_id, size_bytes, owner)
            except OSError as problem:
                raise _failed(volume_id, problem) from problem
            facts = self._inspect(volume_id)
            if facts is None:
                raise DriverFailed(f"volume {volume_id} vanished while it was made", details={"step": "disk"})
            return facts

    async def _give_files(self, volume_id: str, size_bytes: int, owner: tuple[int, int]) -> None:
        """Give the volume its files: whatever cuts this off, the volume is whole under one of its names; the raw file counts where
        there is one."""
        raw, disk, work, what = (
            self._raw(volume_id),
            self._path(volume_id),
            self._work(volume_id),
            f"volume {volume_id}",
        )
        self._folder.mkdir(mode=0o700, exist_ok=True)
        try:
            if raw.exists():
                await asyncio.to_thread(refuse_others, raw, what)
                blank = await asyncio.to_thread(lambda: not has_files(raw))
            elif disk.exists():
                await self._convert(volume_id, work)
                await asyncio.to_thread(refuse_others, work, what)
                blank = await asyncio.to_thread(is_blank, work)
            else:
                blank = True
            if blank:
                before = raw if raw.exists() else work
                size = max(size_bytes, before.stat().st_size if before.exists() else 0)
                await make_files(work, round_up(size), owner)
            if work.exists():
                await asyncio.to_thread(keep_file, work, raw)
            if disk.exists():
                await asyncio.to_thread(self._unlink_disk, disk)
        finally:
            await asyncio.to_thread(work.unlink, missing_ok=True)
        await check_files(raw, round_up(size_bytes), what)

    async def _convert(self, volume_id: str, work: Path) -> None:
        layers = await self.layers.list_layers(volume_id)
        files = [*(layer.path for layer in layers), str(self._path(volume_id))]
        for path in files:
            check_own(Path(path), f"volume {volume_id}")
        image = describe_chain([(path, "qcow2") for path in files])
        await run_qemu_img("convert", "-q", "-O", "raw", image, str(work), seconds=COPY_SECONDS)

    def _unlink_disk(self, disk: Path) -> None:
        disk.unlink(missing_ok=True)
        if self._records.is_used():  # what it stood on is in the raw file
            with self._records.locked():
                self._changes.sweep()

    async def inspect(self, volume_id: str) -> VolumeFacts | None:
        return self._inspect(volume_id)

    async def grow(self, volume_id: str, size_bytes: int) -> VolumeFacts:
        """Make a volume that no guest uses larger. Raises NotFound, InvalidInput for less than it has, DriverFailed."""
        facts = self._inspect(volume_id)
        if facts is None:
            raise NotFound(f"volume {volume_id} is not on node {self._host.node}")
        if size_bytes < facts.size_bytes:
            raise InvalidInput(
                f"volume {volume_id} can't shrink from {format_bytes(facts.size_bytes)} to {format_bytes(size_bytes)}",
                field="size",
            )
        if size_bytes > facts.size_bytes and facts.format == "raw":
            os.truncate(facts.path, round_up(size_bytes))
        elif size_bytes > facts.size_bytes:
            check_own(Path(facts.path), f"volume {volume_id}")
            if layer := await self.layers.find_unfinished(volume_id):
                raise DriverFailed(
                    f"volume {volume_id} can't grow while a snapshot of it is taken (layer {layer})",
                    details={"step": "disk"},
                )
            # What its header says of its base was true on the node that made it.
            image = describe_chain([(facts.path, "qcow2")])
            await run_qemu_img("resize", "-q", image, str(round_up(size_bytes)))
        return self._inspect(volume_id) or facts

    async def remove(self, volume_id: str) -> None:
        self._making.pop(volume_id, None)
        await asyncio.to_thread(self._remove, volume_id)

    def _remove(self, volume_id: str) -> None:
        if self._records.is_used():
            with self._records.locked():
                self._changes.remove(volume_id)
            return
        paths = [path for path in (self._path(volume_id), self._raw(volume_id)) if path.exists()]
        for path in paths:
            path.unlink(missing_ok=True)
        if paths:
            sync_folder(self._folder)

    async def list(self) -> list[VolumeFacts]:
        """All volumes here, by id; other files are left out."""
        ids = {path.stem for suffix in (_SUFFIX, _RAW) for path in self._folder.glob(f"[!.]*{suffix}")}
        return [facts for facts in map(self._inspect, sorted(ids)) if facts is not None]

    async def _make(self, volume_id: str, size_bytes: int, base: str | None, base_format: str) -> VolumeFacts:
        work, size = self._work(volume_id), size_bytes
        options: list[str] = []
        if base is not None:
            smallest = _virtual_size(Path(base), base_format)
            size = size_bytes or smallest
            if size < smallest:
                raise InvalidInput(
                    f"a disk of {format_bytes(size)} is smaller than its image, {format_bytes(smallest)}",
                    field="spec.disk",
                    hint="leave disk out, or give at least the image's size",
                )
            options = ["-u", "-b", base, "-F", base_format]  # -u: qemu-img, root here, doesn't open a stranger's image
        elif size <= 0:
            raise InvalidInput(f"volume {volume_id} has no size", field="spec.size")
        await asyncio.to_thread(work.unlink, missing_ok=True)
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            await run_qemu_img("create", "-q", "-f", "qcow2", *options, str(work), str(round_up(size)))
            await asyncio.to_thread(self._name, volume_id, work)
        except OSError as problem:
            raise _failed(volume_id, problem) from problem
        finally:
            work.unlink(missing_ok=True)
        facts = self._inspect(volume_id)
        if facts is None:
            raise DriverFailed(f"volume {volume_id} vanished while it was made", details={"step": "disk"})
        return facts

    def _name(self, volume_id: str, work: Path) -> None:
        if not self._records.is_used():
            name_file(work, self._path(volume_id))
            return
        with self._records.locked():
            self._changes.add(work, volume_id, Chain())

    def _inspect(self, volume_id: str) -> VolumeFacts | None:
        path = self._path(volume_id)
        with contextlib.suppress(FileNotFoundError):
            status = (raw := self._raw(volume_id)).stat()
            return VolumeFacts(volume_id, str(raw), "raw", status.st_size, status.st_blocks * _SECTOR)
        try:
            with path.open("rb") as file:
                header = read_qcow2_header(file.read(HEADER_BYTES))
                used = os.fstat(file.fileno()).st_blocks * _SECTOR
        except FileNotFoundError:
            return None
        if header is None:
            raise DriverFailed(f"{path} is not a qcow2 file", hint="move it away", details={"step": "disk"})
        return VolumeFacts(volume_id, str(path), "qcow2", header.virtual_size, used, encrypted=header.is_encrypted)

    def _path(self, volume_id: str) -> Path:
        if not volume_id or volume_id.startswith(".") or "/" in volume_id:
            raise InvalidInput(f"{volume_id!r} is not a volume id")
        return self._folder / f"{volume_id}{_SUFFIX}"

    def _raw(self, volume_id: str) -> Path:
        return self._path(volume_id).with_suffix(_RAW)

    def _work(self, volume_id: str) -> Path:
        path = self._path(volume_id)
        return path.with_name(f"{self._work_prefix}{path.name}")


def _make_id(place: Path, path: Path, mark: str) -> None:
    """Several nodes may make one at once: the first one's stays. Raises DriverFailed."""
    work = path.with_name(f".{path.name}-{mark}")
    try:
        write_durably(work, f"{uuid.uuid4()}\n".encode(), 0o644)
        with contextlib.suppress(FileExistsError):
            os.link(work, path)
        sync_folder(place)
        work.unlink()
    except OSError as problem:
        raise DriverFailed(
            f"storage pool at {place} can't be used: {problem.strerror}",
            hint="it must be a folder that the agent can write to",
            details={"step": "disk"},
        ) from problem


def _virtual_size(path: Path, format: str) -> int:
    try:
        with path.open("rb") as file:
            if format == "raw":
                return round_up(os.fstat(file.fileno()).st_size)
            header = read_qcow2_header(file.read(HEADER_BYTES))
    except OSError as problem:
        raise DriverFailed(f"image {path} can't be read: {problem.strerror}", details={"step": "disk"}) from problem
    if header is None:
        raise DriverFailed(f"image file {path} is not a qcow2 file", details={"step": "disk"})
    return header.virtual_size


def _failed(volume_id: str, problem: OSError) -> DriverFailed:
    return DriverFailed(f"volume {volume_id} can't be made: {problem.strerror or problem}", details={"step": "disk"})
