"""A growth that nobody could give is refused before it is stored; one that hasn't happened can be taken back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab, make_image, make_vm

from weft.kinds.image import ImageStatus
from weft.kinds.node import NodeReport, NodeSpec
from weft.kinds.pool import PoolMarks, PoolStatus
from weft.kinds.vm import VmSpec
from weft.kinds.volume import VolumeSpec, VolumeStatus
from weft.objects.envelope import Envelope
from weft.objects.errors import InvalidInput, Unplaceable, WeftError

GIB = 2**30


def raw(part: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(part))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    """A node of 8 cores, 16 GiB memory and 100 GiB disk, 60 of them promised; a VM and a volume on it, each of 1 GiB."""
    lab = ApiLab(tmp_path)
    lab.client.create(make_image())
    lab.client.create(make_vm("web"))
    lab.client.create({"kind": "volume", "name": "data", "spec": {"size": GIB}})
    image, vm, volume = (
        lab.stored(f"/{key}") for key in ("image/default/tiny", "vm/default/web", "volume/default/data")
    )
    assert image is not None and vm is not None and volume is not None
    image.status = raw(ImageStatus(phase="Available", virtual_size=GIB))
    vm.status = raw({"phase": "Running", "node": "n1", "resources": {"cpu": 1.0, "memory": 256 << 20, "disk": GIB}})
    volume.status = raw(VolumeStatus(phase="Attached", node="n1", node_uid="n", pool="local", pool_id="p1", size=GIB))
    node = Envelope(kind="node", name="n1", uid="n", spec=raw(NodeSpec()))
    node.report = raw(NodeReport(cpu=8.0, memory=16 * GIB, disk=100 * GIB))
    pool = Envelope(kind="pool", name="n1-local", uid="p", marks=raw(PoolMarks(id="p1", pool="local")))
    pool.status = raw(PoolStatus(bound=100 * GIB, given=60 * GIB, nodes=1, node_names=["n1"]))
    lab.put(image, vm, volume, node, pool)
    yield lab
    lab.close()


def spec_of(lab: ApiLab, kind: str, name: str) -> dict[str, object]:
    return dict(lab.client.get(kind, name)["spec"])


@pytest.mark.parametrize(
    ("field", "value", "most"),
    [("memory", 500 * GIB, "16.0 GiB"), ("disk", 900 * 1024 * GIB, "100.0 GiB"), ("cpu", 64.0, "8")],
)
def test_a_size_that_no_node_has_is_refused_and_nothing_is_stored(
    lab: ApiLab, field: str, value: float, most: str
) -> None:
    before = spec_of(lab, "vm", "web")
    with pytest.raises(Unplaceable, match=f"spec.{field}: .* is more than any node has: {most} at most"):
        lab.client.patch("vm", "web", {"spec": {field: value}})
    with pytest.raises(Unplaceable):
        lab.client.put(make_vm("web", **{field: value}))
    assert spec_of(lab, "vm", "web") == before
    assert lab.client.create(make_vm("new", **{field: value}))["spec"][field] == value, "a new one may wait for a node"


def test_a_deployment_is_not_changed_to_a_size_that_no_node_has(lab: ApiLab) -> None:
    spec = {"workload": "vm", "template": {"image": "tiny", "memory": GIB}, "replicas": 1}
    lab.client.create({"kind": "deployment", "name": "shop", "spec": spec})
    before = spec_of(lab, "deployment", "shop")
    with pytest.raises(
        Unplaceable, match=r"spec\.template\.memory: 500\.0 GiB is more than any node has: 16\.0 GiB at most"
    ):
        lab.client.patch("deployment", "shop", {"spec": {"template": {"image": "tiny", "memory": 500 * GIB}}})
    assert spec_of(lab, "deployment", "shop") == before
    lab.client.patch("deployment", "shop", {"spec": {"template": {"image": "tiny", "memory": 2 * GIB}}})


def test_a_volume_that_has_its_place_grows_by_no_more_than_its_pool_may_promise(lab: ApiLab) -> None:
    with pytest.raises(
        Unplaceable, match=r"may promise 100\.0 GiB and has promised 60\.0 GiB: 41\.0 GiB more"
    ) as refused:
        lab.client.put({"kind": "volume", "name": "data", "spec": {"size": 42 * GIB}})
    assert refused.value.hint is not None and refused.value.hint.startswith("give at most 41.0 GiB")
    assert spec_of(lab, "volume", "data")["size"] == GIB
    grown = lab.client.patch("volume", "data", {"spec": {"size": 41 * GIB}})
    assert grown["spec"]["size"] == 41 * GIB
    assert lab.client.patch("volume", "data", {"spec": {"size": GIB}})["spec"]["size"] == GIB, "it hasn't grown yet"


def test_a_volume_without_a_place_grows_no_further_than_any_pool_and_may_shrink_again(lab: ApiLab) -> None:
    lab.client.create({"kind": "volume", "name": "spare", "spec": {"size": GIB}})
    with pytest.raises(Unplaceable, match=r"more than any storage pool local may promise: 100\.0 GiB at most"):
        lab.client.patch("volume", "spare", {"spec": {"size": 900 * 1024 * GIB}})
    lab.client.patch("volume", "spare", {"spec": {"size": 90 * GIB}})
    assert lab.client.patch("volume", "spare", {"spec": {"size": GIB}})["spec"]["size"] == GIB


def test_a_root_disk_is_no_smaller_than_what_its_image_takes(lab: ApiLab) -> None:
    with pytest.raises(InvalidInput, match=r"spec.disk: 10 MiB is less than image tiny takes: 1\.0 GiB") as refused:
        lab.client.patch("vm", "web", {"spec": {"disk": 10 << 20}})
    assert refused.value.token == "tooLittleDisk"
    assert spec_of(lab, "vm", "web")["disk"] == 0


def test_a_clone_has_the_disk_that_is_there_and_a_quota_counts_the_one_that_was_requested(lab: ApiLab) -> None:
    vm, volume = lab.stored("/vm/default/web"), lab.stored("/volume/default/data")
    assert vm is not None and volume is not None
    vm.spec = raw(VmSpec(image="tiny", networks=[], disk=90 * GIB, volumes=["data"]))  # as an older weft stored it
    volume.spec = raw(VolumeSpec(size=90 * GIB))
    lab.put(vm, volume)
    lab.client.put({"kind": "quota", "name": "project", "spec": {"disk": 200 * GIB}})
    assert lab.client.get("quota", "project")["spec"]["disk"] == 200 * GIB
    with pytest.raises(WeftError, match=r"disk: 180\.0 GiB of 200\.0 GiB used, 30\.0 GiB more requested"):
        lab.client.create({"kind": "volume", "name": "more", "spec": {"size": 30 * GIB}})
    twin = lab.client.verb("vm", "web", "clone", {"new_name": "twin"})
    assert twin["spec"]["disk"] == GIB
    assert lab.client.get("volume", "twin-data")["spec"]["size"] == GIB
    assert lab.client.patch("vm", "web", {"spec": {"disk": GIB}})["spec"]["disk"] == GIB
