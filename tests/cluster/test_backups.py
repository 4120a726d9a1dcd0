"""Backups on a real cluster, as people make them: of a VM that runs, again after a change, and back after it was deleted."""

from __future__ import annotations

import hashlib
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster, until
from weft.cli.command.exit_codes import ERROR

pytestmark = pytest.mark.host


def run(cluster: Cluster, vm: str, script: str) -> list[str]:
    return cluster.ok("vm", "exec", vm, "--", "sh", "-c", script).splitlines()


def open_shop(cluster: Cluster, place: Path, vm: str, volume: str) -> list[str]:
    """A repository of the VM's own name at ``place``, and a VM with a note in both of its disks; the digest of what else it has."""
    place.mkdir(mode=0o700)
    cluster.ok("backuprepository", "create", f"{vm}-safe", "--url", f"dir://{place}")
    cluster.ok("volume", "create", volume, "--size", "64M")
    cluster.ok("vm", "create", vm, "--image", "tiny", "--memory", "128M", "--volume", volume)
    fill = "dd if=/dev/urandom of=/root/data bs=64k count=96"
    run(cluster, vm, f"echo one > /root/note; {fill}; cp /root/note /dev/vdb; sync")
    return run(cluster, vm, "sha256sum < /root/data")


def test_a_shop_is_backed_up_deleted_and_restored(cluster: Cluster, tmp_path: Path) -> None:
    sums = open_shop(cluster, tmp_path / "backups", "shop", "orders")
    cluster.ok("backup", "create", "vm/shop", "--to", "shop-safe", "--name", "monday", "--wait")
    run(cluster, "shop", "echo two > /root/note; cp /root/note /dev/vdb; sync")
    cluster.ok("backup", "create", "vm/shop", "--to", "shop-safe", "--name", "tuesday", "--wait")
    first, second = (cluster.json("backup", "describe", name)["status"] for name in ("monday", "tuesday"))
    assert (first["base"], second["base"], second["full_because"]) == ("", "monday", "")
    assert second["stored_bytes"] < first["stored_bytes"] / 4
    assert second["bytes"] >= first["bytes"] > 6 << 20, (first, second)
    kept = [one for one in cluster.json("snapshot", "list")["items"] if one.get("deleting_since") is None]
    assert [one["name"] for one in kept] == [second["snapshot"]]

    cluster.ok("backup", "verify", "tuesday")
    assert cluster.json("backup", "describe", "tuesday")["status"]["state"] == "read"
    listed = cluster.json("backup", "ls", "monday", "/root")["items"]
    assert {("note", 4), ("data", 96 << 16)} <= {(one["name"], one.get("size")) for one in listed}
    assert cluster.ok("backup", "get", "monday", "/root/note") == "one\n"
    out = tmp_path / "data"
    cluster.ok("backup", "get", "tuesday", "/root/data", "-o", str(out))
    assert hashlib.sha256(out.read_bytes()).hexdigest() in sums[0]
    listed = cluster.json("backup", "ls", "tuesday", "/root/data")["items"]
    assert stat.S_IMODE(out.stat().st_mode) == listed[0]["mode"] == 0o644
    missing = cluster.run("backup", "get", "tuesday", "/root/nothing", "-o", str(tmp_path / "nothing"))
    assert missing.returncode != 0 and b"/root/nothing is not there" in missing.stderr
    unread = cluster.run("backup", "ls", "tuesday", "--disk", "orders")
    assert b"single files are read from ext2, ext3 and ext4 only" in unread.stderr
    assert sorted(one.name for one in tmp_path.iterdir()) == ["backups", "data"]
    cluster.ok("backup", "label", "tuesday", "keep=yes")
    cluster.ok("backup", "set", "tuesday", "--keep", "5d")
    cluster.ok("vm", "delete", "shop", "--yes")
    cluster.ok("volume", "delete", "orders", "--yes")
    cluster.ok("backup", "restore", "tuesday", "--new-name", "shop", "--wait", "--instant")
    read = "hostname; cat /root/note; head -n 1 /dev/vdb; sha256sum < /root/data"
    assert run(cluster, "shop", read) == ["shop", "two", "two", *sums]
    until(lambda: not any(one["marks"].get("instant") for one in cluster.json("snapshot", "list")["items"]))
    cluster.ok("vm", "delete", "shop", "--yes")
    cluster.ok("volume", "delete", "shop-orders", "--yes")
    cluster.ok("backup", "delete", "monday", "tuesday", "--yes")
    cluster.ok("backuprepository", "delete", "shop-safe", "--yes")
    assert cluster.json("snapshot", "list")["items"] == []


@pytest.mark.long
def test_a_backup_is_booted_to_verify_it_and_one_of_a_volume_alone_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    sums = open_shop(cluster, tmp_path / "backups", "desk", "letters")
    cluster.ok("backup", "create", "vm/desk", "--to", "desk-safe", "--name", "first", "--wait")
    run(cluster, "desk", "echo two > /root/note; cp /root/note /dev/vdb; sync")
    refused = cluster.fails(
        ERROR, "backup", "verify", "first", "--boot", "--check", "grep two /root/note", "--within", "20s"
    )
    assert "its check failed: exit code 1" in refused
    assert cluster.json("backup", "describe", "first")["status"]["state"] == "failed"
    until(lambda: not cluster.json("backup", "describe", "first")["status"].get("test"))
    left = [
        one["name"] for kind in ("vm", "volume", "network", "snapshot") for one in cluster.json(kind, "list")["items"]
    ]
    assert [name for name in left if name.startswith("test-")] == []
    cluster.ok("vm", "delete", "desk", "--yes")
    for name in ("letters-1", "letters-2"):
        cluster.ok("backup", "create", "volume/letters", "--to", "desk-safe", "--name", name, "--wait")
    of_volume = cluster.json("backup", "describe", "letters-2")["status"]
    assert (of_volume["base"], list(of_volume["disks"])) == ("letters-1", ["letters"])
    cluster.ok("volume", "delete", "letters", "--yes")
    cluster.ok("backup", "restore", "letters-2", "--new-name", "again", "--wait")
    cluster.ok("vm", "create", "reader", "--image", "tiny", "--volume", "again")
    assert run(cluster, "reader", "head -n 1 /dev/vdb") == ["two"]
    cluster.ok("vm", "delete", "reader", "--yes")
    cluster.ok("volume", "delete", "again", "--yes")
    cluster.ok("backup", "restore", "first", "--new-name", "old", "--wait")
    read = "cat /root/note; head -n 1 /dev/vdb; sha256sum < /root/data"
    assert run(cluster, "old", f"hostname; {read}") == ["old", "one", "one", *sums]
    cluster.ok("vm", "restart", "old")
    assert run(cluster, "old", read) == ["one", "one", *sums]
    cluster.ok("vm", "delete", "old", "--yes")
    cluster.ok("volume", "delete", "old-letters", "--yes")
    cluster.ok("backup", "delete", "first", "letters-1", "letters-2", "--yes")
    cluster.ok("backuprepository", "delete", "desk-safe", "--yes")
    assert cluster.json("snapshot", "list")["items"] == []


@pytest.mark.long
def test_all_in_a_pool_is_backed_up_by_schedule_and_goes_back_to_a_point_in_time(
    cluster: Cluster, tmp_path: Path
) -> None:
    place = tmp_path / "geo"
    place.mkdir(mode=0o700)
    cluster.ok("backuprepository", "create", "geo-backup", "--url", f"dir://{place}")
    cluster.ok("vm", "create", "app", "--image", "tiny")
    node = cluster.vm("app")["status"]["node"]
    pools = cluster.json("pool", "list")["items"]
    pool = next(one["name"] for one in pools if one["marks"]["pool"] == "local" and node in one["status"]["node_names"])
    line = ("storage", "backup", "--pool", pool, "--destination", "geo-backup")
    run(cluster, "app", "echo one > /root/note; sync")
    cluster.ok(*line, "--schedule", "* * * * *", "--retention", "30d")

    def backups() -> list[dict[str, Any]]:
        made = cluster.json("backup", "list")["items"]
        return [one for one in made if one["spec"]["of"] == "vm/app" and one["status"]["phase"] == "Ready"]

    until(backups, 120)
    hours = ("--verify-hours", "00:00-23:59", "--verify-check", "grep one /root/note")
    cluster.ok("backuppolicy", "set", pool, *hours, "--schedule", "0 0 1 1 *")
    until(
        lambda: any(one["status"]["state"] == "booted" for one in backups()), 120
    )  # in a quiet hour, by the policy alone
    verify = next(one["status"]["verify"] for one in backups() if one["status"]["state"] == "booted")
    assert (verify["how"], verify["result"]) == ("boot", "passed") and verify["boot_seconds"] > 0
    cluster.ok("backuppolicy", "set", pool, "--paused")
    run(cluster, "app", "echo two > /root/note; sync")
    # The command takes whole seconds: this one is after the first backup.
    asked = datetime.now(UTC) + timedelta(seconds=1)
    until(lambda: datetime.now(UTC) > asked, 5)
    cluster.ok("backup", "create", "vm/app", "--to", "geo-backup", "--name", "later")

    told = cluster.ok("storage", "restore", pool, "--point-in-time", f"{asked:%Y-%m-%dT%H:%M:%SZ}")
    name = next(line for line in told.splitlines() if "restored to" in line).split()[0].removeprefix("vm/")
    assert run(cluster, name, "hostname; cat /root/note") == [name, "one"] and name.startswith("app-2")
    told = cluster.ok("storage", "restore", "vm/app", "--new-name", "fresh")
    assert run(cluster, "fresh", "cat /root/note") == ["two"]
    refused = cluster.run("storage", "restore", pool, "--point-in-time", "2001-01-01 00:00:00")
    assert refused.returncode != 0 and b"vm/app has no backup at or before 2001-01-01" in refused.stderr
    cluster.ok("backuppolicy", "delete", pool, "--yes")
    cluster.ok("vm", "delete", "app", name, "fresh", "--yes")
    cluster.ok("backup", "delete", *(one["name"] for one in cluster.json("backup", "list")["items"]), "--yes")
    cluster.ok("backuprepository", "delete", "geo-backup", "--yes")


def test_volumes_of_a_container_are_backed_up_while_it_writes_and_come_back_as_new_ones(
    cluster: Cluster, tmp_path: Path
) -> None:
    """In a project of their own: a backup of the default one would copy and start the VM of all tests."""
    place, ward, copy = tmp_path / "kept", ("-p", "ward"), ("-p", "copy")
    place.mkdir(mode=0o700)
    cluster.ok("project", "create", "ward")
    cluster.ok("backuprepository", "create", "kept", "--url", f"dir://{place}")
    cluster.ok("image", "build", "busybox", *ward)
    cluster.ok("volume", "create", "data", "--size", "64M", *ward)
    run_db = ("--image", "busybox", "--command", "sleep 1000", "--grace", "1s", *ward, "--mount")
    cluster.ok("container", "create", "db", *run_db, "data:/data")
    cluster.ok("container", "exec", "db", *ward, "--", "sh", "-c", "echo kept > /data/note; sync")
    cluster.ok("backup", "create", "container/db", "--to", "kept", "--name", "db-1", *ward)
    assert cluster.ok("backup", "get", "db-1", "/note", "--disk", "data", *ward) == "kept\n"
    cluster.ok("backup", "restore", "db-1", "--new-name", "db2", *ward)
    cluster.ok("container", "create", "again", *run_db, "db2-data:/data")
    assert cluster.ok("container", "exec", "again", *ward, "--", "cat", "/data/note") == "kept\n"
    cluster.ok("container", "delete", "again", "--yes", *ward)
    cluster.ok("volume", "delete", "db2-data", "--yes", *ward)

    cluster.ok("network", "create", "blue", "--cidr", "10.77.0.0/24", *ward)
    cluster.ok("secret", "create", "login", "--value", "password=only-once", *ward)
    asks = ("--env-secret", "PASSWORD=login/password", "--network", "blue", "--grace", "1s")
    cluster.ok("container", "create", "web", "--image", "busybox", "--command", "sleep 1000", *asks, *ward)
    cluster.ok("backup", "create", "project/ward", "--to", "kept", "--name", "all", *ward)
    assert b"only-once" not in b"".join(one.read_bytes() for one in place.rglob("*") if one.is_file())
    cluster.ok("backup", "restore", "all", "--into", "copy", *ward)
    assert cluster.ok("container", "exec", "db", *copy, "--", "cat", "/data/note") == "kept\n"
    assert cluster.ok("container", "exec", "web", *copy, "--", "sh", "-c", "echo $PASSWORD") == "only-once\n"
    assert cluster.json("network", "get", "blue", *copy)["spec"]["cidr"] == "10.77.0.0/24"
    cluster.ok("container", "delete", "db", "web", "--yes", *copy)
    cluster.ok("volume", "delete", "data", "--yes", *copy)
    mine = [one["name"] for one in cluster.json("backup", "list", *copy)["items"]]
    cluster.ok("backup", "delete", *mine, "--yes", *copy)
    assert (
        cluster.ok("backup", "get", "all-container-db", "/note", "--disk", "data", *ward) == "kept\n"
    )  # the original is there
    cluster.ok("container", "delete", "db", "web", "--yes", *ward)
    cluster.ok("volume", "delete", "data", "--yes", *ward)
    mine = [one["name"] for one in cluster.json("backup", "list", *ward)["items"]]
    cluster.ok("backup", "delete", *mine, "--yes", *ward)
    cluster.ok("backuprepository", "delete", "kept", "--yes")
