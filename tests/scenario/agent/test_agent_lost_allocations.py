"""A node that returns, and finds that an allocation of its own is lost: nothing ends or starts there without evidence."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.scenario.agent_lab import Lab, change, make_allocation

from weft.objects.identity import short_id


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture(autouse=True)
def beat_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.agent.agent.HEARTBEAT_SECONDS", 0.1)


def reports_orphan(lab: Lab, uid: str) -> bool:
    report = lab.server.node_report
    return report is not None and any(uid in text for text in report.orphans)


async def test_a_lost_guest_is_an_orphan_that_goes_on_until_it_is_superseded_and_is_then_released(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
    lost = change(web, role="lost")
    lab.server.put(lost)
    async with lab.agent():
        await lab.until(lambda: reports_orphan(lab, web.uid), "an orphan")
        copy = lab.server.node_report.orphan_allocations[0]  # type: ignore[union-attr]
        assert '"standing":"here"' in copy and '"runs":true' in copy
        await lab.settle()
        guest = lab.guest(web)
        assert guest is not None and guest.state == "running"
    async with lab.agent():  # killed and started again
        lab.server.superseded = [web.uid]
        await lab.until_state(lost, "released")
        assert lab.guest(web) is None or lab.guest(web).state == "absent"  # type: ignore[union-attr]
        assert web.uid in lab.shelf.volumes and short_id(web.uid) not in lab.shelf.volumes, "its disk is a volume"
        await lab.until(lambda: not reports_orphan(lab, web.uid), "no orphan")
        lab.server.put(lost)  # as its own report comes back
        await lab.settle()
        assert lab.server.reports[lost.name].state == "released"
        lab.server.delete(lost)
        await lab.until(lambda: not lab.copies(), "no checkpoint")


async def test_a_lost_guest_that_has_ended_is_not_started(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
    lab.server.put(change(web, role="lost"))
    lab.make_drivers()
    lab.runtime.kill(short_id(web.uid))
    for _ in range(2):
        async with lab.agent():
            await lab.until(lambda: reports_orphan(lab, web.uid), "an orphan")
            await lab.settle()
            guest = lab.guest(web)
            assert guest is not None and guest.state == "failed"
            assert '"runs":false' in lab.server.node_report.orphan_allocations[0]  # type: ignore[union-attr]


async def test_a_lost_guest_that_comes_back_to_its_node_goes_on_there(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        lab.server.put(change(web, role="lost"))
        await lab.until(lambda: reports_orphan(lab, web.uid), "an orphan")
        lab.runtime.kill(short_id(web.uid))
        await lab.settle()
        lab.server.put(web)  # adopted
        await lab.until(lambda: not reports_orphan(lab, web.uid), "no orphan")
        await lab.until(lambda: (found := lab.guest(web)) is not None and found.state == "running", "it runs")


async def test_a_lost_allocation_of_which_nothing_is_here_is_released(lab: Lab) -> None:
    lost = make_allocation(role="lost", incarnation=3)
    async with lab.agent():
        lab.server.put(lost)
        report = await lab.until_state(lost, "released")
        assert report.incarnation == 3 and not reports_orphan(lab, lost.uid)
    async with lab.agent():
        await lab.until_state(lost, "released")
