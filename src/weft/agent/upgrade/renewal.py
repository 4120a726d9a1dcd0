"""Renewal of what runs here: whether the machine should be rebooted, which guests run in programs that were upgraded since they
started, and the reboot that is ordered once nothing runs here any more.

A reboot that was begun is in ``<state>/reboot.json``, so that no order reboots a machine twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from weft.agent.allocation.facts import is_alive
from weft.agent.orders.executor import Handler
from weft.agent.problem import describe_problem
from weft.agent.state.table import AllocationTable
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import Clock
from weft.contracts.durable_file import write_durably
from weft.contracts.machine.reboot import MachineReboot
from weft.kinds.parts.node.reboot import RebootOrder, RebootReport
from weft.objects.errors import DriverFailed

log = logging.getLogger("weft.agent")
REFRESH_SECONDS = 30.0
REBOOT_SECONDS = 300.0  # within which systemd ends everything


class _Begun(msgspec.Struct, frozen=True):
    attempt: str
    boot: str


class Renewal:
    """``machine`` None: it isn't rebooted by weft. ``news`` is set when there is something to report."""

    def __init__(
        self,
        machine: MachineReboot | None,
        table: AllocationTable,
        runtimes: Runtimes,
        clock: Clock,
        news: asyncio.Event,
    ) -> None:
        self._machine, self._table, self._runtimes = machine, table, runtimes
        self._clock, self._news = clock, news
        self.need, self.outdated = "", 0

    async def keep(self) -> None:
        """Refresh both again and again, for ever."""
        while True:
            await self.refresh()
            await self._clock.sleep(REFRESH_SECONDS)

    async def refresh(self) -> None:
        """Find both, and have guests whose answer has changed inspected."""
        before = self.need, self.outdated
        if self._machine is not None:
            self.need = await asyncio.to_thread(self._machine.find_need)
        self.outdated = 0
        for state in list(self._table):
            if state.guest is None or not is_alive(state.guest):
                continue
            guest = await self._runtimes.inspect(state.local)
            self.outdated += guest.outdated
            if guest.outdated != state.guest.outdated:
                state.wake()
        if (self.need, self.outdated) != before:
            self._news.set()


class RebootWork(Handler[RebootOrder, RebootReport]):
    def __init__(self, machine: MachineReboot | None, state_dir: str, table: AllocationTable, clock: Clock) -> None:
        self._machine, self._table, self._clock = machine, table, clock
        self._file = Path(state_dir) / "reboot.json"

    def begin(self, order: RebootOrder, former: RebootReport | None) -> RebootReport:
        return RebootReport(attempt=order.attempt)

    async def do(self, order: RebootOrder, show: Callable[[RebootReport], None]) -> RebootReport:
        machine, done = self._machine, RebootReport(attempt=order.attempt, phase="done")
        if machine is None or not (need := await asyncio.to_thread(machine.find_need)):
            return done
        boot, begun = await asyncio.to_thread(machine.read_boot), await asyncio.to_thread(self._read)
        is_again = begun is not None and begun.attempt == order.attempt
        if is_again and begun is not None and begun.boot != boot:
            raise DriverFailed(f"the machine was rebooted, and still needs it: {need}")
        if count := sum(state.guest is not None and is_alive(state.guest) for state in self._table):
            raise DriverFailed(f"{count} guest{'s' if count > 1 else ''} run{'s' if count == 1 else ''} here")
        if not is_again:
            text = msgspec.json.encode(_Begun(order.attempt, boot))
            await asyncio.to_thread(write_durably, self._file, text, 0o644)
        log.warning("the machine reboots: %s", need)
        await asyncio.to_thread(machine.begin)
        await self._clock.sleep(REBOOT_SECONDS)
        raise DriverFailed(f"the machine hasn't rebooted within {REBOOT_SECONDS / 60:.0f} min")

    def fail(self, order: RebootOrder, problem: Exception) -> tuple[RebootReport, None]:
        _, message = describe_problem(problem)
        log.warning("the machine isn't rebooted: %s", message)
        return RebootReport(attempt=order.attempt, phase="failed", message=message[:300]), None

    def _read(self) -> _Begun | None:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_Begun)
        except (OSError, msgspec.MsgspecError):
            return None
