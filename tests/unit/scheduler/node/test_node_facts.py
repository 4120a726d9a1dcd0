"""What placement makes of a Node object, and what people's words on it do to verdicts."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from tests.unit.scheduler.node_items import GIB, REPORT, make_node

from weft.contracts.policy import Request
from weft.informer.view import Item
from weft.kinds.node import Gpu, NodeActions
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import explain
from weft.scheduler.node.facts import read_node
from weft.scheduler.table.snapshot import Snapshot


def table_of(*nodes: Item) -> Snapshot:
    snapshot = Snapshot()
    for node in nodes:
        snapshot.put_node(read_node(node))
    return snapshot


def ask(cpu: float = 1.0, **more: Any) -> Request:
    return Request(amounts=(round(cpu * 1000), GIB, GIB), machine="q35", strategy="least_loaded", **more)


def verdicts(snapshot: Snapshot, request: Request) -> dict[str, str]:
    engine = Engine(snapshot, seed=0)
    row = engine.choose(request, "w")
    return {v.node: v.filter or v.outcome for v in explain(engine, request, "w", row).verdicts}


def test_what_was_probed_is_an_attribute_and_labels_win_over_it() -> None:
    report = msgspec.structs.replace(
        REPORT, arch="x86_64", storage="hdd", tpm="2.0", numa=2, gpus=[Gpu("NVIDIA H200", 141 * GIB, "0000:3b:00.0")]
    )
    facts = read_node(make_node("n1", report, {"storage": "nvme", "zone": "a", "type": "mine"}, cost=1.5))
    assert facts.texts == {
        "arch": "x86_64",
        "storage": "nvme",
        "tpm": "2.0",
        "hypervisor": "qemu",
        "zone": "a",
        "type": "gpu",
        "gpu.whole": "yes",
    }
    assert facts.numbers == {"cost": 1.5, "numa": 2.0}
    assert [(gpu.model, gpu.memory) for gpu in facts.gpus] == [("NVIDIA H200", 141 * GIB)]


def test_a_declared_resource_wins_over_the_one_that_was_found() -> None:
    report = msgspec.structs.replace(REPORT, sriov=63)
    assert read_node(make_node("n1", report)).extras == {"sriov": 63}
    assert read_node(make_node("n1", report, resources={"sriov": 8, "fpga": 1})).extras == {"sriov": 8, "fpga": 1}


def test_images_volumes_and_declared_pools_are_data_that_lie_there() -> None:
    report = msgspec.structs.replace(REPORT, images=["ab"], volumes=["v"])
    assert read_node(make_node("n1", report, data=["ceph-pool:raw"])).data == {
        "image:ab",
        "volume:v",
        "pool:ceph-pool:raw",
    }


def test_a_taint_keeps_off_who_does_not_tolerate_it() -> None:
    snapshot = table_of(make_node("n1", taints=["tenant=blue"]), make_node("n2"))
    assert verdicts(snapshot, ask()) == {"n1": "taint", "n2": "chosen"}
    assert set(verdicts(snapshot, ask(tolerations=("tenant",))).values()) == {"chosen", "fits"}
    assert verdicts(snapshot, ask(tolerations=("tenant=red",)))["n1"] == "taint"


def test_maintenance_has_a_verdict_of_its_own_that_tells_its_reason() -> None:
    snapshot = table_of(
        make_node("n1", actions=NodeActions(maintenance=True, maintenance_reason="new fans")),
        make_node("n2", actions=NodeActions(maintenance=True)),
    )
    engine = Engine(snapshot, seed=0)
    told = explain(engine, ask(), "w", engine.choose(ask(), "w"))
    assert [(v.filter, v.reason) for v in told.verdicts] == [
        ("maintenance", "in maintenance (new fans)"),
        ("maintenance", "in maintenance"),
    ]
    assert told.message == "no node can take it: of 2, 2 in maintenance"
    snapshot.put_node(read_node(make_node("n1")))
    assert verdicts(snapshot, ask())["n1"] == "chosen"


def test_a_requested_node_that_was_deleted_is_named() -> None:
    for nodes in ((), (make_node("n1"),)):
        told = explain(Engine(table_of(*nodes), seed=0), ask(node="n2"), "w", None)
        assert told.message == "node n2, which was requested, was deleted"
    engine = Engine(table_of(make_node("n1")), seed=0)
    assert "was deleted" not in explain(engine, ask(node="n1", cpu=999.0), "w", None).message


def test_a_silent_node_has_a_verdict_that_tells_whether_it_is_autonomous() -> None:
    nodes = {name: make_node(name, phase=name.capitalize()) for name in ("autonomous", "joining", "ready")}
    snapshot = table_of(*nodes.values(), make_node("silent", phase="NotReady"))

    def tell() -> dict[str, str]:
        engine = Engine(snapshot, seed=0)
        found = explain(engine, ask(), "w", engine.choose(ask(), "w"))
        return {verdict.node: verdict.reason for verdict in found.verdicts if verdict.filter == "online"}

    assert tell() == {
        "autonomous": "autonomous, sends no heartbeat",
        "joining": "not ready",
        "silent": "sends no heartbeat",
    }
    for name in ("autonomous", "joining", "silent"):
        snapshot.put_node(read_node(make_node(name)))
    assert tell() == {}


def test_overcommitment_gives_a_node_away_more_than_once_and_lowered_it_takes_nothing_new_until_it_fits() -> None:
    snapshot = table_of(make_node("n1", overcommit={"cpu": 4.0}))
    assert verdicts(snapshot, ask(cpu=16)) == {"n1": "chosen"}
    assert verdicts(snapshot, ask(cpu=16.5)) == {"n1": "resources"}
    snapshot.put_allocation("a", "u-n1", (12_000, GIB, GIB))
    snapshot.put_node(read_node(make_node("n1", overcommit={"cpu": 2.0})))
    assert verdicts(snapshot, ask(cpu=0.1)) == {"n1": "resources"}
    snapshot.drop_allocation("a")
    assert verdicts(snapshot, ask(cpu=8)) == {"n1": "chosen"}


def test_what_a_node_says_of_distances_is_bounded() -> None:
    odd = msgspec.structs.replace(REPORT, round_trips={f"u-{n}": 0.1 for n in range(1000)}, coordinate=[1.0, 2.0, -9.0])
    assert read_node(make_node("n1", odd)).round_trips == {}
    plain = msgspec.structs.replace(REPORT, coordinate=[1.0, 2.0, 0.5])
    snapshot = table_of(make_node("n1", odd), make_node("n2", plain), make_node("n3"))
    assert snapshot.distance("u-n2").tolist()[:2] == [0.0, 0.0] and np.isnan(snapshot.distance("u-n2")[2])
    many = msgspec.structs.replace(REPORT, coordinate=[1.0] * 1000)
    assert np.isnan(table_of(make_node("n1", many), make_node("n2", plain)).distance("u-n2")[0])
