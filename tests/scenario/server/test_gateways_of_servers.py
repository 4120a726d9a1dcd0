"""Streams at the gateways of two servers over a real etcd, as commands of people open them, while the first server is killed."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator

import pytest
from tests.conformance.store.etcd_server import PROGRAM
from tests.scenario.server.servers_lab import tried
from tests.scenario.server.test_server_log import until
from tests.scenario.several_servers_lab import FabricWithNodes, start_fabric

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="etcd is not installed (apt-get install etcd-server)")


@pytest.fixture(scope="module")
def started() -> Iterator[FabricWithNodes]:
    with start_fabric() as fabric:
        fabric.add_image(fabric.first)
        fabric.add_node("n1", fabric.first)
        fabric.weft(fabric.first, "vm", "create", "web", "--image", "tiny", "--memory", "128M")
        yield fabric


@pytest.fixture
def fabric(started: FabricWithNodes) -> FabricWithNodes:
    """With both servers, and the node connected to both gateways."""
    started.revive()
    places = {started.first.gateway, started.second.gateway}
    until(lambda: set(started.read_enrolment("n1").get("gateways", ())) == places)
    return started


def test_a_command_whose_gateway_is_killed_ends_with_an_error_that_names_it(fabric: FabricWithNodes) -> None:
    process = fabric.spawn(fabric.first, "vm", "exec", "web", "--", "cat")
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"a line\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"a line\n"
    fabric.first.kill()
    _, err = process.communicate(timeout=60)  # the guests here keep no sessions
    assert f"the connection to the gateway at {fabric.first.gateway} was lost before the end" in err.decode()
    assert process.returncode == 1 and b"the command may still be running" in err


def test_a_gateway_that_does_not_answer_is_passed_over_for_that_of_another_server(fabric: FabricWithNodes) -> None:
    assert (
        fabric.weft(fabric.first, "vm", "exec", "web", "--", "echo", "first") == "first\n"
    )  # which knows the others now
    gateway = fabric.first.find_process("gateway")
    os.kill(gateway, signal.SIGSTOP)
    try:
        assert fabric.weft(fabric.first, "vm", "exec", "web", "--", "echo", "second") == "second\n"
    finally:
        os.kill(gateway, signal.SIGCONT)


def test_watches_and_dashboards_go_on_at_the_other_server_when_theirs_is_killed(fabric: FabricWithNodes) -> None:
    fabric.weft(fabric.first, "volume", "list")  # its context knows the other server now
    watched = fabric.spawn(fabric.first, "volume", "list", "--watch", "-o", "name")
    dashboard = fabric.spawn(fabric.first, "dashboard", "--port", "0", "--no-open")
    assert watched.stdout is not None and dashboard.stdout is not None
    link = dashboard.stdout.readline().decode().strip()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    place = link.partition("/?")[0]
    headers = {"Sec-Fetch-Site": "same-origin"}
    browser.open(urllib.request.Request(link, headers={"Sec-Fetch-Mode": "navigate"})).read()

    def ask() -> list[str]:
        asked = urllib.request.Request(f"{place}/v1/projects/default/volumes", headers=headers)
        with browser.open(asked, timeout=30) as answer:
            return [one["name"] for one in json.load(answer)["items"]]

    def make(name: str) -> None:
        fabric.client.create({"kind": "volume", "name": name, "spec": {"size": "1G"}})
        assert watched.stdout is not None and watched.stdout.readline() == f"volume/{name}\n".encode()
        assert ask()[-1] == name

    make("a")
    fabric.first.kill()
    make("b")
    fabric.revive()
    make("c")


def test_a_node_that_starts_while_its_server_is_gone_finds_the_other_and_its_gateway(fabric: FabricWithNodes) -> None:
    fabric.first.kill()
    fabric.start_node("n1")
    fabric.weft(fabric.second, "vm", "create", "late", "--image", "tiny", "--memory", "128M")
    assert fabric.weft(fabric.second, "vm", "exec", "late", "--", "echo", "here") == "here\n"


@pytest.mark.long
def test_commands_run_through_either_server_and_through_the_other_when_theirs_is_killed(
    fabric: FabricWithNodes,
) -> None:
    for server in (fabric.first, fabric.second):
        assert fabric.weft(server, "vm", "exec", "web", "--", "echo", server.gateway) == f"{server.gateway}\n"
    fabric.first.kill()
    for server in (fabric.second, fabric.first):
        assert fabric.weft(server, "vm", "exec", "web", "--", "echo", "still") == "still\n"
    until(lambda: set(fabric.read_enrolment("n1")["gateways"]) == {fabric.second.gateway}, 60)
    assert tried(lambda: fabric.client.get("vm", "web")["status"]["phase"]) == "Running"
