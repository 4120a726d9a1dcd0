"""A node that returns, and finds that an allocation of its own is lost: nothing ends or starts there without evidence."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.scenario.agent.test_agent_real_layers import disks, holds, write
from tests.scenario.agent_lab import Lab, change, make_allocation

from weft.contracts.driver.runtime import GuestDisk
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.kinds.allocation import AllocatedVolume
from weft.kinds.volume import derive_kept_uid
from weft.objects.identity import short_id


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture(autouse=True)
def beat_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.agent.agent.HEARTBEAT_SECONDS", 0.1)


def reports_orphan(lab: Lab, uid: str) -> bool:
    report = lab.server.node_report
    return report is not None and any(uid in text for text in report.orphans)


async def test_a_lost_guest_is_an_orphan_that_goes_on_until_it_is_superseded_and_is_then_released(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
    lost = change(web, role="lost")
    lab.server.put(lost)
    async with lab.agent():
        await lab.until(lambda: reports_orphan(lab, web.uid), "an orphan")
        copy = lab.server.node_report.orphan_allocations[0]  # type: ignore[union-attr]
        assert '"standing":"here"' in copy and '"runs":true' in copy
        await lab.settle()
        guest = lab.guest(web)
        assert guest is not None and guest.state == "running"
    async with lab.agent():  # killed and started again
        lab.server.superseded = [web.uid]
        await lab.until_state(lost, "released")
        assert lab.guest(web) is None or lab.guest(web).state == "absent"  # type: ignore[union-attr]
        assert web.uid in lab.shelf.volumes and short_id(web.uid) not in lab.shelf.volumes, "its disk is a volume"
        await lab.until(lambda: not reports_orphan(lab, web.uid), "no orphan")
        lab.server.put(lost)  # as its own report comes back
        await lab.settle()
        assert lab.server.reports[lost.name].state == "released"
        lab.server.delete(lost)
        await lab.until(lambda: not lab.copies(), "no checkpoint")


async def test_the_volumes_of_a_guest_that_went_on_from_an_earlier_state_are_kept_under_other_uids(
    tmp_path: Path,
) -> None:
    (tmp_path / "n1").mkdir()
    lab = SharingLab(tmp_path / "n1")
    web = make_allocation(volumes=[AllocatedVolume(name="data", uid="v1", size=1 << 30)])
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        write(disks(lab, web)[1], 7)
    lost, kept = change(web, role="lost"), derive_kept_uid(web.uid, "v1")
    lab.server.put(lost)
    lab.make_drivers()
    lab.runtime.kill(short_id(web.uid))
    async with lab.agent():
        await lab.until(lambda: reports_orphan(lab, web.uid), "an orphan")
        lab.server.superseded, lab.server.stale_volumes = [web.uid], ["v1"]
        await lab.until_state(lost, "released")
        assert {one.id for one in await lab.volumes.list()} == {web.uid, kept}
        facts = await lab.volumes.inspect(kept)
        assert facts is not None and holds(GuestDisk(path=facts.path, format=facts.format, serial=""), 7)
        await lab.until(lambda: kept in lab.server.node_report.volumes, "it is reported")  # type: ignore[union-attr]
        assert "v1" not in lab.server.node_report.volumes  # type: ignore[union-attr]


async def test_a_lost_guest_that_has_ended_is_not_started(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
    lab.server.put(change(web, role="lost"))
    lab.make_drivers()
    lab.runtime.kill(short_id(web.uid))
    for _ in range(2):
        async with lab.agent():
            await lab.until(lambda: reports_orphan(lab, web.uid), "an orphan")
            await lab.settle()
            guest = lab.guest(web)
            assert guest is not None and guest.state == "failed"
            assert '"runs":false' in lab.server.node_report.orphan_allocations[0]  # type: ignore[union-attr]


async def test_a_lost_guest_that_comes_back_to_its_node_goes_on_there(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
        lab.server.put(change(web, role="lost"))
        await lab.until(lambda: reports_orphan(lab, web.uid), "an orphan")
        lab.runtime.kill(short_id(web.uid))
        await lab.settle()
        lab.server.put(web)  # adopted
        await lab.until(lambda: not reports_orphan(lab, web.uid), "no orphan")
        await lab.until(lambda: (found := lab.guest(web)) is not None and found.state == "running", "it runs")


async def test_a_lost_guest_whose_workload_was_deleted_is_removed_with_its_disk(lab: Lab) -> None:
    web = make_allocation()
    async with lab.agent():
        lab.server.put(web)
        await lab.until_state(web, "running")
    gone = change(web, role="lost")
    gone.deleting_since = lab.clock.now()
    lab.server.put(gone)
    async with lab.agent():
        report = await lab.until_state(gone, "released")
        assert report.incarnation == 1 and not reports_orphan(lab, web.uid)
        assert lab.guest(web) is None or lab.guest(web).state == "absent"  # type: ignore[union-attr]
        assert web.uid not in lab.shelf.volumes and short_id(web.uid) not in lab.shelf.volumes, "no disk is left"


async def test_a_lost_allocation_of_which_nothing_is_here_is_released(lab: Lab) -> None:
    lost = make_allocation(role="lost", incarnation=3)
    async with lab.agent():
        lab.server.put(lost)
        report = await lab.until_state(lost, "released")
        assert report.incarnation == 3 and not reports_orphan(lab, lost.uid)
    async with lab.agent():
        await lab.until_state(lost, "released")


class SharingLab(Lab):
    """A node with a pool that others have, too."""

    def make_drivers(self) -> None:
        super().make_drivers()
        self.volumes = DirectoryVolumes(self.host)  # type: ignore[assignment]
        place = Path(self.host.state_dir).parent / "san"
        place.mkdir(exist_ok=True)
        self.san = DirectoryVolumes(self.host, "san", str(place))  # type: ignore[assignment]


async def test_a_vm_goes_on_with_its_disk_in_a_shared_pool_and_the_returning_node_leaves_that_alone(
    tmp_path: Path,
) -> None:
    for folder in ("n1", "n2"):
        (tmp_path / folder).mkdir()
    first, second = SharingLab(tmp_path / "n1"), SharingLab(tmp_path / "n2")
    where = {"pool": "san", "pool_id": second.san.pool().id}
    old = make_allocation(uid="alloc-old", **where)
    async with first.agent():
        first.server.put(old)
        await first.until_state(old, "running")
        write(disks(first, old)[0], 7)
    new = make_allocation(uid="alloc-new", incarnation=2, continues=["alloc-between", "alloc-old"], **where)
    async with second.agent():
        second.server.put(new)
        await second.until_state(new, "running")
        (disk,) = disks(second, new)
        assert disk.path != disks(first, old)[0].path and holds(disk, 7)
    lost = change(old, role="lost")
    first.server.put(lost)
    first.make_drivers()
    first.runtime.kill(short_id(old.uid))
    async with first.agent():
        await first.until(lambda: reports_orphan(first, old.uid), "an orphan")
        first.server.superseded = [old.uid]
        await first.until_state(lost, "released")
        assert [one.id for one in await first.san.list()] == [short_id(new.uid)]
    write(disk, 8)
    third = make_allocation(uid="alloc-third", incarnation=3, continues=["alloc-new", "alloc-old"], **where)
    async with second.agent():
        second.server.put(change(new, desired="stop", desired_count=1))
        await second.until_state(new, "stopped")
        second.server.put(third)
        await second.until_state(third, "running")
        assert holds(disks(second, third)[0], 8)


async def test_a_lost_disk_in_a_shared_pool_is_not_taken_for_nothing_by_an_agent_that_forgot_it(tmp_path: Path) -> None:
    (tmp_path / "n1").mkdir()
    lab = SharingLab(tmp_path / "n1")
    lost = make_allocation(role="lost", pool="san", pool_id=lab.san.pool().id)
    async with lab.agent():
        lab.server.put(lost)
        await lab.until(lambda: reports_orphan(lab, lost.uid), "an orphan")
        assert lost.name not in lab.server.reports or lab.server.reports[lost.name].state != "released"
