"""Which failed starts speak against a node."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.controllers.node.quarantine import Evidence, fold_quarantine
from weft.informer.view import View, make_view
from weft.kinds.allocation import AllocatedImage, AllocatedVolume, AllocationReport, AllocationSpec, Resources, Step
from weft.kinds.node import NodeSpec, NodeStatus, Quarantine
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Envelope, encode_envelope
from weft.objects.identity import Ref

NOW = 10_000.0
OWNER = Ref(kind="deployment", name="web", project="default", uid="owner")


def put(view: View, kind: str, name: str, **parts: Any) -> None:
    raw = {
        part: msgspec.Raw(msgspec.json.encode(value))
        for part, value in parts.items()
        if part in ("spec", "status", "report")
    }
    rest = {part: value for part, value in parts.items() if part not in raw}
    project = "default" if kind == "vm" else None
    envelope = Envelope(kind=kind, name=name, uid=f"uid-{name}", project=project, **raw, **rest)
    view.put(envelope.key, encode_envelope(envelope), 1)


def put_vm(
    view: View, name: str, node: str = "n1", *, image: str = "", begun: float = 60.0, owner: Ref | None = None, stage: str = "boot",
    volumes: tuple[AllocatedVolume, ...] = (), **report: Any,
) -> None:  # fmt: skip
    """One that was placed ``begun`` seconds ago; its start failed unless its ``report`` says something else."""
    status = WorkloadStatus(phase="Running" if report.get("state") == "running" else "Failed", node=node)
    put(view, "vm", name, spec=VmSpec(image=image or f"image-{name}"), status=status, owner=owner)
    spec = AllocationSpec(
        node=node, node_uid=f"uid-{node}", workload=Ref(kind="vm", name=name, project="default", uid=f"uid-{name}"),
        workload_generation=1, incarnation=1, resources=Resources(), volumes=list(volumes),
        image=AllocatedImage(name=image or f"image-{name}", uid="i", sha256="ab", size=1, url=""),
    )  # fmt: skip
    failed = {"state": "failed", "reason": "driverFailed", "steps": [Step(name=stage, state="failed")]}
    put(
        view,
        "allocation",
        f"uid-{node}.{name}",
        spec=spec,
        report=AllocationReport(**{**failed, **report}),
        created_at=NOW - begun,
    )


def make_fabric(nodes: int = 3, **first: Any) -> View:
    view = make_view()
    for index in range(1, nodes + 1):
        parts = first if index == 1 else {}
        put(
            view,
            "node",
            f"n{index}",
            spec=parts.get("spec", NodeSpec()),
            status=parts.get("status", NodeStatus(phase="Ready")),
        )
    return view


def judge(view: View, *, live: bool = True) -> Quarantine | None:
    node = view.get("/node/-/n1")
    assert node is not None
    return fold_quarantine(view, node, Evidence(view), NOW, live=live)[0]


def test_three_failed_starts_quarantine_a_node_for_ten_minutes() -> None:
    view = make_fabric()
    for name in ("a", "b"):
        put_vm(view, name)
    assert judge(view) is None
    put_vm(view, "c", stage="image")  # which its node couldn't store
    assert judge(view) == Quarantine(since=NOW, until=NOW + 600.0, times=1, workloads=3)
    assert judge(view, live=False) is None
    put_vm(view, "d", state="running", started_at=NOW - 70.0)  # before all of them
    assert judge(view) is not None


SHARED = AllocatedVolume(name="data", uid="v", size=1, pool="ceph")


@pytest.mark.parametrize(
    "third",
    [
        {"reason": "invalidInput"},
        {"reason": "imageGone", "stage": "image"},
        {"reason": "registryUnavailable", "stage": "image"},
        {"reason": "timedOut", "stage": "image"},
        {"stage": "disk", "volumes": (SHARED,)},
        {"steps": []},
        {"ended": True, "reason": "exited"},
        {"restarts": 1},
        {"state": "preparing"},
        {"begun": 601.0},
        {"owner": OWNER},
        {"image": "image-a"},
        {"state": "running", "started_at": NOW - 1.0},
    ],
)
def test_what_is_not_the_nodes_does_not_count(third: dict[str, Any]) -> None:
    view = make_fabric()
    put_vm(view, "a")
    put_vm(view, "b", owner=OWNER)
    put_vm(view, "c", **third)
    assert judge(view) is None


def test_workloads_of_one_image_or_owner_count_each_where_it_runs_on_another_node() -> None:
    view = make_fabric()
    for name in ("a", "b"):
        put_vm(view, name, image="tiny")
    put_vm(view, "c", owner=OWNER)
    put_vm(view, "here", image="tiny", state="running", started_at=NOW - 999.0)
    assert judge(view) is None
    put_vm(view, "there", "n2", image="tiny", state="running", started_at=NOW - 999.0)
    assert judge(view) is not None


@pytest.mark.parametrize(("nodes", "status"), [(2, "Ready"), (3, "NotReady")])
def test_at_most_one_in_three_of_the_nodes_that_take_workloads_is_quarantined(nodes: int, status: str) -> None:
    view = make_fabric(nodes)
    put(view, "node", f"n{nodes}", spec=NodeSpec(), status=NodeStatus(phase=status))
    for name in ("a", "b", "c"):
        put_vm(view, name)
    assert judge(view) is None


def test_a_quarantine_becomes_a_probation_then_ends_or_comes_back_twice_as_long() -> None:
    held = Quarantine(since=NOW - 700.0, until=NOW - 100.0, times=2, workloads=3)
    trial = msgspec.structs.replace(held, on_probation=True)
    assert judge(make_fabric(status=NodeStatus(phase="Ready", quarantine=held))) == trial
    view = make_fabric(status=NodeStatus(phase="Ready", quarantine=trial))
    put_vm(view, "before", begun=101.0)
    for name in ("a", "b"):
        put_vm(view, name)
    assert judge(view) == trial
    put_vm(view, "c")
    assert judge(view) == Quarantine(since=NOW, until=NOW + 4 * 600.0, times=3, workloads=3)
    put_vm(view, "d", state="running", started_at=NOW - 50.0)
    assert judge(view) is None
