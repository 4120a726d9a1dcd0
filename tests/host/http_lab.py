"""A network over two nodes with an HTTP service in it, whose proxy runs on the first, for tests of proxies and for what measures
them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
from tests.host.network_lab import Guest, Lab, make_port, make_segment

from weft.contracts.driver.network import (
    Endpoint,
    Forward,
    Inside,
    Port,
    Segment,
    Service,
    ServicePort,
    ServiceTarget,
)
from weft.contracts.proxy import Listener, Proxy

CLIENTS = [sys.executable, "-E", str(Path(__file__).with_name("http_clients.py"))]
SHOP, EGRESS = "10.20.0.100", "10.20.0.200"
ADDRESSES = {"a": "10.20.0.11", "b": "10.20.0.12", "c": "10.20.0.13"}  # a on n1, b and c on n2
CLIENT = "10.20.0.14"
ID = "abcdef0123"


class WebShop:
    """Guests a, b and c answer HTTP with their names, d on the first node is their client."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.n1, self.n2 = lab.nodes
        made = make_segment(1, "blue", {"a": self.n1, "b": self.n2, "c": self.n2, "d": self.n1})
        own = Endpoint("02:aa:00:00:00:c8", EGRESS, "", self.n1.address)
        self.segment = msgspec.structs.replace(made, endpoints=[*made.endpoints, own])
        self.guests: dict[str, Guest] = {}
        self.namespace = ""

    async def build(self) -> None:
        for node in self.lab.nodes:
            await node.ensure_filters([])
            await node.ensure_segment(self.served({}))
        for name, node in (("a", self.n1), ("b", self.n2), ("c", self.n2), ("d", self.n1)):
            self.guests[name] = guest = node.plug_guest(name, make_port(self.segment, name))
            guest.lease()
        for name in "abc":
            self.start(name, "serve", name, "8080")
        inside = Inside("egress0001", shared=True)
        port = Port("egressport", self.segment.id, "02:aa:00:00:00:c8", EGRESS, "n1", inside=inside)
        self.namespace = await self.n1.plug(port)

    def served(self, weights: dict[str, int]) -> Segment:
        ports = (ServicePort("tcp", 80, 8080),)
        service = Service(SHOP, ("shop",), ports, self.targets(weights), proxied=True)
        return msgspec.structs.replace(self.segment, services=(service,))

    def targets(self, weights: dict[str, int]) -> tuple[ServiceTarget, ...]:
        return tuple(ServiceTarget(ADDRESSES[name], weight) for name, weight in sorted(weights.items()))

    def proxy(
        self, *, sticky: bool = False, certificate: str = "", ports: tuple[int, ...] = (80,), **weights: int
    ) -> Proxy:
        listeners = tuple(
            Listener("shopuid", "default/shop", SHOP, port, 8080, self.targets(weights), sticky, certificate)
            for port in ports
        )
        return Proxy(ID, self.namespace, self.n1.name_router(self.segment.id), listeners)

    def serve(self, **options: Any) -> None:
        """Run the shop's proxy so."""
        self.n1.ensure_proxy(self.proxy(**options))

    def enter(self, name: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.guests[name].namespace}"]

    def start(self, name: str, *words: str) -> subprocess.Popen[str]:
        return self.lab.start([*self.enter(name), *CLIENTS, *words], stdin=subprocess.PIPE)

    def ask(self, times: int, *more: str, place: str = f"{SHOP}:80", of: str = "d") -> dict[str, Any]:
        done = self.guests[of].run(*CLIENTS, "ask", place, str(times), *more, timeout_seconds=120)
        found: dict[str, Any] = json.loads(done)
        return found

    def publish(self) -> Forward:
        return Forward(8088, "tcp", self.segment.id, SHOP, 80, "", is_service=True)


def count_names(found: dict[str, Any]) -> dict[str, int]:
    """How often which guest answered."""
    counts: dict[str, int] = {}
    for said, number in found["answers"].items():
        counts[said.split()[0]] = counts.get(said.split()[0], 0) + number
    return counts


def finish(load: subprocess.Popen[str]) -> dict[str, Any]:
    assert load.stdin is not None and load.stdout is not None
    load.stdin.write("enough\n")
    load.stdin.flush()
    found: dict[str, Any] = json.loads(load.stdout.readline())
    return found
