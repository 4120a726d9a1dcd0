"""The keys of encrypted volumes on this node: in memory only. Drivers and qemu-img read each by a path that lasts as long as the
agent does, and that nobody but root may follow."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

from weft.agent.server.client import Server
from weft.agent.state.allocation import LocalAllocation
from weft.objects.errors import Unavailable

READERS = 4


class VolumeKeys:
    def __init__(self, server: Server, node: str) -> None:
        self._server, self._node = server, node
        self._threads = ThreadPoolExecutor(READERS, "weft-volume-keys")  # a server that is silent holds up nothing else
        self._files: dict[str, tuple[str, int]] = {}  # by the volume's uid: whose allocation's (uid), and a descriptor

    async def open(self, local: LocalAllocation) -> dict[str, str]:
        """The paths of the keys of its encrypted volumes, by uid. While the server can't be reached, those that were fetched last.
        Raises NotFound (``keyLost``), Unavailable."""
        wanted = [volume.uid for volume in local.spec.volumes if volume.encrypted]
        if not wanted:
            return {}
        try:
            opened = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._server.read_secrets, self._node, local.name
            )
        except Unavailable:
            if any(uid not in self._files for uid in wanted):
                raise
        else:
            for uid in wanted:
                self._put(uid, local.uid, opened.volumes[uid])
        return {uid: f"/proc/{os.getpid()}/fd/{self._files[uid][1]}" for uid in wanted}

    def close(self) -> None:
        """Nothing is asked for any more; the keys stay as long as the process."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def drop(self, allocation: str) -> None:
        """The allocation is gone from this node."""
        for uid in [uid for uid, (whose, _) in self._files.items() if whose == allocation]:
            os.close(self._files.pop(uid)[1])

    def _put(self, uid: str, allocation: str, key: str) -> None:
        if (old := self._files.pop(uid, None)) is not None:
            if os.pread(old[1], len(key) + 1, 0) == key.encode():  # a start that is under way may be about to read it
                self._files[uid] = (allocation, old[1])
                return
            os.close(old[1])
        descriptor = os.memfd_create("weft-volume-key", os.MFD_CLOEXEC)
        os.write(descriptor, key.encode())
        self._files[uid] = (allocation, descriptor)
