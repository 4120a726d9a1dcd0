"""One container: its record, and the wait for its end. Its holder wakes it; the driver learns of its end through ``notify``.
The driver calls the verbs that change it, one at a time."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections.abc import Callable, Mapping

from weft.contracts.clock import Clock
from weft.contracts.driver.container import BEGUN_AFRESH, OUT_OF_MEMORY, LogPiece
from weft.contracts.driver.host import Capacity
from weft.contracts.driver.runtime import Counters, GuestFacts, GuestShape
from weft.contracts.driver.sandbox import Ended, read_exit
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.container.end import end_of_never_began, read_signal
from weft.drivers.linux.processes import host_boot_id
from weft.drivers.runtime.oci.checkpoint.criu import settle_resuming, wait_for_saver
from weft.drivers.runtime.oci.conmon.logs import read_after
from weft.drivers.runtime.oci.holder import CanCheckpoint, Holder
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.record import ContainerRecord, decide_end, write_record
from weft.drivers.runtime.oci.runtime import Runtime
from weft.objects.errors import DriverFailed, NotFound, WeftError


class Container:
    """A Sandbox that lasts, running or not. Its record has no end as long as that isn't settled."""

    def __init__(
        self,
        paths: ContainerPaths,
        record: ContainerRecord,
        runtime: Runtime,
        holder: Holder[Container],
        groups: ControlGroups,
        capacity: Capacity,
        clock: Clock,
        notify: Callable[[], None],
    ) -> None:
        self.id = record.plan.id
        self.paths, self.record, self.runtime, self.holder = paths, record, runtime, holder
        self._groups, self._capacity, self._clock, self._notify = groups, capacity, clock, notify
        self.ended = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._saving = asyncio.Lock()  # a stop and the end that is noticed meanwhile both write the record

    @property
    def running(self) -> bool:
        return self.record.started and self.record.end is None

    def facts(self) -> GuestFacts:
        record, plan, end = self.record, self.record.plan, self.record.end
        running = self.running
        shape = None
        if running:
            most = self._capacity
            shape = GuestShape(plan.cpu, plan.memory_bytes, {}, [], most.cpu, most.memory_bytes)
        return GuestFacts(
            id=plan.id,
            uid=plan.uid,
            name=plan.name,
            incarnation=plan.incarnation,
            state="running" if running else end.state if end else "starting",
            pid=record.process.pid if running and record.process else None,
            started_at=record.started_at,
            reason=end.reason if end else BEGUN_AFRESH if record.note else None,
            message=((end.message if end else record.note) or None),
            shape=shape,
            exit_code=end.exit_code if end else None,
        )

    async def save(self) -> None:
        """Save the record; it is on disk when this returns."""
        async with self._saving:
            await asyncio.to_thread(write_record, self.paths, self.record)

    def watch(self) -> None:
        """Watch the container: from now on its end is noticed, recorded and cleared up after."""
        self._watching = asyncio.create_task(self._wait_for_end())

    async def cleared(self) -> None:
        """Return once an end that is being settled is settled, and nothing of that run is left."""
        if self.running and self.holder.has_ended(self):
            await self.ended.wait()
        if self.record.end is not None and self._watching is not None:
            await asyncio.shield(self._watching)

    async def adopt(self) -> None:
        """Take it over as it is found: running, ended meanwhile, or never quite started."""
        record = self.record
        if record.end is not None:
            self.ended.set()
            if self.paths.run.exists():  # ended, and not cleared up after
                with contextlib.suppress(WeftError):
                    await self.sweep()
            return
        here, adopted = record.host_boot_id == host_boot_id(), False
        if here:
            adopted = await self.holder.adopt(self)
        if self.paths.saved.resuming.exists():
            settle_resuming(self.paths, runs=adopted or record.started or self.paths.pid.exists())
        if adopted:
            record.stopping = False  # who asked for it is gone
            await self.save()
            self.watch()
            return
        self._watching = asyncio.create_task(self._settle_end())
        await (self.ended.wait() if record.started else self._watching)

    async def wait(self) -> Ended:
        await self.ended.wait()
        end = self.record.end
        if end is None or end.exit_code is None:
            return Ended()
        return read_exit(end.exit_code, out_of_memory=end.reason == OUT_OF_MEMORY)

    async def freeze(self) -> None:
        """Raises DriverFailed, Unavailable."""
        await self.holder.freeze(self, True)

    async def resume(self) -> None:
        """Raises DriverFailed, Unavailable."""
        await self.holder.freeze(self, False)

    async def most_memory(self) -> int:
        return self._groups.most_memory(self.id)

    async def stop(self, grace_seconds: float = 0.0) -> None:
        """Ask it to end, force it after the grace, and return when it has."""
        if not self.ended.is_set():
            await self.resume()  # a frozen process gets no signal, and doesn't even die
        if grace_seconds > 0:
            await self.holder.signal(self, read_signal(self.record.plan.process.stop_signal))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    await self.ended.wait()
        if not self.ended.is_set():
            await self.holder.signal(self, signal.SIGKILL)  # the first of its process namespace: all others go with it
            await self.ended.wait()

    async def suspend(self) -> None:
        """Save its processes; they have ended when this returns. Raises DriverFailed: it runs on."""
        holder = self.holder
        assert isinstance(holder, CanCheckpoint)
        try:
            await holder.save(self)
        except DriverFailed as problem:
            problem.message = f"container/{self.record.plan.name}: {problem.message}"
            raise
        await self.ended.wait()

    async def sweep(self) -> None:
        """Remove every process, control group, mount and run file of this run, however far it came. Raises WeftError where its
        holder can't be reached; the run files stay then, for the next try."""
        record = self.record
        try:
            await self.holder.release(self)
        finally:
            await self._groups.clear(record.plan.id, self._clock)
        await asyncio.to_thread(shutil.rmtree, self.paths.run, True)

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching

    async def settle_never_began(self, reason: str) -> None:
        """End a run whose command can't be begun, for a ``reason`` of NEVER_BEGAN."""
        self.record.end = end_of_never_began(self.record.plan, reason)
        await self._note_end()

    async def _wait_for_end(self) -> None:
        await self.holder.wait_for_end(self)
        await self._settle_end()

    async def _settle_end(self) -> None:
        record = self.record
        await wait_for_saver(self.paths, self._clock)
        exit_code = await self.holder.exit_code(self)
        record.end = decide_end(
            record,
            saved=self.paths.saved.whole.exists(),
            exit_code=exit_code,
            out_of_memory=await self.holder.ran_out_of_memory(self, exit_code),
            host_boot_id=host_boot_id(),
        )
        await self._note_end()

    async def _note_end(self) -> None:
        try:
            await self.save()
        finally:
            self.ended.set()
            self._notify()
            with contextlib.suppress(WeftError):  # its run files say so to the next start or removal
                await self.sweep()


def read_log_after(known: Mapping[str, Container], guest_id: str, position: str) -> LogPiece:
    """See contracts.driver.container."""
    container = known.get(guest_id)
    if container is None:
        raise NotFound(f"this node has no container {guest_id}")
    return read_after(container.paths.log, position)


def open_counters(known: Mapping[str, Container], guest_id: str) -> list[Counters]:
    """See HasCounters."""
    container = known.get(guest_id)
    return container.holder.open_counters(container) if container is not None and container.running else []
