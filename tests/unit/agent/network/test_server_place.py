"""Where an agent finds its server, and what a network opens there."""

from __future__ import annotations

import socket

import pytest

from weft.agent.network.server_place import join, locate
from weft.contracts.driver.network import Allowed
from weft.contracts.network.rules import open_hosts
from weft.protocol.report import ServerPlace

NOWHERE = ServerPlace()


def test_names_are_resolved_to_every_address_that_others_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"api.example": ["192.0.2.2", "192.0.2.1", "127.0.1.1"], "192.0.2.9": ["192.0.2.9"]}

    def resolve(host: str, *_: object) -> list[tuple[object, ...]]:
        if host not in known:
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    found = locate(["api.example:8443", "192.0.2.9:8444", "[fd00::1]:8443"], NOWHERE)
    assert found == ServerPlace(["192.0.2.1/32", "192.0.2.2/32", "192.0.2.9/32"], [8443, 8444])
    known["api.example"] = ["192.0.2.7"]
    assert locate(["api.example"], found) == ServerPlace(["192.0.2.7/32"], [443])
    del known["api.example"]  # a name server that is away for a moment opens nothing
    assert locate(["api.example:8443", "192.0.2.9:1"], found).ranges == found.ranges


def fold_open(written: list[str], server: ServerPlace) -> tuple[Allowed, ...]:
    return open_hosts(written, server.ranges, server.ports)


def test_what_a_network_opens_is_at_all_of_the_server_s_addresses_and_ports() -> None:
    server = join(ServerPlace(["192.0.2.1/32"], [8443, 8444], [8445]), ServerPlace(["192.0.2.2/32"], [443]))
    place = ("192.0.2.1/32", "192.0.2.2/32")
    assert fold_open(["api"], server) == tuple(Allowed("tcp", port, port, place) for port in (443, 8443, 8444))
    assert fold_open(["functions", "functions"], server) == (Allowed("tcp", 8445, 8445, place),)
    assert fold_open(["tcp:80-90 to 10.0.0.0/8", "icmp", "of a newer server"], server) == (
        Allowed("tcp", 80, 90, ("10.0.0.0/8",)),
        Allowed("icmp", 0, 65535, None),
    )
    assert fold_open(["functions"], NOWHERE) == ()
    assert fold_open(["api"], ServerPlace(api=[8443])) == (Allowed("tcp", 8443, 8443, ()),)  # nobody, not everybody
