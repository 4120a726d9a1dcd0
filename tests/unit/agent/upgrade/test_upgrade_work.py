"""An order to install another release: packages are fetched, installed once, and the agent that comes back says how it went."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from tests.scenario.controllers_lab import VirtualClock

from weft import __version__
from weft.agent.orders.executor import Executor
from weft.agent.upgrade.work import UpgradeWork
from weft.drivers.package.installer import DebianInstaller
from weft.kinds.orders import UPGRADE
from weft.kinds.parts.packages import PackageFile, UpgradeOrder, UpgradeReport
from weft.objects.errors import Unavailable

DATA = {"weft-client": b"client", "weft-agent": b"agent", "weft-server": b"server"}


class Server:
    """A server that has the packages."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.away = False

    def fetch_blob(self, sha256: str, out: BinaryIO, on_progress: Callable[[int], None], ticket: str = "") -> None:
        if self.away:
            raise Unavailable("the server doesn't answer")
        name = next(name for name, data in DATA.items() if hashlib.sha256(data).hexdigest() == sha256)
        self.fetched.append(name)
        out.write(DATA[name])


class Lab:
    def __init__(self, folder: Path) -> None:
        self.clock, self.server = VirtualClock(), Server()
        (folder / "install/agent").mkdir(parents=True)
        tree = folder / "tree"
        tree.mkdir()
        (tree / "install").touch()
        self.base = folder / "install"
        self.installer = DebianInstaller("agent", self.base, tree, str(tree), folder)
        self.folder = folder

    def order(self, attempt: str = "u/1", release: str = "99.0.0", architecture: str = "") -> UpgradeOrder:
        packages = [
            PackageFile(
                name=name,
                architecture=architecture or self.installer.architecture,
                sha256=hashlib.sha256(data).hexdigest(),
                size=len(data),
            )
            for name, data in DATA.items()
        ]
        return UpgradeOrder(attempt=attempt, node_uid="n", release=release, packages=packages)

    def work(self) -> Executor[UpgradeOrder, UpgradeReport]:
        handler = UpgradeWork(self.installer, cast("Any", self.server), self.clock)
        return Executor(UPGRADE, handler, str(self.folder), self.clock, lambda: None)

    async def until(self, work: Executor[UpgradeOrder, UpgradeReport], phase: str) -> UpgradeReport:
        keeping = asyncio.create_task(work.keep())
        try:
            for _ in range(400):
                await asyncio.sleep(0.005)
                found = [report for report in work.report() if report.phase == phase]
                if found:
                    return found[0]
                self.clock.advance(0.5)
            raise AssertionError(work.report())
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    def end(self, attempt: str, said: str) -> None:
        """As root's program does."""
        (self.base / "agent.outcome").write_text(f"{attempt}\n{said}\n")
        (self.installer.folder / "wanted").unlink(missing_ok=True)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


async def begin(lab: Lab, order: UpgradeOrder) -> Executor[UpgradeOrder, UpgradeReport]:
    """An agent that has begun with ``order`` and was killed then."""
    work = lab.work()
    work.put_orders([order])
    keeping = asyncio.create_task(work.keep())
    while not lab.installer.is_under_way(order.attempt):
        await asyncio.sleep(0.005)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    return work


async def test_its_packages_and_no_others_lie_ready_with_their_digests(lab: Lab) -> None:
    await begin(lab, lab.order())
    assert sorted(lab.server.fetched) == ["weft-agent", "weft-client"]
    wanted = (lab.installer.folder / "wanted").read_text().splitlines()
    assert wanted[0] == "u/1"
    for line in wanted[1:]:
        digest, name = line.split()
        assert hashlib.sha256((lab.installer.folder / name).read_bytes()).hexdigest() == digest


async def test_an_agent_that_was_killed_meanwhile_fetches_nothing_again(lab: Lab) -> None:
    await begin(lab, lab.order())
    lab.server.fetched.clear()
    work = lab.work()
    work.put_orders([lab.order()])
    lab.end("u/1", "dpkg: No space left on device")
    report = await lab.until(work, "failed")
    assert (report.message, lab.server.fetched) == ("dpkg: No space left on device", [])


async def test_the_agent_that_comes_back_with_the_release_says_that_it_is_done(lab: Lab) -> None:
    (lab.installer.folder / "weft-agent_amd64.deb").touch()
    work = lab.work()
    work.put_orders([lab.order(release=__version__)])
    assert (await lab.until(work, "done")).attempt == "u/1"
    assert [*lab.installer.folder.iterdir()] == []


async def test_one_that_was_not_restarted_says_so(lab: Lab) -> None:
    await begin(lab, lab.order())
    lab.end("u/1", "ok")
    work = lab.work()
    work.put_orders([lab.order()])
    report = await lab.until(work, "failed")
    assert report.message == f"weft 99.0.0 is installed, and the agent still runs {__version__}: restart its service"


async def test_another_attempt_begins_again(lab: Lab) -> None:
    await begin(lab, lab.order())
    lab.end("u/1", "dpkg: No space left on device")
    lab.server.fetched.clear()
    await begin(lab, lab.order("u/2"))
    assert sorted(lab.server.fetched) == ["weft-agent", "weft-client"]


@pytest.mark.parametrize("trouble", ["clone", "architecture", "server"])
async def test_what_stands_in_the_way_is_named(lab: Lab, tmp_path: Path, trouble: str) -> None:
    order, said = lab.order(), "the server doesn't answer"
    if trouble == "clone":
        lab.installer = DebianInstaller("agent", lab.base, tmp_path / "tree", "/somewhere", tmp_path)
        said = "this agent doesn't run from the package weft-agent: upgrade it by hand"
    elif trouble == "architecture":
        order = lab.order(architecture="s390x")
        said = f"the upgrade has no weft-agent for this machine, which is {lab.installer.architecture}"
    else:
        lab.server.away = True
    work = lab.work()
    work.put_orders([order])
    assert (await lab.until(work, "failed")).message == said
    assert not lab.installer.is_under_way("u/1")
