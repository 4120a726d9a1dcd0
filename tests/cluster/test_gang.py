"""A gang on nodes that are real: none of it runs until all of it can."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.host
Gone = Callable[[str], str]
MEMBER = ("--image", "tiny", "--memory", "128M", "--cpu", "0.5", "--grace", "1s", "--anti-affinity-group", "crew")


@pytest.mark.long
def test_none_of_a_gang_runs_until_all_of_it_can(cluster: Cluster, gone: Gone) -> None:
    alone = cluster.fails(6, "vm", "create", gone("crew-1"), *MEMBER, "--gang", "crew:3")
    assert "gangIncomplete: gang crew: 1 of 3 members are ready to be placed" in alone
    cluster.ok("node", "cordon", "n2")
    try:
        for name in ("crew-2", "crew-3"):
            cluster.ok("vm", "create", gone(name), *MEMBER, "--group", "crew:3", "--detach")
        cluster.ok("wait", "vm/crew-3", "--for", "status.reason=noAvailableAgents")
        assert "of anti-affinity group crew is there" in cluster.ok("explain", "vm", "crew-3")
        placed = [item["spec"]["workload"]["name"] for item in cluster.json("get", "allocation")["items"]]
        assert not [name for name in placed if name.startswith("crew")]
    finally:
        cluster.ok("node", "uncordon", "n2")
    for number in (1, 2, 3):
        cluster.ok("wait", f"vm/crew-{number}")
    verdicts = [cluster.json("get", "decision", f"vm.crew-{n}")["spec"]["verdicts"] for n in (1, 2, 3)]
    assert {told[0]["node"] for told in verdicts} == {"n1", "n2", "n3"}
