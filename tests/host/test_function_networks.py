"""Functions that name a network, on a node made of namespaces: whom their code reaches, and what it can't, by trying."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from function_lab import PLACE, FunctionLab, open_lab
from network_lab import OUTSIDE, Lab, Node, fetch_command, make_port, make_segment
from test_network_containers import Container, inside

from weft.contracts.driver.function import EgressEndpoint, Recipe
from weft.contracts.driver.network import Inside, Port, Segment
from weft.protocol.invocations import Drop

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

PATIENCE = 180.0  # a machine is booted once
TRY = """
import socket, threading, time

def serve(door):
    while True:
        link, _ = door.accept()
        link.recv(4096)
        link.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\nI am an instance")
        link.close()

door = None

def fetch(host, port):
    try:
        with socket.create_connection((host, port), 1.5) as link:
            link.settimeout(1.5)
            link.sendall(b"GET / HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n")
            got = b"".join(iter(lambda: link.recv(65536), b""))
        return got.split(b"\\r\\n\\r\\n", 1)[1].decode()
    except OSError as problem:
        return "no: " + type(problem).__name__

def handler(event, context):
    global door
    if event.get("serve") and door is None:
        door = socket.create_server(("0.0.0.0", 7070))
        threading.Thread(target=serve, args=(door,), daemon=True).start()
    found = {f"{host}:{port}": fetch(host, port) for host, port in event["try"]}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:
        try:
            mouth.connect(("192.0.2.1", 9))
            found["own"] = mouth.getsockname()[0]
        except OSError:
            found["own"] = ""
    print(found, flush=True)
    time.sleep(event.get("stay", 0))
    return found
"""


@pytest.fixture
def net() -> Iterator[Lab]:
    lab = Lab(nodes=2)
    try:
        yield lab
    finally:
        lab.close()


@pytest_asyncio.fixture(
    params=["process", *(pytest.param(name, marks=pytest.mark.long) for name in ("container", "vm"))]
)
async def lab(folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[FunctionLab]:
    async with open_lab(folder, request.param) as lab:
        yield lab


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The node's state: what its base and its machines are copied from is made once for all tests."""
    return tmp_path_factory.mktemp("networks")


def egress_endpoint_port(segment: Segment) -> Port:
    port = make_port(segment, "egress")
    return msgspec.structs.replace(port, inside=Inside(port.id, shared=True))


async def stand(node: Node, segment: Segment) -> EgressEndpoint:
    """As the node's agent does it, seen from here."""
    path = await node.plug(egress_endpoint_port(segment))
    return EgressEndpoint(f"/proc/{node.pid}/root{path}", segment.gateway, segment.domain, segment.mtu)


async def stand_behind(node: Node, egress_endpoint: EgressEndpoint) -> list[str]:
    """The addresses of the instances that do."""
    path = egress_endpoint.namespace.partition("root")[2]
    shown = node.shell(f"nsenter --net={path} ip -o -4 addr show")
    ends = [line.split()[3].partition("/")[0] for line in shown.splitlines() if line.split()[1].startswith("in")]
    return [str(IPv4Address(end) + 1) for end in ends]


async def reach(lab: FunctionLab, recipe: Recipe, *targets: tuple[str, int], **event: Any) -> dict[str, str]:
    answer = await lab.answer(lab.ask(recipe, {"try": targets, **event}, seconds=60), PATIENCE)
    assert answer.error == "", (answer.error, answer.payload)
    found: dict[str, str] = json.loads(answer.payload)
    return found


async def test_a_function_reaches_its_network_and_nothing_else(net: Lab, lab: FunctionLab) -> None:
    n1, n2 = net.nodes
    blue = make_segment(1, "blue", {"a": n1, "b": n2, "egress": n1})
    red = make_segment(2, "red", {"r": n1}, cidr="10.30.0.0/24")
    for node in (n1, n2):
        await node.ensure_refused(["10.20.0.0/24", "10.30.0.0/24"], [f"{n1.address}/32", f"{n2.address}/32"])
        await node.ensure_segment(blue)
    await n1.ensure_segment(red)
    a = Container(net, n1, await n1.plug(inside(blue, "a")))
    b = Container(net, n2, await n2.plug(inside(blue, "b")))
    r = Container(net, n1, await n1.plug(inside(red, "r")))
    for container, text in ((a, "I am a"), (b, "I am b"), (r, "I am r")):
        container.serve(text)
    net.serve(net.outside, "I am outside")
    net.serve(n1.namespace, "I am the node", 8080)
    net.serve(n2.namespace, "I am another node", 8080)
    lab.egress_endpoints.places["blue"] = await stand(n1, blue)
    recipe = lab.same_recipe(TRY, network="blue", timeout=60.0, cpu=0.25)
    closed = lab.recipe({"app.py": TRY}, timeout=60.0)

    good = [("10.20.0.11", 80), ("a", 80), ("b.blue.weft", 80), ("b", 80), (OUTSIDE, 80)]
    found = await reach(lab, recipe, *good)
    said = [found[f"{host}:{port}"] for host, port in good]
    assert said == ["I am a", "I am a", "I am b", "I am b", "I am outside"], found
    assert a.run("ip", "neigh").count("10.20.0.13") == 1  # what it saw is the egress endpoint's address

    bad = [
        ("10.30.0.11", 80),  # another network of the fabric
        (n1.address, 8080),
        (n2.address, 8080),
        ("10.20.0.1", 8080),  # the gateway, which is the node's
        ("169.254.64.0", 8080),  # the node's end of the router's way out
        ("169.254.192.0", 8080),  # the near ends of links to instances, in the egress endpoint
        ("169.254.192.2", 8080),
        ("127.0.0.1", 8080),
    ]
    found = await reach(lab, recipe, *bad)
    assert all(found[f"{host}:{port}"].startswith("no:") for host, port in bad), found
    found = await reach(lab, closed, *good, *bad)
    assert found.pop("own") == "" and all(said.startswith("no:") for said in found.values()), found


async def test_nothing_is_opened_to_an_instance(net: Lab, lab: FunctionLab) -> None:
    n1, _ = net.nodes
    blue = make_segment(1, "blue", {"a": n1, "egress": n1})
    await n1.ensure_segment(blue)
    a = Container(net, n1, await n1.plug(inside(blue, "a")))
    lab.egress_endpoints.places["blue"] = egress_endpoint = await stand(n1, blue)
    recipe = lab.same_recipe(TRY, network="blue", timeout=60.0, cpu=0.25)
    lab.ask(recipe, {"try": [("127.0.0.1", 7070)], "serve": True, "stay": 60}, seconds=60.0)
    await lab.until(
        lambda: "I am an instance" in lab.printed(recipe), PATIENCE
    )  # it is at work for as long as others try
    (there,) = await stand_behind(n1, egress_endpoint)
    tried = await reach(lab, recipe, (there, 7070), ("10.20.0.12", 7070))  # of another instance
    assert all(said.startswith("no:") for name, said in tried.items() if name != "own"), tried
    assert len(lab.functions.instances.running) == 2
    for address in (there, "10.20.0.12"):
        a.run("ip", "route", "replace", f"{there}/32", "via", "10.20.0.12")
        assert "I am an instance" not in a.run(*fetch_command(address, 7070), check=False)


async def test_many_instances_come_and_go_and_leave_no_link(net: Lab, lab: FunctionLab) -> None:
    n1, _ = net.nodes
    blue = make_segment(1, "blue", {"a": n1, "egress": n1})
    await n1.ensure_segment(blue)
    a = Container(net, n1, await n1.plug(inside(blue, "a")))
    a.serve("I am a")
    lab.egress_endpoints.places["blue"] = egress_endpoint = await stand(n1, blue)
    recipe = lab.same_recipe(TRY, network="blue", timeout=60.0, cpu=0.25)
    await reach(lab, recipe, ("a", 80))
    answers = await asyncio.gather(*(reach(lab, recipe, ("a", 80)) for _ in range(4)))
    assert [found["a:80"] for found in answers] == ["I am a"] * 4
    await lab.until(lambda: lab.idle(recipe) > 1)
    assert len(await stand_behind(n1, egress_endpoint)) == len(lab.functions.instances.running) > 1
    lab.functions.take(Drop(recipe.digest), PLACE)
    await lab.until(lambda: lab.egress_endpoints.places == {})  # nothing here needs it any more
    async with asyncio.timeout(20):
        while await stand_behind(n1, egress_endpoint):
            await asyncio.sleep(0.05)
    assert await n1.heal() == []
    await n1.unplug(egress_endpoint_port(blue).id)
    assert (await n1.state()).shared == []
    assert os.path.basename(egress_endpoint.namespace) not in n1.shell("ls /run/netns")
