"""Capabilities of this node: its machine and hardware, inspected once, and its drivers, probed again and again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import msgspec

from weft import __version__
from weft.agent.node.facts import inspect_machine
from weft.agent.node.hardware import Hardware, inspect_hardware
from weft.agent.node.proximity import Nearness
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.contracts.driver.network import CountsConnections, NetworkDriver, NetworkProbe
from weft.contracts.driver.runtime import RuntimeProbe
from weft.kinds.node import KEEPS_DISKS, KEEPS_VOLUMES, NodeReport, NodeRuntime
from weft.kinds.parts.node.loss import ASKS_FIRST

log = logging.getLogger("weft.agent")
PROBE_SECONDS = 15.0
_HIGH, _CALM, _STEP = 80, 75, 5  # percent of the table of connections: reported from, until, and in steps of


class Capabilities:
    """``news`` is set when a probe has changed."""

    def __init__(
        self, host: Host, runtimes: Runtimes, network: NetworkDriver, clock: Clock, news: asyncio.Event
    ) -> None:
        self._news = news
        self._host, self._drivers, self._network_driver, self._clock = host, runtimes, network, clock
        self.machine = inspect_machine()
        self.hardware = Hardware()
        self.runtimes: list[RuntimeProbe] = []
        self.network = NetworkProbe(network.name, False, [], [])
        self._connections_percent = 0

    async def inspect(self) -> None:
        self.network = await self._network_driver.probe()
        self.runtimes = await self._drivers.probe()
        self.hardware = await asyncio.to_thread(inspect_hardware, self._host)
        _warn([*_problems(self.runtimes), *self.network.problems])

    async def keep(self) -> None:
        """Probe until cancelled: a program that a driver uses may be stopped, upgraded and started again."""
        while True:
            await self._clock.sleep(PROBE_SECONDS)
            before, self.runtimes = self.runtimes, await self._drivers.probe()
            _warn(sorted({*_problems(self.runtimes)} - {*_problems(before)}))
            percent = self._connections_percent
            self._connections_percent = self._measure_connections(percent)
            if before != self.runtimes or percent != self._connections_percent:
                self._news.set()

    def _measure_connections(self, before: int) -> int:
        """See NodeReport."""
        if not isinstance(self._network_driver, CountsConnections):
            return 0
        try:
            count, most = self._network_driver.connections.read_fill()
        except OSError:
            return 0  # the kernel follows none
        return grade_fill(count, most, before)

    def report(self, nearness: Nearness) -> NodeReport:
        """The machine's part of the node's report. The hypervisor is that of the driver that runs VMs."""
        nothing = RuntimeProbe("", False, "", "", [], [], [])
        runtime = next((probe for probe in self.runtimes if "vm" in probe.kinds), nothing)
        return NodeReport(
            version=__version__,
            address=self._host.underlay_address,
            cpu=self._host.capacity.cpu,
            memory=self._host.capacity.memory_bytes,
            disk=self._host.capacity.disk_bytes,
            accelerator=runtime.accelerator,
            hypervisor=f"{runtime.driver} {runtime.version}".strip(),
            kernel=self.machine.kernel,
            machines=runtime.machines,
            capabilities=sorted(
                {ASKS_FIRST, KEEPS_DISKS, KEEPS_VOLUMES, *self.network.capabilities}.union(
                    *(probe.capabilities for probe in self.runtimes)
                )
            ),
            problems=[*(problem for probe in self.runtimes for problem in probe.problems), *self.network.problems],
            boot_id=self.machine.boot_id,
            arch=self.hardware.arch,
            cpu_models=runtime.cpu_models,
            gpus=[msgspec.structs.replace(gpu, kept=runtime.kept.get(gpu.address, "")) for gpu in self.hardware.gpus],
            storage=self.hardware.storage,
            tpm=self.hardware.tpm,
            sriov=self.hardware.sriov,
            numa=self.hardware.numa,
            echo_port=nearness.port,
            coordinate=nearness.coordinate,
            round_trips=nearness.round_trips,
            connections_percent=self._connections_percent,
            runtimes=[_describe(probe) for probe in self.runtimes],
        )


def grade_fill(count: int, most: int, before: int) -> int:
    """The percentage to report of a table that holds ``count`` of at most ``most``, if ``before`` was reported last. Pure."""
    percent = 100 * count // max(1, most)
    return percent // _STEP * _STEP if percent >= (_CALM if before else _HIGH) else 0


def _describe(probe: RuntimeProbe) -> NodeRuntime:
    return NodeRuntime(
        name=probe.driver,
        version=probe.version,
        usable=probe.usable,
        kinds=list(probe.kinds),
        isolations=list(probe.isolations),
        checkpoint=probe.checkpoint,
    )


def _problems(probes: Iterable[RuntimeProbe]) -> list[str]:
    return [problem for probe in probes for problem in probe.problems]


def _warn(problems: Iterable[str]) -> None:
    for problem in problems:
        log.warning("%s", problem)
