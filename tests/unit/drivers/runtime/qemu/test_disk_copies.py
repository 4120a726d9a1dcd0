"""Whatever QEMU leaves unanswered while a guest moves with its disks, its driver leads the move to its end: a guest would stand
still for good otherwise."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from weft.contracts.driver.migration import MigrationEvent, MigrationSettings
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.migration import disk_copies
from weft.drivers.runtime.qemu.qmp import QmpError
from weft.drivers.runtime.qemu.record import MigrationRecord
from weft.objects.errors import Unavailable

SETTINGS = MigrationSettings(copied_disks=("root",))


class Machine:
    """As much of QEMU as leads a move: it came here by one before. The ``silent``-th command is not answered; ``hears``: it is
    done all the same."""

    def __init__(self, silent: int, hears: bool) -> None:
        self.silent, self.hears, self.asked = silent, hears, 0
        self.job, self.migration, self.runs = "ready", "completed", "running"
        self.sent = self.closed_whole = 0

    async def execute(self, command: str, **arguments: Any) -> Any:
        self.asked += 1
        answered = self.asked != self.silent
        if answered or self.hears:
            said = self.do(command, arguments)
        if not answered:
            raise Unavailable(f"QEMU doesn't answer {command}")
        return said

    def do(self, command: str, arguments: dict[str, Any]) -> Any:
        match command:
            case "query-jobs":
                return [{"id": "copy-root", "status": self.job}]
            case "query-migrate":
                return {"status": self.migration}
            case "query-status":
                return {"status": self.runs}
            case "migrate":
                if self.migration == "pre-switchover":
                    raise QmpError(command, {"desc": "there is one in progress"})
                self.migration, self.runs, self.sent = "pre-switchover", "finish-migrate", self.sent + 1
            case "block-job-cancel":
                if self.job != "ready":
                    raise QmpError(command, {"desc": "it ends already"})
                self.job = "concluded"
            case "migrate-continue":
                assert self.job == "concluded", "the target's disk isn't whole"
                if self.migration != "pre-switchover":
                    raise QmpError(command, {"desc": "it doesn't wait"})
                self.migration, self.runs = "completed", "postmigrate"
            case "migrate_cancel":
                raise AssertionError("nothing was wrong")
        return {}


class Moving:
    """As much of a guest as is needed to lead its move."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.ended = machine, asyncio.Event()
        self.copy_errors: list[str] = []
        self.record = SimpleNamespace(
            migration=MigrationRecord("key", "source", SETTINGS, sending=False), plan=SimpleNamespace(name="web")
        )
        self.paths = SimpleNamespace(migration_socket=lambda name: f"/run/{name}")
        self.clock = SimpleNamespace(sleep=lambda seconds: asyncio.sleep(0))

    def monitor(self) -> Machine:
        return self.machine

    async def save_record(self) -> None:
        pass

    @contextlib.contextmanager
    def watched(self) -> Iterator[asyncio.Queue[MigrationEvent | None]]:
        yield asyncio.Queue()


async def lead(machine: Machine) -> None:
    async with asyncio.timeout(60):
        await disk_copies.lead_copies(cast(Guest, Moving(machine)), SETTINGS)
    assert (machine.migration, machine.runs, machine.sent) == ("completed", "postmigrate", 1)


async def test_a_guest_that_came_by_a_move_is_led_through_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_copies, "LOOK_SECONDS", 0.001)
    machine = Machine(silent=0, hears=True)
    await lead(machine)
    assert machine.asked < 20


@pytest.mark.parametrize("hears", [True, False], ids=["done", "not done"])
async def test_a_command_that_is_not_answered_is_no_end_of_the_move(
    monkeypatch: pytest.MonkeyPatch, hears: bool
) -> None:
    monkeypatch.setattr(disk_copies, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(disk_copies, "AGAIN_SECONDS", 0.0)
    for silent in range(1, 20):
        machine = Machine(silent, hears)
        await lead(machine)
        if machine.asked < silent:
            return
    raise AssertionError("it never came to its end")
