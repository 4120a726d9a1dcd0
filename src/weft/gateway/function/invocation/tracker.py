"""Invocations under way, as a state machine: events in, instructions out. Pure.

An invocation goes to one node at a time, and to the next only after the one before refused it: so it runs at most once. When the
connection to its node is lost it waits; the node reports, connected again, what it still has, and the others are lost. A lost
invocation counts against its function's concurrency for as long as it may still run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from weft.contracts.driver.function import Recipe
from weft.gateway.function.definition.recipe import Owner
from weft.gateway.function.instance.fleet import Fleet
from weft.protocol.invocations import (
    Adrift,
    FromAgent,
    InstanceState,
    InstanceStateChange,
    InvocationAnswer,
    InvocationRefused,
    Invoke,
    Prepared,
    Printed,
    Underway,
)

GRACE_SECONDS = 45.0  # beyond an invocation's own time: a start (30), and the messages' time
FETCH_SECONDS = 180.0  # more where the node must fetch code and base first
ADRIFT_SECONDS = 30.0  # a node may be away so long before its invocations are taken for lost
MOST_ASKED = 16  # nodes, for one invocation


class PendingInvocation(msgspec.Struct, eq=False):
    """One invocation under way."""

    recipe: Recipe
    invoke: Invoke
    ranking: Mapping[str, int]  # see ``Fleet.choose``
    until: float  # it is lost if no answer comes by then
    node: str = ""
    cold: bool = False  # no instance seemed to be idle
    fetches: bool = False  # a node that was asked hadn't prepared it
    refusals: dict[str, InvocationRefused] = msgspec.field(default_factory=dict)  # by node
    adrift_until: float = 0.0  # 0: its node is connected

    @property
    def id(self) -> str:
        return self.invoke.id


class SendInvoke(msgspec.Struct, frozen=True):
    """Have ``node`` run it."""

    node: str
    pending: PendingInvocation


class SendAck(msgspec.Struct, frozen=True):
    """Acknowledge to ``node`` that this answer has arrived."""

    node: str
    id: str
    bytes: int = 0  # that the node keeps of it until then


class Done(msgspec.Struct, frozen=True):
    pending: PendingInvocation
    answer: InvocationAnswer


class LateResult(msgspec.Struct, frozen=True):
    """An answer for which nobody waits any more."""

    node: str
    answer: InvocationAnswer


class NoNode(msgspec.Struct, frozen=True):
    """The end of an invocation that no node accepted; each that was asked gave its reason."""

    pending: PendingInvocation


class Lost(msgspec.Struct, frozen=True):
    """It may have run; ``why`` for people."""

    pending: PendingInvocation
    why: str


Instruction = SendInvoke | SendAck | Done | LateResult | NoNode | Lost


class _Stray(msgspec.Struct, frozen=True):
    """An invocation that may run on a node while nobody waits for it."""

    node: str
    function: str
    project: str
    until: float


class InvocationTracker:
    """``function_of`` gives the owner of a recipe by digest; None for an unknown recipe."""

    def __init__(self, fleet: Fleet, function_of: Callable[[str], Owner | None]) -> None:
        self._fleet = fleet
        self._function_of = function_of
        self._pending: dict[str, PendingInvocation] = {}
        self._strays: dict[str, _Stray] = {}
        self._running: Counter[str] = Counter()  # by function
        self._running_in: Counter[str] = Counter()  # by project

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, id: str) -> bool:
        return id in self._pending

    def running(self, function: str) -> int:
        """How many invocations of a function (uid) are under way, or may be."""
        return self._running[function]

    def running_in(self, project: str) -> int:
        """How many of all functions of a project."""
        return self._running_in[project]

    def is_stray(self, id: str) -> bool:
        """Whether it may run on a node while nobody waits for it."""
        return id in self._strays

    def begin(self, pending: PendingInvocation) -> list[Instruction]:
        self._pending[pending.id] = pending
        self._count(pending.recipe, 1)
        return [self._ask(pending)]

    def connect(self, node: str) -> None:
        """``node`` is connected; it gets no invocation before it has reported what is under way there."""
        self._fleet.come(node)

    def disconnect(self, node: str, now: float) -> None:
        self._fleet.go(node)
        for pending in self._pending.values():
            if pending.node == node and not pending.adrift_until:
                pending.adrift_until = now + ADRIFT_SECONDS

    def receive(self, node: str, message: FromAgent, now: float) -> list[Instruction]:
        """Receive a message of ``node``. Returns what follows from it; ``Prepared`` and ``Printed`` need nothing here."""
        match message:
            case InvocationAnswer():
                return self._answered(node, message)
            case InvocationRefused():
                return self._refused(node, message)
            case Underway():
                return self._reconcile(node, message, now)
            case Adrift():
                self._put_strays(node, message, now)
                return []
            case InstanceState() | InstanceStateChange() | Prepared() | Printed():
                return []

    def expire(self, now: float) -> list[Instruction]:
        """Lose what had no answer for too long."""
        for id, stray in list(self._strays.items()):
            if stray.until <= now:
                self._drop_stray(id)
        found: list[Instruction] = []
        for pending in list(self._pending.values()):
            if pending.until <= now:
                found.append(self._lose(pending, "the node didn't answer in time"))
            elif pending.adrift_until and pending.adrift_until <= now:
                found.append(self._lose(pending, "the connection to the node was lost"))
        return found

    def _ask(self, pending: PendingInvocation) -> Instruction:
        node = None
        if len(pending.refusals) < MOST_ASKED:
            node = self._fleet.choose(pending.recipe, pending.ranking, pending.refusals)
        if node is None:
            self._end(pending)
            return NoNode(pending)
        serving = self._fleet.nodes[node]
        pending.node, pending.cold = node, serving.idle(pending.recipe.digest) <= 0
        if not pending.fetches and pending.cold and pending.recipe.digest not in serving.prepared:
            pending.fetches = True
            pending.until += FETCH_SECONDS
        serving.asked[pending.recipe.digest] += 1
        return SendInvoke(node, pending)

    def _answered(self, node: str, answer: InvocationAnswer) -> list[Instruction]:
        ack = SendAck(node, answer.id, len(answer.payload))
        pending = self._pending.get(answer.id)
        if pending is None or pending.node != node:
            self._drop_stray(answer.id)
            return [LateResult(node, answer), ack]
        self._end(pending)
        return [Done(pending, answer), ack]

    def _refused(self, node: str, refused: InvocationRefused) -> list[Instruction]:
        pending = self._pending.get(refused.id)
        if pending is None or pending.node != node:
            self._drop_stray(refused.id)
            return []
        self._release(pending)
        pending.refusals[node] = refused
        return [self._ask(pending)]

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
        for pending in list(self._pending.values()):
            if pending.node != node:
                continue
            if pending.id in there:
                pending.adrift_until = 0.0
                serving.asked[pending.recipe.digest] += 1
            else:
                found.append(self._lose(pending, "the node no longer knows this invocation", may_run=False))
        self._put_strays(node, underway, now)
        return found

    def _put_strays(self, node: str, there: Underway | Adrift, now: float) -> None:
        """Note what runs on ``node`` and was begun through another gateway, or by this one before it was restarted."""
        for id, digest in zip(there.ids, there.digests, strict=False):
            known = self._function_of(digest)
            if known is not None and id not in self._pending and id not in self._strays:
                self._put_stray(id, _Stray(node, known.function, known.project, now + known.seconds + GRACE_SECONDS))

    def _lose(self, pending: PendingInvocation, why: str, *, may_run: bool = True) -> Instruction:
        self._end(pending)
        if may_run:
            self._put_stray(
                pending.id, _Stray(pending.node, pending.recipe.function, pending.recipe.project, pending.until)
            )
        return Lost(pending, why)

    def _end(self, pending: PendingInvocation) -> None:
        del self._pending[pending.id]
        self._release(pending)
        self._count(pending.recipe, -1)

    def _release(self, pending: PendingInvocation) -> None:
        """It doesn't count as one of its node any more."""
        serving = self._fleet.nodes.get(pending.node)
        if serving is not None and not pending.adrift_until:
            left = serving.asked[pending.recipe.digest] - 1
            if left > 0:
                serving.asked[pending.recipe.digest] = left
            else:
                del serving.asked[pending.recipe.digest]

    def _put_stray(self, id: str, stray: _Stray) -> None:
        self._strays[id] = stray
        self._count(stray, 1)

    def _drop_stray(self, id: str) -> None:
        stray = self._strays.pop(id, None)
        if stray is not None:
            self._count(stray, -1)

    def _count(self, one: Recipe | _Stray, more: int) -> None:
        for counter, key in ((self._running, one.function), (self._running_in, one.project)):
            counter[key] += more
            if not counter[key]:
                del counter[key]
