"""The controllers as the process they are: over the store's socket, killed without warning."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.scenario.controllers_lab import Lab
from tests.shelf import SHELF

from weft.contracts.clock import SystemClock
from weft.store.remote import StoreServer
from weft.store.sqlite.store import SqliteStore
from weft.telemetry.journal import SqliteJournal

PROGRAM = """
import sys
from pathlib import Path
from typing import Any
from types import SimpleNamespace
from weft.launch.server.controllers import run_controllers
places = {"microvm_dir": Path("none"), "plain_registry": [], "allow_fetch": [], "metrics": "off", "database": None}
places |= {"resume_elsewhere_after": 60.0, "receivers_allow": [], "metrics_interval": 15.0, "alert_interval": 15.0}
sys.exit(run_controllers(SimpleNamespace(state=Path(sys.argv[1]), server=None, **places)))
"""


class RealLab(Lab):
    """Time and processes are real; the nodes still pretend. ``front`` is what the controllers reach of the store."""

    front: Any

    async def until(self, true, seconds: float = 30.0) -> None:  # type: ignore[no-untyped-def, override]
        async with asyncio.timeout(seconds):
            while not await true():
                await asyncio.sleep(0.01)


async def start(state: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, str(state))


@asynccontextmanager
async def fabric(make_front: Callable[[SqliteStore], Any] = lambda store: store) -> AsyncIterator[RealLab]:
    # A socket's path may have about 107 bytes: shorter than pytest's folders.
    with tempfile.TemporaryDirectory(prefix="weft-", dir=SHELF) as folder:
        state = Path(folder)
        store = SqliteStore(state / "store.db")
        await store.open()
        front = make_front(store)
        server = StoreServer(front, state / "store.sock")
        await server.start()
        lab = RealLab(state, store=store)  # type: ignore[arg-type]
        lab.front = front
        lab.clock = SystemClock()  # type: ignore[assignment]
        await lab.put("network", "default", {"cidr": "10.0.0.0/16"})
        await lab.put_image("tiny")
        try:
            yield lab
        finally:
            for node in lab.nodes.values():
                await node.die()
            await server.close()
            await store.close()


async def test_a_vm_is_placed_by_a_process_that_is_killed_and_by_the_one_after_it() -> None:
    async with fabric() as lab:
        await lab.add_node("n1")
        process = await start(lab.folder)
        try:
            await lab.put_vm("a")
            await lab.until_phase("a", "Running", 30)
            for number in range(20):
                await lab.put_vm(f"v{number}", cpu=0.1)
            process.kill()
            await process.wait()
            process = await start(lab.folder)
            for number in range(20):
                await lab.until_phase(f"v{number}", "Running", 30)
            allocations = await lab.allocations()
            assert len(allocations) == 21 and len({a.workload.uid for a in allocations}) == 21
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 60) == 0
            assert not list(await lab.store.leases("controllers"))  # handed back: the next need not wait
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        journal = SqliteJournal(lab.folder / "journal.db")
        assert any(r.reason == "Placed" and "Selected agent 'n1'" in r.message for r in journal.read())
        journal.close()
        # Nor was a CA made: the API server's process makes it, which may begin at the same moment.
        assert not (lab.folder / "ca.key").exists()


async def test_a_second_process_for_the_same_state_waits_and_takes_over() -> None:
    async with fabric() as lab:
        await lab.add_node("n1")
        first = await start(lab.folder)
        second = None
        try:
            await lab.put_vm("a")
            await lab.until_phase("a", "Running", 30)
            second = await start(lab.folder)
            await asyncio.sleep(1.0)
            assert second.returncode is None
            first.kill()
            await first.wait()
            await lab.put_vm("b")
            await lab.until_phase("b", "Running", 30)
            assert second.returncode is None
        finally:
            for process in (first, second):
                if process is not None and process.returncode is None:
                    process.kill()
                    await process.wait()
