"""A network over three nodes with a service in it, for tests of services and for what measures them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
from tests.host.network_lab import Guest, Lab, make_port, make_segment

from weft.contracts.driver.network import Allowed, Segment, Service, ServicePort, ServiceTarget

CLIENTS = [sys.executable, "-S", "-E", str(Path(__file__).with_name("service_clients.py"))]
SHOP, EMPTY = "10.20.0.100", "10.20.0.101"
A, B, C = "10.20.0.11", "10.20.0.12", "10.20.0.13"  # on n1, n2, n3
ANY = (Allowed("any", 0, 65535, None),)


class Shop:
    """A network over three nodes with a guest on each that answers with its name, and one more on the first, their client."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.n1, self.n2, self.n3 = lab.nodes
        self.segment = make_segment(1, "blue", {"a": self.n1, "b": self.n2, "c": self.n3, "d": self.n1})
        self.guests: dict[str, Guest] = {}
        self.servers: dict[str, subprocess.Popen[str]] = {}

    async def build(self) -> None:
        for node in self.lab.nodes:
            await node.ensure_filters([])
            await node.ensure_segment(self.segment)
        for name, node in (("a", self.n1), ("b", self.n2), ("c", self.n3), ("d", self.n1)):
            self.guests[name] = guest = node.plug_guest(name, make_port(self.segment, name))
            guest.lease()
        for name in "abc":
            self.servers[name] = self.start(name, "serve", name)

    def start(self, name: str, *words: str) -> subprocess.Popen[str]:
        enter = ["nsenter", f"--net=/run/netns/{self.guests[name].namespace}"]
        return self.lab.start([*enter, *CLIENTS, *words], stdin=subprocess.PIPE)

    async def serve(self, *, sticky: bool = False, **weights: int) -> Segment:
        """Split the shop's connections so on all nodes."""
        targets = tuple(
            ServiceTarget(address, weights.get(name, 0)) for name, address in (("a", A), ("b", B), ("c", C))
        )
        ports = (ServicePort("tcp", 80, 8080), ServicePort("udp", 53, 5353))
        names = ("shop", "shop.blue", "shop.lab")
        services = (Service(SHOP, names, ports, targets, sticky), Service(EMPTY, ("empty",), ports, ()))
        segment = msgspec.structs.replace(self.segment, services=services)
        for node in self.lab.nodes:
            await node.ensure_segment(segment)
        return segment

    def count(self, asks: str, place: str, times: int, *more: str) -> dict[str, int]:
        """How often each guest answered, or with which error."""
        done = self.guests[asks].run(*CLIENTS, "ask", place, str(times), *more, timeout_seconds=60)
        found: dict[str, int] = json.loads(done)
        return found
