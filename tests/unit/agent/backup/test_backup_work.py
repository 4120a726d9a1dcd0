"""What a node does with orders about backups: of each repository one at a time, each once, ended when it is in no answer."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from tests.scenario.agent_lab import StubServer

from weft.agent.backup import uploads
from weft.agent.backup.work import BackupWork
from weft.agent.image.cache import ImageCache
from weft.agent.orders.executor import Executor
from weft.agent.state.table import AllocationTable
from weft.agent.volume.pools import Pools
from weft.agent.workload.runtimes import Runtimes
from weft.backup.key import RepositoryKey
from weft.backup.process.job import OBJECTS, name_upload
from weft.backup.repository import Repository
from weft.contracts.clock import SystemClock
from weft.contracts.driver.layers import KeptDisk, KeptSnapshot, ServedDisk
from weft.kinds.fields.backup_work import BackupAct, BackupOrder, BackupReport
from weft.kinds.orders import BACKUP
from weft.objects.errors import NotFound, WeftError
from weft.protocol.report import OpenedRepository

KEY = "0f" * 32


class Server(StubServer):
    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.blobs: dict[str, bytes] = {}
        self.answer: OpenedRepository | WeftError = OpenedRepository({"key": KEY})

    def fetch_blob(self, sha256: str, out: BinaryIO, on_progress: Callable[[int], None], ticket: str = "") -> None:
        if sha256 not in self.blobs:
            raise NotFound("it is not on the server")
        assert ticket == f"for-{sha256}"
        out.write(self.blobs[sha256])
        on_progress(len(self.blobs[sha256]))

    def read_repository(self, node: str, repository: str, backup: str = "") -> OpenedRepository:
        self.opened.append(repository)
        if isinstance(self.answer, WeftError):
            raise self.answer
        return self.answer


class SilentDisk:
    """A pool with snapshot ``s``, whose disk is served by somebody who never says a word."""

    def __init__(self, folder: Path) -> None:
        self.socket = str(folder / "nbd")
        self.layers = self.copies = self
        self.begun, self.hung_up, self.left = asyncio.Event(), asyncio.Event(), False

    async def list_kept(self) -> list[KeptSnapshot]:
        return [KeptSnapshot("s-short", "s", {"v1": KeptDisk(("one",), 65536)})]

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.begun.set()
        with contextlib.suppress(OSError):
            await reader.read()
        self.hung_up.set()
        writer.close()

    @contextlib.asynccontextmanager
    async def read(self, *_: object, **__: object) -> AsyncIterator[ServedDisk]:
        server = await asyncio.start_unix_server(self._answer, self.socket)
        try:
            yield ServedDisk(self.socket, 65536, [(0, 65536, False)], True)
        finally:
            server.close()
            self.left = True


class Lab:
    def __init__(self, folder: Path) -> None:
        self.folder, self.place, self.server = folder, folder / "place", Server()
        self.place.mkdir()
        self.pool = SilentDisk(folder)
        self.changed = asyncio.Event()
        self.work = self.begin()
        self.tasks: list[asyncio.Task[None]] = []

    def begin(self) -> Executor[BackupOrder, BackupReport]:
        """The agent, with what it finds in its state folder."""
        clock, state = SystemClock(), str(self.folder / "state")
        pools = Pools(self.pool, {}, clock, asyncio.Event())  # type: ignore[arg-type]
        images = ImageCache(state, self.server, AllocationTable())
        table, runtimes = AllocationTable(), Runtimes({}, {})
        work = BackupWork(state, "n1", self.server, pools, images, table, runtimes, clock, lambda: None)
        return Executor(BACKUP, work, state, clock, self.changed.set)

    def order(self, act: BackupAct = "check", uid: str = "r", generation: int = 1, **more: Any) -> BackupOrder:
        return BackupOrder(
            uid=uid, act=act, node_uid="u", generation=generation, url=f"dir://{self.place}",
            **{"repository": "safe", "repository_uid": "r", **more},
        )  # fmt: skip

    def keep(self) -> None:
        self.tasks.append(asyncio.ensure_future(self.work.keep()))

    async def restart(self) -> None:
        await self.stop()
        self.work = self.begin()
        self.keep()

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.tasks.clear()

    async def await_phases(self, *phases: str) -> None:
        async with asyncio.timeout(30):
            while tuple(one.phase for one in self.work.report()) != phases:
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    lab.keep()
    yield lab
    await lab.stop()


async def test_an_order_is_done_once_and_reported_until_it_is_gone(lab: Lab) -> None:
    check = lab.order()
    lab.work.put_orders([check])
    await lab.await_phases("done")
    [report] = lab.work.report()
    assert (report.uid, report.act, report.generation, len(report.repository_id)) == ("r", "check", 1, 32)
    other = lab.order("verify", uid="b", backup="none")
    lab.work.put_orders([check, other])
    await lab.await_phases("done", "failed")
    assert lab.server.opened == ["safe", "safe"]
    assert [one.reason for one in lab.work.report()] == ["", "backupDamaged"]
    lab.work.put_orders([other])
    assert [one.uid for one in lab.work.report()] == ["b"]
    lab.work.put_orders([])
    assert lab.work.report() == [] and not lab.work.is_asking


async def test_a_project_s_backup_has_the_code_that_its_objects_name(lab: Lab) -> None:
    lost = {"kind": "function", "name": "lost", "spec": {"code_sha256": "bb" * 32}}
    code, objects = bytes(range(256)) * 700, {"project": "shop", "objects": [lost]}
    lab.server.blobs = {"aa" * 32: code}
    tickets = {sha256: f"for-{sha256}" for sha256 in ("aa" * 32, "bb" * 32)}  # the server has lost one of them
    lab.server.answer = OpenedRepository({"key": KEY}, objects=objects, uploads=tickets)
    check = lab.order()
    lab.work.put_orders([check])
    await lab.await_phases("done")
    lab.work.put_orders([check, lab.order("copy", uid="b", backup="b", manifest={"of": "project/shop"})])
    await lab.await_phases("done", "done")
    assert list((lab.folder / "state" / "backup-uploads").iterdir()) == []
    assert "without the code or model of function/lost, " in lab.work.report()[1].message
    clock, cache = SystemClock(), lab.folder / "cache"
    with Repository.open(f"dir://{lab.place}", RepositoryKey(bytes.fromhex(KEY)), clock=clock, cache=cache) as there:
        [made] = there.backups().backups
        assert [disk.name for disk in made.disks] == [OBJECTS, name_upload("aa" * 32)]
        with there.read(made.id) as reader:
            assert reader.read(name_upload("aa" * 32), 0, len(code)) == code


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [("MOST_UPLOAD_BYTES", 250, "tooLarge"), ("MOST_BYTES", 99, "tooLarge"), ("SPARE_BYTES", 1 << 62, "noSpace")],
)
async def test_code_beyond_what_the_node_has_room_for_is_not_fetched(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, reason: str
) -> None:
    monkeypatch.setattr(uploads, "MOST_BYTES", 100)
    monkeypatch.setattr(uploads, limit, value)
    lab.server.blobs = {name * 32: bytes(100) for name in ("aa", "bb", "cc")}
    tickets = {sha256: f"for-{sha256}" for sha256 in lab.server.blobs}
    lab.server.answer = OpenedRepository({"key": KEY}, objects={"project": "shop", "objects": []}, uploads=tickets)
    lab.work.put_orders([lab.order("copy", uid="b", backup="b", manifest={"of": "project/shop"})])
    await lab.await_phases("failed")
    assert lab.work.report()[0].reason == reason
    assert list((lab.folder / "state" / "backup-uploads").iterdir()) == []


async def test_a_higher_generation_is_done_anew(lab: Lab) -> None:
    lab.work.put_orders([lab.order()])
    await lab.await_phases("done")
    lab.work.put_orders([lab.order(generation=2)])
    assert lab.work.report() == []
    await lab.await_phases("done")
    assert lab.work.report()[0].generation == 2 and len(lab.server.opened) == 2


async def test_a_finished_report_survives_a_restart_and_its_order_is_not_repeated(lab: Lab) -> None:
    orders = [lab.order(), lab.order("verify", uid="b", backup="none")]
    lab.work.put_orders(orders)
    await lab.await_phases("done", "failed")
    before = lab.work.report()
    await lab.restart()
    assert lab.work.report() == before
    again = lab.order(uid="r2")
    lab.work.put_orders([*orders, again])
    await lab.await_phases("done", "failed", "done")
    assert lab.work.report()[:2] == before and len(lab.server.opened) == 3


async def test_an_order_that_is_gone_ends_its_process_and_the_next_one_is_done(lab: Lab) -> None:
    copy = lab.order("copy", uid="b", backup="b", snapshot="s", disks={"data": "v1"})
    lab.work.put_orders([lab.order()])
    await lab.await_phases("done")
    lab.work.put_orders([lab.order(), copy])
    async with asyncio.timeout(30):
        await lab.pool.begun.wait()
    assert [one.phase for one in lab.work.report()] == ["done", "working"]
    lab.work.put_orders([lab.order(generation=2)])
    async with asyncio.timeout(30):
        await lab.pool.hung_up.wait()
    await lab.await_phases("done")
    assert lab.pool.left and [one.generation for one in lab.work.report()] == [2]


async def test_a_repository_that_is_slow_holds_up_only_its_own_work(lab: Lab) -> None:
    hangs = lab.order("copy", uid="b", backup="b", snapshot="s", disks={"data": "v1"})
    same = lab.order("verify", uid="b2", backup="none")
    other = lab.order("verify", uid="b3", backup="none", repository="other", repository_uid="r2")
    lab.work.put_orders([lab.order()])
    await lab.await_phases("done")
    lab.work.put_orders([hangs, same, other])
    async with asyncio.timeout(30):
        await lab.pool.begun.wait()
        while not any(one.phase == "failed" for one in lab.work.report()):
            lab.changed.clear()
            await lab.changed.wait()
    assert {one.uid: one.phase for one in lab.work.report()} == {"b": "working", "b3": "failed"}


async def test_an_agent_that_stops_ends_the_process_and_begins_again_later(lab: Lab) -> None:
    copy = lab.order("copy", uid="b", backup="b", snapshot="s", disks={"data": "v1"})
    for _ in range(2):
        check = lab.order(uid="first")
        lab.work.put_orders([check, copy])
        async with asyncio.timeout(30):
            await lab.pool.begun.wait()
        lab.pool.begun.clear()
        lab.pool.hung_up.clear()
        await lab.restart()
        async with asyncio.timeout(30):
            await lab.pool.hung_up.wait()
        assert [one.uid for one in lab.work.report()] == ["first"]


@pytest.mark.parametrize("before", [0, 4000])
async def test_a_process_that_dies_leaves_its_last_lines_without_what_is_secret(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    dies = lab.folder / "dies"
    dies.write_text(f"#!/bin/sh\nprintf '{'x' * before}opening with {KEY}\\nout of memory\\n' >&2\nexit 3\n")
    dies.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dies))
    lab.work.put_orders([lab.order()])
    await lab.await_phases("failed")
    [report] = lab.work.report()
    assert report.reason == "workerDied" and KEY[:8] not in report.message
    assert "ended with 3: " in report.message and report.message.endswith("opening with … | out of memory")
    assert len(report.message) < 700


KILLED = """
import asyncio, contextlib, os, sys
from pathlib import Path
from tests.unit.agent.backup.test_backup_work import Lab, ServedDisk

@contextlib.asynccontextmanager
async def read(*_, **__):
    yield ServedDisk(sys.argv[2], 65536, [(0, 65536, False)], True)

async def main():
    lab = Lab(Path(sys.argv[1]))
    lab.pool.read = read
    lab.keep()
    lab.work.put_orders([lab.order()])
    await lab.await_phases("done")
    lab.work.put_orders([lab.order(), lab.order("copy", uid="b", backup="b", snapshot="s", disks={"data": "v1"})])
    await asyncio.to_thread(sys.stdin.read)
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


async def test_the_process_goes_with_an_agent_that_is_killed(lab: Lab, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    async with lab.pool.read() as served:
        agent = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", KILLED, str(other), served.socket), stdin=asyncio.subprocess.PIPE
        )
        assert agent.stdin is not None
        async with asyncio.timeout(30):
            await lab.pool.begun.wait()
            agent.stdin.close()
            assert await agent.wait() == -9
            await lab.pool.hung_up.wait()


async def test_what_the_server_refuses_and_a_snapshot_that_is_gone_are_failures_in_words(lab: Lab) -> None:
    lab.server.answer = NotFound("backuprepository/safe does not exist")
    lab.work.put_orders([lab.order()])
    await lab.await_phases("failed")
    assert lab.work.report()[0].message == "backuprepository/safe does not exist"
    lab.server.answer = OpenedRepository({"key": KEY})
    lab.work.put_orders([lab.order("copy", uid="b", snapshot="other", disks={"data": "v1"})])
    await lab.await_phases("failed")
    [report] = lab.work.report()
    assert (report.uid, report.reason) == ("b", "snapshotGone")


@pytest.mark.parametrize("ends", ["failed", "cancelled"])
async def test_what_came_of_a_backup_that_could_not_be_fetched_is_removed(lab: Lab, ends: str) -> None:
    left: list[str] = []
    written: list[str] = []

    @contextlib.asynccontextmanager
    async def write(layer: str, _: int) -> AsyncIterator[str]:
        written.append(layer)
        left.append(layer)
        if ends == "cancelled":
            lab.work.put_orders([])
            await asyncio.Event().wait()
        yield lab.pool.socket

    async def discard(layers: Iterable[str]) -> None:
        left[:] = set(left) - {*layers}

    lab.pool.write, lab.pool.discard = write, discard  # type: ignore[attr-defined]
    manifest = {"disks": {"root": {"size": 65536}}}
    order = lab.order("fetch", uid="s2", snapshot="s2", pool="local", disks={"root": "root"}, manifest=manifest)
    lab.work.put_orders([order])
    async with asyncio.timeout(30):
        while not written or left or (ends == "failed" and lab.work.report()[0].phase != "failed"):
            await asyncio.sleep(0.01)


async def test_the_key_is_in_no_state_file_and_no_report(lab: Lab) -> None:
    lab.work.put_orders([lab.order(), lab.order("verify", uid="b", backup="none")])
    await lab.await_phases("done", "failed")
    assert KEY not in repr(lab.work.report())
    files = [path for path in lab.folder.rglob("*") if path.is_file()]
    assert files and not [path for path in files if KEY.encode() in path.read_bytes()]


async def test_a_damaged_state_file_is_no_obstacle(lab: Lab) -> None:
    (lab.folder / "state" / "backup-work.json").write_text('[{"uid": "r", "act"')
    await lab.restart()
    lab.work.put_orders([lab.order()])
    await lab.await_phases("done")
