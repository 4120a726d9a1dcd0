"""VMs that go back to a snapshot in place, and VMs that begin from one: their disks, their memory, and who they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.scenario.agent.test_agent_taking import S1, VOLUME, WITH_MEMORY, layer, start, until_over
from tests.scenario.agent_lab import Lab, change, make_allocation
from tests.scenario.cut import MOST_CUTS, cut

from weft.agent.allocation.steps import snapshot as step
from weft.contracts.driver.identity import Identity
from weft.contracts.driver.runtime import GuestFacts, GuestPlan
from weft.drivers.runtime.fake import snapshot as fake
from weft.drivers.runtime.fake.driver import FakeDriver
from weft.kinds.allocation import ROOT, AllocatedVolume, AllocationReport
from weft.kinds.fields.allocated_snapshot import AllocatedOrigin, AllocatedSnapshot
from weft.objects.envelope import Envelope
from weft.objects.errors import DriverFailed
from weft.objects.identity import short_id

OTHER_VOLUME = "7a1f3c9e-1c2d-4b6a-9a55-0d5f6b9c1a22"
BEFORE = AllocatedSnapshot(uid="snap-before", name="web-before-1")
BACK = AllocatedOrigin(
    snapshot="snap-1", name="s1", generation=7, disks={ROOT: ROOT, VOLUME: VOLUME}, memory=True, keeps=BEFORE
)
TWIN = AllocatedOrigin(
    snapshot="snap-1", name="s1", disks={ROOT: ROOT, OTHER_VOLUME: VOLUME}, memory=True, identity=True
)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "ASK_SECONDS", 0.02)
    monkeypatch.setattr(fake, "SAVE_SECONDS", 0.05)
    monkeypatch.setattr("weft.agent.allocation.plan.FIRST_PAUSE_SECONDS", 0.05)


async def take(lab: Lab, snapshot: AllocatedSnapshot = WITH_MEMORY) -> Envelope:
    """A running VM of which a snapshot was taken."""
    vm = await start(lab)
    lab.server.put(change(vm, snapshots=[snapshot]))
    assert (await until_over(lab, vm)).phase == "ready"
    lab.server.put(vm)
    await lab.until(lambda: not lab.server.reports[vm.name].snapshots)
    return vm


async def until_restored(lab: Lab, vm: Envelope, generation: int = 7) -> AllocationReport:
    def is_restored() -> bool:
        report = lab.server.reports.get(vm.name)
        return report is not None and report.restored == generation and report.state in ("running", "stopped")

    await lab.until(is_restored, "the restore")
    return lab.server.reports[vm.name]


def chains(lab: Lab, vm: Envelope) -> dict[str, list[str]]:
    return {disk: lab.shelf.layers.chains[id_] for disk, id_ in ((ROOT, short_id(vm.uid)), (VOLUME, VOLUME))}


def memory_path(lab: Lab) -> str:
    return lab.volumes.layers.memory_path(short_id("snap-1"))


async def test_it_goes_on_from_memory_in_place_and_what_stood_there_is_kept(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    async with lab.agent():
        vm = await take(lab)
        boot = lab.server.reports[vm.name].boot_id
        lab.server.put(change(vm, restart_generation=1))
        await lab.until(lambda: lab.server.reports[vm.name].boot_id not in (None, boot), "another boot")
        vm = change(vm, restart_generation=1, origin=BACK)
        lab.server.put(vm)
        await until_restored(lab, vm)
        await lab.until_state(vm, "running")
        kept = await until_over(lab, vm, BEFORE.uid)
        assert lab.server.reports[vm.name].boot_id == boot, "it went on where it was"
        assert (kept.phase, kept.consistency, kept.disks.keys()) == ("ready", "stopped", {ROOT, VOLUME})
        assert chains(lab, vm) == {ROOT: [layer(S1, ROOT)], VOLUME: [layer(S1, VOLUME)]}
        before = lab.shelf.layers.kept[short_id(BEFORE.uid)]
        assert before.workload == "uid-of-web", "it goes with the VM to other storage"
        assert {disk: one.layers for disk, one in before.disks.items()} == {
            disk: (layer(S1, disk), layer(BEFORE, disk)) for disk in (ROOT, VOLUME)
        }
        guest = lab.guest(vm)
        assert guest is not None and guest.plan.memory == memory_path(lab) and guest.plan.identity is None
        lab.server.put(change(vm, restart_generation=2))
        await lab.until(lambda: lab.server.reports[vm.name].boot_id not in (None, boot), "a boot")
        guest = lab.guest(vm)
        assert guest is not None and guest.plan.memory == "", "the memory is of that instant only"
        assert lab.volumes.calls.count(("replace", VOLUME)) == 1


async def test_one_that_is_stopped_stays_so_and_boots_later(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    async with lab.agent():
        vm = await take(lab)
        vm = change(vm, desired="stop", desired_count=1, origin=BACK)
        lab.server.put(vm)
        report = await until_restored(lab, vm)
        assert report.state == "stopped" and chains(lab, vm)[ROOT] == [layer(S1, ROOT)]
        lab.server.put(change(vm, desired="run", desired_count=2))
        await lab.until_state(vm, "running")
        guest = lab.guest(vm)
        assert guest is not None and guest.plan.memory == ""


@pytest.mark.parametrize("lacks", ["snapshot", "volume", "memory"])
async def test_a_missing_snapshot_leaves_the_guest_as_it_was(tmp_path: Path, lacks: str) -> None:
    lab = Lab(tmp_path)
    async with lab.agent():
        vm = await take(lab, S1 if lacks == "memory" else WITH_MEMORY)
        boot, kept = lab.server.reports[vm.name].boot_id, lab.shelf.layers.kept
        if lacks == "snapshot":
            kept.clear()
        elif lacks == "volume":
            del kept[short_id("snap-1")].disks[VOLUME]
        lab.server.put(change(vm, origin=BACK))
        await lab.until(lambda: lab.server.reports[vm.name].reason == "snapshotGone", "the reason")
        report = lab.server.reports[vm.name]
        whose = {"snapshot": "of its root disk", "volume": "of its volume data", "memory": "has no memory"}[lacks]
        assert f"snapshot/s1 {whose}" in report.message
        assert (report.state, report.boot_id, report.restored) == ("running", boot, 0)
        lab.server.put(vm)
        await lab.until(lambda: lab.server.reports[vm.name].reason == "")
        assert BEFORE.uid not in kept and ("replace", VOLUME) not in lab.volumes.calls


async def test_a_full_pool_is_tried_again(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    async with lab.agent():
        vm = await take(lab)
        lab.volumes.failures["replace"] = [DriverFailed("no space left in pool local", reason="noSpace")] * 2
        lab.server.put(change(vm, origin=BACK))
        await lab.until(lambda: any(event.reason == "noSpace" for event in lab.server.events))
        await until_restored(lab, vm)
        await lab.until_state(vm, "running")


async def test_a_restore_that_is_called_off_half_way_is_finished(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    async with lab.agent():
        vm = await take(lab)
        real, full = lab.volumes.layers.replace, [1]

        async def replace(volume_id: str, *given: Any) -> Any:
            if volume_id == VOLUME and full:
                raise DriverFailed("no space left in pool local", reason="noSpace")
            return await real(volume_id, *given)

        lab.volumes.layers.replace = replace  # type: ignore[method-assign]
        lab.server.put(change(vm, origin=BACK))
        await lab.until(lambda: lab.server.reports[vm.name].reason == "noSpace")
        lab.server.put(vm)
        await lab.settle()
        assert lab.server.reports[vm.name].state != "running"
        full.clear()
        await lab.until_state(vm, "running")
        assert chains(lab, vm) == {ROOT: [layer(S1, ROOT)], VOLUME: [layer(S1, VOLUME)]}


async def test_a_twin_begins_from_disks_and_memory_as_another_machine_and_boots_normally_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, real = list[GuestPlan](), FakeDriver.start

    async def begin(driver: FakeDriver, plan: GuestPlan) -> GuestFacts:
        started.append(plan)
        return await real(driver, plan)

    monkeypatch.setattr(FakeDriver, "start", begin)
    lab = Lab(tmp_path)
    async with lab.agent():
        vm = await take(lab)
        volumes = [AllocatedVolume(name="data", uid=OTHER_VOLUME, size=1 << 21)]
        twin = make_allocation("twin", volumes=volumes, origin=TWIN)
        lab.server.put(twin)
        await lab.until_state(twin, "running")
        assert lab.server.reports[twin.name].boot_id == lab.server.reports[vm.name].boot_id
        assert (started[-1].memory, started[-1].identity) == (memory_path(lab), Identity("twin", "uidoftwin"))
        assert started[-1].disks[1].size_bytes == 1 << 20, "as large as the memory knows it"
        assert lab.shelf.layers.chains[short_id(twin.uid)] == [layer(S1, ROOT)]
        assert lab.shelf.layers.chains[OTHER_VOLUME] == [layer(S1, VOLUME)]
        await lab.until(lambda: (found := lab.guest(twin)) is not None and found.plan.disks[1].size_bytes == 1 << 21)
        lab.server.remove_snapshots = ["snap-1"]
        lab.server.put(change(twin, restart_generation=1))
        await lab.until(lambda: short_id("snap-1") not in lab.shelf.layers.kept, "nobody needs it any more")
        await lab.until(lambda: len(started) == 3, "a boot")
        assert (started[-1].memory, started[-1].identity) == ("", None)


async def test_a_twin_whose_snapshot_is_gone_says_so(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    async with lab.agent():
        twin = make_allocation("twin", origin=TWIN)
        lab.server.put(twin)
        await lab.until(lambda: lab.server.reports.get(twin.name, AllocationReport()).reason == "snapshotGone")
        assert short_id(twin.uid) not in lab.shelf.volumes


async def test_a_restore_survives_the_agents_death_anywhere(tmp_path: Path) -> None:
    for at in range(1, MOST_CUTS, 2):
        lab = Lab(tmp_path / str(at))
        async with lab.agent():
            vm = await take(lab)
            boot = lab.server.reports[vm.name].boot_id
            vm = change(vm, origin=BACK)
            with cut(at) as where:
                lab.server.put(vm)
                await lab.until(
                    lambda vm=vm, where=where, lab=lab: (
                        where.reached
                        or (
                            lab.server.reports[vm.name].restored == 7 and lab.server.reports[vm.name].state == "running"
                        )
                    )
                )
        lab.server.reports.clear()
        async with lab.agent():
            await until_restored(lab, vm)
            await lab.until_state(vm, "running")
            assert (await until_over(lab, vm, BEFORE.uid)).phase == "ready", (at, where.where)
            assert lab.server.reports[vm.name].boot_id == boot, (at, where.where)
        assert chains(lab, vm) == {ROOT: [layer(S1, ROOT)], VOLUME: [layer(S1, VOLUME)]}, (at, where.where)
        before = lab.shelf.layers.kept[short_id(BEFORE.uid)]
        assert before.disks[VOLUME].layers == (layer(S1, VOLUME), layer(BEFORE, VOLUME)), (at, where.where)
        guest = lab.guest(vm)
        assert guest is not None and guest.plan.memory, (at, where.where)
        if not where.reached:
            assert at > 8, "the effects weren't cut"
            return
    raise AssertionError("more effects than cuts")
