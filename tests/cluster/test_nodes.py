"""What people say of a node, and what nodes find out, on a real cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.host
Gone = Callable[[str], str]
NODES = ("n1", "n2", "n3")


@pytest.fixture
def plain(cluster: Cluster) -> Iterator[None]:
    """Nodes as they were, whatever a test said of them."""
    yield
    for node in NODES:
        cluster.run("node", "set", node, "--taint", "", "--overcommit", "", "--resources", "")
        cluster.run("node", "maintenance", node, "off")


@pytest.mark.usefixtures("plain")
def test_taints_overcommitment_and_maintenance_decide_where_a_vm_goes(cluster: Cluster, gone: Gone) -> None:
    cluster.ok("node", "maintenance", "n2", "on", "--reason", "new fans")
    cluster.ok("node", "set", "n3", "--type", "edge", "--taint", "tenant=blue")
    cluster.ok("node", "set", "n1", "--overcommit", "cpu=0.01")
    cluster.fails(6, "vm", "create", gone("patient"), "--image", "tiny", "--cpu", "1", "--memory", "128M")
    told = cluster.ok("explain", "vm/patient")
    assert all(why in told for why in ("tainted tenant=blue", "in maintenance (new fans)", "cpu 1 wanted")), told
    cluster.ok("node", "set", "n1", "--overcommit", "cpu=4")
    cluster.ok("wait", "vm/patient", "--timeout", "90s")
    assert cluster.vm("patient")["status"]["node"] == "n1"
    cluster.ok("node", "set", "n1", "--overcommit", "cpu=0.01")
    cluster.ok("wait", "node/n1", "--for", "condition=Fits=False", "--timeout", "30s")
    assert "x 0.01), free 0" in cluster.ok("node", "describe", "n1")
    cluster.ok("vm", "create", gone("blue"), "--image", "tiny", "--memory", "128M", "--tolerate", "tenant")
    assert cluster.vm("blue")["status"]["node"] == "n3"


def test_nodes_find_out_how_far_they_are_from_each_other(cluster: Cluster) -> None:
    for _ in range(120):
        if len(cluster.json("get", "node/n1")["report"]["round_trips"]) == 2:
            break
        time.sleep(0.5)
    assert "round trips  n" in cluster.ok("node", "describe", "n1")
