"""The loop of controllers that ask other processes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weft.contracts.clock import SystemClock
from weft.controllers import asking
from weft.controllers.asking import Asking, Later, run_asking
from weft.controllers.cluster.requests import SETTLED_SECONDS, NotBegun, Unanswered, ask_each
from weft.controllers.registry import CONTROLLERS, Needs
from weft.informer.leader_lease import LeadershipLost
from weft.informer.view import make_view
from weft.objects.errors import NotFound, Unavailable


class Leadership:
    def __init__(self) -> None:
        self.clock, self.cache, self.view, self.store = SystemClock(), self, make_view(), None

    def subscribe(self, notice: Callable[[list[Any]], None], _: object) -> Callable[[], None]:
        self.notice = notice
        return lambda: None


class Asked(Asking):
    name = "asked"
    always = ("hangs", "works")

    def __init__(self) -> None:
        self.begun, self.ended = Counter[str](), 0

    def route(self, view: object, change: Any) -> Iterable[str]:
        return [change]

    async def take_turn(self, key: str) -> Later:
        self.begun[key] += 1
        if key == "hangs":
            await asyncio.Event().wait()
        elif self.begun[key] == 2:
            raise ValueError  # a defect
        elif self.begun[key] == 5:
            raise LeadershipLost("over")
        return {key: 0.0}

    async def end(self) -> None:
        self.ended += 1


async def run(controller: Asking, leadership: Any) -> None:
    with pytest.raises(ExceptionGroup) as lost:
        await asyncio.wait_for(run_asking(controller, leadership), 60.0)
    assert lost.group_contains(LeadershipLost)


async def test_who_never_answers_delays_nobody_else_and_a_defect_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "TRY_AGAIN_SECONDS", 0.01)
    controller = Asked()
    await run(controller, Leadership())
    assert (controller.begun, controller.ended) == ({"hangs": 1, "works": 5}, 1)


async def test_a_turn_that_takes_too_long_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "TRY_AGAIN_SECONDS", 0.01)

    class Bounded(Asked):
        turn_seconds = 0.01
        always = ("hangs",)

        async def take_turn(self, key: str) -> Later:
            if self.begun[key] == 2:
                raise LeadershipLost("over")
            return await super().take_turn(key)

    controller = Bounded()
    await run(controller, Leadership())
    assert controller.begun == {"hangs": 2}


async def test_what_concerns_a_key_during_its_turn_gives_it_one_more() -> None:
    leadership = Leadership()

    class Once(Asked):
        always = ("one",)

        async def take_turn(self, key: str) -> Later:
            self.begun[key] += 1
            if self.begun[key] == 1:
                for _ in range(3):
                    leadership.notice([key])
                    await asyncio.sleep(0)
                return {}
            if key == "one":
                return {"other": 0.0}
            raise LeadershipLost("over")

    controller = Once()
    await run(controller, leadership)
    assert controller.begun == {"one": 2, "other": 2}


async def test_of_requests_that_had_no_answer_the_next_reads_are_not_believed() -> None:
    now = [1000.0]
    clock: Any = SimpleNamespace(elapsed=lambda: now[0])
    unanswered = Unanswered(clock)
    assert not unanswered.is_sure("a", now[0]), "the leader before may have sent one"
    now[0] += SETTLED_SECONDS
    unanswered.note("a", Unavailable("silence"))
    unanswered.note("b", NotBegun("not sent"))
    unanswered.note("c", NotFound("an answer"))
    assert [unanswered.is_sure(key, now[0]) for key in "abc"] == [False, True, True]
    unanswered.note("a", NotBegun("not sent either"))
    assert "a" in unanswered
    now[0] += SETTLED_SECONDS
    assert not unanswered.is_sure("a", now[0] - 1.0) and unanswered.is_sure("a", now[0])


def test_once_a_cluster_is_silent_nothing_more_is_sent_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, closed = [], []
    client = SimpleNamespace(close=lambda: closed.append(True))
    monkeypatch.setattr("weft.controllers.cluster.requests.connect_peer", lambda _: client)

    def ask(_: object, subject: str) -> str:
        asked.append(subject)
        if subject == "b":
            raise NotFound("none")
        if subject == "c":
            raise Unavailable("no route")
        return subject.upper()

    link: Any = None
    answers = ask_each(link, "abcd", ask, 60.0, SystemClock())
    assert answers[0] == "A" and isinstance(answers[1], NotFound) and not isinstance(answers[2], NotBegun)
    assert isinstance(answers[3], NotBegun) and answers[3].message == "no route"
    assert (asked, closed) == (["a", "b", "c"], [True])


def test_each_controller_names_what_it_needs() -> None:
    """So that none is made of something that isn't there."""
    leadership: Any = Leadership()
    for registered in CONTROLLERS:
        read = set[str]()

        class Read:
            def __getattr__(self, name: str, read: set[str] = read) -> Any:
                read.add(name)
                return {"images": Path(), "allow_fetch": ()}.get(name)

        registered.make(leadership, Read())
        may_be_absent = {
            name
            for name, default in zip(Needs.__struct_fields__[1:], Needs.__struct_defaults__, strict=True)
            if default is None
        }
        assert set(registered.needs) <= read
        assert read & may_be_absent - {"make_bundle", "unseal", "files"} <= set(registered.needs)
