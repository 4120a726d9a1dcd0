"""kill -9, power cuts and lost stores on the real thing: running guests keep running, and nothing is lost, doubled or orphaned."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.soak import Progress, Soak
from benchmarks.soak.copies import Copies, Standing

from tests.cluster.cluster import Cluster, until
from tests.long import mark_long

pytestmark = pytest.mark.host
Gone = Callable[[str], str]


def kill(pids: list[int]) -> None:
    assert pids
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def settled(cluster: Cluster, seconds: float = 90) -> None:
    """Wait until every node is Ready and every VM Running."""
    deadline = time.monotonic() + seconds
    while True:
        done = cluster.run("get", "node", "-o", "json")
        vms = cluster.run("get", "vm", "-o", "json")
        if done.returncode == vms.returncode == 0:
            nodes = cluster.json("get", "node")["items"]
            machines = cluster.json("get", "vm")["items"]
            if (
                all(n["status"]["phase"] == "Ready" for n in nodes)
                and len(nodes) == 3
                and all(m["status"]["phase"] == "Running" for m in machines)
            ):
                return
        assert time.monotonic() < deadline, done.stderr.decode() + vms.stdout.decode() + cluster.logs()
        time.sleep(0.5)


def boot_id(cluster: Cluster, name: str) -> str:
    """As the guest itself says; a gateway that has just begun may answer a moment later than its server."""
    words = ("vm", "exec", name, "--", "cat", "/proc/sys/kernel/random/boot_id")
    until(lambda: cluster.run(*words).returncode == 0)
    return cluster.ok(*words).strip()


def one_guest(cluster: Cluster, name: str) -> int:
    pids = cluster.pids("qemu-system", f"guest={name}")
    assert len(pids) == 1, pids
    return pids[0]


def no_orphans(cluster: Cluster) -> None:
    assert [n["report"]["orphans"] for n in cluster.json("get", "node")["items"]] == [[], [], []]


@pytest.mark.parametrize(
    "victims",
    mark_long([["weft server"], ["weft agent"], ["weft server", "weft agent"]], ["weft server"], ["weft agent"]),
    ids=lambda v: "+".join(v),
)
def test_kill_9_leaves_the_guest_running_and_the_fabric_converges(cluster: Cluster, victims: list[str]) -> None:
    boot, pid = boot_id(cluster, "hello"), one_guest(cluster, "hello")
    for victim in victims:
        kill(cluster.pids(victim))
    cluster.up()
    settled(cluster)
    assert (boot_id(cluster, "hello"), one_guest(cluster, "hello")) == (boot, pid)
    no_orphans(cluster)


HOG = """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
held = []
print("holds", flush=True)
while len(held) < 256: held.append(os.urandom(1 << 20))
"""


def memory_group(pid: int) -> Path:
    """Where the kernel counts its memory, as this machine sees it."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for top in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup"):
            if "memory" in controllers.split(",") or (not controllers and not Path("/sys/fs/cgroup/memory").exists()):
                folder = Path(top + path)
                if (folder / "cgroup.procs").exists():
                    return folder
    raise AssertionError("its memory is counted nowhere")


def test_an_agent_that_needs_too_much_memory_is_ended_alone_and_takes_its_guests_up_again(cluster: Cluster) -> None:
    node = cluster.vm("hello")["status"]["node"]
    mark = f"weft agent {node} --state"
    agent = cluster.pids(mark)
    assert len(agent) == 1
    group, before, guest = memory_group(agent[0]), boot_id(cluster, "hello"), one_guest(cluster, "hello")
    servers = cluster.pids("dnsmasq")
    inside = {int(word) for word in (group / "cgroup.procs").read_text().split()}
    assert group.name == "agent" and agent[0] in inside
    assert guest not in inside and servers and not inside & set(servers)
    file = group / ("memory.max" if (group / "memory.max").exists() else "memory.limit_in_bytes")
    limit = int(file.read_text())
    used = int((group / ("memory.current" if file.name == "memory.max" else "memory.usage_in_bytes")).read_text())
    assert limit >= 1 << 30
    Path(f"/proc/{agent[0]}/oom_score_adj").write_text("1000")  # it is what has grown, as far as the kernel is to know
    file.write_text(str(used + (32 << 20)))
    with subprocess.Popen([sys.executable, "-c", HOG, str(group)], stdout=subprocess.PIPE) as hog:
        try:
            deadline = time.monotonic() + 60
            while agent[0] in cluster.pids(mark):
                assert time.monotonic() < deadline, "the kernel ended nobody"
                time.sleep(0.05)
        finally:
            hog.kill()
    settled(cluster)
    until(lambda: len(cluster.pids(mark)) == 1)
    again = cluster.pids(mark)
    assert again != agent
    until(lambda: memory_group(again[0]) == group)  # where it goes itself, after it has begun
    assert int(file.read_text()) == limit  # as it was
    assert one_guest(cluster, "hello") == guest and boot_id(cluster, "hello") == before
    no_orphans(cluster)


def test_a_killed_guest_is_started_again(cluster: Cluster) -> None:
    boot = boot_id(cluster, "hello")
    kill([one_guest(cluster, "hello")])
    deadline = time.monotonic() + 60
    while cluster.vm("hello")["status"].get("boot_id") in (boot, None):
        assert time.monotonic() < deadline, cluster.vm("hello")
        time.sleep(0.5)
    settled(cluster)
    assert boot_id(cluster, "hello") != boot


def test_a_power_cut_of_a_node_brings_its_guests_back_on_it(cluster: Cluster) -> None:
    node = cluster.vm("hello")["status"]["node"]
    kill(cluster.pids(f"weft init {node}"))
    deadline = time.monotonic() + 60
    while cluster.pids("guest=hello"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    cluster.up()
    one_guest(cluster, "hello")  # up has waited for it, though the server did not know of its death
    settled(cluster)
    assert cluster.vm("hello")["status"]["node"] == node


@pytest.mark.long
def test_creates_that_are_cut_off_anywhere_by_a_kill_are_finished(cluster: Cluster) -> None:
    soak = Soak(cluster, Progress(seed=7))
    for soak.round in range(3):
        soak.kill_half_way(random.Random(f"7/{soak.round}"))
    soak.settle()
    assert soak.half_way >= 1, soak.killed


@pytest.mark.long
def test_snapshots_and_backups_hold_what_they_must_whoever_is_killed_meanwhile(cluster: Cluster) -> None:
    copies = Copies(cluster, Standing(seed=3), cluster.make_folder("repository"))
    copies.run(rounds=3)
    assert copies.right == 1


def test_a_vm_deleted_while_it_boots_leaves_nothing(cluster: Cluster) -> None:
    cluster.ok("vm", "create", "brief", "--image", "tiny", "--memory", "128M", "--detach")
    time.sleep(1.0)
    cluster.ok("vm", "delete", "brief", "--yes")
    assert cluster.run("get", "vm/brief").returncode == 3
    assert not cluster.pids("guest=brief")
    no_orphans(cluster)


@pytest.mark.long
def test_a_backup_put_back_under_running_guests_ends_none_and_lists_those_made_since(
    cluster: Cluster, gone: Gone
) -> None:
    boot, pid = boot_id(cluster, "hello"), one_guest(cluster, "hello")
    backup = str(cluster.make_folder("before") / "backup")
    cluster.ok("server", "backup", backup)
    cluster.ok("vm", "create", gone("since"), "--image", "tiny", "--memory", "128M")
    since = one_guest(cluster, "since")
    assert "another server uses" in cluster.fails(5, "server", "restore", backup)
    kill(cluster.pids("weft server"))
    deadline = time.monotonic() + 60
    while cluster.pids("weft server"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    cluster.ok("server", "restore", backup)
    cluster.up()
    settled(cluster)
    assert (boot_id(cluster, "hello"), one_guest(cluster, "hello")) == (boot, pid)
    deadline = time.monotonic() + 60
    while "vm/default/since" not in cluster.run("doctor").stdout.decode():
        assert time.monotonic() < deadline, cluster.logs()
        time.sleep(0.5)
    assert one_guest(cluster, "since") == since
    cluster.ok("vm", "create", "since", "--image", "tiny", "--memory", "128M")  # asked for again, it is taken back
    assert one_guest(cluster, "since") == since


def test_amnesia_an_older_and_then_an_empty_store_kill_no_guest(cluster: Cluster, gone: Gone) -> None:
    """Design, part 2: restore an older store, then an empty one, under running guests."""
    boot, pid = boot_id(cluster, "hello"), one_guest(cluster, "hello")
    kill(cluster.pids("weft server"))
    until(lambda: not cluster.pids("weft server"))
    server = cluster.state / "server"
    older = cluster.make_folder("older")
    for path in server.glob("store.db*"):
        shutil.copy2(path, older)
    cluster.up()
    cluster.ok("vm", "create", gone("newer"), "--image", "tiny", "--memory", "128M")
    newer_boot, newer_pid = boot_id(cluster, "newer"), one_guest(cluster, "newer")

    def replace_store(with_older: bool) -> None:
        kill(cluster.pids("weft server"))
        until(lambda: not cluster.pids("weft server"))
        for path in server.glob("store.db*"):
            path.unlink()
        if with_older:
            for path in older.iterdir():
                shutil.copy2(path, server)
        cluster.up()

    def wait_for_orphan(name: str) -> None:
        deadline = time.monotonic() + 60
        while True:
            nodes = cluster.json("get", "node")["items"]
            if len(nodes) == 3 and any(f"/{name} " in o for n in nodes for o in n.get("report", {}).get("orphans", ())):
                return
            assert time.monotonic() < deadline, (nodes, cluster.logs())
            time.sleep(0.5)

    replace_store(with_older=True)
    settled(cluster)
    assert (boot_id(cluster, "hello"), one_guest(cluster, "hello")) == (boot, pid)
    wait_for_orphan("newer")
    assert one_guest(cluster, "newer") == newer_pid, "a guest the store forgot was stopped"

    replace_store(with_older=False)
    wait_for_orphan("newer")
    assert one_guest(cluster, "newer") == newer_pid
    assert one_guest(cluster, "hello") == pid
    assert newer_boot

    # What the store forgot can be asked for again: the running guest is adopted, not started a second time.
    cluster.ok("vm", "create", "newer", "--image", "tiny", "--memory", "128M")
    assert (boot_id(cluster, "newer"), one_guest(cluster, "newer")) == (newer_boot, newer_pid)

    # Made again in an empty store the network is another one of that name; for the tests that follow hello moves into it.
    cluster.ok("vm", "delete", "hello", "--yes")
    cluster.ok("vm", "create", "hello", "--image", "tiny", "--memory", "128M")
