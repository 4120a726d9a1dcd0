"""The nodes that serve invocations, as the gateway knows them: the instances that they report, and what it asked them for. Pure.

Reports are a moment old: they give the order of the nodes, and each node decides for itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

from weft.contracts.driver.function import Recipe
from weft.protocol.invocations import InstanceState


class Serving:
    """One node. ``open`` once it has reported what is under way there; ``congested`` while it is slow to accept messages."""

    __slots__ = ("asked", "congested", "instances", "open", "prepared", "standing")

    def __init__(self) -> None:
        self.open = False
        self.congested = False
        self.standing = InstanceState()
        self.instances: dict[str, int] = {}  # not those that are paused ahead of demand, by digest
        self.prepared: frozenset[str] = frozenset()  # digests
        self.asked: Counter[str] = Counter()  # our invocations there, by digest

    def idle(self, digest: str) -> int:
        """How many instances are probably idle there."""
        return self.instances.get(digest, 0) - self.asked[digest]

    def ready(self, digest: str) -> int:
        count = self.standing.counts.get(digest)
        return 0 if count is None else count.ready

    def capacity(self, recipe: Recipe) -> int:
        """How many more instances of it the node can probably run."""
        by_memory = self.standing.free_memory // max(1, recipe.memory)
        return max(0, min(by_memory, int(self.standing.free_cpu / max(recipe.cpu, 0.001) + 1e-9)))

    def runs(self, isolation: str) -> bool:
        return self.standing.isolations.get(isolation, "-") == ""


class Fleet:
    """The nodes by uid."""

    def __init__(self) -> None:
        self.nodes: dict[str, Serving] = {}
        self._with: dict[str, set[str]] = {}  # nodes that have instances, by digest

    def come(self, node: str) -> Serving:
        self.go(node)
        self.nodes[node] = serving = Serving()
        return serving

    def go(self, node: str) -> None:
        serving = self.nodes.pop(node, None)
        for digest in () if serving is None else serving.standing.counts:
            self._without(digest, node)

    def stand(self, node: str, standing: InstanceState) -> bool:
        """Store a node's report; whether its instances have changed."""
        serving = self.nodes.get(node)
        if serving is None:
            return False
        before, old = serving.standing.counts, serving.instances
        if standing.recipes is not serving.standing.recipes:
            serving.prepared = frozenset(standing.recipes)
        serving.standing = standing
        serving.instances = {digest: count.busy + count.idle for digest, count in standing.counts.items()}
        for digest in standing.counts.keys() - before.keys():
            self._with.setdefault(digest, set()).add(node)
        for digest in before.keys() - standing.counts.keys():
            self._without(digest, node)
        return old != serving.instances

    def choose(self, recipe: Recipe, ranking: Mapping[str, int], asked: Collection[str]) -> str | None:
        """The node to ask next: the best with an idle instance, or else with one that is ready ahead of demand, or else the best
        that runs such instances, preferably with capacity. A recipe with a machine of its own goes to a node that has prepared it,
        if one has capacity: no score is worth the seconds of a boot. ``ranking``: places by uid, in their order."""
        digest = recipe.digest
        warm = ready = None
        for node in self._with.get(digest, ()):
            place = ranking.get(node)
            if place is None or node in asked or not self._is_open(node):
                continue
            serving = self.nodes[node]
            if serving.idle(digest) > 0:
                warm = min(warm, (place, node)) if warm is not None else (place, node)
            elif serving.ready(digest) > 0 and serving.standing.free_memory >= recipe.memory:
                ready = min(ready, (place, node)) if ready is not None else (place, node)
        if (found := warm or ready) is not None:
            return found[1]
        roomy = cramped = None
        for node in ranking:
            if node in asked or not self._is_open(node) or not self.nodes[node].runs(recipe.isolation):
                continue
            serving = self.nodes[node]
            if serving.standing.free_memory < recipe.memory:
                cramped = cramped or node
            elif recipe.isolation != "vm" or digest in serving.prepared:
                return node
            else:
                roomy = roomy or node
        return roomy or cramped

    def count_capacity(self, recipe: Recipe) -> int:
        """How many more instances of it the nodes that have prepared it can take."""
        return sum(
            serving.capacity(recipe)
            for node, serving in self.nodes.items()
            if self._is_open(node) and recipe.digest in serving.prepared
        )

    def choose_unprepared(self, recipe: Recipe, ranking: Sequence[str], but: Collection[str]) -> str | None:
        """The best node with capacity that hasn't prepared the recipe yet."""
        for node in ranking:
            if node in but or not self._is_open(node):
                continue
            serving = self.nodes[node]
            if recipe.digest not in serving.prepared and serving.runs(recipe.isolation) and serving.capacity(recipe):
                return node
        return None

    def cpu(self, node: str, find: Callable[[str], Recipe | None]) -> float:
        """How many cores instances take there, with those that are being started; ``find`` gives a recipe by digest."""
        serving, cpu = self.nodes.get(node), 0.0
        if serving is not None:
            for digest in serving.instances.keys() | serving.asked.keys():
                if (recipe := find(digest)) is not None:
                    cpu += recipe.cpu * max(serving.instances.get(digest, 0), serving.asked[digest])
        return cpu

    def why_not(self, recipe: Recipe, names: Mapping[str, str], ranking: Sequence[str]) -> str:
        """Why no node in ``ranking`` can be asked, for people."""
        reasons = []
        for node in ranking[:5]:
            serving, name = self.nodes.get(node), names.get(node, node)
            if serving is None or not serving.open:
                reasons.append(f"{name} serves no functions, or isn't connected")
            elif not serving.runs(recipe.isolation):
                why = serving.standing.isolations.get(recipe.isolation, "the node doesn't report that it can")
                reasons.append(f"{name} can't run isolation {recipe.isolation}: {why}")
            elif serving.congested:
                reasons.append(f"{name} is slow to accept invocations")
        more = f"; and {len(ranking) - 5} more" if len(ranking) > 5 else ""
        return "; ".join(reasons) + more

    def _is_open(self, node: str) -> bool:
        serving = self.nodes.get(node)
        return serving is not None and serving.open and not serving.congested

    def _without(self, digest: str, node: str) -> None:
        nodes = self._with.get(digest)
        if nodes is not None:
            nodes.discard(node)
            if not nodes:
                del self._with[digest]
