"""What a node tells of what it has prepared and of what instances print, and what it lets go of: of this agent's making and of the
one's before it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from tests.scenario.controllers_lab import VirtualClock

from weft.agent.function.artifacts import Artifacts
from weft.agent.function.invocations import Functions
from weft.agent.function.pending_output import MOST_BYTES, MOST_OF_ONE_BYTES
from weft.agent.function.pool import FreeCapacity
from weft.contracts.clock import SystemClock
from weft.contracts.driver.function import Instance, Isolation, Ready, Recipe, Roots
from weft.objects.errors import DriverFailed
from weft.protocol.invocations import (
    Acknowledge,
    Drop,
    FromAgent,
    InstanceState,
    InstanceStateChange,
    InvocationAnswer,
    Invoke,
    Printed,
    Written,
)


class Copier:
    """A driver with templates: ``kept`` are those that it has."""

    isolation: Isolation = "vm"

    def __init__(self, *kept: str) -> None:
        self.kept = set(kept)
        self.changed: Callable[[], None] = lambda: None

    async def probe(self) -> str:
        return ""

    async def recover(self) -> int:
        return 0

    async def start(self, id: str, recipe: Recipe, roots: Roots) -> Instance:
        raise AssertionError("nobody asked for one")

    async def forget(self, digest: str) -> None:
        self.kept.discard(digest)
        self.changed()

    async def close(self) -> None: ...

    async def prepare(self, recipe: Recipe, roots: Roots) -> None: ...

    async def keep_ready(self, recipe: Recipe, roots: Roots, count: int) -> int:
        return 0

    def count_ready(self) -> dict[str, Ready]:
        return {"old": Ready(2, 80 << 20)}

    def bound_ready(self, memory: int) -> None: ...

    def templates(self) -> set[str]:
        return self.kept

    def follow(self, changed: Callable[[], None]) -> None:
        self.changed = changed


class Copy:
    """An instance, as its keeper knows it."""

    def __init__(self, digest: str) -> None:
        self.id, self.recipe, self.over = "one", Recipe(digest=digest, function="uid", project="p", name="f"), True


class Teller:
    """A node, of which a gateway is told on a connection after the other; time is what a test says."""

    def __init__(self, folder: Path) -> None:
        self.clock = VirtualClock()
        parts = Artifacts(str(folder), "n1", None, None, set)  # type: ignore[arg-type]
        self.functions = Functions({}, parts, lambda: FreeCapacity(4.0, 1 << 30), self.clock)

    def prints(self, text: bytes, digest: str = "d", id: str = "1") -> None:
        self.functions.instances.on_printed(Copy(digest), text, id)  # type: ignore[arg-type]

    def connects(self) -> list[FromAgent]:
        """What it says first to a gateway, to which what it says later is added."""
        heard: list[FromAgent] = []
        self.send = heard.append
        self.functions.connect(self.send, "g1")
        return heard


def printed(heard: list[FromAgent]) -> list[Printed]:
    return [one for one in heard if isinstance(one, Printed)]


async def test_what_was_printed_is_told_on_each_connection_until_it_was_written_down(tmp_path: Path) -> None:
    node = Teller(tmp_path)
    first = node.connects()
    node.prints(b"heard\n")
    node.prints(b"on its way when the gateway was killed\n")
    heard, lost = printed(first)
    node.functions.take(Written(heard.serial), "g1")
    node.functions.disconnect(node.send)
    node.clock.advance(3.0)
    node.prints(b"said to nobody\n")
    node.functions.instances.on_answer(Copy("d"), InvocationAnswer("1", b"{}"))  # type: ignore[arg-type]
    node.clock.advance(2.0)
    second = node.connects()
    assert [(one.text, one.age) for one in printed(second)] == [(lost.text, 5.0), (b"said to nobody\n", 2.0)]
    assert [type(one) for one in second].index(InvocationAnswer) > max(
        n for n, one in enumerate(second) if isinstance(one, Printed)
    )
    node.functions.take(Written(printed(second)[-1].serial), "g1")
    node.functions.take(Acknowledge("1"), "g1")
    assert printed(node.connects()) == []


async def test_one_that_prints_without_end_while_no_gateway_takes_it_costs_no_other_its_lines(tmp_path: Path) -> None:
    node = Teller(tmp_path)
    for _ in range(100):
        node.prints(b"x" * 65536, "loud")
    for _ in range(20_000):
        node.prints(b"\n", "restless")
    node.prints(b"a word\n", "quiet")
    told = printed(node.connects())
    assert told[-1].text == b"a word\n"
    assert sum(len(one.text) for one in told if one.digest == "loud") <= MOST_OF_ONE_BYTES
    assert len(told) < 20_000
    for number in range(100):
        node.prints(b"x" * 65536, f"many-{number}")
    assert sum(len(one.text) for one in printed(node.connects())) <= MOST_BYTES
    node.functions.take(Written(printed(node.connects())[-1].serial), "g1")
    node.prints(b"room again\n", "loud")
    assert [one.text for one in printed(node.connects())] == [b"room again\n"]


async def test_templates_of_an_agent_before_are_told_at_once_and_go_when_nothing_names_them(tmp_path: Path) -> None:
    driver, heard = Copier("old", "gone"), list[FromAgent]()
    parts = Artifacts(str(tmp_path), "n1", None, None, set)  # type: ignore[arg-type]
    functions = Functions({"vm": driver}, parts, lambda: FreeCapacity(4.0, 1 << 30), SystemClock())
    await functions.start()
    functions.connect(heard.append, "g1")
    (standing,) = (one for one in heard if isinstance(one, InstanceState))
    assert standing.recipes == ["gone", "old"]
    counted = functions.count()
    assert (counted.busy, counted.ready, counted.memory) == (0, 2, 80 << 20)
    functions.take(Drop("gone"), "g1")  # this agent was never told of it
    async with asyncio.timeout(60):
        while driver.kept != {"old"} or not any(
            isinstance(one, InstanceStateChange) and one.dropped == ["gone"] for one in heard
        ):
            await asyncio.sleep(0.01)
    await functions.close()


async def test_a_start_that_nobody_waits_for_any_more_begins_nothing_and_its_instance_is_idle(tmp_path: Path) -> None:
    node = Teller(tmp_path)
    instances = node.functions.instances
    coming: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def ensure(recipe: Recipe, show: Callable[[str], None]) -> Roots:
        await coming
        raise DriverFailed("the code is lost", reason="lost")

    instances._parts.ensure = ensure  # type: ignore[method-assign]
    node.functions.isolations["process"] = ""
    node.functions.learn_local(Recipe(digest="d", function="uid", project="p", name="f", memory=1, cpu=1.0))
    waiting = node.functions.run_here(Invoke("call", "d", b"{}", 1.0))
    assert not node.functions.give_up("another") and not waiting.done()
    assert node.functions.give_up("call") and not node.functions.give_up("call")
    assert not instances._waiting and not node.functions._here and len(instances.pool.members) == 1
    coming.set_result(None)
    while instances.pool.members:
        await asyncio.sleep(0)
    assert not waiting.done(), "what became of it is nobody's news any more"
