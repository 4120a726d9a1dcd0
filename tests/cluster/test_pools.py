"""A storage pool that nodes share takes what it may promise, and no more."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cluster.cluster import Cluster, until

pytestmark = pytest.mark.host
Gone = Callable[[str], str]
GIB = 1024**3


def test_a_small_pool_takes_what_it_may_promise_and_says_what_is_too_much(cluster: Cluster, gone: Gone) -> None:
    until(lambda: cluster.object("pool", "shared")["status"].get("capacity"))
    status = cluster.object("pool", "shared")["status"]
    most = status.get("given", 0) + 3 * GIB
    cluster.ok("pool", "set", "shared", "--overcommit", f"{(most + GIB // 2) / status['capacity']:.9f}")
    try:
        until(lambda: most < cluster.object("pool", "shared")["status"]["bound"] < most + GIB)
        asked = ("--image", "tiny", "--memory", "128M", "--pool", "shared", "--disk", "2G")
        cluster.ok("vm", "create", gone("first"), *asked)
        cluster.ok("vm", "create", gone("second"), *asked, "--detach")
        until(lambda: "may promise" in cluster.ok("explain", "second"))
        assert cluster.ok("explain", "second").count("2.0 GiB more are too much") == 4, "in sum, and of each node"
        cluster.ok("vm", "delete", "first", "--yes")
        until(lambda: cluster.vm("second")["status"]["phase"] == "Running")
        assert cluster.object("pool", "shared")["status"]["given"] <= most
    finally:
        cluster.ok("pool", "set", "shared", "--overcommit", "2")
