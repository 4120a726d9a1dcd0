"""One guest: its record, its QEMU process, the monitor, and the agents inside.

The process's end, the monitor's events and the agent's frames wake it; it wakes the driver through ``notify``. The driver calls
the verbs that change it (launch, suspend, stop), one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import shutil
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from weft.contracts.clock import Clock
from weft.contracts.driver.migration import MigrationEvent
from weft.contracts.driver.runtime import GuestFacts, GuestState
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.linux.processes import (
    ProcessId,
    host_boot_id,
    is_alive,
    is_program_replaced,
    kill_process,
    wait_for_end,
)
from weft.drivers.runtime.qemu.devices.full_disk import IO_ERROR, wait_for_space
from weft.drivers.runtime.qemu.guest_agent.unread_output import Unread
from weft.drivers.runtime.qemu.guest_reports import GuestReports
from weft.drivers.runtime.qemu.machine_shape import describe_shape, find_live_bar
from weft.drivers.runtime.qemu.process.lookup import find_guest_process, search_guest_process
from weft.drivers.runtime.qemu.qmp import ANSWER_SECONDS, Qmp, QmpEvent, connect_qmp
from weft.drivers.runtime.qemu.record import (
    POWERED_OFF,
    GuestEnd,
    GuestRecord,
    decide_end,
    disk_times,
    end_snapshot,
    write_record,
)
from weft.drivers.runtime.qemu.snapshot.hold import Hold
from weft.drivers.runtime.qemu.translate import GuestPaths
from weft.objects.errors import DriverFailed, Unavailable

if TYPE_CHECKING:  # loaded with the first guest
    from weft.drivers.runtime.qemu.guest_agent.connections import GuestAgents

RETRY_SECONDS = 0.2
ADOPT_SECONDS = 5.0
QUIT_SECONDS = 10.0
MOST_EVENTS = 1000  # of its machine that nobody has read yet
HANDED_OVER = "postmigrate"  # QEMU's word for a machine that another one goes on for
STANDS_STILL = (IO_ERROR, "internal-error", "guest-panicked", HANDED_OVER)


class Guest:
    """A guest the driver knows, running or not."""

    def __init__(
        self,
        paths: GuestPaths,
        record: GuestRecord,
        cgroups: ControlGroups,
        clock: Clock,
        notify: Callable[[], None],
        unread: Unread | None = None,
    ) -> None:
        self.paths = paths
        self.record = record
        self.lock = asyncio.Lock()
        self.ended = asyncio.Event()
        self._settling = False
        self.said_hello = asyncio.Event()
        self._unread = unread or Unread()
        self.clock = clock
        self._reports = GuestReports(record, clock, notify, lambda: self.save_record(durable=False), self._is_over)
        self.agents = self._make_agents()
        self._cgroups = cgroups
        self.notify = notify
        self._qmp: Qmp | None = None
        self.status = ""  # as QEMU calls it
        self.trouble = ""  # of a disk, for which it stands still
        self.tried: list[str] | None = None  # events since it was let go on to see whether that is over
        self._shutdown: str | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._writing = threading.Lock()
        self.beside: asyncio.Task[None] | None = None  # what leads a migration's copies
        self.copy_errors: list[str] = []  # why they failed
        self.saving: asyncio.Task[None] | None = None  # what sees a snapshot's memory through
        self.hold = Hold()
        self.verdict: GuestEnd | None = None  # why it is being ended
        self._watchers: set[asyncio.Queue[MigrationEvent | None]] = set()

    @property
    def running(self) -> bool:
        """Whether it has a QEMU process whose end has not been settled yet: until that is on disk and what only a process needs
        is gone, a next one would be written over, or lose its sockets."""
        return (self.record.process is not None or self._settling) and not self.ended.is_set()

    async def settle(self) -> None:
        """Wait, if its process has just ended, until that is written down: no verb may overtake it."""
        gone = self.record.process is not None and not is_alive(self.record.process)
        if self.running and (gone or self._settling):
            await self.ended.wait()

    @property
    def migrating(self) -> bool:
        """Whether a migration decides where this guest runs: it is being sent, was sent, or has not arrived yet."""
        return self.record.migration is not None and not self.record.migration.taken

    def _is_held(self) -> bool:
        """Whether a migration or a snapshot decides when its machine goes on."""
        snapshot = self.record.snapshot
        return self.migrating or self.hold.is_on or (snapshot is not None and not snapshot.is_over)

    @property
    def _becomes_another(self) -> bool:
        """Whether it is a copy that hasn't its own identity yet: its machine stays as it is until then."""
        renewal = self.record.renewal
        return renewal is not None and renewal.identity is not None

    def facts(self) -> GuestFacts:
        record, plan = self.record, self.record.plan
        end = record.end
        state: GuestState
        if self.running:
            state = "paused" if self.status in STANDS_STILL else "running"
            if self.migrating and not self._sends():
                state = "starting"
        elif record.memory != "none":
            state = "suspended"
        else:
            state = end.state if end else "starting"
        alive = state in ("running", "paused")
        over = record.process_report if end is not None and end.reason == POWERED_OFF and not alive else None
        code = over.code if over is not None and not over.runs else None
        message = end.message if end is not None and not alive else self.trouble if state == "paused" else ""
        return GuestFacts(
            id=plan.id,
            uid=plan.uid,
            name=plan.name,
            incarnation=plan.incarnation,
            state=state,
            ready=self._ready(alive),
            boot_id=record.boot_id if not self._becomes_another else None,
            pid=record.process.pid if self.running and record.process else None,
            started_at=record.started_at,
            reason=self.status if state == "paused" else end.reason if end and not alive else None,
            message=message or (f"its process ended with exit code {code}" if code is not None else None),
            held=state == "running" and self.status == "paused" and not (self.migrating or self.hold.is_on),
            accelerator=record.accelerator,
            shape=describe_shape(plan, record.frame) if alive and record.frame and not self._becomes_another else None,
            live_bar=find_live_bar(plan.memory_bytes - record.frame.memory_bytes, record.accelerator)
            if alive and record.frame
            else "",
            outdated=alive and record.process is not None and is_program_replaced(record.process.pid),
            exit_code=code,
            process=record.process_report if alive else None,
        )

    async def save_record(self, *, durable: bool = True) -> None:
        """Write the record as it is now; ``durable``: it is on disk when this returns."""
        await asyncio.to_thread(self._write_record, durable)

    def _write_record(self, durable: bool) -> None:
        with self._writing:  # one after the other, so that the last one holds the newest state
            write_record(self.paths, self.record, durable=durable)

    def keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do this beside, for as long as the machine is watched."""
        task = asyncio.create_task(work)
        self._tasks.append(task)
        return task

    def has_monitor(self) -> bool:
        return self._qmp is not None and not self._qmp.closed.is_set()

    def monitor(self) -> Qmp:
        """The connection to QEMU. Raises Unavailable while there is none."""
        if self._qmp is None or self._qmp.closed.is_set():
            raise Unavailable(
                f"the QEMU of guest {self.record.plan.name} doesn't answer", retry_after_seconds=RETRY_SECONDS
            )
        return self._qmp

    # Taking hold of a process.

    async def adopt(self) -> None:
        """Find this guest's process and watch it. Without a process: decide how it ended."""
        record = self.record
        process = find_guest_process(self.paths.pid, record.uuid)
        if process is None and record.process is None and record.end is None:
            process = await self._await_start()
        if process is None:
            if record.end is None:
                await self._settle_end()
            return
        record.process, record.end, record.stopping = process, None, False
        await self.save_record(durable=False)
        await self.watch(patience_seconds=ADOPT_SECONDS)

    async def _await_start(self) -> ProcessId | None:
        """The driver that began to start this guest is gone, but its QEMU may be on its way still. Wait until it is there."""
        deadline = self.clock.elapsed() + ADOPT_SECONDS
        while (found := search_guest_process(self.paths.pid, self.record.uuid)) is not None:
            if process := find_guest_process(self.paths.pid, self.record.uuid):
                return process
            if self.clock.elapsed() > deadline:  # without a pidfile it has not run
                kill_process(found)
            await self.clock.sleep(0.02)
        return find_guest_process(self.paths.pid, self.record.uuid)

    async def watch(self, *, patience_seconds: float = 0.0) -> None:
        """Connect to the monitor and keep watch over the process from now on. ``patience_seconds``: a QEMU whose start
        was cut off may be about to open its monitor still."""
        self.ended.clear()
        self.agents.close()
        self.agents = self._make_agents()
        migration = self.record.migration if self.migrating else None
        stood_still = (
            migration is not None and migration.role == "target" and migration.settings.mode == "stop-and-copy"
        )
        self.agents.clock_stood_still = self.record.memory != "none" or stood_still
        self.said_hello.clear()
        self._shutdown = None
        self._tasks = [asyncio.create_task(self._await_end())]
        deadline = self.clock.elapsed() + patience_seconds
        while not self.has_monitor():
            try:
                await self.connect()
            except Unavailable:  # QEMU hangs, or another client holds the monitor: go on trying in the background
                self.status = "running"
                if self.clock.elapsed() >= deadline or self.ended.is_set():
                    break
                await self.clock.sleep(0.05)
        if (
            self.ended.is_set()
        ):  # meanwhile: who kept its agents now would take the only connection to those of its next run
            self._let_go()
            return
        self._tasks.append(asyncio.create_task(self._keep_monitor()))
        self._tasks += [asyncio.create_task(loop) for loop in self.agents.connect_loops()]

    async def connect(self, *, timeout_seconds: float = ANSWER_SECONDS) -> None:
        """Open the monitor; a QEMU that is just starting answers once its machine is there. Raises Unavailable."""
        qmp = await connect_qmp(str(self.paths.qmp), timeout_seconds=timeout_seconds)
        qmp.listen(self._take_event)
        self._qmp = qmp
        self.status = (await qmp.execute("query-status"))["status"]
        self._mind_disks()

    def _mind_disks(self) -> None:
        if self.status == IO_ERROR and not any(task.get_name() == IO_ERROR and not task.done() for task in self._tasks):
            self._tasks = [task for task in self._tasks if not task.done()]
            self.keep(wait_for_space(self, self._is_held)).set_name(IO_ERROR)

    async def _keep_monitor(self) -> None:
        while not self.ended.is_set():
            if self._qmp is not None:
                await self._qmp.closed.wait()
            await self.clock.sleep(RETRY_SECONDS)
            with contextlib.suppress(Unavailable, DriverFailed):
                if self.running:
                    await self.connect()

    def _ready(self, alive: bool) -> bool | None:
        plan = self.record.plan
        ready = self.record.ready and alive and not self._becomes_another
        return ready if ready or plan.has_agent or plan.qemu_agent else None

    def _make_agents(self) -> GuestAgents:
        late = importlib.import_module("weft.drivers.runtime.qemu.guest_agent.connections")  # see above
        agents: GuestAgents = late.GuestAgents(
            self.record.plan, self.paths, self.clock, self._take_hello, self._reports.take_process, self._unread
        )
        return agents

    def _take_hello(self, boot_id: str) -> None:
        self._reports.take_hello(boot_id)
        self.said_hello.set()

    def _is_over(self) -> bool:
        return self._settling or self.ended.is_set()

    @contextlib.contextmanager
    def watched(self) -> Iterator[asyncio.Queue[MigrationEvent | None]]:
        """Events of its machine while this lasts; None: it has ended."""
        events: asyncio.Queue[MigrationEvent | None] = asyncio.Queue()
        self._watchers.add(events)
        try:
            yield events
        finally:
            self._watchers.discard(events)

    def _report_event(self, name: Literal["stopped", "resumed", "migrated", "copied"]) -> None:
        for watcher in self._watchers:
            if watcher.qsize() < MOST_EVENTS:
                watcher.put_nowait(MigrationEvent(name, self.clock.elapsed()))

    def _take_event(self, event: QmpEvent) -> None:
        if self.tried is not None and event.name in ("STOP", "RESUME", "BLOCK_IO_ERROR"):
            self.tried.append(event.name)
            return
        match event.name:
            case "SHUTDOWN":
                self._shutdown = str(event.data.get("reason", ""))
            case "STOP":
                self.status = "paused" if self.status != IO_ERROR else IO_ERROR
                self._report_event("stopped")
            case "RESUME":
                self.status = "running"
                self._report_event("resumed")
            case "JOB_STATUS_CHANGE":
                self._report_event("copied")
            case "MIGRATION":
                if event.data.get("status") == "completed" and self.status == "paused":
                    self.status = HANDED_OVER if self._sends() else self.status
                    if self._sends():
                        self.agents.let_go()
                self._report_event("migrated")
            case "BLOCK_IO_ERROR" if event.data.get("action") == "stop":
                self.status = IO_ERROR
                self._mind_disks()
                self.notify()
            case "GUEST_PANICKED":
                self._shutdown = "guest-panic"
            case "VSERPORT_CHANGE":
                self.agents.take_port_change(str(event.data.get("id", "")), bool(event.data.get("open")))

    def _sends(self) -> bool:
        return self.record.migration is not None and self.record.migration.role == "source"

    async def _await_end(self) -> None:
        assert self.record.process is not None
        await wait_for_end(self.record.process)
        if self._qmp is not None:  # its last words may still be on their way
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._qmp.closed.wait()
        try:
            await self._settle_end()
        finally:  # also when the disk is too full to write it down: callers who wait for the end have waited enough
            self.ended.set()
            for task in self._tasks[1:]:
                task.cancel()
            self._let_go()
            for watcher in self._watchers:
                watcher.put_nowait(None)
            self.notify()

    def _let_go(self) -> None:
        if self._qmp is not None:
            self._qmp.close()
        self.agents.close()
        self._qmp = None

    async def close(self) -> None:
        """Stop watching; the guest goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, self._reports.stop(), return_exceptions=True)
        self._tasks = []
        self._let_go()
        if self._reports.take_pending():
            await self.save_record(durable=False)

    # How it ended.

    async def _settle_end(self) -> None:
        """Record why there is no process any more, and remove what only a process needs."""
        self._settling = True
        try:
            await self._write_end()
        finally:
            self._settling = False
        self.ended.set()

    async def _write_end(self) -> None:
        record, name = self.record, self.record.plan.id
        self._reports.take_pending()  # the last one may be how its process ended
        if record.memory == "loaded":  # a resume was cut off: has the guest run and written, or not?
            record.memory = "saved" if disk_times(record.plan) == record.disk_times else "none"
        if record.snapshot is not None and not record.snapshot.is_over:
            snapshot = record.snapshot
            whole = snapshot.facts.phase == "saving" and await asyncio.to_thread(os.path.exists, snapshot.plan.memory)
            end_snapshot(record, is_whole=whole)
            if snapshot.plan.memory:
                await asyncio.to_thread(Path(snapshot.pending).unlink, missing_ok=True)
        if record.memory == "none":
            record.end = self.verdict or decide_end(
                record,
                shutdown=self._shutdown,
                pid_file_left=self.paths.pid.exists(),
                out_of_memory=self._cgroups.out_of_memory_kills(name) > 0,
                host_boot_id=host_boot_id(),
            )
            await asyncio.to_thread(self.paths.memory.unlink, missing_ok=True)
        record.process, record.ready, record.stopping = None, False, False
        await self._reports.stop()  # no write of theirs may come after the next run's
        await self.save_record()
        await asyncio.to_thread(self.paths.memory_pending.unlink, missing_ok=True)
        shutil.rmtree(self.paths.run, ignore_errors=True)
        await self._cgroups.remove_when_empty(name, self.clock)

    async def quit(self) -> None:
        """End the process: QEMU's own way (which flushes its disks), and by force if that takes too long."""
        process = self.record.process
        if not self.running:
            return
        with contextlib.suppress(Unavailable, DriverFailed):
            await self.monitor().execute("quit", timeout_seconds=QUIT_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(QUIT_SECONDS):
                await self.ended.wait()
        if self.running:
            if process is not None:
                kill_process(process)
            await self.ended.wait()

    # Asked by the driver.

    async def power_off(self, grace_seconds: float) -> None:
        """Have the guest shut itself down: by its agent, or by the power button while that doesn't answer yet. Returns at its
        end, after ``grace_seconds``, or at once when nothing in it can be asked, as while it stands still on a full disk."""
        if self.status in STANDS_STILL:
            return
        self.agents.power_off_wanted = True
        try:
            if self.status == "paused" and not self.migrating:  # a frozen guest gets no request
                await self.monitor().execute("cont")
            if not self.agents.power_off():
                await self.monitor().execute("system_powerdown")
            async with asyncio.timeout(grace_seconds):
                await self.ended.wait()
        except (Unavailable, DriverFailed, TimeoutError):
            pass  # nobody to ask, or nobody who does it
        finally:
            self.agents.power_off_wanted = False
