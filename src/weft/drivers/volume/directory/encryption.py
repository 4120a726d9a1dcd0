"""Volumes in files that QEMU encrypts: LUKS in a qcow2 file. What qemu-img and QEMU read and write is plain only in their memory.

The passphrase is 256 random bits, so deriving the key from it slowly, as LUKS does for what people think of, would protect nothing
and take seconds at each start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from weft.contracts.driver.volume import VolumeFacts
from weft.drivers.volume.directory.qemu_img import check_own, round_up, run_qemu_img
from weft.objects.errors import DriverFailed, InvalidInput, NotFound
from weft.objects.quantity import format_bytes

ITERATION_MS = 10
_KEY_ID = "key"


class DirectoryEncryption:
    """``making``: the lock of a volume; ``inspect``, ``work`` and ``name`` are the driver's."""

    def __init__(
        self,
        making: Callable[[str], asyncio.Lock],
        inspect: Callable[[str], VolumeFacts | None],
        work: Callable[[str], Path],
        name: Callable[[str, Path], None],
    ) -> None:
        self._making, self._inspect, self._work, self._name = making, inspect, work, name

    async def ensure(self, volume_id: str, *, size_bytes: int, key: str) -> VolumeFacts:
        async with self._making(volume_id):
            facts = self._inspect(volume_id)
            if facts is None:
                facts = await self._make(volume_id, size_bytes, key)
            if not facts.encrypted:
                raise DriverFailed(
                    f"volume {volume_id} is there, but not encrypted",
                    reason="notEncrypted",
                    hint="weft didn't make it so: find out who put it there, and remove it",
                    details={"step": "disk"},
                )
            return facts

    async def grow(self, volume_id: str, size_bytes: int, *, key: str) -> VolumeFacts:
        facts = self._inspect(volume_id)
        if facts is None:
            raise NotFound(f"volume {volume_id} is not on this node")
        if size_bytes < facts.size_bytes:
            sizes = f"from {format_bytes(facts.size_bytes)} to {format_bytes(size_bytes)}"
            raise InvalidInput(f"volume {volume_id} can't shrink {sizes}", field="size")
        if size_bytes > facts.size_bytes:
            check_own(Path(facts.path), f"volume {volume_id}")
            image = f"driver=qcow2,file.filename={facts.path},encrypt.format=luks,encrypt.key-secret={_KEY_ID}"
            try:
                await run_qemu_img("resize", "-q", *_name_key(key), "--image-opts", image, str(round_up(size_bytes)))
            except DriverFailed as problem:
                if "Invalid password" in problem.message:
                    raise DriverFailed(
                        f"volume {volume_id} is encrypted with another key", reason="wrongKey", details={"step": "disk"}
                    ) from None
                raise
        return self._inspect(volume_id) or facts

    async def _make(self, volume_id: str, size_bytes: int, key: str) -> VolumeFacts:
        if size_bytes <= 0:
            raise InvalidInput(f"volume {volume_id} has no size", field="spec.size")
        work = self._work(volume_id)
        options = f"encrypt.format=luks,encrypt.key-secret={_KEY_ID},encrypt.iter-time={ITERATION_MS}"
        try:
            await asyncio.to_thread(_begin, work)
            await run_qemu_img(
                "create", "-q", *_name_key(key), "-f", "qcow2", "-o", options, str(work), str(round_up(size_bytes))
            )
            await asyncio.to_thread(self._name, volume_id, work)
        except OSError as problem:
            raise DriverFailed(
                f"volume {volume_id} can't be made: {problem.strerror or problem}", details={"step": "disk"}
            ) from problem
        finally:
            await asyncio.to_thread(work.unlink, missing_ok=True)
        facts = self._inspect(volume_id)
        if facts is None:
            raise DriverFailed(f"volume {volume_id} vanished while it was made", details={"step": "disk"})
        return facts


def _begin(work: Path) -> None:
    work.parent.mkdir(mode=0o700, exist_ok=True)
    work.unlink(missing_ok=True)


def _name_key(key: str) -> list[str]:
    """Only its path is on the command line."""
    return ["--object", f"secret,id={_KEY_ID},file={key}"]
