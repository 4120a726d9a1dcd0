"""Nodes are emptied, rebooted and returned after an upgrade, one at a time, whatever is killed, and their guests go on."""

from __future__ import annotations

from pathlib import Path

import msgspec
from tests.scenario.controllers.test_fabric_upgrades import OLD, Fleet, change_actions
from tests.scenario.migration_lab import MovingLab

from weft.kinds.node import NodeActions
from weft.kinds.orders import OrderReports
from weft.kinds.parts.node.reboot import RebootReport
from weft.kinds.upgrade import UpgradeActions, UpgradeSpec, UpgradeStatus
from weft.objects.envelope import decode_part

KERNEL = "kernel 6.1.0-28-amd64 is installed, and 6.1.0-25-amd64 runs"


class RenewedFleet(Fleet):
    """Nodes that reboot as they are told; on one that does nothing runs any more."""

    def __init__(self, lab: MovingLab, nodes: tuple[str, ...] = ("n1", "n2")) -> None:
        super().__init__(lab, ("s1",), nodes)
        self.emptied: list[str] = []
        self.reboots: list[str] = []
        self.refuses = ""  # why machines can't be rebooted

    async def obey(self) -> UpgradeStatus:
        status = await self.status()
        if status.turn is None or status.turn.work != "renewal":
            return status
        node = self.lab.nodes[status.turn.name]
        asked = await self.actions(node.name)
        if asked.drain and node.name not in self.emptied:
            assert asked.drain_reason == "upgrade to-new" and asked.cordoned
            self.emptied.append(node.name)
        if node.report.outdated and not await self.find_guests(node.name):
            await node.write_report(outdated=0)
        if status.reboot is not None and node.report.reboot:
            assert status.reboot.node_uid == node.uid and not await self.find_guests(node.name)
            if self.refuses:
                failed = RebootReport(attempt=status.reboot.attempt, phase="failed", message=self.refuses)
                await node.write_report(orders=OrderReports(reboot=[failed]))
            elif node.name not in self.reboots:
                self.reboots.append(node.name)
                await node.die()
                await self.lab.until_gone(node.name)  # type: ignore[attr-defined]
                await node.write_report(reboot="")
                await node.start()
        return status

    async def actions(self, name: str) -> NodeActions:
        found = await self.lab.get(f"/node/-/{name}")
        assert found is not None
        return decode_part(found.actions, NodeActions)

    async def find_guests(self, node: str) -> list[str]:
        return [one.workload.name for one in await self.lab.allocations() if one.node == node and one.role == "active"]


class RebootingLab(MovingLab):
    async def until_gone(self, node: str) -> None:
        async def gone() -> bool:
            found = await self.get(f"/node/-/{node}")
            ready = found.condition("Ready") if found is not None else None
            return ready is not None and ready.status == "False"

        await self.until(gone)


async def begin(lab: RebootingLab) -> RenewedFleet:
    fleet = RenewedFleet(lab)
    await fleet.begin()
    for name in ("web", "db"):
        await lab.put_vm(name, cpu=1.0)
        await lab.until_phase(name, "Running")
    await lab.nodes["n1"].write_report(reboot=KERNEL)
    await lab.nodes["n2"].write_report(outdated=1)
    await lab.put("upgrade", "to-new", UpgradeSpec(to=OLD, renew=True), project=None)
    return fleet


async def check_end(lab: RebootingLab, fleet: RenewedFleet) -> None:
    assert (fleet.emptied, fleet.reboots) == (["n1", "n2"], ["n1"])
    status = await fleet.status()
    assert (status.phase, status.renewed, status.kept, status.left) == ("Done", 2, [], [])
    for name in fleet.nodes:
        asked = await fleet.actions(name)
        assert not asked.drain and not asked.cordoned and not asked.cordon_reason
    for name in ("web", "db"):
        vm = await lab.status(name)
        assert (vm.phase, vm.restarts, vm.node) == ("Running", 0, "n1"), "it came to n2, and from there to n1"


async def test_each_is_emptied_rebooted_if_it_needs_that_and_returned_and_the_guests_go_on(tmp_path: Path) -> None:
    async with RebootingLab(tmp_path) as lab:
        fleet = await begin(lab)
        await fleet.until("Done")
        await check_end(lab, fleet)
        await fleet.end()


async def test_controllers_that_are_killed_at_every_step_reboot_no_machine_twice(tmp_path: Path) -> None:
    async with RebootingLab(tmp_path) as lab:
        fleet = await begin(lab)
        seen = set[bytes]()
        for _ in range(3000):
            status = await fleet.obey()
            said = msgspec.json.encode(status)
            if said not in seen:
                seen.add(said)
                await lab.kill_controllers()
                lab.start_controllers(f"life {len(seen)}")
            if status.phase == "Done":
                break
            await lab.pass_time(0.25)
        await check_end(lab, fleet)
        assert len(seen) >= 6
        await fleet.end()


async def test_a_guest_that_cannot_leave_keeps_its_node_as_it_is_and_is_named(tmp_path: Path) -> None:
    async with RebootingLab(tmp_path) as lab:
        fleet = RenewedFleet(lab)
        await fleet.begin()
        await lab.put_vm("big", cpu=7.0)
        await lab.until_phase("big", "Running")
        await lab.put_vm("other", cpu=7.0)
        await lab.until_phase("other", "Running")
        home = (await lab.status("big")).node
        assert home is not None
        await lab.nodes[home].write_report(reboot=KERNEL)
        await lab.put("upgrade", "to-new", UpgradeSpec(to=OLD, renew=True), project=None)
        status = await fleet.until("Done")
        assert not fleet.reboots and len(status.kept) == 1
        assert status.kept[0].startswith(f"node/{home}: 1 left; vm/big can't leave: "), status.kept
        assert not (await fleet.actions(home)).cordoned
        assert (await lab.status("big")).phase == "Running"
        await fleet.end()


async def test_people_who_stop_it_get_the_node_back_and_one_that_is_under_way_is_not_forgotten(tmp_path: Path) -> None:
    async with RebootingLab(tmp_path) as lab:
        fleet = await begin(lab)
        fleet.refuses = "systemctl reboot failed: Access denied"

        async def is_drained() -> bool:
            return (await fleet.actions("n1")).drain

        await lab.until(is_drained)
        await change_actions(lab, UpgradeActions(stop=True))
        await fleet.until("Stopped")
        assert not (await fleet.actions("n1")).drain
        await change_actions(lab, UpgradeActions(attempt=2))
        status = await fleet.until("Done")
        assert status.kept == ["node/n1: systemctl reboot failed: Access denied"] and status.renewed == 1
        await fleet.end()
