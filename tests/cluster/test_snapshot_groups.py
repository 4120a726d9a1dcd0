"""Snapshots of VMs on two nodes at one instant, on a real cluster: what one VM told the other is in both or in neither."""

from __future__ import annotations

import threading

import pytest

from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.host


def write(cluster: Cluster, vm: str, number: int) -> None:
    cluster.ok("vm", "exec", vm, "--", "sh", "-c", f"echo {number} > /root/n; sync")


def read(cluster: Cluster, vm: str) -> int:
    return int(cluster.ok("vm", "exec", vm, "--", "cat", "/root/n"))


@pytest.mark.long
def test_a_group_is_of_one_instant_across_nodes_and_ready_as_a_whole(cluster: Cluster) -> None:
    for vm, node in (("shop-web", "n1"), ("shop-db", "n2")):
        cluster.ok("vm", "create", vm, "--image", "tiny", "--node", node, "--label", "app=shop")
        write(cluster, vm, 0)
    over = threading.Event()

    def count() -> None:
        number = 0
        while not over.is_set():
            number += 1
            write(cluster, "shop-web", number)
            write(cluster, "shop-db", number)

    counting = threading.Thread(target=count)
    counting.start()
    try:
        said = cluster.ok("vm", "snapshot", "shop-web", "shop-db", "--group", "one")
        print(said)
        assert "snapshot/one-shop-web  Ready" in said and "snapshot/one-shop-db  Ready" in said
        cluster.ok("vm", "snapshot", "-l", "app=shop", "--group", "two", "--memory")
    finally:
        over.set()
        counting.join()
    listed = cluster.json("snapshot", "list")["items"]
    assert {one["status"]["node"] for one in listed} == {"n1", "n2"}
    for one in listed:
        print(one["name"], one["status"]["consistency"], one["status"]["pause_ms"])
    print(cluster.ok("snapshot", "list"))
    assert "GROUP" in cluster.ok("snapshot", "list")
    for vm in ("shop-web", "shop-db"):
        cluster.ok("vm", "restore", vm, "--snapshot", f"one-{vm}", "--new-name", f"{vm}-then")
    assert read(cluster, "shop-web-then") - read(cluster, "shop-db-then") in (0, 1)
    cluster.ok("vm", "delete", "shop-web", "shop-db", "shop-web-then", "shop-db-then", "--snapshots", "--yes")
    assert cluster.json("snapshot", "list")["items"] == []
