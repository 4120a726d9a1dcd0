"""Services in the kernel: a client of the same network is answered wherever its target is, by whichever node."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator

import msgspec
import pytest
from tests.host.network_lab import Lab, make_port
from tests.host.service_lab import ANY, CLIENTS, EMPTY, SHOP, A, B, Shop

from weft.contracts.driver.network import (
    Allowed,
    Filter,
    Forward,
    NodeShare,
    Port,
)

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces"),
]


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    lab = Lab(3)
    try:
        built = Shop(lab)
        asyncio.run(built.build())
        yield built
    finally:
        lab.close()


async def test_connections_are_split_as_weights_say_and_targets_see_their_client(shop: Shop) -> None:
    await shop.serve(a=500, b=300, c=200)
    for client, own in (("d", "10.20.0.14"), ("b", B)):
        found = shop.count(client, f"{SHOP}:80", 600)
        answers = {said.split()[0]: number for said, number in found.items()}
        assert answers.keys() == {"a", "b", "c"} and sum(answers.values()) == 600, found
        assert abs(answers["a"] - 300) < 75 and abs(answers["c"] - 120) < 60
        assert {said.split()[1] for said in found} <= {own, "10.20.0.1"}  # the gateway where it is its own target
    assert shop.count("d", f"{A}:8080", 20) == {"a 10.20.0.14": 20}  # past the service, as before


async def test_its_names_are_resolved_and_go_before_a_guests(shop: Shop) -> None:
    await shop.serve(b=1)
    client = shop.guests["d"]
    for name in ("shop", "shop.blue.weft", "shop.blue", "shop.lab"):
        assert SHOP in client.run("busybox", "nslookup", name, client.resolv.read_text().split()[1]), name
    assert client.reaches(SHOP)


async def test_without_a_target_or_at_another_port_a_connection_is_refused_immediately(shop: Shop) -> None:
    await shop.serve(a=1)
    assert shop.count("d", f"{EMPTY}:80", 5) == {"ConnectionRefusedError": 5}
    assert shop.count("c", f"{SHOP}:81", 5) == {"ConnectionRefusedError": 5}
    await shop.serve()
    assert shop.count("d", f"{SHOP}:80", 5) == {"ConnectionRefusedError": 5}


async def test_open_connections_stay_while_weights_change_and_new_ones_follow_them(shop: Shop) -> None:
    await shop.serve(a=500, b=500)
    held = shop.start("d", "hold", f"{SHOP}:80", "20")
    for weights in ({"b": 1, "c": 1}, {"c": 1}, {"a": 1}):
        await shop.serve(sticky=False, **weights)
        found = {said.split()[0] for said in shop.count("d", f"{SHOP}:80", 40)}
        assert found == set(weights)
    assert held.stdin is not None and held.stdout is not None
    held.stdin.write("go on\n")
    held.stdin.flush()
    assert json.loads(held.stdout.readline()) == {"same": 20}


async def test_a_split_that_changes_all_the_time_fails_nobody(shop: Shop) -> None:
    await shop.serve(a=500, b=500)
    busy = shop.start("d", "load", f"{SHOP}:80")
    for step in range(12):
        await shop.serve(a=900 - 50 * step, b=50 + 50 * step, c=50)
    assert busy.stdin is not None and busy.stdout is not None
    busy.stdin.write("stop\n")
    busy.stdin.flush()
    said = json.loads(busy.stdout.readline())
    assert said["failed_at"] == [] and said["asked"] > 50, said


async def test_a_sticky_client_stays_with_its_target_while_that_is_there(shop: Shop) -> None:
    for weights in ({"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 1}):
        await shop.serve(sticky=True, **weights)
        for client in ("d", "c"):
            assert len(shop.count(client, f"{SHOP}:80", 30)) == 1
    await shop.serve(sticky=True, a=1, b=1, c=1)
    (first,) = shop.count("d", f"{SHOP}:80", 3)
    others = {name: 1 for name in "abc" if name != first.split()[0]}
    away = next(iter(others))
    await shop.serve(sticky=True, **{name: 1 for name in "abc" if name != away})
    assert list(shop.count("d", f"{SHOP}:80", 30)) == [first]


async def test_datagrams_go_to_another_target_once_theirs_gets_none(shop: Shop) -> None:
    await shop.serve(b=1)
    talk = shop.start("d", "talk", f"{SHOP}:53")
    assert talk.stdin is not None and talk.stdout is not None

    def say() -> str:
        assert talk.stdin is not None and talk.stdout is not None
        talk.stdin.write("say\n")
        talk.stdin.flush()
        return talk.stdout.readline().strip()

    assert say() == "b 10.20.0.14"
    await shop.serve(c=1)
    assert say() == "c 10.20.0.14"


async def test_security_groups_are_those_of_client_and_target_not_of_the_service(shop: Shop) -> None:
    port_a, port_d = make_port(shop.segment, "a"), make_port(shop.segment, "d")

    def filter_(port: Port, ingress: tuple[Allowed, ...], egress: tuple[Allowed, ...]) -> Filter:
        gateway = shop.segment.gateway
        return Filter(port.id, port.segment_id, port.address, gateway, ingress, egress, services=(SHOP, EMPTY))

    only_d = (Allowed("tcp", 8080, 8080, ("10.20.0.14/32",)),)
    to_b = (Allowed("tcp", 8080, 8080, (f"{B}/32",)),)
    try:
        await shop.n1.ensure_filters([filter_(port_a, only_d, ANY)])
        await shop.serve(a=1)
        assert shop.count("d", f"{SHOP}:80", 5) == {"a 10.20.0.14": 5}
        assert shop.count("c", f"{SHOP}:80", 2, "0.3") == {"TimeoutError": 2}
        await shop.n1.ensure_filters([filter_(port_a, only_d, ANY), filter_(port_d, (), to_b)])
        assert shop.count("d", f"{SHOP}:80", 2, "0.3") == {"TimeoutError": 2}
        await shop.serve(b=1)
        assert shop.count("d", f"{SHOP}:80", 5) == {"b 10.20.0.14": 5}
    finally:
        await shop.n1.ensure_filters([])


async def test_a_published_port_leads_to_all_targets_on_every_node_from_everywhere(shop: Shop) -> None:
    await shop.serve(a=500, b=500)
    nodes = (NodeShare(shop.n1.address, 500), NodeShare(shop.n2.address, 500))
    forward = Forward(8088, "tcp", shop.segment.id, SHOP, 80, "", nodes, is_service=True)
    for node in shop.lab.nodes:
        await node.ensure_forwards([forward])
    try:
        for node in shop.lab.nodes:
            enter = ["nsenter", f"--net=/run/netns/{shop.lab.outside}"]
            done = shop.lab.shell(" ".join([*enter, *CLIENTS, "ask", f"{node.address}:8088", "60"]))
            found = json.loads(done)
            assert {said.split()[0] for said in found} == {"a", "b"} and sum(found.values()) == 60, (node.number, found)
        for client in "dc":  # a guest, by its own node's published port
            found = shop.count(client, f"{shop.n1.address}:8088", 20)
            assert {said.split()[0] for said in found} == {"a", "b"}, found
        await shop.serve(b=1)
        for node in shop.lab.nodes:
            only = msgspec.structs.replace(forward, nodes=(NodeShare(shop.n2.address, 1000),))
            await node.ensure_forwards([only])
        for node in shop.lab.nodes:
            done = shop.lab.shell(" ".join([*enter, *CLIENTS, "ask", f"{node.address}:8088", "10"]))
            assert {said.split()[0] for said in json.loads(done)} == {"b"}
    finally:
        for node in shop.lab.nodes:
            await node.ensure_forwards([])


async def test_an_unchanged_service_changes_nothing_and_one_that_goes_leaves_nothing(shop: Shop) -> None:
    segment = await shop.serve(a=500, b=500)
    before = shop.n1.dump()
    await shop.n1.ensure_segment(segment)
    assert shop.n1.dump() == before and await shop.n1.heal() == []
    shop.n1.restart()
    await shop.n1.ensure_filters([])
    await shop.n1.ensure_segment(segment)
    assert shop.n1.dump() == before
    shop.n1.shell("nft delete table ip weft_w1_services; nft delete table bridge weft_w1_services")
    assert "services of network blue" in " ".join(await shop.n1.heal())
    assert sum(shop.count("d", f"{SHOP}:80", 20).values()) == 20
    for node in shop.lab.nodes:
        await node.ensure_segment(shop.segment)
    assert SHOP not in shop.n1.dump()
