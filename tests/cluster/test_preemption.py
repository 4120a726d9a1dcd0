"""A best-effort VM gives way to a lease on real QEMU, and goes on where it was, on its node or on another one."""

from __future__ import annotations

import os

from tests.cluster.cluster import Cluster, until
from tests.cluster.containers import Gone

COUNTS = "(exec 3>/tmp/open; i=0; while :; do i=$((i+1)); echo $i >&3; sleep 0.2; done) >/dev/null 2>&1 </dev/null &"


def test_a_best_effort_vm_is_suspended_for_an_immediate_lease_and_goes_on_after_it(
    cluster: Cluster, gone: Gone
) -> None:
    home = cluster.vm("hello")["status"]["node"]
    node = "n1" if home != "n1" else "n2"
    cores = int(cluster.object("node", node)["report"]["cpu"])
    small = ("--image", "tiny", "--memory", "128M", "--node", node, "--cpu")
    cluster.ok("vm", "create", gone("spare"), *small, str(cores - 1), "--lease", "best-effort")
    cluster.ok("vm", "exec", "spare", "--", "sh", "-c", COUNTS)
    before = cluster.vm("spare")["status"]
    cluster.ok("vm", "create", gone("web"), *small, str(cores // 2), "--lease", "immediate", "--detach")
    until(lambda: cluster.vm("spare")["status"]["reason"] == "preempted" or cluster.pids("-name", "guest=web"))
    for pid in cluster.pids("weft server controllers"):
        os.kill(pid, 9)
    until(lambda: cluster.vm("web")["status"]["phase"] == "Running")
    spare = cluster.vm("spare")["status"]
    assert (spare["phase"], spare["reason"], spare["lease"]["state"]) == ("Suspended", "preempted", "Suspended")
    assert "vm/web" in spare["lease"]["message"] and not cluster.pids("-name", "guest=spare")
    cluster.ok("vm", "delete", "web", "--yes")
    until(lambda: cluster.vm("spare")["status"]["phase"] == "Running")
    assert cluster.vm("spare")["status"]["boot_id"] == before["boot_id"]
    lines = cluster.ok("vm", "exec", "spare", "--", "sh", "-c", "cat /tmp/open; sleep 2; echo; cat /tmp/open")
    first, then = (part.split() for part in lines.split("\n\n"))
    assert then == [str(number + 1) for number in range(len(then))] and len(then) > len(first) > 0


def test_one_whose_node_stays_full_goes_on_with_its_memory_on_another_one(cluster: Cluster, gone: Gone) -> None:
    nodes = ("n1", "n2", "n3")
    cores = {node: int(cluster.object("node", node)["report"]["cpu"]) for node in nodes}
    small = ("--image", "tiny", "--memory", "128M", "--cpu")
    most = str(max(cores.values()) // 2 + 1)  # a node has enough for one
    cluster.ok("vm", "create", gone("spare"), *small, most, "--lease", "best-effort")
    cluster.ok("vm", "exec", "spare", "--", "sh", "-c", COUNTS)
    before = cluster.vm("spare")["status"]
    others = [node for node in nodes if node != before["node"]]
    for node in others:
        cluster.ok("vm", "create", gone(f"fill-{node}"), *small, most, "--node", node)
    cluster.ok("vm", "create", gone("web"), *small, most, "--lease", "immediate")
    until(lambda: cluster.vm("spare")["status"]["phase"] == "Suspended")
    cluster.ok("vm", "delete", f"fill-{others[0]}", "--yes")
    until(lambda: cluster.vm("spare")["status"]["phase"] == "Running", 180)
    after = cluster.vm("spare")["status"]
    assert (after["node"], after["boot_id"]) == (others[0], before["boot_id"])
    assert cluster.vm("web")["status"]["node"] == before["node"] and len(cluster.pids("-name", "guest=spare")) == 1
    lines = cluster.ok("vm", "exec", "spare", "--", "sh", "-c", "cat /tmp/open; sleep 2; echo; cat /tmp/open")
    first, then = (part.split() for part in lines.split("\n\n"))
    assert then == [str(number + 1) for number in range(len(then))] and len(then) > len(first) > 0
