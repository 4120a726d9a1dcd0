"""What the reasons of migrations tell people of the project whose VM migrates."""

from __future__ import annotations

from weft.informer.view import Item
from weft.kinds.allocation import AllocatedImage, AllocationSpec, Resources
from weft.objects.envelope import Envelope
from weft.objects.identity import Ref
from weft.scheduler.rebalance.problem import MigratableWorkload
from weft.scheduler.report.rebalance import name_peer


def place(name: str, project: str) -> MigratableWorkload:
    spec = AllocationSpec(
        node="n1",
        node_uid="x",
        workload=Ref("vm", name, name, project),
        workload_generation=1,
        incarnation=1,
        desired="run",
        resources=Resources(),
        image=AllocatedImage(name="i", uid="i", sha256="s", size=1, url="u"),
    )
    return MigratableWorkload(name, Item(Envelope(kind="vm", name=name, uid=name, project=project)), spec)


def test_only_workloads_of_its_own_project_are_named() -> None:
    places = [place("web", "blue"), place("db", "blue"), place("secret", "red")]
    assert name_peer(places, 0, 1) == "vm/db"
    assert name_peer(places, 0, 2) == name_peer(places, 0, 3) == "what it talks with"
