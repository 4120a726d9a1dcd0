"""Containers move between the nodes of a real cluster: stopped here, volumes carried over, started there, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, until
from tests.cluster.containers import PROGRAM, Gone, fetch, find_traces, status
from tests.long import mark_long
from tests.registry import push_busybox

pytestmark = pytest.mark.host
NODES = ("n1", "n2", "n3")


@pytest.fixture
def shelf(cluster: Cluster) -> Iterator[str]:
    cluster.ok("volume", "create", "shelf", "--size", "64M")
    yield "shelf:/srv"
    cluster.run("container", "delete", "web", "--yes")
    cluster.ok("volume", "delete", "shelf", "--yes")


def begin(cluster: Cluster, place: str, shelf: str, *words: str) -> tuple[int, str]:
    """The container web, with something on its volume; its port, and its node."""
    port = cluster.free_port()
    given = ["--image", place, "--memory", "64M", "--mount", shelf, "--publish", f"{port}:80", *words]
    cluster.ok("container", "create", "web", *given)
    cluster.ok("container", "exec", "web", "--", "sh", "-c", "echo mine > /srv/file; echo gone > /file")
    return port, str(status(cluster, "web")["node"])


def read(cluster: Cluster) -> str:
    return cluster.run("container", "exec", "web", "--", "cat", "/srv/file").stdout.decode()


def volumes(cluster: Cluster, node: str) -> list[str]:
    """The files of the volume shelf there; other tests may have left volumes of theirs."""
    uid = cluster.object("volume", "shelf")["uid"]
    return [path.suffix for path in (cluster.state / "nodes" / node / "volumes").glob(f"{uid}.raw")]


@pytest.mark.long
def test_a_container_moves_with_its_volume_address_port_and_the_very_image_that_it_ran_with(
    cluster: Cluster, registry: str, gone_containers: Gone, tmp_path: Path, shelf: str
) -> None:
    place = f"{registry}/shop/moving:1"
    push_busybox(tmp_path, place, ["sh", "-c", PROGRAM], {"www/index.html": "as it was\n"})
    port, node = begin(cluster, place, shelf)
    push_busybox(tmp_path, place, ["sh", "-c", PROGRAM], {"www/index.html": "of today\n"})
    other = next(name for name in NODES if name != node)
    before = status(cluster, "web")
    said = cluster.ok("container", "migrate", "web", "--to", other)
    assert f"container/web  Running on {other}" in said
    after = status(cluster, "web")
    assert (after["address"], after["restarts"]) == (before["address"], 0)
    assert (read(cluster), fetch(port)) == ("mine\n", "as it was\n")
    assert cluster.run("container", "exec", "web", "--", "cat", "/file").returncode == 1  # what isn't on a volume stays
    ask = "for try in $(seq 40); do wget -qO- http://web/ && exit; sleep 1; done; exit 1"
    assert cluster.ok("vm", "exec", "hello", "--", "sh", "-c", ask) == "as it was\n"
    assert (volumes(cluster, node), volumes(cluster, other)) == ([], [".raw"])
    until(lambda: not [path for path in find_traces(cluster, node) if "process" not in path])

    cluster.ok("container", "restart", "web")
    assert (read(cluster), fetch(port)) == ("mine\n", "as it was\n")
    cluster.ok("container", "stop", "web")
    assert "stopped, in" in cluster.ok("container", "migrate", "web", "--to", node)
    assert (status(cluster, "web")["phase"], status(cluster, "web")["node"]) == ("Stopped", node)
    cluster.ok("container", "start", "web")
    assert (read(cluster), fetch(port)) == ("mine\n", "as it was\n")
    said = cluster.fails(1, "migrate", "container/web", "--live")
    assert (
        "can't save container/web while it runs" in said and "--cold" in said and status(cluster, "web")["node"] == node
    )
    assert f"is on {node} already" in cluster.fails(5, "container", "migrate", "web", "--to", node)


@pytest.mark.long
def test_one_with_a_machine_of_its_own_moves_and_a_drain_moves_both(
    cluster: Cluster, registry: str, gone_containers: Gone, shelf: str
) -> None:
    node = next(name for name in NODES if name != cluster.vm("hello")["status"]["node"])
    image = f"{registry}/shop/web:1"
    port, _ = begin(cluster, image, shelf, "--isolation", "vm", "--memory", "128M", "--node", node)
    cluster.ok("container", "create", gone_containers("plain"), "--image", image, "--memory", "64M", "--node", node)
    cluster.ok("container", "exec", "web", "--", "sync")
    for name in ("web", "plain"):
        cluster.ok("container", "set", name, "--node", "")
    try:
        said = cluster.ok("node", "drain", node, timeout=200)
        assert "nothing is left" in said or "Drained" in said or "drained" in said, said
        until(lambda: {status(cluster, name)["phase"] for name in ("web", "plain")} == {"Running"}, 60)
        assert node not in {status(cluster, name)["node"] for name in ("web", "plain")}
        until(lambda: read(cluster) == "mine\n", 60)
        assert fetch(port) == "from a container\n"
        assert volumes(cluster, node) == []
    finally:
        cluster.ok("node", "uncordon", node)


@pytest.mark.parametrize("victim", mark_long(("source", "target"), "source"))
def test_whoever_is_killed_meanwhile_it_runs_once_with_all_its_data(
    cluster: Cluster, registry: str, gone_containers: Gone, shelf: str, victim: str
) -> None:
    port, node = begin(cluster, f"{registry}/shop/web:1", shelf)
    other = next(name for name in NODES if name != node)
    fill = "dd if=/dev/urandom of=/srv/more bs=1M count=24 2>/dev/null; sync; sha256sum /srv/more"
    whole = cluster.ok("container", "exec", "web", "--", "sh", "-c", fill)
    words = ["container", "migrate", "web", "--to", other, "--bandwidth", "8M", "--detach", "-o", "json"]
    name = json.loads(cluster.ok(*words))["name"]
    cluster.ok(
        "wait", f"migration/{name}", "--for", "phase=Migrating", "--timeout", "60s"
    )  # sees it however short it is
    agent = cluster.pid(f"weft agent {node if victim == 'source' else other} ")
    os.kill(agent, signal.SIGKILL)
    until(lambda: cluster.json("get", f"migration/{name}")["status"]["phase"] in ("Succeeded", "Failed"), 120)
    until(lambda: status(cluster, "web")["phase"] == "Running", 60)
    until(lambda: read(cluster) == "mine\n", 60)
    assert cluster.ok("container", "exec", "web", "--", "sha256sum", "/srv/more") == whole
    assert fetch(port) == "from a container\n"
    here = status(cluster, "web")["node"]
    until(lambda: sum(len(volumes(cluster, one)) for one in NODES) == len(volumes(cluster, here)) == 1)


@pytest.mark.long
def test_one_that_is_called_off_or_can_go_nowhere_runs_on_where_it_was(
    cluster: Cluster, registry: str, gone_containers: Gone, shelf: str
) -> None:
    port, node = begin(cluster, f"{registry}/shop/web:1", shelf)
    other = next(name for name in NODES if name != node)
    cluster.ok("container", "exec", "web", "--", "sh", "-c", "dd if=/dev/urandom of=/srv/more bs=1M count=24; sync")
    words = ["container", "migrate", "web", "--to", other, "--bandwidth", "2M", "--detach", "-o", "json"]
    name = json.loads(cluster.ok(*words))["name"]
    cluster.ok(
        "wait", f"migration/{name}", "--for", "phase=Migrating", "--timeout", "60s"
    )  # sees it however short it is
    cluster.ok("migration", "cancel", name, "--timeout", "60s")
    until(lambda: status(cluster, "web")["phase"] == "Running", 60)
    assert (status(cluster, "web")["node"], read(cluster), fetch(port)) == (node, "mine\n", "from a container\n")
    until(lambda: volumes(cluster, other) == [])

    cluster.ok("node", "cordon", other)
    try:
        started = status(cluster, "web")["started_at"]
        said = cluster.run("container", "migrate", "web", "--to", other, "--timeout", "4s").stderr.decode()
        assert "can't be migrated" in said and "cordoned" in said, said
        assert status(cluster, "web")["started_at"] == started, "it isn't stopped for nothing"
    finally:
        cluster.ok("node", "uncordon", other)
    assert fetch(port) == "from a container\n"


@pytest.mark.long
def test_one_that_has_done_its_work_is_not_begun_again_by_a_move(
    cluster: Cluster, registry: str, gone_containers: Gone, shelf: str
) -> None:
    words = ["--image", f"{registry}/shop/web:1", "--memory", "32M", "--mount", shelf, "--command", "sh", "--arg", "-c"]
    cluster.ok("container", "create", "web", *words, "--arg", "echo ran >> /srv/file; exit 0")
    until(lambda: status(cluster, "web")["phase"] == "Stopped")
    before = status(cluster, "web")
    assert (before["phase"], before["reason"]) == ("Stopped", "completed")
    cluster.ok("container", "migrate", "web")
    until(lambda: status(cluster, "web")["reason"] == "completed", 60)  # its new node says so a moment later
    after = status(cluster, "web")
    assert after["phase"] == "Stopped" and after["node"] != before["node"]
    cluster.ok("container", "delete", "web", "--yes")
    words = ["--image", f"{registry}/shop/web:1", "--memory", "32M", "--mount", shelf]
    cluster.ok("container", "create", gone_containers("reader"), *words)
    assert cluster.ok("container", "exec", "reader", "--", "cat", "/srv/file") == "ran\n"
    cluster.ok("container", "delete", "reader", "--yes")
