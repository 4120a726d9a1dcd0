"""An agent and its containers, over fake drivers: brought up from an image, kept, told of, taken away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.agent_lab import NODE_UID, Lab, change, make_allocation
from tests.scenario.container_agent_lab import Containers, Store, World
from tests.scenario.gateway_lab import GatewayLab

from weft.agent.agent import Agent
from weft.agent.runtimes import Runtimes
from weft.contracts.network import Inside
from weft.contracts.runtime import GuestFacts
from weft.kinds.allocation import AllocatedContainer, AllocatedVolume, AllocationReport, Resources
from weft.objects.envelope import Envelope
from weft.objects.errors import NotFound
from weft.objects.identity import Ref, short_id

IMAGE = "registry.example.org/web:1"


class ContainerLab(Lab):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.world = World()

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Agent]:
        self.make_drivers()
        self.server.reopen()
        runtimes = Runtimes({"vm": self.runtime, "container": Containers(self.world)})
        agent = Agent(
            self.host, self.server, runtimes, self.network, self.volumes, self.clock, container_images=Store(self.world)
        )
        running = asyncio.ensure_future(agent.run())
        try:
            await agent.start()
            yield agent
            if running.done():
                running.result()
        finally:
            running.cancel()
            await agent.close()

    def report(self, envelope: Envelope) -> AllocationReport:
        return self.server.reports[envelope.name]


@pytest.fixture
def lab(tmp_path: Path) -> ContainerLab:
    return ContainerLab(tmp_path)


def make(name: str = "web", uid: str = "", container: dict[str, Any] | None = None, **fields: Any) -> Envelope:
    allocated = AllocatedContainer(image=IMAGE, **(container or {}))
    ref = Ref("container", name, f"uid-of-{name}", "default")
    return make_allocation(name, uid, workload=ref, image=None, container=allocated, runtime="oci", **fields)


async def test_a_container_comes_up_from_its_image_without_disks_and_goes_without_a_trace(lab: ContainerLab) -> None:
    web = make()
    lab.server.put(web)
    id_ = short_id(web.uid)
    async with lab.agent():
        report = await lab.until_state(web, "running")
        assert [(step.name, step.state) for step in report.steps] == [
            ("image", "done"), ("network", "done"), ("boot", "done")
        ]  # fmt: skip
        assert report.steps[0].detail.startswith("100 B in ")
        plan = lab.world.plans[id_]
        assert (plan.layers, plan.process.argv) == (["/layers/layer-of-sha256:one"], ["/bin/serve"])
        assert (plan.process.user.uid, plan.netns) == (33, f"/run/netns/wtstg{id_}")
        assert (plan.name_servers, plan.search) == (["10.20.0.1"], ["blue.weft"])
        (port,) = lab.wire.ports.values()
        assert port.inside == Inside(id_, "eth0")
        assert await lab.volumes.list() == []
        node = lab.server.node_report
        assert node is not None
        assert [(one.name, one.kinds) for one in node.runtimes] == [
            ("fake", ["vm"]),
            ("fake-containers", ["container"]),
        ]
        lab.server.put(_deleting(web))
        await lab.until_state(web, "released")
        assert (lab.world.facts, lab.wire.ports, lab.copies()) == ({}, {}, [])


def _deleting(envelope: Envelope) -> Envelope:
    return msgspec.structs.replace(envelope, deleting_since=1.0)


async def test_a_container_runs_on_while_its_agent_is_gone_and_keeps_the_image_that_it_began_with(
    lab: ContainerLab,
) -> None:
    web = make()
    lab.server.put(web)
    id_ = short_id(web.uid)
    async with lab.agent():
        await lab.until_state(web, "running")
    lab.world.registry[IMAGE] = "sha256:two"
    async with lab.agent():
        await lab.settle()
        assert lab.world.starts == [id_]
        lab.server.put(change(web, boots=1))
        await lab.until(lambda: lab.report(web).boots == 1 and lab.report(web).state == "running")
        assert lab.world.pulls[-1] == (IMAGE, "sha256:one")
        assert lab.world.plans[id_].layers == ["/layers/layer-of-sha256:one"]
        other = make("other")
        lab.server.put(other)
        await lab.until_state(other, "running")
        await lab.until(lambda: lab.world.used == {"sha256:one", "sha256:two"})


@pytest.mark.parametrize(
    ("policy", "end", "state", "starts"),
    [
        ("on-failure", ("stopped", "completed", 0), "stopped", 1),
        ("never", ("stopped", "completed", 0), "stopped", 1),
        ("always", ("stopped", "completed", 0), "running", 2),
        ("on-failure", ("failed", "exited", 3, "exit code 3"), "running", 2),
        ("never", ("failed", "exited", 3, "exit code 3"), "failed", 1),
    ],
)
async def test_one_that_ended_rests_or_starts_again_as_its_policy_says(
    lab: ContainerLab, policy: str, end: tuple[Any, ...], state: str, starts: int
) -> None:
    web = make(restart=policy)
    lab.server.put(web)
    async with lab.agent():
        await lab.until_state(web, "running")
        lab.world.end(short_id(web.uid), *end)
        await lab.until(lambda: lab.report(web).restarts == starts - 1 and (starts > 1 or lab.report(web).reason))
        report = await lab.until_state(web, state)
        if state != "running":
            assert report.reason == end[1]
            assert ("exit code 3" in report.message) == (end[1] == "exited")
        assert any(event.reason == "GuestEnded" for event in lab.server.events)


async def test_its_share_of_the_node_changes_while_it_runs(lab: ContainerLab) -> None:
    web = make()
    lab.server.put(web)
    async with lab.agent():
        report = await lab.until_state(web, "running")
        assert report.room == {"cpu": 4, "memory": 1 << 32}
        lab.server.put(change(web, resources=Resources(cpu=2, memory=1 << 27)))
        wanted = Resources(cpu=2, memory=1 << 27)
        await lab.until(lambda: lab.report(web).has == wanted)
        assert lab.world.starts == [short_id(web.uid)]


async def test_an_image_that_is_gone_is_told_and_asked_for_again(lab: ContainerLab) -> None:
    gone = NotFound(f"image {IMAGE}: the registry has no such image", reason="imageGone")
    lab.world.trouble = [gone]
    web = make()
    lab.server.put(web)
    async with lab.agent():
        report = await lab.until_state(web, "failed")
        assert (report.reason, report.message) == ("imageGone", gone.message)
        assert [(step.name, step.state) for step in report.steps] == [("image", "failed")]
        await lab.until_state(web, "running")
        assert len(lab.world.pulls) == 2


async def test_what_cannot_be_done_yet_is_refused_before_anything_is_made(lab: ContainerLab) -> None:
    volume = AllocatedVolume(name="data", uid="v", size=1 << 20)
    web = make(container={"mounts": ["data:/srv"]}, volumes=[volume])
    lab.server.put(web)
    async with lab.agent():
        report = await lab.until_state(web, "failed")
        assert (report.reason, report.message) == (
            "notServed",
            "container/default/web: volumes can't be mounted in containers yet",
        )
        assert (lab.world.pulls, lab.wire.ports) == ([], {})


async def test_a_container_that_nothing_explains_is_told_as_one_and_no_image_is_let_go_of(lab: ContainerLab) -> None:
    web = make()
    lab.server.put(web)
    async with lab.agent():
        await lab.until_state(web, "running")
    for path in (Path(lab.host.state_dir) / "allocations").glob("*.json"):
        path.unlink()
    lab.server.delete(web)
    lab.server.put(make("other"))
    lab.world.used = set()
    async with lab.agent():
        await lab.until(lambda: lab.server.node_report is not None and lab.server.node_report.orphans)
        assert lab.server.node_report is not None
        assert lab.server.node_report.orphans == [f"{web.uid} container/-/web 1"]
        await lab.until_state(make("other"), "running")
        await lab.settle()
        assert lab.world.used == set()
        assert lab.world.facts[short_id(web.uid)].state == "running"


@pytest.mark.parametrize("claims", [{}, {"printed": -1}])
async def test_what_it_prints_comes_in_two_streams_and_the_following_ends_with_it(
    tmp_path: Path, claims: dict[str, Any]
) -> None:
    world = World()
    web = make()
    id_ = short_id(web.uid)
    async with GatewayLab(tmp_path).serving() as gateway, gateway.node(NODE_UID, Containers(world), [web]):
        before = await gateway.connect(gateway.ticket(web, "logs", {}, **claims))
        out, err, end = await before.rest()
        assert (out, err) == (b"", b"") and end is not None and end.json() == {"code": 0}  # it hasn't begun
        following = await gateway.connect(gateway.ticket(web, "logs", {"follow": True}, **claims))
        await asyncio.sleep(0.1)
        world.facts[id_] = GuestFacts(id_, web.uid, "web", 1, "running")
        rest = asyncio.ensure_future(following.rest())
        await asyncio.sleep(0.5)
        assert not rest.done()
        world.end(id_, "stopped", "completed", 0)
        out, err, end = await rest
        assert (out, err) == (b"out\nend\n", b"err\n") and end is not None and end.json() == {"code": 0}
