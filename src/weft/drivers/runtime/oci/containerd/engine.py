"""One containerd, by its address: its probe, and its containers. Loaded only where one is used, since gRPC takes memory that
other nodes' agents needn't have."""

from __future__ import annotations

import contextlib
from pathlib import Path

from weft.contracts.clock import Clock
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.runtime.oci.containerd.client import Client
from weft.drivers.runtime.oci.containerd.holder import Containerd
from weft.drivers.runtime.oci.containerd.probe import find_version, probe_containerd
from weft.drivers.runtime.oci.containerd.tasks import BookHolder
from weft.drivers.runtime.oci.probe import FoundRuntime
from weft.drivers.runtime.oci.record import ContainerRecord
from weft.drivers.runtime.oci.runtime import Runtime
from weft.objects.errors import WeftError


class Engine:
    def __init__(self, address: str, groups: ControlGroups, clock: Clock, node_uid: str) -> None:
        self._client = Client(address)
        self._groups, self._clock, self._node_uid = groups, clock, node_uid

    async def probe(self, run_dir: Path, wanted: str | None, before: FoundRuntime | None) -> FoundRuntime:
        """Return ``before`` if it still answers, else what is found now. A containerd may be ended, exchanged and started again at
        any time."""
        if before is not None and before.runtime is not None:
            with contextlib.suppress(WeftError):
                if await find_version(self._client) in before.probe.version.split():
                    return before
        return await self.find_out(run_dir, wanted)

    async def find_out(self, run_dir: Path, wanted: str | None) -> FoundRuntime:
        return await probe_containerd(run_dir, self._groups, self._clock, self._client, self._node_uid, wanted)

    def hold(self, runtime: Runtime) -> BookHolder:
        return Containerd(self._client, runtime, self._groups, self._clock, self._node_uid)

    async def find_strays(self, runtime: Runtime, known: set[str]) -> list[ContainerRecord]:
        """See Containerd. None where it doesn't answer."""
        try:
            return await self.hold(runtime).find_strays(known)
        except WeftError:
            return []

    async def close(self) -> None:
        await self._client.close()
