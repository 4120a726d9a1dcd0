"""One containerd with a runtime that makes machines: what it is found to be, and what it holds. Loaded only where there is one to
be used, as the other ``engine.py``.
"""

from __future__ import annotations

from pathlib import Path

from weft.contracts.clock import Clock
from weft.drivers.runtime.oci.containerd.engine import Engine as PlainEngine
from weft.drivers.runtime.oci.containerd.events import Shortages
from weft.drivers.runtime.oci.containerd.tasks import BookHolder
from weft.drivers.runtime.oci.groups import Groups
from weft.drivers.runtime.oci.kata.holder import Kata
from weft.drivers.runtime.oci.kata.probe import probe_kata
from weft.drivers.runtime.oci.probe import Found
from weft.drivers.runtime.oci.runtime import Runtime


class Engine(PlainEngine):
    def __init__(self, address: str, groups: Groups, clock: Clock, node_uid: str) -> None:
        super().__init__(address, groups, clock, node_uid)
        self._shortages = Shortages(self._client, clock)

    async def find_out(self, run_dir: Path, wanted: str | None) -> Found:
        assert wanted is not None
        return await probe_kata(
            run_dir, self._groups, self._clock, self._client, self._shortages, self._node_uid, wanted
        )

    def hold(self, runtime: Runtime) -> BookHolder:
        return Kata(self._client, runtime.program, self._shortages, self._groups, self._clock, self._node_uid)

    async def close(self) -> None:
        await self._shortages.close()
        await super().close()
