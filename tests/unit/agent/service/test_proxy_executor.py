"""Proxies of a node are run as its services say, and end with the last service; certificates are kept and renewed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.agent.service.test_proxies import make

from weft.agent.service.certificates import RENEW_SECONDS, Certificates
from weft.agent.service.executor import LINGER_SECONDS, REPORT_SECONDS, Proxies
from weft.agent.state.service import ServedAddress
from weft.contracts.clock import SystemClock
from weft.contracts.driver.function import EgressEndpoint
from weft.contracts.proxy import EndpointCount, Proxy
from weft.objects.errors import DriverFailed, Unavailable
from weft.objects.identity import short_id
from weft.protocol.heartbeat import ANSWERS
from weft.protocol.report import CertificateInput, OpenedCertificate


class Clock(SystemClock):
    def __init__(self) -> None:
        self.at = 1_000.0

    def now(self) -> float:
        return self.at

    def elapsed(self) -> float:
        return self.at


class Node:
    """What a node's drivers and server would be."""

    def __init__(self, tmp_path: Path) -> None:
        self.clock, self.closed = Clock(), threading.Event()
        self.services: dict[str, dict[str, ServedAddress]] = {"blue": {"1": make("shop")}}
        self.runs: dict[str, Proxy] = {}
        self.trouble, self.away, self.asked, self.left = "", False, 0, list[str]()
        self.ends = self.clock.at + 2 * RENEW_SECONDS
        self.certificates = Certificates(str(tmp_path), "n1", self, self.clock)  # type: ignore[arg-type]
        self.gateways = self
        any_: Any = self
        self.proxies = Proxies(any_, any_, self.services, any_, any_, self.certificates, self.clock, self.note)
        self.failures, self.reports = 1, 0

    def note(self) -> None:
        self.reports += 1

    def __iter__(self) -> Iterator[Any]:  # the table of allocations: one guest in network blue
        nic = type("Nic", (), {"network_uid": "blue"})
        spec = type("Spec", (), {"nics": [nic]})
        return iter([type("State", (), {"local": type("Local", (), {"spec": spec})})])

    def name_router(self, segment_id: str) -> str:
        return f"router-{segment_id}"

    def of_functions(self) -> set[str]:
        return set()

    async def drop_proxy(self, network_uid: str) -> None:
        self.left.append(network_uid)

    async def remove(self, id: str) -> None:
        del self.runs[id]

    def find_all(self) -> list[str]:
        return list(self.runs)

    async def read(self, id: str) -> list[EndpointCount]:
        return [EndpointCount("uid-shop", "10.0.0.2", {"2xx": 7, "5xx": self.failures}, 0.5)]

    def read_certificate(self, node: str, asked: CertificateInput) -> OpenedCertificate:
        if self.away:
            raise Unavailable("no server answers")
        self.asked += 1
        return OpenedCertificate(f"KEY {self.asked}", self.ends)

    async def ensure(self, *given: Any, proxy: bool = False) -> Any:
        if proxy:  # of egress endpoints
            return EgressEndpoint("/run/netns/e", "10.0.0.1", "weft", 1450)
        if self.trouble:
            raise DriverFailed(self.trouble)
        self.runs[given[0].id] = given[0]
        return None

    async def follow(self) -> None:
        await self.proxies._follow(self, self)  # type: ignore[arg-type]


async def test_one_is_run_and_goes_with_the_last_service_and_its_address_with_it(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.follow()
    (proxy,) = node.runs.values()
    assert (proxy.namespace, proxy.router) == ("/run/netns/e", f"router-{short_id('blue')}")
    node.services["blue"].clear()
    await node.follow()
    assert node.runs and not node.left  # it may be back soon
    node.clock.at += LINGER_SECONDS
    await node.follow()
    assert not node.runs and node.left == ["blue"]


async def test_what_does_not_work_is_reported_until_it_does(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.trouble = "proxy: haproxy is not installed"
    await node.follow()
    assert node.proxies.troubles == ["HTTP services of project default: proxy: haproxy is not installed"]
    node.trouble = ""
    await node.follow()
    assert node.proxies.troubles == []
    node.trouble = "again"
    await node.follow()
    node.services["blue"].clear()
    node.clock.at += LINGER_SECONDS
    await node.follow()
    node.clock.at += LINGER_SECONDS
    await node.follow()
    await node.follow()
    assert node.proxies.troubles == []


async def test_counts_are_for_the_heartbeat(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.follow()
    await node.proxies._count(node)  # type: ignore[arg-type]
    counts = node.proxies.count()["uid-shop"]["10.0.0.2"]
    assert dict(zip(ANSWERS, counts.answers, strict=True))["2xx"] == 7 and counts.seconds == 0.5
    node.clock.at += 60.0
    assert node.proxies.count()["uid-shop"]["10.0.0.2"].seconds == -1.0


def tls(which: str = "generated", name: str = "shop") -> ServedAddress:
    return msgspec.structs.replace(make(name), certificate=which)


async def test_failures_are_reported_soon_and_not_all_the_time(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.follow()
    found = []
    for failures in (1, 1, 2, 3, 3):
        node.clock.at += REPORT_SECONDS / 2
        node.failures = failures
        await node.proxies._count(node)  # type: ignore[arg-type]
        found.append(node.reports)
    assert found == [1, 1, 2, 2, 2]


async def test_a_certificate_is_fetched_once_kept_for_root_alone_renewed_and_forgotten(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.services["blue"]["1"] = tls()
    await node.follow()
    await node.follow()
    (proxy,) = node.runs.values()
    assert node.asked == 1 and proxy.listeners[0].certificate == "KEY 1"
    (kept,) = (tmp_path / "service-certificates").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert await Certificates(str(tmp_path), "n1", node, node.clock).open(tls()) == "KEY 1"  # type: ignore[arg-type]
    assert node.asked == 1  # an agent that starts has it without a server
    node.clock.at += 1.5 * RENEW_SECONDS
    node.away = True
    assert await node.certificates.open(tls()) == "KEY 1"
    node.away, node.clock.at, node.ends = False, node.clock.at + 60.0, node.clock.at + 9 * RENEW_SECONDS
    assert await node.certificates.open(tls()) == "KEY 2"
    assert await node.certificates.open(tls("secret-2")) == "KEY 3"
    node.services["blue"].clear()
    await node.follow()
    assert not kept.exists()


async def test_a_service_waits_for_its_certificate_and_the_others_do_not(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.away = True
    node.services["blue"]["2"] = tls(name="safe")
    await node.follow()
    (proxy,) = node.runs.values()
    assert {one.service for one in proxy.listeners} == {"uid-shop"}
    assert "service default/safe: it has no certificate" in node.proxies.troubles[0]
    assert "KEY" not in str(node.proxies.troubles)
    with pytest.raises(Unavailable):
        await node.certificates.open(tls())
