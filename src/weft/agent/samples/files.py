"""The ring files of a node's samples, one for each workload: opened, asked, and removed when the workload has left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

from weft.objects.identity import short_id
from weft.telemetry.rings.layout import Series
from weft.telemetry.rings.query import Question, answer
from weft.telemetry.rings.ring import Ring, find_ring, open_ring

UNMEASURED = (Series("cpu", "cores"), Series("memory.resident", "bytes"))  # of what nothing was measured of yet
MOST_ANSWERS = 2  # in the making


class SampleFiles:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._answers = asyncio.Semaphore(MOST_ANSWERS)

    def open(self, uid: str, series: Sequence[Series]) -> Ring:
        """The file of a workload, with columns for ``series``. Raises OSError."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return open_ring(self._path(uid), series)

    async def answer(self, uid: str, question: Question, wanted: Sequence[str]) -> bytes:
        """The answer, as JSON. Raises InvalidInput for names of no series, OSError."""
        async with self._answers:
            return await asyncio.to_thread(self._read, uid, question, wanted)

    def sweep(self, uids: Iterable[str]) -> None:
        """Remove the files of workloads that aren't here any more."""
        own = {self._path(uid) for uid in uids}
        for path in self._folder.glob("*.ring"):
            if path not in own:
                path.unlink(missing_ok=True)

    def _read(self, uid: str, question: Question, wanted: Sequence[str]) -> bytes:
        ring = find_ring(self._path(uid))
        try:
            return b"".join(answer(ring, question, wanted, UNMEASURED))
        finally:
            if ring is not None:
                ring.close()

    def _path(self, uid: str) -> Path:
        return self._folder / f"{short_id(uid)}.ring"
