"""Real guests and the machines around them: they reach the API and services of nodes only once their network opens them."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.cluster.cluster import Cluster, until
from weft.client.context import find_context

pytestmark = pytest.mark.host


def test_a_guest_asks_the_api_only_while_its_network_opens_it(cluster: Cluster, gone: Callable[[str], str]) -> None:
    port = int(find_context(folder=str(cluster.folder), environ={}).server.rpartition(":")[2])
    underlay = json.loads((cluster.state / "cluster.json").read_text())
    cluster.ok("network", "create", "shut", "--cidr", "10.79.0.0/24")
    words = ["--image", "tiny", "--memory", "128M", "--network", "shut"]
    cluster.ok("vm", "create", gone("inside"), *words, "--node", "n1")

    def says(*places: tuple[str, int]) -> list[str]:
        """Whether each is open, asked all at the same time: nothing answers for one that is closed."""
        asks = [
            f"{{ nc -w 1 {host} {at} </dev/null >/dev/null 2>&1 && echo {number} open || echo {number} closed; }} &"
            for number, (host, at) in enumerate(places)
        ]
        said = cluster.ok("vm", "exec", "inside", "--", "sh", "-c", " ".join([*asks, "wait"]))
        return [line.partition(" ")[2] for line in sorted(said.splitlines())]

    api, functions = (cluster.host_address, port), (cluster.host_address, port - 10000)
    ssh = (next(one["address"] for one in underlay["nodes"] if one["name"] == "n2"), 22)
    until(lambda: cluster.run("vm", "exec", "inside", "--", "ping", "-c", "1", cluster.host_address).returncode == 0)
    try:
        assert says(api, functions) == ["closed", "closed"]
        cluster.ok("network", "set", "shut", "--open", "api")
        until(lambda: says(api, functions) == ["open", "closed"])
        cluster.ok("network", "set", "shut", "--open", "functions")
        until(lambda: says(api, functions, ssh) == ["closed", "open", "closed"])
    finally:
        cluster.run("vm", "delete", "inside", "--yes")
        until(lambda: cluster.run("network", "delete", "shut", "--yes").returncode == 0)
