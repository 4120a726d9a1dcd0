"""A guest that is to be held runs on a node only while its cluster is confirmed as primary, by stamps of the node's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from tests.scenario.agent_lab import Lab, change, make_allocation

from weft.contracts.guard import Held
from weft.failover.timing import CLUSTERS
from weft.objects.errors import DriverFailed


class MadeGuard:
    """A guard of values, in a time that the test sets; it outlives the agent, as the real one does."""

    boot_id = "boot"

    def __init__(self, lab: Lab) -> None:
        self._lab, self.now, self.held, self.is_gone = lab, 1000.0, dict[str, Held](), False

    def read_time(self) -> float:
        return self.now

    async def check(self) -> str:
        return ""

    async def renew(self, until: Mapping[str, float]) -> dict[str, Held]:
        self.held |= {name: Held(at) for name, at in until.items()}
        return await self.read()

    async def drop(self, ids: Iterable[str]) -> None:
        for name in ids:
            self.held.pop(name, None)

    async def read(self) -> dict[str, Held]:
        if self.is_gone:
            raise DriverFailed("the guard could not be started")
        return dict(self.held)

    def end(self, guest_id: str) -> None:
        self._lab.runtime.kill(guest_id)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for name, one in self.held.items():
            if one.until <= self.now and not self.is_gone:
                self._lab.runtime.kill(name)
                self.held[name] = Held(one.until, self.now)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr("weft.agent.agent.SHORT_SILENCE_SECONDS", 0.1)
    monkeypatch.setattr("weft.agent.guard.plan.REVIEW_SECONDS", 0.1)
    lab = Lab(tmp_path)
    lab.guard = MadeGuard(lab)
    return lab


def guard_of(lab: Lab) -> MadeGuard:
    assert isinstance(lab.guard, MadeGuard)
    return lab.guard


async def test_it_starts_once_confirmed_ends_with_its_lease_and_comes_back(lab: Lab) -> None:
    web, guard = make_allocation("web", guard="hold", restart="always"), guard_of(lab)
    async with lab.agent():
        lab.server.put(web)
        await lab.until(
            lambda: lab.server.reports.get(web.name) and lab.server.reports[web.name].reason == "notPrimary"
        )
        assert lab.guest(web) is None
        lab.server.confirmed.add("uid-of-web")
        await lab.until_state(web, "running")
        await lab.until(lambda: lab.server.node_report and lab.server.node_report.guards == {"uid-of-web": "held"})
        lab.server.confirmed.clear()
        guard.pass_time(CLUSTERS.lease + 1)
        await lab.until(lambda: lab.server.reports[web.name].reason == "notPrimary")
        await lab.until(lambda: any(event.reason == "EndedByGuard" for event in lab.server.events))
        lab.server.confirmed.add("uid-of-web")
        await lab.until_state(web, "running")


async def test_an_agent_that_was_killed_reads_what_its_guard_did_and_starts_nothing(lab: Lab) -> None:
    web, guard = make_allocation("web", guard="hold", restart="always"), guard_of(lab)
    lab.server.confirmed.add("uid-of-web")
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
    lab.server.down = True
    guard.pass_time(CLUSTERS.lease + 1)
    async with lab.agent() as agent:
        await lab.until(lambda: any(event.reason == "EndedByGuard" for event in agent._reporter.outbox.read(100)))
        guest = lab.guest(web)
        assert guest is None or guest.state != "running"


async def test_an_agent_without_a_guard_ends_it_by_itself(lab: Lab) -> None:
    web, guard = make_allocation("web", guard="hold", restart="always"), guard_of(lab)
    lab.server.confirmed.add("uid-of-web")
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        lab.server.confirmed.clear()
        guard.is_gone = True
        guard.pass_time(CLUSTERS.lease + 1)
        await lab.until(lambda: lab.server.reports[web.name].reason == "notPrimary")


async def test_a_guest_that_is_only_looked_at_runs_on_without_any_word(lab: Lab) -> None:
    web, guard = make_allocation("web", guard="begin"), guard_of(lab)
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        guard.pass_time(1000.0)
        assert guard.held == {}
        lab.server.confirmed.add("uid-of-web")
        await lab.until(lambda: lab.server.node_report and lab.server.node_report.guards == {"uid-of-web": "ready"})
        lab.server.put(change(web, guard="hold"))
        await lab.until(lambda: lab.server.node_report and lab.server.node_report.guards == {"uid-of-web": "held"})
        lab.server.put(web := change(web, guard=""))
        await lab.until(lambda: guard.held == {})
        assert lab.server.reports[web.name].state == "running"
