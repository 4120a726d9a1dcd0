"""Another release on all servers and nodes: each has its turn, whatever is killed, and the guests run on."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import msgspec
from tests.scenario.controllers_lab import Lab

from weft.client.server.files import ServerFiles
from weft.controllers.upgrade.own import OwnUpgrade
from weft.informer.cache import Cache
from weft.informer.view import make_view
from weft.kinds.node import NodeReport
from weft.kinds.orders import OrderReports
from weft.kinds.parts.function_code import CODE_FOLDER
from weft.kinds.parts.packages import NEEDED, InstallOutcome, PackageFile, UpgradeReport
from weft.kinds.upgrade import UpgradeActions, UpgradeSpec, UpgradeStatus
from weft.launch.server.membership.presence import keep_presence
from weft.objects.envelope import Envelope, decode_part, merge_part
from weft.objects.identity import ServerIdentity
from weft.protocol.server.presence import Presence

OLD, NEW = "0.1.0", "0.2.0"
KEY = "/upgrade/-/to-new"
NAMES = sorted({name for needed in NEEDED.values() for name in needed})
DATA = {name: name.encode() for name in NAMES}
PACKAGES = [
    PackageFile(name=name, architecture="amd64", sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    for name, data in DATA.items()
]


class Fleet:
    """Servers and nodes that restart with the release that they are told to install."""

    def __init__(
        self, lab: Lab, servers: tuple[str, ...] = ("s1", "s2", "s3"), nodes: tuple[str, ...] = ("n1", "n2")
    ) -> None:
        self.lab, self.servers, self.nodes = lab, dict.fromkeys(servers, OLD), nodes
        self.outcomes: dict[str, InstallOutcome] = {}
        self.turns: list[str] = []
        self.fails: dict[str, str] = {}  # machines whose installation fails, with why
        self._tasks: list[asyncio.Task[object]] = []

    async def begin(self) -> None:
        for name in self.servers:

            def present(name: str = name) -> Presence:
                return Presence(
                    f"uid-{name}", f"https://{name}:8443", release=self.servers[name], installed=self.outcomes.get(name)
                )

            identity = ServerIdentity(name, f"uid-{name}")
            self._tasks.append(asyncio.create_task(keep_presence(self.lab.store, identity, present, self.lab.clock)))
        for name in self.nodes:
            await self.lab.add_node(name, version=OLD)

        async def serve() -> bool:
            return len([one for one in await self.lab.every("server") if one.condition("Ready")]) == len(self.servers)

        await self.lab.until(serve)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def status(self) -> UpgradeStatus:
        found = await self.lab.get(KEY)
        assert found is not None
        return decode_part(found.status, UpgradeStatus)

    async def obey(self) -> UpgradeStatus:
        """The machine whose turn it is does as it is told; a server is the one that sees its turn in the store."""
        status, upgrade = await self.status(), await self.lab.get(KEY)
        turn = status.turn
        assert upgrade is not None
        if turn is None:
            return status
        if not self.turns or self.turns[-1] != turn.name:
            self.turns.append(turn.name)
        attempt = f"{upgrade.uid}/{status.attempt}"
        problem = self.fails.get(turn.name, "")
        if turn.kind == "server":
            self.outcomes[turn.name] = InstallOutcome(key=attempt, problem=problem)
            self.servers[turn.name] = self.servers[turn.name] if problem else NEW
        elif status.order is not None:
            node = self.lab.nodes[turn.name]
            assert status.order.node_uid == turn.uid
            phase, release = ("failed", OLD) if problem else ("done", NEW)
            report = UpgradeReport(attempt=status.order.attempt, phase=phase, message=problem)
            if node.report.version != release or problem:
                await node.write_report(version=release, orders=OrderReports(upgrade=[report]))
        return status

    async def until(self, *phases: str) -> UpgradeStatus:
        async def there() -> bool:
            return (await self.obey()).phase in phases

        await self.lab.until(there, 300.0)
        return await self.status()


async def change_actions(lab: Lab, actions: UpgradeActions) -> None:
    def change(envelope: Envelope) -> None:
        envelope.actions = merge_part(envelope.actions, actions)

    await lab.change(KEY, change)


async def test_all_machines_get_the_release_one_after_the_other_and_guests_run_on(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        fleet = Fleet(lab)
        await fleet.begin()
        await lab.put_vm("web", cpu=1.0)
        await lab.until_phase("web", "Running")
        before = await lab.allocations()
        await lab.put("upgrade", "to-new", UpgradeSpec(to=NEW, packages=PACKAGES), project=None)
        status = await fleet.until("Done")
        assert fleet.turns == ["s1", "s2", "s3", "n1", "n2"]
        assert (status.upgraded, status.machines, status.left, status.order) == (5, 5, [], None)
        assert [one.version for one in await read_reports(lab)] == [NEW, NEW]
        assert await lab.allocations() == before
        assert lab.journal.reasons("to-new") == ["UpgradeTurn"] * 5 + ["UpgradeDone"]
        await fleet.end()


async def read_reports(lab: Lab) -> list[NodeReport]:
    return [decode_part(one.report, NodeReport) for one in await lab.every("node")]


async def test_controllers_that_are_killed_at_every_step_go_on_with_it(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        fleet = Fleet(lab)
        await fleet.begin()
        await lab.put("upgrade", "to-new", UpgradeSpec(to=NEW, packages=PACKAGES), project=None)
        seen = set[bytes]()
        for _ in range(400):
            status = await fleet.obey()
            said = msgspec.json.encode(status)
            if said not in seen:
                seen.add(said)
                await lab.kill_controllers()
                lab.start_controllers(f"life {len(seen)}")
            if status.phase == "Done":
                break
            await lab.pass_time(1.0)
        assert (await fleet.status()).phase == "Done"
        assert fleet.turns == ["s1", "s2", "s3", "n1", "n2"]
        assert len(seen) > 10
        await fleet.end()


async def test_it_stops_where_an_installation_fails_and_goes_on_once_people_resume_it(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        fleet = Fleet(lab, ("s1",))
        await fleet.begin()
        fleet.fails["n1"] = "dpkg: cannot copy extracted data: No space left on device"
        await lab.put("upgrade", "to-new", UpgradeSpec(to=NEW, packages=PACKAGES), project=None)
        status = await fleet.until("Stopped")
        assert status.message == "node n1: dpkg: cannot copy extracted data: No space left on device"
        assert (fleet.turns, status.left) == (["s1", "n1"], ["node/n1", "node/n2"])
        await lab.pass_time(60.0)
        assert (await fleet.status()).phase == "Stopped"
        fleet.fails.clear()
        await change_actions(lab, UpgradeActions(attempt=2))
        status = await fleet.until("Done")
        assert fleet.turns == ["s1", "n1", "n2"]
        await fleet.end()


async def test_a_stopped_one_is_replaced_by_the_next_and_of_two_that_run_the_second_waits(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        fleet = Fleet(lab, ("s1",), ("n1",))
        await fleet.begin()
        fleet.fails["s1"] = "dpkg: error"
        await lab.put("upgrade", "a-first", UpgradeSpec(to="0.3.0", packages=PACKAGES), project=None)

        async def running() -> bool:
            first = await lab.get("/upgrade/-/a-first")
            return first is not None and decode_part(first.status, UpgradeStatus).phase == "Running"

        await lab.until(running)
        await lab.put("upgrade", "to-new", UpgradeSpec(to=NEW, packages=PACKAGES), project=None)
        await lab.pass_time(5.0)
        status = await fleet.status()
        assert (status.phase, status.turn) == ("Waiting", None)
        assert status.message == "upgrade a-first is under way: it begins after that, or once that is stopped"
        first = await lab.get("/upgrade/-/a-first")
        assert first is not None
        key = f"{first.uid}/1"
        fleet.outcomes["s1"] = InstallOutcome(key=key, problem="dpkg: error")
        fleet.fails.clear()
        status = await fleet.until("Done")
        first = await lab.get("/upgrade/-/a-first")
        assert first is not None
        replaced = decode_part(first.status, UpgradeStatus)
        assert (replaced.phase, replaced.message) == ("Replaced", "upgrade to-new took its place")
        await fleet.end()


class Folder:
    """An installer that only notes what it is told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.begun, self.refused = folder, dict[str, dict[str, str]](), dict[str, str]()
        self.architecture, self.obstacle = "amd64", ""
        folder.mkdir()

    def find_obstacle(self) -> str:
        return self.obstacle

    def begin(self, key: str, files: dict[str, str]) -> None:
        self.begun[key] = files

    def is_under_way(self, key: str) -> bool:
        return key in self.begun

    def read_outcome(self) -> InstallOutcome | None:
        return next((InstallOutcome(key=key, problem=why) for key, why in self.refused.items()), None)

    def refuse(self, key: str, problem: str) -> None:
        self.refused[key] = problem

    def clear(self) -> None:
        for path in self.folder.glob("*.deb"):
            path.unlink()


class Files(ServerFiles):
    """Those of a server alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def bring(self, sha256: str, to: Path | None = None, *, sent: bool = False) -> Path | None:
        return None


async def test_a_server_without_room_for_the_packages_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    (blobs / CODE_FOLDER).mkdir(parents=True)
    for one in PACKAGES:
        (blobs / CODE_FOLDER / one.sha256).write_bytes(DATA[one.name])
    async with Lab(tmp_path / "lab") as lab:
        fleet = Fleet(lab, ("s1",), ())
        await fleet.begin()
        await lab.put("upgrade", "to-new", UpgradeSpec(to=NEW, packages=PACKAGES), project=None)
        folder = Folder(tmp_path / "s1")
        (folder.folder / "weft-server_amd64.deb").symlink_to("/dev/full")
        folder.clear = lambda: None  # type: ignore[method-assign]
        cache = Cache(lab.store, make_view(), lab.clock)
        own = OwnUpgrade("s1", Files(blobs), folder, cache, lab.clock, OLD)
        tasks = [asyncio.create_task(work) for work in (cache.run(), own.run())]

        async def refused() -> bool:
            return bool(folder.refused)

        await lab.until(refused)
        (said,) = folder.refused.values()
        assert said.startswith("the package weft-server can't be put into")
        assert said.endswith("No space left on device".lower()) or "No space left on device" in said
        assert not folder.begun
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await fleet.end()


async def test_a_server_installs_its_packages_in_its_turn_and_in_no_other(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    (blobs / CODE_FOLDER).mkdir(parents=True)
    for one in PACKAGES:
        (blobs / CODE_FOLDER / one.sha256).write_bytes(DATA[one.name])
    async with Lab(tmp_path / "lab") as lab:
        fleet = Fleet(lab, ("s1", "s2"), ())
        await fleet.begin()
        await lab.put("upgrade", "to-new", UpgradeSpec(to=NEW, packages=PACKAGES), project=None)
        folders = {name: Folder(tmp_path / name) for name in fleet.servers}
        cache = Cache(lab.store, make_view(), lab.clock)
        owns = [OwnUpgrade(name, Files(blobs), folders[name], cache, lab.clock, OLD) for name in fleet.servers]
        tasks = [asyncio.create_task(work) for work in (cache.run(), *(own.run() for own in owns))]

        async def begun() -> bool:
            return bool(folders["s1"].begun)

        await lab.until(begun)
        await lab.pass_time(5.0)
        upgrade = await lab.get(KEY)
        assert upgrade is not None
        files = folders["s1"].begun[f"{upgrade.uid}/1"]
        assert set(files) == {"weft-client_amd64.deb", "weft-server_amd64.deb"}
        for name, digest in files.items():
            assert hashlib.sha256((folders["s1"].folder / name).read_bytes()).hexdigest() == digest
        assert not folders["s2"].begun

        client = next(one for one in PACKAGES if one.name == "weft-client")
        (blobs / CODE_FOLDER / client.sha256).unlink()
        fleet.servers["s1"] = NEW

        async def refused() -> bool:
            return bool(folders["s2"].refused)

        await lab.until(refused)
        assert "no server has the package weft-client any more" in folders["s2"].refused[f"{upgrade.uid}/1"]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await fleet.end()
