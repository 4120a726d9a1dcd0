"""`make up CEPH=1`: VMs on disks in Ceph, which move between nodes, outlive an OSD, and are written by one node only."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster, lay_out, until

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not os.environ.get("CEPH"), reason="CEPH=1 is not set: this test starts a Ceph cluster"),
]
COUNT = (
    "(i=0; while true; do i=$((i+1)); echo count $i | dd of=/dev/vdb bs=512 seek=8 conv=sync,fsync,notrunc; "
    "echo $i > /tmp/count; sleep 0.1; done) >/dev/null 2>&1 &"
)
READ = "dd if=/dev/vdb bs=512 skip=8 count=1 iflag=direct 2>/dev/null | head -c 16"


@pytest.fixture(scope="module")
def on_ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if os.geteuid() != 0 or shutil.which("qemu-system-x86_64") is None:
        pytest.skip("needs root and QEMU")
    made = lay_out(tmp_path_factory.mktemp("on-ceph"))
    try:
        made.up(ceph="1")
        made.ok("volume", "create", "data", "--size", "64M", "--pool", "ceph")
        words = ("--image", "tiny", "--memory", "128M", "--pool", "ceph", "--volumes", "data")
        made.ok("vm", "create", "web", *words, "--wait")
        yield made
    finally:
        made.down()
        assert not (made.state / "ceph").exists()
        assert subprocess.run(["pgrep", "-f", f"ceph-.*{made.state}"], check=False).returncode == 1


def sh(cluster: Cluster, script: str) -> str:
    return cluster.ok("vm", "exec", "web", "--", "sh", "-c", script)


def count(cluster: Cluster) -> int:
    return int(sh(cluster, "cat /tmp/count"))


def test_a_pool_in_ceph_is_one_for_all_nodes_and_shows_its_osds(on_ceph: Cluster) -> None:
    pool = on_ceph.object("pool", "ceph")
    assert (pool["spec"]["driver"], pool["status"]["phase"], pool["status"]["nodes"]) == ("rbd", "Ready", 3)
    assert pool["status"]["given"] >= 64 << 20
    metrics = ("storage", "metrics", "--pool", "ceph", "--show-osd-breakdown")
    until(lambda: "write" in str(on_ceph.json(*metrics)["items"][0]["osds"]), 90)
    [found] = on_ceph.json(*metrics)["items"]
    assert [osd["name"] for osd in found["osds"]] == ["osd.0", "osd.1"]
    assert all(0 < osd["used"] < osd["total"] for osd in found["osds"])
    assert "REPLICA" in on_ceph.ok(*metrics)
    assert "OSDs exist only in Ceph pools" in on_ceph.fails(
        2, "storage", "metrics", "--pool", "shared", "--show-osd-breakdown"
    )


def test_a_live_migration_leaves_the_disks_where_they_are(on_ceph: Cluster) -> None:
    made = sh(on_ceph, "dd if=/dev/urandom of=/root/x bs=1M count=8 2>/dev/null; sync; md5sum /root/x")
    sh(on_ceph, COUNT)
    before, boot = on_ceph.vm("web")["status"]["node"], sh(on_ceph, "cat /proc/sys/kernel/random/boot_id")
    on_ceph.ok("vm", "migrate", "web")
    assert on_ceph.vm("web")["status"]["node"] != before
    assert sh(on_ceph, "cat /proc/sys/kernel/random/boot_id") == boot
    assert sh(on_ceph, "echo 3 > /proc/sys/vm/drop_caches; md5sum /root/x") == made
    now = count(on_ceph)
    until(lambda: count(on_ceph) > now)


def test_the_guest_writes_on_after_an_osd_is_killed(on_ceph: Cluster) -> None:
    [osd] = on_ceph.pids("ceph-osd", " -i 0 ")
    os.kill(osd, signal.SIGKILL)
    now = count(on_ceph)
    until(lambda: count(on_ceph) > now + 5)
    until(lambda: on_ceph.pids("ceph-osd", " -i 0 ") not in ([], [osd]))  # its supervisor starts it again


def test_what_it_cannot_do_is_refused_with_a_reason(on_ceph: Cluster) -> None:
    refused = on_ceph.run("vm", "snapshot", "web", "--name", "s1")
    assert refused.returncode and b"storage pool ceph can't keep snapshots" in refused.stdout + refused.stderr
    on_ceph.run("delete", "snapshot/s1")


def test_a_node_that_was_given_up_writes_no_more_before_the_guest_begins_elsewhere(on_ceph: Cluster) -> None:
    lost = on_ceph.vm("web")["status"]["node"]
    [agent] = on_ceph.pids(f"weft agent {lost} ")
    [guest] = on_ceph.pids("qemu-system", "guest=web")
    os.kill(agent, signal.SIGSTOP)  # the server hears nothing, and the guest runs on
    try:
        until(lambda: on_ceph.object("node", lost)["status"]["phase"] == "NotReady")
        told = on_ceph.run("node", "delete", lost, "--force", "--yes")
        assert told.returncode == 0 and b"web" not in told.stderr.split(b"wait for the node", 1)[-1].splitlines()[0]
        until(lambda: on_ceph.vm("web")["status"].get("node") not in (None, lost), 90)
        until(lambda: on_ceph.vm("web")["status"]["phase"] == "Running", 90)
        assert guest in on_ceph.pids("qemu-system", "guest=web"), "the lost guest still runs"
        first = sh(on_ceph, READ)
        assert first.startswith("count ")
        assert "cut off" in on_ceph.logs()
        assert sh(on_ceph, f"sleep 2; {READ}") == first, "nobody writes any more"
    finally:
        os.kill(agent, signal.SIGCONT)
    until(lambda: guest not in on_ceph.pids("qemu-system"), 60)  # it is told that it was superseded
