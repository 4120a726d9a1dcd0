"""The OCI runtime: containers through crun or runc, each held by a shim of its own, and found again after anything.

Reads and writes ``Host.state_dir/containers/ID`` (record, what was written into the root, log) and
``Host.run_dir/containers/ID`` (bundle, exit file). A container never depends on this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncGenerator, Awaitable
from functools import partial
from pathlib import Path

from weft.contracts.clock import Clock, SystemClock
from weft.contracts.driver.container import BEGUN_AFRESH, ContainerPlan, LogLine
from weft.contracts.driver.host import Host
from weft.contracts.driver.runtime import (
    ExecRequest,
    ExecSession,
    GuestFacts,
    GuestStats,
    RuntimeProbe,
    SessionMark,
)
from weft.drivers.cgroup.groups import REMOVAL_PAUSE_SECONDS, REMOVAL_TRIES, SHIMS, ControlGroups
from weft.drivers.container.end import ContainerEnd
from weft.drivers.linux.processes import host_boot_id
from weft.drivers.runtime.oci.checkpoint.criu import begin_resuming, drop_saved, is_saved, settle_resuming
from weft.drivers.runtime.oci.checkpoint.migration import Carrying
from weft.drivers.runtime.oci.conmon.logs import read_lines
from weft.drivers.runtime.oci.container import Container, open_counters, read_log_after
from weft.drivers.runtime.oci.exec.begin import wait_for_program
from weft.drivers.runtime.oci.holder import CanCheckpoint
from weft.drivers.runtime.oci.holders import Holders
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.prepare import check_plan, drop_remains
from weft.drivers.runtime.oci.probe import DRIVER, FoundRuntime, probe_oci
from weft.drivers.runtime.oci.record import ContainerRecord, note_begun, read_record, write_record
from weft.drivers.runtime.oci.resize import adjust_container
from weft.drivers.runtime.oci.runtime import Runtime, read_never_began
from weft.drivers.runtime.oci.translate import OciHostFacts
from weft.drivers.runtime.oci.user_namespace import choose_first_user
from weft.objects.errors import DriverFailed, IllegalTransition, NotFound, Unavailable, WeftError

LOG_CHECK_SECONDS = 5.0


class OciDriver:
    """A RuntimeDriver[ContainerPlan] that can also adjust, exec, and report log and stats. ``runtime``: crun or runc; None: the
    first of them that works. ``containerd``: the address of one that holds containers started from now on; others' containers
    stay with their holder."""

    name = DRIVER
    engine = "weft.drivers.runtime.oci.containerd.engine"

    def __init__(
        self, host: Host, clock: Clock | None = None, runtime: str | None = None, containerd: str = ""
    ) -> None:
        self._host, self._wanted, self._containerd = host, runtime, containerd
        if containerd:
            self.name = "containerd"
        self._clock = clock or SystemClock()
        self._run = Path(host.run_dir) / "containers"
        self._state = Path(host.state_dir) / "containers"
        self._groups = ControlGroups(host.cgroup)
        self._holders = Holders(self.engine, self._groups, self._clock, host.node_uid)
        self._known: dict[str, Container] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._finding = asyncio.Lock()
        self._probing = asyncio.Lock()
        self._found: FoundRuntime | None = None
        self._news = asyncio.Event()
        self._tending: asyncio.Task[None] | None = None
        self.open_counters = partial(open_counters, self._known)
        self.read_log_after = partial(read_log_after, self._known)
        self.carrying = Carrying(self._lock, self._find, self._paths, self._notify)

    async def probe(self) -> RuntimeProbe:
        async with self._probing:
            if self._containerd:
                self._found = await self._holders.engine(self._containerd).probe(self._run, self._wanted, self._found)
            elif self._found is None:
                self._found = await probe_oci(self._run, self._groups, self._clock, self._wanted)
        return self._found.probe

    async def start(self, plan: ContainerPlan) -> GuestFacts:
        """See contracts.driver.runtime. Raises DriverFailed, InvalidInput."""
        runtime, facts = await self._working()
        check_plan(plan, facts)
        async with self._lock(plan.id):
            container = await self._find(plan.id)
            if container is not None:
                if container.record.plan.uid != plan.uid:
                    name = container.record.plan.name
                    raise DriverFailed(f"container/{plan.name}: id {plan.id} belongs to {name} on this node")
                if container.running and container.record.stopping:
                    await container.ended.wait()
                await container.cleared()
                if container.running:
                    return container.facts()
            if container is not None and is_saved(container.record):
                container = await self._resume(plan, runtime, facts, container)
            else:
                container = await self._launch(plan, runtime, facts, container)
        self._tend()
        self._notify()
        return container.facts()

    async def stop(self, guest_id: str, *, grace_seconds: float) -> None:
        async with self._lock(guest_id):
            container = await self._find(guest_id)
            if container is None:
                return
            await container.cleared()
            if not container.running:
                return
            container.record.stopping = True
            await container.save()
        try:
            await container.stop(grace_seconds)
        finally:
            if not container.ended.is_set():
                container.record.stopping = False  # its caller gave up

    async def inspect(self, guest_id: str) -> GuestFacts:
        container = await self._find(guest_id)
        return container.facts() if container else GuestFacts(guest_id, "", "", 0, "absent")

    async def recover(self) -> list[GuestFacts]:
        states = [path for path in self._state.glob("*") if path.is_dir()]
        finding = asyncio.gather(*(self._find(path.name) for path in states))
        found = [container for container in await finding if container is not None]
        found += await self._recover_strays({container.record.plan.id for container in found})
        known = {container.record.plan.id for container in found}
        await asyncio.to_thread(drop_remains, states, self._run, self._groups, known)
        if found:
            self._tend()
        return [container.facts() for container in found]

    async def _recover_strays(self, known: set[str]) -> list[Container]:
        """Containers of this node that a containerd runs though their record here is lost."""
        strays = []
        if self._containerd:
            runtime = await self._runtime_of(self._wanted or "crun")
            strays = await self._holders.engine(self._containerd).find_strays(runtime, known)
        for record in strays:
            await asyncio.to_thread(write_record, self._paths(record.plan.id), record)
        return [container for record in strays if (container := await self._find(record.plan.id)) is not None]

    async def remove(self, guest_id: str) -> None:
        async with self._lock(guest_id):
            container = await self._find(guest_id)
            paths = self._paths(guest_id)
            if container is not None:
                await container.cleared()
                if container.running:
                    raise IllegalTransition(f"container/{container.record.plan.name} is running", hint="stop it first")
                await container.sweep()
            paths.record.unlink(missing_ok=True)  # first: a removal cut off half-way is no container without a root
            await asyncio.to_thread(shutil.rmtree, paths.state, True)
            self._known.pop(guest_id, None)
            await self._drop_groups()
        self._locks.pop(guest_id, None)
        self._notify()

    async def changed(self) -> None:
        await self._news.wait()
        self._news.clear()

    async def close(self) -> None:
        if self._tending is not None:
            self._tending.cancel()
        await asyncio.gather(*(container.close() for container in self._known.values()))
        self._known.clear()
        await self._holders.close()

    # The optional protocols.

    async def adjust(self, plan: ContainerPlan) -> GuestFacts:
        """See contracts.driver.runtime. Raises IllegalTransition for one that doesn't run, InvalidInput, DriverFailed."""
        facts = await self._read_facts()
        async with self._lock(plan.id):
            container = await self._get(plan.id)
            await container.cleared()
            if not container.running or container.record.stopping:
                raise IllegalTransition(f"container/{plan.name} is not running, so nothing can be changed")
            await adjust_container(container, plan, facts)
        self._notify()
        return container.facts()

    async def suspend(self, guest_id: str) -> None:
        """See contracts.driver.runtime. Raises IllegalTransition for one that doesn't run, DriverFailed (``notSaved``)."""
        await self._working()
        async with self._lock(guest_id):
            container = await self._get(guest_id)
            await container.cleared()
            if is_saved(container.record):
                return
            if not container.running or container.record.stopping:
                raise IllegalTransition(f"container/{container.record.plan.name} is not running, so it can't be saved")
            if lack := self._saves(container):
                raise DriverFailed(
                    f"this node can't save containers: {lack}", reason="notSaved", details={"step": "save"}
                )
            await container.suspend()
            await container.cleared()

    async def freeze(self, guest_id: str) -> None:
        await (await self._get_running(guest_id)).freeze()

    async def resume(self, guest_id: str) -> None:
        await (await self._get_running(guest_id)).resume()

    async def exec(self, guest_id: str, request: ExecRequest, mark: SessionMark | None = None) -> ExecSession:
        """``mark`` is ignored: a command ends with the agent."""
        facts = await self._read_facts()
        container = await self._get_running(guest_id)
        if container.record.process is not None:
            await wait_for_program(container.record.process.pid, container.runtime.program, self._clock)
        return await container.holder.exec(container, facts, request)

    async def stats(self, guest_id: str, *, disks: bool = True) -> GuestStats:
        container = await self._get_running(guest_id)
        return await container.holder.stats(container, disks=disks)

    async def read_log(self, guest_id: str, *, tail: int = -1, follow: bool = False) -> AsyncGenerator[LogLine, None]:
        container = await self._get(guest_id)

        def has_ended() -> bool:
            now = self._known.get(guest_id)
            return now is None or now.record.end is not None  # one that is being started has yet to print

        async for line in read_lines(container.paths.log, self._clock, tail=tail, follow=follow, has_ended=has_ended):
            yield line

    # How containers come to run, and are found.

    async def _working(self) -> tuple[Runtime, OciHostFacts]:
        """Raises DriverFailed where no container can be started."""
        if self._found is None or self._found.runtime is None:
            await self.probe()
        assert self._found is not None
        if self._found.runtime is None or self._found.facts is None:
            raise DriverFailed(
                "this node can't run containers: " + "; ".join(self._found.probe.problems), details={"step": "probe"}
            )
        return self._found.runtime, self._found.facts

    async def _read_facts(self) -> OciHostFacts:
        """Read the facts with which containers here are started and changed. Raises DriverFailed."""
        return (await self._working())[1]

    async def _resume(self, plan: ContainerPlan, runtime: Runtime, facts: OciHostFacts, before: Container) -> Container:
        """Restore it from where it was saved, or start it afresh if that fails; its facts then say why."""
        begin_resuming(before.paths)
        try:
            return await self._launch(plan, runtime, facts, before, resumes=True)
        except DriverFailed as problem:
            before.record.end = ContainerEnd("stopped", BEGUN_AFRESH, problem.message)
            await before.save()
            await asyncio.to_thread(drop_saved, before.paths)
            return await self._launch(plan, runtime, facts, before, note=problem.message)

    async def _launch(
        self,
        plan: ContainerPlan,
        runtime: Runtime,
        facts: OciHostFacts,
        before: Container | None,
        *,
        resumes: bool = False,
        note: str = "",
    ) -> Container:
        record = ContainerRecord(
            plan, runtime.name, host_boot_id(), self._clock.now(), held_by=self._containerd, note=note
        )
        container = self._add(record, runtime)
        try:
            if resumes and before is not None:
                record.first_user = before.record.first_user  # its processes know themselves by that
            elif plan.user_namespace:
                taken = {other.record.first_user for other in self._known.values() if other is not container}
                earlier = before.record.first_user if before is not None else None
                record.first_user = choose_first_user(plan.id, facts.users, taken - {None}, earlier)  # type: ignore[arg-type]
            recorded = asyncio.ensure_future(container.save())
            try:
                await (
                    self._resume_one(container, facts, recorded)
                    if resumes
                    else container.holder.launch(container, facts, recorded)
                )
            finally:
                await asyncio.gather(recorded, return_exceptions=True)
            note_begun(container.paths, record)
            if resumes:
                await asyncio.to_thread(settle_resuming, container.paths, runs=True)
        except DriverFailed as problem:
            reason = None if resumes else read_never_began(problem.message)
            if reason is None:
                await asyncio.shield(self._undo(container, before))
                raise
            await asyncio.shield(container.settle_never_began(reason))
            return container
        except BaseException:
            await asyncio.shield(self._undo(container, before))
            raise
        container.watch()
        return container

    def _saves(self, container: Container) -> str:
        """Why it can't be saved and restored; empty: it can."""
        if not isinstance(container.holder, CanCheckpoint):
            return f"{self.name} runs it"
        lack = self._found.probe.checkpoint if self._found is not None else ""
        return "" if lack == "yes" else lack

    async def _resume_one(self, container: Container, facts: OciHostFacts, recorded: Awaitable[None]) -> None:
        """Raises WeftError."""
        first_user, others = container.record.first_user, (one for one in self._known.values() if one is not container)
        if lack := self._saves(container):
            raise DriverFailed(f"this node can't resume it from its saved state: {lack}")
        if first_user is not None and first_user in {other.record.first_user for other in others}:
            raise DriverFailed("another container on this node uses the user ids that it was saved with")
        assert isinstance(container.holder, CanCheckpoint)
        await container.holder.resume(container, facts, recorded)

    async def _undo(self, container: Container, before: Container | None) -> None:
        with contextlib.suppress(WeftError):
            await container.sweep()
        plan_id = container.record.plan.id
        if before is None:
            await asyncio.to_thread(shutil.rmtree, container.paths.state, True)
            self._known.pop(plan_id, None)
            await self._drop_groups()
            return
        await before.save()  # it is as ended as it was
        settle_resuming(before.paths, runs=False)
        self._known[plan_id] = before

    async def _drop_groups(self) -> None:
        """Remove the node's own groups with the last container, as far as no other driver has something in them."""
        for _ in range(REMOVAL_TRIES):  # what held the last one may not have left its group yet
            if self._known or any(self._state.glob("*/container.json")):
                return
            if self._groups.remove(SHIMS):
                break
            await self._clock.sleep(REMOVAL_PAUSE_SECONDS)
        self._groups.remove_parents()

    def _add(self, record: ContainerRecord, runtime: Runtime) -> Container:
        paths = self._paths(record.plan.id)
        holder, capacity = self._holders.find(record, runtime), self._host.capacity
        container = Container(paths, record, runtime, holder, self._groups, capacity, self._clock, self._notify)
        self._known[record.plan.id] = container
        return container

    async def _find(self, guest_id: str) -> Container | None:
        """The container, from memory or from its record (then it is adopted)."""
        async with self._finding:
            if (container := self._known.get(guest_id)) is not None:
                return container
            record = read_record(self._paths(guest_id))
            if record is None:
                return None
            runtime = await self._runtime_of(record.runtime)
            container = self._add(record, runtime)
            await container.adopt()
            return container

    async def _runtime_of(self, name: str) -> Runtime:
        """The runtime that made it, whichever is the node's today."""
        await self.probe()
        found = self._found.runtime if self._found else None
        if found is not None and found.name == name:
            return found
        hidden = found.hidden if found is not None else []
        return Runtime(shutil.which(name) or name, self._run / "runtime", hidden)

    async def _get(self, guest_id: str) -> Container:
        container = await self._find(guest_id)
        if container is None:
            raise NotFound(f"this node has no container {guest_id}")
        return container

    async def _get_running(self, guest_id: str) -> Container:
        container = await self._get(guest_id)
        if not container.running:
            name = container.record.plan.name
            raise Unavailable(f"container/{name} is not running", hint=f"weft container start {name}")
        return container

    def _paths(self, guest_id: str) -> ContainerPaths:
        return ContainerPaths(run=self._run / guest_id, state=self._state / guest_id)

    def _lock(self, guest_id: str) -> asyncio.Lock:
        return self._locks.setdefault(guest_id, asyncio.Lock())

    def _notify(self) -> None:
        self._news.set()

    def _tend(self) -> None:
        if self._tending is None or self._tending.done():
            self._tending = asyncio.create_task(self._turn_logs())

    async def _turn_logs(self) -> None:
        while True:
            await self._clock.sleep(LOG_CHECK_SECONDS)
            for container in list(self._known.values()):
                if container.running:
                    with contextlib.suppress(OSError):
                        container.holder.turn_log(container)
