"""Two fabrics in one process that are linked, each with its API server, its scheduler and controllers, and a node without machines.
VMs migrate between them; the worlds that the nodes share know the truth about who runs a guest."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.link_lab import Side, two_sides
from tests.scenario.migration_lab import MovingLab, World

from weft.controllers.cluster import requests
from weft.controllers.departure import controller
from weft.controllers.departure.controller import Departures
from weft.controllers.registry import CONTROLLERS, Needs, Registered, list_runs
from weft.controllers.workload.controller import set_placed_status
from weft.informer.cache import Cache
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import make_view
from weft.objects.errors import NotFound
from weft.scheduler.loop import Scheduler

TERMS = {"grants": ["migrate"], "projects": {"default": "default"}}


class Across:
    """A node of the other fabric, as the source of a guest reaches it."""

    def __init__(self, node: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._node, self._loop, self.uid, self.specs = node, loop, node.uid, node.specs

    @property
    def alive(self) -> bool:
        return bool(self._node.alive)

    async def act(self, key: str) -> None:
        asyncio.run_coroutine_threadsafe(self._node.act(key), self._loop)


class Cluster:
    """One fabric with a node."""

    def __init__(self, side: Side, node: str, worlds: dict[str, World], begin: list[World]) -> None:
        self.side, self.client = side, side.client
        self.lab = MovingLab(side.folder, store=side.store, clock=side.clock)
        self.lab.worlds, self.lab.begin = worlds, begin
        side.run(self.lab.put_image("tiny"))
        self.node = side.run(self.lab.add_node(node))
        self.task = asyncio.run_coroutine_threadsafe(self._control(), side.loop)

    async def _control(self) -> None:
        side = self.side
        cache = Cache(side.store, make_view(), side.clock)
        lease = LeaderLease(side.store, cache, side.journal, side.clock, "workloads", "lab", None)
        async with asyncio.TaskGroup() as group:
            group.create_task(cache.run())
            await lease.begin()
            group.create_task(lease.keep())
            group.create_task(Scheduler(lease, "least_loaded", update_status=set_placed_status).run())
            needs = Needs(
                images=side.folder / "images",
                unseal=side.settings.seal_keys.unseal,
            )
            mine = [one for one in CONTROLLERS if not {*one.needs} - {"renewals"}]
            departures = Registered(lambda lease, needs: Departures(lease, needs.unseal))
            for run in list_runs(lease, needs, [*mine, departures]):
                group.create_task(run)

    def close(self) -> None:
        self.task.cancel()
        self.side.run(self.node.die())

    def find(self, kind: str, name: str) -> dict[str, Any] | None:
        try:
            return self.client.get(kind, name, project="default")
        except NotFound:
            return None

    def until(self, kind: str, name: str, so: Callable[[Any], bool], seconds: float = 60.0) -> Any:
        ends = time.monotonic() + seconds
        while not so(found := self.find(kind, name)):
            assert not self.task.done(), self.task.exception()
            assert time.monotonic() < ends, found
            time.sleep(0.02)
        return found

    def until_true(self, so: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait for what no object shows."""
        ends = time.monotonic() + seconds
        while not so():
            assert not self.task.done(), self.task.exception()
            assert time.monotonic() < ends
            time.sleep(0.02)

    def until_phase(self, kind: str, name: str, *phases: str) -> dict[str, Any]:
        found = self.until(kind, name, lambda obj: obj is not None and obj.get("status", {}).get("phase") in phases)
        return dict(found)

    def list(self, kind: str) -> list[dict[str, Any]]:
        return list(self.client.list(kind, project="default").items)

    def create_vm(self, name: str, **spec: Any) -> dict[str, Any]:
        given = {"image": "tiny", "memory": "128M", "networks": ["default"], **spec}
        self.client.create({"kind": "vm", "name": name, "project": "default", "spec": given})
        return self.until_phase("vm", name, "Running")

    def migrate(self, name: str, to: str = "west") -> str:
        made = self.client.verb("vm", name, "migrate", {"cluster": to}, project="default")
        return str(made["name"])

    def runs(self, name: str) -> bool:
        """Whether its guest's report says that it runs here as the VM's own place."""
        found = self.find("vm", name)
        return found is not None and found["status"]["phase"] in ("Running", "Migrate")


@contextlib.contextmanager
def two_clusters(folder: Path, worlds: list[World]) -> Iterator[tuple[Cluster, Cluster]]:
    """East, whose VMs may migrate to west. ``worlds``: what the next tries are like."""
    with pytest.MonkeyPatch.context() as patch, two_sides(folder) as (east, west):
        patch.setattr(controller, "ASK_SECONDS", 0.1)
        patch.setattr(requests, "SETTLED_SECONDS", 0.0)
        shared: dict[str, World] = {}
        sides = Cluster(east, "e1", shared, worlds), Cluster(west, "w1", shared, worlds)
        sides[0].lab.nodes["west/w1"] = Across(sides[1].node, west.loop)  # type: ignore[assignment]
        sides[1].lab.nodes["east/e1"] = Across(sides[0].node, east.loop)  # type: ignore[assignment]
        east.link("west", west, west.link_token("east", **TERMS), projects={"default": "default"})
        east.wait_for("west", lambda status: status["phase"] == "Linked")
        yield sides
        for one in sides:
            one.close()
