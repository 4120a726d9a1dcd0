"""Changes of layers, for the agent's loop: in a thread, with the records locked."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import TypeVar

from weft.drivers.volume.directory.layer_records import LayerRecords
from weft.objects.errors import DriverFailed

_T = TypeVar("_T")


class Locking:
    """A runner of changes, with the records locked. ``where`` names the pool and the node, for people."""

    def __init__(self, records: LayerRecords, where: str) -> None:
        self._records, self.where = records, where

    async def __call__(self, act: Callable[[], _T]) -> _T:
        """Do it. Raises what it raises, and DriverFailed (``noSpace``) for an OSError."""

        def run() -> _T:
            try:
                with self._records.locked():
                    return act()
            except OSError as problem:
                raise DriverFailed(
                    f"disk layers in {self.where}: {problem.strerror or problem}",
                    reason="noSpace" if problem.errno in (errno.ENOSPC, errno.EDQUOT) else None,
                    details={"step": "snapshot"},
                ) from problem

        return await asyncio.to_thread(run)
