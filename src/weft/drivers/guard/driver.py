"""Starts the guard of a node and speaks to it."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import weft
from weft.contracts.clock import Clock, read_boot_time
from weft.contracts.driver.host import Host
from weft.contracts.guard import Held
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.cgroup.limits import Limits
from weft.drivers.guard import process
from weft.drivers.guard.holds import Holds, read_answer, read_holds, split_renewal
from weft.objects.errors import DriverFailed

FOLDER = "guard"  # in the run folder
ANSWER_SECONDS = 2.0  # an agent ends by itself what it can't ask about, so much later
BEGIN_TRIES, BEGIN_PAUSE_SECONDS = 200, 0.05
MOST_ANSWER_BYTES = 2 << 20


class GuestGuard:
    """See ``GuardDriver``. Guests' control groups are named by their ids."""

    def __init__(self, host: Host, clock: Clock) -> None:
        self._groups, self._clock = ControlGroups(host.cgroup), clock
        self._folder = Path(host.run_dir) / FOLDER
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._begun: subprocess.Popen[bytes] | None = None
        self._turn = asyncio.Lock()

    @property
    def boot_id(self) -> str:
        return self._boot_id

    def read_time(self) -> float:
        return read_boot_time()

    async def check(self) -> str:
        return await asyncio.to_thread(self._groups.check, Limits()) or ""

    async def renew(self, until: Mapping[str, float]) -> dict[str, Held]:
        names = sorted(until)
        async with self._turn:
            held: Holds | None = None
            whole = {name: [until[name], [str(path) for path in self._groups.list_folders(name)]] for name in names}
            for part in split_renewal(whole):
                held = await self._ask({"renew": part}, begin=True)
        return _show(held if held is not None else await self._read())

    async def drop(self, ids: Iterable[str]) -> None:
        async with self._turn:
            await self._ask({"drop": sorted(ids)}, begin=bool(await self._read_file()))

    async def read(self) -> dict[str, Held]:
        async with self._turn:
            return _show(await self._read())

    def end(self, guest_id: str) -> None:
        process.end_groups(tuple(str(path) for path in self._groups.list_folders(guest_id)))

    async def _read(self) -> Holds:
        held = await self._ask({}, begin=False)
        return held if held is not None else await self._read_file()

    async def _read_file(self) -> Holds:
        def read() -> Holds:
            try:
                return read_holds((self._folder / process.FILE).read_bytes(), self._boot_id)
            except (OSError, ValueError):
                return {}

        return await asyncio.to_thread(read)

    async def _ask(self, request: Mapping[str, Any], *, begin: bool) -> Holds | None:
        """Send ``request`` and return the holds after it; None if there is no guard, unless this may ``begin`` one. Raises
        DriverFailed."""
        data = json.dumps(request).encode()
        for number in range(BEGIN_TRIES):
            try:
                answer = await asyncio.to_thread(self._send, data)
            except (FileNotFoundError, ConnectionError):  # none, or one that ends
                if not begin:
                    return None
                if number % 20 == 0:
                    self._begin()
                await self._clock.sleep(BEGIN_PAUSE_SECONDS)
                continue
            except OSError as problem:
                raise _fail(f"the guard doesn't answer: {problem.strerror or problem}") from problem
            try:
                given = json.loads(answer)
                if problem_there := given.get("problem", ""):
                    raise _fail(f"the guard refused: {problem_there}")
                return read_answer(answer, self._boot_id)
            except ValueError as problem:
                raise _fail("the guard's answer can't be read") from problem
        raise _fail("the guard could not be started")

    def _send(self, data: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
            line.settimeout(ANSWER_SECONDS)
            line.connect(str(self._folder / process.SOCKET))
            line.send(data)
            answer = line.recv(MOST_ANSWER_BYTES)
        if not answer:
            raise ConnectionResetError
        return answer

    def _begin(self) -> None:
        """Begin one, in no group that ends with the agent. A second one ends by itself. Raises DriverFailed."""
        if self._begun is not None and self._begun.poll() is None:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._begun = subprocess.Popen(
                [sys.executable, "-SB", "-m", process.__name__, str(self._folder)],
                env={"PYTHONPATH": str(Path(weft.__file__).parent.parent)},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            for procs in self._groups.leave_agent():
                procs.write_text(str(self._begun.pid))
        except OSError as problem:
            raise _fail(f"the guard can't be started: {problem.strerror or problem}") from problem


def _show(held: Holds) -> dict[str, Held]:
    return {name: Held(one.until, one.ended_at) for name, one in held.items()}


def _fail(message: str) -> DriverFailed:
    return DriverFailed(message, hint="it is started again; see the agent's log", details={"step": "guard"})
