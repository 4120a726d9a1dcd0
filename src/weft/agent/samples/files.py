"""The files of a node's samples, one for each workload: opened, asked, and removed when the workload has left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

from weft.agent.samples.carry import pack_file, put_piece, read_piece
from weft.objects.identity import short_id
from weft.telemetry.samples.file import SampleFile, find_file, open_file
from weft.telemetry.samples.layout import MOST_SERIES, Series
from weft.telemetry.samples.query import SampleQuery, answer

UNMEASURED = (Series("cpu", "cores"), Series("memory.resident", "bytes"))  # of what nothing was measured of yet
MOST_ANSWERS = 2  # in the making


class SampleFiles:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._replaced: set[str] = set()
        self._answers = asyncio.Semaphore(MOST_ANSWERS)

    def open(self, uid: str, series: Sequence[Series]) -> SampleFile:
        """The file of a workload, with columns for ``series``. Raises OSError."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return open_file(self._path(uid), series)

    async def answer(self, uid: str, question: SampleQuery, wanted: Sequence[str]) -> bytes:
        """The answer, as JSON. Raises InvalidInput for names of no series, OSError."""
        async with self._answers:
            return await asyncio.to_thread(self._read, uid, question, wanted)

    async def pack(self, uid: str) -> list[bytes]:
        """All samples of a workload, in pieces that the node it migrates to can ``take``. Raises OSError."""
        return await asyncio.to_thread(self._pack, uid)

    async def take(self, uid: str, data: bytes, now: float) -> None:
        """Add a piece of the samples from another node. Raises InvalidInput, OSError."""
        await asyncio.to_thread(self._take, uid, data, now)

    def take_replaced(self) -> set[str]:
        """The workloads whose files were replaced by others since the last call: what is open of them is not theirs any more."""
        replaced, self._replaced = self._replaced, set()
        return replaced

    def _pack(self, uid: str) -> list[bytes]:
        file = find_file(self._path(uid))
        if file is None:
            return []
        try:
            return list(pack_file(file))
        finally:
            file.close()

    def _take(self, uid: str, data: bytes, now: float) -> None:
        piece = read_piece(data)
        before = find_file(self._path(uid))
        known = before.layout.series if before is not None else ()
        if before is not None:
            before.close()
        # A file that has other series already gets those that fit; its own stay.
        more = [one for one in piece.series if one not in known][: MOST_SERIES - len(known)]
        file = self.open(uid, [*known, *more])
        try:
            if more:
                self._replaced.add(uid)
            put_piece(file, piece, now)
        finally:
            file.close()

    def sweep(self, uids: Iterable[str]) -> None:
        """Remove the files of workloads that aren't here any more."""
        own = {self._path(uid) for uid in uids}
        for path in self._folder.glob("*.samples"):
            if path not in own:
                path.unlink(missing_ok=True)

    def _read(self, uid: str, question: SampleQuery, wanted: Sequence[str]) -> bytes:
        file = find_file(self._path(uid))
        try:
            return b"".join(answer(file, question, wanted, UNMEASURED))
        finally:
            if file is not None:
                file.close()

    def _path(self, uid: str) -> Path:
        return self._folder / f"{short_id(uid)}.samples"
