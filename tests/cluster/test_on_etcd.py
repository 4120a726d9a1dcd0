"""`make up STORE=etcd`: the cluster keeps its objects in an etcd of its own, which may die as anything else may."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster, own_cluster, until

pytestmark = pytest.mark.host


@pytest.fixture
def on_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with own_cluster(tmp_path_factory.mktemp("on-etcd"), store="etcd") as made:
        yield made


@pytest.mark.long
def test_a_cluster_on_etcd_outlives_the_kill_of_etcd_and_of_its_server_and_is_restored(on_etcd: Cluster) -> None:
    hello = on_etcd.vm("hello")
    boot = on_etcd.ok("vm", "exec", "hello", "--", "cat", "/proc/sys/kernel/random/boot_id")
    [api] = on_etcd.pids("server api")
    [etcd] = on_etcd.pids("etcd --name")
    os.kill(etcd, signal.SIGKILL)
    until(lambda: on_etcd.pids("etcd --name") not in ([], [etcd]))  # the server keeps it
    until(lambda: on_etcd.run("create", "volume", "kept", "--size", "64M").returncode == 0)
    assert on_etcd.pids("server api") == [api]  # they waited, and watch on
    on_etcd.ok("server", "backup", str(on_etcd.folder / "b"))
    for pid in [*on_etcd.pids("weft server --state"), *on_etcd.pids("etcd --name")]:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not on_etcd.pids("server api"))
    on_etcd.up()
    assert on_etcd.vm("hello")["uid"] == hello["uid"]
    assert on_etcd.json("get", "volume/kept")["name"] == "kept"
    assert not (on_etcd.state / "server" / "store.db").exists()
    assert "keeps its objects in etcd" in on_etcd.local("up", store="sqlite").stderr

    on_etcd.ok("create", "volume", "after", "--size", "64M")
    for pid in on_etcd.pids("weft server --state"):
        os.kill(pid, signal.SIGTERM)
    until(lambda: not on_etcd.pids("weft server --state") and not on_etcd.pids("etcd --name"))
    on_etcd.ok("server", "restore", str(on_etcd.folder / "b"))
    assert not on_etcd.pids("etcd --name")
    on_etcd.up()
    assert [volume["name"] for volume in on_etcd.json("get", "volume")["items"]] == ["kept"]
    assert on_etcd.ok("vm", "exec", "hello", "--", "cat", "/proc/sys/kernel/random/boot_id") == boot
