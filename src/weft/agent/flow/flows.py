"""Shows the flows of this node's workloads. Reads the network driver; woken by clients' streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping

from weft.agent.flow.describe import MOST_FLOWS, FlowsAnswer, Neighbours, describe, match
from weft.agent.flow.recorder import FlowRecorder
from weft.agent.state.allocation import LocalAllocation, port_id
from weft.contracts.clock import Clock
from weft.contracts.driver.network import FlowReader, NetworkDriver, SeenFlow, SeesFlows
from weft.kinds.parts.stream_verbs import FlowsInput
from weft.objects.errors import InvalidInput, Unavailable
from weft.objects.identity import short_id

REST = 40  # after a look, times as long as it took: a watch of a full table takes no more than this part of a core
Totals = Mapping[int, int]  # bytes by flow id


class Flows:
    """``neighbours`` are the endpoints of this node's networks; ``find_guest`` an allocation as it is now, by its uid."""

    def __init__(
        self,
        network: NetworkDriver,
        find_guest: Callable[[str], LocalAllocation | None],
        neighbours: Neighbours,
        clock: Clock,
        recorder: FlowRecorder | None = None,
    ) -> None:
        self._network, self._find_guest, self._neighbours = network, find_guest, neighbours
        self._clock, self._recorder = clock, recorder

    async def watch(self, local: LocalAllocation, asked: FlowsInput) -> AsyncIterator[FlowsAnswer]:
        """The workload's flows, once, or with ``asked.watch`` again and again while it is on this node; with ``asked.since`` what
        was recorded of them. Raises WeftError."""
        if not isinstance(self._network, SeesFlows):
            raise Unavailable(f"network driver {self._network.name} can't see flows", reason="unsupported")
        if asked.since:
            if asked.watch:
                raise InvalidInput("since can't be given together with watch", field="since")
            if self._recorder is None:
                raise Unavailable("this node records no flows", reason="unsupported")
            yield await self._recorder.answer(local, asked)
            return
        before: tuple[float, Totals] | None = None
        while (current := self._find_guest(local.uid)) is not None:
            began = self._clock.elapsed()
            answer, before = await self._answer(self._network.seen, current, asked, before)
            took = self._clock.elapsed() - began
            yield answer
            if not asked.watch:
                return
            await self._clock.sleep(max(asked.interval, REST * took))

    async def _answer(
        self, reader: FlowReader, local: LocalAllocation, asked: FlowsInput, before: tuple[float, Totals] | None
    ) -> tuple[FlowsAnswer, tuple[float, Totals]]:
        seen = [flow for flow in await self._read(reader, local) if match(flow, asked)]
        at = self._clock.elapsed()
        totals = {flow.id: flow.sent_bytes + flow.received_bytes for flow in seen if flow.id}
        rates = {}
        if before is not None and at > before[0]:
            rates = {
                id: max(0, total - before[1][id]) / (at - before[0]) for id, total in totals.items() if id in before[1]
            }
        flows = describe(local, seen, self._neighbours, rates)
        left_out = max(0, len(flows) - MOST_FLOWS)
        return FlowsAnswer(self._clock.now(), flows[:MOST_FLOWS], left_out), (at, totals)

    async def _read(self, reader: FlowReader, local: LocalAllocation) -> list[SeenFlow]:
        """Read what passes the workload's NICs, and what filters refused there."""
        at = [(short_id(nic.network_uid), nic.address) for nic in local.spec.nics]
        ports = [port_id(local.uid, nic.uid) for nic in local.spec.nics] if local.spec.groups else []
        return [*await reader.read(at), *await reader.read_refused(ports)] if at else []
