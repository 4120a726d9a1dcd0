"""Volumes as qcow2 files in one folder of the node, ``<state>/volumes/<id>.qcow2``; clones are copy-on-write.

Makes files with qemu-img under another name first, so that a half-made volume is never seen. Reads sizes from the files
themselves, which works while a guest has them open. Called by the agent.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from weft.contracts.durable import keep_file, sync_folder
from weft.contracts.host import Host
from weft.contracts.volume import VolumeFacts
from weft.objects.errors import DriverFailed, InvalidInput, NotFound
from weft.objects.qcow2 import HEADER_BYTES, read_qcow2_header
from weft.objects.quantity import format_bytes

TIMEOUT_SECONDS = 60.0
_SUFFIX = ".qcow2"
_SECTOR = 512


class DirectoryVolumes:
    """The volumes of one node."""

    name = "directory"

    def __init__(self, host: Host) -> None:
        self._host = host
        self._folder = Path(host.state_dir) / "volumes"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._making: dict[str, asyncio.Lock] = {}
        for left in self._folder.glob(".making-*"):
            left.unlink(missing_ok=True)

    async def ensure(
        self, volume_id: str, *, size_bytes: int, base: str | None = None, base_format: str = "qcow2"
    ) -> VolumeFacts:
        """Make the volume if it isn't there. Raises InvalidInput for one without a size or smaller than its base,
        DriverFailed (``noSpace``, ``driverFailed``)."""
        async with self._making.setdefault(volume_id, asyncio.Lock()):
            return self._inspect(volume_id) or await self._make(volume_id, size_bytes, base, base_format)

    def begin(self, volume_id: str) -> str:
        path = self._work(volume_id)
        path.unlink(missing_ok=True)
        return str(path)

    async def complete(self, volume_id: str, *, base: str | None = None, base_format: str = "qcow2") -> VolumeFacts:
        work = self._work(volume_id)
        try:
            with work.open("rb") as file:
                header = read_qcow2_header(file.read(HEADER_BYTES))
            if header is None or header.has_external_data or header.has_backing != (base is not None):
                raise InvalidInput(f"volume {volume_id}: what has come is not its disk")
            if base is not None:  # -u: only the name in the header changes, which was the other node's
                await self._run("rebase", "-q", "-u", "-f", "qcow2", "-F", base_format, "-b", base, str(work))
            await asyncio.to_thread(keep_file, work, self._path(volume_id))
        except OSError as problem:
            raise _failed(volume_id, problem) from problem
        facts = self._inspect(volume_id)
        assert facts is not None
        return facts

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
        if size_bytes > facts.size_bytes:
            self._check_own(volume_id)
            await self._run("resize", "-q", "-f", "qcow2", facts.path, str(_round_up(size_bytes)))
        return self._inspect(volume_id) or facts

    async def remove(self, volume_id: str) -> None:
        self._making.pop(volume_id, None)
        self._path(volume_id).unlink(missing_ok=True)
        await asyncio.to_thread(sync_folder, self._folder)

    async def list(self) -> list[VolumeFacts]:
        """All volumes here, by id; a file that is none is left out."""
        ids = sorted(path.name.removesuffix(_SUFFIX) for path in self._folder.glob(f"[!.]*{_SUFFIX}"))
        return [facts for facts in map(self._inspect, ids) if facts is not None]

    async def _make(self, volume_id: str, size_bytes: int, base: str | None, base_format: str) -> VolumeFacts:
        path, work = self._path(volume_id), self._work(volume_id)
        size = size_bytes
        options: list[str] = []
        if base is not None:
            smallest = _virtual_size(Path(base), base_format)
            size = size_bytes or smallest
            if size < smallest:
                raise InvalidInput(
                    f"a disk of {format_bytes(size)} is smaller than its image's {format_bytes(smallest)}",
                    field="spec.disk",
                    hint="leave disk out, or give at least the image's size",
                )
            options = ["-u", "-b", base, "-F", base_format]  # -u: qemu-img, root here, doesn't open a stranger's image
        elif size <= 0:
            raise InvalidInput(f"volume {volume_id} has no size", field="spec.size")
        work.unlink(missing_ok=True)
        try:
            await self._run("create", "-q", "-f", "qcow2", *options, str(work), str(_round_up(size)))
            await asyncio.to_thread(keep_file, work, path)
        except OSError as problem:
            raise _failed(volume_id, problem) from problem
        finally:
            work.unlink(missing_ok=True)
        facts = self._inspect(volume_id)
        if facts is None:
            raise DriverFailed(f"volume {volume_id} vanished while it was made", details={"step": "disk"})
        return facts

    def _inspect(self, volume_id: str) -> VolumeFacts | None:
        path = self._path(volume_id)
        try:
            with path.open("rb") as file:
                header = read_qcow2_header(file.read(HEADER_BYTES))
                used = os.fstat(file.fileno()).st_blocks * _SECTOR
        except FileNotFoundError:
            return None
        if header is None:
            raise DriverFailed(f"{path} is not a qcow2 file", hint="move it away", details={"step": "disk"})
        return VolumeFacts(volume_id, str(path), "qcow2", header.virtual_size, used)

    def _check_own(self, volume_id: str) -> None:
        """A guest's machine can write its disk's header: one that names a file for the data would have qemu-img, which is
        root here, write to that file. Raises DriverFailed."""
        with self._path(volume_id).open("rb") as file:
            header = read_qcow2_header(file.read(HEADER_BYTES))
        if header is None or header.has_external_data:
            raise DriverFailed(
                f"volume {volume_id} names another file for its data, which weft never writes",
                hint="don't trust what is on it; restore it from a backup",
                details={"step": "disk"},
            )

    def _path(self, volume_id: str) -> Path:
        if not volume_id or volume_id.startswith(".") or "/" in volume_id:
            raise InvalidInput(f"{volume_id!r} is no volume id")
        return self._folder / f"{volume_id}{_SUFFIX}"

    def _work(self, volume_id: str) -> Path:
        path = self._path(volume_id)
        return path.with_name(f".making-{path.name}")

    async def _run(self, *words: str) -> None:
        """Run qemu-img; raises DriverFailed with its own words."""
        try:
            process = await asyncio.create_subprocess_exec(
                "qemu-img",
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        except FileNotFoundError as problem:
            raise DriverFailed("qemu-img is not installed", hint="apt-get install qemu-utils") from problem
        try:
            _, said = await asyncio.wait_for(process.communicate(), TIMEOUT_SECONDS)
        except BaseException as problem:
            if process.returncode is None:
                process.kill()
                await process.wait()
            if isinstance(problem, TimeoutError):
                raise DriverFailed(f"qemu-img {words[0]} did not end within {TIMEOUT_SECONDS:g} s") from problem
            raise
        if process.returncode != 0:
            text = said.decode(errors="replace").strip().removeprefix("qemu-img: ")
            raise DriverFailed(
                f"qemu-img {words[0]} failed: {text}",
                reason="noSpace" if "No space left" in text else None,
                details={"step": "disk"},
            )


def _virtual_size(path: Path, format: str) -> int:
    try:
        with path.open("rb") as file:
            if format == "raw":
                return _round_up(os.fstat(file.fileno()).st_size)
            header = read_qcow2_header(file.read(HEADER_BYTES))
    except OSError as problem:
        raise DriverFailed(f"image {path} can't be read: {problem.strerror}", details={"step": "disk"}) from problem
    if header is None:
        raise DriverFailed(f"image file {path} is not a qcow2 file", details={"step": "disk"})
    return header.virtual_size


def _round_up(size: int) -> int:
    return -(-size // _SECTOR) * _SECTOR


def _failed(volume_id: str, problem: OSError) -> DriverFailed:
    return DriverFailed(f"volume {volume_id} can't be made: {problem.strerror or problem}", details={"step": "disk"})
