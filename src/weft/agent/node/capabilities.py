"""What this node can do: its machine and hardware, found out once; its network's and runtimes' drivers, asked again and again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from weft.agent.node import facts
from weft.agent.node.hardware import Hardware, inspect_hardware
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.contracts.driver.network import NetworkDriver, NetworkProbe
from weft.contracts.driver.runtime import RuntimeProbe

log = logging.getLogger("weft.agent")
PROBE_SECONDS = 15.0


class Capabilities:
    """``news`` is set when they have changed."""

    def __init__(
        self, host: Host, runtimes: Runtimes, network: NetworkDriver, clock: Clock, news: asyncio.Event
    ) -> None:
        self._news = news
        self._host, self._drivers, self._network_driver, self._clock = host, runtimes, network, clock
        self.machine = facts.inspect_machine()
        self.hardware = Hardware()
        self.runtimes: list[RuntimeProbe] = []
        self.network = NetworkProbe(network.name, False, [], [])

    async def find_out(self) -> None:
        self.network = await self._network_driver.probe()
        self.runtimes = await self._drivers.probe()
        self.hardware = await asyncio.to_thread(inspect_hardware, self._host)
        _warn([*_problems(self.runtimes), *self.network.problems])

    async def keep(self) -> None:
        """Until cancelled: what a driver stands on may be ended, exchanged and started again."""
        while True:
            await self._clock.sleep(PROBE_SECONDS)
            before, self.runtimes = self.runtimes, await self._drivers.probe()
            _warn(sorted({*_problems(self.runtimes)} - {*_problems(before)}))
            if before != self.runtimes:
                self._news.set()


def _problems(probes: Iterable[RuntimeProbe]) -> list[str]:
    return [problem for probe in probes for problem in probe.problems]


def _warn(problems: Iterable[str]) -> None:
    for problem in problems:
        log.warning("%s", problem)
