"""Snapshots of volumes and of containers' volumes on a real cluster: taken while a container writes, back again, and under another
name, also with the agent killed in between."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cluster.cluster import Cluster, until
from tests.cluster.containers import Gone

pytestmark = pytest.mark.host


def read(cluster: Cluster, container: str, path: str = "/srv/note") -> str:
    return cluster.ok("container", "exec", container, "--", "cat", path).strip()


def write(cluster: Cluster, container: str, text: str) -> None:
    cluster.ok("container", "exec", container, "--", "sh", "-c", f"echo {text} > /srv/note; sync")


def write_books(cluster: Cluster, registry: str, gone_containers: Gone) -> tuple[str, ...]:
    """A container with volume ledger, of which two snapshots were taken while it wrote; the words that make another like it."""
    words = ("--image", f"{registry}/shop/web:1", "--memory", "64M")
    cluster.ok("volume", "create", "ledger", "--size", "64M")
    assert "has no data yet" in cluster.fails(5, "volume", "snapshot", "ledger", "--name", "early")
    cluster.ok("container", "create", gone_containers("books"), *words, "--mount", "ledger:/srv")
    write(cluster, "books", "first")
    said = cluster.ok("volume", "snapshot", "ledger", "--name", "one")
    assert said.startswith("snapshot/one  Ready on ") and "with frozen file systems" in said, said
    write(cluster, "books", "second")
    cluster.ok("container", "snapshot", "books", "--name", "two")
    two = cluster.json("snapshot", "describe", "two")
    assert two["status"]["consistency"] == "filesystem" and list(two["status"]["disks"]) == ["ledger"]
    write(cluster, "books", "third")
    return words


def test_a_containers_volume_runs_a_second_time_under_another_name(
    cluster: Cluster, registry: str, gone_containers: Gone
) -> None:
    words = write_books(cluster, registry, gone_containers)
    cluster.ok("volume", "restore", "ledger", "--snapshot", "two", "--new-name", "copy")
    cluster.ok("container", "create", gone_containers("again"), *words, "--mount", "copy:/srv")
    assert (read(cluster, "again"), read(cluster, "books")) == ("second", "third")
    cluster.ok("container", "delete", "books", "again", "--yes")
    cluster.ok("snapshot", "delete", "one", "two", "--yes")
    cluster.ok("volume", "delete", "ledger", "copy", "--yes")


@pytest.mark.long
def test_a_containers_volume_goes_back_in_place_while_its_agent_is_killed(
    cluster: Cluster, registry: str, gone_containers: Gone
) -> None:
    words = write_books(cluster, registry, gone_containers)
    two = cluster.json("snapshot", "describe", "two")
    assert "books" in cluster.fails(5, "volume", "restore", "ledger", "--snapshot", "one")
    assert "one by one" in cluster.fails(2, "container", "restore", "books", "--snapshot", "two")
    cluster.ok("container", "delete", "books", "--yes")
    agent = cluster.pid(f"weft agent {two['status']['node']} ")
    with ThreadPoolExecutor() as threads:
        restoring = threads.submit(cluster.run, "volume", "restore", "ledger", "--snapshot", "one")
        until(lambda: cluster.object("volume", "ledger")["actions"].get("restore"))
        os.kill(agent, 9)
        done = restoring.result()
    assert done.returncode == 0, done.stderr
    assert b"what stood there is kept as snapshot/ledger-before-" in done.stderr, done.stderr
    cluster.ok("container", "create", gone_containers("books"), *words, "--mount", "ledger:/srv")
    assert read(cluster, "books") == "first"
    kept = next(one["name"] for one in cluster.json("snapshot", "list")["items"] if "-before-" in one["name"])
    cluster.ok("volume", "restore", "ledger", "--snapshot", kept, "--new-name", "third")
    cluster.ok("container", "create", gone_containers("last"), *words, "--mount", "third:/srv")
    assert read(cluster, "last") == "third"

    cluster.ok("snapshot", "delete", "one", "--yes")  # in the middle of a chain
    assert [read(cluster, name) for name in ("books", "last")] == ["first", "third"]
    cluster.ok("container", "delete", "books", "last", "--yes")
    done = cluster.run("volume", "delete", "ledger", "third", "--yes")
    assert done.returncode == 0 and b"of volume/ledger stay" in done.stderr, done.stderr
    cluster.ok("snapshot", "delete", "two", kept, "--yes")
    until(lambda: all(not node["report"]["snapshots"] for node in cluster.json("node", "list")["items"]))
    assert cluster.json("snapshot", "list")["items"] == []
