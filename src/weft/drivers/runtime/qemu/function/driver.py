"""Functions in machines of their own that are copied, not booted: an InstanceDriver with templates and a pool.

Reads and writes ``Host.state_dir/functions`` (templates, disks); everything else of an instance lives and ends with this
process, and QEMUs that outlive it are ended by ``recover`` of the next.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from weft.contracts.clock import Clock, SystemClock
from weft.contracts.driver.function import EgressEndpoint, Isolation, Ready, Recipe, Roots
from weft.contracts.driver.host import Host
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.runtime.qemu.devices.ids import fdset
from weft.drivers.runtime.qemu.function.machine import Qemu, choose_limits, end_leftovers, entitle, spawn_qemu
from weft.drivers.runtime.qemu.function.network import PrivateNet, make_net
from weft.drivers.runtime.qemu.function.record import Template
from weft.drivers.runtime.qemu.function.translate import SnapshotFds, translate_clone
from weft.drivers.runtime.qemu.probe import probe_qemu
from weft.drivers.runtime.qemu.translate import QemuHostFacts
from weft.objects.errors import DriverFailed, Unavailable
from weft.objects.identity import short_id

if TYPE_CHECKING:  # an agent without functions loads none of this
    from weft.drivers.runtime.qemu.function.clone import Clone
    from weft.drivers.runtime.qemu.function.snapshots import SnapshotStore

MOST_READY = 32  # paused copies on a node, of all recipes
READY_SHARE = 0.1  # of the node's memory, at most, at
READY_BYTES = 40 << 20  # each
REFILL_SECONDS = 0.5  # after one was taken: what it was taken for has the CPU first

log = logging.getLogger("weft.agent")


class SnapshotInstances:
    """InstanceDriver, HasTemplates. Each instance is a Clone."""

    isolation: Isolation = "vm"

    def __init__(self, host: Host, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._run_dir = Path(host.run_dir)
        self._folder = Path(host.state_dir) / "functions"
        self._cgroups = ControlGroups(host.cgroup)
        self._prefix = f"fn{short_id(host.node_uid)}-"
        self._most_ready = max(1, min(MOST_READY, int(host.capacity.memory_bytes * READY_SHARE) // READY_BYTES))
        self._bound = self._most_ready  # how many fit just now
        self._changed: Callable[[], None] = lambda: None
        self._facts: QemuHostFacts | None = None
        self._problem = ""
        self._probing = asyncio.Lock()
        self._templates: SnapshotStore | None = None
        self._ready: dict[str, list[Clone]] = {}
        self._wanted: dict[str, tuple[Recipe, Roots, int]] = {}
        self._refilling: dict[str, asyncio.Task[None]] = {}
        self._filling: dict[str, asyncio.Lock] = {}
        self._shrinking: asyncio.Task[None] | None = None
        self._clones: set[Clone] = set()
        self._numbers = itertools.count(1)

    async def probe(self) -> str:
        async with self._probing:
            if self._facts is None:
                found, self._facts = await probe_qemu(self._run_dir, self._clock)
                self._problem = "" if self._facts else "; ".join(found.problems)
        return self._problem

    async def recover(self) -> int:
        ended = await end_leftovers(self._prefix, self._cgroups, self._clock)
        for name in self._cgroups.names(self._prefix):
            self._cgroups.remove(name)
        if (self._folder / "templates").exists() and not await self.probe():
            await (await self._working()).take_over()
        return ended

    async def prepare(self, recipe: Recipe, roots: Roots) -> None:
        await (await self._working()).ensure(recipe, roots)

    async def start(self, id: str, recipe: Recipe, roots: Roots) -> Clone:
        if (clone := await self._take_ready(id, recipe.digest)) is not None:
            self._refill_soon(recipe.digest)
            return clone
        templates = await self._working()
        template, made = await templates.ensure(recipe, roots)
        return await self._copy(id, template, "cold" if made else "clone", roots.egress_endpoint)

    async def keep_ready(self, recipe: Recipe, roots: Roots, count: int) -> int:
        """Keep ``count`` clones ready, as far as all pools of the node together stay within its share; one that is taken is made up
        for. Raises DriverFailed."""
        templates = await self._working()
        self._wanted[recipe.digest] = (recipe, roots, count)
        async with self._filling.setdefault(recipe.digest, asyncio.Lock()):
            pool = self._ready.setdefault(recipe.digest, [])
            await self._sort_out(pool)
            if recipe.digest not in self._wanted:
                count = 0  # it was forgotten meanwhile
            while len(pool) > count:
                await self._end_ready(pool)
            while len(pool) < count and self._ready_now() < min(self._most_ready, self._bound):
                template, _ = await templates.ensure(recipe, roots)
                name = f"ready-{next(self._numbers)}"
                pool.append(await self._copy(name, template, "pool", roots.egress_endpoint, park=True))
                self._changed()
            self._shrink_soon()  # there may be less memory by now
            return len(pool)

    def count_ready(self) -> dict[str, Ready]:
        return {digest: Ready(len(pool), len(pool) * READY_BYTES) for digest, pool in self._ready.items() if pool}

    def templates(self) -> set[str]:
        return set() if self._templates is None else self._templates.there

    def follow(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def bound_ready(self, memory: int) -> None:
        before, self._bound = self._bound, max(0, memory) // READY_BYTES
        if self._bound > before:
            for digest, (_, _, count) in self._wanted.items():
                if len(self._ready.get(digest, ())) < count:
                    self._refill_soon(digest)
        self._shrink_soon()

    def _shrink_soon(self) -> None:
        if self._ready_now() > self._bound and (self._shrinking is None or self._shrinking.done()):
            self._shrinking = asyncio.create_task(self._shrink())

    async def _shrink(self) -> None:
        """Take from the largest pool first."""
        while self._ready_now() > self._bound:
            await self._end_ready(max(self._ready.values(), key=len))

    async def _end_ready(self, pool: list[Clone]) -> None:
        clone = pool.pop()
        self._changed()
        await clone.stop()

    def _ready_now(self) -> int:
        return sum(map(len, self._ready.values()))

    def _refill_soon(self, digest: str) -> None:
        if digest in self._wanted and digest not in self._refilling:
            self._refilling[digest] = asyncio.create_task(self._refill(digest))

    async def _refill(self, digest: str) -> None:
        try:
            await self._clock.sleep(REFILL_SECONDS)
            if digest in self._wanted:
                await self.keep_ready(*self._wanted[digest])
        except DriverFailed as problem:
            log.warning("clones can't be prewarmed: %s", problem.message)
        finally:
            self._refilling.pop(digest, None)

    async def forget(self, digest: str) -> None:
        self._wanted.pop(digest, None)
        async with self._filling.setdefault(digest, asyncio.Lock()):
            for clone in self._ready.pop(digest, []):
                await clone.stop()
            self._changed()
            if self._templates is not None:
                await self._templates.forget(digest)
        self._filling.pop(digest, None)

    async def close(self) -> None:
        """All of its instances end: they are of no use without the agent that serves them."""
        tasks = [*self._refilling.values(), *([self._shrinking] if self._shrinking is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._ready.clear()
        await asyncio.gather(*(clone.stop() for clone in list(self._clones)))

    async def _working(self) -> SnapshotStore:
        if await self.probe() or self._facts is None:
            raise DriverFailed(f"this node can't run functions in microVMs: {self._problem}", details={"step": "probe"})
        if self._templates is None:
            late = importlib.import_module("weft.drivers.runtime.qemu.function.snapshots")  # see above
            self._templates = late.SnapshotStore(
                self._folder, self._facts, self._cgroups, self._clock, self._prefix, lambda: self._changed()
            )
        return self._templates

    async def _take_ready(self, id: str, digest: str) -> Clone | None:
        pool = self._ready.get(digest, [])
        while pool:
            clone = pool.pop()
            self._changed()
            try:
                clone.id = id
                await clone.resume()
                if clone.alive:
                    return clone
            except Unavailable:
                pass  # it ended while it waited
            except BaseException:
                await asyncio.shield(clone.stop())
                raise
            await clone.stop()
        return None

    async def _sort_out(self, pool: list[Clone]) -> None:
        for clone in [clone for clone in pool if not clone.alive]:
            pool.remove(clone)
            self._changed()
            await clone.stop()

    async def _copy(
        self,
        id: str,
        template: Template,
        started: Literal["pool", "clone", "cold"],
        egress_endpoint: EgressEndpoint | None,
        *,
        park: bool = False,
    ) -> Clone:
        net = await make_net(egress_endpoint)
        late = importlib.import_module("weft.drivers.runtime.qemu.function.clone")  # see above
        clone: Clone | None = None
        qemu: Qemu | None = None
        try:
            qemu, state = self._spawn(net, template)
            clone = late.Clone(id, net, qemu, self._cgroups, self._clock, self._clones.discard)
            self._clones.add(clone)
            clone.started = started
            if park:
                clone.will_park()
            await qemu.connect()
            await qemu.transfer("migrate-incoming", uri=f"file:{fdset(state)}")
            clone.call()
            await clone.settle()
            if park:
                await clone.stand()
            return clone
        except BaseException as problem:
            if clone is not None:
                await asyncio.shield(clone.stop())
            else:
                if qemu is not None:
                    await asyncio.shield(qemu.end(self._cgroups, self._clock))
                await asyncio.shield(net.close())
            if isinstance(problem, Unavailable | OSError):
                raise DriverFailed(f"a clone can't be started: {problem}", details={"step": "clone"}) from problem
            raise

    def _spawn(self, net: PrivateNet, template: Template) -> tuple[Qemu, int]:
        assert self._facts is not None and self._templates is not None
        name = f"{self._prefix}{next(self._numbers)}"
        with self._templates.open(template) as (named, disks):

            def translate(qmp: int) -> list[str]:
                fds = SnapshotFds(qmp, net.tap, named["ram"], named["state"], named["kernel"], named["initrd"], disks)
                return translate_clone(template.machine, fds, entitle(name, self._folder))

            limits = choose_limits(template.machine, template.cpu)
            qemu = spawn_qemu(name, self._facts, self._cgroups, limits, translate, [net.tap, *named.values(), *disks])
            return qemu, named["state"]
