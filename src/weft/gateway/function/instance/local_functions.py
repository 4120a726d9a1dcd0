"""Says to each node which functions it serves at an address of its own, by their field ``local_nodes``: with the recipe that serves
now, and again before the tickets for its parts expire. Woken by changes, and by agents that connect."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Sequence

import msgspec

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
from weft.objects.identity import Ref
from weft.protocol.invocations import LocalFunction, ServeLocally

log = logging.getLogger("weft.gateway.functions")
CHECK_SECONDS = 2.0
MOST_OF_A_NODE = 64  # the oldest ones, so that no new function pushes one out
MOST_BEYOND = 64  # of those that don't fit, the oldest ones, which the node says in events


class LocalFunctions:
    """``notice`` gets the view's changes; ``send`` is called every CHECK_SECONDS, once the view is read."""

    def __init__(self, catalogue: Catalogue, agents: Agents, clock: Clock, ticket_key: bytes) -> None:
        self._catalogue, self._agents, self._clock, self._ticket_key = catalogue, agents, clock, ticket_key
        self._functions: dict[str, Item] = {}  # by uid, those that name nodes
        self._of_node: dict[str, dict[str, Item]] = defaultdict(dict)  # the same, by the names of their nodes
        self._nodes: dict[str, Item] = {}  # by uid
        self._stale = False  # any node's list may have changed
        self._stale_nodes: set[str] = set()  # names: theirs may have

    def notice(self, changes: Sequence[Changed]) -> None:
        for change in changes:
            if change.kind == "node":
                self._notice_node(change)
            elif change.kind == "function":
                self._notice_function(change)
            else:
                self._stale = self._stale or bool(self._functions)  # an image or a network may make one ready

    def _notice_node(self, change: Changed) -> None:
        new, old = change.new, self._nodes.get(change.item.uid)
        if new is None:
            self._nodes.pop(change.item.uid, None)
            return
        self._nodes[new.uid] = new
        if old is None or old.envelope.name != new.envelope.name or _taints_of(old) != _taints_of(new):
            self._stale_nodes.add(new.envelope.name)

    def _notice_function(self, change: Changed) -> None:
        uid, new = change.item.uid, change.new
        if (old := self._functions.pop(uid, None)) is not None:
            for name in old.spec(FunctionSpec).local_nodes:
                self._stale_nodes.add(name)
                if (found := self._of_node.get(name)) is not None:
                    found.pop(uid, None)
                    if not found:
                        del self._of_node[name]
        if new is not None and not new.deleting and new.spec(FunctionSpec).local_nodes:
            self._functions[uid] = new
            for name in new.spec(FunctionSpec).local_nodes:
                self._stale_nodes.add(name)
                self._of_node[name][uid] = new

    def send(self) -> None:
        """Send each connected node its list, if that changed or the node may not have it."""
        now, stale, stale_nodes = self._clock.elapsed(), self._stale, self._stale_nodes
        self._stale, self._stale_nodes = False, set()
        for uid, channel in list(self._agents.channels.items()):
            is_old = channel.listed_at is None or now - channel.listed_at >= DEFINE_AGAIN_SECONDS
            node = self._nodes.get(uid)
            if node is None or not (stale or is_old or node.envelope.name in stale_nodes):
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
        name, taints = node.envelope.name, _taints_of(node)
        found, unready, secrets, beyond = list[LocalFunction](), list[str](), dict[str, str](), list[Ref]()
        for item in sorted(self._of_node.get(name, {}).values(), key=lambda one: (one.envelope.created_at, one.key)):
            spec = item.spec(FunctionSpec)
            if not may_serve(taints, spec.tolerate):
                continue
            if len(found) + len(unready) >= MOST_OF_A_NODE:
                beyond.append(item.envelope.ref)
                continue
            try:
                function = self._catalogue.find(item.envelope.project or "", item.envelope.name)
                recipe = self._catalogue.resolve(function, LATEST).recipe
            except (NotFound, Unavailable):
                unready.append(item.uid)
                secrets[item.uid] = spec.local_secret or ""
                continue
            found.append(LocalFunction(item.uid, recipe, spec.local_secret or "", spec.max_concurrent))
        return ServeLocally(found, unready, secrets, beyond[:MOST_BEYOND])

    def _sign(self, listed: ServeLocally, node_uid: str) -> ServeLocally:
        now = self._clock.now()
        signed = [
            LocalFunction(one.uid, with_tickets(one.recipe, self._ticket_key, node_uid, now), one.secret, one.most)
            for one in listed.functions
        ]
        return msgspec.structs.replace(listed, functions=signed)


def may_serve(taints: Collection[str], tolerate: Collection[str]) -> bool:
    """Pure. Whether a function with these tolerations may be kept at a node with these taints."""
    return all(is_tolerated(taint, tolerate) for taint in taints)


def _taints_of(node: Item) -> list[str]:
    return node.spec(NodeSpec).taints
