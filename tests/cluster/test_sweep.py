"""A test that fails leaves the cluster that others share as it was: tests/cluster/sweep.py."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.sweep import ask, find_new, read_nodes, restore

pytestmark = pytest.mark.host


def test_what_a_failed_test_made_goes_and_what_it_changed_or_killed_comes_back(cluster: Cluster) -> None:
    nodes, hello, since = read_nodes(cluster), cluster.vm("hello"), time.time()
    cluster.ok("project", "create", "shop")
    cluster.ok("network", "create", "yard", "--cidr", "10.230.1.0/24", "-p", "shop")
    cluster.ok("securitygroup", "create", "narrow", "--ingress", "tcp:80")
    cluster.ok("volume", "create", "case", "--size", "16M")
    words = ("--volume", "case", "--security-group", "narrow", "--memory", "900G")  # it waits, and holds both
    cluster.fails(6, "vm", "create", "large", "--image", "tiny", *words)
    cluster.ok("token", "create", "ci", "--access-key")
    cluster.ok("quota", "set", "--cpu", "1000")
    cluster.ok("label", "node/n1", "shelf=nvme")
    cluster.ok("node", "set", "n2", "--taint", "tenant=blue", "--cost", "2")
    cluster.ok("node", "cordon", "n3")
    cluster.ok("vm", "suspend", "hello")
    with ask(cluster) as client:
        made = {f"{one['kind']}/{one['name']}" for one in find_new(client, since)}
        assert made >= {"securitygroup/narrow", "volume/case", "vm/large", "token/ci", "quota/project", "project/shop"}
        assert "pool" not in {one["kind"] for one in find_new(client, 0)}, "it would be waited for in vain"
    for pid in cluster.pids("weft agent n1 "):
        os.kill(pid, signal.SIGKILL)

    restore(cluster, nodes, since)

    with ask(cluster) as client:
        assert find_new(client, since) == []
    assert read_nodes(cluster) == nodes
    assert cluster.pids("weft agent n1 ") and cluster.vm("hello")["status"]["phase"] == "Running"
    assert cluster.vm("hello")["uid"] == hello["uid"], "it needs not be another one"
