"""Snapshots on a real cluster, as people take them: before a change, back again, and the same machine under another name."""

from __future__ import annotations

import pytest

from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.host

ADDRESS = "for try in $(seq 90); do ip -o -4 addr show eth0 | grep -o inet.*/ && exit; sleep 1; done; exit 1"
WHO = f"hostname; cat /sys/class/net/eth0/address; {ADDRESS}"  # a new name, and so a new address, comes a moment later


def run(cluster: Cluster, vm: str, script: str) -> list[str]:
    return cluster.ok("vm", "exec", vm, "--", "sh", "-c", script).splitlines()


def test_a_vm_goes_back_and_runs_a_second_time_under_other_names(cluster: Cluster) -> None:
    cluster.ok("volume", "create", "notes", "--size", "64M")
    cluster.ok("vm", "create", "desk", "--image", "tiny", "--memory", "128M", "--volume", "notes")
    run(cluster, "desk", "echo first > /root/note; cp /root/note /dev/vdb; sync")

    said = cluster.ok("vm", "snapshot", "desk", "--name", "disks")
    assert said.startswith("snapshot/disks  Ready on ") and "with frozen file systems" in said
    said = cluster.ok("vm", "snapshot", "desk", "--name", "alive", "--memory")
    assert ": memory and disks of one instant, the VM paused for " in said and " of memory\n" in said

    run(cluster, "desk", "echo second > /root/note; cp /root/note /dev/vdb; sync")
    boot = run(cluster, "desk", "cat /proc/sys/kernel/random/boot_id")
    cluster.ok("vm", "restore", "desk", "--snapshot", "alive", "--yes")
    both = "cat /root/note; head -n 1 /dev/vdb"
    assert run(cluster, "desk", f"{both}; cat /proc/sys/kernel/random/boot_id") == ["first", "first", *boot]
    run(cluster, "desk", "echo third > /root/note; sync")
    done = cluster.run("vm", "restore", "desk", "--snapshot", "disks")
    assert done.returncode == 0 and b"what stood there is kept as snapshot/desk-before-" in done.stderr
    assert run(cluster, "desk", "cat /root/note") == ["first"]

    cluster.ok("vm", "restore", "desk", "--snapshot", "alive", "--new-name", "desk-b")
    cluster.ok("vm", "clone", "desk", "desk-c")
    assert [run(cluster, vm, both) for vm in ("desk", "desk-b", "desk-c")] == [["first"] * 2] * 3
    names = [run(cluster, vm, WHO) for vm in ("desk", "desk-b", "desk-c")]
    assert [who[0] for who in names] == ["desk", "desk-b", "desk-c"]
    assert all(len(set(column)) == 3 for column in zip(*names, strict=True)), names  # each its own

    cluster.ok("vm", "delete", "desk-b", "desk-c", "--yes")
    cluster.ok("volume", "delete", "desk-b-notes", "desk-c-notes", "--yes")
    done = cluster.run("vm", "delete", "desk", "--snapshots", "--yes")
    assert done.returncode == 0 and b"stay" not in done.stderr, done.stderr
    assert cluster.json("snapshot", "list")["items"] == []
    cluster.ok("volume", "delete", "notes", "--yes")
