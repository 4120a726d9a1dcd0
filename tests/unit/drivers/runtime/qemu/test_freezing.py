"""Freezing by a qemu-guest-agent, which has no patience of its own: file systems are let go, whatever fails meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from weft.contracts.clock import SystemClock
from weft.contracts.driver.runtime import BootDisk, GuestPlan
from weft.drivers.runtime.qemu.guest_agent import connections
from weft.drivers.runtime.qemu.guest_agent.connections import GuestAgents
from weft.drivers.runtime.qemu.guest_agent.unread_output import Unread
from weft.drivers.runtime.qemu.translate import GuestPaths
from weft.objects.errors import DriverFailed, Unavailable

PLAN = GuestPlan("g1", "u1", "web", 1, "q35", 1.0, 1, 1 << 28, BootDisk(), [], [], has_agent=False, qemu_agent=True)


class Agent:
    """As qemu-guest-agent: frozen, it does nothing but answer, and thaw."""

    def __init__(self, path: Path) -> None:
        self.path, self.frozen, self.stuck = path, False, asyncio.Event()
        self.stuck.set()
        self.trimmed: list[dict[str, object]] = []

    async def __aenter__(self) -> Agent:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                request = json.loads(line.lstrip(b"\xff"))
                answer = json.dumps(await self._obey(request["execute"], request.get("arguments", {}))).encode()
                writer.write(b"\xff" + answer + b"\n" if "sync" in request["execute"] else answer + b"\n")
                await writer.drain()
        writer.close()

    async def _obey(self, command: str, words: dict[str, object]) -> dict[str, object]:
        was = self.frozen
        match command:
            case "guest-sync-delimited":
                return {"return": words["id"]}
            case "guest-fsfreeze-thaw":
                self.frozen = False
                return {"return": int(was)}
            case _ if was:
                return {"error": {"class": "CommandNotFound", "desc": "the command is not allowed while frozen"}}
            case "guest-fsfreeze-freeze":
                self.frozen = True
                await self.stuck.wait()
                return {"return": 1}
            case "guest-fstrim":
                return {"return": {"paths": self.trimmed}}
            case "guest-file-open":
                return {"return": 7}
            case "guest-file-read":
                return {"return": {"buf-b64": "YWJj", "count": 3, "eof": True}}
            case _:
                return {"return": {}}


@contextlib.asynccontextmanager
async def connected(folder: Path, *, thaw_wanted: bool = False) -> AsyncIterator[GuestAgents]:
    paths = GuestPaths(run=folder, state=folder)
    agents = GuestAgents(PLAN, paths, SystemClock(), lambda said: None, lambda told: None, Unread())
    agents.thaw_wanted = thaw_wanted
    keeping = [asyncio.ensure_future(loop) for loop in agents.connect_loops()]
    try:
        async with asyncio.timeout(30):
            while not agents.answer:
                await asyncio.sleep(0.01)
        yield agents
    finally:
        for keeper in keeping:
            keeper.cancel()
        agents.close()


async def until_thawed(agent: Agent) -> None:
    async with asyncio.timeout(30):
        while agent.frozen:
            await asyncio.sleep(0.01)


async def test_file_systems_stand_still_between_freeze_and_thaw(tmp_path: Path) -> None:
    async with Agent(GuestPaths(run=tmp_path, state=tmp_path).qemu_agent) as agent, connected(tmp_path) as agents:
        assert await agents.freeze() == "" and agent.frozen
        lasted = await agents.thaw()
        assert lasted is not None and lasted > 0 and not agent.frozen
        assert await agents.thaw() is None, "they are no longer frozen"


async def test_a_guest_that_let_them_go_too_early_was_not_frozen(tmp_path: Path) -> None:
    async with Agent(GuestPaths(run=tmp_path, state=tmp_path).qemu_agent) as agent, connected(tmp_path) as agents:
        assert await agents.freeze() == ""
        agent.frozen = False
        assert await agents.thaw() is None


async def test_one_that_takes_too_long_is_let_go_once_it_is_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "FREEZE_SECONDS", 0.1)
    async with Agent(GuestPaths(run=tmp_path, state=tmp_path).qemu_agent) as agent, connected(tmp_path) as agents:
        agent.stuck.clear()
        assert "not frozen within" in await agents.freeze(within=0.1)
        assert await agents.thaw() is None
        agent.stuck.set()
        await until_thawed(agent)


async def test_the_next_driver_lets_go_what_one_that_died_has_frozen(tmp_path: Path) -> None:
    async with Agent(GuestPaths(run=tmp_path, state=tmp_path).qemu_agent) as agent:
        agent.frozen = True
        async with connected(tmp_path, thaw_wanted=True):
            await until_thawed(agent)


async def test_a_trim_sums_up_what_the_guest_gave_back_and_fails_only_if_nothing_could_be_trimmed(
    tmp_path: Path,
) -> None:
    failed: dict[str, object] = {"path": "/boot", "error": "trim not supported"}
    async with Agent(GuestPaths(run=tmp_path, state=tmp_path).qemu_agent) as agent, connected(tmp_path) as agents:
        agent.trimmed = [{"path": "/", "trimmed": 5 << 20, "minimum": 0}, {"path": "/srv", "trimmed": 1 << 63}, failed]
        assert await agents.trim() == 1 << 60  # of what a stranger says
        agent.trimmed[1] = failed
        assert await agents.trim() == 5 << 20
        agent.trimmed = [failed]
        with pytest.raises(DriverFailed, match="trim not supported"):
            await agents.trim()
        agent.trimmed = [{"path": "/", "trimmed": -1}]
        with pytest.raises(Unavailable):
            await agents.trim()
