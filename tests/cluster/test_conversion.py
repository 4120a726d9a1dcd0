"""Containers that go on as VMs and back: with their data, addresses, ports and names, whatever fails on the way."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import WEFT, Cluster, until
from tests.cluster.containers import PROGRAM, SERVES, fetch
from tests.registry import push_busybox, serve

pytestmark = pytest.mark.host
# Counts on its volume how often it began, serves that, and says who it is.
COUNTS = 'echo run >> /data/index.html; echo $(id -u) "$WORDS"; exec httpd -f -p 80 -h /data'
Make = Callable[..., None]


@pytest.fixture
def make(cluster: Cluster, tmp_path: Path) -> Iterator[Make]:
    """Makes a container NAME, of an image of that name, that counts on a volume of that name. All of it goes in the end."""
    names: list[str] = []

    def make(name: str, place: str, *more: str) -> None:
        names.append(name)
        push_busybox(tmp_path, f"{place}/shop/{name}:1", ["sh", "-c", PROGRAM], {"www/index.html": SERVES})
        cluster.ok("volume", "create", name, "--size", "64M")
        words = [
            "--image",
            f"{place}/shop/{name}:1",
            "--memory",
            "64M",
            "--mount",
            f"{name}:/data",
            "--user",
            "1000:1000",
        ]
        words += ["--grace", "1s", "--env", "WORDS=two  words", "--pids", "99", *more, "--", "sh", "-c", COUNTS]
        cluster.ok("container", "create", name, *words)

    yield make
    for name in names:
        for item in converted(cluster, name):
            cluster.run("conversion", "undo", item["name"])
        cluster.run("container", "delete", name, "--yes")
        cluster.run("vm", "delete", name, "--yes")
        cluster.run("volume", "delete", name, "--yes")


def converted(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    """The Conversions of either kind's ``name``, the oldest first."""
    items = cluster.json("conversion", "list")["items"]
    return sorted(
        (item for item in items if item["spec"]["workload"].partition("/")[2] == name),
        key=lambda item: item["created_at"],
    )


def find(cluster: Cluster, what: str) -> dict[str, Any]:
    return cluster.object(*what.split("/"))


def look_up(cluster: Cluster, name: str) -> str:
    return cluster.ok("vm", "exec", "hello", "--", "nslookup", f"{name}.weft")


def test_a_container_goes_on_as_a_vm_and_that_as_a_container(
    cluster: Cluster, registry: str, make: Make, tmp_path: Path
) -> None:
    port, address = cluster.free_port(), find(cluster, "network/default")["spec"]["cidr"].rpartition(".")[0] + ".77"
    make("clerk", registry, "--publish", f"{port}:80", "--network", f"default:{address}", "--label", "tier=shop")
    before = find(cluster, "container/clerk")
    assert fetch(port) == "run\n" and address in look_up(cluster, "clerk")
    cluster.ok("container", "exec", "clerk", "--", "sh", "-c", "echo mine > /data/note; echo lost > /tmp/note")

    said = cluster.ok("convert", "clerk", "--to", "vm", "--dry-run")
    assert "container/clerk → vm/clerk, 128 MiB" in said and f"default:{address}" in said and "left out   pids" in said
    assert converted(cluster, "clerk") == []
    done = cluster.run("convert", "container/clerk", "--to", "vm", timeout=180)
    assert done.returncode == 0, done.stderr.decode()
    assert "in place of container/clerk; downtime" in done.stdout.decode()
    assert b"left out  pids" in done.stderr and b"outside its volumes" in done.stderr
    (conversion,) = converted(cluster, "clerk")
    assert f"weft conversion confirm {conversion['name']}" in done.stdout.decode()

    assert fetch(port) == "run\nrun\n"
    vm = find(cluster, "vm/clerk")
    assert vm["status"]["address"] == address and vm["labels"] == {"tier": "shop"}
    cluster.ok("wait", "vm/clerk", "--for", "condition=SetUp", timeout=60)
    assert address in look_up(cluster, "clerk")
    digest = conversion["status"]["digest"]
    assert find(cluster, f"image/{vm['spec']['image']}")["status"]["digest"] == digest
    ask = "cat /www/index.html /data/note; ls /tmp/note; ps | grep -c [h]ttpd"
    told = cluster.run("vm", "exec", "clerk", "--", "sh", "-c", ask)
    assert told.stdout.startswith(b"from a container\nmine\n") and b"No such file" in told.stderr
    until(lambda: "1000 two  words" in cluster.ok("vm", "logs", "clerk"))
    assert cluster.ok("container", "logs", "clerk") == "1000 two  words\n"  # of its own time

    old = find(cluster, "container/clerk")
    assert (old["status"]["phase"], old["spec"]["mounts"], old["spec"]["publish"]) == ("Stopped", [], [])
    for words in (
        ("container", "start", "clerk"),
        ("container", "delete", "clerk", "--yes"),
        ("vm", "delete", "clerk", "--yes"),
    ):
        said = cluster.fails(5, *words)
        assert f"conversion/{conversion['name']}" in said and "undo" in said, said
    assert "attached to vm/clerk" in cluster.fails(
        5, "container", "create", "thief", "--image", f"{registry}/shop/clerk:1", "--mount", "clerk:/data"
    )
    cluster.ok("conversion", "confirm", conversion["name"])
    until(lambda: cluster.run("container", "get", "clerk").returncode == 3)
    assert fetch(port) == "run\nrun\n"

    push_busybox(tmp_path, f"{registry}/shop/clerk:1", ["false"], {})  # its tag means another one from now on
    said = cluster.ok("convert", "vm/clerk", "--to", "container", timeout=180)
    assert "container/clerk  Running on" in said and "vm/clerk is kept" in said
    assert fetch(port) == "run\nrun\nrun\n" and address in look_up(cluster, "clerk")
    cluster.ok("conversion", "confirm", said.partition("conversion confirm ")[2].split()[0])
    until(lambda: cluster.run("vm", "get", "clerk").returncode == 3)
    after = find(cluster, "container/clerk")
    assert after["spec"].pop("image") == f"{registry}/shop/clerk@{digest}" and before["spec"].pop("image")
    assert after["spec"] == before["spec"] and after["labels"] == before["labels"]


def test_what_can_not_be_leaves_the_container_as_it_was(cluster: Cluster, tmp_path: Path, make: Make) -> None:
    port = cluster.free_port()
    with serve(tmp_path / "registry", cluster.host_address) as place:
        make("firm", place, "--publish", f"{port}:80")
    began = find(cluster, "container/firm")["status"]["started_at"]
    said = cluster.fails(6, "convert", "container/firm", "--to", "vm", timeout=180)  # its registry has gone
    assert "container/firm was not converted: image" in said and "is unchanged" in said, said
    assert find(cluster, "container/firm")["status"]["started_at"] == began  # it was never stopped
    assert fetch(port) == "run\n"
    assert [item["status"]["phase"] for item in converted(cluster, "firm")] == ["Failed"]
    assert cluster.run("vm", "get", "firm").returncode == 3
    assert "which is not a container image" in cluster.fails(5, "convert", "vm/hello", "--to", "container")


@pytest.mark.long
def test_controllers_that_are_killed_on_the_way_are_no_matter(cluster: Cluster, registry: str, make: Make) -> None:
    port = cluster.free_port()
    make("tough", registry, "--publish", f"{port}:80")
    words = [WEFT, "convert", "container/tough", "--to", "vm", "--confirm"]
    with subprocess.Popen(words, cwd=cluster.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as following:
        killed: list[str] = []
        while following.poll() is None:
            phase = (converted(cluster, "tough") or [{"status": {"phase": ""}}])[0]["status"]["phase"]
            if phase in ("Preparing", "Stopping", "HandingOver", "Starting") and phase not in killed:
                killed.append(phase)
                for pid in cluster.pids("weft server controllers"):
                    os.kill(pid, 9)
            time.sleep(0.1)
        assert following.stderr is not None and following.returncode == 0, following.stderr.read().decode()
    assert len(killed) >= 2 and fetch(port) == "run\nrun\n"
    until(lambda: cluster.run("container", "get", "tough").returncode == 3)


@pytest.mark.long
def test_undone_what_runs_an_image_that_weft_holds_runs_again_with_what_the_vm_wrote(cluster: Cluster) -> None:
    port = cluster.free_port()
    cluster.ok("image", "build", "busybox", "--cache", str(cluster.state / "cache"))
    cluster.ok("volume", "create", "held", "--size", "64M")
    words = [
        "--image",
        "busybox",
        "--memory",
        "32M",
        "--grace",
        "1s",
        "--publish",
        f"{port}:80",
        "--restart",
        "never",
        "--mount",
        "held:/data",
    ]
    try:
        page = "[ ! -e /data/no ] || [ ! -e /run/weft ] || exit 3; echo run >> /data/index.html; exec httpd -f -p 80 -h /data"
        cluster.ok("container", "create", "held", *words, "--", "sh", "-c", page)
        address = find(cluster, "container/held")["status"]["address"]
        cluster.ok(
            "container", "exec", "held", "--", "sh", "-c", "touch /data/no; sync"
        )  # it runs here, and not as a VM
        said = cluster.fails(1, "convert", "container/held", "--to", "vm", timeout=180)
        assert "vm/held ended on its own, exit code 3" in said and "runs if it did" in said, said
        assert "isn't well" not in said, said
        assert fetch(port) == "run\nrun\n"  # as soon as that is told
        cluster.ok("container", "exec", "held", "--", "rm", "/data/no")
        cluster.ok("convert", "container/held", "--to", "vm", timeout=180)
        made = find(cluster, "vm/held")
        assert made["status"]["address"] == address
        assert find(cluster, f"image/{made['spec']['image']}")["spec"]["url"] == "oci://busybox"
        cluster.ok("vm", "exec", "held", "--", "sh", "-c", "echo machine >> /data/index.html; sync")
        conversion = converted(cluster, "held")[-1]
        assert "Undone" in cluster.ok("conversion", "undo", conversion["name"])
        assert fetch(port) == "run\nrun\nrun\nmachine\nrun\n"
        until(lambda: cluster.run("vm", "get", "held").returncode == 3)
        assert find(cluster, "container/held")["status"]["address"] == address
        assert "Undone" in cluster.fails(5, "conversion", "confirm", conversion["name"])
    finally:
        cluster.run("container", "delete", "held", "--yes")
        cluster.run("vm", "delete", "held", "--yes")
        cluster.run("volume", "delete", "held", "--yes")
    cluster.ok("image", "delete", made["spec"]["image"], "busybox", "--yes")
