"""A node that runs functions for several gateways: each gets what it asked for, and what one asked for that is away."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.controllers_lab import VirtualClock

from weft.agent.function.artifacts import Artifacts
from weft.agent.function.invocations import AWAY_SECONDS, Functions
from weft.agent.function.pool import FreeCapacity
from weft.contracts.driver.function import Recipe
from weft.protocol.invocations import (
    Acknowledge,
    Adrift,
    Define,
    Drop,
    FromAgent,
    InstanceState,
    InstanceStateChange,
    InvocationAnswer,
    Invoke,
    Keep,
    Prepare,
    Prepared,
    Printed,
    Underway,
    Written,
)


class Copy:
    def __init__(self) -> None:
        self.id, self.recipe, self.over = "one", Recipe(digest="d", function="uid", project="p", name="f"), True


class Node:
    """A node with gateways ``a`` and ``b``, whose instances do what the test says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = VirtualClock()
        parts = Artifacts(str(folder), "n1", None, None, set)  # type: ignore[arg-type]
        self.functions = Functions({}, parts, lambda: FreeCapacity(4.0, 1 << 30), self.clock)
        self.functions.isolations["process"] = ""
        self.begun: list[str] = []
        self.kept: list[tuple[float, int]] = []
        self.dropped: list[str] = []
        self.heard: dict[str, list[FromAgent]] = {}
        instances = self.functions.instances
        monkeypatch.setattr(instances, "serve", lambda call, recipe: self.begun.append(call.id))
        monkeypatch.setattr(instances, "prepare", lambda request, recipe: None)
        monkeypatch.setattr(instances, "keep", lambda digest, *how: self.kept.append(how))
        monkeypatch.setattr(instances, "drop", self.dropped.append)

    def connect(self, place: str) -> list[FromAgent]:
        heard = self.heard[place] = []
        self.functions.connect(heard.append, place)
        self.functions.take(Define(Copy().recipe), place)
        return heard

    def lose(self, place: str) -> None:
        for gateway in (self.functions._gateways[place],):
            assert gateway.send is not None
            self.functions.disconnect(gateway.send)

    def invoke(self, place: str, id: str) -> None:
        self.functions.take(Invoke(id, "d", b"{}", 1.0), place)

    def answer(self, id: str) -> None:
        self.functions.instances.on_answer(Copy(), InvocationAnswer(id, b"{}"))  # type: ignore[arg-type]

    def prints(self, text: bytes, id: str = "") -> None:
        self.functions.instances.on_printed(Copy(), text, id)  # type: ignore[arg-type]

    def said(self, place: str) -> list[tuple[str, Any]]:
        """What a gateway heard but for states."""
        words = {
            InvocationAnswer: lambda one: one.id,
            Prepared: lambda one: one.id,
            Printed: lambda one: one.text,
            Underway: lambda one: sorted(one.ids),
            Adrift: lambda one: sorted(one.ids),
        }
        states = (InstanceState, InstanceStateChange)
        return [(type(one).__name__, words[type(one)](one)) for one in self.heard[place] if not isinstance(one, states)]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


async def test_each_gateway_gets_answers_output_and_preparations_that_it_asked_for(node: Node) -> None:
    node.prints(b"before\n")
    node.connect("a")
    node.connect("b")
    node.invoke("a", "1")
    node.invoke("b", "2")
    node.functions.take(Prepare("p", "d"), "b")
    node.prints(b"of 2\n", "2")
    node.answer("2")
    node.answer("1")
    node.functions._on_message(Prepared("p", False))
    node.functions._on_message(Prepared("p", True))
    assert node.said("a") == [("Underway", []), ("Printed", b"before\n"), ("InvocationAnswer", "1")]
    assert node.said("b") == [
        ("Underway", []),
        *(("Printed", b"of 2\n"), ("InvocationAnswer", "2"), ("Prepared", "p"), ("Prepared", "p")),
    ]
    for place in ("a", "b"):
        assert any(isinstance(one, InstanceState) for one in node.heard[place])


async def test_a_gateway_learns_of_the_invocations_of_one_that_is_lost_and_that_one_still_has_them(node: Node) -> None:
    node.connect("a")
    node.connect("b")
    for id in ("1", "2"):
        node.invoke("a", id)
    node.answer("1")
    node.lose("a")
    assert node.said("b") == [("Underway", []), ("Adrift", ["1", "2"]), ("InvocationAnswer", "1")]
    node.functions.take(Acknowledge("1"), "b")
    node.invoke("b", "2")  # its caller came here
    node.answer("2")
    assert node.begun == ["1", "2"] and node.said("b")[-1] == ("InvocationAnswer", "2")
    node.connect("c")
    assert node.said("c")[0] == ("Underway", ["1", "2"])
    node.connect("a")  # only its connection was lost
    assert node.said("a") == [("Underway", ["1", "2"]), ("InvocationAnswer", "1"), ("InvocationAnswer", "2")]


async def test_what_a_gateway_left_that_stays_away_goes_to_another_one(node: Node) -> None:
    node.connect("a")
    node.connect("b")
    node.functions.take(Keep("d", 300.0, 2), "a")
    node.functions.take(Keep("d", 60.0, 1), "b")
    assert node.kept[-1] == (300.0, 2)  # as the one that wants more
    node.invoke("a", "1")
    node.lose("a")
    node.prints(b"of 1\n", "1")
    assert ("Printed", b"of 1\n") not in node.said("b")
    node.clock.advance(AWAY_SECONDS)
    node.functions._drop_gone()
    assert node.said("b")[-1] == ("Printed", b"of 1\n") and node.kept[-1] == (60.0, 1)
    node.functions.take(Written(2**62), "b")
    assert ("Printed", b"of 1\n") not in [*node.connect("b"), *node.said("b")]


async def test_a_recipe_is_dropped_when_the_last_gateway_drops_it(node: Node) -> None:
    for place in ("a", "b"):
        node.connect(place)
    node.functions.take(Drop("d"), "a")
    assert node.dropped == []
    node.functions.take(Drop("d"), "b")
    assert node.dropped == ["d"]
    await asyncio.sleep(0)
