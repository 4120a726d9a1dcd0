"""Series of pools, OSDs and backup repositories: what is known of each, and that a hostile node can't make them many or absurd."""

from __future__ import annotations

from typing import Any

import msgspec

from weft.controllers.metrics.storage import MOST_OSDS, list_osds, list_storage
from weft.informer.view import View, make_view
from weft.kinds.node import NodeOsd, NodePool
from weft.objects.envelope import Envelope, encode_envelope
from weft.telemetry.metrics.devices import MOST_POOLS, list_pools
from weft.telemetry.metrics.sample import Sample


def put(view: View, kind: str, name: str, status: dict[str, Any], spec: Any = None, marks: Any = None) -> None:
    made = Envelope(kind=kind, name=name, uid=name, status=msgspec.Raw(msgspec.json.encode(status)))
    made.spec = msgspec.Raw(msgspec.json.encode(spec or {}))
    made.marks = msgspec.Raw(msgspec.json.encode(marks or {}))
    assert view.put(made.key, encode_envelope(made), 1) is not None


def short(samples: list[Sample]) -> dict[tuple[str, str], float]:
    """By metric and last label."""
    return {(one.name.removeprefix("weft_"), one.labels[-1][1]): one.value for one in samples}


def test_a_repository_has_its_sizes_while_it_can_be_used() -> None:
    view = make_view()
    counted = {"bytes": 50, "free": 70, "backups": 3, "checked_at": 9.0}
    put(view, "backuprepository", "safe", {"phase": "Ready", **counted}, {"url": "dir:///safe"})
    put(view, "backuprepository", "bucket", {"phase": "Ready", **counted, "free": -1}, {"url": "dir:///bucket"})
    put(view, "backuprepository", "gone", {"phase": "Failed", **counted}, {"url": "dir:///gone"})
    put(view, "backuprepository", "new", {"phase": "Pending"}, {"url": "dir:///new"})
    assert short(list(list_storage(view, 1000))) == {
        ("backuprepository_up", "safe"): 1.0,
        ("backuprepository_used_bytes", "safe"): 50,
        ("backuprepository_free_bytes", "safe"): 70,
        ("backuprepository_backups", "safe"): 3,
        ("backuprepository_up", "bucket"): 1.0,
        ("backuprepository_used_bytes", "bucket"): 50,
        ("backuprepository_backups", "bucket"): 3,
        ("backuprepository_up", "gone"): 0.0,
    }


def offer(*osds: NodeOsd, id: str = "p1") -> NodePool:
    return msgspec.convert(
        {"name": "ceph", "id": id, "total": 9, "free": 1, "osds": msgspec.to_builtins(osds)}, NodePool
    )


def test_an_osd_is_told_of_by_the_pool_s_own_name() -> None:
    view = make_view()
    put(view, "pool", "fast", {}, marks={"id": "p1", "pool": "ceph"})
    well = NodeOsd("osd.0", 100, 40, {"write": 4.0, "commit": 2.5})
    samples = list(list_osds(view, "n1", [offer(well, NodeOsd("osd.1", problem="it doesn't answer"))], 1000))
    assert short(samples) == {
        ("osd_up", "osd.0"): 1.0,
        ("osd_capacity_bytes", "osd.0"): 100,
        ("osd_used_bytes", "osd.0"): 40,
        ("osd_latency_seconds", "write"): 0.004,
        ("osd_latency_seconds", "commit"): 0.0025,
        ("osd_up", "osd.1"): 0.0,
    }
    assert samples[0].labels == (("node", "n1"), ("pool", "fast"), ("osd", "osd.0"))
    assert list(list_osds(view, "n1", [offer(well, id="another")], 1000)) == []


def test_a_hostile_node_s_osds_are_bounded_in_number_words_and_values() -> None:
    view = make_view()
    put(view, "pool", "fast", {}, marks={"id": "p1", "pool": "ceph"})
    many = [NodeOsd(f"osd.{number}", 10, 1) for number in range(MOST_OSDS + 50)]
    assert len({one.labels for one in list_osds(view, "n1", [offer(*many)], 1000)}) == MOST_OSDS
    wild = [
        NodeOsd('osd.1"} or up', 10, 1),
        NodeOsd("osd.2", 2**62, 1),
        NodeOsd("osd.3", 10, -1),
        NodeOsd("osd.4", 0, 0, {"write": -1.0, "read": float("nan"), "replica": float("inf"), "made-up": 1.0}),
    ]
    offered = msgspec.structs.replace(offer(), osds=wild)
    assert {one.name for one in list_osds(view, "n1", [offered], 1000)} == {"weft_osd_up"}
    assert len(list(list_osds(view, "n1", [offered], 1000))) == 3


def test_a_hostile_node_s_pools_are_bounded_and_each_series_has_one_sample() -> None:
    view, osd = make_view(), NodeOsd("osd.0", 10, 1, {"write": 4.0})
    for number in range(MOST_POOLS + 5):
        put(view, "pool", f"pool-{number}", {}, marks={"id": f"p{number}", "pool": "ceph"})
    every = [offer(osd, id=f"p{number}") for number in range(MOST_POOLS + 5)]
    assert len({dict(one.labels)["pool"] for one in list_osds(view, "n1", every, 1000)}) == MOST_POOLS
    same = [offer(osd, osd, NodeOsd("osd.0", 10, 7), id="p1")] * MOST_POOLS
    told = [(one.name, one.labels) for one in list_osds(view, "n1", same, 1000)]
    assert len(told) == len(set(told)) == 4
    told = [(name, labels) for name, labels, _ in list_pools((("node", "n1"),), same)]
    assert len(told) == len(set(told)) == 2
