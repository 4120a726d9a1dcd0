"""The rows of a kind follow the store, and are dropped when nobody has looked at them for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from tests.scenario.controllers_lab import VirtualClock

from weft.api.dashboard.boards import KEPT_SECONDS as SELECTION_SECONDS
from weft.api.dashboard.boards import MOST_KEPT, Boards
from weft.api.dashboard.row import Rendered
from weft.api.dashboard.rows import KEPT_SECONDS
from weft.api.dashboard.selection import Query, Selection
from weft.api.dashboard.sight import Sight
from weft.contracts.store import Delete, Put
from weft.kinds.vm import VM
from weft.objects.envelope import encode_envelope
from weft.store.memory import MemoryStore

ALL = Query(sights=(Sight("vm"),))


def vm(name: str, phase: str = "Running") -> Put:
    envelope = VM.make(name, VM.spec(image="tiny"), 1.0, project="red")
    envelope.status = msgspec.Raw(msgspec.json.encode({"phase": phase}))
    return Put(envelope.key, encode_envelope(envelope))


class Lab:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.store = MemoryStore(self.clock)
        self.boards = Boards(self.store, self.clock)

    async def until(self, holds: Callable[[], bool]) -> None:
        for _ in range(1000):
            if holds():
                return
            await asyncio.sleep(0)
        raise AssertionError("it never held")


def test_rows_follow_the_store() -> None:
    async def run() -> None:
        lab = Lab()
        await lab.store.commit([vm("a"), vm("b")])
        selection = await lab.boards.select(ALL)
        assert [row.name for row in selection.rows] == ["a", "b"]
        await lab.store.commit([vm("c", "Failed"), Delete("/vm/red/a")])
        await lab.until(lambda: [row.name for row in selection.rows] == ["b", "c"])
        assert selection.phases == {"Running": 1, "Failed": 1} and selection.cursor.endswith(":2")
        assert await lab.boards.select(ALL) is selection, "all who ask the same share it"

    asyncio.run(run())


def test_an_object_that_can_t_be_shown_hides_no_other() -> None:
    async def run() -> None:
        lab = Lab()
        await lab.store.commit([vm("a"), Put("/vm/red/broken", b'{"name": 5}')])
        assert [row.name for row in (await lab.boards.select(ALL)).rows] == ["a"]

    asyncio.run(run())


def test_a_kind_is_dropped_five_minutes_after_its_last_viewer() -> None:
    async def run() -> None:
        lab = Lab()
        await lab.store.commit([vm("a")])
        selection = await lab.boards.select(ALL)
        rows, viewer = await lab.boards.rows.find(VM), asyncio.Event()
        selection.viewers.add(viewer)
        lab.clock.advance(10 * KEPT_SECONDS)
        lab.boards.sweep()
        assert await lab.boards.select(ALL) is selection, "somebody looks at it"
        selection.viewers.discard(viewer)
        lab.boards.sweep()
        lab.clock.advance(SELECTION_SECONDS + 1)
        lab.boards.sweep()
        assert not rows.listeners and await lab.boards.rows.find(VM) is rows
        lab.clock.advance(KEPT_SECONDS + 1)
        lab.boards.sweep()
        await lab.until(rows.task.cancelled)
        assert await lab.boards.rows.find(VM) is not rows

    asyncio.run(run())


def test_what_a_page_has_just_chosen_follows_the_store_though_many_tabs_were_closed_a_moment_ago() -> None:
    async def run() -> None:
        lab = Lab()
        await lab.store.commit([vm("a")])
        asked = [Query(sights=(Sight("vm"),), where=phase) for phase in ("", "Running", "Failed")]
        for query in asked[:2]:
            await lab.boards.select(query)
        seen, viewer = list[Selection](), asyncio.Event()
        for number in range(MOST_KEPT - 4):
            seen.append(await lab.boards.select(Query(sights=(Sight("vm"),), words=(str(number),))))
            seen[-1].viewers.add(viewer)
        for one in seen:
            one.viewers.discard(viewer)
        lab.clock.advance(1.0)
        parts = [await lab.boards.select(query) for query in asked]
        await lab.store.commit([vm("b")])
        await lab.until(lambda: [len(part.rows) for part in parts] == [2, 2, 0])

    asyncio.run(run())


def test_a_fault_in_what_one_viewer_shows_keeps_no_row_from_the_others() -> None:
    async def run() -> None:
        lab = Lab()
        await lab.store.commit([vm("a")])
        faults = [ValueError("once")]

        def fail(old: Rendered | None, new: Rendered | None) -> None:
            if faults:
                raise faults.pop()

        rows = await lab.boards.rows.find(VM)
        rows.listeners.append(fail)
        selection = await lab.boards.select(ALL)
        await lab.store.commit([vm("b"), vm("c")])
        await lab.until(lambda: [row.name for row in selection.rows] == ["a", "b", "c"])

    asyncio.run(run())


def test_selections_that_nobody_looks_at_are_bounded() -> None:
    async def run() -> None:
        lab = Lab()
        await lab.store.commit([vm("a")])
        for number in range(3 * MOST_KEPT):
            await lab.boards.select(Query(sights=(Sight("vm"),), words=(str(number),)))
        assert len((await lab.boards.rows.find(VM)).listeners) <= MOST_KEPT + 1

    asyncio.run(run())
