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
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import SystemClock
from weft.contracts.driver.container import ContainerPlan
from weft.contracts.driver.network import Inside
from weft.contracts.driver.runtime import GuestFacts
from weft.kinds.allocation import AllocatedContainer, AllocatedVolume, AllocationReport, HealthCheck, Resources
from weft.launch.agent.parts import AgentParts
from weft.objects.envelope import Envelope
from weft.objects.errors import DriverFailed, InvalidInput, NotFound, Unavailable
from weft.objects.identity import Ref, short_id
from weft.protocol.report import OpenedSecrets

IMAGE = "registry.example.org/web:1"


class ContainerLab(Lab):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.world = World()
        self.more: dict[str, Containers] = {}
        self.earlier: dict[str, Containers] = {}

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Agent]:
        self.make_drivers()
        self.server.reopen()
        runtimes = Runtimes({"vm": self.runtime, "container": Containers(self.world), **self.more}, self.earlier)
        agent = Agent(
            AgentParts(
                self.host,
                self.server,
                runtimes,
                self.network,
                self.volumes,
                self.clock,
                pools={"san": self.san},
                container_images=Store(self.world),
            )
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
        assert port.inside == Inside(id_, "eth0", own_users=True)
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


class TakingContainers(Containers):
    name, takes_namespace = "taking-containers", True


async def test_an_isolated_one_has_its_nics_where_its_runtime_takes_them_and_stays_with_the_one_that_began_it(
    lab: ContainerLab,
) -> None:
    """Also when the node is told another runtime: that one's are taps."""
    first, other = World(), World()
    lab.more = {"container/vm": TakingContainers(first)}
    web, late = make(container={"isolation": "vm"}), make("late", container={"isolation": "vm"})
    id_, late_id = short_id(web.uid), short_id(late.uid)
    lab.server.put(web)
    async with lab.agent():
        await lab.until_state(web, "running")
        assert (first.plans[id_].netns, first.plans[id_].nics) == (f"/run/netns/wtstg{id_}", [])
        assert [port.inside for port in lab.wire.ports.values()] == [Inside(id_, "eth0")]
    lab.more, lab.earlier = {"container/vm": Containers(other)}, {"container/vm": TakingContainers(first)}
    lab.server.put(late)
    async with lab.agent():
        await lab.until_state(late, "running")
        assert list(other.plans) == [late_id] and first.starts == [id_]
        assert other.plans[late_id].netns == "" and len(other.plans[late_id].nics) == 1
        first.end(id_, "failed", "exited", 1)
        await lab.until(lambda: first.starts == [id_, id_])
        assert lab.server.node_report is not None
        assert "taking-containers" not in [one.name for one in lab.server.node_report.runtimes]
        lab.server.put(_deleting(web))
        await lab.until_state(web, "released")
        assert first.facts == {} and list(other.facts) == [late_id]


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
        lab.server.put(change(web, restart_generation=1))
        await lab.until(lambda: lab.report(web).restart_generation == 1 and lab.report(web).state == "running")
        assert lab.world.pulls[-1] == (IMAGE, "sha256:one")
        assert lab.world.plans[id_].layers == ["/layers/layer-of-sha256:one"]
        other = make("other")
        lab.server.put(other)
        await lab.until_state(other, "running")
        await lab.until(lambda: lab.world.used == {"sha256:one", "sha256:two"})


async def test_its_tag_is_looked_up_again_when_people_ask_and_with_the_next_start(lab: ContainerLab) -> None:
    web = make()
    lab.server.put(web)
    id_ = short_id(web.uid)
    async with lab.agent():
        await lab.until_state(web, "running")
        lab.world.registry[IMAGE] = "sha256:two"
        asked = AllocatedContainer(image=IMAGE, pulls=1)
        lab.server.put(change(web, container=asked, resources=Resources(cpu=2, memory=2**20)))
        await lab.until(lambda: lab.world.plans[id_].cpu == 2)
        assert lab.world.plans[id_].layers == ["/layers/layer-of-sha256:one"]
        lab.server.put(change(web, container=asked, restart_generation=1))
        await lab.until(lambda: lab.report(web).restart_generation == 1 and lab.report(web).state == "running")
        assert lab.world.plans[id_].layers == ["/layers/layer-of-sha256:two"]
        lab.world.registry[IMAGE] = "sha256:three"
        lab.server.put(change(web, container=asked, restart_generation=2))
        await lab.until(lambda: lab.report(web).restart_generation == 2 and lab.report(web).state == "running")
        assert lab.world.plans[id_].layers == ["/layers/layer-of-sha256:two"]


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
        assert report.resize_limits == {"cpu": 4, "memory": 1 << 32}
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


async def test_its_volumes_are_made_with_a_file_system_and_stay_when_it_goes(lab: ContainerLab) -> None:
    volume = AllocatedVolume(name="data", uid="uid-of-data", size=1 << 20)
    web = make(container={"mounts": ["data:/srv:ro"]}, volumes=[volume])
    lab.server.put(web)
    async with lab.agent():
        report = await lab.until_state(web, "running")
        assert [step.name for step in report.steps] == ["image", "disk", "network", "boot"]
        [mount] = lab.world.plans[short_id(web.uid)].mounts
        assert (mount.target, mount.read_only, mount.file_system) == ("/srv", True, "ext4")
        [disk] = await lab.volumes.list()
        assert (disk.id, disk.format, disk.path) == ("uid-of-data", "raw", mount.source)
        lab.server.put(change(web, resources=Resources(cpu=2, memory=2**20)))
        await lab.until(lambda: lab.world.plans[short_id(web.uid)].cpu == 2)
        assert [name for name, _ in lab.volumes.calls].count("ensure_files") == 1
        lab.server.put(_deleting(web))
        await lab.until_state(web, "released")
        assert await lab.volumes.list() == [disk]


async def test_a_volume_that_another_pool_has_is_not_made_anew(lab: ContainerLab) -> None:
    """A VM's move took it there; then the server was restored from before, and a container is to have it."""
    await lab.san.ensure("uid-of-data", size_bytes=1 << 20)
    volume = AllocatedVolume(name="data", uid="uid-of-data", size=1 << 20)
    web = make(container={"mounts": ["data:/srv"]}, volumes=[volume])
    lab.server.put(web)
    async with lab.agent():
        await lab.until(lambda: web.name in lab.server.reports and lab.report(web).reason == "otherPool")
        assert "its volume data is in storage pool san" in lab.report(web).message
        assert await lab.volumes.list() == [] and len(await lab.san.list()) == 1
        assert lab.world.starts == []


def _check(**fields: Any) -> dict[str, Any]:
    return {"health_check": HealthCheck(command=["ask"], interval=0.2, retries=2, **fields)}


async def test_only_changes_of_its_health_are_told(lab: ContainerLab) -> None:
    web = make(container=_check())
    id_ = short_id(web.uid)
    lab.world.answers[id_] = 1
    lab.server.put(web)
    async with lab.agent():
        report = await lab.until_state(web, "running")
        assert report.health == "starting"
        await lab.until(lambda: lab.report(web).health == "unhealthy")
        assert lab.report(web).health_message == "exit code 1: so it is"
        assert lab.report(web).state == "running"
        before = len(lab.server.events)
        await lab.until(lambda: lab.world.asked >= 6)
        assert len(lab.server.events) == before
        lab.world.answers[id_] = 0
        await lab.until(lambda: lab.report(web).health == "healthy")
        assert [event.reason for event in lab.server.events if "health" in event.reason.lower()] == [
            "Unhealthy",
            "Healthy",
        ]
        assert lab.world.starts == [id_]
    lab.world.answers[id_] = 1
    async with lab.agent():
        await lab.until(lambda: lab.report(web).health == "healthy")  # as it was, until two have failed
        await lab.until(lambda: lab.report(web).health == "unhealthy")
        lab.server.put(change(web, desired="stop"))
        assert (await lab.until_state(web, "stopped")).health == ""
        asked = lab.world.asked
        await asyncio.sleep(1)
        assert lab.world.asked == asked


@pytest.mark.parametrize(("policy", "state"), [("on-failure", "running"), ("never", "failed")])
async def test_one_that_is_not_well_is_ended_and_its_policy_says_what_then(
    lab: ContainerLab, policy: str, state: str
) -> None:
    web = make(container=_check(on_unhealthy="restart"), restart=policy)
    id_ = short_id(web.uid)
    lab.world.answers[id_] = 1
    lab.server.put(web)
    async with lab.agent():
        await lab.until(lambda: any(event.reason == "GuestEnded" for event in lab.server.events))
        lab.world.answers[id_] = 0
        report = await lab.until_state(web, state)
        [ended] = [event for event in lab.server.events if event.reason == "GuestEnded"]
        assert ended.message == "exit code 1: so it is"
        if policy == "never":
            assert (report.reason, report.restarts) == ("unhealthy", 0)
        else:
            await lab.until(lambda: lab.report(web).health == "healthy")
            assert (lab.report(web).restarts, lab.world.starts) == (1, [id_, id_])


async def test_secrets_come_with_each_start_and_open_only_their_registry(lab: ContainerLab) -> None:
    web = make(container={"registry_secret": "reg", "env_secrets": {"DB": "db/password"}, "env": {"PLAIN": "1"}})
    id_ = short_id(web.uid)
    opened = {"reg": {"username": "u", "password": "p"}, "db": {"password": "one"}}
    lab.server.secrets = NotFound('secret "db" has no key password', reason="secretNotFound")
    lab.server.put(web)
    async with lab.agent():
        report = await lab.until_state(web, "failed")
        assert (report.reason, lab.world.pulls) == ("secretNotFound", [])
        lab.server.secrets = OpenedSecrets(opened, {"reg": "other.example.org"})
        await lab.until(lambda: lab.report(web).reason == "wrongSecret")
        assert lab.world.pulls == []
        lab.server.secrets = OpenedSecrets(opened, {"reg": "registry.example.org"})
        lab.server.put(change(web, restart_generation=1))
        await lab.until_state(web, "running")
        assert lab.world.opened == [("u", "p")]
        assert lab.world.plans[id_].process.env[-2:] == ["PLAIN=1", "DB=one"]
        assert set(lab.server.secrets_read) == {web.name}
        lab.server.secrets = OpenedSecrets({**opened, "db": {"password": "two"}}, {"reg": "registry.example.org"})
        lab.server.put(change(web, restart_generation=2))
        await lab.until(lambda: lab.world.plans[id_].process.env[-1] == "DB=two")
        lab.server.secrets = Unavailable("away")
        lab.server.put(change(web, restart_generation=3))
        await lab.until(lambda: lab.report(web).restart_generation == 3 and lab.report(web).state == "running")
        assert lab.world.plans[id_].process.env[-1] == "DB=two"
    kept = [path.read_bytes() for path in Path(lab.host.state_dir).rglob("*") if path.is_file()]
    assert not [data for data in kept if b"DB=two" in data]


async def test_a_volume_is_one_containers_at_a_time(lab: ContainerLab) -> None:
    volume = AllocatedVolume(name="data", uid="uid-of-data", size=1 << 20)
    web, other = (make(name, container={"mounts": ["data:/srv"]}, volumes=[volume]) for name in ("web", "other"))
    lab.server.put(web)
    async with lab.agent():
        await lab.until_state(web, "running")
        lab.server.put(other)
        await lab.until(lambda: other.name in lab.server.reports and lab.report(other).reason == "blocked")
        assert "still writes to volume data" in lab.report(other).message
        lab.server.put(change(web, desired="stop"))
        await lab.until_state(other, "running")


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
        since = SystemClock().now() - 2.5  # what is older than the third line is left out
        late = await gateway.connect(gateway.ticket(web, "logs", {"since": since}, **claims))
        assert (await late.rest())[:2] == (b"end\n", b"")


async def test_the_following_of_what_never_began_ends_when_it_will_never_begin(tmp_path: Path) -> None:
    task = make("task", restart="never", once=True)
    async with (
        GatewayLab(tmp_path).serving() as gateway,
        gateway.node(NODE_UID, Containers(World()), [task]) as known,
    ):
        following = await gateway.connect(gateway.ticket(task, "logs", {"follow": True}))
        rest = asyncio.ensure_future(following.rest())
        await asyncio.sleep(0.5)
        assert not rest.done(), "it may begin yet"
        never = AllocationReport(state="failed", reason="imageGone", ended=True, incarnation=1)
        known[task.name] = msgspec.structs.replace(known[task.name], report=never)
        out, err, end = await asyncio.wait_for(rest, 20)
        assert (out, err) == (b"", b"") and end is not None and end.json() == {"code": 0}


@pytest.mark.parametrize(
    ("state", "reason", "exit_code", "runs"),
    [("stopped", "completed", 0, 1), ("failed", "exited", 3, 1), ("failed", "startInterrupted", None, 2)],
)
async def test_what_runs_once_and_ended_before_its_agent_could_note_its_start_is_not_begun_again(
    lab: ContainerLab, monkeypatch: pytest.MonkeyPatch, state: str, reason: str, exit_code: int | None, runs: int
) -> None:
    real = Containers.start

    async def ends_at_once_and_never_answers(driver: Containers, plan: ContainerPlan) -> GuestFacts:
        await real(driver, plan)
        driver.world.end(plan.id, state, reason, exit_code)  # type: ignore[arg-type]
        await asyncio.Event().wait()
        raise AssertionError("the agent was killed before")

    task = make(restart="never", once=True)
    lab.server.put(task)
    id_ = short_id(task.uid)
    monkeypatch.setattr(Containers, "start", ends_at_once_and_never_answers)
    async with lab.agent():
        await lab.until(lambda: lab.world.starts)
    monkeypatch.setattr(Containers, "start", real)
    async with lab.agent():
        if runs == 1:
            report = await lab.until_state(task, state)
            assert (report.state, report.ended, report.exit_code) == (state, True, exit_code)
            await lab.settle()
            assert len(lab.world.starts) == runs
        else:
            await lab.until(lambda: len(lab.world.starts) == runs)
            lab.world.end(id_, "stopped", "completed", 0)
            report = await lab.until_state(task, "stopped")
            assert (report.ended, report.exit_code, len(lab.world.starts)) == (True, 0, 2)


async def test_how_a_run_has_ended_is_told_with_its_exit_code_only_when_it_has(lab: ContainerLab) -> None:
    web, task = make(), make("task", restart="never", once=True)
    for envelope in (web, task):
        lab.server.put(envelope)
    async with lab.agent():
        for envelope in (web, task):
            report = await lab.until_state(envelope, "running")
            assert (report.ended, report.exit_code) == (False, None)
        lab.world.end(short_id(web.uid), "failed", "exited", 3)
        lab.world.end(short_id(task.uid), "failed", "exited", 3, "exit code 3")
        report = await lab.until_state(task, "failed")
        assert (report.ended, report.exit_code, report.message) == (True, 3, "exit code 3")
        report = lab.report(web)
        assert (report.ended, report.exit_code) == (False, None)  # it starts again


async def test_what_runs_once_and_is_stopped_before_it_ever_ran_has_ended(lab: ContainerLab) -> None:
    lab.world.trouble += [DriverFailed("it is not there", reason="imageGone") for _ in range(50)]
    task = make("task", restart="never", once=True)
    lab.server.put(task)
    async with lab.agent():
        report = await lab.until_state(task, "failed")
        assert not report.ended  # it is tried again
        lab.server.put(change(task, desired="stop"))
        report = await lab.until_state(task, "stopped")
        assert (report.ended, report.exit_code, lab.world.starts) == (True, None, [])


async def test_what_runs_once_and_can_never_begin_has_ended_also_for_an_agent_that_comes_later(
    lab: ContainerLab,
) -> None:
    lab.world.trouble.append(InvalidInput("spec.user: the image has no user 'nobdy'", field="spec.user"))
    task = make("task", restart="never", once=True)
    lab.server.put(task)
    for _ in range(2):
        async with lab.agent():
            await lab.settle()
            report = await lab.until_state(task, "failed")
            assert (report.ended, report.reason, report.exit_code) == (True, "invalidInput", None)
            assert report.message == "spec.user: the image has no user 'nobdy'"
    assert lab.world.starts == []
