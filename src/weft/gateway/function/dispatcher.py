"""Runs invocations: finds the function, limits its concurrency, and asks nodes, in their order, over their channels.

The hot path reads no store, decodes no payload and ranks only when something changed. ``invocation/tracker.py`` decides; woken by
callers, by agents' messages, and by the clock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from weft.contracts.clock import Clock
from weft.gateway.function.definition.catalogue import Catalogue, Function, Version
from weft.gateway.function.instance.agents import Agents
from weft.gateway.function.instance.channel import Channel
from weft.gateway.function.invocation.call import Call, InvocationOutcome
from weft.gateway.function.invocation.late_results import LateResults
from weft.gateway.function.invocation.outcome import (
    busy_error,
    full_error,
    lost_error,
    make_outcome,
    no_node_error,
    too_large_error,
    unplaceable_error,
)
from weft.gateway.function.invocation.traces import InvocationTrace, InvocationTraces
from weft.gateway.function.invocation.tracker import (
    GRACE_SECONDS,
    Done,
    Instruction,
    InvocationTracker,
    LateResult,
    Lost,
    NoNode,
    PendingInvocation,
    SendAck,
    SendInvoke,
)
from weft.kinds.quota import busy
from weft.objects.errors import InUse, Unavailable, WeftError
from weft.protocol.invocations import (
    MAX_PAYLOAD_BYTES,
    Acknowledge,
    FromAgent,
    InstanceState,
    InstanceStateChange,
    InvocationRefused,
    Invoke,
    Prepared,
    Printed,
    apply_change,
)
from weft.serving.shares import Shares

log = logging.getLogger("weft.gateway.functions")
CHECK_SECONDS = 0.25  # between two checks for overdue invocations
BEGIN_SECONDS = 5.0  # for the functions, and from then on for one node
ALL_SECONDS = 15.0  # for all nodes: agents try to reach a gateway every 5 s, and connecting takes a moment
MOST_TRACEPARENT = 512  # characters
MOST_HELD_BYTES = 512 * 1024 * 1024  # of payloads, a quarter of them of one project


class InvocationObserver(Protocol):
    """Follows invocations."""

    def arrived(self, function: Function, version: Version) -> None: ...
    def throttled(self, function: Function) -> None: ...
    def refused(self, function: Function, reason: str, digest: str) -> None: ...
    def ended(self, function: Function, outcome: InvocationOutcome, digest: str, seconds: float) -> None: ...
    def lost(self, function: Function, digest: str) -> None: ...
    def printed(self, node: str, printed: Printed) -> None: ...
    def disconnected(self, node: str) -> None: ...


class AgentObserver(Protocol):
    """Follows the agents: their reports on preparations, and lost connections."""

    def on_prepared(self, node: str, message: Prepared | InvocationRefused) -> None: ...
    def on_disconnect(self, node: str) -> None: ...


class _Caller(msgspec.Struct, frozen=True):
    """The caller that waits for an invocation; that began at ``began``."""

    function: Function
    began: float
    future: asyncio.Future[InvocationOutcome]
    trace: InvocationTrace | None = None


class Dispatcher:
    """``is_synced``: whether the catalogue is complete."""

    def __init__(
        self,
        catalogue: Catalogue,
        agents: Agents,
        tracker: InvocationTracker,
        late: LateResults,
        observer: InvocationObserver,
        agent_observers: Sequence[AgentObserver],
        is_synced: Callable[[], bool],
        clock: Clock,
    ) -> None:
        self._catalogue, self._agents, self._tracker, self._late = catalogue, agents, tracker, late
        self._observer, self._agent_observers = observer, agent_observers
        self._is_synced, self._clock = is_synced, clock
        self._waiting: dict[str, _Caller] = {}
        self._held = Shares(MOST_HELD_BYTES, MOST_HELD_BYTES // 4)  # bytes of payloads under way, by project
        self._read_at: float | None = None
        self._written: dict[str, int] = {}  # the last number of what was printed, by node
        self._begun = False
        self.traces: InvocationTraces | None = None

    async def invoke(self, call: Call, function: Function | None = None) -> InvocationOutcome:
        """See ``Dispatches``."""
        if not self._begun:
            await self._begin()
            function = None  # it may have changed meanwhile
        if function is None:
            function = self._catalogue.find(call.project, call.name)
        version = self._catalogue.resolve(function, call.qualifier)
        if call.again:
            known = await self._late.recall(function.what, version.recipe.version, call.id)
            if known is not None:
                return known
        self._admit(function, call)
        self._observer.arrived(function, version)
        ranked = self._agents.find_ranked(version, call.node)
        if not ranked.places:
            self._observer.refused(function, ranked.ranking.reason, version.recipe.digest)
            raise unplaceable_error(function.what, ranked.ranking)
        began = self._clock.elapsed()
        trace = None
        if self.traces is not None:
            trace = self.traces.begin(call.traceparent, f"function/{call.project}/{call.name}")
        carried = trace.carried if trace is not None else call.traceparent[:MOST_TRACEPARENT]
        pending = _make_pending(version, call, ranked.places, began, carried)
        future: asyncio.Future[InvocationOutcome] = asyncio.get_running_loop().create_future()
        self._waiting[call.id] = _Caller(function, began, future, trace)
        self._held.take(call.project, len(call.payload))
        self._perform(self._tracker.begin(pending))
        return await future  # if the caller goes, the invocation goes on, and counts

    def running(self, function_uid: str) -> int:
        """How many invocations of the function are under way, or may be."""
        return self._tracker.running(function_uid)

    async def watch(self) -> None:
        """Expire overdue invocations, for ever."""
        while True:
            await self._clock.sleep(CHECK_SECONDS)
            self._has_read()
            for node, channel in self._agents.channels.items():
                self._agents.fleet.nodes[node].congested = channel.is_congested
            self._perform(self._tracker.expire(self._clock.elapsed()))

    async def serve(self, channel: Channel) -> None:
        """Handle the messages of one agent until its connection is lost; before that, wait for the functions to be read."""
        while not self._has_read():
            await self._clock.sleep(CHECK_SECONDS / 5)
        node, channels = channel.node, self._agents.channels
        self._tracker.connect(node)
        channels[node] = channel
        try:
            while (message := await channel.receive()) is not None:
                self._receive(channel, message)
        except WeftError as problem:
            log.warning("node %s: %s", self._agents.name_of(node), problem.message)
        finally:
            if channels.get(node) is channel:
                self._agents.leave(node)
                self._tracker.disconnect(node, self._clock.elapsed())
                self._observer.disconnected(node)
                for observer in self._agent_observers:
                    observer.on_disconnect(node)
            channel.close()

    async def know(self) -> None:
        """Wait a moment until a gateway that has just started has read the functions, and who may call them. Raises
        Unavailable."""
        until = self._clock.elapsed() + BEGIN_SECONDS
        while not self._has_read():
            if self._clock.elapsed() >= until:
                raise Unavailable(
                    "the gateway hasn't read the functions yet", reason="functionNotReady", retry_after_seconds=1.0
                )
            await self._clock.sleep(CHECK_SECONDS / 5)

    async def _begin(self) -> None:
        """A gateway that has just started doesn't know the functions, the nodes, and what runs there: it waits a moment for them,
        or more than ``max_concurrent`` would run at once (as they may if a node connects later still). Raises Unavailable."""
        await self.know()
        nodes = self._agents.fleet.nodes
        while not self._begun:
            listened = self._clock.elapsed() - (self._read_at or 0.0)
            knows = any(serving.open for serving in nodes.values()) or listened >= BEGIN_SECONDS
            self._begun = listened >= ALL_SECONDS or (knows and not self._late.find_missing())
            if not self._begun:
                await self._clock.sleep(CHECK_SECONDS / 5)

    def _has_read(self) -> bool:
        """Whether the functions are there. Records since when: nodes are served from then on."""
        if self._read_at is None and self._is_synced():
            self._read_at = self._clock.elapsed()
        return self._read_at is not None

    def _admit(self, function: Function, call: Call) -> None:
        """Raises TooLarge, Throttled, InUse."""
        if len(call.payload) > MAX_PAYLOAD_BYTES:
            raise too_large_error(function.what, len(call.payload), MAX_PAYLOAD_BYTES)
        running = self._tracker.running(function.uid)
        if running >= function.spec.max_concurrent:
            self._observer.throttled(function)
            raise busy_error(function.what, running, function.spec.max_concurrent)
        most = self._catalogue.find_concurrency(call.project)
        if most is not None and (running := self._tracker.running_in(call.project)) >= most:
            self._observer.throttled(function)
            raise busy(call.project, "function_concurrency", running, most)
        if not self._held.has_capacity(call.project, len(call.payload)):
            self._observer.throttled(function)
            raise full_error()
        if call.id in self._tracker:
            raise InUse(f"an invocation with the id {call.id[:80]} is under way", hint="use another id")

    def _receive(self, channel: Channel, message: FromAgent) -> None:
        node = channel.node
        match message:
            case InstanceState():
                self._agents.stand(node, message)
            case InstanceStateChange():
                self._agents.stand(node, apply_change(self._agents.fleet.nodes[node].standing, message))
            case Printed():
                self._write_down(node, message)
                channel.report_written(message.serial)
            case Prepared():
                self._on_prepared(node, message)
            case _:
                if isinstance(message, InvocationRefused) and message.id not in self._tracker:
                    self._on_prepared(node, message)
                self._perform(self._tracker.receive(node, message, self._clock.elapsed()))

    def _on_prepared(self, node: str, message: Prepared | InvocationRefused) -> None:
        for observer in self._agent_observers:
            observer.on_prepared(node, message)

    def _write_down(self, node: str, printed: Printed) -> None:
        """Store what was printed, unless it comes again because only the acknowledgement was lost with a connection."""
        if not printed.age or printed.serial > self._written.get(node, 0):
            self._written[node] = printed.serial
            self._observer.printed(node, printed)

    def _perform(self, instructions: list[Instruction]) -> None:
        queue = list(instructions)
        for instruction in queue:
            match instruction:
                case SendInvoke(node=node, pending=pending):
                    if not self._agents.send(node, pending.recipe.digest, pending.invoke):
                        refused = InvocationRefused(pending.id, "closing", "the connection to the node was just lost")
                        queue += self._tracker.receive(node, refused, self._clock.elapsed())
                    elif pending.cold:
                        self._agents.use(node)
                    if pending.invoke.traceparent and (caller := self._waiting.get(pending.id)) and caller.trace:
                        caller.trace.note_sent(self._agents.name_of(node))
                case SendAck(node=node, id=id, bytes=weight):
                    channel = self._agents.channels.get(node)
                    if channel is not None:
                        channel.send_later(Acknowledge(id), weight)
                case LateResult(node=node, answer=answer):
                    self._late.keep(node, answer)
                case _:
                    self._end(instruction)

    def _end(self, ended: Done | NoNode | Lost) -> None:
        caller = self._waiting.pop(ended.pending.id, None)
        if caller is None:
            return
        self._held.give_back(ended.pending.recipe.project, len(ended.pending.invoke.payload))
        result = self._conclude(caller.function, ended, self._clock.elapsed() - caller.began)
        if caller.trace is not None:
            if isinstance(result, InvocationOutcome):
                caller.trace.end(result.error_type, result.start)
            else:
                caller.trace.end(result.message)
        if caller.future.done():
            return
        if isinstance(result, InvocationOutcome):
            caller.future.set_result(result)
        else:
            caller.future.set_exception(result)

    def _conclude(
        self, function: Function, ended: Done | NoNode | Lost, seconds: float
    ) -> InvocationOutcome | WeftError:
        """Conclude the invocation: what its caller receives, after the observer."""
        pending, name_of = ended.pending, self._agents.name_of
        match ended:
            case Done(answer=answer):
                outcome = make_outcome(answer, pending.recipe.version, name_of(pending.node))
                self._observer.ended(function, outcome, pending.recipe.digest, seconds)
                return outcome
            case NoNode():
                problem = no_node_error(function.what, pending, self._agents.fleet, name_of)
                self._observer.refused(function, problem.token, pending.recipe.digest)
                return problem
            case Lost(why=why):
                self._observer.lost(function, pending.recipe.digest)
                return lost_error(function.what, pending.id, f"lost on {name_of(pending.node)}: {why}")


def _make_pending(
    version: Version, call: Call, places: Mapping[str, int], now: float, traceparent: str
) -> PendingInvocation:
    recipe = version.recipe
    seconds = recipe.timeout if call.seconds is None else min(recipe.timeout, call.seconds)
    qualified = f":{call.qualifier}" if call.qualifier else ""
    invoke = Invoke(
        id=call.id,
        digest=recipe.digest,
        payload=call.payload,
        seconds=seconds,
        arn=f"arn:weft:lambda:weft:{recipe.project}:function:{recipe.name}{qualified}",
        client_context=call.client_context,
        tail=call.tail,
        traceparent=traceparent,
    )
    return PendingInvocation(recipe, invoke, places, now + seconds + GRACE_SECONDS)
