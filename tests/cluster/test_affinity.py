"""Near its data and apart from its like, on nodes that are real: what agents report is what decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.host
Gone = Callable[[str], str]
POSTGRES = str(Path(__file__).resolve().parents[2] / "examples" / "postgres.nix")
SMALL = ("--image", "tiny", "--memory", "128M", "--cpu", "0.5", "--grace", "1s")


@pytest.mark.long
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


@pytest.mark.long
def test_a_database_as_the_book_writes_it_is_refused_in_words_and_placed_where_a_node_is_right(
    cluster: Cluster, gone: Gone
) -> None:
    def create(constraint: str, *more: str) -> tuple[int, str]:
        wish = ("--constraint", constraint, "--anti-affinity-group", "webapp", "--storage-locality", "required", *more)
        done = cluster.run("vm", "create", gone("database"), "--config", POSTGRES, "--type", "long-lived", *wish)
        return done.returncode, done.stderr.decode()

    cluster.ok("vm", "create", gone("webapp-1"), *SMALL, "--anti-affinity-group", "webapp", "--node", "n1", "--detach")
    code, told = create("storage=nvme,memory>=32000GB")
    assert code == 6 and "storage is" in told and "wanted >= 32000GB" in told
    cluster.ok("vm", "delete", "database", "--yes")
    for node in ("n1", "n2"):
        cluster.ok("label", f"node/{node}", "shelf=nvme")
    code, told = create("shelf=nvme,memory>=1GB", "--detach")
    assert code == 0, told
    cluster.ok("wait", "vm/database", "--for", "condition=Placed")
    verdicts = cluster.json("get", "decision", "vm.database")["spec"]["verdicts"]
    assert {verdict["node"]: verdict["reason"] for verdict in verdicts} == {
        "n2": "",
        "n1": "vm/webapp-1 of anti-affinity group webapp is there",
        "n3": "has no shelf, wanted nvme",
    }
    for node in ("n1", "n2"):
        cluster.ok("label", f"node/{node}", "shelf-")
