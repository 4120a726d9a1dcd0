"""Backups on a real cluster, as people make them: of a VM that runs, again after a change, and back after it was deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, until
from weft.cli.command.exit_codes import ERROR

pytestmark = [pytest.mark.host, pytest.mark.timeout(240)]


def run(cluster: Cluster, vm: str, script: str) -> list[str]:
    return cluster.ok("vm", "exec", vm, "--", "sh", "-c", script).splitlines()


def test_a_shop_is_backed_up_deleted_and_restored(cluster: Cluster, tmp_path: Path) -> None:
    place = tmp_path / "backups"
    place.mkdir(mode=0o700)
    cluster.ok("backuprepository", "create", "safe", "--url", f"dir://{place}")
    cluster.ok("volume", "create", "orders", "--size", "64M")
    cluster.ok("vm", "create", "shop", "--image", "tiny", "--volume", "orders")
    run(
        cluster,
        "shop",
        "echo one > /root/note; dd if=/dev/urandom of=/root/data bs=64k count=96; cp /root/note /dev/vdb; sync",
    )
    sums = run(cluster, "shop", "sha256sum < /root/data")

    cluster.ok("backup", "create", "vm/shop", "--to", "safe", "--name", "monday", "--wait")
    run(cluster, "shop", "echo two > /root/note; cp /root/note /dev/vdb; sync")
    cluster.ok("backup", "create", "vm/shop", "--to", "safe", "--name", "tuesday", "--wait")
    first, second = (cluster.json("backup", "describe", name)["status"] for name in ("monday", "tuesday"))
    assert (first["base"], second["base"], second["full_because"]) == ("", "monday", "")
    assert second["stored_bytes"] < first["stored_bytes"] / 4
    assert second["bytes"] >= first["bytes"] > 6 << 20, (first, second)
    kept = [one for one in cluster.json("snapshot", "list")["items"] if one.get("deleting_since") is None]
    assert [one["name"] for one in kept] == [second["snapshot"]]

    cluster.ok("backup", "verify", "tuesday")
    assert cluster.json("backup", "describe", "tuesday")["status"]["state"] == "read"
    cluster.ok("backup", "verify", "tuesday", "--boot", "--check", "grep -q two /root/note && grep -q two /dev/vdb")
    booted = cluster.json("backup", "describe", "tuesday")["status"]
    assert (booted["state"], booted["verify"]["how"], booted["verify"]["result"]) == ("booted", "boot", "passed")
    assert booted["verify"]["boot_seconds"] > 0
    refused = cluster.fails(
        ERROR, "backup", "verify", "monday", "--boot", "--check", "grep two /root/note", "--within", "5s"
    )
    assert "its check failed: exit code 1" in refused
    assert cluster.json("backup", "describe", "monday")["status"]["state"] == "failed"
    until(lambda: not cluster.json("backup", "describe", "monday")["status"].get("test"))
    left = [
        one["name"] for kind in ("vm", "volume", "network", "snapshot") for one in cluster.json(kind, "list")["items"]
    ]
    assert [name for name in left if name.startswith("test-")] == []
    cluster.ok("backup", "label", "tuesday", "keep=yes")
    cluster.ok("backup", "set", "tuesday", "--keep", "5d")
    cluster.ok("vm", "delete", "shop", "--yes")
    cluster.ok("volume", "delete", "orders", "--yes")
    for backup, name, note in (("tuesday", "shop", "two"), ("monday", "old", "one")):
        cluster.ok("backup", "restore", backup, "--new-name", name, "--wait")
        assert run(cluster, name, "hostname; cat /root/note; head -n 1 /dev/vdb; sha256sum < /root/data") == [
            name,
            note,
            note,
            *sums,
        ]
    cluster.ok("vm", "delete", "shop", "old", "--yes")
    cluster.ok("volume", "delete", "shop-orders", "old-orders", "--yes")
    cluster.ok("backup", "delete", "monday", "tuesday", "--yes")
    cluster.ok("backuprepository", "delete", "safe", "--yes")
    assert cluster.json("snapshot", "list")["items"] == []
