"""How an order to install another release is done: its packages are fetched, and the machine installs them and restarts the agent.

The order stands until then: the agent that starts again reports whether it runs the ordered release. Guests notice nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from weft import __version__
from weft.agent.orders.executor import Handler
from weft.agent.problem import describe_problem
from weft.agent.server.client import Server
from weft.contracts.clock import Clock
from weft.contracts.machine.packages import PackageInstaller
from weft.kinds.parts.packages import NEEDED, PackageFile, UpgradeOrder, UpgradeReport, choose_packages
from weft.objects.errors import DriverFailed

log = logging.getLogger("weft.agent")
LOOK_SECONDS = 1.0
RESTART_SECONDS = 60.0  # within which the packages restart the agent


class UpgradeWork(Handler[UpgradeOrder, UpgradeReport]):
    def __init__(self, installer: PackageInstaller | None, server: Server, clock: Clock) -> None:
        self._installer, self._server, self._clock = installer, server, clock

    def begin(self, order: UpgradeOrder, former: UpgradeReport | None) -> UpgradeReport:
        return UpgradeReport(attempt=order.attempt)

    async def do(self, order: UpgradeOrder, show: Callable[[UpgradeReport], None]) -> UpgradeReport:
        done = msgspec.structs.replace(self.begin(order, None), phase="done")
        installer = self._installer
        if order.release == __version__:
            if installer is not None:
                await asyncio.to_thread(installer.clear)
            return done
        if installer is None:
            raise DriverFailed("this agent can't install packages")
        if obstacle := await asyncio.to_thread(installer.find_obstacle):
            raise DriverFailed(obstacle)
        if not self._is_begun(installer, order):
            files = await self._fetch(installer, order)
            await asyncio.to_thread(installer.begin, order.attempt, files)
            log.info("weft %s is being installed", order.release)
        await self._wait(installer, order)
        raise DriverFailed(
            f"weft {order.release} is installed, and the agent still runs {__version__}: restart its service"
        )

    def fail(self, order: UpgradeOrder, problem: Exception) -> tuple[UpgradeReport, None]:
        _, message = describe_problem(problem)
        log.warning("weft %s can't be installed: %s", order.release, message)
        return msgspec.structs.replace(self.begin(order, None), phase="failed", message=message[:300]), None

    def _is_begun(self, installer: PackageInstaller, order: UpgradeOrder) -> bool:
        outcome = installer.read_outcome()
        return installer.is_under_way(order.attempt) or (outcome is not None and outcome.key == order.attempt)

    async def _fetch(self, installer: PackageInstaller, order: UpgradeOrder) -> dict[str, str]:
        """Get the packages; their digests by file name. Raises WeftError, OSError."""
        packages = choose_packages(order.packages, "agent", installer.architecture)
        if missing := sorted(set(NEEDED["agent"]) - {one.name for one in packages}):
            raise DriverFailed(f"the upgrade has no {missing[0]} for this machine, which is {installer.architecture}")
        await asyncio.to_thread(installer.clear)
        try:
            for one in packages:
                await asyncio.to_thread(self._fetch_one, installer, one)
        except BaseException:
            await asyncio.to_thread(installer.clear)  # a full disk is left as it was
            raise
        return {one.file: one.sha256 for one in packages}

    def _fetch_one(self, installer: PackageInstaller, package: PackageFile) -> None:
        with (installer.folder / package.file).open("wb") as out:
            self._server.fetch_blob(package.sha256, out, lambda _: None)

    async def _wait(self, installer: PackageInstaller, order: UpgradeOrder) -> None:
        """Wait until the agent should have been restarted. Raises DriverFailed if the packages can't be installed."""
        installed_at: float | None = None
        while True:
            outcome = await asyncio.to_thread(installer.read_outcome)
            if outcome is not None and outcome.key == order.attempt:
                if outcome.problem:
                    raise DriverFailed(outcome.problem)
                installed_at = installed_at if installed_at is not None else self._clock.elapsed()
                if self._clock.elapsed() - installed_at > RESTART_SECONDS:
                    return
            await self._clock.sleep(LOOK_SECONDS)
