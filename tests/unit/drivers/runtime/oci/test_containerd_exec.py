"""Commands in a container that a containerd holds: its shim may tell late what was printed, and lose what hasn't begun."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weft.contracts.clock import SystemClock
from weft.contracts.driver.runtime import ExecRequest
from weft.drivers.runtime.oci.containerd import exec as commands
from weft.drivers.runtime.oci.exec import channel_session
from weft.objects.errors import DriverFailed


class Shim:
    """Answers as containerd does; a command has ended at once with 9, and what it printed comes after ``late_seconds``."""

    def __init__(self, late_seconds: float = 0.0, lost: int = 0) -> None:
        self.late_seconds, self.lost = late_seconds, lost
        self.begun: list[str] = []
        self.forgotten: list[str] = []
        self._stdout: dict[str, str] = {}

    async def call(self, path: str, **fields: Any) -> Any:
        name, verb = fields["exec_id"], path.rpartition("/")[2]
        if verb == "Exec":
            self._stdout[name] = fields["stdout"]
        elif verb == "Start":
            self.begun.append(name)
            if len(self.begun) <= self.lost:
                raise DriverFailed("OCI runtime exec failed: exec failed: fail startup")
            self._printing = asyncio.create_task(self._print(os.open(self._stdout[name], os.O_WRONLY)))
        elif verb == "DeleteProcess":
            self.forgotten.append(name)
        return SimpleNamespace(exit_status=9)

    async def _print(self, descriptor: int) -> None:
        await asyncio.sleep(self.late_seconds)
        os.write(descriptor, b"33 99\n")
        os.close(descriptor)


async def run(shim: Shim, folder: Path) -> tuple[bytes, int | None]:
    plan = SimpleNamespace(id="c1")
    container: Any = SimpleNamespace(record=SimpleNamespace(plan=plan), paths=SimpleNamespace(run=folder), running=True)
    begun = await commands.start_exec(container, None, shim, SystemClock(), ExecRequest(["stty"], tty=True))  # type: ignore[arg-type]
    out, code = b"", None
    async with asyncio.timeout(20):
        async for chunk in begun.output():
            out, code = out + chunk.data, chunk.code
    await begun.close()
    return out, code


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "translate_exec", lambda plan, facts, request: {"args": request.argv})


async def test_what_a_terminal_shows_late_is_told_although_the_command_has_ended(tmp_path: Path) -> None:
    assert await run(Shim(late_seconds=2 * channel_session.LINGER_SECONDS), tmp_path) == (b"33 99\n", 9)


async def test_a_command_that_was_lost_before_it_began_is_begun_again(tmp_path: Path) -> None:
    shim = Shim(lost=2)
    assert await run(shim, tmp_path) == (b"33 99\n", 9)
    assert len(set(shim.begun)) == 3 and shim.forgotten[:2] == shim.begun[:2]


async def test_one_that_is_lost_again_and_again_is_refused_and_says_that_it_had_not_begun(tmp_path: Path) -> None:
    out, code = await run(Shim(lost=99), tmp_path)
    assert code == channel_session.NOT_STARTED and b"had not started" in out and b"memory" in out
    assert list(tmp_path.iterdir()) == []
