"""What is asked of the history for deployments: an expression that takes long holds no verdict up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from weft.contracts.history import Labels, Span
from weft.controllers.deployment.observer import LOOK_SECONDS, SLOW_SECONDS, Observer
from weft.kinds.deployment import DeploymentSpec
from weft.kinds.fields.deployment.scaling import Autoscale
from weft.kinds.fields.deployment.status import DeploymentStatus
from weft.objects.errors import TimedOut


class _View:
    """Deployments, by uid: canary is in a step whose requests are judged, the others are scaled by an expression."""

    def __init__(self, *scaled: str) -> None:
        self.items = {
            "canary": self._make("canary", None, DeploymentStatus(stage="test", step_since=100.0, revision=2))
        }
        for name in scaled:
            self.items[name] = self._make(name, Autoscale(max=5, metric=name, target=1.0), DeploymentStatus())

    def _make(self, name: str, scale: Autoscale | None, status: DeploymentStatus) -> Any:
        spec = DeploymentSpec(template={}, autoscale=scale)
        parts: dict[type, Any] = {DeploymentSpec: spec, DeploymentStatus: status}
        envelope = SimpleNamespace(project="default", name=name)
        return SimpleNamespace(uid=name, key=name, envelope=envelope, spec=parts.get, status=parts.get)

    def of_kind(self, kind: str) -> dict[str, Any]:
        return self.items

    def find(self, index: Any, word: str) -> list[Any]:
        return []


class _History:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.hold = asyncio.Event()

    async def read(self, query: str, span: Span, project: str = "") -> Mapping[Labels, Any]:
        self.asked.append(query.partition("{")[0])
        if query == "hangs":
            await self.hold.wait()
        if query == "slow":
            raise TimedOut("the database for metrics did not answer within 10 s")
        return {}


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_verdict_is_asked_for_while_an_expression_hangs() -> None:
    view: Any = _View("hangs")
    history = _History()
    observer = Observer(history)
    for now in (101.0, 102.0, 103.0):
        observer.refresh(view, now)
        await settle()
    assert history.asked.count("hangs") == 1
    assert history.asked.count("weft_service_requests_total") == 3
    assert observer.find(view.items["canary"]).since == 100.0
    history.hold.set()
    await settle()


@pytest.mark.parametrize(("expression", "pause"), [("quick", LOOK_SECONDS), ("slow", SLOW_SECONDS)])
async def test_an_expression_that_took_too_long_is_asked_again_much_later(expression: str, pause: float) -> None:
    view: Any = _View(expression)
    history = _History()
    observer = Observer(history)
    for now in (200.0, 200.0 + pause - 1.0, 200.0 + pause):
        observer.refresh(view, now)
        await settle()
    assert history.asked.count(expression) == 2
    trouble = observer.find(view.items[expression]).figure_trouble
    assert ("did not answer" in trouble) == (expression == "slow")
