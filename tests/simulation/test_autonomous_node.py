"""A node that is away within its autonomy: its guests go on, the fabric gives nothing of it to others, and it comes back."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.simulation import virtual_loop
from tests.simulation.calm import MOST_STEPS, pass_calmly
from tests.simulation.fabric import Fabric
from tests.simulation.fate import Fate
from tests.simulation.node import Node
from tests.simulation.people import MIB, VMS
from tests.simulation.simulation import simulate
from tests.simulation.test_returning_node import HERE, ask, boot_ids, node_phase, phase, places, read, until
from weft.agent.server.outbox import FILE
from weft.kinds.allocation import AllocationSpec
from weft.kinds.node import NodeStatus
from weft.objects.envelope import decode_part

AUTONOMY_SECONDS = 1800.0
READY_SECONDS = 20.0  # after the return


async def run_guests(fabric: Fabric, autonomy: float = AUTONOMY_SECONDS) -> dict[str, str]:
    await fabric.set_up()
    await ask(fabric, "PATCH", f"/v1/nodes/{HERE}", {"spec": {"autonomy_seconds": autonomy}})
    for name in ("ledger", "books"):
        spec = {"image": "tiny", "memory": 256 * MIB, "node": HERE}
        await ask(fabric, "POST", VMS, {"kind": "vm", "name": name, "spec": spec})
    await until(lambda: phase(fabric, "ledger") == phase(fabric, "books") == "Running", "they run")
    return boot_ids(fabric)


def list_outbox(node: Node) -> set[int]:
    """The numbers of the events that wait there."""
    with contextlib.closing(sqlite3.connect(Path(node.host.state_dir) / FILE)) as outbox:
        return {number for (number,) in outbox.execute("SELECT n FROM event")}


def find_place(fabric: Fabric, name: str) -> str:
    """The uid of its allocation."""
    items = fabric.ledger.notes.objects("allocation")
    return next(item.uid for item in items if decode_part(item.spec, AllocationSpec).workload.name == name)


async def come_back(fabric: Fabric) -> float:
    """Seconds until the node and its guests are as before."""
    began = fabric.clock.elapsed()
    fabric.fate.cut_off.discard(HERE)
    await until(lambda: node_phase(fabric) == "Ready", "it is ready")
    await until(lambda: phase(fabric, "ledger") == phase(fabric, "books") == "Running", "they are known to run")
    return fabric.clock.elapsed() - began


def test_a_node_comes_back_within_its_autonomy_with_all_guests_as_they_were() -> None:
    async def run(fabric: Fabric) -> None:
        before = await run_guests(fabric)
        books = find_place(fabric, "books")
        here = next(node for node in fabric.nodes if node.name == HERE)
        fabric.fate.cut_off.add(HERE)
        await until(lambda: node_phase(fabric) == "Autonomous", "it is away")
        await until(lambda: phase(fabric, "ledger") == "Unknown", "nobody knows")
        await asyncio.sleep(AUTONOMY_SECONDS / 3)
        here.kill_guest(next(guest for (_, guest), uid in fabric.witness.alive.items() if uid == books))
        await until(lambda: len(boot_ids(fabric)) == 2 and boot_ids(fabric)[books] != before[books], "it runs again")
        after = boot_ids(fabric)
        assert set(before.items()) - set(after.items()) == {(books, before[books])}, "the other one went on"
        here.kill()
        await asyncio.sleep(60.0)
        here.start()
        with contextlib.suppress(AssertionError):
            await ask(fabric, "DELETE", f"/v1/nodes/{HERE}?force=1")
            raise RuntimeError("it can't be given up")
        await asyncio.sleep(AUTONOMY_SECONDS / 3)
        assert node_phase(fabric) == "Autonomous" and boot_ids(fabric) == after
        assert len(places(fabric, "ledger")) == len(places(fabric, "books")) == 1, "nothing is placed elsewhere"
        waiting = list_outbox(here)
        assert len(waiting) >= 2, "it ended, and began again"
        assert await come_back(fabric) < READY_SECONDS
        assert boot_ids(fabric) == after and not fabric.broken, fabric.witness.violations
        await until(lambda: not list_outbox(here), "the server has all")
        came = fabric.server.api.journal.taken
        assert waiting <= {number for source, _, number in came if source == here.uid}
        assert set(came.values()) == {1}, "none came twice"
        node = read(fabric, "node", HERE)
        assert node is not None and decode_part(node.status, NodeStatus).lost_at is None

    with simulate(3, Fate(3, 0, {})) as fabric:
        fabric.loop.run_until_complete(run(fabric))


def note_answered(line: Any) -> list[str]:
    """What the node asks from now on and is answered, in order."""
    answered: list[str] = []
    exchange, begin = line.exchange, line.begin

    async def noted_exchange(method: str, path: str, *more: Any) -> Any:
        answer = await exchange(method, path, *more)
        answered.append(f"{method} {path}")
        return answer

    async def noted_begin(path: str) -> Any:
        stream = await begin(path)
        answered.append(f"GET {path}")
        return stream

    line.exchange, line.begin = noted_exchange, noted_begin
    return answered


def test_a_node_that_comes_back_reports_before_it_reads() -> None:
    async def run(fabric: Fabric) -> None:
        await run_guests(fabric)
        fabric.fate.cut_off.add(HERE)
        await asyncio.sleep(120.0)
        answered = note_answered(fabric.lines[HERE])
        await come_back(fabric)
        await until(lambda: bool(answered), "the report that made it Ready is answered")
        assert answered[0] == f"POST /v1/nodes/{HERE}:report"
        await until(lambda: any(one.startswith("GET /v1/allocations?") for one in answered), "then it reads")
        assert not fabric.broken, fabric.witness.violations

    for seed in (5, 6, 7):
        with simulate(seed, Fate(seed, 0, {})) as fabric:
            fabric.loop.run_until_complete(run(fabric))


def test_a_node_whose_autonomy_has_ended_is_as_any_silent_one_and_still_loses_no_guest() -> None:
    async def run(fabric: Fabric) -> None:
        before = await run_guests(fabric)
        fabric.fate.cut_off.add(HERE)
        await until(lambda: node_phase(fabric) == "Autonomous", "it is away")
        await asyncio.sleep(AUTONOMY_SECONDS)
        await until(lambda: node_phase(fabric) == "NotReady", "its autonomy has ended")
        assert await come_back(fabric) < READY_SECONDS
        assert boot_ids(fabric) == before and not fabric.broken, fabric.witness.violations

    with simulate(4, Fate(4, 0, {})) as fabric:
        fabric.loop.run_until_complete(run(fabric))


@contextlib.contextmanager
def full_disk(node: Node) -> Iterator[list[str]]:
    """Nothing can be written durably in the node's folder; the names of the files that were refused."""
    refused: list[str] = []
    opens = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(node.host.state_dir):
            refused.append(Path(path).name)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opens(path, flags, *more, **named)

    with mock.patch.object(os, "open", refuse):
        yield refused


def test_a_full_disk_keeps_no_guest_from_going_on_and_what_ended_runs_again_once_there_is_space() -> None:
    async def run(fabric: Fabric) -> None:
        before = await run_guests(fabric)
        here, books = next(node for node in fabric.nodes if node.name == HERE), find_place(fabric, "books")
        fabric.fate.cut_off.add(HERE)
        await until(lambda: node_phase(fabric) == "Autonomous", "it is away")
        with full_disk(here) as refused:
            here.kill_guest(next(guest for (_, guest), uid in fabric.witness.alive.items() if uid == books))
            await asyncio.sleep(300.0)
            assert refused and here.up
        await until(lambda: len(boot_ids(fabric)) == 2, "it runs again")
        assert await come_back(fabric) < READY_SECONDS
        after = boot_ids(fabric)
        assert {uid for uid in before if after.get(uid) != before[uid]} == {books} and len(after) == 2
        assert not fabric.broken, fabric.witness.violations

    with simulate(8, Fate(8, 0, {})) as fabric:
        fabric.loop.run_until_complete(run(fabric))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("event", ["agent killed", "power cut", "full disk", "VM deleted", "clock 1970"])
def test_72_hours_alone_lose_and_double_no_guest_and_no_event(
    event: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtual_loop, "MOST_STEPS", MOST_STEPS)
    half = 36 * 3600.0

    async def run(fabric: Fabric) -> None:
        before = await run_guests(fabric, 2 * half + 600.0)
        here, books = next(node for node in fabric.nodes if node.name == HERE), find_place(fabric, "books")
        fabric.fate.cut_off.add(HERE)
        await pass_calmly(half)
        with contextlib.ExitStack() as hour:
            if event == "VM deleted":
                await ask(fabric, "DELETE", f"{VMS}/books")
            elif event == "clock 1970":
                here.clock.jump_seconds = -here.clock.now()
            elif event == "agent killed":
                here.kill()
            elif event == "full disk":
                hour.enter_context(full_disk(here))
            else:
                here.lose_power()
            if not here.up:
                await asyncio.sleep(60.0)
                here.start()
            await asyncio.sleep(60.0)
            here.kill_guest(next(guest for (_, guest), uid in fabric.witness.alive.items() if uid == books))
            await asyncio.sleep(3600.0)
        await pass_calmly(half - 3600.0)
        assert node_phase(fabric) == "Autonomous" and len(boot_ids(fabric)) == 2
        waiting, began = list_outbox(here), fabric.clock.elapsed()
        assert len(waiting) >= 2
        fabric.fate.cut_off.discard(HERE)
        await until(lambda: node_phase(fabric) == "Ready", "it is ready")
        assert fabric.clock.elapsed() - began < READY_SECONDS + 10.0  # a report may be lost for 20 s here, not 10
        gone = {books} if event == "VM deleted" else set()
        await until(lambda: boot_ids(fabric).keys() == before.keys() - gone, "what was deleted ends, the rest runs")
        await until(lambda: not list_outbox(here), "the server has all")
        came = fabric.server.api.journal.taken
        assert waiting <= {number for source, _, number in came if source == here.uid} and set(came.values()) == {1}
        calm = before.keys() - {books}
        if event != "power cut":
            assert {uid: boot_ids(fabric)[uid] for uid in calm} == {uid: before[uid] for uid in calm}
        assert not fabric.broken, fabric.witness.violations

    with simulate(seed, Fate(seed, 0, {})) as fabric:
        fabric.loop.run_until_complete(run(fabric))
