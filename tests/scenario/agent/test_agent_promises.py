"""A lease begins only on a node that the server hears: what the server gave to another node meanwhile begins once."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import msgspec
import pytest
from tests.scenario.agent_lab import Lab, make_allocation

from weft.agent.agent import Agent
from weft.drivers.runtime.fake.driver import FakeDriver
from weft.kinds.fields.lease import AllocatedLease
from weft.objects.envelope import Envelope


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr("weft.agent.server.contact.CONTACT_SECONDS", 1.0)
    monkeypatch.setattr("weft.agent.agent.HEARTBEAT_SECONDS", 0.1)
    return Lab(tmp_path)


def promise(start: float, ahead: float = 60.0) -> Envelope:
    lease = AllocatedLease(mode="reservation", start=start, end=start + 1000.0, prepare_at=start - ahead)
    return make_allocation("class", lease=lease)


async def promise_and_go(lab: Lab, agent: Agent, seconds: float) -> tuple[Envelope, float]:
    """A lease that begins in so many seconds, on a node whose server has gone since; and when it has begun at the latest."""
    await lab.until(lambda: agent._reporter.contact._known)
    other = make_allocation(
        "other", nics=[]
    )  # what keeps the lease from its begin mustn't be an image that can't be fetched
    lab.server.put(other)
    await lab.until_state(other, "running")
    allocation = promise(time.time() + seconds, ahead=0.2)
    lab.server.put(allocation)
    await lab.until(lambda: lab.server.reports.get(allocation.name))
    lab.server.down = True
    return allocation, time.time() + seconds


async def test_a_lease_that_was_given_to_another_node_meanwhile_never_begins_here(lab: Lab) -> None:
    async with lab.agent() as agent:
        allocation, start = await promise_and_go(lab, agent, 2.0)
        await lab.until(lambda: time.time() > start + 0.3)
        assert lab.guest(allocation) is None, "nobody knows whether it runs elsewhere by now"
        lab.server.put(msgspec.structs.replace(allocation, deleting_since=1.0))
        lab.server.down = False
        await lab.until(lambda: lab.server.reports[allocation.name].state == "released")
        assert not any(
            report.state in ("starting", "running") for name, report in lab.server.history if name == allocation.name
        )


async def test_it_begins_late_if_it_is_still_this_node_s(lab: Lab) -> None:
    async with lab.agent() as agent:
        allocation, start = await promise_and_go(lab, agent, 1.5)
        await lab.until(lambda: time.time() > start + 0.5)
        assert lab.guest(allocation) is None
        lab.server.down = False
        await lab.until(lambda: lab.server.reports[allocation.name].state == "running")
        lab.server.down = True  # it has begun: what becomes of the server doesn't matter any more
    async with lab.agent():
        end = time.time() + 1.5
        await lab.until(lambda: time.time() > end)
        assert lab.guest(allocation) is not None
        assert lab.server.reports[allocation.name].state == "running"


async def test_an_image_that_comes_slowly_is_fetched_before_the_preparation(lab: Lab) -> None:
    lab.server.fetch_gate = threading.Event()
    async with lab.agent():
        start = time.time() + 4.0
        allocation = promise(start, ahead=1.0)
        lab.server.put(allocation)
        await lab.until(lambda: lab.server.fetches)
        assert time.time() < start - 1.0
        report = await lab.until_state(allocation, "pending")
        assert (report.state, report.reason) == ("pending", "leaseWaits")
        lab.server.fetch_gate.set()
        report = await lab.until_state(allocation, "running")
        assert time.time() >= start and lab.server.fetches == 1
        assert {step.name: step.state for step in report.steps} == dict.fromkeys(
            ("image", "disk", "network", "boot"), "done"
        )


async def test_an_image_that_can_t_be_fetched_ahead_is_no_failure_yet(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.agent.allocation.plan.FIRST_PAUSE_SECONDS", 600.0)  # the preparation doesn't wait for it
    blobs, lab.server.blobs = lab.server.blobs, {}
    async with lab.agent():
        start = time.time() + 4.0
        allocation = promise(start, ahead=1.5)
        lab.server.put(allocation)
        await lab.until(
            lambda: "no blob" in lab.server.reports[allocation.name].message if lab.server.reports else False
        )
        assert lab.server.reports[allocation.name].state == "pending"
        lab.server.blobs = blobs
        await lab.until_state(allocation, "running")
        assert not any(report.state == "failed" for _, report in lab.server.history)


async def test_a_boot_is_over_when_the_guest_answers_not_when_its_lease_begins(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hold(driver: FakeDriver, id: str, held: bool) -> None: ...

    monkeypatch.setattr(FakeDriver, "hold", hold, raising=False)
    async with lab.agent():
        allocation = promise(time.time() + 60.0, ahead=60.0)
        lab.server.put(allocation)

        def booted() -> bool:
            report = lab.server.reports.get(allocation.name)
            return report is not None and ("boot", "done") in [(step.name, step.state) for step in report.steps]

        await lab.until(booted)
        report = lab.server.reports[allocation.name]
        assert (report.state, report.reason) == ("preparing", "leaseWaits")
