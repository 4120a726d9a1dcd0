"""`make up CEPH=1`: VMs on disks in Ceph, which move between nodes, outlive an OSD, go back to snapshots, and are written by one
node only."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from benchmarks.soak.moments import Moments
from botocore.exceptions import ClientError

from tests.cluster.cluster import Cluster, lay_out, until
from tests.commands import WEFT

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not os.environ.get("CEPH"), reason="CEPH=1 is not set: this test starts a Ceph cluster"),
]
BUCKET = "weft-backups"
COUNT = (
    "(i=0; while true; do i=$((i+1)); echo count $i | dd of=/dev/vdb bs=512 seek=8 conv=sync,fsync,notrunc; "
    "echo $i > /tmp/count-$i; mv /tmp/count-$i /tmp/count; sleep 0.1; done) >/dev/null 2>&1 &"
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
    assert (pool["marks"]["driver"], pool["status"]["phase"], pool["status"]["nodes"]) == ("rbd", "Ready", 3)
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


def test_snapshots_go_back_in_place_and_to_a_new_name_and_are_deleted_anywhere(on_ceph: Cluster) -> None:
    refused = on_ceph.run("vm", "snapshot", "web", "--name", "s0", "--memory")
    assert refused.returncode and b"can't keep a VM's memory" in refused.stdout + refused.stderr
    on_ceph.run("delete", "snapshot/s0", "--yes")
    for note in ("one", "two", "three"):
        sh(on_ceph, f"echo {note} > /root/note; sync")
        on_ceph.ok("vm", "snapshot", "web", "--name", note, "--wait")
    taken = on_ceph.json("snapshot", "describe", "two")["status"]
    assert (taken["consistency"], sorted(taken["disks"]), taken["pool"]) == ("filesystem", ["data", "root"], "ceph")
    on_ceph.ok("vm", "restore", "web", "--snapshot", "one", "--new-name", "twin", "--wait")
    assert on_ceph.ok("vm", "exec", "twin", "--", "cat", "/root/note") == "one\n"
    assert on_ceph.vm("twin")["spec"]["pool"] == "ceph"
    on_ceph.ok("vm", "restore", "web", "--snapshot", "two", "--wait")
    assert sh(on_ceph, "cat /root/note") == "two\n"
    [kept] = [one for one in on_ceph.json("snapshot", "list")["items"] if one["marks"].get("automatic") == "restore"]
    on_ceph.ok("snapshot", "delete", "two", "one", "--yes")
    on_ceph.ok("vm", "restore", "web", "--snapshot", kept["name"], "--yes", "--wait")
    assert sh(on_ceph, "cat /root/note") == "three\n"
    on_ceph.ok("vm", "restart", "twin")
    assert on_ceph.ok("vm", "exec", "twin", "--", "cat", "/root/note") == "one\n", "it outlives what it came from"
    on_ceph.ok("vm", "delete", "twin", "--yes")
    on_ceph.ok("volume", "delete", "twin-data", "--yes")
    on_ceph.ok("snapshot", "delete", kept["name"], "three", "--yes")
    until(lambda: on_ceph.json("snapshot", "list")["items"] == [])
    until(lambda: len([one for one in images(on_ceph) if one.startswith("weft-disk-")]) == 2)


def images(cluster: Cluster) -> list[str]:
    words = ["rbd", "-c", str(cluster.state / "ceph" / "ceph.conf"), "--id", "weft", "ls", "weft"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()


def test_a_snapshot_is_taken_or_fails_though_the_agent_is_killed_and_the_guest_runs_on(on_ceph: Cluster) -> None:
    sh(on_ceph, COUNT)
    for name in ("k1", "k2"):
        on_ceph.ok("vm", "snapshot", "web", "--name", name, "--detach")
        if name == "k2":
            until(lambda: on_ceph.json("snapshot", "describe", "k2")["status"]["phase"] != "Pending")
        [agent] = on_ceph.pids(f"weft agent {on_ceph.vm('web')['status']['node']} ")
        os.kill(agent, signal.SIGKILL)
        until(
            lambda name=name: on_ceph.json("snapshot", "describe", name)["status"]["phase"] in ("Ready", "Failed"), 90
        )
        now = count(on_ceph)
        until(lambda now=now: count(on_ceph) > now)
    on_ceph.ok("snapshot", "delete", "k1", "k2", "--yes")
    until(lambda: on_ceph.json("snapshot", "list")["items"] == [])


def test_backups_copy_what_changed_and_come_back_into_pools_of_both_kinds(
    on_ceph: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("folder")
    place.chmod(0o700)
    on_ceph.ok("backuprepository", "create", "folder", "--url", f"dir://{place}")
    sums = sh(on_ceph, "dd if=/dev/urandom of=/root/data bs=64k count=96 2>/dev/null; sync; sha256sum < /root/data")
    on_ceph.ok("backup", "create", "vm/web", "--to", "folder", "--name", "monday", "--wait")
    sh(on_ceph, "echo tuesday > /root/note; sync")
    on_ceph.ok("backup", "create", "vm/web", "--to", "folder", "--name", "tuesday", "--wait")
    first, second = (on_ceph.json("backup", "describe", name)["status"] for name in ("monday", "tuesday"))
    assert (first["base"], second["base"], second["full_because"]) == ("", "monday", "")
    assert second["stored_bytes"] < first["stored_bytes"] / 2, (first, second)
    for name, pool in (("here", "local"), ("there", "ceph")):
        on_ceph.ok("backup", "restore", "tuesday", "--new-name", name, "--pool", pool, "--wait")
        said = on_ceph.ok("vm", "exec", name, "--", "sh", "-c", "cat /root/note; sha256sum < /root/data")
        assert (said, on_ceph.vm(name)["spec"]["pool"]) == (f"tuesday\n{sums}", pool)
    on_ceph.ok("backup", "create", "vm/here", "--to", "folder", "--name", "moved", "--wait")
    on_ceph.ok("backup", "restore", "moved", "--new-name", "back", "--pool", "ceph", "--wait")
    assert on_ceph.ok("vm", "exec", "back", "--", "cat", "/root/note") == "tuesday\n", "from a folder into Ceph"
    refused = on_ceph.run("backup", "restore", "tuesday", "--new-name", "now", "--pool", "ceph", "--instant")
    assert refused.returncode and b"a VM runs from a backup only while" in refused.stderr
    on_ceph.ok("vm", "delete", "here", "there", "back", "--yes")


def test_a_full_pool_refuses_snapshots_and_lets_the_guest_wait_until_there_is_space(on_ceph: Cluster) -> None:
    pool = ("ceph", "-c", str(on_ceph.state / "ceph" / "ceph.conf"), "osd", "pool", "set-quota", "weft", "max_bytes")

    def is_full() -> bool:
        return on_ceph.object("pool", "ceph")["status"]["phase"] == "Full"

    sh(on_ceph, COUNT)
    subprocess.run([*pool, str(4 << 20)], check=True, capture_output=True)
    try:
        until(is_full, 90)
        on_ceph.ok("vm", "snapshot", "web", "--name", "full", "--detach")
        until(lambda: on_ceph.json("snapshot", "describe", "full")["status"]["phase"] == "Failed", 60)
        assert "is full" in on_ceph.json("snapshot", "describe", "full")["status"]["message"]
    finally:
        subprocess.run([*pool, "0"], check=True, capture_output=True)
    until(lambda: not is_full(), 90)
    now = count(on_ceph)
    until(lambda: count(on_ceph) > now + 5)  # what waited was written
    on_ceph.ok("snapshot", "delete", "full", "--yes")


def test_a_disk_goes_from_ceph_to_a_folder_and_back_while_its_guest_runs(on_ceph: Cluster) -> None:
    boot = sh(on_ceph, "cat /proc/sys/kernel/random/boot_id")
    for pool in ("local", "ceph"):
        on_ceph.ok("vm", "migrate", "web", "--storage", "--pool", pool, "--volume", "data")
        assert on_ceph.object("volume", "data")["status"]["pool"] == pool
        now = count(on_ceph)
        until(lambda now=now: count(on_ceph) > now)
    assert sh(on_ceph, "cat /proc/sys/kernel/random/boot_id") == boot


def read_bucket(cluster: Cluster) -> Any:
    access, secret = ((cluster.state / "ceph" / "s3" / name).read_text() for name in ("access_key", "secret_key"))
    endpoint = f"http://{cluster.host_address}:7480"
    words = {"endpoint_url": endpoint, "aws_access_key_id": access, "aws_secret_access_key": secret}
    return boto3.session.Session().client("s3", region_name="us-east-1", **words)


def list_versions(s3: Any) -> list[dict[str, str]]:
    pages = s3.get_paginator("list_object_versions").paginate(Bucket=BUCKET)
    return [version for page in pages for version in page.get("Versions", [])]


def test_backups_in_a_bucket_are_locked_and_come_back(on_ceph: Cluster) -> None:
    url = f"s3://{BUCKET}?endpoint=http://{on_ceph.host_address}:7480"
    files = [f"--from-file={name}=.weft/ceph/s3/{name}" for name in ("access_key", "secret_key")]
    on_ceph.ok("secret", "create", "bucket", *files)
    on_ceph.ok("secret", "create", "wrong", files[0], "--value", "secret_key=hunter2")
    for secret, place, words in (
        ("wrong", url, "secret_key: the secret key of"),
        ("bucket", url.replace(BUCKET, "another"), "spec.url: s3://another"),
        ("bucket", url.replace(":7480", ":7481"), "Connection refused"),
        ("bucket", url.replace("http:", "https:"), "does not speak TLS"),
    ):
        told = on_ceph.fails(1, "backuprepository", "create", "bad", "--url", place, "--credentials", secret)
        assert words in told and "hunter2" not in told and "was not kept" in told
    on_ceph.ok("backuprepository", "create", "safe", "--url", url, "--credentials", "bucket", "--immutable")

    on_ceph.ok("vm", "create", "app", "--image", "tiny", "--memory", "128M")
    data = "echo one > /root/note; dd if=/dev/urandom of=/root/data bs=64k count=96; sync; sha256sum < /root/data"
    digest = on_ceph.ok("vm", "exec", "app", "--", "sh", "-c", data)
    assert "--keep" in on_ceph.fails(1, "backup", "create", "vm/app", "--to", "safe", "--name", "b0")
    on_ceph.ok("backup", "create", "vm/app", "--to", "safe", "--name", "b1", "--keep", "1d")
    s3 = read_bucket(on_ceph)
    for version in list_versions(s3):
        words = {"Bucket": BUCKET, "Key": version["Key"], "VersionId": version["VersionId"]}
        if version["Key"].split("/")[0] in ("packs", "index", "backups", "weft-backup"):
            with pytest.raises(ClientError, match="AccessDenied"):
                s3.delete_object(**words, BypassGovernanceRetention=True)
        s3.delete_object(Bucket=BUCKET, Key=version["Key"])  # only a mark of deletion, which changes nothing
    assert "is locked until 20" in on_ceph.fails(5, "backup", "delete", "b1", "--yes")
    on_ceph.ok("backup", "set", "b1", "--keep", "40d")
    soon = datetime.now(UTC) + timedelta(days=39)
    until(lambda: (on_ceph.object("backup", "b1")["status"]["locked_until"] or 0) > soon.timestamp())
    for version in list_versions(s3):
        if version["Key"].split("/")[0] in ("packs", "index", "backups", "weft-backup"):
            words = {"Bucket": BUCKET, "Key": version["Key"], "VersionId": version["VersionId"]}
            rule = s3.get_object_retention(**words)["Retention"]
            assert rule["Mode"] == "COMPLIANCE" and rule["RetainUntilDate"] > soon, version["Key"]

    on_ceph.ok("backup", "verify", "b1")
    assert on_ceph.ok("backup", "get", "b1", "/root/note") == "one\n"
    on_ceph.ok("vm", "delete", "app", "--yes")
    for name, how in (("app", ()), ("fast", ("--instant",))):
        on_ceph.ok("backup", "restore", "b1", "--new-name", name, *how)
        assert on_ceph.ok("vm", "exec", name, "--", "sh", "-c", "sha256sum < /root/data") == digest


def test_a_backup_waits_for_a_bucket_that_is_away_also_when_its_agent_is_killed(on_ceph: Cluster) -> None:
    [keeper], [gateway] = on_ceph.pids("weft ceph"), on_ceph.pids("radosgw")
    os.kill(keeper, signal.SIGSTOP)  # or it starts the gateway again
    try:
        os.kill(gateway, signal.SIGKILL)
        on_ceph.ok("backup", "create", "vm/app", "--to", "safe", "--name", "b2", "--keep", "20s", "--detach")
        until(lambda: "can't be reached" in on_ceph.object("backup", "b2")["status"]["message"])
        node = on_ceph.vm("app")["status"]["node"]
        [agent] = on_ceph.pids(f"weft agent {node} ")
        os.kill(agent, signal.SIGKILL)
        until(lambda: on_ceph.pids(f"weft agent {node} ") not in ([], [agent]))
    finally:
        os.kill(keeper, signal.SIGCONT)

    def is_stored() -> bool:
        status = on_ceph.object("backup", "b2")["status"]
        assert status["phase"] != "Failed", status["message"]
        return bool(status["phase"] == "Ready")

    try:
        until(is_stored, 240)
    except AssertionError as problem:
        status = on_ceph.object("backup", "b2")["status"]
        raise AssertionError(f"{problem}: {status}") from None
    until(lambda: on_ceph.run("backup", "delete", "b2", "--yes").returncode == 0)  # once its time is over
    assert "b2" not in on_ceph.ok("backup", "list")


def test_the_server_is_backed_up_into_the_bucket_and_restored(on_ceph: Cluster, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}?endpoint=http://{on_ceph.host_address}:7480"
    key, s3 = tmp_path / "key", on_ceph.state / "ceph" / "s3"
    key.write_text(on_ceph.ok("backuprepository", "key", "safe"))
    keys = {"AWS_ACCESS_KEY_ID": s3 / "access_key", "AWS_SECRET_ACCESS_KEY": s3 / "secret_key"}
    env = {**os.environ, **{name: file.read_text() for name, file in keys.items()}}

    def weft(*words: str) -> str:
        argv = [WEFT, "server", *words, "--key-file", str(key)]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    weft("backup", url, "--state", str(on_ceph.state / "server"), "--keep", "1d", "--immutable")
    assert "found server-" in weft("restore", url, "--state", str(tmp_path / "restored"))
    assert (tmp_path / "restored" / "store.db").exists()


def test_a_point_in_time_is_a_state_that_was_there_within_its_grain(on_ceph: Cluster) -> None:
    moments = Moments(on_ceph, on_ceph.make_folder("moments"), seed=5)
    moments.run(backups=2, instants=2)
    assert len(moments.ages) == 2
    on_ceph.ok("vm", "delete", "writer", "--yes")


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
