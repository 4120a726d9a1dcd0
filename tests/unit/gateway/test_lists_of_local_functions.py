"""Which functions a node is told to serve itself: the oldest ones that it may, and anew as soon as that changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.scenario.controllers_lab import VirtualClock

from weft.contracts.driver.function import Recipe
from weft.gateway.function.instance import local_functions
from weft.gateway.function.instance.local_functions import LocalFunctions
from weft.informer.view import Changed, Item
from weft.kinds.function import FunctionSpec
from weft.kinds.node import NodeSpec
from weft.objects.envelope import Envelope
from weft.objects.errors import Unavailable
from weft.protocol.invocations import ServeLocally


class Channel:
    def __init__(self) -> None:
        self.listed: ServeLocally | None = None
        self.listed_at: float | None = None
        self.sent: list[ServeLocally] = []

    def send(self, message: ServeLocally) -> None:
        self.sent.append(message)


class Gateway:
    """Its agents by uid (n1-uid is node n1's), and the functions whose code isn't ready, by name."""

    def __init__(self) -> None:
        self.channels = {"n1-uid": Channel(), "n2-uid": Channel()}
        self.unready: set[str] = set()
        self.resolved = 0
        agents: Any = SimpleNamespace(channels=self.channels, name_of=lambda uid: uid)
        catalogue: Any = self
        self.lists = LocalFunctions(catalogue, agents, VirtualClock(), b"k" * 32)
        self.old: dict[str, Item] = {}
        for name in ("n1", "n2"):
            self.put("node", name, NodeSpec())
        self.lists.send()
        for channel in self.channels.values():
            channel.sent.clear()

    def find(self, project: str, name: str) -> Any:
        return name

    def resolve(self, function: str, qualifier: str) -> Any:
        self.resolved += 1
        if function in self.unready:
            raise Unavailable("its code is being prepared")
        return SimpleNamespace(recipe=Recipe(digest=function, function="f", project="p", name=function))

    def put(self, kind: str, name: str, spec: Any, project: str | None = None, made_at: float = 0.0) -> None:
        item = Item(Envelope(kind=kind, name=name, uid=f"{name}-uid", project=project, created_at=made_at), spec=spec)
        self.lists.notice([Changed(item.key, self.old.get(item.key), item)])
        self.old[item.key] = item

    def serve(self, name: str, *nodes: str, project: str = "shop", made_at: float = 0.0, secret: str = "door") -> None:
        self.put("function", name, FunctionSpec(local_nodes=list(nodes), local_secret=secret), project, made_at)

    def remove(self, kind: str, name: str, project: str | None) -> None:
        (key,) = [one for one, item in self.old.items() if item.envelope.kind == kind and item.envelope.name == name]
        self.lists.notice([Changed(key, self.old.pop(key), None)])

    def send(self) -> dict[str, list[ServeLocally]]:
        """What each node is told now."""
        self.lists.send()
        told = {uid: list(channel.sent) for uid, channel in self.channels.items()}
        for channel in self.channels.values():
            channel.sent.clear()
        return told


def test_the_oldest_functions_stay_and_the_node_hears_which_do_not_fit(monkeypatch: Any) -> None:
    monkeypatch.setattr(local_functions, "MOST_OF_A_NODE", 2)
    gateway = Gateway()
    gateway.serve("label", "n1", project="shop", made_at=2.0)
    gateway.serve("price", "n1", project="shop", made_at=1.0)
    gateway.serve("first-by-name", "n1", project="another", made_at=3.0)
    (listed,) = gateway.send()["n1-uid"]
    assert [one.recipe.name for one in listed.functions] == ["price", "label"]
    assert [(ref.kind, ref.project, ref.name) for ref in listed.beyond] == [("function", "another", "first-by-name")]
    gateway.unready.add("price")
    gateway.serve("price", "n1", project="shop", made_at=1.0, secret="gate")
    (listed,) = gateway.send()["n1-uid"]
    assert (listed.unready, listed.secrets) == (["price-uid"], {"price-uid": "gate"})
    assert [one.recipe.name for one in listed.functions] == ["label"] and len(listed.beyond) == 1
    gateway.remove("function", "label", "shop")
    (listed,) = gateway.send()["n1-uid"]
    assert [one.recipe.name for one in listed.functions] == ["first-by-name"] and not listed.beyond


def test_a_taint_takes_effect_with_the_next_look_and_only_its_node_is_looked_at() -> None:
    gateway = Gateway()
    gateway.serve("label", "n1", "n2")
    assert [len(lists) for lists in gateway.send().values()] == [1, 1]
    gateway.resolved = 0
    gateway.put("node", "n2", NodeSpec())  # a heartbeat
    assert gateway.send() == {"n1-uid": [], "n2-uid": []} and gateway.resolved == 0
    gateway.put("node", "n2", NodeSpec(taints=["counter"]))
    assert gateway.send() == {"n1-uid": [], "n2-uid": [ServeLocally()]} and gateway.resolved == 0
    gateway.put("node", "n2", NodeSpec())
    told = gateway.send()
    assert not told["n1-uid"] and [one.recipe.name for one in told["n2-uid"][0].functions] == ["label"]
    gateway.resolved = 0
    gateway.serve("label", "n1")
    assert gateway.send() == {"n1-uid": [], "n2-uid": [ServeLocally()]} and gateway.resolved == 1
