"""Who exchanges how much with a workload, and its packets, on the real thing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from tests.cluster.cluster import Cluster, until
from weft.cli.network.packets import Splitter, describe

pytestmark = pytest.mark.host


def list_allowed(cluster: Cluster, vm: str, to: str) -> list[dict[str, Any]]:
    """The sums of ten minutes, which its node sends now and then."""
    sums = cluster.json("network", "flows", "--vm", vm, "--since", "10m", "--ports", "80")["flows"]
    return [one for one in sums if one["verdict"] == "allowed" and one["destination"] == to]


def has_sums(cluster: Cluster, vm: str, to: str, way: str) -> bool:
    return any(one[way] > 3_000_000 for one in list_allowed(cluster, vm, to))


def test_flows_of_a_vm_are_counted_as_its_nic_counts_and_what_its_groups_refuse_is_shown(
    cluster: Cluster, gone: Callable[[str], str]
) -> None:
    cluster.ok("securitygroup", "create", "narrow", "--ingress", "tcp:80")
    cluster.ok("vm", "create", gone("shown"), "--image", "tiny", "--memory", "128M", "--security-group", "narrow")
    serve = "head -c 3000000 /dev/zero > /tmp/big; httpd -p 80 -h /tmp; httpd -p 81 -h /tmp"
    cluster.ok("vm", "exec", "shown", "--", "sh", "-c", serve)
    address, other = (cluster.vm(name)["status"]["address"] for name in ("shown", "hello"))
    fetch = f"for try in $(seq 20); do wget -q -O /dev/null http://{address}/big && exit; sleep 0.5; done; exit 1"
    cluster.ok("vm", "exec", "hello", "--", "sh", "-c", fetch)
    cluster.run("vm", "exec", "hello", "--", "nc", "-w", "1", address, "81")

    for vm, direction in (("hello", "out"), ("shown", "in")):
        flows = cluster.json("network", "flows", "--vm", vm, "--protocol", "tcp", "--ports", "80")["flows"]
        flow = max(flows, key=lambda one: one["bytes"])  # tries that found no server yet may have made others
        assert (flow["source"], flow["destination"], flow["destination_port"]) == (other, address, 80)
        assert (flow["source_name"], flow["destination_name"]) == ("hello", "shown")
        assert (flow["direction"], flow["verdict"], flow["protocol"]) == (direction, "allowed", "tcp")
        assert flow["bytes"] > 3_000_000 and flow["packets"] > 10
    assert flow["security_group"] == "narrow"
    refused = [f for f in cluster.json("network", "flows", "--vm", "shown")["flows"] if f["verdict"] == "refused"]
    for vm, way in (("hello", "received_bytes"), ("shown", "sent_bytes")):
        until(partial(has_sums, cluster, vm, address, way))
        (sums,) = list_allowed(cluster, vm, address)
        assert (sums["source_name"], sums["destination_name"], sums["source_port"]) == ("hello", "shown", 0)
        assert sums[way] > 3_000_000 and abs(sums["bytes"] - flow["bytes"]) < 0.01 * flow["bytes"]
    matrix = cluster.json("network", "matrix", "--network", "default", "--since", "10m")
    (cell,) = [one for one in matrix["traffic"] if (one["source"], one["destination"]) == ("shown", "hello")]
    assert cell["bytes"] > 3_000_000 and {"hello", "shown"} <= set(matrix["workloads"])
    assert "██" in cluster.ok("network", "matrix", "--plot") and "shown" in cluster.ok("network", "matrix")
    assert {(f["source"], f["destination_port"], f["security_group"]) for f in refused} == {(other, 81, "narrow")}
    assert "1 to 65535" in cluster.fails(2, "network", "flows", "--vm", "shown", "--ports", "0")
    cluster.ok("vm", "delete", "shown", "--yes")
    cluster.ok("securitygroup", "delete", "narrow", "--yes")


@pytest.mark.long
def test_packets_of_a_vm_are_captured_as_a_file_and_as_lines(cluster: Cluster) -> None:
    address = cluster.vm("hello")["status"]["address"]
    words = ("network", "capture", "vm/hello", "--filter", "icmp", "--seconds", "5")
    with ThreadPoolExecutor() as pool:
        file = pool.submit(cluster.run, *words)
        shown = pool.submit(cluster.run, *words, "--print")
        while not file.done():
            cluster.run("vm", "exec", "hello", "--", "ping", "-c", "1", "-W", "1", address.rpartition(".")[0] + ".1")
    done = file.result()
    splitter = Splitter()
    whole, packets = splitter.feed(done.stdout)
    lines = [describe(packet).split(" ", 1)[1] for packet in packets]
    assert done.returncode == 0 and whole == done.stdout
    assert f"IP {address} > {address.rpartition('.')[0]}.1: ICMP echo request, 98 bytes" in lines
    assert {line.split(": ")[1] for line in lines} == {"ICMP echo request, 98 bytes", "ICMP echo reply, 98 bytes"}
    assert f"{len(packets)} packets; ended after the time" in done.stderr.decode()
    assert "ICMP echo reply" in shown.result().stdout.decode()
    assert "is not a word of a filter" in cluster.fails(2, "network", "capture", "vm/hello", "--filter", "htp")
    audited = [  # what was refused as input was allowed by its rights
        {change["field"]: change["new"] for change in one["objects"][0]["changes"]}
        for one in cluster.json("api", "get", "/v1/audit?limit=1000")["items"]
        if one.get("path", "").endswith("/vms/hello:capture") and one["outcome"] == "allowed" and one["objects"]
    ]
    assert any(changes["input.filter"] == "icmp" and changes["input.seconds"] == 5 for changes in audited)
