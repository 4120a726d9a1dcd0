"""What guests really use, on the real thing: a guest that works moves the choice of the next one, and people see why."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.cluster import WEFT, Cluster
from weft.client import Client
from weft.client.context import find_context
from weft.client.usage import fetch_usage

pytestmark = pytest.mark.host

SMALL = ("--image", "tiny", "--memory", "128M")
WORK = "while :; do :; done & while :; do :; done"
PATIENCE_SECONDS = 60.0


@pytest.mark.long
def test_a_guest_that_works_moves_the_choice_of_the_next_one(cluster: Cluster, gone: Callable[[str], str]) -> None:
    """By what was asked for ``lazy``'s node is the fuller one, by what is used that of ``works``."""
    work = None
    try:
        cluster.ok("policy", "create", "real", "--strategy", "least-loaded", "--basis", "used")
        cluster.ok("vm", "create", gone("works"), *SMALL, "--cpu", "2", "--node", "n1", "--detach")
        cluster.ok("vm", "create", gone("lazy"), *SMALL, "--cpu", "4", "--node", "n2")
        cluster.ok("vm", "wait", "works", "--for", "phase=Running", "--timeout", "60s")
        work = subprocess.Popen(
            [WEFT, "vm", "exec", "works", "--", "sh", "-c", WORK],
            cwd=cluster.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        used = wait_until_measured(cluster)
        assert {row["name"] for row in cluster.json("top", "vms")["items"] if row["settled"]} >= {"works", "lazy"}
        assert used["works"]["memory"] > 50 * 2**20 and used["works"]["disk"] > 0
        nodes = {row["name"]: row for row in cluster.json("top", "nodes")["items"]}
        assert nodes["n1"]["used"]["cpu"] > 3 * nodes["n2"]["used"]["cpu"] and nodes["n1"]["age_seconds"] < 30

        either = (*SMALL, "--cpu", "0.5", "--constraint", "name in (n1,n2)")
        cluster.ok("vm", "create", gone("by-wish"), *either, "--detach")
        cluster.ok("vm", "create", gone("by-use"), *either, "--strategy", "@real")
        assert cluster.vm("by-wish")["status"]["node"] == "n1", cluster.ok("explain", "vm/by-wish")
        told = cluster.ok("explain", "vm/by-use")
        assert cluster.vm("by-use")["status"]["node"] == "n2", told + cluster.ok("top", "nodes")
        assert "by usage" in told.splitlines()[0]

        listed = cluster.ok("get", "nodes", "-o", "wide").splitlines()
        assert "CPU USED" in listed[0] and all("MiB" in line for line in listed[1:3])
        assert " of 8 cpu (" in cluster.ok("node", "describe", "n1")
        assert "CPU USED" in cluster.ok("capacity")
    finally:
        if work is not None:
            work.kill()
            work.wait()
        for name in ("works", "lazy", "by-wish", "by-use"):
            cluster.run("vm", "delete", name, "--yes")
        cluster.run("policy", "delete", "real", "--yes")


def wait_until_measured(cluster: Cluster) -> dict[str, Any]:
    """What both VMs use, once that can be gone by and one of them clearly works."""
    uids = {name: cluster.vm(name)["uid"] for name in ("works", "lazy")}
    client = Client(find_context(folder=str(cluster.folder), environ={}))
    ends_at = time.monotonic() + PATIENCE_SECONDS
    try:
        while True:
            told = {uid: use for node in fetch_usage(client.http, guests=True) for uid, use in node["guests"].items()}
            used = {name: told[uid] for name, uid in uids.items() if uid in told}
            if len(used) == 2 and all(use["settled"] for use in used.values()):
                if used["works"]["cpu"] > 0.4 + 3 * used["lazy"]["cpu"]:
                    return used
            assert time.monotonic() < ends_at, used
            time.sleep(0.2)
    finally:
        client.close()
