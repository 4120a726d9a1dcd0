"""Does the work on backups that the server asks this node for: of each repository one piece at a time, in a process of its own.

Orders come with the answers to the node's reports; what became of them is in ``<state>/backup-work.json`` and in the reports until
the order is in no answer any more. A piece whose order is gone is ended. Key and credentials are read from the server for each
piece, and go to its process over its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import shutil
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec

from weft.agent.backup.last_words import LastWords
from weft.agent.backup.serving import Serving
from weft.agent.backup.uploads import fetch_uploads, render_missing
from weft.agent.image.cache import ImageCache
from weft.agent.server.client import Server
from weft.agent.snapshot.reading import read_disks
from weft.agent.state.table import AllocationTable
from weft.agent.volume.pools import Pools
from weft.agent.workload.runtimes import Runtimes
from weft.backup.process.job import BASE_GONE, Job, JobDisk, Line
from weft.contracts.clock import Clock
from weft.contracts.driver.layers import CopiesDisks, HasLayers, KeptDisk, KeptSnapshot
from weft.contracts.driver.volume import VolumeDriver
from weft.contracts.durable_file import write_durably
from weft.kinds.allocation import ROOT
from weft.kinds.fields.backup_work import BackupOrder, BackupReport, find_report
from weft.objects.errors import DriverFailed, WeftError
from weft.objects.identity import short_id

log = logging.getLogger("weft.agent")
MOST_AT_ONCE = 4  # repositories that a node works on
_FINISHED = ("done", "failed")
_LINE_BYTES = 1 << 20


class BackupWork:
    """``changed`` is called when there is something to report; ``taken_in`` once a pool has got a snapshot."""

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
        changed: Callable[[], None],
        taken_in: Callable[[], None],
    ) -> None:
        self._file, self._cache = Path(state_dir) / "backup-work.json", Path(state_dir) / "backup-catalogues"
        self._uploads = Path(state_dir) / "backup-uploads"
        shutil.rmtree(self._uploads, ignore_errors=True)  # what one that was killed left
        self._uploads.mkdir(mode=0o700, parents=True)
        self._node, self._server, self._pools, self._images, self._clock = node, server, pools, images, clock
        self._changed, self._taken_in = changed, taken_in
        self._orders: list[BackupOrder] = []
        self._reports = self._load()
        self._current: dict[str, tuple[BackupOrder, asyncio.Task[None]]] = {}  # by the repository's uid
        self._serving = Serving(pools, table, runtimes, clock, self._open, self._read_lines, taken_in)
        self._served: dict[str, tuple[BackupOrder, asyncio.Task[None]]] = {}  # by uid: those that VMs stand on
        self._woken = asyncio.Event()

    @property
    def has_orders(self) -> bool:
        return bool(self._orders)

    def report(self) -> list[BackupReport]:
        return list(self._reports)

    def put_orders(self, orders: Sequence[BackupOrder]) -> None:
        """All that this node shall do."""
        if list(orders) == self._orders:
            return
        self._orders = list(orders)
        kept = [one for one in self._reports if any(find_report([one], order) for order in orders)]
        if kept != self._reports:
            self._reports = kept
            self._save()
        for order, task in self._current.values():
            if order not in self._orders:
                task.cancel()
        self._put_served()
        self._woken.set()

    def _put_served(self) -> None:
        """What VMs stand on is served beside all else, for as long as it is asked for."""
        for uid, (order, task) in list(self._served.items()):
            if order not in self._orders:
                task.cancel()
                del self._served[uid]
        for order in self._orders:
            if order.act == "serve" and order.uid not in self._served and not self._is_finished(order):
                self._served[order.uid] = order, asyncio.ensure_future(self._do(order))

    async def keep(self) -> None:
        """Do one order of each repository after the other, for ever, and serve others beside. So a bucket that is slow, or away,
        holds up no work on another."""
        try:
            while True:
                self._woken.clear()
                self._begin()
                await self._woken.wait()
        finally:
            tasks = [task for _, task in (*self._served.values(), *self._current.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self) -> None:
        for uid, (_, task) in list(self._current.items()):
            if task.done():
                del self._current[uid]
                if not task.cancelled():
                    task.result()  # a fault in it is one of ``keep``
        for order in self._orders:
            if len(self._current) == MOST_AT_ONCE:
                return
            if order.act != "serve" and order.repository_uid not in self._current and not self._is_finished(order):
                task = asyncio.ensure_future(self._do(order))
                self._current[order.repository_uid] = order, task
                task.add_done_callback(lambda _: self._woken.set())

    def _is_finished(self, order: BackupOrder) -> bool:
        report = find_report(self._reports, order)
        return report is not None and report.phase in _FINISHED

    async def _do(self, order: BackupOrder) -> None:
        self._note(order, Line())
        try:
            line = await self._work(order)
        except (WeftError, OSError) as problem:
            reason = problem.token if isinstance(problem, WeftError) else "driverFailed"
            line = Line(ended="failed", reason=reason, message=str(problem) or type(problem).__name__)
        if line.ended == "failed":
            log.warning("%s of backup %s: %s", order.act, order.name or order.repository, line.message)
        self._note(order, line)

    def _note(self, order: BackupOrder, line: Line, *, serves: bool = False) -> None:
        report = BackupReport(
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
        if order in self._orders:
            self._reports = [*(one for one in self._reports if find_report([one], order) is None), report]
            if line.ended:
                self._save()
            self._changed()

    async def _work(self, order: BackupOrder) -> Line:
        """Raises WeftError, OSError."""
        if order.act == "serve":
            return await self._serving.serve(order, lambda line: self._note(order, line, serves=True))
        job = await self._open(order)
        if order.act == "copy":
            line = await self._copy(order, job)
            if line.reason != BASE_GONE:
                return line
            whole = msgspec.structs.replace(order, base="", base_snapshot="")
            line = await self._copy(whole, msgspec.structs.replace(job, base=""))
            line.full_because = "the backup before it is gone from the repository, or damaged"
            return line
        if order.act == "fetch":
            return await self._fetch(order, job)
        return await self._run(order, job)

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

    async def _copy(self, order: BackupOrder, job: Job) -> Line:
        if not order.disks:  # of a project
            late = importlib.import_module("tempfile")  # for this alone
            with late.TemporaryDirectory(dir=self._uploads) as folder:
                full, lacks = await self._add_objects(order, job, Path(folder))
                line = await self._run(order, full)
                return line if line.ended == "failed" else msgspec.structs.replace(line, message=lacks)
        async with self._read_disks(order) as disks:
            return await self._run(order, msgspec.structs.replace(job, disks=disks))

    async def _add_objects(self, order: BackupOrder, job: Job, folder: Path) -> tuple[Job, str]:
        """With the code and the models that they name, in files in ``folder``; and what is missing, in words. Raises WeftError."""
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

    async def _fetch(self, order: BackupOrder, job: Job) -> Line:
        """Write the backup's disks to the pool, and keep them there as a snapshot."""
        driver: VolumeDriver = await self._pools.find(order.pool)
        if not isinstance(driver, HasLayers) or not isinstance(driver, CopiesDisks):
            raise DriverFailed(f"storage pool {order.pool} can't take backups in", reason="unsupported")
        if any(one.uid == order.snapshot for one in await driver.layers.list_kept()):
            return Line(ended="done")
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
                line = await self._run(order, msgspec.structs.replace(job, disks=disks))
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

    async def _run(self, order: BackupOrder, job: Job) -> Line:
        """Have a process do it. Raises DriverFailed if that dies."""
        async with contextlib.aclosing(self._read_lines(job)) as lines:
            async for line in lines:
                if line.ended:
                    return line
                self._note(order, line)
        raise AssertionError

    async def _read_lines(self, job: Job) -> AsyncGenerator[Line, None]:
        """What a process says that does it, which is killed at the end. Raises DriverFailed if it dies before."""
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL"),  # it goes with the agent, however that ends
            *(sys.executable, "-m", "weft.backup.process.worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
        )
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        words = LastWords(process.stderr, job.secrets)
        try:
            process.stdin.write(msgspec.json.encode(job))
            process.stdin.close()
            async for text in process.stdout:
                yield msgspec.json.decode(text, type=Line)
            await process.wait()
            said = await words.end()
        finally:
            words.stop()
            if process.returncode is None:
                process.kill()
            await process.wait()
        raise DriverFailed(
            f"the process that worked on it ended with {process.returncode}{said}",
            reason="workerDied",
            hint="it may be tried again",
        )

    def _load(self) -> list[BackupReport]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=list[BackupReport])
        except (OSError, msgspec.DecodeError):
            return []

    def _save(self) -> None:
        finished = [one for one in self._reports if one.phase in _FINISHED]
        try:
            write_durably(self._file, msgspec.json.encode(finished))
        except OSError as problem:
            log.warning("can't write %s: %s", self._file, problem)
