"""What containerd is told of a container that gets a machine of its own there, what it says back, and why a node has none: all that
can be seen without Kata. A task on real containerd: tests/host/test_kata.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from weft.contracts.clock import SystemClock
from weft.contracts.driver.container import ContainerMount, ContainerNic, ContainerPlan, ContainerProcess
from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.runtime import TakesNamespace
from weft.drivers.linux.seccomp import Profile
from weft.drivers.runtime.oci.containerd.messages import METRICS_V1, METRICS_V2, messages
from weft.drivers.runtime.oci.kata import probe
from weft.drivers.runtime.oci.kata.driver import KataDriver
from weft.drivers.runtime.oci.kata.metrics import read_metrics
from weft.drivers.runtime.oci.kata.probe import describe_failure
from weft.drivers.runtime.oci.kata.translate import check_plan, name_class, name_shim, plan_root, translate_isolated
from weft.drivers.runtime.oci.kata.volumes import volumes_folder
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.translate import OciHostFacts
from weft.objects.errors import DriverFailed, InvalidInput

PATHS = ContainerPaths(run=Path("/run/n1/kata/containers/c1"), state=Path("/var/n1/kata/containers/c1"))
PROFILE = msgspec.convert({"defaultAction": "SCMP_ACT_ERRNO", "archMap": [], "syscalls": []}, Profile)
FACTS = OciHostFacts("x86_64", PROFILE, swap_limits=False, open_files=20_000, cgroup_version=1)
PLAN = ContainerPlan(
    id="c1",
    uid="u1",
    name="web",
    incarnation=1,
    layers=["/l2", "/l1"],
    process=ContainerProcess(["serve"]),
    cpu=0.5,
    memory_bytes=128 << 20,
    mounts=[ContainerMount("/v/data", "/data", file_system="ext4"), ContainerMount("", "/scratch")],
    netns="/run/netns/x",
)


def test_a_runtime_has_a_class_and_a_shim_by_containerds_rule() -> None:
    assert [name_class(word) for word in ("kata", "kata-clh")] == ["io.containerd.kata.v2", "io.containerd.kata-clh.v2"]
    assert name_shim("io.containerd.kata-clh.v2") == "containerd-shim-kata-clh-v2"


def test_a_machine_gets_folders_a_namespace_and_no_users_of_the_nodes() -> None:
    told = translate_isolated(PLAN, PATHS, FACTS, volumes_folder(PATHS), cgroup="weft/n1/c1")
    assert told["root"] == {"path": "rootfs", "readonly": False}
    assert {"type": "network", "path": "/run/netns/x"} in told["linux"]["namespaces"]
    assert {"type": "user"} not in told["linux"]["namespaces"] and "uidMappings" not in told["linux"]
    sources = {mount["destination"]: (mount["type"], mount["source"]) for mount in told["mounts"]}
    assert sources["/data"] == ("bind", "/run/n1/kata/volumes/c1/0") and sources["/scratch"][0] == "tmpfs"
    assert told["linux"]["resources"]["memory"] == {"limit": 128 << 20}


def test_what_lies_in_a_volume_is_never_below_what_is_cleared_away() -> None:
    assert not volumes_folder(PATHS).is_relative_to(PATHS.run) and not volumes_folder(PATHS).is_relative_to(PATHS.state)


def test_an_image_with_many_layers_fits_into_one_page() -> None:
    lower, upper, work = plan_root(2, PATHS, PATHS.upper.parent)
    assert lower == "lowerdir=/run/n1/kata/containers/c1/m/0:/run/n1/kata/containers/c1/m/1"
    assert (upper, work) == (f"upperdir={PATHS.upper}", f"workdir={PATHS.upper.parent}/work")


@pytest.mark.parametrize(
    "more", [{"devices": ["/dev/null"]}, {"terminal": True}, {"nics": [ContainerNic("t", "m", 1, "a", 24)]}]
)
def test_what_cant_be_had_is_refused_by_its_name(more: dict[str, Any]) -> None:
    check_plan(PLAN)
    with pytest.raises(InvalidInput, match=next(iter(more))) as refused:
        check_plan(msgspec.structs.replace(PLAN, **more))
    assert refused.value.field == next(iter(more))


def test_what_it_uses_is_read_in_the_words_of_either_version() -> None:
    entries = [messages["DiskEntryV1"](op=op, value=value) for op, value in (("Read", 5), ("read", 1), ("Write", 7))]
    one = messages["MetricsV1"](
        cpu=messages["CpuV1"](usage=messages["CpuUsage"](total=1_500_000_000)),
        memory=messages["MemoryV1"](usage=messages["MemoryEntry"](usage=4096)),
        blkio=messages["DisksV1"](io_service_bytes_recursive=entries),
    )
    two = messages["MetricsV2"](
        cpu=messages["CpuV2"](usage_usec=1_500_000),
        memory=messages["MemoryV2"](usage=4096),
        io=messages["DisksV2"](usage=[messages["DiskEntryV2"](rbytes=6, wbytes=7)]),
    )
    for kind, told in ((METRICS_V1, one), (METRICS_V2, two)):
        data = messages["Any"](type_url=kind, value=told.SerializeToString())
        assert msgspec.structs.astuple(read_metrics(data, disks=True)) == (1.5, 4096, 6, 7)
        assert read_metrics(data, disks=False).written_bytes == 0
    assert read_metrics(messages["Any"](type_url="something.else"), disks=True).resident_bytes == 0


@pytest.fixture
def host(tmp_path: Path) -> Host:
    places = {"state_dir": str(tmp_path / "state"), "run_dir": str(tmp_path / "run")}
    capacity = Capacity(cpu=1, memory_bytes=1 << 30, disk_bytes=1 << 30)
    return Host(
        "n1", "u", **places, link_prefix="w", underlay_address="::1", underlay_link="lo", cgroup="w", capacity=capacity
    )


async def test_a_node_without_kata_says_so_and_starts_nothing(host: Host) -> None:
    driver = KataDriver(host, SystemClock(), "/run/containerd/containerd.sock", "io.containerd.kata-none.v2")
    told = await driver.probe()
    [problem] = told.problems
    assert (told.driver, told.usable, told.isolations) == ("kata", False, ("vm",))
    assert "containerd-shim-kata-none-v2 isn't in the PATH" in problem and "install Kata Containers" in problem
    with pytest.raises(DriverFailed, match="isn't in the PATH"):
        await driver.start(PLAN)
    assert not Path(host.state_dir).exists()
    await driver.close()


async def test_a_containerd_that_isnt_there_is_said_so(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.shutil, "which", lambda name: f"/usr/bin/{name}")
    driver = KataDriver(host, SystemClock(), f"{host.run_dir}/none.sock", "io.containerd.kata.v2")
    told = await driver.probe()
    assert not told.usable and "none.sock" in told.problems[0] and "start it" in told.problems[0]
    await driver.close()


def test_why_it_failed_is_told_in_its_own_words_and_ours() -> None:
    words = describe_failure("io.containerd.kata.v2", "1.7", "no kernel module", kvm=False)
    assert "this node has no /dev/kvm" in words and words.endswith("no kernel module")
    assert "/dev/kvm" not in describe_failure("io.containerd.kata.v2", "1.7", "no kernel module", kvm=True)


def test_its_nics_lie_in_a_namespace(host: Host) -> None:
    assert isinstance(KataDriver(host, None, "/s", "io.containerd.kata.v2"), TakesNamespace)
