"""Has the next best node make a function's snapshot before the nodes that have one are full, so that no caller waits for a boot.

Only for functions that run in machines of their own, which take seconds to boot the first time, and only while they are
invoked. A snapshot takes disk, no memory. Woken by the clock, and by the agents' answers.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.function import Recipe
from weft.gateway.function.definition.catalogue import Catalogue
from weft.gateway.function.instance.agents import Agents
from weft.protocol.invocations import InvocationRefused, Prepare, Prepared

log = logging.getLogger("weft.gateway.functions")
CHECK_SECONDS = 2.0
MOST_AT_ONCE = 4  # snapshots that are being made, on all nodes: each is a boot
PATIENCE_SECONDS = 600.0  # code, base or image may have to come first
PAUSE_SECONDS = 60.0  # before a node that couldn't is asked again


class Demand(msgspec.Struct, frozen=True):
    """A recipe in demand, and how many more instances of it should fit on the nodes that have prepared it."""

    recipe: Recipe
    more: int


class _Asked(msgspec.Struct, frozen=True):
    id: str  # "": the node couldn't, and isn't asked for a while
    until: float


class SnapshotSpreader:
    """``spread`` recipes in demand; ``on_prepared`` and ``on_disconnect`` follow the agents."""

    def __init__(self, catalogue: Catalogue, agents: Agents, clock: Clock) -> None:
        self._catalogue, self._agents, self._clock = catalogue, agents, clock
        self._asked: dict[tuple[str, str], _Asked] = {}  # by digest and node

    def spread(self, demands: Iterable[Demand]) -> None:
        now = self._clock.elapsed()
        self._asked = {key: asked for key, asked in self._asked.items() if asked.until > now}
        at_work = {digest for (digest, _), asked in self._asked.items() if asked.id}
        for demand in demands:
            if len(at_work) >= MOST_AT_ONCE:
                return
            digest = demand.recipe.digest
            if digest not in at_work and self._spread_one(demand, now):
                at_work.add(digest)

    def on_prepared(self, node: str, message: Prepared | InvocationRefused) -> None:
        for (digest, asked_node), asked in self._asked.items():
            if asked_node != node or asked.id != message.id or (isinstance(message, Prepared) and not message.done):
                continue
            failed = message.message if isinstance(message, InvocationRefused) or message.error_type else ""
            self._asked[digest, node] = _Asked("", self._clock.elapsed() + (PAUSE_SECONDS if failed else 0.0))
            if failed:
                log.info("%s ahead of demand: %s", digest[:12], failed)
            return

    def on_disconnect(self, node: str) -> None:
        self._asked = {key: asked for key, asked in self._asked.items() if key[1] != node}

    def _spread_one(self, demand: Demand, now: float) -> bool:
        recipe, fleet = demand.recipe, self._agents.fleet
        version = self._catalogue.version_of(recipe.digest)
        if version is None or fleet.count_capacity(recipe) >= demand.more:
            return False
        resting = {node for digest, node in self._asked if digest == recipe.digest}
        node = fleet.choose_unprepared(recipe, self._agents.rank(version).nodes, resting)
        id = str(uuid.uuid4())
        if node is None or not self._agents.send(node, recipe.digest, Prepare(id, recipe.digest)):
            return False
        self._asked[recipe.digest, node] = _Asked(id, now + PATIENCE_SECONDS)
        return True
