"""How orders of work on backups are done: of each repository one at a time, in a process of its own.

Key and credentials are read from the server for each order, and go to its process over its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path

import msgspec

from weft.agent.backup.process import read_lines
from weft.agent.backup.serving import Note, Serving
from weft.agent.backup.uploads import fetch_uploads, render_missing
from weft.agent.image.cache import ImageCache
from weft.agent.orders.executor import Handler
from weft.agent.problem import describe_problem
from weft.agent.server.client import Server
from weft.agent.snapshot.reading import read_disks
from weft.agent.state.table import AllocationTable
from weft.agent.volume.pools import Pools
from weft.agent.workload.runtimes import Runtimes
from weft.backup.process.job import BASE_GONE, Job, JobDisk, JobLine
from weft.contracts.clock import Clock
from weft.contracts.driver.layers import CopiesDisks, HasLayers, KeptDisk, KeptSnapshot
from weft.contracts.driver.volume import VolumeDriver
from weft.kinds.allocation import ROOT
from weft.kinds.fields.backup_work import BackupOrder, BackupReport
from weft.objects.errors import DriverFailed
from weft.objects.identity import short_id

log = logging.getLogger("weft.agent")
_MODULE = "weft.backup.process.worker"


class BackupWork(Handler[BackupOrder, BackupReport]):
    """``taken_in`` is called once a pool has got a snapshot."""

    def __init__(
        self,
        state_dir: str,
        node: str,
        server: Server,
        pools: Pools,
        images: ImageCache,
        table: AllocationTable,
        runtimes: Runtimes,
        clock: Clock,
        taken_in: Callable[[], None],
    ) -> None:
        self._cache, self._uploads = Path(state_dir) / "backup-catalogues", Path(state_dir) / "backup-uploads"
        shutil.rmtree(self._uploads, ignore_errors=True)  # what one that was killed left
        self._uploads.mkdir(mode=0o700, parents=True)
        self._node, self._server, self._pools, self._images, self._clock = node, server, pools, images, clock
        self._taken_in = taken_in
        self._serving = Serving(pools, table, runtimes, clock, self._open, self._read_lines, taken_in)

    def lane(self, order: BackupOrder) -> str:
        """A repository: a bucket that is slow, or away, holds up no work on another."""
        return order.repository_uid

    def lasts(self, order: BackupOrder) -> bool:
        """Serving a backup to a VM goes on beside all else."""
        return order.act == "serve"

    def begin(self, order: BackupOrder, former: BackupReport | None) -> BackupReport:
        return self._describe(order, JobLine())

    async def do(self, order: BackupOrder, show: Callable[[BackupReport], None]) -> BackupReport:
        def note(line: JobLine) -> None:
            show(self._describe(order, line, serves=self.lasts(order)))

        line = await self._work(order, note)
        if line.ended == "failed":
            log.warning("%s of backup %s: %s", order.act, order.name or order.repository, line.message)
        return self._describe(order, line)

    def fail(self, order: BackupOrder, problem: Exception) -> tuple[BackupReport, None]:
        reason, message = describe_problem(problem)
        log.warning("%s of backup %s: %s", order.act, order.name or order.repository, message)
        return self._describe(order, JobLine(ended="failed", reason=reason, message=message)), None

    def _describe(self, order: BackupOrder, line: JobLine, *, serves: bool = False) -> BackupReport:
        return BackupReport(
            uid=order.uid,
            act=order.act,
            generation=order.generation,
            phase=line.ended or "working",
            progress=line.progress,
            serves=serves,
            repository_id=line.repository_id,
            backups=line.backups,
            bytes=line.bytes,
            stored_bytes=line.stored_bytes,
            unique_bytes=line.unique_bytes,
            locked_until=line.locked_until,
            free=line.free,
            kept_bytes=line.kept_bytes,
            full_because=line.full_because,
            disks=line.disks,
            manifest=line.manifest,
            damaged=line.damaged,
            finished_at=self._clock.now() if line.ended else 0.0,
            reason=line.reason,
            message=line.message,
        )

    async def _work(self, order: BackupOrder, note: Note) -> JobLine:
        """Raises WeftError, OSError."""
        if order.act == "serve":
            return await self._serving.serve(order, note)
        job = await self._open(order)
        if order.act == "copy":
            line = await self._copy(order, job, note)
            if line.reason != BASE_GONE:
                return line
            whole = msgspec.structs.replace(order, base="", base_snapshot="")
            line = await self._copy(whole, msgspec.structs.replace(job, base=""), note)
            line.full_because = "the backup before it is gone from the repository, or damaged"
            return line
        if order.act == "fetch":
            return await self._fetch(order, job, note)
        return await self._run(job, note)

    async def _open(self, order: BackupOrder) -> Job:
        """Raises WeftError."""
        opened = await asyncio.to_thread(self._server.read_repository, self._node, order.repository)
        return Job(
            act=order.act,
            url=order.url,
            key=opened.values["key"],
            cache=str(self._cache),
            credentials=opened.credentials,
            ca=opened.ca,
            repository_id=order.repository_id,
            opens_only=order.opens_only,
            backup=order.backup,
            base=order.base,
            name=order.name,
            kind=str(order.manifest.get("of", "")).partition("/")[0],
            manifest=order.manifest,
            keep_until=order.expires_at,
            immutable=order.immutable,
        )

    async def _copy(self, order: BackupOrder, job: Job, note: Note) -> JobLine:
        if not order.disks:  # of a project
            late = importlib.import_module("tempfile")  # for this alone
            with late.TemporaryDirectory(dir=self._uploads) as folder:
                full, lacks = await self._add_objects(order, job, Path(folder))
                line = await self._run(full, note)
                return line if line.ended == "failed" else msgspec.structs.replace(line, message=lacks)
        async with self._read_disks(order) as disks:
            return await self._run(msgspec.structs.replace(job, disks=disks), note)

    async def _add_objects(self, order: BackupOrder, job: Job, folder: Path) -> tuple[Job, str]:
        """Add the objects with the code and the models that they name, in files in ``folder``; and what is missing, in words.
        Raises WeftError."""
        opened = await asyncio.to_thread(self._server.read_repository, self._node, order.repository, backup=order.uid)
        uploads = await fetch_uploads(self._server, opened.uploads, folder)
        lacks = render_missing(opened.objects.get("objects", []), uploads.missing)
        objects = msgspec.json.encode(opened.objects).decode()
        return msgspec.structs.replace(job, objects=objects, uploads=uploads.files), lacks

    @contextlib.asynccontextmanager
    async def _read_disks(self, order: BackupOrder) -> AsyncIterator[list[JobDisk]]:
        reading = read_disks(
            *(self._pools, self._images, order.snapshot, order.disks),
            image_sha256=str(order.manifest.get("image_sha256", "")),
            since=order.base_snapshot,
        )
        async with reading as served:
            yield [JobDisk(name, one.socket, one.size_bytes, one.extents, one.is_whole) for name, one in served.items()]

    async def _fetch(self, order: BackupOrder, job: Job, note: Note) -> JobLine:
        """Write the backup's disks to the pool, and keep them there as a snapshot."""
        driver: VolumeDriver = await self._pools.find(order.pool)
        if not isinstance(driver, HasLayers) or not isinstance(driver, CopiesDisks):
            raise DriverFailed(f"storage pool {order.pool} can't take backups in", reason="unsupported")
        if any(one.uid == order.snapshot for one in await driver.layers.list_kept()):
            return JobLine(ended="done")
        sizes = {name: int(disk["size"]) for name, disk in order.manifest["disks"].items()}
        layers = {name: short_id(f"{order.snapshot}/{key}") for name, key in order.disks.items()}
        try:
            async with contextlib.AsyncExitStack() as stack:
                disks = [
                    JobDisk(
                        name,
                        await stack.enter_async_context(driver.copies.write(layers[name], sizes[name])),
                        sizes[name],
                    )
                    for name in order.disks
                ]
                line = await self._run(msgspec.structs.replace(job, disks=disks), note)
            if line.ended != "done":
                return line
            kept = {
                key: KeptDisk((layers[name],), sizes[name], "" if key == ROOT else name)
                for name, key in order.disks.items()
            }
            await driver.copies.take_in(KeptSnapshot(short_id(order.snapshot), order.snapshot, kept))
        finally:
            await driver.copies.discard(layers.values())
        self._taken_in()
        return line

    async def _run(self, job: Job, note: Note) -> JobLine:
        """Have a process do it. Raises DriverFailed if that dies."""
        async with contextlib.aclosing(self._read_lines(job)) as lines:
            async for line in lines:
                if line.ended:
                    return line
                note(line)
        raise AssertionError

    def _read_lines(self, job: Job) -> AsyncGenerator[JobLine, None]:
        return read_lines(_MODULE, job, JobLine, job.secrets)
