"""A best-effort VM gives way to a lease on real QEMU, and goes on where it was."""

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
