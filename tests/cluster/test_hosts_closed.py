"""Real guests and the machines around them: they reach the API and services of nodes only once their network opens them."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.cluster.cluster import Cluster, until
from weft.client.context import find_context

pytestmark = pytest.mark.host


def test_a_guest_asks_the_api_only_while_its_network_opens_it(cluster: Cluster, gone: Callable[[str], str]) -> None:
    port = find_context(folder=str(cluster.folder), environ={}).server.rpartition(":")[2]
    underlay = json.loads((cluster.state / "cluster.json").read_text())
    functions = int(port) - 10000
    cluster.ok("network", "create", "shut", "--cidr", "10.79.0.0/24")
    words = ["--image", "tiny", "--memory", "128M", "--network", "shut"]
    cluster.ok("vm", "create", gone("inside"), *words, "--node", "n1")

    def says(host: str, at: int | str) -> str:
        ask = f"nc -w 3 {host} {at} </dev/null >/dev/null 2>&1 && echo open || echo closed"
        return cluster.ok("vm", "exec", "inside", "--", "sh", "-c", ask).strip()

    node = next(one["address"] for one in underlay["nodes"] if one["name"] == "n2")
    cluster.ok("vm", "exec", "inside", "--", "ping", "-c", "1", "-W", "10", cluster.host_address)
    try:
        assert says(cluster.host_address, port) == says(cluster.host_address, functions) == "closed"
        cluster.ok("network", "set", "shut", "--open", "api")
        until(lambda: says(cluster.host_address, port) == "open")
        assert says(cluster.host_address, functions) == "closed"
        cluster.ok("network", "set", "shut", "--open", "functions")
        until(lambda: says(cluster.host_address, functions) == "open")
        assert says(cluster.host_address, port) == "closed"
        assert says(node, 22) == "closed"
    finally:
        cluster.run("vm", "delete", "inside", "--yes")
        until(lambda: cluster.run("network", "delete", "shut", "--yes").returncode == 0)
