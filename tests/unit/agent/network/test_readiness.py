"""Whether a node's workloads are ready for services: what counts, what is remembered, what a stranger's answer may be."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.agent_lab import make_allocation, make_nic

from weft.agent.network.readiness import MOST_OF_PROJECT, Flapping, Judged, ReadinessChecks, judge, read_status
from weft.agent.state.allocation import Checkpoint
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.checkpoint import CheckpointStore
from weft.agent.state.service import ServedAddress, ServiceAddresses, read_service
from weft.agent.state.table import AllocationTable
from weft.agent.workload.answer import CheckResult
from weft.contracts.clock import SystemClock
from weft.contracts.driver.network import Service, ServicePort, ServiceTarget
from weft.contracts.driver.runtime import GuestFacts
from weft.kinds.endpoint import ENDPOINT, EndpointSpec, Served, ServedPort, ServedTarget
from weft.kinds.fields.service.readiness import MOST_CHECKED, Readiness, ReadinessReport
from weft.objects.identity import Ref

WELL, ILL = CheckResult(True), CheckResult(False, "connection refused")


def test_it_takes_fall_failures_or_rise_successes_in_a_row() -> None:
    asks = Readiness(fall=3, rise=2)

    def after(known: Judged, *results: CheckResult) -> list[bool | None]:
        seen = []
        for result in results:
            known = judge(asks, known, result)
            seen.append(known.ready)
        return seen

    assert after(Judged(), ILL) == [False], "one of which nothing is known isn't ready"
    assert after(Judged(), WELL, ILL, WELL, WELL) == [None, False, False, True]
    assert after(Judged(True), ILL, ILL, WELL, ILL, ILL, ILL) == [True, True, True, True, True, False]
    assert after(Judged(False), WELL, ILL, WELL, WELL) == [False, False, False, True]
    assert judge(Readiness(fall=1), Judged(True), CheckResult(False, "x" * 9999)).message == "x" * 198 + " …"


def test_one_that_stops_to_answer_is_silent_until_it_says_anything() -> None:
    asks, silent = Readiness(fall=2), CheckResult(False, "no answer", silent=True)

    def after(known: Judged, *results: CheckResult) -> tuple[bool | None, bool, str]:
        for result in results:
            known = judge(asks, known, result)
        return known.ready, known.silent, known.message

    assert after(Judged(True), silent, silent, silent) == (False, True, "no answer")
    assert after(Judged(True), ILL, silent) == (False, True, "no answer")
    assert after(Judged(True), silent, silent, ILL) == (False, False, "connection refused"), "it says no itself"
    assert after(Judged(True), silent, silent, ILL, silent) == (False, False, "connection refused")
    assert after(Judged(True), ILL, ILL, silent) == (False, False, "connection refused")
    assert after(Judged(), silent, silent) == (False, False, "no answer"), "it was never ready"
    assert after(Judged(True), silent, silent, WELL) == (True, False, "")


def test_one_that_flaps_is_ready_only_after_a_quiet_time() -> None:
    asks, flapping, known, changes = Readiness(fall=1, rise=1), Flapping(), Judged(True), list[tuple[float, bool]]()
    for half in range(400):  # ill every other time for 100 s, then well
        now, found = half / 2, ILL if half < 200 and half % 2 else WELL
        after = flapping.settle(known, judge(asks, known, found), found, now)
        if after.ready is not known.ready:
            changes.append((now, after.ready is True))
        known = after
    assert changes[:5] == [(0.5, False), (1.0, True), (1.5, False), (2.0, True), (2.5, False)]
    assert len(changes) <= 14 and known.ready is True
    calm = Flapping()
    assert calm.settle(Judged(False), Judged(True), WELL, 1.0).ready is True


@pytest.mark.parametrize(
    ("line", "well"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.0 302 Found\r\n", True),
        (b"HTTP/1.1 503 Busy\r\n", False),
        (b"HTTP/1.1 404\r\n", False),
        (b"HTTP/2 200\r\n", False),
        (b"SSH-2.0-OpenSSH\r\n", False),
        (b"", False),
        (b"\xff" * 256, False),
    ],
)
def test_only_a_status_from_200_to_399_is_well(line: bytes, well: bool) -> None:
    assert read_status(line).well is well


def test_a_service_is_read_from_its_endpoint_with_its_names() -> None:
    def spec(network: str) -> EndpointSpec:
        ports = [ServedPort(port=80, target=8080, protocol="tcp")]
        served = Served(ports=ports, targets=[ServedTarget(address="10.0.0.5", weight=1000)], sticky=True)
        owner = Ref("service", "shop", "s1", "lab")
        return EndpointSpec(
            workload=owner, network=network, network_uid="n", index=0, mac="m", address="10.0.0.9", served=served
        )

    read = read_service(ENDPOINT.make("n.10.0.0.9", spec("blue"), 1.0))
    targets = (ServiceTarget("10.0.0.5", 1000),)
    names = ("shop", "shop.blue", "shop.lab")
    assert read is not None and read.uid == "s1"
    assert read.service == Service("10.0.0.9", names, (ServicePort("tcp", 80, 8080),), targets, sticky=True)
    foreign = read_service(ENDPOINT.make("n.10.0.0.9", spec("physics/blue"), 1.0))
    assert foreign is not None and foreign.service.names == ("shop.lab.blue",)
    nic = msgspec.structs.replace(spec("blue"), served=None)
    assert read_service(ENDPOINT.make("n.10.0.0.9", nic, 1.0)) is None


def test_addresses_are_kept_faded_and_told_of() -> None:
    told: list[int] = []
    one = ServedAddress("s1", Service("10.0.0.9", (), (), ()), Readiness())
    known = ServiceAddresses({"n": [one]}, [lambda: told.append(1)])
    known.put("n", "10.0.0.9", one)
    known.put("n", "10.0.0.8", None)
    assert told == [] and known.list_of({"n", "m"}) == {"n": [one]}
    known.fade("n", {"10.0.0.8"})
    assert told == [1] and known.list_of({"n"}) == {}


class Wire:
    """A network driver whose guests answer what they are told to."""

    def __init__(self) -> None:
        self.answer: bytes | None = b"HTTP/1.1 200 OK\r\n\r\n"
        self.dialled: list[tuple[str, int]] = []
        self.silent: Callable[[], None] | None = None

    async def dial(self, segment_id: str, address: str, port: int, seconds: float = 5.0) -> socket.socket:
        self.dialled.append((address, port))
        if self.silent is not None:
            self.silent()
            raise TimeoutError
        if self.answer is None:
            raise ConnectionRefusedError(111, "Connection refused")
        here, there = socket.socketpair()
        there.sendall(self.answer)
        there.shutdown(socket.SHUT_WR)
        there.detach()
        return here


class Node:
    def __init__(self, folder: Path, readiness: Readiness) -> None:
        self.wire, self.table = Wire(), AllocationTable()
        nic = make_nic()
        allocation = make_allocation("web", nics=[nic])
        self.state = AllocationState(allocation, Checkpoint(made=True), CheckpointStore(str(folder)))
        self.table.states[self.state.local.uid] = self.state
        service = Service("10.0.0.99", ("shop",), (ServicePort("tcp", 80, 8080),), (ServiceTarget(nic.address, 0),))
        self.services = {nic.network_uid: {"10.0.0.99": ServedAddress("s1", service, readiness)}}
        self.checks = ReadinessChecks(self.wire, self.services, self.table, Any, SystemClock())  # type: ignore[arg-type]

    def run(self, started_at: float, **more: Any) -> None:
        local = self.state.local
        self.state.guest = GuestFacts(local.id, local.uid, "web", 1, "running", started_at=started_at, **more)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not true():
                self.checks.follow()
                await asyncio.sleep(0.01)

    @property
    def said(self) -> ReadinessReport | None:
        return self.state.readiness.get("s1")


async def with_node(folder: Path, readiness: Readiness, use: Callable[[Node], Awaitable[None]]) -> None:
    node = Node(folder, readiness)
    try:
        await use(node)
    finally:
        node.services.clear()
        node.checks.follow()


async def test_what_runs_is_asked_until_it_ends_and_again_when_it_is_started_afresh(tmp_path: Path) -> None:
    async def use(node: Node) -> None:
        node.checks.follow()
        assert node.wire.dialled == [], "it doesn't run"
        node.wire.answer = None
        node.run(1.0)
        await node.until(lambda: node.said == ReadinessReport(ready=False, message="port 8080: connection refused"))
        node.wire.answer = b""
        await node.until(lambda: node.said == ReadinessReport(ready=True))
        assert set(node.wire.dialled) == {(node.state.local.spec.nics[0].address, 8080)}
        node.run(2.0)  # it was started afresh
        node.wire.answer = None
        node.checks.follow()
        assert node.said is not None and not node.said.ready
        node.state.guest = None
        node.checks.follow()
        assert node.said is None

    await with_node(tmp_path, Readiness(type="tcp", port=8080, interval=0.5, fall=1), use)


async def test_ports_that_an_allocation_names_are_asked_until_it_names_them_no_more(tmp_path: Path) -> None:
    async def use(node: Node) -> None:
        node.services.clear()
        node.wire.answer = None
        asked = node.state.local.spec.asked_ports
        asked += [22, 443]
        node.run(1.0)
        await node.until(lambda: len(node.state.readiness) == 2)
        assert node.state.readiness["tcp/22"] == ReadinessReport(ready=False, message="port 22: connection refused")
        node.wire.answer = b""
        await node.until(lambda: all(one.ready for one in node.state.readiness.values()))
        asked.clear()
        node.checks.follow()
        assert node.state.readiness == {}

    await with_node(tmp_path, Readiness(), use)


async def test_http_is_judged_by_its_status_and_silence_by_the_clock(tmp_path: Path) -> None:
    async def use(node: Node) -> None:
        node.run(1.0)
        await node.until(lambda: node.said == ReadinessReport(ready=True))
        node.wire.answer = b"HTTP/1.1 500 No\r\n\r\n"
        await node.until(lambda: node.said == ReadinessReport(ready=False, message="it answered with HTTP status 500"))

    await with_node(tmp_path, Readiness(type="http", port=8080, path="/healthz", interval=0.5, fall=1), use)


async def test_one_that_was_ready_and_says_nothing_is_reported_as_silent(tmp_path: Path) -> None:
    async def use(node: Node) -> None:
        node.run(1.0)
        await node.until(lambda: node.said == ReadinessReport(ready=True))
        node.wire.silent = lambda: None
        said = "port 8080 did not answer within 2 s"
        await node.until(lambda: node.said == ReadinessReport(ready=False, message=said, silent=True))
        node.wire.silent, node.wire.answer = None, None
        no = ReadinessReport(ready=False, message="port 8080: connection refused")
        await node.until(lambda: node.said == no)

    await with_node(tmp_path, Readiness(type="tcp", port=8080, interval=0.5, fall=1), use)


async def test_what_the_agent_was_too_busy_to_hear_says_nothing_of_the_workload(tmp_path: Path) -> None:
    class Late(SystemClock):
        ahead = 0.0

        def elapsed(self) -> float:
            return super().elapsed() + self.ahead

    async def use(node: Node) -> None:
        clock = Late()
        node.checks._clock = clock  # pyright: ignore[reportPrivateUsage]

        def delay() -> None:
            clock.ahead += 60.0

        node.run(1.0)
        await node.until(lambda: node.said == ReadinessReport(ready=True))
        node.wire.silent = delay
        await node.until(lambda: clock.ahead > 180.0)
        assert node.said == ReadinessReport(ready=True)

    await with_node(tmp_path, Readiness(type="tcp", port=8080, interval=0.5, fall=1), use)


async def test_what_an_earlier_agent_reported_of_the_same_run_stands(tmp_path: Path) -> None:
    async def use(node: Node) -> None:
        reported = msgspec.structs.replace(
            node.state.local.report, started_at=1.0, readiness={"s1": ReadinessReport(ready=True)}
        )
        node.state.local = msgspec.structs.replace(node.state.local, report=reported)
        node.wire.answer = None
        node.run(1.0)
        node.checks.follow()
        assert node.said == ReadinessReport(ready=True)
        await node.until(lambda: node.said is not None and not node.said.ready)

    await with_node(tmp_path, Readiness(type="tcp", port=8080, interval=0.5, fall=2), use)


async def test_a_project_whose_workloads_hang_takes_no_turn_of_others(tmp_path: Path) -> None:
    class Hanging(Wire):
        async def dial(self, segment_id: str, address: str, port: int, seconds: float = 5.0) -> socket.socket:
            self.dialled.append((address, port))
            return await asyncio.get_running_loop().create_future()

    async def use(node: Node) -> None:
        node.checks._driver = wire = Hanging()  # pyright: ignore[reportPrivateUsage]
        nic = node.state.local.spec.nics[0]
        (one,) = node.services[nic.network_uid].values()
        node.services[nic.network_uid] = {
            f"10.0.1.{number}": msgspec.structs.replace(one, uid=f"s{number:02}") for number in range(20)
        }
        node.run(1.0)
        node.checks.follow()
        await asyncio.sleep(0.05)
        assert len(wire.dialled) == MOST_OF_PROJECT
        kept = set(node.checks._checks)  # pyright: ignore[reportPrivateUsage]
        node.services[nic.network_uid]["10.0.2.1"] = msgspec.structs.replace(one, uid="r0")
        node.checks.follow()
        assert set(node.checks._checks) == kept and len(kept) == MOST_CHECKED, "what is asked stays so"  # pyright: ignore

    await with_node(tmp_path, Readiness(type="tcp", port=8080, timeout=10.0), use)
