"""Which templates a node has, when they are made again, and which VMs begin from one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import pytest

from weft.agent.image.cache import CachedImage
from weft.agent.state.table import AllocationTable
from weft.agent.template import claim, library, often
from weft.agent.template.claim import BootMemory
from weft.agent.template.library import MAKING, READY, TemplateLibrary
from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.runtime import GuestPlan
from weft.contracts.driver.template import RAM, STATE
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.kinds.allocation import AllocatedImage, AllocatedNic, AllocatedVolume, AllocationSpec, Resources
from weft.kinds.parts.image.work import WarmOrder, name_order
from weft.objects.errors import DriverFailed, InvalidInput
from weft.objects.identity import Ref
from weft.objects.image.bundle import BundleManifest

MIB = 1 << 20
IMAGE = AllocatedImage(name="tiny", uid="i", sha256="ab" * 32, size=1, url="/x")
NIC = AllocatedNic(
    uid="e", network="default", network_uid="n", vni=1, cidr="10.0.0.0/24", gateway="10.0.0.1", mtu=1450, domain="",
    nat=True, mac="02:00:00:00:00:02", address="10.0.0.2",
)  # fmt: skip
SPEC = AllocationSpec(
    node="n1", node_uid="n1", workload=Ref("vm", "web", "u", "default"), workload_generation=1, incarnation=1,
    resources=Resources(cpu=1.0, memory=512 * MIB), image=IMAGE, nics=[NIC], boot="auto", cpu_model="max",
)  # fmt: skip


class Machines:
    """A driver whose machines boot at once, or don't; it notes each."""

    def __init__(self) -> None:
        self.templates, self.made, self.version, self.problem = self, list[GuestPlan](), "1", ""
        self.cleared, self.gate = list[str](), asyncio.Event()
        self.gate.set()

    async def probe(self) -> Any:
        return SimpleNamespace(cpu_models=["max"])

    async def identify(self, plan: GuestPlan) -> str:
        return f"{self.version}/{plan.memory_bytes}/{plan.cpu_model}"

    async def make(self, plan: GuestPlan, folder: Path) -> None:
        self.made.append(plan)
        await self.gate.wait()
        if self.problem:
            raise DriverFailed(self.problem)
        for name in (RAM, STATE):
            (folder / name).write_bytes(b"x")

    async def clear(self, prefix: str) -> None:
        self.cleared.append(prefix)


class Node(NamedTuple):
    library: TemplateLibrary
    machines: Machines
    disks: DirectoryVolumes
    image: CachedImage
    table: AllocationTable
    told: list[int]  # the memory of a boot, as the server heard of it


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wait for what the scheduler gave away before it heard of a boot."""
    monkeypatch.setattr(claim, "LOOK_SECONDS", 0.02)


def make_node(tmp_path: Path, machines: Machines | None = None) -> Node:
    host = Host(
        node="n1", node_uid="n1", state_dir=str(tmp_path), run_dir=str(tmp_path), link_prefix="wt",
        underlay_address="127.0.0.1", underlay_link="lo", cgroup="weft-test/n1",
        capacity=Capacity(cpu=2, memory_bytes=4 << 30, disk_bytes=1 << 30),
    )  # fmt: skip
    folder = tmp_path / "image"
    folder.mkdir(exist_ok=True)
    (folder / "disk.raw").write_bytes(bytes(MIB))
    manifest = BundleManifest("disk.raw", "raw", "kernel", "initrd", "quiet", agent=True, min_memory_bytes=128 * MIB)
    image, disks, machines = CachedImage(str(folder), manifest), DirectoryVolumes(host), machines or Machines()

    async def ensure(wanted: AllocatedImage, show: Callable[[int], None]) -> CachedImage:
        return image

    async def announce() -> None:
        told.append(table.booting_bytes)

    images: Any = SimpleNamespace(ensure=ensure, find=lambda sha256: image)
    table, told = AllocationTable(), list[int]()
    heavy, memory = asyncio.Semaphore(1), BootMemory(4 << 30, table, SystemClock(), announce, lambda: None)
    library = TemplateLibrary(
        str(tmp_path),
        machines,  # type: ignore[arg-type]
        disks,
        images,
        SystemClock(),
        heavy,
        memory,
        lambda: None,
    )
    return Node(library, machines, disks, image, table, told)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


def states_of(node: Node) -> dict[str, str]:
    return {one.sha256: one.state for one in node.library.report()}


def orders_of(node: Node) -> dict[str, str]:
    return {one.sha256: one.order for one in node.library.report()}


def replaced(**fields: Any) -> AllocationSpec:
    return msgspec.structs.replace(SPEC, **fields)


def test_a_report_names_the_order_that_it_is_about(tmp_path: Path) -> None:
    async def go() -> None:
        node = make_node(tmp_path)
        keeping = asyncio.create_task(node.library.keep())
        node.library.put_orders([WarmOrder(IMAGE, 256 * MIB, 1, 4)])
        await until(lambda: states_of(node) == {IMAGE.sha256: READY})
        small, large = ({IMAGE.sha256: name_order(size * MIB, 1, 4)} for size in (256, 512))
        assert orders_of(node) == small
        node.library.put_orders([WarmOrder(IMAGE, 512 * MIB, 1, 4)])
        assert (states_of(node), orders_of(node)) == ({IMAGE.sha256: READY}, small)
        await until(lambda: states_of(node) == {IMAGE.sha256: READY} and orders_of(node) == large)
        assert len(node.machines.made) == 2
        node.library.put_orders([])
        await until(lambda: orders_of(node) == {})
        keeping.cancel()

    asyncio.run(go())


def test_an_ordered_image_is_made_once_and_found_by_the_next_agent(tmp_path: Path) -> None:
    async def go() -> None:
        node = make_node(tmp_path)
        await node.library.begin()
        assert node.machines.cleared == ["template."]
        keeping = asyncio.create_task(node.library.keep())
        node.library.put_orders([WarmOrder(IMAGE, 256 * MIB, 1, 4)])
        await until(lambda: states_of(node) == {IMAGE.sha256: READY})
        (plan,) = node.machines.made
        assert (plan.memory_bytes, plan.vcpus, plan.cpu_model) == (256 * MIB, 1, "max")
        assert await node.disks.list() == [], "its disk is kept as a layer"
        template = await node.library.choose(SPEC, node.image, lambda _: None)
        assert template is not None
        assert await node.library.choose(replaced(boot="cold"), node.image, lambda _: None) is None
        root = await node.disks.layers.clone("web", template.snapshot, "root")
        assert root.size_bytes == MIB and [layer.id for layer in await node.disks.layers.list_layers("web")]
        keeping.cancel()
        again = make_node(tmp_path, node.machines)
        keeping = asyncio.create_task(again.library.keep())
        again.library.put_orders([WarmOrder(IMAGE, 256 * MIB, 1, 4)])
        await until(lambda: states_of(again) == {IMAGE.sha256: READY})
        assert len(node.machines.made) == 1
        node.machines.version = "2"  # another QEMU
        keeping.cancel()
        newer = make_node(tmp_path, node.machines)
        keeping = asyncio.create_task(newer.library.keep())
        newer.library.put_orders([WarmOrder(IMAGE, 256 * MIB, 1, 4)])
        await until(lambda: states_of(newer) == {IMAGE.sha256: READY})
        assert len(node.machines.made) == 2
        newer.library.put_orders([])
        await until(lambda: states_of(newer) == {})
        assert await newer.disks.layers.list_kept() == []
        keeping.cancel()

    asyncio.run(go())


def test_one_that_was_cut_off_is_made_again_and_leaves_nothing(tmp_path: Path) -> None:
    async def go() -> None:
        node = make_node(tmp_path)
        node.machines.gate.clear()
        keeping = asyncio.create_task(node.library.keep())
        node.library.put_orders([WarmOrder(IMAGE)])
        await until(lambda: states_of(node) == {IMAGE.sha256: MAKING} and node.machines.made)
        cut_off, again = (
            keeping,
            make_node(tmp_path),
        )  # as if it had been killed: it does nothing any more, and tidies nothing up
        await again.library.begin()
        assert list((tmp_path / "templates").iterdir()) == []
        keeping = asyncio.create_task(again.library.keep())
        again.library.put_orders([WarmOrder(IMAGE)])
        await until(lambda: states_of(again) == {IMAGE.sha256: READY})
        assert await again.disks.list() == []
        keeping.cancel()
        cut_off.cancel()

    asyncio.run(go())


def test_a_vm_that_must_start_warm_waits_for_the_template_or_hears_why_there_is_none(tmp_path: Path) -> None:
    async def go() -> None:
        node, shown = make_node(tmp_path), list[str]()
        keeping = asyncio.create_task(node.library.keep())
        node.machines.problem = "its agent doesn't answer"
        with pytest.raises(DriverFailed, match="doesn't answer"):
            await node.library.choose(replaced(boot="warm"), node.image, shown.append)
        assert shown and states_of(node)[IMAGE.sha256] == "its agent doesn't answer"
        assert await node.library.choose(SPEC, node.image, shown.append) is None, "auto boots"
        node.machines.problem = ""
        template = await node.library.choose(replaced(boot="warm"), node.image, shown.append)
        assert template is not None and template.memory_bytes == 128 * MIB, "what the image needs"
        keeping.cancel()

    asyncio.run(go())


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"machine": "microvm"}, "machine"),
        ({"iso": IMAGE}, "iso"),
        ({"screen": "yes"}, "screen"),
        ({"firmware": "uefi"}, "firmware"),
        ({"pool": "big"}, "pool"),
        ({"nics": []}, "networks"),
        ({"volumes": [AllocatedVolume(name=f"v{n}", uid=f"v{n}", size=1) for n in range(5)]}, "volumes"),
        ({"user_data": "#cloud-config\nruncmd: [ls]\n"}, "user_data"),
        ({"users": ["alice"]}, "users"),  # the image has no cloud-init
        ({"resources": Resources(cpu=1.0, memory=64 * MIB)}, "boot"),
        ({"resources": Resources(cpu=8.0, memory=512 * MIB)}, "boot"),
    ],
)
def test_a_vm_that_cannot_start_warm_says_which_field_stands_in_the_way(
    tmp_path: Path, fields: dict[str, Any], field: str
) -> None:
    async def go() -> None:
        node = make_node(tmp_path)
        keeping = asyncio.create_task(node.library.keep())
        with pytest.raises(InvalidInput) as refused:
            await node.library.choose(replaced(boot="warm", **fields), node.image, lambda _: None)
        assert refused.value.field == f"spec.{field}" and refused.value.hint and refused.value.token == "notWarm"
        assert await node.library.choose(replaced(**fields), node.image, lambda _: None) is None
        keeping.cancel()

    asyncio.run(go())


def other(number: int) -> AllocatedImage:
    return msgspec.structs.replace(IMAGE, name=f"i{number}", sha256=f"{number:02d}" * 32)


def test_a_machine_that_a_vm_asked_for_first_goes_when_its_image_is_warmed_no_more(tmp_path: Path) -> None:
    async def go() -> None:
        node = make_node(tmp_path)
        keeping = asyncio.create_task(node.library.keep())
        assert await node.library.choose(replaced(boot="warm"), node.image, lambda _: None)
        node.library.put_orders([WarmOrder(IMAGE)])
        await until(lambda: states_of(node) == {IMAGE.sha256: READY})
        node.library.put_orders([])
        await until(lambda: states_of(node) == {})
        assert await node.disks.layers.list_kept() == []
        keeping.cancel()

    asyncio.run(go())


def test_a_node_keeps_the_newest_machines_and_says_which_images_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "MOST_WARM_IMAGES", 2)

    async def go() -> None:
        node = make_node(tmp_path)
        keeping = asyncio.create_task(node.library.keep())
        for number in range(3):
            spec = replaced(boot="warm", image=other(number))
            async with asyncio.timeout(20):
                assert await node.library.choose(spec, node.image, lambda _: None), "the newest is always made"
        assert await node.library.choose(replaced(image=other(0)), node.image, lambda _: None) is None, "boots"
        node.library.put_orders([WarmOrder(other(number)) for number in (3, 4)])
        ordered = {other(number).sha256: READY for number in (3, 4)}  # they go before what VMs asked for
        await until(lambda: states_of(node) == ordered and set(node.library.explain().values()) == {"ordered"})
        with pytest.raises(DriverFailed, match="limit of 2 booted machines per node"):
            await node.library.choose(replaced(boot="warm"), node.image, lambda _: None)
        node.library.put_orders([WarmOrder(other(number)) for number in (1, 3, 4)])
        await until(lambda: "ordered 2 already" in states_of(node).get(other(1).sha256, ""))
        assert states_of(node)[other(3).sha256] == READY, "nor does a later order displace one"
        keeping.cancel()

    asyncio.run(go())


def test_a_vm_of_another_cpu_model_changes_the_machine_only_if_it_must_start_warm(tmp_path: Path) -> None:
    async def go() -> None:
        node = make_node(tmp_path)
        keeping = asyncio.create_task(node.library.keep())
        assert await node.library.choose(replaced(boot="warm"), node.image, lambda _: None) is not None
        assert await node.library.choose(replaced(cpu_model="host"), node.image, lambda _: None) is None
        assert len(node.machines.made) == 1
        other = await node.library.choose(replaced(boot="warm", cpu_model="host"), node.image, lambda _: None)
        assert other is not None and other.cpu_model == "host"
        kept = await node.disks.layers.list_kept()
        assert len(kept) == 1 and len(list((tmp_path / "templates").iterdir())) == 1, "the former one goes"
        keeping.cancel()

    asyncio.run(go())


def start(number: int, **fields: Any) -> AllocationSpec:
    """Of the VM of that number."""
    return replaced(workload=Ref("vm", f"v{number}", f"u{number}", "default"), **fields)


def test_an_image_that_is_started_often_is_kept_for_its_project_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(often, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(library, "LEAST_FREE_SHARE", 0.0)
    monkeypatch.setattr(library, "RETRY_SECONDS", 0.05)

    async def go() -> None:
        node = make_node(tmp_path)
        keeping = asyncio.create_task(node.library.keep())
        for spec in (start(1), start(2), start(2)):
            assert await node.library.choose(spec, node.image, lambda _: None) is None
        await asyncio.sleep(0.3)
        assert node.machines.made == [], "two VMs are not often"
        small = Resources(cpu=1.0, memory=256 * MIB)
        await node.library.choose(start(3, resources=small), node.image, lambda _: None)
        await until(lambda: node.library.explain() == {IMAGE.uid: "3 VMs started here within a day"})
        assert [plan.memory_bytes for plan in node.machines.made] == [256 * MIB], "the smallest starts from it too"
        assert await node.library.choose(start(4), node.image, lambda _: None) is not None
        theirs = replaced(workload=Ref("vm", "w", "w", "other"))
        assert await node.library.choose(theirs, node.image, lambda _: None) is None, "it is another project's"
        saved = tmp_path / "vm-starts.json"  # it is written after the machine was made
        await until(lambda: saved.exists() and len(msgspec.json.decode(saved.read_bytes())) >= 4)
        keeping.cancel()
        again = make_node(tmp_path, node.machines)
        await again.library.begin()
        keeping = asyncio.create_task(again.library.keep())
        await until(lambda: states_of(again) == {IMAGE.sha256: READY})
        assert len(node.machines.made) == 1
        again.library.put_orders([WarmOrder(IMAGE, wanted=False, often=False)])
        await until(lambda: states_of(again) == {} and again.library.explain() == {})
        assert await again.disks.layers.list_kept() == []
        keeping.cancel()

    asyncio.run(go())


def test_what_nobody_asked_for_waits_while_memory_is_short_and_gives_way_to_what_is_ordered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(often, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(library, "LEAST_FREE_SHARE", 0.0)
    monkeypatch.setattr(library, "RETRY_SECONDS", 0.05)

    async def go() -> None:
        node = make_node(tmp_path)
        keeping = asyncio.create_task(node.library.keep())
        node.table.booting_bytes = 4 << 30
        for number in range(3):
            await node.library.choose(start(number), node.image, lambda _: None)
        await asyncio.sleep(0.3)
        assert node.machines.made == []
        node.table.booting_bytes = 0
        node.machines.gate.clear()
        await until(lambda: node.machines.made)
        node.library.put_orders([WarmOrder(other(1))])
        await until(lambda: node.machines.made[-1].name == "template.i1")
        node.machines.gate.set()
        await until(lambda: states_of(node) == {IMAGE.sha256: READY, other(1).sha256: READY})
        keeping.cancel()

    asyncio.run(go())


def test_the_server_hears_of_a_boot_before_it_begins_and_vms_that_need_its_memory_end_it(tmp_path: Path) -> None:
    async def go() -> None:
        node = make_node(tmp_path)
        node.machines.gate.clear()
        keeping = asyncio.create_task(node.library.keep())
        node.library.put_orders([WarmOrder(IMAGE, 256 * MIB)])
        await until(lambda: node.machines.made)
        assert node.told == [256 * MIB] and node.table.booting_bytes == 256 * MIB
        local: Any = SimpleNamespace(spec=replaced(resources=Resources(cpu=1.0, memory=4 << 30)))
        node.table.states["a"] = SimpleNamespace(local=local, released=False)  # type: ignore[assignment]
        await until(lambda: "aren't free" in states_of(node)[IMAGE.sha256])
        assert node.table.booting_bytes == 0 and await node.disks.list() == []
        assert [path.name for path in (tmp_path / "templates").iterdir()] == []
        keeping.cancel()

    asyncio.run(go())


def test_a_vm_that_waits_for_the_boot_lends_its_own_memory(tmp_path: Path) -> None:
    async def go() -> None:
        node = make_node(tmp_path)
        local: Any = SimpleNamespace(spec=replaced(resources=Resources(cpu=1.0, memory=4 << 30)))
        node.table.states["a"] = SimpleNamespace(local=local, released=False)  # type: ignore[assignment]
        keeping = asyncio.create_task(node.library.keep())
        assert await node.library.choose(replaced(boot="warm"), node.image, lambda _: None) is not None
        assert node.told == []
        keeping.cancel()

    asyncio.run(go())


def test_an_agent_that_died_while_it_kept_the_disk_leaves_no_layer(tmp_path: Path) -> None:
    async def go() -> None:
        node = make_node(tmp_path)
        keeping = asyncio.create_task(node.library.keep())
        node.library.put_orders([WarmOrder(IMAGE)])
        await until(lambda: states_of(node) == {IMAGE.sha256: READY})
        keeping.cancel()
        (folder,) = [path for path in (tmp_path / "templates").iterdir() if path.is_dir()]
        (folder / "template.json").unlink()  # as if it had died before the last step
        folder.rename(folder.with_name(f".{folder.name}.1"))
        again = make_node(tmp_path)
        await again.library.begin()
        assert await again.disks.layers.list_kept() == [] and await again.disks.list() == []
        assert list((tmp_path / "templates").iterdir()) == []

    asyncio.run(go())
