"""What a container's runtime is told: the allocation over the image's own word."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from weft.agent.image.oci import PulledImage, name_user
from weft.agent.network.plan import ports_of
from weft.agent.state.allocation import LocalAllocation
from weft.agent.workload.container import DEFAULT_PATH, plan_container
from weft.agent.workload.kind import Prepared
from weft.agent.workload.kinds import kind_of
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.driver.container import ContainerMount, ContainerNic, User
from weft.contracts.driver.image import OciConfig
from weft.contracts.driver.network import Inside
from weft.contracts.driver.runtime import GuestShape
from weft.contracts.driver.volume import VolumeFacts
from weft.kinds.allocation import AllocatedContainer, AllocatedNic, AllocatedVolume, AllocationSpec, Resources
from weft.objects.errors import InvalidInput
from weft.objects.identity import Ref

CONFIG = OciConfig(
    entrypoint=["/bin/serve"], cmd=["--quiet"], env=["A=image", "B=image=too", "PATH=/bin"], user="www", workdir="/srv",
    stop_signal="SIGQUIT",
)  # fmt: skip
WWW = User(33, 33, [33], "/var/www")
NIC = AllocatedNic(
    uid="e", network="default", network_uid="n", vni=1, cidr="10.0.0.0/16", gateway="10.0.0.1", mtu=1450, domain="shop.internal",
    nat=True, mac="52:54:00:00:00:01", address="10.0.0.9",
)  # fmt: skip


def wanted(
    nics: tuple[AllocatedNic, ...] = (NIC,),
    kind: str = "container",
    volumes: tuple[str, ...] = ("data",),
    **container: Any,
) -> LocalAllocation:
    spec = AllocationSpec(
        node="n1",
        node_uid="u1",
        workload=Ref(kind=kind, name="web", uid="w1", project="default"),
        workload_generation=1,
        incarnation=2,
        resources=Resources(cpu=0.5, memory=64 * 2**20),
        nics=list(nics),
        volumes=[AllocatedVolume(name=name, uid=name, size=1) for name in volumes],
        container=AllocatedContainer(image="localhost/web", **container),
    )
    return LocalAllocation("u1.a1", "0123456789abcdef", spec)


def ready(config: OciConfig = CONFIG, volumes: tuple[str, ...] = ("data",), **changes: Any) -> Prepared:
    image = PulledImage("sha256:1", ["/l/2", "/l/1"], config, WWW)
    disks = [VolumeFacts(name, f"/v/{name}", "raw", 1, 1) for name in volumes]
    return Prepared(**{"pulled": image, "links": ["/run/netns/x"], "volumes": disks, **changes})


def test_an_image_s_own_word_is_what_runs() -> None:
    plan = plan_container(wanted(), ready())
    assert (plan.name, plan.incarnation, plan.cpu, plan.memory_bytes) == ("web", 2, 0.5, 64 * 2**20)
    assert plan.process.argv == ["/bin/serve", "--quiet"]
    assert plan.process.env == ["PATH=/bin", "HOME=/var/www", "A=image", "B=image=too"]
    assert (plan.process.cwd, plan.process.user, plan.process.stop_signal) == ("/srv", WWW, "SIGQUIT")
    assert (plan.netns, plan.name_servers, plan.search) == ("/run/netns/x", ["10.0.0.1"], ["shop.internal"])
    assert "CAP_NET_RAW" not in plan.capabilities
    assert plan.user_namespace


@pytest.mark.parametrize(
    ("command", "args", "argv"),
    [
        ([], ["-v"], ["/bin/serve", "-v"]),
        (["/bin/sh", "-c"], ["true"], ["/bin/sh", "-c", "true"]),
        (["/bin/sh"], [], ["/bin/sh"]),
    ],
)
def test_a_command_replaces_the_entrypoint_and_arguments_the_image_s(
    command: list[str], args: list[str], argv: list[str]
) -> None:
    assert plan_container(wanted(command=command, args=args), ready()).process.argv == argv


def test_variables_of_the_spec_win_and_each_stands_there_once() -> None:
    env = plan_container(wanted(env={"A": "mine", "C": ""}), ready()).process.env
    assert sorted(env) == ["A=mine", "B=image=too", "C=", "HOME=/var/www", "PATH=/bin"]
    bare = plan_container(wanted(), ready(config=OciConfig(cmd=["x"]))).process
    assert bare.env == [f"PATH={DEFAULT_PATH}", "HOME=/var/www"]
    assert (bare.cwd, bare.stop_signal) == ("/", "SIGTERM")


def test_who_it_runs_as_is_the_spec_s_word_else_the_image_s() -> None:
    container = wanted(user="1000:1000").spec.container
    assert container is not None
    assert name_user(container, CONFIG) == "1000:1000"
    assert name_user(AllocatedContainer(image="x"), CONFIG) == "www"


def test_volumes_are_mounted_from_the_outside_in() -> None:
    mounts = plan_container(
        wanted(mounts=["data:/srv/data:ro", "all:/srv"], volumes=("data", "all")), ready(volumes=("data", "all"))
    ).mounts
    assert mounts == [
        ContainerMount("/v/all", "/srv", file_system="ext4"),
        ContainerMount("/v/data", "/srv/data", True, file_system="ext4"),
    ]
    with pytest.raises(InvalidInput, match="volume other is not ready"):
        plan_container(wanted(mounts=["other:/srv"]), ready())


def test_one_without_networks_has_no_name_server() -> None:
    plan = plan_container(wanted(nics=()), ready(links=[]))
    assert (plan.netns, plan.name_servers, plan.search) == ("", [], [])


def test_an_image_that_says_nothing_of_what_to_run_needs_a_command() -> None:
    with pytest.raises(InvalidInput, match="names no command to run") as caught:
        plan_container(wanted(), ready(config=OciConfig()))
    assert caught.value.field == "spec.command"


def test_its_ports_lie_in_a_namespace_of_its_own_in_the_order_of_its_networks() -> None:
    other = msgspec.structs.replace(NIC, uid="f", network_uid="m", address="10.1.0.9", mac="52:54:00:00:00:02")
    two = wanted(nics=(NIC, other))
    assert [port.inside for port in ports_of(two)] == [
        Inside(two.id, "eth0", own_users=True),
        Inside(two.id, "eth1", own_users=True),
    ]
    machine = msgspec.structs.replace(two, spec=msgspec.structs.replace(two.spec, container=None))
    assert [port.inside for port in ports_of(machine)] == [None, None]


def test_in_a_machine_of_its_own_its_nics_are_the_machine_s_and_the_first_is_its_way_out() -> None:
    other = msgspec.structs.replace(
        NIC, uid="f", network_uid="m", cidr="10.1.0.0/24", mtu=1400, mac="52:54:00:00:00:02"
    )
    own = wanted(nics=(NIC, other), isolation="vm")
    assert [port.inside for port in ports_of(own)] == [None, None]
    plan = plan_container(own, ready(links=["tap0", "tap1"], in_namespace=False))
    assert plan.netns == ""
    assert plan.nics == [
        ContainerNic("tap0", NIC.mac, 1450, "10.0.0.9", 16, "10.0.0.1"),
        ContainerNic("tap1", "52:54:00:00:00:02", 1400, "10.0.0.9", 24, ""),
    ]
    assert plan_container(wanted(), ready()).nics == []


def test_only_its_share_of_the_node_says_whether_it_is_as_asked_for() -> None:
    spec = wanted().spec
    shape = GuestShape(0.5, 64 * 2**20, {}, [], 8, 2**32)
    kind = kind_of(spec)
    assert kind.is_shaped(spec, shape)
    assert not kind.is_shaped(spec, msgspec.structs.replace(shape, cpu=1.0))
    assert not kind.is_shaped(spec, msgspec.structs.replace(shape, memory_bytes=2**20))
    assert kind.find_resize_limits(shape) == {"cpu": 8, "memory": 2**32}


async def test_a_node_without_a_driver_for_a_kind_says_so_and_knows_that_nothing_of_it_runs() -> None:
    class Machines:
        name = "machines"

    runtimes = Runtimes({"vm": Machines()})  # type: ignore[dict-item]
    assert (await runtimes.inspect(wanted())).state == "absent"
    with pytest.raises(InvalidInput, match="this node can't run containers") as caught:
        runtimes.of(wanted())
    assert caught.value.token == "unsupported"
    assert runtimes.of(wanted(kind="vm")).name == "machines"


async def test_how_it_is_isolated_says_which_driver_has_it() -> None:
    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

    runtimes = Runtimes({"vm": Named("m"), "container": Named("c"), "container/vm": Named("e")})  # type: ignore[dict-item]
    assert runtimes.of(wanted()).name == "c"
    assert runtimes.of(wanted(isolation="vm")).name == "e"
    without = Runtimes({"vm": Named("m"), "container": Named("c")})  # type: ignore[dict-item]
    with pytest.raises(InvalidInput, match="this node can't run containers in microVMs"):
        without.of(wanted(isolation="vm"))


class Teller:
    """A driver of which only its news matters."""

    name = "teller"

    def __init__(self) -> None:
        self.news, self.waiters = asyncio.Event(), 0

    async def changed(self) -> None:
        self.waiters += 1
        try:
            await self.news.wait()
            self.news.clear()
        finally:
            self.waiters -= 1


async def test_news_of_either_driver_are_heard_and_nobody_listens_on_after_the_agent_has_ended() -> None:
    one, other = Teller(), Teller()
    runtimes = Runtimes({"vm": one, "container": other})  # type: ignore[dict-item]
    for teller in (other, one, other):
        teller.news.set()
        await asyncio.wait_for(runtimes.changed(), 60)
        assert not teller.news.is_set()
    listening = asyncio.ensure_future(runtimes.changed())
    await asyncio.sleep(0.01)
    assert (one.waiters, other.waiters) == (1, 1)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await asyncio.sleep(0)
    assert (one.waiters, other.waiters) == (0, 0)
