"""A blob from a source to a file: checked as it arrives, taken up again where it was cut."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from weft.contracts.clock import Clock
from weft.drivers.image.oci.documents import Descriptor
from weft.drivers.image.oci.fetch.exchange import Broken, Patience
from weft.drivers.image.oci.fetch.source import PASSING, Source, explain
from weft.objects.errors import DriverFailed

_T = TypeVar("_T")
Arrived = Callable[[int], None]  # bytes that are here


async def insist(
    attempt: Callable[[], Awaitable[_T]],
    source: Source,
    patience: Patience,
    clock: Clock,
    *,
    arrived: Callable[[], int] = lambda: 0,
    wanted: int = 0,
) -> _T:
    """Repeat ``attempt`` until it succeeds, as often as ``patience`` allows; an attempt that brought more bytes doesn't count.
    Raises the error of the last failure."""
    barren = resumes = 0
    while True:
        before = arrived()
        try:
            return await attempt()
        except Broken as problem:
            barren = 0 if arrived() > before else barren + 1
            resumes += 1
            if problem.kind not in PASSING or barren >= patience.tries or resumes > patience.resumes:
                raise explain(problem, source.where, arrived=arrived(), wanted=wanted) from None
        await clock.sleep(patience.pause_seconds * min(8, 1 << barren) / 2)


async def download(
    source: Source, descriptor: Descriptor, target: Path, patience: Patience, clock: Clock, report: Arrived
) -> None:
    """Write the blob to ``target``; without all of it there is no file. Raises as ``OciStore.pull`` does."""
    blob = _Blob(source, descriptor, report)
    try:
        with target.open("xb", buffering=0) as blob.out:
            await insist(blob.fetch, source, patience, clock, arrived=lambda: blob.arrived, wanted=descriptor.size)
            found = f"sha256:{blob.sum.hexdigest()}"
            if found != descriptor.digest:
                raise _wrong(source, descriptor, f"is {found}")
            await asyncio.to_thread(os.fsync, blob.out.fileno())
    except BaseException as problem:
        await asyncio.to_thread(target.unlink, missing_ok=True)
        if isinstance(problem, OSError):
            raise DriverFailed(
                f"a layer can't be written: {problem.strerror}",
                reason="noSpace" if problem.errno in (28, 122) else None,
                details={"step": "image"},
            ) from problem
        raise


class _Blob:
    """How far it is, over all attempts."""

    def __init__(self, source: Source, descriptor: Descriptor, report: Arrived) -> None:
        self._source, self._descriptor, self._report = source, descriptor, report
        self.out: BinaryIO
        self.arrived, self.sum = 0, hashlib.sha256()

    async def fetch(self) -> None:
        """The rest. Raises Broken (cut), DriverFailed (wrongDigest)."""
        if self.arrived == self._descriptor.size:
            return
        async with self._source.blob(self._descriptor, self.arrived) as chunks:
            async for chunk in chunks:
                if self.arrived + len(chunk) > self._descriptor.size:
                    raise _wrong(self._source, self._descriptor, f"is larger than its {self._descriptor.size} bytes")
                await asyncio.to_thread(self._write, chunk)
                self._report(self.arrived)
        if self.arrived < self._descriptor.size:
            raise Broken("cut", "it ended too early")

    def _write(self, chunk: bytes) -> None:
        left = memoryview(chunk)
        while left:
            left = left[self.out.write(left) :]
        self.sum.update(chunk)
        self.arrived += len(chunk)


def _wrong(source: Source, descriptor: Descriptor, fact: str) -> DriverFailed:
    return DriverFailed(
        f"{source.where} serves a blob with the wrong content: {descriptor.digest} {fact}",
        reason="wrongDigest",
        hint="push the image again; if that doesn't help, don't trust the registry",
        details={"step": "image"},
    )
