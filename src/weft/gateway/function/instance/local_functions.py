"""Says to each node which functions it serves at an address of its own, by their field ``local_nodes``: with the recipe that serves
now, and again before the tickets for its parts expire. Woken by changes, and by agents that connect."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from weft.contracts.clock import Clock
from weft.contracts.driver.function import LATEST
from weft.gateway.function.definition.catalogue import Catalogue
from weft.gateway.function.definition.recipe import with_tickets
from weft.gateway.function.instance.agents import DEFINE_AGAIN_SECONDS, Agents
from weft.informer.view import Changed, Item
from weft.kinds.fields.taint import is_tolerated
from weft.kinds.function import FunctionSpec
from weft.kinds.node import NodeSpec
from weft.objects.errors import InvalidInput, NotFound, Unavailable
from weft.protocol.invocations import LocalFunction, ServeLocally

log = logging.getLogger("weft.gateway.functions")
CHECK_SECONDS = 2.0
MOST_OF_A_NODE = 64


class LocalFunctions:
    """``notice`` gets the view's changes; ``send`` is called every CHECK_SECONDS, once the view is read."""

    def __init__(self, catalogue: Catalogue, agents: Agents, clock: Clock, ticket_key: bytes) -> None:
        self._catalogue, self._agents, self._clock, self._ticket_key = catalogue, agents, clock, ticket_key
        self._functions: dict[str, Item] = {}  # by uid, those that name nodes
        self._nodes: dict[str, Item] = {}  # by uid
        self._stale = False

    def notice(self, changes: Sequence[Changed]) -> None:
        for change in changes:
            if change.kind == "node":
                found = self._nodes
            elif change.kind == "function":
                found = self._functions
            else:
                self._stale = self._stale or bool(self._functions)  # an image or a network may make one ready
                continue
            if change.new is None:
                gone = found.pop(change.item.uid, None)
                self._stale = self._stale or gone is not None
            elif change.kind == "node" or (not change.new.deleting and change.new.spec(FunctionSpec).local_nodes):
                found[change.new.uid] = change.new
                self._stale = self._stale or change.kind == "function"
            elif found.pop(change.new.uid, None) is not None:
                self._stale = True

    def send(self) -> None:
        """Send each connected node its list, if that changed or the node may not have it."""
        now, stale = self._clock.elapsed(), self._stale
        self._stale = False
        for uid, channel in list(self._agents.channels.items()):
            is_old = channel.listed_at is None or now - channel.listed_at >= DEFINE_AGAIN_SECONDS
            if not stale and not is_old:
                continue
            node = self._nodes.get(uid)
            if node is None:
                continue
            listed = self._list(node)
            if listed == channel.listed and not is_old:
                continue
            first = channel.listed_at is None
            channel.listed, channel.listed_at = listed, now
            try:
                channel.send(self._sign(listed, uid))
            except InvalidInput as problem:
                log.warning("node %s: its own functions: %s", self._agents.name_of(uid), problem.message)
            if listed.functions and first:
                log.info("node %s serves %d functions itself", self._agents.name_of(uid), len(listed.functions))

    def _list(self, node: Item) -> ServeLocally:
        name, taints = node.envelope.name, node.spec(NodeSpec).taints
        found, unready = list[LocalFunction](), list[str]()
        for item in sorted(self._functions.values(), key=lambda one: one.key):
            spec = item.spec(FunctionSpec)
            if name not in spec.local_nodes or not may_serve(taints, spec.tolerate):
                continue
            try:
                function = self._catalogue.find(item.envelope.project or "", item.envelope.name)
                recipe = self._catalogue.resolve(function, LATEST).recipe
            except (NotFound, Unavailable):
                unready.append(item.uid)
                continue
            if len(found) < MOST_OF_A_NODE:
                found.append(LocalFunction(item.uid, recipe, spec.local_secret or "", spec.max_concurrent))
            else:
                log.warning("node %s serves at most %d functions itself: not %s", name, MOST_OF_A_NODE, function.what)
        return ServeLocally(found, unready)

    def _sign(self, listed: ServeLocally, node_uid: str) -> ServeLocally:
        now = self._clock.now()
        signed = [
            LocalFunction(one.uid, with_tickets(one.recipe, self._ticket_key, node_uid, now), one.secret, one.most)
            for one in listed.functions
        ]
        return ServeLocally(signed, listed.unready)


def may_serve(taints: Collection[str], tolerate: Collection[str]) -> bool:
    """Pure. Whether a function with these tolerations may be kept at a node with these taints."""
    return all(is_tolerated(taint, tolerate) for taint in taints)
