"""The snapshots that this node's pools keep, for its report, and their removal on the server's request.

The server asks for a removal in the answer to a report. So a report is due as soon as a watch shows that one of these snapshots is
to go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

import msgspec

from weft.agent.server.reporter import Reporter
from weft.agent.state.table import AllocationTable
from weft.agent.tasks import Tasks
from weft.agent.template.fit import KEPT
from weft.agent.volume.pools import CHECK_LIMIT_SECONDS, Pools
from weft.agent.watches import Change, Listed, Put
from weft.contracts.clock import Clock
from weft.contracts.driver.layers import HasLayers, KeptSnapshot
from weft.contracts.driver.volume import HasPool, VolumeDriver
from weft.contracts.durable_file import write_durably
from weft.contracts.wakeup import Wake
from weft.kinds.allocation import ROOT
from weft.kinds.node import NodeSnapshot
from weft.kinds.snapshot import SnapshotMarks, SnapshotStatus, is_dropped
from weft.objects.envelope import Envelope, decode_part
from weft.objects.errors import WeftError
from weft.objects.identity import short_id

CHECK_SECONDS = 60.0  # another node may change what a shared pool keeps

log = logging.getLogger("weft.agent")


class KeptSnapshots:
    """``changed`` rings when chains may have layers that no snapshot needs any more."""

    def __init__(
        self,
        state_dir: str,
        pools: Pools,
        table: AllocationTable,
        reporter: Reporter,
        clock: Clock,
        tasks: Tasks,
    ) -> None:
        self._file = Path(state_dir) / "kept-snapshots.json"
        self._pools, self._table, self._reporter, self._tasks = pools, table, reporter, tasks
        self._wake, self.changed = pools.snapshots_changed, Wake(clock)
        self._kept = self._load()  # by the pool's name: id of its storage, and what it keeps
        self._listing = asyncio.Lock()
        self._removing: set[str] = set()
        self._doomed: dict[str, str] = {}  # by uid, the object's name
        self._troubled: dict[str, str] = {}  # by the pool's name
        self.snapshots = sum_up(self._kept.values())
        self.version = 0  # of ``snapshots``

    def wake(self) -> None:
        """A pool has got a snapshot, or a chain has lost a layer."""
        self._wake.ring()

    async def keep(self) -> None:
        """List them again and again."""
        while True:
            await self._wake.wait(CHECK_SECONDS)
            await self.refresh()

    async def refresh(self) -> None:
        """List them now: what is kept by the time of the call is in the next report. Of a pool that can't be used, the last list
        stands, also an earlier agent's: a snapshot that isn't listed counts as lost."""
        async with self._listing:  # an older list must not come last
            before = dict(self._kept)
            for name, driver in self._pools.named():
                if isinstance(driver, HasLayers):
                    await self._list(name, driver, driver)
            if self._kept != before:
                await asyncio.to_thread(self._save)
            snapshots = sum_up(self._kept.values())
            if snapshots != self.snapshots:
                self.snapshots, self.version = snapshots, self.version + 1
                self._reporter.wake()
                self.changed.ring()

    @property
    def are_to_go(self) -> bool:
        """Whether the server is about to ask for the removal of one that is here."""
        return any(one.uid in self._doomed for one in self.snapshots)

    def note(self, change: Change) -> None:
        """Hear of the server's snapshots that lie on this node."""
        if isinstance(change, Listed):
            self._doomed = {uid: name for uid, name in self._doomed.items() if name in change.names}
            return
        envelope = change.envelope if isinstance(change, Put) else change.last
        if isinstance(change, Put) and _is_to_go(envelope):
            self._doomed[envelope.uid] = envelope.name
            self._reporter.wake()
        else:
            self._doomed.pop(envelope.uid, None)

    def let_go(self, uids: Iterable[str]) -> None:
        """Remove these on the server's request, except those that are being taken or begun from."""
        wanted = set(uids) - self._removing
        for uid in wanted - self._table.snapshots() if wanted else ():
            self._removing.add(uid)
            self._tasks.spawn(self._let_go(uid))

    async def _let_go(self, uid: str) -> None:
        try:
            await self._remove(uid)
        except (WeftError, OSError) as problem:
            log.warning("can't remove snapshot %s: %s", uid, problem)
        finally:
            self._removing.discard(uid)
        await self.refresh()

    async def _remove(self, uid: str) -> None:
        """Remove a snapshot from every pool; it may be absent. Raises DriverFailed, OSError."""
        for _, driver in self._pools.named():
            if isinstance(driver, HasPool):
                await asyncio.to_thread(driver.pool)  # raises if the pool isn't mounted: then absence proves nothing
        for _, driver in self._pools.named():
            if isinstance(driver, HasLayers):
                await driver.layers.drop(short_id(uid))

    def _load(self) -> dict[str, tuple[str, list[KeptSnapshot]]]:
        try:
            kept = msgspec.json.decode(self._file.read_bytes(), type=dict[str, tuple[str, list[KeptSnapshot]]])
        except (OSError, msgspec.DecodeError):
            return {}
        return {name: kept[name] for name, _ in self._pools.named() if name in kept}

    def _save(self) -> None:
        try:
            write_durably(self._file, msgspec.json.encode(self._kept))
        except OSError as problem:
            log.warning("can't write %s: %s", self._file, problem)

    async def _list(self, name: str, driver: VolumeDriver, layered: HasLayers) -> None:
        try:
            async with asyncio.timeout(CHECK_LIMIT_SECONDS):  # a network's file system may not answer at all
                id_ = (await asyncio.to_thread(driver.pool)).id if isinstance(driver, HasPool) else ""
                self._kept[name] = (id_, await layered.layers.list_kept())
            self._troubled.pop(name, None)
        except (WeftError, OSError, TimeoutError) as problem:
            why = str(problem) or "it doesn't answer"
            if self._troubled.get(name) != why:
                self._troubled[name] = why
                log.warning("can't list the snapshots of storage pool %s: %s", name, why)


def _is_to_go(snapshot: Envelope) -> bool:
    marks, status = decode_part(snapshot.marks, SnapshotMarks), decode_part(snapshot.status, SnapshotStatus)
    return snapshot.deleting_since is not None or is_dropped(marks, status)


def sum_up(kept: Iterable[tuple[str, list[KeptSnapshot]]]) -> list[NodeSnapshot]:
    """The snapshots of all pools, by uid: disks of one may be in several. ``kept``: of each pool its storage's id, and what it
    keeps; two names of one storage count once."""
    found: dict[str, NodeSnapshot] = {}
    seen: set[str] = set()
    for pool_id, snapshots in kept:
        if pool_id and pool_id in seen:
            continue
        seen.add(pool_id)
        for one in snapshots:
            if one.uid.startswith(KEPT):
                continue  # a template's
            before = found.get(one.uid, NodeSnapshot(one.uid))
            found[one.uid] = msgspec.structs.replace(
                before,
                size=before.size + one.used_bytes,
                memory=before.memory + one.memory_bytes,
                pool_id=pool_id if ROOT in one.disks or not before.pool_id else before.pool_id,
            )
    return [found[uid] for uid in sorted(found)]
