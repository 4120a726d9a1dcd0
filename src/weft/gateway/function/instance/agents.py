"""The connected agents: their order for a version, and the messages that they get about recipes.

A ranking is kept until something that it depends on changes. An agent gets a recipe, with tickets for its parts, before any
other message about it, and again before those tickets expire.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.function_placement import FunctionPlacement, PlacementQuery, Ranking
from weft.gateway.function.definition.catalogue import Catalogue, Version
from weft.gateway.function.definition.recipe import data_at, data_of, with_tickets
from weft.gateway.function.instance.channel import Channel
from weft.gateway.function.instance.fleet import Fleet
from weft.protocol.invocations import Define, InstanceState, Keep, ToAgent
from weft.trust.tickets import BLOB_LIFETIME_SECONDS

DEFINE_AGAIN_SECONDS = BLOB_LIFETIME_SECONDS / 2
RANKINGS_KEPT = 4096


class Ranked(msgspec.Struct):
    """A ranking, as of ``epoch``."""

    epoch: int
    ranking: Ranking
    places: dict[str, int]  # of its nodes, by uid


class Agents:
    """``fleet`` has their reports, ``channels`` their connections, by uid; ``name_of`` gives a node's name by uid, ``keep_of`` how
    instances of a recipe are kept."""

    def __init__(
        self,
        catalogue: Catalogue,
        placing: FunctionPlacement,
        clock: Clock,
        ticket_key: bytes,
        name_of: Callable[[str], str],
        keep_of: Callable[[str], Keep | None],
    ) -> None:
        self._catalogue, self._placing, self._clock = catalogue, placing, clock
        self._ticket_key, self.name_of, self._keep_of = ticket_key, name_of, keep_of
        self.fleet = Fleet()
        self.channels: dict[str, Channel] = {}
        self._ranked: dict[tuple[str, str], Ranked] = {}  # by digest and caller

    # --- the order of the agents ---------------------------------------------------------------------------------------

    def rank(self, version: Version, caller: str = "") -> Ranking:
        """The nodes that may run the version now, best first."""
        return self._placing.rank(PlacementQuery(version.recipe.project, version.code, data_of(version.recipe), caller))

    def find_ranked(self, version: Version, caller: str = "") -> Ranked:
        """The same from the cache, while nothing that it depends on has changed."""
        key, epoch = (version.recipe.digest, caller), self._placing.epoch
        ranked = self._ranked.get(key)
        if ranked is None or ranked.epoch != epoch:
            ranking = self.rank(version, caller)
            places = {node: place for place, node in enumerate(ranking.nodes)}
            if len(self._ranked) >= RANKINGS_KEPT:
                self._ranked.clear()
            ranked = self._ranked[key] = Ranked(self._placing.epoch, ranking, places)
        return ranked

    def best_of(self, digest: str) -> str | None:
        """The node where instances of the recipe should be ready: the first that would be asked."""
        version = self._catalogue.version_of(digest)
        return None if version is None else self.fleet.choose(version.recipe, self.find_ranked(version).places, ())

    def stand(self, node: str, standing: InstanceState) -> None:
        """A node reported its state: update the facts that placement uses."""
        before = self.fleet.nodes[node].standing.recipes
        changed = self.fleet.stand(node, standing)
        if before != standing.recipes:
            self._placing.hold(node, data_at(standing.recipes, self._catalogue.recipe))
        if changed:
            self.use(node)

    def use(self, node: str) -> None:
        """The instances on that node have changed, or more were requested."""
        self._placing.use(node, self.fleet.cpu(node, self._catalogue.recipe))

    def leave(self, node: str) -> None:
        """Its connection is lost."""
        del self.channels[node]
        self._placing.use(node, 0.0)

    def forget(self, digest: str) -> None:
        """Drop a recipe that nothing uses any more."""
        for key in [key for key in self._ranked if key[0] == digest]:
            del self._ranked[key]
        self._catalogue.forget(digest)

    # --- messages to the agents ----------------------------------------------------------------------------------------

    def send(self, node: str, digest: str, message: ToAgent) -> bool:
        """Send a message about a recipe to a node, after the recipe itself if the node needs it; False if it isn't connected."""
        channel, recipe = self.channels.get(node), self._catalogue.recipe(digest)
        if channel is None or recipe is None:
            return False
        now = self._clock.elapsed()
        if now - channel.defined.get(digest, -DEFINE_AGAIN_SECONDS) >= DEFINE_AGAIN_SECONDS:
            is_new = digest not in channel.defined
            channel.defined[digest] = now
            channel.send(Define(with_tickets(recipe, self._ticket_key, node, self._clock.now())))
            keep = self._keep_of(digest) if is_new else None
            if keep is not None:
                channel.send(keep)
        channel.send(message)
        return True

    def keep(self, digest: str, keep: Keep, node: str | None) -> None:
        """Send ``keep`` to all nodes that have the recipe; with none ready to all but ``node``."""
        for uid, channel in self.channels.items():
            if uid == node:
                self.send(uid, digest, keep)
            elif digest in channel.defined:
                channel.send(msgspec.structs.replace(keep, ready=0))
