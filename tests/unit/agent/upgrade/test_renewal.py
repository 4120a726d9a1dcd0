"""A reboot is begun once for each order, and never under a guest; guests whose program was upgraded are counted and looked at."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.scenario.controllers_lab import VirtualClock

from weft.agent.orders.executor import Executor
from weft.agent.upgrade.renewal import REBOOT_SECONDS, REFRESH_SECONDS, RebootWork, Renewal
from weft.contracts.driver.runtime import GuestFacts
from weft.kinds.orders import REBOOT
from weft.kinds.parts.node.reboot import RebootOrder, RebootReport
from weft.objects.errors import DriverFailed

KERNEL = "kernel 6.1.0-28-amd64 is installed, and 6.1.0-25-amd64 runs"


class Machine:
    def __init__(self) -> None:
        self.need, self.boot, self.reboots, self.refuses = KERNEL, "b1", 0, False

    def find_need(self) -> str:
        return self.need

    def read_boot(self) -> str:
        return self.boot

    def begin(self) -> None:
        if self.refuses:
            raise DriverFailed("systemctl reboot failed: Access denied")
        self.reboots += 1


def guest(uid: str, *, outdated: bool = False, state: Any = "running") -> GuestFacts:
    return GuestFacts(uid, uid, uid, 1, state, outdated=outdated)


class Lab:
    def __init__(self, folder: Path) -> None:
        self.clock, self.machine, self.folder = VirtualClock(), Machine(), folder
        self.table: list[Any] = []

    def work(self) -> Executor[RebootOrder, RebootReport]:
        handler = RebootWork(self.machine, str(self.folder), cast("Any", self.table), self.clock)
        return Executor(REBOOT, handler, str(self.folder), self.clock, lambda: None)

    async def do(self, attempt: str = "u/1/n", seconds: float = 0.0) -> RebootReport | None:
        """The report of an agent that has the order for so long."""
        work = self.work()
        work.put_orders([RebootOrder(attempt=attempt, node_uid="n")])
        keeping = asyncio.create_task(work.keep())
        try:
            for _ in range(20):
                await asyncio.sleep(0.005)
            self.clock.advance(seconds)
            for _ in range(20):
                await asyncio.sleep(0.005)
            return work.report()[0]
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


async def test_a_machine_reboots_and_says_so_once_it_is_back(lab: Lab) -> None:
    report = await lab.do()
    assert report is not None and (report.phase, lab.machine.reboots) == ("working", 1)
    lab.machine.boot, lab.machine.need = "b2", ""
    report = await lab.do()
    assert report is not None and (report.phase, lab.machine.reboots) == ("done", 1)


async def test_one_that_needs_none_is_left_alone(lab: Lab) -> None:
    lab.machine.need = ""
    report = await lab.do()
    assert report is not None and (report.phase, lab.machine.reboots) == ("done", 0)


async def test_one_that_still_needs_it_is_not_rebooted_again_but_by_the_next_attempt(lab: Lab) -> None:
    await lab.do()
    lab.machine.boot = "b2"
    report = await lab.do()
    assert report is not None and report.phase == "failed" and lab.machine.reboots == 1
    assert report.message == f"the machine was rebooted, and still needs it: {KERNEL}"
    await lab.do("u/2/n")
    assert lab.machine.reboots == 2


async def test_an_agent_that_was_killed_before_the_reboot_begins_it_again(lab: Lab) -> None:
    await lab.do()
    report = await lab.do()
    assert report is not None and (report.phase, lab.machine.reboots) == ("working", 2)


async def test_under_a_guest_it_is_refused(lab: Lab) -> None:
    lab.table.append(SimpleNamespace(guest=guest("web")))
    report = await lab.do()
    assert report is not None and (report.phase, report.message) == ("failed", "1 guest runs here")
    assert lab.machine.reboots == 0 and not (lab.folder / "reboot.json").exists()
    lab.table[0].guest = guest("web", state="stopped")
    await lab.do("u/2/n")
    assert lab.machine.reboots == 1


async def test_a_reboot_that_is_refused_or_never_comes_is_a_failure_in_words(lab: Lab) -> None:
    lab.machine.refuses = True
    report = await lab.do()
    assert report is not None and (report.phase, report.message) == ("failed", "systemctl reboot failed: Access denied")
    lab.machine.refuses = False
    report = await lab.do("u/2/n", REBOOT_SECONDS + 1)
    assert report is not None and (report.phase, report.message) == (
        "failed",
        "the machine hasn't rebooted within 5 min",
    )


async def test_what_the_machine_and_its_guests_need_is_news_once(lab: Lab) -> None:
    outdated, woken = dict.fromkeys(("web", "db"), False), list[str]()

    async def inspect(local: Any) -> GuestFacts:
        return guest(local, outdated=outdated[local])

    for uid in outdated:
        state = SimpleNamespace(local=uid, guest=guest(uid), wake=lambda uid=uid: woken.append(uid))
        lab.table.append(state)
    lab.table.append(SimpleNamespace(local="off", guest=guest("off", state="stopped")))
    news = asyncio.Event()
    runtimes = cast("Any", SimpleNamespace(inspect=inspect))
    renewal = Renewal(lab.machine, cast("Any", lab.table), runtimes, lab.clock, news)
    keeping = asyncio.create_task(renewal.keep())
    while not news.is_set():
        await asyncio.sleep(0.005)
    assert (renewal.need, renewal.outdated, woken) == (KERNEL, 0, [])
    news.clear()
    outdated["web"] = True
    lab.clock.advance(REFRESH_SECONDS)
    while not news.is_set():
        await asyncio.sleep(0.005)
    assert (renewal.outdated, woken) == (1, ["web"])
    lab.table[0].guest = guest("web", outdated=True)
    news.clear()
    await renewal.refresh()
    assert not news.is_set() and woken == ["web"]
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
