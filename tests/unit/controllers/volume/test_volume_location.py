"""Where a volume's data is looked for, when nodes say that it is elsewhere: the store may be older than its last move."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import pytest

from weft.contracts.store import Put
from weft.controllers.volume.controller import Volumes, is_astray, plan_volume
from weft.informer.commit import Commit
from weft.informer.view import Changed, Item, View, make_view
from weft.kinds.allocation import AllocatedImage, AllocatedVolume, AllocationSpec, Resources
from weft.kinds.node import NodeReport, NodeStatus
from weft.kinds.parts.node.orphan import OrphanCopy
from weft.kinds.snapshot import SnapshotSpec
from weft.kinds.volume import VolumeSpec, VolumeStatus
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.identity import Ref
from weft.scheduler.workload.request import find_homes

Role = Literal["active", "target"]
DATA = "volume-uid"


def raw(part: msgspec.Struct) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(part))


def make(has: str, *, home: str | None = "n1", phase: str = "Ready", deleting: bool = False) -> tuple[View, Item]:
    """Nodes n1 to n3, of which those of ``has`` say that they have the data, and the volume; ``phase`` is n1's."""
    view = make_view()
    for name in ("n1", "n2", "n3"):
        report = NodeReport(volumes=[DATA] if name in has.split() else [])
        status = NodeStatus(phase=phase if name == "n1" else "Ready")  # type: ignore[arg-type]
        put(view, Envelope(kind="node", name=name, uid=f"u-{name}", status=raw(status), report=raw(report)))
    told = VolumeStatus(node=home, node_uid=home and f"u-{home}", pool="local" if home else "")
    envelope = Envelope(kind="volume", name="data", uid=DATA, project="default", finalizers=["volume"])
    envelope.spec, envelope.status = raw(VolumeSpec(size=1 << 20)), raw(told)
    envelope.deleting_since = 1.0 if deleting else None
    return view, put(view, envelope)


def put(view: View, envelope: Envelope) -> Item:
    item = Item(envelope)
    view.put_item(item.key, item)
    return item


def place(view: View, node: str, role: Role = "active") -> None:
    spec = AllocationSpec(
        node=node,
        node_uid=f"u-{node}",
        workload=Ref("vm", "web", "vm-1", "default"),
        workload_generation=1,
        incarnation=1,
        role=role,
        resources=Resources(cpu=1, memory=1 << 28),
        image=AllocatedImage(name="tiny", uid="i", sha256="0" * 64, size=1, url="file:///tiny"),
        volumes=[AllocatedVolume(name="data", uid=DATA, size=1 << 20, pool="local")],
    )
    put(view, Envelope(kind="allocation", name=f"u-{node}.a", uid="a", spec=raw(spec)))


def told(commit: Commit | None, volume: Item) -> VolumeStatus:
    if commit is None:
        return volume.status(VolumeStatus)
    [write] = commit.writes
    assert isinstance(write, Put)
    return decode_part(decode_envelope(write.value).status, VolumeStatus)


@pytest.mark.parametrize(
    ("has", "more", "homes", "home"),
    [
        ("n1", {}, "n1", "n1"),
        ("", {}, "n1", "n1"),  # nothing was written there yet
        ("n2", {}, "n2", "n2"),
        ("n1 n2", {}, "n1", "n1"),
        ("n2 n3", {}, "n2 n3", "n1"),  # which of them is the newer only people can know
        ("n2", {"phase": "NotReady"}, "n1", "n1"),  # it may have it, and can't say
        ("n2 n3", {"deleting": True}, "n2 n3", "n2"),  # one after the other goes
        ("n2", {"home": "n9"}, "n9", "n9"),  # what lies on a node that was given up is waited for
        ("n2", {"home": None}, "n2", "n2"),
    ],
)
def test_a_home_is_where_the_data_is_and_none_is_given_an_empty_disk(
    has: str, more: dict[str, Any], homes: str, home: str
) -> None:
    view, volume = make(has, **more)
    assert find_homes(view, volume) == {f"u-{name}" for name in homes.split()}
    assert told(plan_volume(view, volume, silent=False, now=1.0), volume).node == home


def test_nothing_is_believed_before_all_nodes_have_spoken_nor_while_somebody_has_it() -> None:
    view, volume = make("n2")
    assert is_astray(view, volume)
    assert told(plan_volume(view, volume, silent=True, now=1.0), volume).node == "n1"
    place(view, "n1")
    assert told(plan_volume(view, volume, silent=False, now=1.0), volume).node == "n1"


def test_a_copy_that_nothing_explains_is_told_once_and_forgotten_when_it_is_gone() -> None:
    view, volume = make("n1 n3")
    commit = plan_volume(view, volume, silent=False, now=1.0)
    assert commit is not None and [event.reason for event in commit.events] == ["CopyFound"]
    assert told(commit, volume).copies == ["n3"]
    place(view, "n3", "target")  # a guest that comes brings it along
    assert told(plan_volume(view, volume, silent=False, now=1.0), volume).copies == []


@pytest.mark.parametrize("home", ["n1", None])
def test_data_on_two_nodes_that_are_both_no_home_is_told_of_each(home: str | None) -> None:
    view, volume = make("n2 n3", home=home)
    commit = plan_volume(view, volume, silent=False, now=1.0)
    assert commit is not None and told(commit, volume).copies == ["n2", "n3"]
    [event] = commit.events
    assert (event.reason, "no workload gets the volume" in event.message) == ("CopyFound", True)


def test_of_nodes_that_have_data_of_a_volume_without_a_home_none_is_chosen_before_all_have_spoken() -> None:
    view, volume = make("n2", home=None)
    assert is_astray(view, volume)  # it is looked at again
    early = told(plan_volume(view, volume, silent=True, now=1.0), volume)
    assert (early.node, early.copies) == (None, [])
    late = told(plan_volume(view, volume, silent=False, now=1.0), volume)
    assert (late.node, late.copies) == ("n2", [])


def test_a_volume_that_was_never_used_has_no_copies() -> None:
    view, volume = make("", home=None)
    assert plan_volume(view, volume, silent=False, now=1.0) is None


@pytest.mark.parametrize("home", ["n1", None])
def test_what_was_made_for_a_guest_that_never_came_is_no_data(home: str | None) -> None:
    view, volume = make("n2 n3", home=home)
    place(view, "n3", "target")
    [target] = view.of_kind("allocation").values()
    view.drop(target.key)
    copy = OrphanCopy("a", target.spec(AllocationSpec), "abandoned", "m")
    report = NodeReport(volumes=[DATA], orphan_allocations=[msgspec.json.encode(copy).decode()])
    put(view, Envelope(kind="node", name="n3", uid="u-n3", status=raw(NodeStatus(phase="Ready")), report=raw(report)))
    assert find_homes(view, volume) == {"u-n2"}
    assert told(plan_volume(view, volume, silent=False, now=1.0), volume).node == "n2"


def test_it_is_told_that_the_data_was_found_elsewhere() -> None:
    view, volume = make("n2")
    commit = plan_volume(view, volume, silent=False, now=1.0)
    assert commit is not None and [event.reason for event in commit.events] == ["DataFound"]


def test_a_home_that_is_back_without_the_data_has_its_volume_looked_at() -> None:
    """n1 was given up while nobody knew what it had, and joins again; n2 has told of the data long before."""
    view, volume = make("n2", phase="Joining")
    assert told(plan_volume(view, volume, silent=False, now=1.0), volume).node == "n1"
    joining = view.get("/node/-/n1")
    assert joining is not None
    ready = msgspec.structs.replace(joining.envelope, status=raw(NodeStatus(phase="Ready")))
    change = view.put_item(joining.key, Item(ready))
    assert change is not None
    assert list(Volumes(lambda: []).route(view, change)) == [volume.key]
    assert told(plan_volume(view, volume, silent=False, now=1.0), volume).node == "n2"


@pytest.mark.parametrize("of", ["vm/web", "container/web", "volume/data"])
def test_a_snapshot_s_news_are_for_volumes_only(of: str) -> None:
    view, volume = make("n1")
    kind, name = of.split("/")
    if kind != "volume":
        workload = msgspec.Raw(b'{"image": "tiny"}')
        put(view, Envelope(kind=kind, name=name, uid="w", project="default", spec=workload))
    spec = SnapshotSpec(of=of)
    snapshot = Item(Envelope(kind="snapshot", name="s", uid="s", project="default", spec=raw(spec)))
    keys = list(Volumes(list).route(view, Changed(snapshot.key, None, snapshot)))
    assert keys == ([volume.key] if kind == "volume" else [])
    Volumes(list).plan(view, keys, 0.0)
