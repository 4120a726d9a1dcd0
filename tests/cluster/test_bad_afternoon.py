"""A bad afternoon: a guest eats memory, a disk fills, a link loses packets, an agent hangs. Each is found by what an administrator
has: alerts, metrics, flows, logs, lists. How long it took is printed, since a test asserts no times: see docs/measured.md."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest

from tests.cluster.cluster import WEFT, Cluster, until
from tests.cluster.containers import IMAGE

pytestmark = pytest.mark.host
Gone = Callable[[str], str]
SMALL = ("--image", "tiny", "--memory", "128M", "--cpu", "1")
POOL_MIB = 64
WRITTEN_MIB = 80
# Written piece by piece: busybox's tr takes an emulated processor a quarter of a second for each MiB.
FILL = f"dd if=/dev/zero bs=1M count=1 | tr '\\0' x > /tmp/x; for n in $(seq {WRITTEN_MIB}); do cat /tmp/x; done > /root/big"


def find_agent(cluster: Cluster, node: str) -> int:
    pid = cluster.pid(f"weft agent {node} --state")
    return pid


def inside(cluster: Cluster, node: str, *words: str) -> str:
    """Run a program of this machine in the namespaces of a node."""
    argv = ["nsenter", "-t", str(find_agent(cluster, node)), "-m", "-p", "-n", *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def list_firing(cluster: Cluster, rule: str, **labels: str) -> list[dict[str, Any]]:
    found = cluster.json("alert", "list", "-p", "fabric", "--rule", rule, "--state", "firing")["items"]
    return [one for one in found if labels.items() <= one["labels"].items()]


def find_alert(cluster: Cluster, rule: str, since: float, **labels: str) -> dict[str, Any]:
    until(lambda: list_firing(cluster, rule, **labels))
    print(f"{rule}: found after {time.monotonic() - since:.1f} s")
    return list_firing(cluster, rule, **labels)[0]


def ask(cluster: Cluster, query: str) -> dict[tuple[str, ...], float]:
    """The newest values by the values of their labels, in the labels' order."""
    answer = cluster.json("api", f"/api/v1/query?query={quote(query)}")["data"]["result"]
    return {
        tuple(value for name, value in sorted(one["metric"].items()) if name != "__name__"): float(one["value"][1])
        for one in answer
    }


@contextmanager
def small_pool(cluster: Cluster) -> Iterator[None]:
    """The pool that nodes share is small: on each node a file system of its own, for what a test puts there."""
    place, id_ = cluster.state / "pools" / "shared", (cluster.state / "pools" / "shared" / "weft-pool-id").read_text()
    for node in ("n1", "n2", "n3"):
        do = f"mount -t tmpfs -o size={POOL_MIB}M small {place} && printf %s '{id_}' > {place}/weft-pool-id"
        inside(cluster, node, "sh", "-c", do)
    before = cluster.object("pool", "shared")["spec"].get("overcommit")
    try:
        cluster.ok("pool", "set", "shared", "--overcommit", "20")
        until(lambda: 0 < cluster.object("pool", "shared")["status"].get("capacity", 0) < 2 * POOL_MIB << 20)
        yield
    finally:
        for node in ("n1", "n2", "n3"):
            inside(cluster, node, "umount", "--lazy", str(place))  # a guest of a test that failed may still be there
        cluster.ok("pool", "set", "shared", "--overcommit", str(before or 2))


@contextmanager
def lossy_link(cluster: Cluster, node: str, source: str) -> Iterator[None]:
    """Of the packets that a node gets from ``source`` three in ten get lost."""
    chain = "add table inet lossy; add chain inet lossy in { type filter hook input priority -300; }"
    inside(cluster, node, "nft", f"{chain}; add rule inet lossy in ip saddr {source} numgen random mod 100 < 30 drop")
    try:
        yield
    finally:
        inside(cluster, node, "nft", "delete table inet lossy")


def test_a_guest_that_eats_memory_is_found(cluster: Cluster, gone: Gone, gone_containers: Gone, registry: str) -> None:
    cluster.ok("vm", "create", gone("hungry"), *SMALL, "--detach")
    do = ("--", "sh", "-c", "sleep 5; tail /dev/zero")
    made = ("--image", f"{registry}/{IMAGE}", "--memory", "48M", "--restart-policy", "never")
    cluster.ok("container", "create", gone_containers("eater"), *made, *do)
    cluster.ok("vm", "wait", "hungry", "--for", "phase=Running")
    until(lambda: cluster.object("container", "eater")["status"]["phase"] == "Failed")
    began = time.monotonic()
    alert = find_alert(cluster, "guest-killed-for-memory", began, name="eater")
    assert alert["summary"].startswith("container default/eater exceeded its memory")
    kills = ask(cluster, 'weft_guest_memory_kills_total{name="eater"}')
    assert list(kills.values()) == [1.0]
    assert "outOfMemory" in cluster.ok("container", "list") and "outOfMemory" in cluster.ok("events", "container/eater")
    # A VM has its own kernel, which says on its console what it did.
    eat = "echo 1 >/proc/sys/vm/overcommit_memory; dd if=/dev/zero of=/dev/null bs=400M count=1"
    cluster.run("vm", "exec", "hungry", "--", "sh", "-c", eat)
    began = time.monotonic()
    until(lambda: cluster.ok("logs", "--vm", "hungry", "--since", "2m", "--filter", "Out of memory"))
    print(f"log: found after {time.monotonic() - began:.1f} s")


@pytest.mark.long
def test_a_disk_that_fills_is_found_and_its_guest_goes_on_once_there_is_space(cluster: Cluster, gone: Gone) -> None:
    with small_pool(cluster):
        cluster.ok("vm", "create", gone("writer"), *SMALL, "--node", "n3", "--pool", "shared")
        work = subprocess.Popen(
            [WEFT, "vm", "exec", "writer", "--", "sh", "-c", FILL],
            cwd=cluster.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            place = str(cluster.state / "pools" / "shared")
            until(lambda: int(inside(cluster, "n3", "stat", "-f", "-c", "%a", place)) * 4096 < (POOL_MIB << 20) // 20)
            began = time.monotonic()
            alert = find_alert(cluster, "node-disk-full", began, node="n3", pool="shared")
            assert alert["severity"] == "critical"
            find_alert(cluster, "guest-disk-failed", began, name="writer")
            assert "diskFailed: the storage of one of its disks is full" in cluster.ok("vm", "list")
            free = ask(cluster, 'weft_node_pool_free_bytes{node="n3",pool="shared"}')
            assert next(iter(free.values())) < (POOL_MIB << 20) / 20
            inside(cluster, "n3", "mount", "-o", "remount,size=250M", place)
            assert work.wait(120) == 0, "the guest went on, and nothing of what it wrote is missing"
            found = cluster.ok("vm", "exec", "writer", "--", "md5sum", "/root/big").split()[0]
            assert found == hashlib.md5(b"x" * (WRITTEN_MIB << 20), usedforsecurity=False).hexdigest()
        finally:
            work.kill()
            work.wait()
            cluster.run("vm", "delete", "writer", "--yes")
        assert "writer" not in cluster.ok("vm", "list")


@pytest.mark.long
def test_a_lossy_link_is_found(cluster: Cluster, gone: Gone) -> None:
    here = cluster.vm("hello")["status"]["node"]
    far = next(name for name in ("n1", "n2", "n3") if name != here)
    cluster.ok("vm", "create", gone("remote"), *SMALL, "--node", far)
    address = cluster.vm("remote")["status"]["address"]
    source = cluster.object("node", here)["report"]["address"]
    assert not list_firing(cluster, "link-lossy", node=here, peer=far)
    with lossy_link(cluster, far, source):
        began = time.monotonic()
        cluster.run("vm", "exec", "hello", "--", "ping", "-c", "60", "-i", "0.1", "-W", "1", address)
        alert = find_alert(cluster, "link-lossy", began)
        assert {alert["labels"]["node"], alert["labels"]["peer"]} == {here, far}
        loss = ask(cluster, "weft_link_loss_ratio > 0.05")
        assert set(loss) <= {(here, far), (far, here)} and all(share < 0.9 for share in loss.values())
        assert "get lost" in cluster.ok("logs", f"node/{here}", f"node/{far}", "--since", "5m", "--filter", "get lost")
        # What leaves one guest and doesn't arrive at the other one was lost between their nodes.
        sent, arrived = (
            next(flow for flow in flows if flow["protocol"] == "icmp" and flow["destination"] == address)
            for flows in (cluster.json("network", "flows", "--vm", vm)["flows"] for vm in ("hello", "remote"))
        )
        assert sent["packets"] != arrived["packets"] and arrived["received_bytes"] < sent["sent_bytes"]
    until(lambda: not list_firing(cluster, "link-lossy"))


@pytest.mark.long
def test_an_agent_that_hangs_is_found(cluster: Cluster) -> None:
    agent = find_agent(cluster, "n2")
    os.kill(agent, signal.SIGSTOP)
    try:
        alert = find_alert(cluster, "node-unreachable", time.monotonic(), node="n2")
        assert alert["summary"].startswith("node n2 answers none of its peers") and alert["severity"] == "critical"
        assert not list_firing(cluster, "link-lossy"), "one fault, one alert"
        loss = ask(cluster, 'weft_link_loss_ratio{peer="n2",node!="n2"}')
        assert list(loss.values()) == [1.0, 1.0]
    finally:
        os.kill(agent, signal.SIGCONT)
    until(lambda: not list_firing(cluster, "node-unreachable"))
    assert not list_firing(cluster, "link-lossy"), "the one that hung makes no news of what it missed"
