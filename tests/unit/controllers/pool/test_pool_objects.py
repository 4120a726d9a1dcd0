"""Pools follow from what nodes report: their names, how much is promised, and when they count as full."""

from __future__ import annotations

import msgspec

from weft.contracts.store import Delete, Put
from weft.controllers.pool.controller import TICK, Pools
from weft.controllers.pool.plan import Offer, choose_name, fold_pool
from weft.informer.pool.claims import Claims, list_claims
from weft.informer.view import Changed, Item, View, make_view
from weft.kinds.allocation import AllocatedVolume, AllocationSpec, Resources
from weft.kinds.fields.allocated_migration import AllocatedDiskRelocation
from weft.kinds.node import NodePool, NodeReport, NodeStatus
from weft.kinds.pool import PoolSpec, PoolStatus
from weft.kinds.volume import VolumeSpec, VolumeStatus
from weft.objects.envelope import Envelope, decode_envelope
from weft.objects.identity import Ref

GIB = 2**30


def raw(part: msgspec.Struct) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(part))


def spec_of(uid: str = "w", **more: object) -> AllocationSpec:
    fields = {"node": "a", "node_uid": "u-a", "pool": "fast", "pool_id": "s1", **more}
    resources = Resources(cpu=1, memory=GIB, disk=10 * GIB)
    workload = Ref("vm", "web", uid, "default")
    return AllocationSpec(workload=workload, workload_generation=1, incarnation=1, resources=resources, **fields)  # type: ignore[arg-type]


class Lab:
    """A controller, and the view that it plans from."""

    def __init__(self) -> None:
        self.view: View = make_view()
        self.pools = Pools()
        self.now = 100.0

    def put(self, envelope: Envelope) -> None:
        self._change(envelope.key, Item(envelope))

    def node(self, name: str, *pools: NodePool, disk: int = 100 * GIB) -> None:
        report, status = NodeReport(disk=disk, pools=list(pools)), NodeStatus(phase="Ready")
        self.put(Envelope(kind="node", name=name, uid=f"u-{name}", report=raw(report), status=raw(status)))

    def allocation(self, uid: str, spec: AllocationSpec) -> None:
        self.put(Envelope(kind="allocation", name=f"{spec.node_uid}.{uid}", uid=uid, spec=raw(spec)))

    def drop(self, kind: str, name: str) -> None:
        self._change(f"/{kind}/-/{name}", None)

    def _change(self, key: str, new: Item | None) -> None:
        old = self.view.get(key)
        if new is None:
            self.view.drop(key)
        else:
            self.view.put_item(key, new)
        self.run(*self.pools.route(self.view, Changed(key, old, new)))

    def run(self, *keys: str) -> None:
        """Plan until nothing is left to write."""
        waiting = {*keys}
        while waiting:
            plan = self.pools.plan(self.view, sorted(waiting), self.now)
            waiting = set(plan.later)
            self.now += 2.0 if waiting else 0.0
            for commit in plan.commits:
                for write in commit.writes:
                    if isinstance(write, Delete):
                        self.view.drop(write.key)
                    elif isinstance(write, Put):
                        item = Item(decode_envelope(write.value, 1))
                        old = self.view.get(item.key)
                        self.view.put_item(item.key, item)
                        waiting |= {*self.pools.route(self.view, Changed(item.key, old, item))}

    def find(self, name: str) -> PoolStatus | None:
        item = self.view.get(f"/pool/-/{name}")
        return item.status(PoolStatus) if item is not None else None


def test_a_shared_pool_is_one_object_and_each_nodes_own_is_another() -> None:
    lab = Lab()
    for name in ("a", "b"):
        own = NodePool("local", f"own{name}", 200 * GIB, 100 * GIB)
        lab.node(name, own, NodePool("fast", "s1", 100 * GIB, 60 * GIB), disk=50 * GIB)
    lab.run(TICK)
    assert sorted(lab.view.of_kind("pool")) == ["/pool/-/a-local", "/pool/-/b-local", "/pool/-/fast"]
    fast, own = lab.find("fast"), lab.find("a-local")
    assert fast is not None and (fast.nodes, fast.node_names, fast.bound) == (2, ["a", "b"], 200 * GIB)
    assert (fast.capacity, fast.used, fast.free) == (100 * GIB, 40 * GIB, 60 * GIB)
    assert own is not None and own.bound == 50 * GIB  # what the node offers, not its file system


def test_what_is_promised_is_counted_and_freed() -> None:
    lab = Lab()
    lab.node("a", NodePool("fast", "s1", 100 * GIB, 60 * GIB))
    lab.allocation("x", spec_of("w1"))
    lab.allocation("y", spec_of("w2"))
    lab.run(TICK)
    assert (lab.find("fast") or PoolStatus()).given == 20 * GIB
    lab.drop("allocation", "u-a.x")
    lab.run(TICK)
    assert (lab.find("fast") or PoolStatus()).given == 10 * GIB


def test_a_volume_keeps_its_bytes_when_its_vm_goes() -> None:
    lab = Lab()
    lab.node("a", NodePool("fast", "s1", 100 * GIB, 60 * GIB))
    status = VolumeStatus(node="a", node_uid="u-a", pool="fast", pool_id="s1", size=4 * GIB)
    volume = Envelope(kind="volume", name="data", uid="v", project="default", status=raw(status))
    volume.spec = raw(VolumeSpec(size=9 * GIB, pool="fast"))  # a growth that nothing has been given yet
    lab.put(volume)
    lab.allocation(
        "x", spec_of(volumes=[AllocatedVolume(name="data", uid="v", size=4 * GIB, pool="fast", pool_id="s1")])
    )
    lab.run(TICK)
    assert (lab.find("fast") or PoolStatus()).given == 14 * GIB
    lab.drop("allocation", "u-a.x")
    lab.run(TICK)
    assert (lab.find("fast") or PoolStatus()).given == 4 * GIB


def test_a_pool_that_no_node_offers_goes_unless_it_holds_something() -> None:
    lab = Lab()
    lab.node("a", NodePool("fast", "s1", 100 * GIB, 60 * GIB))
    lab.allocation("x", spec_of())
    lab.node("a", NodePool("fast", problem="it is not mounted"))
    lab.run(TICK)
    assert (lab.find("fast") or PoolStatus()).phase == "Missing"
    lab.drop("allocation", "u-a.x")
    lab.run(TICK)
    assert lab.find("fast") is None


def test_both_ends_of_a_migration_in_a_shared_pool_hold_one_disk() -> None:
    claims = Claims()
    source, target = list_claims(spec_of()), list_claims(spec_of(node="b", node_uid="u-b"))
    claims.hold(source)
    claims.hold(target)
    assert claims.given == {"s1": 10 * GIB}
    claims.release(source)
    assert claims.given == {"s1": 10 * GIB}
    claims.release(target)
    assert claims.given == {}


def test_a_disk_on_its_way_to_another_pool_is_in_both() -> None:
    to = AllocatedDiskRelocation(key="m", disk="root", pool="slow", pool_id="s2")
    assert list_claims(spec_of(storage=to)) == (("s1", "root w", 10 * GIB), ("s2", "root w", 10 * GIB))


def test_alarms_begin_at_their_share_and_end_a_little_below() -> None:
    spec, status = PoolSpec(), PoolStatus()
    phases = []
    for free in (30, 20, 20.5, 22, 5, 5.5, 7, 40):
        offer = Offer("a", True, NodePool("fast", "s1", 100 * GIB, int(free * GIB)))
        status = fold_pool(status, spec, "fast", [offer], 0, 1.0)
        phases.append(status.phase)
    assert phases == ["Ready", "NearlyFull", "NearlyFull", "Ready", "Full", "Full", "NearlyFull", "Ready"]


def test_the_least_free_space_of_ready_nodes_counts() -> None:
    offers = [
        Offer(name, ready, NodePool("fast", "s1", 100, free))
        for name, ready, free in (("a", True, 50), ("b", True, 40), ("lost", False, 10))
    ]
    status = fold_pool(PoolStatus(), PoolSpec(overcommit=1.5), "fast", offers, 7, 1.0)
    assert (status.free, status.nodes, status.bound, status.given) == (40, 3, 150, 7)


def test_names_are_the_nodes_own_for_local_and_shared_for_others() -> None:
    assert choose_name("local", "s1", "a", lambda _: False) == "a-local"
    assert choose_name("fast", "s1", "a", lambda _: False) == "fast"
    assert choose_name("fast", "s2", "b", {"fast"}.__contains__) == "b-fast"
    assert choose_name("fast", "s3", "b", {"fast", "b-fast"}.__contains__) == "fast-s3"
    assert choose_name("local", "abcdefghij", "n" * 63, lambda _: False) == "local-abcdefghij"
