"""Snapshots that an agent takes of its guests: what is kept and reported, and that no death of the agent leaves half of one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.agent_lab import Lab, change, make_allocation
from tests.scenario.cut import MOST_CUTS, cut

from weft.agent.allocation.steps import snapshot as step
from weft.agent.snapshot.absorption import Absorption
from weft.contracts.driver.layers import MOST_LAYERS
from weft.drivers.runtime.fake import snapshot as fake
from weft.kinds.allocation import ROOT, AllocatedVolume
from weft.kinds.fields.allocated_snapshot import AllocatedSnapshot, SnapshotReport
from weft.objects.envelope import Envelope
from weft.objects.errors import DriverFailed, IllegalTransition
from weft.objects.identity import short_id

VOLUME = "6f1f3c9e-1c2d-4b6a-9a55-0d5f6b9c1a11"
S1 = AllocatedSnapshot(uid="snap-1", name="s1")
WITH_MEMORY = AllocatedSnapshot(uid="snap-1", name="s1", memory=True)
S2 = AllocatedSnapshot(uid="snap-2", name="s2")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "ASK_SECONDS", 0.02)
    monkeypatch.setattr(fake, "SAVE_SECONDS", 0.05)
    monkeypatch.setattr("weft.agent.allocation.plan.FIRST_PAUSE_SECONDS", 0.05)


def make_vm(**fields: Any) -> Envelope:
    return make_allocation(volumes=[AllocatedVolume(name="data", uid=VOLUME, size=1 << 20)], **fields)


def layer(snapshot: AllocatedSnapshot, disk: str) -> str:
    return short_id(f"{snapshot.uid}/{disk}")


async def until_over(lab: Lab, vm: Envelope, uid: str = "snap-1") -> SnapshotReport:
    def find() -> SnapshotReport | None:
        report = lab.server.reports.get(vm.name)
        return next((one for one in report.snapshots if one.uid == uid), None) if report is not None else None

    await lab.until(lambda: (found := find()) is not None and found.phase != "taking", f"the end of {uid}")
    found = find()
    assert found is not None
    return found


async def start(lab: Lab) -> Envelope:
    vm = make_vm()
    lab.server.put(vm)
    await lab.until_state(vm, "running")
    return vm


async def test_all_disks_of_a_running_guest_are_kept_with_its_memory(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    async with lab.agent():
        vm = await start(lab)
        boot = lab.server.reports[vm.name].boot_id
        lab.server.put(change(vm, snapshots=[WITH_MEMORY]))
        report = await until_over(lab, vm)
        await lab.until(lambda: lab.server.node_report and lab.server.node_report.snapshots, "the inventory")
    assert (report.phase, report.consistency, report.pool) == ("ready", "memory", "local"), report
    assert report.memory > 0 and report.size >= report.memory and report.pause_ms == fake.PAUSE_MS
    assert report.disks[VOLUME] == 1 << 20 and report.disks.keys() == {ROOT, VOLUME}
    kept = lab.shelf.layers.kept[short_id("snap-1")]
    assert {disk: one.layers for disk, one in kept.disks.items()} == {
        ROOT: (layer(S1, ROOT),),
        VOLUME: (layer(S1, VOLUME),),
    }
    assert (kept.memory_bytes, kept.disks[VOLUME].name) == (report.memory, "data")
    assert kept.workload == "uid-of-web", "it goes with the VM to other storage"
    assert Path(lab.volumes.layers.memory_path(kept.id)).exists()
    assert lab.server.reports[vm.name].boot_id == boot and lab.server.reports[vm.name].state == "running"
    guest = lab.guest(vm)
    assert guest is not None and guest.snapshot is None, "the runtime may forget it"


async def test_one_after_the_other_and_a_report_goes_with_its_spec(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    async with lab.agent():
        vm = await start(lab)
        lab.server.put(change(vm, snapshots=[S1, S2]))
        assert [(await until_over(lab, vm, one)).phase for one in ("snap-1", "snap-2")] == ["ready", "ready"]
        assert lab.shelf.layers.chains[VOLUME] == [layer(S1, VOLUME), layer(S2, VOLUME)]
        lab.server.put(change(vm, snapshots=[S2]))
        await lab.until(lambda: [one.uid for one in lab.server.reports[vm.name].snapshots] == ["snap-2"])
        lab.server.put(vm)
        await lab.until(lambda: lab.server.reports[vm.name].snapshots == [])


@pytest.mark.parametrize("restarts", [False, True])
async def test_points_that_come_one_after_the_other_never_make_a_chain_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarts: bool
) -> None:
    """As those of a replication on a busy node: each time the one before is dropped, and the background is never done before the
    next. Also where an agent finds a chain that is as long as it may be already."""

    async def absorb_nothing(self: Absorption) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Absorption, "keep", absorb_nothing)
    lab, most, taken = Lab(tmp_path), 0, 0

    async def take(vm: Envelope) -> None:
        nonlocal most, taken
        one = AllocatedSnapshot(uid=f"snap-{taken}", name=f"s{taken}")
        lab.server.put(change(vm, snapshots=[one]))
        report = await until_over(lab, vm, one.uid)
        assert report.phase == "ready", (taken, report)
        lab.shelf.layers.kept.pop(short_id(f"snap-{taken - 1}"), None)
        most, taken = max(most, len(lab.shelf.layers.chains[VOLUME])), taken + 1

    async with lab.agent():
        vm = await start(lab)
        for _ in range(17):
            await take(vm)
    if restarts:
        for disk, chain in lab.shelf.layers.chains.items():
            lab.shelf.layers.chains[disk] = [*(f"{disk}-{n}" for n in range(MOST_LAYERS - len(chain))), *chain]
    async with lab.agent():
        for _ in range(16):
            await take(vm)
    assert most == MOST_LAYERS - 1 if restarts else most <= MOST_LAYERS // 2 + 1
    assert len(lab.shelf.layers.chains[VOLUME]) <= MOST_LAYERS // 2


@pytest.mark.parametrize(("desired", "state"), [("stop", "stopped"), ("suspend", "suspended")])
async def test_disks_at_rest_are_kept_without_the_runtime(tmp_path: Path, desired: str, state: str) -> None:
    lab = Lab(tmp_path)
    async with lab.agent():
        vm = await start(lab)
        vm = change(vm, desired=desired, desired_count=1)
        lab.server.put(vm)
        await lab.until_state(vm, state)
        lab.server.put(change(vm, snapshots=[S1]))
        report = await until_over(lab, vm)
        assert (report.phase, report.consistency, report.memory) == ("ready", "stopped", 0), report
        lab.server.put(change(vm, snapshots=[], desired="run", desired_count=2))
        await lab.until_state(vm, "running")
    guest = lab.guest(vm)
    assert guest is not None and [Path(one.path).stem for one in guest.plan.disks[0].layers] == [layer(S1, ROOT)]


async def test_the_memory_of_a_vm_that_does_not_run_is_not_kept_and_nothing_else_in_its_place(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    async with lab.agent():
        vm = await start(lab)
        vm = change(vm, desired="stop", desired_count=1)
        lab.server.put(vm)
        await lab.until_state(vm, "stopped")
        lab.server.put(change(vm, snapshots=[WITH_MEMORY]))
        report = await until_over(lab, vm)
        assert (report.phase, report.reason) == ("failed", "noMemory"), report
        assert "vm/default/web does not run, so it has no memory to keep" in report.message
        assert not any(lab.shelf.layers.chains.values())


async def test_a_vm_that_never_had_a_disk_has_nothing_to_keep(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    vm = make_vm(desired="stop", snapshots=[S1])
    async with lab.agent():
        lab.server.put(vm)
        report = await until_over(lab, vm)
    assert (report.phase, report.reason) == ("failed", "noDisk")


async def test_a_full_pool_fails_it_and_the_guest_runs_on(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    async with lab.agent():
        vm = await start(lab)
        full = DriverFailed("no space left in storage pool local", reason="noSpace")
        for place in ("begin_layer", "keep"):
            lab.volumes.failures[place] = [full]
            snapshot = AllocatedSnapshot(uid=f"snap-{place}", name=place)
            lab.server.put(change(vm, snapshots=[snapshot]))
            report = await until_over(lab, vm, snapshot.uid)
            assert (report.phase, report.reason) == ("failed", "noSpace"), place
            assert lab.shelf.layers.unfinished == {} and lab.shelf.layers.kept == {}
        assert lab.server.reports[vm.name].state == "running"
        lab.server.put(change(vm, snapshots=[S2]))
        assert (await until_over(lab, vm, "snap-2")).phase == "ready"


async def test_a_refusal_of_the_runtime_undoes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*given: Any) -> Any:
        raise IllegalTransition("vm/web stands still (io-error)")

    lab = Lab(tmp_path)
    async with lab.agent():
        vm = await start(lab)
        monkeypatch.setattr(fake.FakeSnapshots, "take", refuse)
        lab.server.put(change(vm, snapshots=[S1]))
        report = await until_over(lab, vm)
        assert (report.phase, report.message) == ("failed", "vm/web stands still (io-error)")
        assert lab.shelf.layers.unfinished == {} and lab.shelf.layers.chains.get(VOLUME, []) == []
        assert lab.server.reports[vm.name].state == "running"


async def test_a_stop_does_not_wait_for_memory_and_fails_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "SAVE_SECONDS", 600.0)
    lab = Lab(tmp_path)
    async with lab.agent():
        vm = await start(lab)
        vm = change(vm, snapshots=[WITH_MEMORY])
        lab.server.put(vm)
        await lab.until(lambda: lab.shelf.layers.chains.get(VOLUME) == [layer(S1, VOLUME)], "the switch")
        assert lab.server.reports[vm.name].state == "running"
        lab.server.put(change(vm, desired="stop", desired_count=1))
        report = await until_over(lab, vm)
        await lab.until_state(vm, "stopped")
    assert (report.phase, report.reason) == ("failed", "notKept"), report
    assert lab.shelf.layers.kept == {} and lab.shelf.layers.unfinished == {}


@pytest.mark.parametrize("dies", [False, True])
async def test_it_survives_the_agents_death_anywhere(tmp_path: Path, dies: bool) -> None:
    """``dies``: so does the guest, before the next agent is there."""
    for at in range(1, MOST_CUTS, 2 if dies else 1):
        lab = Lab(tmp_path / str(at))
        async with lab.agent():
            vm = await start(lab)
            boot = lab.server.reports[vm.name].boot_id
            with cut(at) as where:
                snapshot = S1 if dies else WITH_MEMORY
                vm = change(vm, snapshots=[snapshot])
                lab.server.put(vm)
                await lab.until(
                    lambda vm=vm, where=where, lab=lab: (
                        where.reached or any(one.phase == "ready" for one in lab.server.reports[vm.name].snapshots)
                    )
                )
        lab.server.reports.clear()
        if dies:
            lab.runtime.kill(short_id(vm.uid))
        async with lab.agent():
            report = await until_over(lab, vm)
            await lab.until_state(vm, "running")
        assert report.phase == "ready", (at, where.where, report)
        shelf = lab.shelf.layers
        assert shelf.unfinished == {} and set(shelf.kept) == {short_id("snap-1")}, (at, where.where)
        assert {disk: shelf.chains[disk] for disk in (short_id(vm.uid), VOLUME)} == {
            short_id(vm.uid): [layer(S1, ROOT)],
            VOLUME: [layer(S1, VOLUME)],
        }, (at, where.where)
        guest = lab.guest(vm)
        assert guest is not None and (guest.boot_id == boot) != dies, (at, where.where)
        if not where.reached:
            assert at > 8, "the effects weren't cut"
            return
    raise AssertionError("more effects than cuts")


def with_turn(vm: Envelope, turn: str, **fields: Any) -> Envelope:
    order = AllocatedSnapshot(uid="snap-1", name="g-web", turn=turn)  # type: ignore[arg-type]
    return change(vm, snapshots=[order], **fields)


def turn_of(lab: Lab, vm: Envelope) -> str:
    return next((one.turn for one in lab.server.reports[vm.name].snapshots), "")


@pytest.mark.parametrize("runs", [True, False])
async def test_a_member_of_a_group_holds_until_all_do_and_counts_only_then(tmp_path: Path, runs: bool) -> None:
    lab = Lab(tmp_path)
    async with lab.agent():
        vm = await start(lab)
        if not runs:
            vm = change(vm, desired="stop", desired_count=1)
            lab.server.put(vm)
            await lab.until_state(vm, "stopped")
        lab.server.put(with_turn(vm, "prepare"))
        await lab.until(lambda: turn_of(lab, vm) == "prepare")
        assert lab.shelf.layers.unfinished == {}, "nothing is done to it before its turn"
        lab.server.put(with_turn(vm, "hold"))
        await lab.until(lambda: turn_of(lab, vm) == "hold")
        guest = lab.guest(vm)
        if runs:
            assert guest is not None and guest.snapshot is not None and guest.snapshot.facts.phase == "holding"
        else:
            lab.server.put(vm := with_turn(vm, "hold", desired="run", desired_count=2))
            await lab.until(lambda: turn_of(lab, vm) == "hold")
            assert lab.server.reports[vm.name].state != "running", "it isn't started while it holds"
        assert lab.shelf.layers.kept == {}
        lab.server.put(with_turn(vm, "go"))
        report = await until_over(lab, vm)
        await lab.until_state(vm, "running")
    assert (report.phase, report.consistency) == ("ready", "filesystem" if runs else "stopped"), report
    assert set(lab.shelf.layers.kept) == {short_id("snap-1")}


@pytest.mark.parametrize("why", ["late", "dropped", "taken back", "agent died"])
async def test_a_member_that_does_not_hold_until_it_is_told_to_go_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr(step, "HOLD_SECONDS", 0.3 if why == "late" else 600.0)
    lab = Lab(tmp_path)
    async with lab.agent():
        vm = await start(lab)
        lab.server.put(with_turn(vm, "hold"))
        await lab.until(lambda: turn_of(lab, vm) == "hold")
        if why == "dropped":
            lab.server.put(with_turn(vm, "drop"))
        elif why == "taken back":
            lab.server.put(change(vm, snapshots=[]))
    if why == "agent died":
        lab.server.reports.clear()
        lab.server.put(with_turn(vm, "go"))
    async with lab.agent():
        if why == "taken back":
            await lab.until(lambda: (one := lab.guest(vm)) is not None and one.snapshot is None, "the end of its hold")
        else:
            if why != "agent died":
                lab.server.put(with_turn(vm, "go"))
            report = await until_over(lab, vm)
            assert report.phase == "failed" and report.message, report
        await lab.until_state(vm, "running")
        assert lab.shelf.layers.kept == {} and lab.shelf.layers.unfinished == {}
        lab.server.put(change(vm, snapshots=[S2]))
        assert (await until_over(lab, vm, "snap-2")).phase == "ready", "the next one is taken"
