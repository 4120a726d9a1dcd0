"""A service on a real cluster: containers on two nodes behind one address and one published port, asked by a VM and from
outside."""

from __future__ import annotations

import os
import urllib.request
from typing import Any

import pytest

from tests.cluster.cluster import Cluster, until
from tests.cluster.containers import Gone

pytestmark = pytest.mark.host
SERVE = "mkdir -p /tmp/w; hostname > /tmp/w/index.html; trap 'exit 0' TERM; httpd -f -p 8080 -h /tmp/w & wait"
ASK = "for i in $(seq %d); do wget -qO- http://%s/ || echo failed; done"


def fetch(place: str) -> str:
    with urllib.request.urlopen(f"http://{place}/", timeout=10) as answer:
        return str(answer.read().decode())


def shop(cluster: Cluster) -> dict[str, Any]:
    return dict(cluster.object("service", "shop")["status"])


def weights(cluster: Cluster) -> dict[str, int]:
    return {one["workload"]["name"]: one["weight"] for one in shop(cluster)["endpoints"]}


def ask(cluster: Cluster, place: str, times: int = 16) -> set[str]:
    return set(cluster.ok("vm", "exec", "hello", "--", "sh", "-c", ASK % (times, place)).split())


def test_a_service_splits_connections_follows_its_endpoints_and_refuses_without_any(
    cluster: Cluster, registry: str, gone_containers: Gone
) -> None:
    for name, node in (("front-1", "n1"), ("front-2", "n2")):
        words = ["--image", f"{registry}/shop/web:1", "--memory", "64M", "--node", node, "-l", "app=shop"]
        cluster.ok(
            "container", "create", gone_containers(name), *words, "--restart-policy", "never", "--", "sh", "-c", SERVE
        )
    port = cluster.free_port()
    said = cluster.ok(
        "service", "create", "shop", "--selector", "app=shop", "--port", "80:8080", "--publish", f"{port}:80"
    )
    try:
        assert "service/shop" in said
        until(lambda: weights(cluster) == {"front-1": 500, "front-2": 500})
        address = shop(cluster)["address"]
        for place in ("shop", "shop.default", address):
            until(lambda place=place: ask(cluster, place) == {"front-1", "front-2"})  # type: ignore[misc]
        for node in ("n1", "n2", "n3"):
            place = f"{cluster.object('node', node)['report']['address']}:{port}"
            assert {fetch(place).strip() for _ in range(16)} == {"front-1", "front-2"}, node
        assert cluster.json("service", "list")["items"][0]["status"]["address"] == address

        cluster.ok("service", "set", "shop", "--weight", "app=shop:1000", "--sticky", "client")
        until(lambda: len(ask(cluster, "shop")) == 1)
        agent = cluster.pid("weft agent n1 ")
        os.kill(agent, 9)  # what it made goes on, and its endpoint stays in the set
        assert "failed" not in ask(cluster, "shop")
        until(lambda: set(cluster.pids("weft agent n1 ")) - {agent})

        cluster.run("container", "exec", "front-1", "--", "kill", "-TERM", "1")  # it ends with the container
        until(lambda: weights(cluster) == {"front-1": 0, "front-2": 1000})
        until(lambda: ask(cluster, "shop") == {"front-2"})
        cluster.ok("container", "stop", "front-2")
        until(lambda: shop(cluster)["phase"] == "NoEndpoints")
        refused = f"wget -qO- http://{address}/ 2>&1; true"
        until(lambda: "refused" in cluster.ok("vm", "exec", "hello", "--", "sh", "-c", refused))
    finally:
        cluster.run("service", "delete", "shop", "--yes")
    until(lambda: not [one for one in cluster.json("get", "endpoints")["items"] if one["spec"].get("served")])
