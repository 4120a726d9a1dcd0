"""Invocations under way, as a state machine: events in, instructions out. Pure.

An invocation is asked of one node at a time, and of the next only after the one before refused it: so it runs at most once. When
the connection to its node is lost it waits; the node says, connected again, what it still has, and what isn't among that is
lost. What is lost counts against its function's concurrency for as long as it may still run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from weft.contracts.driver.function import Recipe
from weft.gateway.function.instance.fleet import Fleet
from weft.protocol.invocations import (
    Answer,
    FromAgent,
    InstanceState,
    InstanceStateChange,
    Invoke,
    Prepared,
    Printed,
    Refused,
    Underway,
)

GRACE_SECONDS = 45.0  # a start (30), and the way there and back, beyond an invocation's own time
FETCH_SECONDS = 180.0  # and as much where code and base must come first
ADRIFT_SECONDS = 30.0  # so long a node may be away before its invocations are taken for lost
MOST_ASKED = 16  # nodes, for one invocation


class PendingInvocation(msgspec.Struct, eq=False):
    """One invocation under way. ``ranking``: see ``Fleet.choose``; ``until``: when it is lost if nothing is heard of it."""

    recipe: Recipe
    invoke: Invoke
    ranking: Mapping[str, int]
    until: float
    node: str = ""
    cold: bool = False  # no instance seemed to wait for it
    fetches: bool = False  # a node that was asked hadn't prepared it
    refusals: dict[str, Refused] = msgspec.field(default_factory=dict)  # by node
    adrift_until: float = 0.0  # 0: its node is connected

    @property
    def id(self) -> str:
        return self.invoke.id


class SendInvoke(msgspec.Struct, frozen=True):
    """Tell ``node`` to run it."""

    node: str
    flight: PendingInvocation


class SendAck(msgspec.Struct, frozen=True):
    """Tell ``node`` that this answer has arrived."""

    node: str
    id: str
    bytes: int = 0  # that the node keeps of it until then


class Done(msgspec.Struct, frozen=True):
    flight: PendingInvocation
    answer: Answer


class LateResult(msgspec.Struct, frozen=True):
    """An answer that nobody waits for."""

    node: str
    answer: Answer


class NoNode(msgspec.Struct, frozen=True):
    """No node took it; each that was asked said why."""

    flight: PendingInvocation


class Lost(msgspec.Struct, frozen=True):
    """It may have run; ``why`` for people."""

    flight: PendingInvocation
    why: str


Instruction = SendInvoke | SendAck | Done | LateResult | NoNode | Lost


class _Stray(msgspec.Struct, frozen=True):
    """What may run on a node without anybody waiting for it."""

    node: str
    function: str
    until: float


class InvocationTracker:
    """``function_of`` gives the function (uid) of a recipe by digest and how long its invocations may take; None if it isn't
    known."""

    def __init__(self, fleet: Fleet, function_of: Callable[[str], tuple[str, float] | None]) -> None:
        self._fleet = fleet
        self._function_of = function_of
        self._flights: dict[str, PendingInvocation] = {}
        self._strays: dict[str, _Stray] = {}
        self._running: Counter[str] = Counter()  # by function

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, id: str) -> bool:
        return id in self._flights

    def running(self, function: str) -> int:
        """How many invocations of a function (uid) are under way, or may be."""
        return self._running[function]

    def is_stray(self, id: str) -> bool:
        """Whether it may run on a node without anybody waiting for it."""
        return id in self._strays

    def begin(self, flight: PendingInvocation) -> list[Instruction]:
        self._flights[flight.id] = flight
        self._running[flight.recipe.function] += 1
        return [self._ask(flight)]

    def connect(self, node: str) -> None:
        """A connection to ``node`` is there; it is asked for nothing before it has said what is under way there."""
        self._fleet.come(node)

    def disconnect(self, node: str, now: float) -> None:
        self._fleet.go(node)
        for flight in self._flights.values():
            if flight.node == node and not flight.adrift_until:
                flight.adrift_until = now + ADRIFT_SECONDS

    def hear(self, node: str, message: FromAgent, now: float) -> list[Instruction]:
        """What to do about a message of ``node``; ``Prepared`` and ``Printed`` are not the desk's."""
        match message:
            case Answer():
                return self._answered(node, message)
            case Refused():
                return self._refused(node, message)
            case Underway():
                return self._reconcile(node, message, now)
            case InstanceState() | InstanceStateChange() | Prepared() | Printed():
                return []

    def expire(self, now: float) -> list[Instruction]:
        """What nothing was heard of for too long."""
        for id, stray in list(self._strays.items()):
            if stray.until <= now:
                self._drop_stray(id)
        found: list[Instruction] = []
        for flight in list(self._flights.values()):
            if flight.until <= now:
                found.append(self._lose(flight, "the node didn't answer in time"))
            elif flight.adrift_until and flight.adrift_until <= now:
                found.append(self._lose(flight, "the connection to the node was lost"))
        return found

    def _ask(self, flight: PendingInvocation) -> Instruction:
        node = None
        if len(flight.refusals) < MOST_ASKED:
            node = self._fleet.choose(flight.recipe, flight.ranking, flight.refusals)
        if node is None:
            self._end(flight)
            return NoNode(flight)
        serving = self._fleet.nodes[node]
        flight.node, flight.cold = node, serving.idle(flight.recipe.digest) <= 0
        if not flight.fetches and flight.cold and flight.recipe.digest not in serving.prepared:
            flight.fetches = True
            flight.until += FETCH_SECONDS
        serving.asked[flight.recipe.digest] += 1
        return SendInvoke(node, flight)

    def _answered(self, node: str, answer: Answer) -> list[Instruction]:
        heard = SendAck(node, answer.id, len(answer.payload))
        flight = self._flights.get(answer.id)
        if flight is None or flight.node != node:
            self._drop_stray(answer.id)
            return [LateResult(node, answer), heard]
        self._end(flight)
        return [Done(flight, answer), heard]

    def _refused(self, node: str, refused: Refused) -> list[Instruction]:
        flight = self._flights.get(refused.id)
        if flight is None or flight.node != node:
            self._drop_stray(refused.id)
            return []
        self._release(flight)
        flight.refusals[node] = refused
        return [self._ask(flight)]

    def _reconcile(self, node: str, underway: Underway, now: float) -> list[Instruction]:
        serving = self._fleet.nodes.get(node)
        if serving is None:
            return []
        serving.open = True
        there = set(underway.ids)
        for id, stray in list(self._strays.items()):
            if stray.node == node and id not in there:
                self._drop_stray(id)
        found: list[Instruction] = []
        for flight in list(self._flights.values()):
            if flight.node != node:
                continue
            if flight.id in there:
                flight.adrift_until = 0.0
                serving.asked[flight.recipe.digest] += 1
            else:
                found.append(self._lose(flight, "the node no longer knows this invocation", may_run=False))
        digests = dict(zip(underway.ids, underway.digests, strict=False))
        for id in there - self._flights.keys() - self._strays.keys():
            known = self._function_of(digests.get(id, ""))
            if known is not None:
                self._put_stray(id, _Stray(node, known[0], now + known[1] + GRACE_SECONDS))
        return found

    def _lose(self, flight: PendingInvocation, why: str, *, may_run: bool = True) -> Instruction:
        self._end(flight)
        if may_run:
            self._put_stray(flight.id, _Stray(flight.node, flight.recipe.function, flight.until))
        return Lost(flight, why)

    def _end(self, flight: PendingInvocation) -> None:
        del self._flights[flight.id]
        self._release(flight)
        self._less(flight.recipe.function)

    def _release(self, flight: PendingInvocation) -> None:
        """It counts no more as asked of its node."""
        serving = self._fleet.nodes.get(flight.node)
        if serving is not None and not flight.adrift_until:
            left = serving.asked[flight.recipe.digest] - 1
            if left > 0:
                serving.asked[flight.recipe.digest] = left
            else:
                del serving.asked[flight.recipe.digest]

    def _put_stray(self, id: str, stray: _Stray) -> None:
        self._strays[id] = stray
        self._running[stray.function] += 1

    def _drop_stray(self, id: str) -> None:
        stray = self._strays.pop(id, None)
        if stray is not None:
            self._less(stray.function)

    def _less(self, function: str) -> None:
        self._running[function] -= 1
        if not self._running[function]:
            del self._running[function]
