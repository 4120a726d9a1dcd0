"""A VM has a replica at a second cluster: points go on after the line was cut, it is promoted there, and only what changed comes
back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.cluster import Cluster, until
from tests.cluster.second import THERE, cut, with_second
from weft.launch.local.down import WEST

pytestmark = pytest.mark.host

WRITE = "n=0; while :; do n=$((n + 1)); read up _ < /proc/uptime; echo $n $up >> /root/log; sync; sleep 0.2; done"


@pytest.fixture(scope="module")
def pair(cluster: Cluster) -> Iterator[Cluster]:
    with with_second(cluster):
        yield cluster


def read(cluster: Cluster, *where: str) -> dict[int, float]:
    """What the guest wrote: numbers, and when, in seconds of its uptime then."""
    lines = cluster.ok(*where, "vm", "exec", "till", "--", "cat", "/root/log").splitlines()
    return {int(number): float(at) for number, at in map(str.split, lines)}


def see(cluster: Cluster) -> dict[str, Any]:
    """The replication's status here."""
    found: dict[str, Any] = cluster.object("replication", "till")["status"]
    return found


def test_a_vm_goes_to_the_other_cluster_and_comes_back(pair: Cluster) -> None:
    east = pair
    east.ok("vm", "create", "till", "--image", "tiny", "--memory", "128M")
    east.ok("vm", "exec", "till", "--", "sh", "-c", f"({WRITE}) >/dev/null 2>&1 &")
    east.ok("cluster", "replicate", "vm/till", "--destination", WEST, "--rpo", "10s")
    east.ok("cluster", "replicate", "vm/till", "--destination", WEST)  # what isn't given stays
    assert east.object("replication", "till")["spec"]["rpo"] == 10.0
    whole = see(east)["bytes"]

    with cut(east):
        until(lambda: see(east)["phase"] == "Interrupted")
        newest = see(east)["point"]["number"]
    until(lambda: see(east)["point"]["number"] > newest)
    link = east.object("cluster", WEST)["status"]
    assert (link["phase"], link["rpo_seconds"]) == ("Linked", 10.0) and link["lag_seconds"] is not None

    written, up = read(east), float(east.ok("vm", "exec", "till", "--", "cat", "/proc/uptime").split()[0])
    assert "both would write" in east.fails(5, *THERE, "replica", "promote", "till")
    promoted = east.run(*THERE, "replica", "promote", "till", "--force")  # without a word to the first cluster
    told = re.search(r"from point \d+, which is ([0-9.]+)s old", promoted.stderr.decode())
    assert promoted.returncode == 0 and told is not None, promoted.stderr
    there = read(east, *THERE)
    lost = [at for number, at in written.items() if number not in there]
    assert all(up - at <= float(told[1]) + 1 for at in lost), (
        up,
        lost,
        told[1],
    )  # all that is lost is younger than it says
    assert {number: at for number, at in written.items() if number in there} == {
        number: at for number, at in there.items() if number in written
    }
    until(lambda: east.vm("till")["marks"]["fenced"] == "till" and east.vm("till")["status"]["phase"] == "Stopped")
    assert "only one of both may run" in east.fails(5, "vm", "start", "till")

    east.ok(*THERE, "vm", "exec", "till", "--", "sh", "-c", "echo west > /root/who; sync")
    east.ok(*THERE, "cluster", "replicate", "vm/till", "--destination", "east", "--rpo", "10s")
    back = east.json(*THERE, "replication", "describe", "till")["status"]
    assert back["bytes"] < whole / 2, (back, whole)
    east.ok(*THERE, "replication", "hand-over", "till")
    assert "only one of both may run" in east.fails(5, *THERE, "vm", "start", "till")
    returned = east.run("replica", "promote", "till")
    assert returned.returncode == 0 and b"nothing is lost" in returned.stderr, returned.stderr
    assert read(east) == there
    assert east.ok("vm", "exec", "till", "--", "cat", "/root/who") == "west\n"
    names = [one["name"] for one in east.json("snapshot", "list")["items"]]
    assert any("-before-" in name for name in names), names  # what it had written after the point is kept
