"""A guest that ends with its node runs only while the servers hear the node, and starts only where it surely belongs."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.scenario.agent.test_agent_guard import MadeGuard, guard_of
from tests.scenario.agent_lab import Lab, change, make_allocation

from weft.agent.server.contact import CONTACT_SECONDS
from weft.failover.timing import NODES
from weft.objects.envelope import Envelope


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    for name in ("weft.agent.agent.HEARTBEAT_SECONDS", "weft.agent.guard.plan.REVIEW_SECONDS"):
        monkeypatch.setattr(name, 0.1)
    monkeypatch.setattr("weft.agent.agent.NODES", replace(NODES, renew=0.1))
    lab = Lab(tmp_path)
    lab.guard = MadeGuard(lab)
    return lab


def make_web(**fields: int | str) -> Envelope:
    return make_allocation("web", restart="always", **{"loss_guard": 1, **fields})


def runs(lab: Lab, web: Envelope) -> bool:
    guest = lab.guest(web)
    return guest is not None and guest.state == "running"


async def until_guarded(lab: Lab, web: Envelope, number: int) -> None:
    await lab.until(lambda: web.name in lab.server.reports and lab.server.reports[web.name].guarded == number)


async def test_it_ends_in_time_and_starts_after_the_servers_know_of_the_silence(lab: Lab) -> None:
    web, guard = make_web(), guard_of(lab)
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        await until_guarded(lab, web, 1)
        assert lab.server.node_report
        token, before = lab.server.node_report.contact, guard.now
        lab.server.down = True
        await lab.settle()
        guard.pass_time(NODES.lease - 1)
        assert runs(lab, web)
        guard.pass_time(1.1)
        await lab.until(lambda: not runs(lab, web))
        assert guard.now < before + NODES.lease + 1
        await lab.settle()
        assert not runs(lab, web)
        assert lab.server.reports[web.name].state == "running"  # the last that was heard of it
        lab.server.down = False
        await lab.until(lambda: runs(lab, web))
        assert lab.server.node_report.contact != token
    assert "had not confirmed this node's heartbeats for 45s" in next(
        event.message for event in lab.server.events if event.reason == "EndedByGuard"
    )


async def test_a_node_that_is_back_before_the_end_keeps_its_guest_once_it_is_listed(lab: Lab) -> None:
    web, guard = make_web(), guard_of(lab)
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        lab.server.down = True
        await lab.settle()
        guard.pass_time(CONTACT_SECONDS + 5)
        lab.server.lists = False  # its reports are answered, and nobody lists it
        lab.server.down = False
        await lab.settle()
        assert next(iter(guard.held.values())).until < guard.now + NODES.lease - 5
        lab.server.lists = True
        await lab.until(lambda: next(iter(guard.held.values())).until == guard.now + NODES.lease)
        assert runs(lab, web)


async def test_one_that_was_lost_meanwhile_is_neither_put_off_nor_started(lab: Lab) -> None:
    web, guard = make_web(), guard_of(lab)
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        lab.server.down = True
        await lab.settle()
        guard.pass_time(CONTACT_SECONDS + 5)
        lab.server.put(change(web, role="lost"))
        lab.server.down = False
        await lab.settle()
        guard.pass_time(NODES.lease - CONTACT_SECONDS)
        await lab.until(lambda: not runs(lab, web))
        await lab.settle()
        assert not runs(lab, web)


async def test_a_machine_that_slept_has_a_new_token_though_its_other_clock_stood(lab: Lab) -> None:
    web, guard = make_web(), guard_of(lab)
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        await until_guarded(lab, web, 1)
        assert lab.server.node_report
        token = lab.server.node_report.contact
        guard.pass_time(600.0)
        await lab.until(lambda: lab.server.node_report and lab.server.node_report.contact != token)
        await lab.until(lambda: next(iter(guard.held.values())).until == guard.now + NODES.lease)
        await lab.until(lambda: runs(lab, web))


async def test_an_agent_and_a_machine_that_start_while_cut_off_start_nothing(lab: Lab) -> None:
    web, guard = make_web(), guard_of(lab)
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        await until_guarded(lab, web, 1)
    lab.server.down = True
    lab.runtime.kill(next(iter(guard.held)))
    guard.held, guard.boot_id, guard.now = {}, "another", 5.0
    async with lab.agent():
        await lab.until(lambda: next(iter(guard.held.values()), None) is not None)
        await lab.settle()
        assert not runs(lab, web)
        lab.server.down = False
        await lab.until(lambda: runs(lab, web))


async def test_it_is_dropped_and_that_is_reported_once_its_owner_wants_it_to_wait(lab: Lab) -> None:
    web, other, guard = make_web(), make_allocation("other", loss_guard=2), guard_of(lab)
    async with lab.agent():
        lab.server.put(web, other)
        await until_guarded(lab, web, 1)
        await until_guarded(lab, other, 2)
        assert len(guard.held) == 1
        lab.server.put(web := change(web, loss_guard=2))
        await until_guarded(lab, web, 2)
        assert guard.held == {}
        lab.server.down = True
        guard.pass_time(1000.0)
        await lab.settle()
        assert runs(lab, web) and runs(lab, other)


async def test_a_node_without_a_guard_starts_it_once_confirmed_and_says_that_it_is_not_guarded(lab: Lab) -> None:
    web, lab.guard = make_web(), None
    async with lab.agent():
        lab.server.put(web)
        assert (await lab.until_state(web, "running")).guarded == 0
    lab.server.down = True
    lab.runtime.kill(next(path.stem for path in (Path(lab.host.state_dir) / "fake-guests").glob("*.json")))
    async with lab.agent():
        await lab.settle()
        assert not runs(lab, web)


async def test_planned_work_puts_the_end_off_by_what_the_servers_said_and_an_agent_that_starts_again_keeps_it(
    lab: Lab,
) -> None:
    web, guard = make_web(), guard_of(lab)
    lab.server.guard_pause = 600.0
    async with lab.agent():
        lab.server.put(web)
        await until_guarded(lab, web, 1)
        until = guard.now + 600.0 + NODES.lease
        await lab.until(lambda: next(iter(guard.held.values())).until == until)
        lab.server.down = True
        await lab.settle()
    async with lab.agent():
        guard.pass_time(600.0 + NODES.lease - 1)
        await lab.settle()
        assert runs(lab, web)
        guard.pass_time(1.1)
        await lab.until(lambda: not runs(lab, web))


async def test_on_a_node_with_autonomy_it_ends_so_much_later_and_a_shorter_one_is_reported_once_the_guard_has_it(
    lab: Lab,
) -> None:
    web, guard = make_web(loss_after=3600.0), guard_of(lab)
    async with lab.agent():
        lab.server.put(web)
        await until_guarded(lab, web, 1)
        await lab.until(lambda: next(iter(guard.held.values())).until == guard.now + 3600.0 + NODES.lease)
        lab.server.put(web := change(web, loss_guard=3, loss_after=60.0))
        await until_guarded(lab, web, 3)
        assert next(iter(guard.held.values())).until == guard.now + 60.0 + NODES.lease
        lab.server.put(change(web, loss_guard=5, loss_after=3600.0))
        await until_guarded(lab, web, 5)
        lab.server.down = True
        await lab.settle()
        guard.pass_time(3600.0)
        await lab.settle()
        assert runs(lab, web)
