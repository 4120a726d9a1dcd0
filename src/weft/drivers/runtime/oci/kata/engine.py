"""One containerd with a runtime that makes machines: what it is found to be, and what it holds. Loaded only where there is one to
be used, as the other ``engine.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path

from weft.contracts.clock import Clock
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.runtime.oci.containerd.engine import Engine as PlainEngine
from weft.drivers.runtime.oci.containerd.oom_events import Shortages
from weft.drivers.runtime.oci.containerd.tasks import BookHolder
from weft.drivers.runtime.oci.kata.holder import Kata
from weft.drivers.runtime.oci.kata.probe import probe_kata
from weft.drivers.runtime.oci.kata.translate import name_shim
from weft.drivers.runtime.oci.probe import FoundRuntime
from weft.drivers.runtime.oci.runtime import Runtime
from weft.objects.errors import WeftError

AGAIN_SECONDS = 600.0


class Engine(PlainEngine):
    def __init__(self, address: str, groups: ControlGroups, clock: Clock, node_uid: str) -> None:
        super().__init__(address, groups, clock, node_uid)
        self._shortages = Shortages(self._client, clock)
        self._failed: tuple[tuple[str, int, int], FoundRuntime, float] | None = None

    async def find_out(self, run_dir: Path, wanted: str | None) -> FoundRuntime:
        """A try that fails may have booted a machine: none follows soon, unless shim or containerd is another by then."""
        assert wanted is not None
        now = await asyncio.to_thread(self._read_versions, wanted)
        if self._failed is not None:
            before, failed, until = self._failed
            if before == now and self._clock.elapsed() < until:
                return failed
        found = await probe_kata(
            run_dir, self._groups, self._clock, self._client, self._shortages, self._node_uid, wanted
        )
        self._failed = (now, found, self._clock.elapsed() + AGAIN_SECONDS) if found.runtime is None else None
        return found

    def _read_versions(self, runtime_class: str) -> tuple[str, int, int]:
        shim, made, peer = shutil.which(name_shim(runtime_class)) or "", 0, 0
        with contextlib.suppress(OSError):
            made = os.stat(shim).st_mtime_ns
        with contextlib.suppress(WeftError):
            peer = self._client.find_peer()
        return shim, made, peer

    def hold(self, runtime: Runtime) -> BookHolder:
        return Kata(self._client, runtime.program, self._shortages, self._groups, self._clock, self._node_uid)

    async def close(self) -> None:
        await self._shortages.close()
        await super().close()
