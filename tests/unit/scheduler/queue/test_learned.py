"""What is learned of the time that leases took."""

from __future__ import annotations

import msgspec

from weft.informer.view import Changed, Item
from weft.kinds.allocation import ALLOCATION, AllocationReport, AllocationSpec, Resources
from weft.kinds.fields.lease import AllocatedLease
from weft.objects.identity import Ref
from weft.scheduler.queue.learned import read_run_time

NOW = 1_000_000.0
RUNNING = AllocationReport(incarnation=1, state="running", started_at=NOW)
SPEC = AllocationSpec(
    node="n1",
    node_uid="u-n1",
    workload=Ref(kind="vm", project="default", name="web", uid="w"),
    workload_generation=1,
    incarnation=1,
    resources=Resources(cpu=1.0, memory=2**30, disk=2**30),
    lease=AllocatedLease(mode="best-effort", start=NOW, end=NOW + 3600.0),
)


def allocate(role: str, state: str = "running") -> Item:
    spec, report = msgspec.structs.replace(SPEC, role=role), msgspec.structs.replace(RUNNING, state=state)
    return Item(ALLOCATION.make("u-n1.web", spec, NOW, uid="a", report=report), spec=spec, report=report)


def test_a_lease_that_migrates_has_not_ended() -> None:
    active, source = allocate("active"), allocate("source")
    assert read_run_time(Changed(active.key, active, source), NOW + 60.0) is None
    assert read_run_time(Changed(active.key, source, None), NOW + 60.0) is None
    ended = read_run_time(Changed(active.key, active, None), NOW + 60.0)
    assert ended is not None and ended.seconds == 60.0
