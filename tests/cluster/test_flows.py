"""Who exchanges how much with a workload, on the real thing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.host


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
    assert {(f["source"], f["destination_port"], f["security_group"]) for f in refused} == {(other, 81, "narrow")}
    assert "1 to 65535" in cluster.fails(2, "network", "flows", "--vm", "shown", "--ports", "0")
    cluster.ok("vm", "delete", "shown", "--yes")
    cluster.ok("securitygroup", "delete", "narrow", "--yes")
