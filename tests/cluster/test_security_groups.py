"""A VM that carries a security group, on the real thing: closed but for what a rule allows, and rules change live."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.host


def test_a_vm_with_a_security_group_is_open_to_what_its_rules_allow_and_they_change_live(
    cluster: Cluster, gone: Callable[[str], str]
) -> None:
    cluster.ok("securitygroup", "create", "front", "--ingress", "tcp:80 from 192.0.2.0/24")
    cluster.ok("vm", "create", gone("guarded"), "--image", "tiny", "--memory", "128M", "--security-group", "front")
    cluster.ok("vm", "exec", "guarded", "--", "sh", "-c", "echo it is me > /tmp/index.html; httpd -p 80 -h /tmp")
    address, hello = (cluster.vm(name)["status"]["address"] for name in ("guarded", "hello"))
    fetch = ["vm", "exec", "hello", "--", "sh", "-c", f"printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 2 {address} 80"]
    assert "it is me" not in cluster.run(*fetch).stdout.decode()
    assert cluster.run("vm", "exec", "hello", "--", "ping", "-c", "1", "-W", "2", address).returncode != 0
    ping = f"for try in $(seq 40); do ping -c 1 -W 5 {hello} && exit; sleep 1; done"  # who is where spreads from node to node
    assert "1 packets received" in cluster.ok("vm", "exec", "guarded", "--", "sh", "-c", ping)
    manifest = {"kind": "securitygroup", "name": "front", "spec": {"ingress": ["tcp:80"]}}
    (cluster.folder / "front.json").write_text(json.dumps(manifest))
    cluster.ok("apply", "-f", "front.json")
    retry = f"for try in $(seq 40); do {fetch[-1]} | grep me && exit; sleep 1; done; exit 1"
    assert "it is me" in cluster.ok(*fetch[:-1], retry)
    assert cluster.object("securitygroup", "front")["status"]["used"] == 1
    assert "vm/guarded" in cluster.fails(5, "securitygroup", "delete", "front", "--yes")
    cluster.ok("vm", "delete", "guarded", "--yes")
    cluster.ok("securitygroup", "delete", "front", "--yes")
