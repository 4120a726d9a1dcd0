"""Guests move between two QEMU drivers while they write, and whoever dies on the way leaves exactly one, whole."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from guest_lab import GuestLab, make_disk
from test_qemu_crashes import MOST_STEPS, crash

from weft.contracts.driver.migration import MigrationSettings
from weft.contracts.driver.runtime import GuestPlan
from weft.drivers.runtime.qemu.driver import QemuDriver
from weft.objects.errors import Unavailable
from weft.transfer.plan import Leeway, reconsider

pytest.register_assert_rewrite("tests.conformance.runtime_contract", "tests.conformance.runtime_migration")

from tests.conformance.runtime_contract import ready, run
from tests.conformance.runtime_migration import MigratingDriver, MovePromises, come_to, migrate

pytestmark = pytest.mark.host
MIB = 1 << 20


@pytest.fixture(scope="module")
def other_lab(tiny: Path) -> Iterator[GuestLab]:
    lab = GuestLab(tiny)
    yield lab
    lab.close()


class TestQemuMoves(MovePromises):
    """The guest writes most of the memory it has free, and its disk, and looks whether all is there still."""

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def with_verifier(cls, verifier: bytes) -> None:
        cls.program = verifier

    program = b""

    async def prepare(self, driver: MigratingDriver, plan: GuestPlan) -> None:
        await run(driver, plan.id, "sh", "-c", "cat > /root/verifier; chmod +x /root/verifier", stdin=self.program)
        start = "/root/verifier 16 8000 /root/counter /dev/shm/verdict >/dev/null 2>&1 &"
        await run(driver, plan.id, "sh", "-c", start)

    async def look(self, driver: MigratingDriver, plan: GuestPlan, *, after: int = 0) -> int:
        async with asyncio.timeout(60):
            while True:
                said = (await run(driver, plan.id, "cat", "/dev/shm/verdict"))[0].decode()
                if found := re.match(r"rounds=(\d+) bad=(\d+)", said):
                    assert found[2] == "0", said
                    if int(found[1]) > after:
                        return int(found[1])
                await asyncio.sleep(0.1)

    async def test_a_guest_whose_nodes_share_no_disk_takes_it_along(
        self, here: MigratingDriver, there: MigratingDriver, lab: GuestLab, other_lab: GuestLab, plan: GuestPlan
    ) -> None:
        fill = "dd if=/dev/urandom of=/root/data bs=1M count=16 2>/dev/null; sync; sha256sum /root/data"
        whole = (await run(here, plan.id, "sh", "-c", fill))[0]
        seen = await self.look(here, plan)
        settings = MigrationSettings("multifd-zstd", streams=2, copied_disks=("root",), bytes_per_second=64 << 20)
        source, target, there_plan = here, there, on_own_disk(other_lab, plan)
        sockets = await target.migrations.expect(
            there_plan, await source.migrations.describe(plan.id), "disks-0", settings
        )
        await source.migrations.send(plan.id, "disks-0", sockets, settings)
        here = source = await self.heir(lab, here)
        await come_to(source, plan, "disks-0", "handedOver")
        await come_to(target, plan, "disks-0", "arrived")
        await target.migrations.take_over(plan.id, "disks-0")
        await source.migrations.leave(plan.id, "disks-0")
        seen = await self.look(target, plan, after=seen + 1)
        Path(plan.disks[0].path).unlink()  # nothing of it is needed there any more
        read = "echo 3 > /proc/sys/vm/drop_caches; sha256sum /root/data"
        assert (await run(there, plan.id, "sh", "-c", read))[0] == whole
        await here.remove(plan.id)
        await here.close()
        await there.stop(plan.id, grace_seconds=20)
        checked = subprocess.run(["qemu-img", "check", there_plan.disks[0].path], capture_output=True, text=True)
        assert checked.returncode == 0, checked
        await there.remove(plan.id)
        lab.plan("mover")  # makes the disk anew

    @pytest.mark.long
    async def test_a_monitor_lost_again_and_again_only_delays_a_guest_that_takes_its_disk_along(
        self, here: MigratingDriver, there: MigratingDriver, lab: GuestLab, other_lab: GuestLab, plan: GuestPlan
    ) -> None:
        seen, there_plan = await self.look(here, plan), on_own_disk(other_lab, plan)
        settings = MigrationSettings("multifd-zstd", streams=2, copied_disks=("root",), bytes_per_second=64 << 20)
        sockets = await there.migrations.expect(there_plan, await here.migrations.describe(plan.id), "deaf", settings)
        await here.migrations.send(plan.id, "deaf", sockets, settings)
        assert isinstance(here, QemuDriver)
        guest, phase, lost = await here.migrations._guests.get(plan.id), "migrating", 0
        while phase not in ("handedOver", "failed"):
            with contextlib.suppress(Unavailable):
                phase = (await here.migrations.progress(plan.id, "deaf")).phase
                if lost < 8 and phase not in ("handedOver", "failed"):
                    guest.monitor().close()
                    lost += 1
            await asyncio.sleep(0.1)
        assert phase == "handedOver" and lost > 0, "a quick machine is through after two or three"
        await come_to(there, plan, "deaf", "arrived")
        await there.migrations.take_over(plan.id, "deaf")
        await here.migrations.leave(plan.id, "deaf")
        await here.remove(plan.id)
        await self.look(there, plan, after=seen + 1)
        await there.stop(plan.id, grace_seconds=0)
        await there.remove(plan.id)
        Path(plan.disks[0].path).unlink()
        lab.plan("mover")

    @pytest.mark.long  # test_agent_migration.py kills agents and machines on the way
    @pytest.mark.parametrize("stride", [5, 1])
    async def test_a_driver_killed_at_any_step_of_the_hand_over_leaves_one_guest_and_the_next_finishes_it(
        self,
        here: MigratingDriver,
        there: MigratingDriver,
        lab: GuestLab,
        other_lab: GuestLab,
        plan: GuestPlan,
        stride: int,
    ) -> None:
        boot_id, settings = (await ready(here, plan)).boot_id, MigrationSettings()
        await here.close()
        await there.close()
        source_lab, target_lab = lab, other_lab
        for verb in ("send", "take-over"):
            for step in range(1, MOST_STEPS, stride):
                source, target = await self.heir(source_lab), await self.heir(target_lab)
                machine = await source.migrations.describe(plan.id)
                sockets = await target.migrations.expect(plan, machine, "crash", settings)
                crashed = False
                if verb == "send":
                    await source.close()
                    crashed = await crash(source_lab, plan, f"send:{sockets.memory}", step)
                    source = await self.heir(source_lab)
                    assert (await source.inspect(plan.id)).state in ("running", "paused"), step
                await source.migrations.send(plan.id, "crash", sockets, settings)
                assert (await come_to(source, plan, "crash", "handedOver", "failed")).phase == "handedOver", step
                await come_to(target, plan, "crash", "arrived")
                if verb == "take-over":
                    await target.close()
                    crashed = await crash(target_lab, plan, verb, step)
                    target = await self.heir(target_lab)
                    assert (await target.inspect(plan.id)).state in ("starting", "running"), step
                await target.migrations.take_over(plan.id, "crash")
                await source.migrations.leave(plan.id, "crash")
                await source.remove(plan.id)
                assert source_lab.leftovers(plan.id) == []
                assert (await ready(target, plan)).boot_id == boot_id, (verb, step)
                await self.look(target, plan)
                await source.close()
                await target.close()
                source_lab, target_lab = target_lab, source_lab
                if not crashed:
                    break
            else:
                raise AssertionError(f"{verb} never came to its end")
        last = await self.heir(source_lab)
        await last.stop(plan.id, grace_seconds=0)
        await last.remove(plan.id)
        await last.close()

    @pytest.mark.long
    async def test_a_guest_that_writes_faster_than_the_path_carries_is_slowed_down_and_gets_there(
        self, here: MigratingDriver, there: MigratingDriver, plan: GuestPlan
    ) -> None:
        seen, leeway = await self.look(here, plan), Leeway(24 * MIB, pause_seconds=0.1)
        load = await here.migrations.sample(plan.id)
        assert load.dirty_bytes_per_second > leeway.bytes_per_second
        settings = MigrationSettings(bytes_per_second=24 * MIB, pause_ms=100)
        sockets = await there.migrations.expect(plan, await here.migrations.describe(plan.id), "slow", settings)
        await here.migrations.send(plan.id, "slow", sockets, settings)
        left: list[int] = []
        slowdown = 0.0
        async with asyncio.timeout(60):
            while (facts := await here.migrations.progress(plan.id, "slow")).phase == "migrating":
                if facts.passes > len(left):
                    left.append(facts.remaining_bytes)
                    change = reconsider("plain", left, leeway, slowdown=slowdown)
                    if change.action != "go on":
                        assert change.action == "slow down", (change, left)
                        slowdown = change.slowdown
                        await here.migrations.adjust(plan.id, "slow", slowdown=slowdown)
                await asyncio.sleep(0.005)
        assert (await come_to(here, plan, "slow", "handedOver", "failed")).phase == "handedOver"
        assert slowdown > 0, left
        await come_to(there, plan, "slow", "arrived")
        await there.migrations.take_over(plan.id, "slow")
        await here.migrations.leave(plan.id, "slow")
        await here.remove(plan.id)
        await self.look(there, plan, after=seen + 1)
        await migrate(there, here, plan, "slow-home")
        await there.remove(plan.id)

    async def test_called_off_or_cut_off_while_its_disk_is_copied_it_stays(
        self, here: MigratingDriver, there: MigratingDriver, other_lab: GuestLab, plan: GuestPlan
    ) -> None:
        seen, settings = (
            await self.look(here, plan),
            MigrationSettings(copied_disks=("root",), bytes_per_second=4 << 20),
        )
        for end in ("cancel", "kill"):
            there_plan = on_own_disk(other_lab, plan)
            sockets = await there.migrations.expect(there_plan, await here.migrations.describe(plan.id), end, settings)
            await here.migrations.send(plan.id, end, sockets, settings)
            await come_to(there, plan, end, "migrating")
            if end == "kill":
                other_lab.kill(there, await there.inspect(plan.id))
                await come_to(here, plan, end, "failed")
            await here.migrations.cancel(plan.id, end)
            await there.migrations.give_up(plan.id, end)
            assert other_lab.leftovers(plan.id) == []
            seen = await self.look(here, plan, after=seen + 1)
        await migrate(here, there, plan, "after-all")
        await self.look(there, plan, after=seen + 1)
        await there.stop(plan.id, grace_seconds=0)
        await there.remove(plan.id)
        await here.remove(plan.id)


def on_own_disk(lab: GuestLab, plan: GuestPlan) -> GuestPlan:
    """The plan of another node, which has an empty disk for it."""
    root = plan.disks[0]
    path = lab.folder / "copied.qcow2"
    path.unlink(missing_ok=True)
    make_disk(path, backing=Path(str(root.base)))
    uid = str(uuid.uuid4())  # another place of the guest has one of its own; the machine keeps what it was built with
    return msgspec.structs.replace(plan, uid=uid, disks=[msgspec.structs.replace(root, path=str(path))])
