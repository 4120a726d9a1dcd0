"""Streams at the gateways of two servers over a real etcd, as commands of people open them, while the first server is killed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.store.etcd_server import PROGRAM, EtcdServer
from tests.scenario.server.servers_lab import tried
from tests.scenario.server.test_server_log import until
from tests.scenario.several_servers_lab import Fabric, start_fabric

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="etcd is not installed (apt-get install etcd-server)")


@pytest.fixture(scope="module")
def started() -> Iterator[Fabric]:
    with tempfile.TemporaryDirectory(prefix="wf-", dir="/tmp") as folder:
        etcd = EtcdServer(Path(folder) / "etcd")
        etcd.start()
        try:
            with start_fabric(Path(folder), etcd) as fabric:
                fabric.add_image(fabric.first)
                fabric.add_node("n1", fabric.first)
                fabric.weft(fabric.first, "vm", "create", "web", "--image", "tiny", "--memory", "128M")
                yield fabric
        finally:
            etcd.end()


@pytest.fixture
def fabric(started: Fabric) -> Fabric:
    """With both servers, and the node connected to both gateways."""
    started.revive()
    places = {started.first.gateway, started.second.gateway}
    until(lambda: set(started.read_enrolment("n1").get("gateways", ())) == places)
    return started


def test_commands_run_through_either_server_and_through_the_other_when_theirs_is_killed(fabric: Fabric) -> None:
    for server in (fabric.first, fabric.second):
        assert fabric.weft(server, "vm", "exec", "web", "--", "echo", server.gateway) == f"{server.gateway}\n"
    fabric.first.kill()
    for server in (fabric.second, fabric.first):
        assert fabric.weft(server, "vm", "exec", "web", "--", "echo", "still") == "still\n"
    until(lambda: set(fabric.read_enrolment("n1")["gateways"]) == {fabric.second.gateway}, 60)
    assert tried(lambda: fabric.client.get("vm", "web")["status"]["phase"]) == "Running"
