"""The whole control plane in one process: the real API servers, controllers, agents and stores over drivers that only pretend, in
virtual time, with every misfortune drawn from a seed. ``run_simulation(seed, faults)`` ends when all is as people wished.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import random
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import msgspec

from tests.shelf import SHELF
from tests.simulation.etcd import reach_by_channels
from tests.simulation.fabric import Fabric
from tests.simulation.fate import MISFORTUNES, Fate
from tests.simulation.machines import Processes
from tests.simulation.server import sign
from tests.simulation.virtual_loop import Event, Thread, VirtualLoop
from weft.agent import watches
from weft.agent.node import capabilities, facts
from weft.agent.node.hardware import Hardware
from weft.agent.server import line
from weft.controllers import registry
from weft.drivers.linux import processes
from weft.kinds.node import Gpu
from weft.launch.server import controllers

Store = Literal["memory", "sqlite", "etcd"]  # etcd: of several servers


class Trace(msgspec.Struct):
    """What a run did. ``violations`` is empty when the fabric kept its promises; ``digest`` is the same for the same run."""

    seed: int
    digest: str
    faults: dict[str, int]
    wishes: dict[str, int]
    migrations: dict[str, int]  # phases that Migrations came to, and why
    commits: int
    seconds: float  # of the fabric's time
    violations: list[str]

    @property
    def fault_count(self) -> int:
        return sum(self.faults.values())


def run_simulation(
    seed: int,
    faults: int,
    store: Store = "memory",
    weather: Mapping[str, int] = MISFORTUNES,
    *,
    moves: bool = False,
    jobs: bool = False,
    converts: bool = False,
    leases: bool = False,
    tenants: bool = False,
    snapshots: bool = False,
    servers: int = 1,
) -> Trace:
    """One run with about ``faults`` faults on this engine of the store; ``weather`` says how often each misfortune comes,
    compared to the others; with ``moves`` people move their VMs as well, with ``jobs`` they run jobs; with
    ``converts`` they have containers alone, and convert them; with ``leases`` they have VMs with leases alone;
    with ``tenants`` there are those of ``tenants.py`` alone, with ``snapshots`` those who keep snapshots. ``servers`` share an
    etcd, and clerks change the same objects at all of them. The same seed gives the same run, anywhere."""
    fate = Fate(seed, faults, weather)
    with simulate(
        seed,
        fate,
        store,
        moves=moves,
        jobs=jobs,
        converts=converts,
        leases=leases,
        tenants=tenants,
        snapshots=snapshots,
        servers=servers,
    ) as fabric:
        fabric.loop.run_until_complete(fabric.run())
        seconds = fabric.loop.time()
    digest = hashlib.sha256(fabric.ledger.notes.trace.digest())
    digest.update(repr((sorted(fabric.fate.count.items()), seconds)).encode())
    return Trace(
        seed=seed,
        digest=digest.hexdigest(),
        faults=dict(fabric.fate.count),
        wishes=dict(fabric.wishes),
        migrations=dict(fabric.witness.came_to),
        commits=fabric.ledger.notes.commits,
        seconds=seconds - 1000.0,
        violations=fabric.witness.violations,
    )


@contextlib.contextmanager
def simulate(
    seed: int,
    fate: Fate,
    store: Store = "memory",
    *,
    moves: bool = False,
    jobs: bool = False,
    converts: bool = False,
    leases: bool = False,
    tenants: bool = False,
    snapshots: bool = False,
    servers: int = 1,
) -> Iterator[Fabric]:
    """A fabric that nothing has happened to yet, on a loop of its own; whoever has it drives ``fabric.loop``."""
    with tempfile.TemporaryDirectory(dir=SHELF) as folder:
        loop = VirtualLoop(seed)
        asyncio.set_event_loop(None)
        with (
            _one_source_of_chance(seed) as found,
            _nothing_collected(),
            _no_book_of_tasks(),
            contextlib.ExitStack() as more,
        ):
            try:
                fabric = Fabric(
                    loop,
                    Path(folder),
                    fate,
                    store,
                    found,
                    moves=moves,
                    jobs=jobs,
                    converts=converts,
                    leases=leases,
                    tenants=tenants,
                    snapshots=snapshots,
                    servers=servers,
                )
                if fabric.cluster is not None:
                    more.enter_context(reach_by_channels(fabric.cluster, loop))
                yield fabric
            finally:
                loop.end()


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """No search for garbage, which is a tenth of a run's cost: what is left of one is found after it."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _no_book_of_tasks() -> Any:
    """Nobody asks for all tasks, so nobody writes them down."""
    return mock.patch.object(asyncio.tasks._all_tasks, "add", bool)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _one_source_of_chance(seed: int) -> Iterator[Processes]:
    """Make uids, secrets, processes and threads those of the simulation; and let controllers sign what they commit."""
    chance, found = random.Random(f"bytes {seed}"), Processes(random.Random(f"pids {seed}"))

    def signed(name: str) -> Any:
        real = getattr(registry, name)

        async def run(controller: Any, term: Any) -> None:
            sign(controller.name)
            await real(controller, term)

        return mock.patch.object(registry, name, run)

    async def schedule(self: Any) -> None:
        sign("scheduler")
        await real_schedule(self)

    real_schedule = controllers.Scheduler.run
    threads = mock.Mock(Thread=Thread, Event=Event)
    with (
        mock.patch("os.urandom", chance.randbytes),
        mock.patch("random._urandom", chance.randbytes),
        mock.patch.object(watches, "threading", threads),
        mock.patch.object(line, "threading", threads),
        mock.patch.object(facts, "inspect_machine", lambda: facts.MachineFacts("simulated", "0")),
        mock.patch.object(capabilities, "inspect_hardware", lambda host: Hardware(gpus=[Gpu("T4", 2**34)] * 4)),
        mock.patch.object(processes, "inspect_process", found.inspect),
        mock.patch.object(controllers.Scheduler, "run", schedule),
        signed("run_controller"),
        signed("run_asking"),
    ):
        yield found
