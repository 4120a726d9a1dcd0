"""A VM has a second copy on another node: its own node loses its power, and it goes on from there, with what it had written."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster, until
from tests.cluster.test_backups import run
from tests.cluster.test_bad_days import kill, settled
from tests.cluster.test_twin import place
from tests.scenario.bmc_lab import PASSWORD, USER, run_redfish

pytestmark = pytest.mark.host
RPO = 10.0


def see(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = cluster.object("replication", "till-copy")["status"]
    return found


def is_copied(cluster: Cluster, since: float) -> bool:
    """Whether a point that was begun after that has come."""
    point = see(cluster)["point"]
    return point is not None and point["begun_at"] > since


def test_a_vm_goes_on_from_its_second_copy_and_the_returned_node_keeps_its_disks(
    cluster: Cluster, gone: Callable[[str], str], tmp_path: Path
) -> None:
    cluster.ok("volume", "create", "sales", "--size", "64M")
    place(cluster, "n2", gone("till"), "--volume", "sales", "--copies", "2", "--on-node-loss", "restart")
    cluster.ok("wait", "vm/till")
    until(lambda: cluster.run("get", "replication/till-copy").returncode == 0)
    cluster.ok("replication", "set", "till-copy", "--rpo", f"{RPO:g}s")
    run(cluster, "till", "echo one > /root/note; sync; dd if=/root/note of=/dev/vdb conv=fsync")
    written = time.time()
    until(lambda: is_copied(cluster, written))
    with run_redfish(tmp_path / "redfish") as bmc:
        values = {"user": USER, "password": PASSWORD, "fingerprint": bmc.fingerprint}
        cluster.ok("secret", "create", "bmc", *(word for one in values.items() for word in ("--value", "=".join(one))))
        url = f"redfish://{bmc.host}:{bmc.port}"
        cluster.ok("node", "set", "n2", "--power", url, "--power-secret", "default/bmc")
        cluster.ok("node", "power", "n2", "off", "--force", "--timeout", "30s")
        copied, lost = see(cluster), time.time()
        kill(cluster.pids("weft init n2"))
        until(lambda: cluster.vm("till")["status"].get("node") not in ("n2", None))
        until(lambda: cluster.run("vm", "exec", "till", "--", "true").returncode == 0)
        status = cluster.vm("till")["status"]
        assert status["node"] == copied["node"] and lost - 2 * RPO < status["lost_since"] < lost
        assert run(cluster, "till", "head -n 1 /root/note; head -n 1 /dev/vdb") == ["one", "one"]
        assert len(cluster.pids("qemu-system", "guest=till")) == 1
        until(lambda: is_copied(cluster, lost))
        assert see(cluster)["node"] not in ("n2", status["node"])
        cluster.up()
        settled(cluster)
        cluster.ok("node", "set", "n2", "--power", "", "--power-secret", "")

    def list_kept() -> dict[str, str]:
        found = cluster.json("volume", "list", "--orphans")["items"]
        return {one["marks"]["orphan"].get("volume", ""): one["name"] for one in found if one["status"]["node"] == "n2"}

    until(lambda: list_kept().keys() == {"", "sales"})
    assert run(cluster, "till", "head -n 1 /root/note; head -n 1 /dev/vdb") == ["one", "one"]
    cluster.ok("vm", "delete", "till", "--yes")
    cluster.ok("volume", "delete", "sales", *list_kept().values(), "--yes")
    cluster.ok("secret", "delete", "bmc", "--yes")
    until(lambda: not any(cluster.json(kind, "list")["items"] for kind in ("replication", "replica", "snapshot")))
