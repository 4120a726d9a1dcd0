"""Containers on a real cluster: from a registry, through crun or runc, reached from outside and from a VM, by the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, until
from tests.cluster.containers import (
    PROGRAM,
    SERVES,
    Gone,
    check_agent_death,
    check_network,
    check_samples,
    check_streams,
    fetch,
    find_traces,
    status,
)
from tests.registry import push_busybox, serve

pytestmark = pytest.mark.host


def test_a_container_from_creation_to_its_end(cluster: Cluster, registry: str, gone_containers: Gone) -> None:
    node = cluster.vm("hello")["status"]["node"]
    other = next(name for name in ("n1", "n2", "n3") if name != node)
    until(lambda: find_traces(cluster, other) == [])  # others' may be on their way out
    port = cluster.free_port()
    words = ["--image", f"{registry}/shop/web:1", "--memory", "64M", "--publish", f"{port}:80", "--node", other]
    said = cluster.ok("container", "create", gone_containers("web"), *words)
    assert f"container/web  Running on {other} after" in said
    check_network(cluster, "web", port)
    check_streams(cluster, "web")
    check_samples(cluster, "web")
    assert cluster.ok("exec", "container/web", "--", "sh", "-c", "echo kept > /kept; hostname") == "web\n"
    check_agent_death(cluster, "web", port)
    logs = cluster.run("container", "logs", "web").stdout
    assert logs.startswith(b"serving\n") and logs.endswith(b"more\n")

    cluster.ok("container", "set", "web", "--memory", "96M")
    assert status(cluster, "web")["restarts"] == 0
    cluster.ok("container", "stop", "web")
    assert status(cluster, "web")["phase"] == "Stopped"
    cluster.ok("container", "start", "web")
    assert cluster.ok("container", "exec", "web", "--", "cat", "/kept") == "kept\n"
    assert fetch(port) == SERVES
    cluster.ok("container", "delete", "web", "--yes")
    until(lambda: find_traces(cluster, other) == [])


def test_a_volume_goes_from_a_container_to_a_vm_and_back_and_survives_kills_and_power_cuts(
    cluster: Cluster, registry: str, gone_containers: Gone
) -> None:
    cluster.ok("volume", "create", "shelf", "--size", "64M")
    words = ["--image", f"{registry}/shop/web:1", "--memory", "64M", "--mount", "shelf:/srv"]
    cluster.ok("container", "create", gone_containers("one"), *words)
    node = status(cluster, "one")["node"]
    cluster.ok("container", "exec", "one", "--", "sh", "-c", "ls -A /srv; echo mine > /srv/file")
    assert "attached to container/one" in cluster.fails(5, "container", "create", "two", *words)
    agent = cluster.pid(f"weft agent {node} ")
    os.kill(agent, 9)
    until(lambda: set(cluster.pids(f"weft agent {node} ")) - {agent})
    until(lambda: cluster.run("container", "exec", "one", "--", "cat", "/srv/file").stdout == b"mine\n")

    init = cluster.pid(f"weft init {node}")
    os.kill(init, 9)
    until(lambda: not cluster.pids(f"weft init {node}"))
    cluster.up()
    until(lambda: cluster.run("container", "exec", "one", "--", "cat", "/srv/file").stdout == b"mine\n")

    cluster.ok("container", "delete", "one", "--yes")
    try:
        cluster.ok("vm", "create", "keeper", "--image", "tiny", "--memory", "128M", "--volume", "shelf")
        assert cluster.vm("keeper")["status"]["node"] == node
        text = "mkdir /m && mount -t ext4 /dev/vdb /m && cat /m/file && echo theirs > /m/file && umount /m"
        assert cluster.ok("vm", "exec", "keeper", "--", "sh", "-c", text) == "mine\n"
    finally:
        cluster.run("vm", "delete", "keeper", "--yes")
    cluster.ok("container", "create", gone_containers("one"), *words)
    assert cluster.ok("container", "exec", "one", "--", "cat", "/srv/file") == "theirs\n"
    cluster.ok("container", "delete", "one", "--yes")
    until(lambda: find_traces(cluster, node) == [])
    held = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    assert not [name for name in held if str(cluster.state) in name]
    file = cluster.state / "nodes" / node / "volumes" / f"{cluster.object('volume', 'shelf')['uid']}.raw"
    assert file.exists()
    cluster.ok("volume", "delete", "shelf", "--yes")
    until(lambda: not file.exists())


@pytest.mark.long
def test_a_container_that_is_not_well_is_told_and_ended_if_so_asked(
    cluster: Cluster, registry: str, gone_containers: Gone
) -> None:
    words = ["--image", f"{registry}/shop/web:1", "--memory", "64M", "--health-check-interval", "0.5s"]
    words += [word for part in ("test", "-e", "/www/ok") for word in ("--health-check-command", part)]
    cluster.ok("container", "create", gone_containers("sick"), *words, "--health-check-retries", "2")
    cluster.ok("wait", "container/sick", "--for", "condition=Healthy=False", "--timeout", "30s")
    assert (status(cluster, "sick")["phase"], status(cluster, "sick")["reason"]) == ("Running", "unhealthy")
    cluster.ok("container", "exec", "sick", "--", "touch", "/www/ok")
    cluster.ok("wait", "container/sick", "--for", "condition=Healthy", "--timeout", "30s")
    assert status(cluster, "sick")["restarts"] == 0

    cluster.ok("container", "create", gone_containers("ends"), *words, "--health-check-on-unhealthy", "restart")
    until(lambda: status(cluster, "ends")["restarts"] >= 1)
    assert "Unhealthy" in cluster.ok("container", "events", "ends")


@pytest.mark.long
def test_a_registry_that_asks_who_pulls_is_told_by_a_secret_and_so_is_a_program(
    cluster: Cluster, tmp_path: Path, gone_containers: Gone
) -> None:
    with serve(tmp_path, cluster.host_address, auth="htpasswd") as place:
        push_busybox(tmp_path, f"{place}/shop/web:1", ["sh", "-c", PROGRAM], {"www/index.html": "x"})
        words = ["--image", f"{place}/shop/web:1", "--memory", "64M"]
        said = cluster.fails(4, "container", "create", gone_containers("anybody"), *words)
        assert "notAuthenticated" in said and "registry_secret" in said, said
        given = ["--registry", place, "--username", "puller", "--password-stdin"]
        cluster.ok("secret", "create", "regcred", *given, stdin=b"wrong horse\n")
        words += ["--registry-secret", "regcred"]
        said = cluster.fails(4, "container", "create", gone_containers("web"), *words)
        assert "notAuthenticated" in said and "wrong horse" not in said, said
        cluster.ok("secret", "set", "regcred", "--password-stdin", stdin=b"gehe!m\n")
        until(lambda: status(cluster, "web")["phase"] == "Running", 60)

        (tmp_path / "key").write_text("battery staple")
        cluster.ok("secret", "create", "app", "--from-file", f"key={tmp_path / 'key'}", "--value", "user=shop")
        words += ["--env-secret", "KEY=app/key", "--env-secret", "WHO=app/user"]
        cluster.ok("container", "create", gone_containers("app"), *words)
        ask = ["container", "exec", "app", "--", "sh", "-c", 'echo "$KEY, $WHO"']
        assert cluster.ok(*ask) == "battery staple, shop\n"
        cluster.ok("secret", "set", "app", "--value", "user=other")
        assert cluster.ok(*ask) == "battery staple, shop\n"
        cluster.ok("container", "restart", "app")
        assert cluster.ok(*ask) == "battery staple, other\n"
        assert "in use by container/app" in cluster.fails(5, "secret", "delete", "app", "--yes")
        said = cluster.ok("get", "secrets", "-o", "json") + cluster.ok("describe", "secret/app")
        said += cluster.ok("describe", "container/app") + cluster.ok("events")
        assert "battery" not in said and 'puller"' not in said
        told = [path for path in cluster.state.rglob("*log") if path.is_file() and b"battery" in path.read_bytes()]
        assert told == []
        cluster.ok("container", "delete", "app", "web", "anybody", "--yes")
        cluster.ok("secret", "delete", "app", "regcred", "--yes")


@pytest.mark.long
def test_how_a_container_ends_is_told(cluster: Cluster, registry: str, gone_containers: Gone) -> None:
    image = ["--image", f"{registry}/shop/web:1", "--memory", "32M", "--command", "sh", "--arg", "-c"]
    said = cluster.ok("container", "create", gone_containers("done"), *image, "--arg", "echo so much")
    assert "container/done  Stopped on" in said or "container/done  Running on" in said  # whichever was seen first
    until(lambda: status(cluster, "done")["phase"] == "Stopped")
    assert status(cluster, "done")["reason"] == "completed"
    assert cluster.ok("container", "logs", "done") == "so much\n"
    failing = [*image, "--arg", "exit 3", "--restart", "never"]
    made = cluster.run("container", "create", gone_containers("fails"), *failing)
    # It did run, for a moment: who makes it may have been told just that.
    assert made.returncode == 0 or (made.returncode == 1 and b"exited: exit code 3" in made.stderr), made
    until(lambda: status(cluster, "fails")["phase"] == "Failed")
    assert "exited: exit code 3" in cluster.ok("describe", "container/fails")
    cluster.run("container", "create", gone_containers("again"), *image, "--arg", "sleep 1; exit 3", "--detach")
    until(lambda: status(cluster, "again")["restarts"] >= 1)
    missing = ["--image", f"{registry}/shop/nothing:1"]
    said = cluster.fails(1, "container", "create", gone_containers("missing"), *missing)
    assert "imageGone" in said


def test_without_a_registry_weft_holds_the_image(cluster: Cluster, gone_containers: Gone) -> None:
    cluster.ok("image", "build", "busybox", "--cache", str(cluster.state / "cache"))
    page = ["--", "sh", "-c", "echo held > /srv/index.html; exec httpd -f -h /srv -p 80"]
    words = ["--image", "busybox", "--memory", "32M", "--grace", "1s"]
    port = cluster.free_port()
    cluster.ok("container", "create", gone_containers("held"), *words, "--publish", f"{port}:80", *page)
    assert fetch(port) == "held\n"
    assert "in use by container/held" in cluster.fails(5, "image", "delete", "busybox", "--yes")
    done = cluster.ok("job", "run", "once", "--image", "busybox", "--memory", "32M", "--", "echo", "done")
    assert done == cluster.ok("job", "logs", "once") == "done\n"
    said = cluster.fails(2, "vm", "create", "wrong", "--image", "busybox")
    assert "wrongImage" in said and "oci://" in said
    assert "wrongImage" in cluster.fails(2, "container", "create", gone_containers("disk"), "--image", "tiny")
    assert "image list" in cluster.fails(3, "container", "create", gone_containers("none"), "--image", "nothing")
    secret = ["--registry-secret", "regcred"]
    assert "--registry-secret" in cluster.fails(2, "container", "create", "none", *words, *secret)
    cluster.ok("job", "delete", "once", "--yes")
    cluster.ok("container", "delete", "held", "--yes")
    cluster.ok("image", "delete", "busybox", "--yes")
