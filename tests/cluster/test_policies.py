"""Strategies, placement policies and both modes on the real thing: the cheapest node, a user's own file, and a refusal at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.host

SMALL = ("--image", "tiny", "--cpu", "0.5", "--memory", "128M")
MINE = "def score(table, request, occasion):\n    return 100.0 * (table.number('cost') == 2.0)\n"


def test_policies_choose_by_price_and_by_a_users_own_file_and_serverless_is_refused_at_once(
    cluster: Cluster, gone: Callable[[str], str], tmp_path: Path
) -> None:
    prices = {"n1": "2", "n2": "0.4", "n3": "1.1"}
    try:
        for node, price in prices.items():
            cluster.ok("node", "set", node, "--cost", price)
        cluster.ok("policy", "create", "gold", "--strategy", "cost:3,least-loaded:1")
        cluster.ok("vm", "create", gone("cheap"), *SMALL, "--strategy", "@gold")
        assert cluster.vm("cheap")["status"]["node"] == "n2"
        told = cluster.ok(
            "explain", "vm", "cheap"
        )  # shares are smaller where the machine's disk is over the pool's alarm
        assert re.search(r"by policy @gold: cost:3,least_loaded:1 \(0\.\d+ cost, 0\.\d+ least_loaded", told), told
        assert "vm/cheap" in cluster.fails(5, "policy", "delete", "gold", "--yes")
        (tmp_path / "mine.py").write_text(MINE)
        cluster.ok("policy", "create", "mine", "--strategy", f"file:{tmp_path}/mine.py")
        cluster.ok("policy", "wait", "mine", "--for", "condition=Working", "--timeout", "60s")
        (tmp_path / "mine.py").write_text(MINE.replace("100.0", "50.0"))  # a change of the file counts too
        cluster.ok("vm", "create", gone("own"), *SMALL, "--strategy", "@mine")
        assert cluster.vm("own")["status"]["node"] == "n1", cluster.ok("explain", "vm", "own")
        told = cluster.fails(
            6, "vm", "create", gone("burst"), "--image", "tiny", "--cpu", "200", "--type", "serverless"
        )
        assert "insufficientResources" in told and "A serverless workload is not queued" in told
        assert cluster.vm("burst")["status"]["phase"] == "Failed"
    finally:
        for name in ("cheap", "own", "burst"):
            cluster.run("vm", "delete", name, "--yes")
        for name in ("gold", "mine"):
            cluster.run("policy", "delete", name, "--yes")
        for node in prices:
            cluster.run("node", "set", node, "--cost", "0")
