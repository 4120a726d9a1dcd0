"""The verbs of volumes and containers about snapshots at the API servers: what they make in one commit, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.api.test_api_nodes import wait_until
from tests.scenario.api.test_api_snapshots import act, tell
from tests.scenario.api_lab import ApiLab, make_image

from weft.kinds.orders import VOLUME as VOLUME_ORDERS
from weft.kinds.parts.snapshot.volume_work import OrderedVolume, VolumeOrder
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.snapshot import SnapshotDisk, SnapshotStatus
from weft.kinds.volume import VolumeStatus
from weft.objects.errors import IllegalTransition, InUse, InvalidInput, NotFound, WeftError
from weft.objects.identity import Ref

SIZE = 64 << 20


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    lab.client.create(make_image())
    for name in ("data", "logs", "fresh"):
        lab.client.create({"kind": "volume", "name": name, "spec": {"size": SIZE}})
    for name in ("data", "logs"):
        tell(lab, f"/volume/default/{name}", VolumeStatus(node="n1", node_uid="u1"))
    spec = {"image": "registry.example.org/web:1", "mounts": ["data:/srv", "logs:/log"]}
    lab.client.create({"kind": "container", "name": "box", "spec": spec})
    tell(lab, "/container/default/box", WorkloadStatus(phase="Running", node="n1"))
    yield lab
    lab.close()


def make_ready(lab: ApiLab, name: str, of: str = "volume/data", **more: Any) -> None:
    lab.client.create({"kind": "snapshot", "name": name, "spec": {"of": of}})
    disks = {
        volume: SnapshotDisk(key=lab.client.get("volume", volume)["uid"], size=SIZE, pool="local")
        for volume in (("data",) if of == "volume/data" else ("data", "logs"))
    }
    uid = lab.client.get(*of.split("/"))["uid"]
    status = SnapshotStatus(phase="Ready", workload_uid=uid, disks=disks, size=1 << 20, node="n1", node_uid="u1")
    tell(lab, f"/snapshot/default/{name}", msgspec.structs.replace(status, **more))


def attach(lab: ApiLab, kind: str, name: str) -> None:
    tell(
        lab,
        "/volume/default/data",
        VolumeStatus(phase="Attached", node="n1", node_uid="u1", attached_to=Ref(kind, name, "u", "default")),
    )


def test_the_verbs_make_snapshots_of_a_volume_and_of_a_container(lab: ApiLab) -> None:
    for what, name in (("volume/data", "one"), ("container/box", "two")):
        made = act(lab, what, "snapshot", name=name)
        assert (made["kind"], made["name"]) == ("snapshot", name)
        assert (made["spec"]["of"], made["marks"]["image"], made["spec"]["memory"]) == (what, "", False)
    assert act(lab, "volume/data", "snapshot")["name"].startswith("data-")
    attach(lab, "container", "box")
    act(lab, "volume/data", "snapshot", name="three")  # a container's is frozen and copied


def test_a_snapshot_that_can_not_be_taken_is_refused_with_what_to_do(lab: ApiLab) -> None:
    lab.client.create({"kind": "container", "name": "bare", "spec": {"image": "registry.example.org/web:1"}})
    for what, token, hint in (
        ("volume/fresh", "noData", "mount it in a container first"),
        ("container/bare", "noVolumes", "--mount VOLUME:PATH"),
    ):
        with pytest.raises(IllegalTransition) as refused:
            act(lab, what, "snapshot")
        assert refused.value.token == token and hint in (refused.value.hint or "")
    lab.client.create({"kind": "volume", "name": "safe", "spec": {"size": SIZE, "encrypted": True}})
    with pytest.raises(IllegalTransition, match="is encrypted"):
        act(lab, "volume/safe", "snapshot")
    with pytest.raises(InvalidInput, match="snapshots of encrypted volumes") as regular:
        lab.client.patch("volume", "safe", {"spec": {"snapshots": {"every": 3600}}})
    assert regular.value.field == "spec.snapshots"
    attach(lab, "vm", "web")
    with pytest.raises(InUse, match="attached to vm/web") as refused:
        act(lab, "volume/data", "snapshot")
    for command in ("weft vm snapshot web", "weft volume detach data web"):
        assert command in (refused.value.hint or "")
    with pytest.raises(InvalidInput) as wrong:
        lab.client.create({"kind": "snapshot", "name": "a", "spec": {"of": "volume/data", "memory": True}})
    assert "spec.memory" in str(wrong.value.__dict__)
    with pytest.raises(NotFound):
        lab.client.create({"kind": "snapshot", "name": "a", "spec": {"of": "volume/nope"}})


def test_a_volume_goes_back_only_while_nothing_uses_it_and_once_at_a_time(lab: ApiLab) -> None:
    make_ready(lab, "one")
    make_ready(lab, "both", "container/box")
    attach(lab, "vm", "web")
    with pytest.raises(InUse, match="in use by vm/web") as refused:
        act(lab, "volume/data", "restore", snapshot="one")
    assert "weft volume detach data web" in (refused.value.hint or "")
    attach(lab, "container", "box")
    with pytest.raises(InUse, match="in use by container/box") as refused:
        act(lab, "volume/data", "restore", snapshot="one")
    assert "weft container delete box" in (refused.value.hint or "") and "--new-name" in (refused.value.hint or "")
    tell(lab, "/volume/default/data", VolumeStatus(node="n1", node_uid="u1"))
    with pytest.raises(IllegalTransition, match="snapshot/one is of volume/data"):
        act(lab, "volume/logs", "restore", snapshot="one")
    with pytest.raises(NotFound, match='"nope"'):
        act(lab, "volume/data", "restore", snapshot="nope")
    changed = act(lab, "volume/data", "restore", snapshot="both", keep=False)
    assert changed["actions"]["restore"] == {"snapshot": "both", "generation": changed["generation"], "keep": False}
    for verb, given in (("restore", {"snapshot": "one"}), ("snapshot", {})):
        with pytest.raises(IllegalTransition, match="is being restored from snapshot/both"):
            act(lab, "volume/data", verb, **given)
    tell(lab, "/volume/default/data", VolumeStatus(node="n1", node_uid="u1", restored=changed["generation"]))
    tell(lab, "/volume/default/logs", VolumeStatus(node="n2", node_uid="u2"))
    act(lab, "volume/data", "restore", snapshot="one")
    with pytest.raises(IllegalTransition, match="on n1, and volume/logs on n2") as refused:
        act(lab, "volume/logs", "restore", snapshot="both")
    assert "--new-name" in (refused.value.hint or "")
    gone = {"phase": "Unavailable", "reason": "nodeDeleted", "message": "its data is on node n1, which was deleted"}
    tell(lab, "/volume/default/logs", VolumeStatus(node="n1", node_uid="u1", **gone))
    for verb, given in (("restore", {"snapshot": "both"}), ("snapshot", {})):
        with pytest.raises(IllegalTransition, match="volume/logs is Unavailable: its data is on node n1, which was"):
            act(lab, "volume/logs", verb, **given)


def test_a_snapshot_makes_a_volume_also_when_the_first_one_is_gone(lab: ApiLab) -> None:
    make_ready(lab, "one")
    make_ready(lab, "both", "container/box")
    made = act(lab, "snapshot/one", "restore", new_name="copy")
    assert (made["kind"], made["name"], made["spec"]["size"]) == ("volume", "copy", SIZE)
    assert made["marks"]["origin"] == {"snapshot": "one", "disk": "data", "alone": True}
    with pytest.raises(InvalidInput, match="has data, logs; restore them one by one") as wrong:
        act(lab, "snapshot/both", "restore", new_name="more")
    assert wrong.value.field == "input.disk" or "disk" in str(wrong.value.__dict__)
    assert act(lab, "snapshot/both", "restore", new_name="more", disk="logs")["marks"]["origin"]["disk"] == "logs"
    with pytest.raises(InvalidInput, match="none named 'nope'"):
        act(lab, "snapshot/both", "restore", new_name="less", disk="nope")
    with pytest.raises(InvalidInput, match="memory"):
        act(lab, "snapshot/one", "restore", new_name="less", memory=True)
    with pytest.raises(IllegalTransition, match="is being made from a snapshot"):
        act(lab, "volume/copy", "snapshot")
    with pytest.raises(WeftError, match="exists already") as taken:
        act(lab, "snapshot/one", "restore", new_name="copy")
    assert taken.value.hint == "use another name"


def test_a_node_hears_of_the_orders_for_it_until_they_are_over(lab: ApiLab) -> None:
    order = VolumeOrder(
        uid="u",
        act="replace",
        node_uid="u1",
        generation=3,
        snapshot="s",
        volumes=[OrderedVolume(uid="u", name="data")],
        disk="u",
    )
    take = msgspec.structs.replace(order, act="take", generation=0)
    make_ready(lab, "one", volume_order=take, phase="Taking")
    tell(lab, "/volume/default/data", VolumeStatus(node="n1", node_uid="u1", order=order))
    wait_until(lambda: len(lab.api.orders.find_all(VOLUME_ORDERS, "u1")) == 2)
    assert {one.act for one in lab.api.orders.find_all(VOLUME_ORDERS, "u1")} == {"replace", "take"}
    assert lab.api.orders.find_all(VOLUME_ORDERS, "u2") == []
    tell(lab, "/volume/default/data", VolumeStatus(node="n1", node_uid="u1", restored=3))
    wait_until(lambda: [one.act for one in lab.api.orders.find_all(VOLUME_ORDERS, "u1")] == ["take"])
