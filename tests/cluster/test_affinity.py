"""Near its data and apart from its like, on nodes that are real: what agents report is what decides."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.host
Gone = Callable[[str], str]
SMALL = ("--image", "tiny", "--memory", "128M", "--cpu", "0.5", "--grace", "1s")


def test_a_volume_that_moves_draws_its_reader_along_and_members_stay_apart(cluster: Cluster, gone: Gone) -> None:
    for home in ("n3", "n2"):  # the second time it is a new volume, first used elsewhere
        cluster.ok("volume", "create", "raw", "--size", "32M")
        cluster.ok("vm", "create", gone("owner"), *SMALL, "--volume", "raw", "--node", home)
        cluster.ok("vm", "create", gone("reader"), *SMALL, "--data-hint", "volume:raw", "--detach")
        cluster.ok("wait", "vm/reader", "--for", "condition=Placed")
        assert cluster.json("get", "decision", "vm.reader")["spec"]["verdicts"][0]["node"] == home
        cluster.ok("vm", "delete", "owner", "reader", "--yes")
        cluster.ok("volume", "delete", "raw", "--yes")
    for name in ("apart-1", "apart-2", "apart-3"):
        cluster.ok("vm", "create", gone(name), *SMALL, "--anti-affinity-group", "apart", "--detach")
        cluster.ok("wait", f"vm/{name}", "--for", "condition=Placed")
    decisions = [cluster.json("get", "decision", f"vm.apart-{n}") for n in (1, 2, 3)]
    assert {decision["spec"]["verdicts"][0]["node"] for decision in decisions} == {"n1", "n2", "n3"}
