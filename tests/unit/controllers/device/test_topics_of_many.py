"""Of a project's functions with topics gateways hear of the first 200: the others say so, for as long as they are beyond."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest

from weft.contracts.store import Put
from weft.controllers.device.controller import Devices
from weft.controllers.loop import Plan
from weft.informer.view import Changed, Item, View, make_view
from weft.kinds.function import FUNCTION, FUNCTIONS_OF_DEVICES
from weft.objects.envelope import Envelope, encode_envelope
from weft.objects.identity import object_key
from weft.protocol.devices import MOST_TRIGGERED

LISTS = View.find


class Fabric:
    """A view, and the controller that is told of what changes in it: ``settle`` looks at all changes as one batch."""

    def __init__(self) -> None:
        self.view, self.devices = make_view(), Devices()
        self.changes: list[Changed] = []
        self.planned: set[str] = set()
        self.revision = 0
        self.put("node", "n1", {"devices_project": "shop"}, project=None)

    def put(
        self, kind: str, name: str, spec: object, *, project: str | None = "shop", deleting: float | None = None
    ) -> None:
        made = Envelope(kind=kind, project=project, name=name, uid=f"uid-{name}", deleting_since=deleting)
        made.spec = msgspec.Raw(msgspec.json.encode(spec))
        before = self.view.get(made.key)
        made.conditions = list(before.envelope.conditions) if before is not None else []
        self.store(made.key, encode_envelope(made))

    def store(self, key: str, value: bytes) -> None:
        self.revision += 1
        change = self.view.put(key, value, self.revision)
        assert change is not None
        self.changes.append(change)

    def add(
        self, number: int, *, topics: Iterable[str] = ("weft/shop/+/event",), deleting: float | None = None
    ) -> None:
        self.put("function", name(number), {"topics": list(topics)}, deleting=deleting)

    def drop(self, number: int) -> None:
        change = self.view.drop(key(number))
        assert change is not None
        self.changes.append(change)

    def settle(self) -> None:
        self.planned = set()
        while self.changes:
            changes, self.changes = self.changes, []
            keys = dict.fromkeys(one for change in changes for one in self.devices.route(self.view, change))
            self.planned |= keys.keys()
            plan: Plan = self.devices.plan(self.view, list(keys), 1.0)
            for commit in plan.commits:
                for write in commit.writes:
                    assert isinstance(write, Put)
                    self.store(write.key, write.value)

    def beyond(self) -> set[str]:
        items = self.view.of_kind(FUNCTION.name).values()
        return {one.envelope.name for one in items if any(it.reason == "tooMany" for it in one.envelope.conditions)}


def name(number: int) -> str:
    return f"f-{number:04}"


def key(number: int) -> str:
    return object_key(FUNCTION.name, "shop", name(number))


def names(*numbers: int) -> set[str]:
    return {name(number) for number in numbers}


@pytest.fixture
def fabric() -> Fabric:
    fabric = Fabric()
    for number in range(MOST_TRIGGERED + 3):
        fabric.add(number + 10)
    fabric.settle()
    assert fabric.beyond() == names(MOST_TRIGGERED + 10, MOST_TRIGGERED + 11, MOST_TRIGGERED + 12)
    return fabric


def test_those_beyond_come_in_as_others_go_lose_their_topics_or_are_being_deleted(fabric: Fabric) -> None:
    last = MOST_TRIGGERED + 12
    fabric.drop(10)
    fabric.settle()
    assert fabric.beyond() == names(last - 1, last)
    fabric.add(11, topics=())
    fabric.settle()
    assert fabric.beyond() == names(last)
    fabric.add(12, deleting=5.0)
    fabric.settle()
    assert fabric.beyond() == set()


def test_several_that_go_together_let_as_many_in(fabric: Fabric) -> None:
    for number in (10, 50, 100):
        fabric.drop(number)
    fabric.settle()
    assert fabric.beyond() == set()


def test_one_that_comes_before_the_last_puts_that_out(fabric: Fabric) -> None:
    fabric.add(0)
    fabric.settle()
    assert fabric.beyond() == names(*range(MOST_TRIGGERED + 9, MOST_TRIGGERED + 13))


def test_a_device_wakes_none_that_are_beyond_and_the_functions_are_listed_once_for_a_plan(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabric.put("device", "fridge", {"node": "n1"})
    fabric.settle()
    functions = {one for one in fabric.planned if one.startswith(f"/{FUNCTION.name}/")}
    assert functions == {key(number + 10) for number in range(MOST_TRIGGERED)}
    listed: list[str] = []

    def find(view: View, index: object, word: str) -> list[Item]:
        if index is FUNCTIONS_OF_DEVICES:
            listed.append(word)
        return LISTS(view, index, word)  # type: ignore[arg-type]

    monkeypatch.setattr(View, "find", find)
    fabric.devices.plan(fabric.view, [key(number + 10) for number in range(MOST_TRIGGERED + 3)], 1.0)
    assert listed == ["shop"]
