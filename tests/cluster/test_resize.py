"""`weft vm set` on a running guest: what it takes is said first, then it is so; and what can't be waits and says why."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.host
Gone = Callable[[str], str]
SIZES = "for disk in /sys/block/vd*; do echo $(cat $disk/serial)=$(($(cat $disk/size) / 2048)); done | sort | xargs"


def inside(cluster: Cluster, vm: str, script: str) -> str:
    return cluster.ok("vm", "exec", vm, "--", "sh", "-c", script).strip()


def soon(cluster: Cluster, vm: str, test: str) -> None:
    inside(cluster, vm, f"for n in $(seq 600); do {test} && exit 0; sleep 0.1; done; exit 1")


def until_current(cluster: Cluster, vm: str, status: str, reason: str) -> None:
    """Wait until the condition says this: between a wish and its answer it says Changing."""
    deadline = time.monotonic() + 60
    while True:
        said = {c["type"]: (c["status"], c["reason"]) for c in cluster.vm(vm)["conditions"]}
        if said["Current"] == (status, reason):
            return
        assert time.monotonic() < deadline, said
        time.sleep(0.2)


def test_a_running_guest_gets_cpus_memory_volumes_and_nics_and_its_changes_say_what_they_take(
    cluster: Cluster, gone: Gone
) -> None:
    cluster.ok("vm", "create", gone("grower"), "--image", "tiny", "--memory", "128M")
    cluster.ok("network", "create", "growth", "--cidr", "10.231.7.0/24")
    cluster.ok("volume", "create", "growth", "--size", "32M")
    boot = cluster.vm("grower")["status"]["boot_id"]

    told = cluster.run("vm", "set", "grower", "--cpu", "2", "--machine", "microvm", "--dry-run")
    assert told.stderr.decode().splitlines() == [
        "vm/grower  cpu 1 → 2: live",
        "vm/grower  machine q35 → microvm: needs a restart",
    ]
    assert cluster.vm("grower")["spec"]["cpu"] == 1

    cluster.ok("vm", "set", "grower", "--cpu", "2", "--memory", "512M", "--volume", "growth", "--disk", "2G")
    soon(cluster, "grower", "[ $(nproc) = 2 ]")
    soon(cluster, "grower", "[ $(awk '/MemTotal/{print $2}' /proc/meminfo) -gt 400000 ]")
    assert inside(cluster, "grower", SIZES) == "growth=32 root=2048"
    cluster.ok("volume", "resize", "growth", "64M")
    soon(cluster, "grower", f"[ \"$({SIZES})\" = 'growth=64 root=2048' ]")
    cluster.ok("vm", "set", "grower", "--network", "default,growth")
    soon(cluster, "grower", "ip -o -4 addr | grep -q 10.231.7.")
    cluster.ok("vm", "set", "grower", "--network", "default")
    cluster.ok("volume", "detach", "growth", "grower")
    assert inside(cluster, "grower", SIZES) == "root=2048"
    soon(cluster, "grower", "! ip -o link | grep -q eth1")
    assert cluster.vm("grower")["status"]["boot_id"] == boot

    cluster.ok("volume", "delete", "growth", "--yes")
    cluster.ok("network", "delete", "growth", "--yes")


@pytest.mark.long
def test_what_needs_a_restart_waits_for_it_and_what_has_no_room_says_so_by_name(cluster: Cluster, gone: Gone) -> None:
    cluster.ok("vm", "create", gone("waiter"), "--image", "tiny", "--memory", "128M", "--node", "n3")
    cluster.ok("vm", "set", "waiter", "--machine", "microvm")
    until_current(cluster, "waiter", "False", "RestartNeeded")
    deadline = time.monotonic() + 60
    while "machine q35 → microvm" not in (told := cluster.ok("describe", "vm", "waiter")):  # Changing, for a moment
        assert time.monotonic() < deadline, told
        time.sleep(0.2)
    cluster.ok("vm", "set", "waiter", "--machine", "q35")

    cluster.run("vm", "create", gone("other"), "--image", "tiny", "--memory", "128M", "--node", "n3", "--detach")
    cluster.ok("wait", "vm/other", "--for", "condition=Placed")
    room = cluster.vm("waiter")["status"]["resize_limits"]
    said = cluster.fails(6, "vm", "set", "waiter", "--memory", str(room["memory"]), "--cpu", str(room["cpu"]))
    assert "insufficientResources" in said or "more memory requested" in said
    until_current(cluster, "waiter", "False", "insufficientResources")
    assert inside(cluster, "waiter", "nproc") == "1"
    cluster.ok("vm", "set", "waiter", "--memory", "160M", "--cpu", "1")
    until_current(cluster, "waiter", "True", "Current")
