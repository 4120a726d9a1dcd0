"""Where invocations go: by the serverless score over the cluster as it is, counting what instances take and where code lies."""

from __future__ import annotations

from typing import Any

from weft.contracts.function_placement import PlacementQuery
from weft.informer.view import Item, View
from weft.kinds.node import NodeActions, NodeReport, NodeSpec
from weft.kinds.parts.function_code import FunctionCode
from weft.objects.envelope import Envelope, merge_part
from weft.scheduler.function.placing import KINDS, FunctionPlacing

GIB = 1024**3


class World:
    """Nodes as they are in the store, and the places made of them."""

    def __init__(self) -> None:
        self.view = View(KINDS)
        self.places = FunctionPlacing(self.view)

    def node(
        self,
        name: str,
        *,
        cpu: float = 8,
        memory: int = 16,
        phase: str = "Ready",
        spec: Any = None,
        cordoned: bool = False,
        **labels: str,
    ) -> None:
        envelope = Envelope(kind="node", name=name, uid=f"uid-{name}", labels=labels)
        envelope.spec = merge_part(envelope.spec, NodeSpec(**(spec or {})))
        envelope.actions = merge_part(envelope.actions, NodeActions(cordoned=cordoned))
        report = NodeReport(version="0", address="", cpu=cpu, memory=memory * GIB, disk=100 * GIB)
        envelope.report = merge_part(envelope.report, report)
        envelope.status = merge_part(envelope.status, {"phase": phase})
        self.places.notice([self.view.put_item(envelope.key, Item(envelope))])

    def drop(self, name: str) -> None:
        changed = self.view.drop(f"/node/-/{name}")
        assert changed is not None
        self.places.notice([changed])

    def rank(self, caller: str = "", data: tuple[tuple[str, int], ...] = (), **code: Any) -> list[str]:
        ranking = self.places.rank(PlacementQuery("default", FunctionCode(**{"memory": GIB, **code}), data, caller))
        return [uid.removeprefix("uid-") for uid in ranking.nodes]

    def why(self, **code: Any) -> tuple[str, str, str]:
        ranking = self.places.rank(PlacementQuery("default", FunctionCode(**{"memory": GIB, **code})))
        assert not ranking.nodes
        return ranking.reason, ranking.message, ranking.nearest


def test_what_instances_take_counts_and_refuses_nobody() -> None:
    world = World()
    for name in ("a", "b", "c"):
        world.node(name)
    assert world.rank() == ["a", "b", "c"]
    before = world.places.epoch
    world.places.use("uid-a", 4.0)
    assert world.rank() == ["b", "c", "a"] and world.places.epoch > before
    world.places.use("uid-a", 400.0)  # given away many times over
    assert world.rank() == ["b", "c", "a"]
    before = world.places.epoch
    world.places.use("uid-a", 400.0)
    assert world.places.epoch == before
    world.places.use("uid-a", 0.0)
    assert world.rank() == ["a", "b", "c"]


def test_where_its_code_lies_is_better_and_the_most_loaded_are_last() -> None:
    world = World()
    for name in ("a", "b", "c"):
        world.node(name)
    data = (("recipe:d", 1000),)
    world.places.hold("uid-c", frozenset({"recipe:d"}))
    assert world.rank(data=data) == ["c", "a", "b"]
    assert world.rank(data=(("recipe:other", 1000),)) == ["a", "b", "c"]
    world.places.hold("uid-c", frozenset())
    assert world.rank(data=data) == ["a", "b", "c"]


def test_a_constraint_is_hard_a_preference_soft_and_taints_hold() -> None:
    world = World()
    world.node("a", zone="x")
    world.node("b", zone="y")
    world.node("c", zone="y", spec={"taints": ["gpu"]})
    assert world.rank(constraint="zone=y") == ["b"]
    assert world.rank(prefer=["zone=y"]) == ["b", "a"]
    assert world.rank(prefer=["zone=y"], tolerate=["gpu"])[:2] == ["b", "c"]
    reason, message, _ = world.why(constraint="zone=z")
    assert reason == "noAvailableAgents" and "not meeting its constraint" in message


def test_a_refusal_names_what_lacks_and_what_nearly_fits() -> None:
    world = World()
    world.node("a", memory=1)
    world.node("b", memory=2, phase="Lost")
    reason, message, nearest = world.why(memory=3 * GIB)
    assert reason == "insufficientResources" and "largest free is 1.0 GiB" in message and "1 not ready" in message
    assert nearest == "a, if you ask for at most --memory 1024M"
    assert World().why()[1] == "there are no nodes"


def test_a_node_that_goes_and_comes_is_counted_once() -> None:
    world = World()
    world.node("a")
    world.node("b")
    world.places.use("uid-b", 2.0)
    world.drop("a")
    assert world.rank() == ["b"]
    world.node("a")
    assert world.rank() == ["a", "b"]
    world.node("a", cordoned=True)
    assert world.rank() == ["b"]


def test_a_strategy_of_ones_own_is_refused_and_a_shipped_one_decides() -> None:
    world = World()
    world.node("a", cpu=8, memory=16)
    world.node("b", cpu=8, memory=4)
    assert world.rank(strategy="best_fit:1") == ["b", "a"]
    reason, message, _ = world.why(strategy="file:/srv/mine.py")
    assert reason == "invalidStrategy" and "weft's strategies" in message
    assert world.why(strategy="@gone")[0] == "policyNotFound"


def test_an_unknown_constraint_object_is_named() -> None:
    world = World()
    world.node("a")
    reason, message, _ = world.why(constraint="@fast")
    assert reason == "constraintNotReady" and 'constraint "fast" does not exist' in message
