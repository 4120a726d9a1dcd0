"""A VM gives way to a lease on real QEMU, for as long as it takes or as planned, and goes on where it was."""

from __future__ import annotations

import os

import pytest

from tests.cluster.cluster import Cluster, until
from tests.cluster.containers import IMAGE, Gone, status
from tests.long import mark_long

COUNTS = "(exec 3>/tmp/open; i=0; while :; do i=$((i+1)); echo $i >&3; sleep 0.2; done) >/dev/null 2>&1 </dev/null &"


def make_spare(cluster: Cluster, name: str, cores: int, *more: str, lease: str = "--lease=best-effort") -> str:
    """A VM that counts; its boot id."""
    words = ("--image", "tiny", "--memory", "128M", "--cpu", str(cores), *lease.split())
    cluster.ok("vm", "create", name, *words, *more)
    cluster.ok("vm", "exec", name, "--", "sh", "-c", COUNTS)
    return str(cluster.vm(name)["status"]["boot_id"])


def check_counts(cluster: Cluster, name: str) -> None:
    """It counts on from where it was."""
    read = (
        "cat /tmp/open; n=$(wc -l < /tmp/open); until [ $(wc -l < /tmp/open) -gt $n ]; do :; done; echo; cat /tmp/open"
    )
    lines = cluster.ok("vm", "exec", name, "--", "sh", "-c", read)
    first, then = (part.split() for part in lines.split("\n\n"))
    assert then == [str(number + 1) for number in range(len(then))] and len(then) > len(first) > 0


def occupy(cluster: Cluster, registry: str, name: str, cores: int, *more: str) -> None:
    """A container that takes so many cores: it begins sooner than a VM."""
    size = ("--memory", "64M", "--cpu", str(cores), "--grace", "1s")
    cluster.ok("container", "create", name, "--image", f"{registry}/{IMAGE}", *size, *more)


def test_a_best_effort_vm_is_suspended_for_an_immediate_lease_and_goes_on_after_it(
    cluster: Cluster, registry: str, gone: Gone, gone_containers: Gone
) -> None:
    home = cluster.vm("hello")["status"]["node"]
    node = "n1" if home != "n1" else "n2"
    cores = int(cluster.object("node", node)["report"]["cpu"])
    boot_id = make_spare(cluster, gone("spare"), 1, "--node", node)
    web = ("--node", node, "--lease", "immediate", "--detach")
    occupy(cluster, registry, gone_containers("web"), cores, *web)
    until(
        lambda: cluster.vm("spare")["status"]["reason"] == "preempted" or status(cluster, "web")["phase"] == "Running"
    )
    for pid in cluster.pids("weft server controllers"):
        os.kill(pid, 9)
    until(lambda: status(cluster, "web")["phase"] == "Running")
    spare = cluster.vm("spare")["status"]
    assert (spare["phase"], spare["reason"], spare["lease"]["state"]) == ("Suspended", "preempted", "Suspended")
    assert "container/web" in spare["lease"]["message"] and not cluster.pids("-name", "guest=spare")
    cluster.ok("container", "delete", "web", "--yes")
    until(lambda: cluster.vm("spare")["status"]["phase"] == "Running")
    assert cluster.vm("spare")["status"]["boot_id"] == boot_id
    check_counts(cluster, "spare")


@pytest.mark.parametrize(
    "urgent", mark_long(["--deadline=50s --duration=5s", "--start=80s --duration=5s"], "--start=80s --duration=5s")
)
def test_a_vm_with_a_deadline_is_suspended_as_planned_and_goes_on_in_time(
    cluster: Cluster, registry: str, gone: Gone, gone_containers: Gone, urgent: str
) -> None:
    home = cluster.vm("hello")["status"]["node"]
    node = "n1" if home != "n1" else "n2"
    cores = int(cluster.object("node", node)["report"]["cpu"])
    lease = "--deadline=10m --duration=90s --preemptible"
    boot_id = make_spare(cluster, gone("work"), 1, "--node", node, lease=lease)
    occupy(cluster, registry, gone_containers("urgent"), cores, "--node", node, "--detach", *urgent.split())
    until(lambda: "suspended as planned" in cluster.vm("work")["status"]["lease"]["message"])
    end = cluster.vm("work")["status"]["lease"]["end"]
    for pid in cluster.pids("weft server controllers"):
        os.kill(pid, 9)
    until(lambda: status(cluster, "urgent")["phase"] == "Running", 120)
    work = cluster.vm("work")
    assert (work["status"]["phase"], work["status"]["lease"]["state"]) == ("Suspended", "Suspended")
    assert not cluster.pids("-name", "guest=work")
    until(lambda: cluster.vm("work")["status"]["phase"] == "Running")
    assert status(cluster, "urgent")["lease"]["state"] == "Done"
    after = cluster.vm("work")["status"]
    assert (after["boot_id"], after["lease"]["end"]) == (boot_id, end)
    check_counts(cluster, "work")


@pytest.mark.long
def test_one_whose_node_stays_full_goes_on_with_its_memory_on_another_one(
    cluster: Cluster, registry: str, gone: Gone, gone_containers: Gone
) -> None:
    nodes = ("n1", "n2", "n3")
    cores = {node: int(cluster.object("node", node)["report"]["cpu"]) for node in nodes}
    most = max(cores.values()) // 2 + 1  # a node has enough for one
    boot_id = make_spare(cluster, gone("spare"), most)
    home = cluster.vm("spare")["status"]["node"]
    others = [node for node in nodes if node != home]
    for node in others:
        occupy(cluster, registry, gone_containers(f"fill-{node}"), most, "--node", node)
    occupy(cluster, registry, gone_containers("web"), most, "--lease", "immediate")
    until(lambda: cluster.vm("spare")["status"]["phase"] == "Suspended")
    cluster.ok("container", "delete", f"fill-{others[0]}", "--yes")
    until(lambda: cluster.vm("spare")["status"]["phase"] == "Running", 180)
    after = cluster.vm("spare")["status"]
    assert (after["node"], after["boot_id"]) == (others[0], boot_id)
    assert status(cluster, "web")["node"] == home and len(cluster.pids("-name", "guest=spare")) == 1
    check_counts(cluster, "spare")
