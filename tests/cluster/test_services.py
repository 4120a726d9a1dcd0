"""A service on a real cluster: containers on two nodes behind one address and one published port, asked by a VM and from
outside."""

from __future__ import annotations

import http.client
import os
import urllib.request
from contextlib import closing, suppress
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


def fetch_all(host: str, port: int, times: int = 30) -> list[tuple[int, str]]:
    """Status and answer of so many requests over one connection; fewer if it is refused or broken, as before HAProxy listens."""
    link = http.client.HTTPConnection(host, port, timeout=10)
    found = []
    with closing(link), suppress(OSError, http.client.HTTPException):
        for _ in range(times):
            link.request("GET", "/")
            answer = link.getresponse()
            found.append((answer.status, answer.read().decode().strip()))
    return found


def test_an_http_service_splits_the_requests_of_one_connection_and_says_when_it_has_no_endpoint(
    cluster: Cluster, registry: str, gone_containers: Gone
) -> None:
    for name, node in (("page-1", "n1"), ("page-2", "n2")):
        words = ["--image", f"{registry}/shop/web:1", "--memory", "64M", "--node", node, "-l", "app=page"]
        cluster.ok(
            "container", "create", gone_containers(name), *words, "--restart-policy", "never", "--", "sh", "-c", SERVE
        )
    port = cluster.free_port()
    words = ["--selector", "app=page", "--port", "80:8080", "--protocol", "http", "--publish", f"{port}:80"]
    cluster.ok("service", "create", "shop", *words)
    try:
        until(lambda: weights(cluster) == {"page-1": 500, "page-2": 500})
        host = str(cluster.object("node", "n1")["report"]["address"])
        both = {(200, "page-1"), (200, "page-2")}
        until(lambda: set(fetch_all(host, port)) == both)
        until(lambda: ask(cluster, "shop") == {"page-1", "page-2"})
        cluster.ok("service", "set", "shop", "--weight", "app=page:1000")
        for name in ("page-1", "page-2"):
            cluster.ok("container", "stop", name)
        until(lambda: set(weights(cluster).values()) == {0})
        until(lambda: {status for status, _ in fetch_all(host, port, 3)} == {503})
        assert fetch_all(host, port, 1)[0][1] == "service default/shop has no endpoint that answers now"
    finally:
        cluster.ok("service", "delete", "shop", "--yes")
