"""A reservation on real machines: a VM runs in it on a node that is otherwise full, and ends with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cluster.cluster import Cluster, until

pytestmark = pytest.mark.host
SMALL = ("--image", "tiny", "--memory", "128M", "--grace", "1s")


def test_a_vm_runs_in_its_reservation_on_a_node_that_is_otherwise_full(
    cluster: Cluster, gone: Callable[[str], str]
) -> None:
    node = cluster.object("node", "n2")
    total = node["report"]["cpu"]
    left = total - (node["status"].get("allocated_cpu") or 0)
    cluster.ok(
        *("reservation", "create", "class", "--node", "n2", "--duration", "15s", "--grace", "2s"),
        *("--cpu", str(left), "--memory", "256M"),
    )
    outside, inside, second = gone("outside"), gone("inside"), gone("second")
    # Too large beside the reservation even once all that other tests left has gone.
    cluster.ok("vm", "create", outside, *SMALL, "--cpu", str(total - left + 1), "--node", "n2", "--detach")
    cluster.ok("vm", "create", inside, *SMALL, "--cpu", "1", "--reservation", "class")
    assert "inside" in cluster.ok("vm", "exec", inside, "--", "hostname")
    assert cluster.vm(inside)["status"]["node"] == "n2" and cluster.vm(outside)["status"]["phase"] == "Pending"
    assert "of reservation/class on n2" in cluster.ok("explain", f"vm/{inside}")
    entries = {one["workload"]: one for one in cluster.json("calendar")["entries"]}
    reserved, within = entries["reservation/class"], entries[f"vm/{inside}"]
    assert (reserved["kind"], reserved["node"], reserved["end"]) == ("reservation", "n2", within["end"])
    refused = cluster.fails(6, "vm", "create", second, *SMALL, "--cpu", str(left), "--reservation", "class")
    assert "reservation/class is full" in refused
    assert "in use by" in cluster.fails(5, "reservation", "delete", "class", "--yes")
    until(lambda: cluster.object("reservation", "class")["status"]["state"] == "Done", 150)
    until(lambda: cluster.vm(inside)["status"].get("reason") == "leaseEnded")
    until(lambda: cluster.vm(outside)["status"]["phase"] == "Running", 60)
    for name in (inside, second):
        cluster.ok("vm", "delete", name, "--yes")
    cluster.ok("reservation", "delete", "class", "--yes")
