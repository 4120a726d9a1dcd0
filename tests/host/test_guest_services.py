"""Syslog and spans from guests in network namespaces, taken at their gateway's address inside the network's router."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from weft.agent.logs.inbox import Inbox
from weft.agent.network.guest_services import GuestServices
from weft.contracts.clock import SystemClock
from weft.contracts.driver.network import Segment
from weft.contracts.trace.span import Span, Tracer
from weft.drivers.network.bridge.dial import GatewaySockets

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces"),
]

GATEWAY = "10.77.0.1"
SEGMENT = Segment("seg", "net", 1, "10.77.0.0/24", GATEWAY, 1450, "weft", True, [])
SEND = """
import socket, sys
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.sendto(b"<11>Feb  5 17:32:18 vm-that-it-claims app: by udp from " + sys.argv[2].encode(), (sys.argv[1], 514))
tcp = socket.create_connection((sys.argv[1], 514), 5)
tcp.sendall(b"<11>app: by tcp from " + sys.argv[2].encode() + b"\\n")
tcp.close()
"""
POST = """
import http.client, sys
link = http.client.HTTPConnection(sys.argv[1], 4318, timeout=5)
link.request("POST", "/v1/traces", sys.argv[2], {"Content-Type": "application/json"})
print(link.getresponse().status)
"""


class Router:
    """The driver of a network whose router is the namespace ``name``, with a namespace for each guest."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.made = [name]
        self.gateways = GatewaySockets(self)  # type: ignore[arg-type]
        shell(f"ip netns add {name}; ip -n {name} link set lo up; ip -n {name} link add lan0 type bridge")
        shell(f"ip -n {name} addr add {GATEWAY}/24 dev lan0; ip -n {name} link set lan0 up")

    def add_guest(self, name: str, address: str) -> str:
        guest = f"{self.name}{name}"
        self.made.append(guest)
        shell(f"ip netns add {guest}; ip -n {self.name} link add p{name} type veth peer name eth0 netns {guest}")
        shell(f"ip -n {self.name} link set p{name} master lan0 up")
        shell(f"ip -n {guest} addr add {address}/24 dev eth0; ip -n {guest} link set eth0 up")
        return guest

    def router(self, segment_id: str) -> str:
        return self.name


def shell(script: str) -> None:
    subprocess.run(["sh", "-ec", script], check=True, capture_output=True, timeout=20)


@pytest.fixture
def router() -> Iterator[Router]:
    made = Router(f"wgs{os.getpid() % 100_000}")
    try:
        yield made
    finally:
        for name in made.made:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=20)


def make_guest(name: str, project: str, address: str) -> Any:
    workload = SimpleNamespace(kind="vm", project=project, name=name, uid=f"uid-{name}")
    nics = [SimpleNamespace(network_uid="net-uid", address=address)]
    spec = SimpleNamespace(nics=nics, role="active", workload=workload)
    return SimpleNamespace(local=SimpleNamespace(spec=spec, what=f"vm/{project}/{name}"))


async def run(guest: str, script: str, *words: str) -> str:
    argv = ["ip", "netns", "exec", guest, sys.executable, "-S", "-E", "-c", script, *words]
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


async def test_lines_and_spans_are_of_the_guest_whose_address_they_come_from(router: Router) -> None:
    a, b = router.add_guest("a", "10.77.0.5"), router.add_guest("b", "10.77.0.6")
    stranger = router.add_guest("c", "10.77.0.7")
    table = [make_guest("a", "lab", "10.77.0.5"), make_guest("b", "shop", "10.77.0.6")]
    clock, spans = SystemClock(), list[Span]()
    inbox = Inbox(clock)
    services = GuestServices(router, table, inbox, Tracer("node/n1", clock, lambda *more: spans.extend(more)), clock)  # type: ignore[arg-type]
    await services.follow({"net-uid": (SEGMENT, frozenset({"syslog", "traces"}))})
    now = time.time_ns()
    span = {"traceId": "ab" * 16, "spanId": "cd" * 8, "name": "x", "startTimeUnixNano": now, "endTimeUnixNano": now + 1}
    document = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})
    try:
        for guest in (a, b, stranger):
            await run(guest, SEND, GATEWAY, guest)
        assert [(await run(guest, POST, GATEWAY, document)).strip() for guest in (a, b, stranger)] == [
            "200",
            "200",
            "403",
        ]
        found: dict[str, list[str]] = {}
        async with asyncio.timeout(30):
            while sum(map(len, found.values())) < 4:
                for one in inbox.take(set()):
                    found.setdefault(one.what, []).extend(one.text.decode().splitlines())
                await asyncio.sleep(0.02)
    finally:
        await services.follow({})
    assert {what: sorted(lines) for what, lines in found.items()} == {
        what: [f"syslog err app: by tcp from {guest}", f"syslog err app: by udp from {guest}"]
        for what, guest in (("vm/lab/a", a), ("vm/shop/b", b))
    }
    assert [one.about for one in spans] == ["vm/lab/a", "vm/shop/b"]
    with pytest.raises(AssertionError, match="Connection refused"):
        await run(a, POST, GATEWAY, document)  # the network has closed it again
